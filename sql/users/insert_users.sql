-- Creates the users whose address is free; an address that is taken gives no row. The address comes back as it was
-- sent, so that the caller can tell whose row it is. $3 bounds the wait for somebody who is creating the same one.
with patience as materialized (select set_config('lock_timeout', $3, true))
insert into users (email, name)
select new.email, new.name
from patience, unnest((select $1::text[]), $2::text[]) as new (email, name)
on conflict (lower(email collate pg_c_utf8)) do nothing
returning id::bigint, version::bigint, body::text, email::text
