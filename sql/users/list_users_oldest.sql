-- One page as a JSON array, in the order of creation: $4 users after the position (time $1, id $2) that were created
-- before $3. Times are text, so that they can be infinity.
select
    (array_agg(created_at order by created_at, id))[count(*)]::timestamptz as last_created_at,
    (array_agg(id order by created_at, id))[count(*)]::bigint as last_id,
    count(*) as size,
    '[' || coalesce(string_agg(body, ',' order by created_at, id), '') || ']' as body
from (
    select id, created_at, body
    from public.users
    where (created_at, id) > ($1::text::timestamptz, $2::bigint) and created_at < $3::text::timestamptz
    order by created_at, id
    limit $4::bigint
) as page
