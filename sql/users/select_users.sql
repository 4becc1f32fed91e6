-- Users by id. An id that no user has gives no row.
select id, version, body
from users
where id = any($1::text[]::bigint[])
