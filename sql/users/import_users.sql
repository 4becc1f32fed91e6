-- Creates the users whose address is free, as insert_users.sql does, and returns what became of the others: n, the place
-- in $1 from 1, and "taken" or "refused". $3 bounds the wait for a session that is creating the same address.
with new as materialized (
    select new.*, (
        select users.id
        from public.users
        where lower(users.email collate pg_c_utf8) = lower(new.email collate pg_c_utf8)
    ) as taken_by
    from (select set_config('lock_timeout', $3, true)) as lock_timeout,
        unnest($1::text[], $2::text[]) with ordinality as new (email, name, n)
), created as (
    merge into public.users using new on false
    when not matched and new.taken_by is null then insert (email, name) values (new.email, new.name)
    returning new.n
)
select n, case when taken_by is null then 'refused' else 'taken' end as outcome
from new
where not exists (select from created where created.n = new.n)
