-- Deletes users; returns each with its last version. No row: no such user. A row without body: as in update_users.sql.
-- $3 bounds the wait for a row that another session has locked.
with lock_timeout as materialized (
    select set_config('lock_timeout', $3, true)
), removals as (
    select *
    from unnest((select $1::text::bigint[]), $2::text[]) as removals (id, if_match)
), deleted as (
    delete from public.users
    using lock_timeout, removals
    where users.id = removals.id and (removals.if_match is null or users.version = any(removals.if_match::bigint[]))
    returning users.id, users.version, users.body
)
select id::bigint, version::bigint, body::text from deleted
union all
select users.id::bigint, users.version::bigint, null
from removals
join public.users on users.id = removals.id
where removals.id not in (select id from deleted)
