alter table idempotency_keys
    drop column if exists row_id,
    drop column if exists resource;
