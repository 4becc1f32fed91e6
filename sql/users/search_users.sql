-- One page as a JSON array: the users whose address or name begins with $1, ignoring case, in the order of the text
-- that matches. $2 and $3 are the last key and id of the page before, '' and 0 at first; $4 is the size of the page.
--
-- Two indexes give entries in that order. A user that matches twice has two entries, of which the first counts. A page
-- reads 2 * $4 entries at most, so that its cost is bounded: it may hold fewer users while others follow.
with entries as (
    select entry.key, entry.id, entry.body, entry.is_second
    from (
        select
            lower($1 collate pg_c_utf8) as prefix,
            -- Sorts after every text with this prefix: the last code point is no character.
            lower($1 collate pg_c_utf8) || chr(1114111) as last
    ) as wanted
    cross join lateral (
        (
            select
                lower(email collate pg_c_utf8) as key,
                id,
                body,
                coalesce(
                    lower(name collate pg_c_utf8) >= prefix
                    and lower(name collate pg_c_utf8) < lower(email collate pg_c_utf8),
                    false
                ) as is_second
            from public.users
            where (lower(email collate pg_c_utf8), id) > (greatest(prefix, $2), $3::bigint)
                and lower(email collate pg_c_utf8) < last
            order by lower(email collate pg_c_utf8)
            limit 2 * $4::bigint
        )
        union all
        (
            select
                lower(name collate pg_c_utf8),
                id,
                body,
                lower(email collate pg_c_utf8) >= prefix
                and lower(email collate pg_c_utf8) <= lower(name collate pg_c_utf8)
            from public.users
            where (lower(name collate pg_c_utf8), id) > (greatest(prefix, $2), $3::bigint)
                and lower(name collate pg_c_utf8) < last
            order by lower(name collate pg_c_utf8), id
            limit 2 * $4::bigint
        )
    ) as entry
    order by entry.key, entry.id
    limit 2 * $4::bigint
), counted as (
    select *, count(*) filter (where not is_second) over (order by key, id) as users
    from entries
)
select
    (array_agg(key order by key, id))[count(*)] as last_key,
    (array_agg(id order by key, id))[count(*)]::bigint as last_id,
    (select count(*) from entries) = 2 * $4::bigint or count(*) < (select count(*) from entries) as has_more,
    '[' || coalesce(string_agg(body, ',' order by key, id) filter (where not is_second), '') || ']' as body
from counted
where users <= $4::bigint
