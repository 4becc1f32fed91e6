-- Creates the users whose address is free and updates the others: the address as it is written, and the name if $3 is
-- true. Returns both numbers; a user without a change keeps version and updated_at and is in neither. No address may
-- occur in $1 twice. $4 bounds the wait for a row that another session has locked.
with lock_timeout as materialized (
    select set_config('lock_timeout', $4, true)
), written as (
    insert into public.users (email, name)
    select new.email, new.name
    from lock_timeout, unnest($1::text[], $2::text[]) as new (email, name)
    on conflict (lower(email collate pg_c_utf8)) do update set
        email = excluded.email,
        name = case when $3 then excluded.name else users.name end,
        version = users.version + 1,
        updated_at = now()
    where (excluded.email, case when $3 then excluded.name else users.name end)
        is distinct from (users.email, users.name)
    returning version
)
-- Only a user that was just created has version 1.
select count(*) filter (where version = 1) as created, count(*) filter (where version > 1) as updated
from written
