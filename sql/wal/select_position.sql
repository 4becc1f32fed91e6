-- The log's position, as a number: on a primary the end of what was inserted, which no commit so far lies behind, however
-- late it becomes durable; on a replica the end of what was replayed and can be read. At the end of a page of the log the
-- first is a header further than the second gets before more is written, which costs a reader its wait and no more.
select (
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - '0/0'::pg_lsn
)::bigint as position
