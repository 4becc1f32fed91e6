-- Creates the users whose address is free and brings the others to what is given: the address as it is written, and the
-- name where $3 says so. Gives the numbers of both; a user that is so already keeps version and updated_at and is in
-- neither. No address may stand in $1 twice. $4 bounds the wait for a row that somebody else has locked.
with patience as materialized (
    select set_config('lock_timeout', $4, true)
), written as (
    insert into users (email, name)
    select new.email, new.name
    from patience, unnest($1::text[], $2::text[]) as new (email, name)
    on conflict (lower(email collate pg_c_utf8)) do update set
        email = excluded.email,
        name = case when $3 then excluded.name else users.name end,
        version = users.version + 1,
        updated_at = now()
    where (excluded.email, case when $3 then excluded.name else users.name end)
        is distinct from (users.email, users.name)
    returning version
)
-- The first version is that of a user who was created, and of no other.
select count(*) filter (where version = 1) as created, count(*) filter (where version > 1) as updated
from written
