-- One page as a JSON array: $2 users after the first $1. Reads the users that it skips; list_users_after.sql does not.
select max(id)::bigint as last_id, count(*) as size,
       '[' || coalesce(string_agg(body, ',' order by id), '') || ']' as body
from (select id, body from public.users order by id offset $1::bigint limit $2::bigint) as page
