-- Creates the users whose address is free and updates the others: the address as it is written, and the name if $3 is
-- true. A user without a change keeps version and updated_at. Returns what became of each that was not created: n, the
-- place in $1 from 1, and "updated", "unchanged" or "refused" (by a trigger or a policy of the database).
-- No address may occur in $1 twice. Violates users_email_key as insert_users.sql does. $4 bounds the wait for a row that
-- another session has locked.
with new as materialized (
    select
        new.*,
        users.id is not null
        and (new.email, case when $3 then new.name else users.name end) is not distinct from (users.email, users.name)
        as is_same
    from (select set_config('lock_timeout', $4, true)) as lock_timeout
    cross join unnest($1::text[], $2::text[]) with ordinality as new (email, name, n)
    left join public.users on lower(users.email collate pg_c_utf8) = lower(new.email collate pg_c_utf8)
), written as (
    merge into public.users using (select * from new where not is_same) as new
    on lower(users.email collate pg_c_utf8) = lower(new.email collate pg_c_utf8)
    -- Without a condition, so that only a trigger or a policy can leave a row out.
    when matched then update set
        email = new.email,
        name = case when $3 then new.name else users.name end,
        version = users.version + 1,
        updated_at = now()
    when not matched then insert (email, name) values (new.email, new.name)
    returning new.n, merge_action() as action
)
select new.n, case when new.is_same then 'unchanged' when written.n is null then 'refused' else 'updated' end as outcome
from new
left join written on written.n = new.n
where written.action is distinct from 'INSERT'
