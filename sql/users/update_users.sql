-- Changes users: a null email leaves the address alone (a user always has one); the name changes only if set_name is
-- true (null clears it). A change without effect keeps version and updated_at.
-- No row: no such user. A row without body has the version that the user had: it was left alone, because if_match, an
-- array of versions as text, does not name that version; or another session, a trigger or a policy came in between.
-- $6 bounds the wait for a row that another session has locked.
with lock_timeout as materialized (
    select set_config('lock_timeout', $6, true)
), change as (
    select *
    from unnest((select $1::text::bigint[]), $2::text[], $3::text::boolean[], $4::text[], $5::text[])
        as change (id, email, set_name, name, if_match)
), updated as (
    update public.users set
        email = coalesce(change.email, users.email),
        name = case when change.set_name then change.name else users.name end,
        version = users.version + (
            (coalesce(change.email, users.email), case when change.set_name then change.name else users.name end)
            is distinct from (users.email, users.name)
        )::int,
        updated_at = case
            when (coalesce(change.email, users.email), case when change.set_name then change.name else users.name end)
                is distinct from (users.email, users.name)
            then now() else users.updated_at
        end
    from lock_timeout, change
    where users.id = change.id and (change.if_match is null or users.version = any(change.if_match::bigint[]))
    returning users.id, users.version, users.body
)
select id::bigint, version::bigint, body::text from updated
union all
select users.id::bigint, users.version::bigint, null
from change
join public.users on users.id = change.id
-- Not a join: of the usual change, which happened, no user is looked up again.
where change.id not in (select id from updated)
