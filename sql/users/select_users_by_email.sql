-- Users by address, ignoring case; n is the index of the address in $1, from 1.
select wanted.n, users.id::bigint, users.version::bigint, users.body::text
from unnest((select $1::text[])) with ordinality as wanted (email, n)
join public.users on lower(users.email collate pg_c_utf8) = lower(wanted.email collate pg_c_utf8)
