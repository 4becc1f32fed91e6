-- Pages as list_users_after.sql makes them, backwards: for each n the $2[n] users with the largest ids up to $1[n].
select wanted.n, page.last_id, page.size, page.body
from unnest((select $1::text::bigint[]), $2::text::bigint[]) with ordinality as wanted (largest, size, n)
cross join lateral (
    select min(id)::bigint as last_id, count(*) as size,
           '[' || coalesce(string_agg(body, ',' order by id desc), '') || ']' as body
    from (select id, body from public.users where id <= wanted.largest order by id desc limit wanted.size) as users
) as page
