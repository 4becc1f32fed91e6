"""Uses the client that openapi-python-client makes, on an empty database: URL KEY."""

import json
import sys
from io import BytesIO
from typing import assert_type

from users_client import AuthenticatedClient
from users_client.api.service import get_health
from users_client.api.users import (
    create_user,
    delete_user,
    export_users,
    get_user,
    import_users,
    list_users,
    update_user,
)
from users_client.models.export_users_format import ExportUsersFormat
from users_client.models.problem import Problem
from users_client.models.user import User
from users_client.models.user_create import UserCreate
from users_client.models.user_update import UserUpdate
from users_client.types import UNSET, File, Unset

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)

created = create_user.sync_detailed(client=client, body=UserCreate(email="ada@example.com"))
assert created.status_code == 201
ada = created.parsed
assert isinstance(ada, User)
assert_type(ada.name, str | None)
assert ada.name is None
assert ada.created_at.utcoffset() is not None

taken = create_user.sync(client=client, body=UserCreate(email="ADA@example.com", name=None))
assert isinstance(taken, Problem)
assert_type(taken.type_, str)
assert taken.type_ == "urn:problem:users-api:email-taken"
invalid = create_user.sync(client=client, body=UserCreate(email="nobody"))
assert isinstance(invalid, Problem)
assert not isinstance(invalid.errors, Unset)
assert invalid.errors[0].loc == ["body", "email"]

changed = update_user.sync_detailed(ada.id, client=client, body=UserUpdate(name="Ada"))
assert isinstance(changed.parsed, User)
assert changed.parsed.name == "Ada"
etag = changed.headers["etag"]
cleared = update_user.sync(ada.id, client=client, body=UserUpdate(name=None), if_match=etag)
assert isinstance(cleared, User)
assert cleared.name is None
stale = delete_user.sync_detailed(ada.id, client=client, if_match=etag)
assert stale.status_code == 412

read = get_user.sync(ada.id, client=client)
assert read == cleared

ndjson = b'{"email": "grace@example.com", "name": "Grace"}\n{"email": "nobody"}\n{"email": "alan@example.com"}\n'
imported = import_users.sync(client=client, body=File(payload=BytesIO(ndjson)))
assert isinstance(imported, File)
*_, last = imported.payload.read().splitlines()
summary = json.loads(last)["summary"]
assert (summary["complete"], summary["created"], summary["refused"]) == (True, 2, 1)

exported = export_users.sync(client=client, format_=ExportUsersFormat.NDJSON)
assert isinstance(exported, File)
emails = [User.from_dict(json.loads(line)).email for line in exported.payload.read().splitlines()]
assert emails == ["ada@example.com", "grace@example.com", "alan@example.com"]
table = export_users.sync(client=client, format_=ExportUsersFormat.CSV)
assert isinstance(table, File)
assert table.payload.readline() == b"id,email,name,created_at,updated_at\n"

page = list_users.sync_detailed(client=client, after=ada.id, limit=1)
assert isinstance(page.parsed, list)
assert [user.name for user in page.parsed] == ["Grace"]
assert 'rel="next"' in page.headers["link"]
found = list_users.sync(client=client, q="AL")
assert isinstance(found, list)
assert found[0].email == "alan@example.com"

assert delete_user.sync_detailed(ada.id, client=client).status_code == 204
gone = get_user.sync(ada.id, client=client)
assert isinstance(gone, Problem)
assert gone.detail == "User not found"
assert gone.errors is UNSET

health = get_health.sync(client=client)
assert health is not None
assert not isinstance(health, Problem)
assert health.status == "healthy"
print("done")
