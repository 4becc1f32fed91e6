"""The statements of the peers that speak to PostgreSQL by asyncpg: one plain statement a request, columns back."""

COLUMNS = "id, email, name, created_at, updated_at"

LIST_USERS_AFTER = f"select {COLUMNS} from users where id > $1 order by id limit $2"
LIST_USERS_SKIP = f"select {COLUMNS} from users order by id offset $1 limit $2"
SELECT_USER = f"select {COLUMNS} from users where id = $1"
INSERT_USER = f"insert into users (email, name) values ($1, $2) returning {COLUMNS}"
# An email that is null was not sent; for the name, which can be null, a flag says whether it was.
UPDATE_USER = f"""
    update users set
        email = coalesce($2, email), name = case when $3::boolean then $4 else name end, updated_at = now()
    where id = $1
    returning {COLUMNS}
"""
DELETE_USER = "delete from users where id = $1 returning id"
