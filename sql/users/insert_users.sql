-- Creates the users whose address is free. n is the place of a user in $1, from 1. A row without body: the address is
-- taken. No row for n: a trigger or a policy of the database left the user out. A trigger may rewrite address and name:
-- the row is what the table holds. Violates users_email_key, and creates no user, if another session creates the same
-- address meanwhile, or if a trigger rewrites an address to one that is taken. $3 bounds the wait for such a session.
with new as materialized (
    -- A scalar sub-select, since PostgreSQL can turn "exists" into a hash of the whole table. The last condition is always
    -- true, and evaluated only for a user that is found. It makes reading the table look expensive even while the table is
    -- small: a session keeps its plan when the table has grown.
    select new.*, (
        select users.id
        from public.users
        where lower(users.email collate pg_c_utf8) = lower(new.email collate pg_c_utf8)
            and (select count(*) = 1 from generate_series(users.id, users.id))
    ) as taken_by
    from (select set_config('lock_timeout', $3, true)) as lock_timeout,
        unnest((select $1::text[]), $2::text[]) with ordinality as new (email, name, n)
), created as (
    -- Unlike INSERT, MERGE returns n beside the row. It is never matched, so it only inserts, in the order of $1.
    merge into public.users using new on false
    when not matched and new.taken_by is null then insert (email, name) values (new.email, new.name)
    returning new.n, users.id, users.version, users.body
)
select n, id::bigint, version::bigint, body::text from created
union all
select n, null, null, null from new where taken_by is not null
