-- The number of users that the last vacuum or analyze estimated; -1 if none has run yet. Counting would read the table.
select reltuples::bigint as users
from pg_catalog.pg_class
where oid = 'public.users'::regclass
