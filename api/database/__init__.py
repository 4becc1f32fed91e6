"""PostgreSQL: the connection pool, faults, statements, batching, the read replica, and migrations."""
