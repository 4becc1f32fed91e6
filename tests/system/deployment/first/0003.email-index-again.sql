-- The index again under another name, without a lock that anybody would notice.
-- transactional: false

drop index concurrently if exists users_email_key_new;
create unique index concurrently users_email_key_new on users (lower(email collate pg_c_utf8));
