-- The next release's: it writes the new column.
with new as materialized (
    select new.*, (
        select users.id
        from public.users
        where lower(users.email collate pg_c_utf8) = lower(new.email collate pg_c_utf8)
    ) as taken_by
    from (select set_config('lock_timeout', $3, true)) as lock_timeout,
        unnest((select $1::text[]), $2::text[]) with ordinality as new (email, name, n)
), created as (
    merge into public.users using new on false
    when not matched and new.taken_by is null then
        insert (email, name, nickname) values (new.email, new.name, split_part(new.email, '@', 1))
    returning new.n, users.id, users.version, users.body
)
select n, id::bigint, version::bigint, body::text from created
union all
select n, null, null, null from new where taken_by is not null
