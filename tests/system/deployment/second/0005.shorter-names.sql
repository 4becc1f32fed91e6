-- The types of a column that the JSON is generated from, and of the version once more.
set lock_timeout = '5s';
set statement_timeout = '60s';

alter table users add column if not exists seen_at timestamptz;
alter table users
    drop column if exists body,
    alter column name type varchar(255),
    alter column version type bigint,
    add column body text not null generated always as (user_body(id, email, name, created_at, updated_at)) stored;
