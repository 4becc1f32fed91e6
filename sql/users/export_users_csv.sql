-- Every user with the values of its JSON, for COPY as CSV, from one snapshot.
select
    id::bigint,
    email::text,
    name::text,
    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') as created_at,
    to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') as updated_at
from public.users
order by id
