-- Users, their rules and their JSON. Written so that it can run twice: yoyo applies and records in two transactions,
-- and a crash between them runs the file again.

set lock_timeout = '5s';
set statement_timeout = '60s';

-- The one serialisation of a user. Marked immutable so that a stored column can be generated from it: to_char is only
-- "stable" because some patterns follow the session's locale, and this one has none; the time zone is a constant.
-- plpgsql, since it was measured faster here than an SQL function, which PostgreSQL would not inline anyway.
create or replace function user_body(
    id bigint, email text, name text, created_at timestamptz, updated_at timestamptz
) returns text
language plpgsql immutable parallel safe
as $$
begin
    return '{"id":' || id
        || ',"email":' || pg_catalog.to_json(email)
        || ',"name":' || coalesce(pg_catalog.to_json(name)::text, 'null')
        || ',"created_at":"' || pg_catalog.to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
        || '","updated_at":"' || pg_catalog.to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
        || '"}';
end
$$;

create table if not exists users (
    id bigint generated always as identity,
    email text not null,
    name text,
    -- Counts the changes of a row: the ETag. Not a timestamp, since two changes can share a microsecond.
    version bigint not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- The response body, written once and copied by every read: a list of 100 costs PostgreSQL half of what it costs to
    -- format it on each read, and an export is a plain COPY. It takes 170 bytes a row and 50 µs on a single write.
    body text not null generated always as (user_body(id, email, name, created_at, updated_at)) stored,
    constraint users_pkey primary key (id),
    -- RFC 5321, section 4.5.3.1.3: a path is at most 256 octets with its angle brackets.
    constraint users_email_length check (char_length(email) <= 254),
    constraint users_email_has_at check (position('@' in email) > 1),
    constraint users_name_length check (char_length(name) <= 255)
);

-- People write their address as they please: Ada@Example.com and ada@example.com are one mailbox, hence one user.
-- The collation is named so that "lower" means the same on every platform and in every database (PostgreSQL 17+).
-- Not concurrently: the table was made a moment ago, nobody writes to it yet.
-- squawk-ignore require-concurrent-index-creation
create unique index if not exists users_email_key on users (lower(email collate pg_c_utf8));
