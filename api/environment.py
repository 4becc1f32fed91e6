"""The variables of the environment, of `.env` and of mounted files, and names that look like a setting but are none."""

import logging
import os
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

logger = logging.getLogger("api.environment")

ENV_FILE = Path(".env")
"""In the working directory."""
# Settings share these beginnings. REQUESTS_, METRICS_ and the like are left out: other programs have them too.
_FAMILIES = (
    *("ACQUIRE_", "BATCH_", "BULK_", "CORS_", "DRAIN_", "GRACE_", "JWT_", "POOL_", "READINESS_", "REPLICA_"),
    *("SLOW_REQUEST", "STATEMENT_"),
)
_FILE_SUFFIX = "_FILE"  # by which other programs read a secret from a file
_NEAR = 0.85  # below it are names of other programs, such as TEST_DATABASE_URL
_READABLE = re.compile("[A-Za-z0-9_.-]{1,64}")
# Kubernetes sets these for each Service in the namespace (https://kubernetes.io/docs/tutorials/services/connect-applications-service/),
# and Google Cloud Batch the last for each task.
_OF_PLATFORMS = re.compile(
    r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|BATCH_(TASK|JOB|HOSTS)_\w+"
)
_SERVICE_LINK = re.compile("(tcp|udp|sctp)://")


class SettingsError(Exception):
    """Invalid settings. The message names each variable and the remedy, and contains no secret."""


def read_env_file() -> dict[str, str]:
    """Return the variables in `.env`, without empty ones; nothing if it is missing. A byte order mark is skipped.

    Values are taken as they stand: `${x}` in a password is no reference to a variable, which would usually be nothing.
    Raises SettingsError, in one line, if it cannot be read.
    """
    try:
        values = dotenv_values(ENV_FILE, interpolate=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:  # Its text quotes the bytes, which may be a secret.
        raise SettingsError(f".env: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise SettingsError(f".env: {error.strerror}: make it readable for this user or remove it") from None
    return {name: value for name, value in values.items() if value}


def read_files(settings: Collection[str]) -> dict[str, str]:
    """Return what files set and the environment does not, by name in lower case. SECRETS_DIR wins over `.env`.

    `settings` are the real names, in upper case. Raises SettingsError, in one line, if a file cannot be read.
    """
    environment = {name.lower(): value for name, value in os.environ.items() if value}
    values = {name.lower(): value for name, value in read_env_file().items()}
    if directory := environment.get("secrets_dir") or values.get("secrets_dir"):
        try:
            values |= _read_secrets(clean(directory, "SECRETS_DIR"), settings)
        except ValueError as error:
            raise SettingsError(f"SECRETS_DIR: {error}") from None
    return {name: value for name, value in values.items() if name not in environment}


def _read_secrets(directory: str, settings: Collection[str]) -> dict[str, str]:
    """Return the contents of the files that are named after settings, without empty ones, by name in lower case.

    pydantic-settings would only warn of a missing directory, and quote the bytes of a file that is not UTF-8. A name
    that looks like a setting but is none is an error here: other programs have no files in the directory.
    """
    try:
        # Kubernetes keeps the mounted files in directories whose names begin with a dot, and links to them.
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as error:
        raise SettingsError(
            f"SECRETS_DIR: {directory}: {error.strerror}: mount a directory there that this user can read, or unset it"
        ) from None
    values: dict[str, str] = {}
    for name in names:
        file = Path(directory, name)
        if meant := _meant(name.upper(), settings):
            raise SettingsError(f"{file}: not a setting (did you mean {meant}?): rename it or remove it")
        if name.lower() in values:
            raise SettingsError(f"{file}: another file has this name in other letters: remove one of them")
        if name.upper() in settings:
            values[name.lower()] = _read_secret(file)
    return {name: value for name, value in values.items() if value}


def _read_secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}: make it a file that this user can read, or remove it") from None


def clean(value: str, variable: str) -> str:
    """Return a value without blanks around it. Raises ValueError with the remedy, which quotes nothing."""
    value = value.strip()
    if not value:
        raise ValueError("it is blank: give it a value, or remove it")
    if value[0] == value[-1] and value[0] in "'\"`":
        raise ValueError("it is in quotes, which `docker --env-file` keeps: remove them")
    if variable.endswith("PORT") and _SERVICE_LINK.match(value):
        service = variable.removesuffix("PORT").removesuffix("_").replace("_", "-").lower()
        raise ValueError(
            f"it is an address that Kubernetes sets for a Service{f' called {service}' if service else ''}: set "
            f"enableServiceLinks: false in the pod, or {variable} to a number"
        )
    return value


def warn_of_misspelt_names(settings: Collection[str]) -> None:
    """Log one warning about the names in the environment and in `.env` that look like a setting but are none.

    `settings` are the real names, in upper case. Raises SettingsError if `.env` cannot be read.
    """
    environment = [name for name, value in os.environ.items() if not _SERVICE_LINK.match(value)]
    meant = {name: _meant(name.upper(), settings) for name in sorted({*environment, *read_env_file()})}
    hints = [f"{name} (did you mean {setting}?)" for name, setting in meant.items() if setting]
    if hints:
        logger.warning("not a setting, so without effect: %s", ", ".join(hints))


def _meant(name: str, settings: Collection[str]) -> str | None:
    """Return the setting that a name in upper case most likely means, None for a setting and for unrelated names."""
    if name in settings or not _READABLE.fullmatch(name) or _OF_PLATFORMS.fullmatch(name):
        return None
    near = 0.0 if name.startswith(_FAMILIES) else _NEAR
    matches: Iterable[str] = get_close_matches(name.removesuffix(_FILE_SUFFIX), settings, n=1, cutoff=near)
    return next(iter(matches), None)
