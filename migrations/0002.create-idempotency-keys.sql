-- The answers to creations that carried an Idempotency-Key, so that one that is sent again creates no second user.
-- Written so that it can run twice, as 0001 is.

set lock_timeout = '5s';
set statement_timeout = '60s';

create table if not exists idempotency_keys (
    -- Who chose the key: two callers may choose the same one, and neither may read the other's answer.
    caller text not null,
    key text not null,
    -- SHA-256 of what was asked for: the same key with something else is the client's mistake, and must show.
    fingerprint text not null,
    -- The user that was created; null where the address was taken, which is an answer too. No foreign key: a user that
    -- is deleted within the time was created all the same, and a creation that is sent again must not bring it back.
    user_id bigint,
    -- The answer as it was sent.
    body text not null,
    created_at timestamptz not null default now(),
    constraint idempotency_keys_pkey primary key (caller, key)
);

-- Each creation with a key deletes the oldest ones that have expired: no job, which would keep a compute awake.
-- Not concurrently: the table was made a moment ago, nobody writes to it yet.
-- squawk-ignore require-concurrent-index-creation
create index if not exists idempotency_keys_created_at on idempotency_keys (created_at);
