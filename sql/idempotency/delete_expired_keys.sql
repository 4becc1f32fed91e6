-- Deletes up to $1 idempotency keys that have expired, the oldest first, and returns their number. Rows that another
-- session is deleting are skipped, so workers never wait for each other.
with oldest as materialized (
    select ctid
    from public.idempotency_keys
    where created_at <= now() - interval '24 hours'
    order by created_at
    limit $1::bigint
    for update skip locked
), expired as (
    delete from public.idempotency_keys
    where ctid = any (array(select ctid from oldest))
    returning 1
)
select count(*) as deleted
from expired
