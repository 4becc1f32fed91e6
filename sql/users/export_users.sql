-- Every user as JSON, in the order of the list, for COPY, from one snapshot.
select body::text
from public.users
order by id
