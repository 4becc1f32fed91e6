-- Creates the users whose address is free, and returns the index in the arrays, from 1, of each whose address is taken.
-- No address may occur in $1 twice. $3 bounds the wait for a session that is creating the same address.
with lock_timeout as materialized (
    select set_config('lock_timeout', $3, true)
), new as (
    select *
    from unnest($1::text[], $2::text[]) with ordinality as new (email, name, n)
), created as (
    insert into public.users (email, name)
    select new.email, new.name
    from lock_timeout, new
    on conflict (lower(email collate pg_c_utf8)) do nothing
    returning email
)
select n
from new
where not exists (select from created where created.email = new.email)
