"""Backup and restore: the commands of docs/operations.md, on the programs of the tests' PostgreSQL."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from api.app import create_app
from tests.support import ROOT
from tests.support.commands import environment
from tests.support.database import NewDatabase, execute
from tests.support.serving import serve, settings_for
from tests.support.standby import programs
from tests.support.users import USERS

CREATION = {"json": {"email": "ada@example.com", "name": "Ada"}, "headers": {"idempotency-key": "1"}}


def test_what_is_restored_serves_as_before(
    database: str, new_database: NewDatabase, empty_database: str, tmp_path: Path
) -> None:
    """Ids, versions, idempotency keys and migrations are those of the dump, and so are the grants of the roles."""
    text = (ROOT / "docs/operations.md").read_text()
    _, block = text.split("<!-- not run: tests/database/test_backup.py runs it -->\n```console\n")
    commands = re.findall(r"^\$ (.+)$", block.split("```")[0], re.MULTILINE)
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        created = client.post(USERS, **CREATION)  # type: ignore[arg-type]
        changed = client.patch(created.headers["location"], json={"name": "Ada L."})
        path = f"{programs()}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = environment(PATH=path, DIRECT_URL=database, RESTORED_URL=empty_database)
        done = subprocess.run(
            ["bash", "-ec", "\n".join(commands)], env=variables, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "pending" not in done.stdout
        assert "statements fit the database" in done.stdout
        client.delete(created.headers["location"])
    with serve(create_app(settings_for(empty_database))) as url, httpx.Client(base_url=url) as client:
        found = client.get(created.headers["location"])
        assert (found.text, found.headers["etag"]) == (changed.text, changed.headers["etag"])
        again = client.post(USERS, **CREATION)  # type: ignore[arg-type]
        assert (again.status_code, again.text) == (201, created.text)
        new = client.post(USERS, json={"email": "grace@example.com"})
        assert new.json()["id"] == created.json()["id"] + 1
    assert execute(empty_database, "select count(*) from users") == [(2,)]
