-- Users by id. An unknown id gives no row.
select id::bigint, version::bigint, body::text
from public.users
where id = any($1::text::bigint[])
