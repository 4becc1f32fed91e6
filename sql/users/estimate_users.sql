-- About how many users there are, as the last vacuum or analyze saw it; -1 where none has run yet. Counting them would
-- read the table.
select reltuples::bigint as users
from pg_class
where oid = 'users'::regclass
