-- Idempotency keys for any resource: a key names the resource, and the id of the row that was created, in place of
-- user_id. The table is not rewritten, and the release before serves meanwhile. It writes and reads user_id alone. So
-- resource has a default, for the keys which that release stores, and this release still writes user_id for users. A key
-- counts for 24 hours: a day after the last server of the release before, a migration may drop user_id and the default.

set lock_timeout = '5s';
set statement_timeout = '60s';

alter table idempotency_keys
    add column if not exists resource text not null default 'users',
    -- Null where a unique value was taken, and in what the release before stores. No foreign key, as for user_id.
    add column if not exists row_id bigint;
