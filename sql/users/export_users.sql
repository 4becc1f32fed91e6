-- Every user as its JSON, the order being that of the list: what COPY sends, from one snapshot.
select body::text
from users
order by id
