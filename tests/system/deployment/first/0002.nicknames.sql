-- What a release may do while the one before it serves: a new column, and another type for one that every statement
-- returns.
set lock_timeout = '5s';
set statement_timeout = '60s';

alter table users add column if not exists nickname text;
alter table users alter column version type integer;
