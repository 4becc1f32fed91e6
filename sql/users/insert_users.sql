-- Creates the users whose address is free; an address that is taken gives no row. Returns the address as it was sent,
-- so that the caller can match rows to users. $3 bounds the wait for a session that is creating the same address.
with lock_timeout as materialized (select set_config('lock_timeout', $3, true))
insert into public.users (email, name)
select new.email, new.name
from lock_timeout, unnest((select $1::text[]), $2::text[]) as new (email, name)
on conflict (lower(email collate pg_c_utf8)) do nothing
returning id::bigint, version::bigint, body::text, email::text
