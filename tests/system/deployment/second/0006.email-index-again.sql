-- The index once more, as PostgreSQL does it by itself.
-- transactional: false

reindex index concurrently users_email_key;
