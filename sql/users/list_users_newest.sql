-- One page as a JSON array, the newest first: $4 users before the position (time $1, id $2) that were created after $3.
-- Times are text, so that they can be infinity.
select
    (array_agg(created_at order by created_at desc, id desc))[count(*)]::timestamptz as last_created_at,
    (array_agg(id order by created_at desc, id desc))[count(*)]::bigint as last_id,
    count(*) as size,
    '[' || coalesce(string_agg(body, ',' order by created_at desc, id desc), '') || ']' as body
from (
    select id, created_at, body
    from public.users
    where (created_at, id) < ($1::text::timestamptz, $2::bigint) and created_at > $3::text::timestamptz
    order by created_at desc, id desc
    limit $4::bigint
) as page
