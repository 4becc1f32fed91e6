"""The roles that docs/neon.md creates, by the SQL that it shows."""

import re

from tests.support import ROOT

ROLES_SQL, GRANTS_SQL = re.findall(r"^```sql\n(.*?)^```$", (ROOT / "docs/neon.md").read_text(), re.M | re.S)
"""Both blocks of the document: before the first migration, and after it."""

OWNER, SERVER, READER = re.findall(r"^create role (\w+)", ROLES_SQL, re.M)


def as_role(url: str, role: str) -> str:
    """Return the URL with a role in place of the tests' superuser; any other URL as it is."""
    return re.sub("^postgresql://postgres:@", f"postgresql://{role}:@", url)
