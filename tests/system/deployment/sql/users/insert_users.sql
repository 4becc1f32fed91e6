-- The next release's: it writes the new column.
with patience as materialized (select set_config('lock_timeout', $3, true))
insert into public.users (email, name, nickname)
select new.email, new.name, split_part(new.email, '@', 1)
from patience, unnest($1::text[], $2::text[]) as new (email, name)
on conflict (lower(email collate pg_c_utf8)) do nothing
returning id::bigint, version::bigint, body::text, email::text
