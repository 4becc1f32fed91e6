-- The statement of the release before migration 0004, which serves beside this one until every server is replaced.
-- Creates users as insert_users.sql does, once for each idempotency key of a caller: the response is stored for 24 hours
-- and replayed. For each n a row: the user (null if its address is taken), the body of the response ($4 if the address is
-- taken), is_replayed, and is_reused: the key was used with another fingerprint ($3). No row for n: a trigger or a policy
-- of the database left the user out, and nothing is stored. $7 are addresses that are known to be taken.
--
-- A concurrent session that uses the same key is waited for, by the address or by the key. Then users_email_key or
-- idempotency_keys_pkey is violated, which undoes this statement as a whole: run again, it sees the other's response.
-- $8 bounds the wait.
with lock_timeout as materialized (
    select set_config('lock_timeout', $8, true)
), asked as (
    select *
    from unnest((select $1::text[]), $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text::boolean[])
        with ordinality as asked (caller, key, fingerprint, conflict, email, name, is_taken, n)
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
), fresh as materialized (
    select asked.*, asked.is_taken or (
        select users.id
        from public.users
        where lower(users.email collate pg_c_utf8) = lower(asked.email collate pg_c_utf8)
            and (select count(*) = 1 from generate_series(users.id, users.id))
    ) is not null as is_conflict
    from lock_timeout, asked
    where not exists (select from stored where stored.n = asked.n)
), created as (
    merge into public.users using fresh on false
    when not matched and not fresh.is_conflict then insert (email, name) values (fresh.email, fresh.name)
    returning fresh.n, users.id, users.body
), answers as (
    select fresh.*, created.id as user_id, coalesce(created.body, fresh.conflict) as body
    from fresh
    left join created on created.n = fresh.n
    where fresh.is_conflict or created.n is not null
), recorded as (
    insert into public.idempotency_keys (caller, key, fingerprint, user_id, body)
    select caller, key, fingerprint, user_id, body
    from answers
    -- Refers to "expired", so that an expired key is deleted before it is inserted again.
    where (select count(*) from expired) >= 0
)
select n, user_id::bigint as row_id, body::text, true as is_replayed, is_reused from stored
union all
select n, user_id::bigint, body::text, false, false from answers
