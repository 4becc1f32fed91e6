-- The log's position: on a primary the end of what was inserted into it, which the commits so far precede however they
-- are made durable; on a replica the end of what was replayed, and can be read.
select (
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - '0/0'::pg_lsn
)::bigint as position
