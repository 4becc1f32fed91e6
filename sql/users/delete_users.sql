-- Deletes users, each with the version that it had. No row: no such user. A row without body: if_match, an array of
-- versions as text, does not hold the user's version.
-- $3 bounds the wait for a row that somebody else has locked.
with patience as materialized (
    select set_config('lock_timeout', $3, true)
), doomed as (
    select *
    from unnest((select $1::text::bigint[]), $2::text[]) as doomed (id, if_match)
), deleted as (
    delete from users
    using patience, doomed
    where users.id = doomed.id and (doomed.if_match is null or users.version = any(doomed.if_match::bigint[]))
    returning users.id, users.version, users.body
)
select id::bigint, version::bigint, body::text from deleted
union all
select users.id::bigint, users.version::bigint, null
from doomed
join users on users.id = doomed.id
where doomed.if_match is not null and not exists (select from deleted where deleted.id = users.id)
