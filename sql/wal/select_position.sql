-- The position of the write-ahead log, as a number. On a primary: the end of the inserted log, which follows every
-- commit so far, even one that is not yet durable. On a replica: the end of the replayed log, which can be read. At the
-- end of a page of the log the first is a header beyond the second until more is written; that costs a reader its wait.
select (
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - '0/0'::pg_lsn
)::bigint as position
