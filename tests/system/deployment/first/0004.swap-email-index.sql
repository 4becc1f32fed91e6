-- Its name is what tells a taken address (api/errors.py), so both change places in one transaction.
set lock_timeout = '5s';

do $$
begin
    if to_regclass('users_email_key_new') is not null then
        drop index if exists users_email_key;
        alter index users_email_key_new rename to users_email_key;
    end if;
end
$$;
