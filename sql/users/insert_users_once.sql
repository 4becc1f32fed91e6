-- Creates users as insert_users.sql does, once for each key of a caller: the answer is kept for 24 hours and given again.
-- For each n a row: the user (null where its address is taken), the body of the answer ($4 where the address is taken),
-- whether the answer was given before, and whether the key was used for something else, which $3 tells.
--
-- Whoever is using the same key at this moment is waited for, by the address or by the key. Then idempotency_keys_pkey
-- is violated, which undoes this statement as a whole: run again, it sees the other's answer. $7 bounds the wait.
with patience as materialized (
    select set_config('lock_timeout', $7, true)
), asked as (
    select *
    from unnest((select $1::text[]), $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        with ordinality as asked (caller, key, fingerprint, refusal, email, name, n)
), answered as (
    select asked.n, kept.user_id, kept.body, kept.fingerprint <> asked.fingerprint as is_reused
    from asked
    join idempotency_keys as kept on kept.caller = asked.caller and kept.key = asked.key
    where kept.created_at > now() - interval '24 hours'
), oldest as materialized (
    -- Twice as many as come in, so that what has expired dwindles. What another session is deleting is left to it.
    select ctid
    from idempotency_keys
    where created_at <= now() - interval '24 hours'
    order by created_at
    limit (select 2 * count(*) from asked)
    for update skip locked
), expired as (
    delete from idempotency_keys
    -- By their place in the table, which stays what it is, since no row is ever updated: by their keys, a plan that
    -- expects many would read the table.
    where ctid = any (array(
        select ctid from oldest
        union all
        select kept.ctid
        from patience
        cross join asked
        join idempotency_keys as kept on kept.caller = asked.caller and kept.key = asked.key
        -- Not as above, where an index finds all that has expired: here each key is looked up.
        where kept.created_at + interval '24 hours' <= now()
    ))
    returning 1
), fresh as (
    select *
    from asked
    where not exists (select from answered where answered.n = asked.n)
), created as (
    insert into users (email, name)
    select fresh.email, fresh.name
    from patience, fresh
    on conflict (lower(email collate pg_c_utf8)) do nothing
    returning id, body, email
), recorded as (
    insert into idempotency_keys (caller, key, fingerprint, user_id, body)
    select fresh.caller, fresh.key, fresh.fingerprint, created.id, coalesce(created.body, fresh.refusal)
    from fresh
    left join created on created.email = fresh.email
    -- Asks for "expired", so that a key that has expired makes room before it is used again.
    where (select count(*) from expired) >= 0
    returning caller, key, user_id, body
)
select n, user_id::bigint, body::text, true as is_replayed, is_reused from answered
union all
select fresh.n, recorded.user_id::bigint, recorded.body::text, false, false
from recorded
join fresh on fresh.caller = recorded.caller and fresh.key = recorded.key
