drop table if exists users;
drop function if exists user_body(bigint, text, text, timestamptz, timestamptz);
