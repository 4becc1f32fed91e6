-- Creates users as insert_users.sql does, once for each idempotency key of a caller: the response is stored for 24 hours
-- and replayed. For each n a row: the user (null if its address is taken), the body of the response ($4 if the address is
-- taken), is_replayed, and is_reused: the key was used with another fingerprint ($3).
--
-- A concurrent session that uses the same key is waited for, by the address or by the key. Then idempotency_keys_pkey
-- is violated, which undoes this statement as a whole: run again, it sees the other's response. $7 bounds the wait.
with lock_timeout as materialized (
    select set_config('lock_timeout', $7, true)
), asked as (
    select *
    from unnest((select $1::text[]), $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        with ordinality as asked (caller, key, fingerprint, conflict, email, name, n)
), stored as (
    select asked.n, kept.user_id, kept.body, kept.fingerprint <> asked.fingerprint as is_reused
    from asked
    join public.idempotency_keys as kept on kept.caller = asked.caller and kept.key = asked.key
    where kept.created_at > now() - interval '24 hours'
), oldest as materialized (
    -- Twice as many as are added, so that the expired ones dwindle. Rows that another session is deleting are skipped.
    select ctid
    from public.idempotency_keys
    where created_at <= now() - interval '24 hours'
    order by created_at
    limit (select 2 * count(*) from asked)
    for update skip locked
), expired as (
    delete from public.idempotency_keys
    -- By ctid, which is stable since no row is ever updated. By key, a plan for many rows would read the table.
    where ctid = any (array(
        select ctid from oldest
        union all
        select kept.ctid
        from lock_timeout
        cross join asked
        join public.idempotency_keys as kept on kept.caller = asked.caller and kept.key = asked.key
        -- Unlike the condition above, this one cannot use the index on created_at: each key is looked up instead.
        where kept.created_at + interval '24 hours' <= now()
    ))
    returning 1
), fresh as (
    select *
    from asked
    where not exists (select from stored where stored.n = asked.n)
), created as (
    insert into public.users (email, name)
    select fresh.email, fresh.name
    from lock_timeout, fresh
    on conflict (lower(email collate pg_c_utf8)) do nothing
    returning id, body, email
), recorded as (
    insert into public.idempotency_keys (caller, key, fingerprint, user_id, body)
    select fresh.caller, fresh.key, fresh.fingerprint, created.id, coalesce(created.body, fresh.conflict)
    from fresh
    left join created on created.email = fresh.email
    -- Refers to "expired", so that an expired key is deleted before it is inserted again.
    where (select count(*) from expired) >= 0
    returning caller, key, user_id, body
)
select n, user_id::bigint, body::text, true as is_replayed, is_reused from stored
union all
select fresh.n, recorded.user_id::bigint, recorded.body::text, false, false
from recorded
join fresh on fresh.caller = recorded.caller and fresh.key = recorded.key
