"""Parameters for every statement."""

from typing import Any

from api.database.statements import Statement


def arguments(statement: Statement, keys: int) -> list[Any]:
    """Return parameters that match `keys` rows; for lists, the position of a page."""
    ids = [str(n * 97 + 1) for n in range(keys)]
    numbers, hundreds = f"{{{','.join(ids)}}}", f"{{{','.join(['100'] * keys)}}}"
    emails = [f"user{n}@example.com" for n in ids]
    parameters: dict[str, list[Any]] = {
        "users/select_users.sql": [numbers],
        "users/select_users_by_email.sql": [emails],
        "users/insert_users.sql": [[f"new{n}@example.com" for n in ids], ["x"] * keys, "1s"],
        "users/insert_users_once.sql": [
            [""] * keys,
            ids,
            ["f"] * keys,
            ["{}"] * keys,
            [f"new{n}@example.com" for n in ids],
            ["x"] * keys,
            f"{{{','.join('f' * keys)}}}",
            "1s",
        ],
        "users/update_users.sql": [
            numbers,
            [None] * keys,
            f"{{{','.join('t' * keys)}}}",
            ["x"] * keys,
            [None, "{1}"] * (keys // 2) + [None] * (keys % 2),
            "1s",
        ],
        "users/delete_users.sql": [numbers, [None] * keys, "1s"],
        "users/list_users_after.sql": [numbers, hundreds],
        "users/list_users_before.sql": [numbers, hundreds],
        "users/list_users_skip.sql": [keys * 900, 100],
        "wal/select_position.sql": [],
        "indexes/select_index.sql": ["public", "users_email_key"],
        "users/list_users_oldest.sql": ["2026-01-01T00:00:00Z", keys * 900, "infinity", 100],
        "users/list_users_newest.sql": ["infinity", keys * 900, "-infinity", 100],
        # Every user matches, by address and by name: the largest search.
        "users/search_users.sql": ["uSer", f"user {keys * 900}", 0, 100],
        "users/import_users.sql": [[f"new{n}@example.com" for n in ids], ["x"] * keys, "1s"],
        "users/import_users_update.sql": [emails, ["x"] * keys, True, "1s"],
        "users/estimate_users.sql": [],
        "users/export_users.sql": [],
        "users/export_users_csv.sql": [],
        "users/export_users_csv_safe.sql": [],
        "users/delete_expired_keys.sql": [keys],
    }
    return parameters[statement.name]
