-- Users by id. An id that no user has gives no row.
select id::bigint, version::bigint, body::text
from users
where id = any($1::text::bigint[])
