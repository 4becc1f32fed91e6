-- One page as a JSON array: the $2 users that follow the id $1. Costs the same however deep the page lies.
select max(id) as last_id, count(*) as size, '[' || coalesce(string_agg(body, ',' order by id), '') || ']' as body
from (select id, body from users where id > $1::bigint order by id limit $2::bigint) as page
