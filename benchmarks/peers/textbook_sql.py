"""The statements of the peers on asyncpg: one plain statement a request, which returns columns."""

COLUMNS = "id, email, name, created_at, updated_at"

LIST_USERS_AFTER = f"select {COLUMNS} from users where id > $1 order by id limit $2"
LIST_USERS_SKIP = f"select {COLUMNS} from users order by id offset $1 limit $2"
SELECT_USER = f"select {COLUMNS} from users where id = $1"
INSERT_USER = f"insert into users (email, name) values ($1, $2) returning {COLUMNS}"
# A null email was not sent. The name can be null, so a flag tells whether it was sent.
UPDATE_USER = f"""
    update users set
        email = coalesce($2, email), name = case when $3::boolean then $4 else name end, updated_at = now()
    where id = $1
    returning {COLUMNS}
"""
DELETE_USER = "delete from users where id = $1 returning id"
