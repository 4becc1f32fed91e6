-- Pages as JSON arrays: for each n the $2[n] users that follow the id $1[n]. Costs the same however deep a page lies.
select wanted.n, page.last_id, page.size, page.body
from unnest((select $1::text::bigint[]), $2::text::bigint[]) with ordinality as wanted (after, size, n)
cross join lateral (
    select max(id)::bigint as last_id, count(*) as size,
           '[' || coalesce(string_agg(body, ',' order by id), '') || ']' as body
    from (select id, body from public.users where id > wanted.after order by id limit wanted.size) as users
) as page
