"""The declarations of `sql/users/`: types, and the arguments with which the tests check their plans.

The first array of a statement is in a sub-select, which hides its length from the planner. Otherwise PostgreSQL would
plan each execution anew: a generic plan, made for ten elements, seems more expensive than one made for the actual
length. Planning takes up to four times as long as the PATCH or DELETE itself. Only imports, of 1,000 rows, are worth
planning.

Every column is cast to the type declared here. A transaction pooler keeps a statement prepared on its own connections.
There it fails for ever once a migration changes its result types ("cached plan must not change result type").
"""

from collections.abc import Sequence

from api.database.statements import declare
from api.resources.arrays import array

_USER = {"id": "int8", "version": "int8", "body": "text"}
_PAGE = {"last_id": "int8", "size": "int8", "body": "text"}
_PAGE_BY_CREATION = {"last_created_at": "timestamptz", **_PAGE}
_OUTCOME = {"n": "int8", "outcome": "text"}
_CSV = {"id": "int8", **dict.fromkeys(("email", "name", "created_at", "updated_at"), "text")}


def _addresses(ids: Sequence[int], name: str = "user") -> list[str]:
    return [f"{name}{id}@example.com" for id in ids]


def _new_users(ids: Sequence[int]) -> list[object]:
    return [_addresses(ids, "new"), ["x"] * len(ids), "1s"]


def _pages(ids: Sequence[int]) -> list[object]:
    return [array(ids), array([100] * len(ids))]


SELECT_USERS = declare("users/select_users.sql", ["text"], _USER, batched=True, example=lambda ids: [array(ids)])
SELECT_USERS_BY_EMAIL = declare(
    "users/select_users_by_email.sql",
    ["text[]"],
    {"n": "int8", **_USER},
    batched=True,
    example=lambda ids: [_addresses(ids)],
)
INSERT_USERS = declare(
    "users/insert_users.sql",
    ["text[]", "text[]", "text"],
    {"n": "int8", **_USER},
    writes=True,
    batched=True,
    example=_new_users,
)
INSERT_USERS_ONCE = declare(
    "users/insert_users_once.sql",
    [*["text[]"] * 6, "text", "text"],
    {"n": "int8", "row_id": "int8", "body": "text", "is_replayed": "bool", "is_reused": "bool"},
    writes=True,
    batched=True,
    example=lambda ids: [
        [""] * len(ids),
        list(map(str, ids)),
        ["f"] * len(ids),
        ["{}"] * len(ids),
        _addresses(ids, "new"),
        ["x"] * len(ids),
        array([False] * len(ids)),
        "1s",
    ],
    reach=2,  # expired keys are deleted two by two
)
UPDATE_USERS = declare(
    "users/update_users.sql",
    ["text", "text[]", "text", "text[]", "text[]", "text"],
    _USER,
    writes=True,
    batched=True,
    example=lambda ids: [
        array(ids),
        [None] * len(ids),
        array([True] * len(ids)),
        ["x"] * len(ids),
        [None if n % 2 == 0 else "{1}" for n in range(len(ids))],
        "1s",
    ],
)
DELETE_USERS = declare(
    "users/delete_users.sql",
    ["text", "text[]", "text"],
    _USER,
    writes=True,
    batched=True,
    example=lambda ids: [array(ids), [None] * len(ids), "1s"],
)
LIST_USERS_AFTER = declare(
    "users/list_users_after.sql", ["text", "text"], {"n": "int8", **_PAGE}, batched=True, example=_pages, reach=None
)
LIST_USERS_BEFORE = declare(
    "users/list_users_before.sql", ["text", "text"], {"n": "int8", **_PAGE}, batched=True, example=_pages, reach=None
)
LIST_USERS_SKIP = declare(
    "users/list_users_skip.sql", ["int8", "int8"], _PAGE, example=lambda ids: [len(ids) * 900, 100], reach=None
)
LIST_USERS_OLDEST = declare(
    "users/list_users_oldest.sql",
    ["text", "int8", "text", "int8"],
    _PAGE_BY_CREATION,
    example=lambda ids: ["2026-01-01T00:00:00Z", len(ids) * 900, "infinity", 100],
    reach=None,
)
LIST_USERS_NEWEST = declare(
    "users/list_users_newest.sql",
    ["text", "int8", "text", "int8"],
    _PAGE_BY_CREATION,
    example=lambda ids: ["infinity", len(ids) * 900, "-infinity", 100],
    reach=None,
)
SEARCH_USERS = declare(
    "users/search_users.sql",
    ["text", "text", "int8", "int8"],
    {"last_key": "text", "last_id": "int8", "has_more": "bool", "body": "text"},
    # Every user matches, by address and by name: the largest search.
    example=lambda ids: ["uSer", f"user {len(ids) * 900}", 0, 100],
    reach=None,
    sorts=400,  # a page of each index, and the user of each entry
)
IMPORT_USERS = declare(
    "users/import_users.sql", ["text[]", "text[]", "text"], _OUTCOME, writes=True, example=_new_users
)
IMPORT_USERS_UPDATE = declare(
    "users/import_users_update.sql",
    ["text[]", "text[]", "bool", "text"],
    _OUTCOME,
    writes=True,
    example=lambda ids: [_addresses(ids), ["x"] * len(ids), True, "1s"],
)
ESTIMATE_USERS = declare("users/estimate_users.sql", [], {"users": "int8"})
EXPORT_USERS = declare("users/export_users.sql", [], {"body": "text"}, reach=None)
EXPORT_USERS_CSV = declare("users/export_users_csv.sql", [], _CSV, reach=None)
EXPORT_USERS_CSV_SAFE = declare("users/export_users_csv_safe.sql", [], _CSV, reach=None)
