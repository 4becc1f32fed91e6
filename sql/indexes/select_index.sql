-- The definition of the index $2 in the schema $1: its table and its keys, such as `public.users (lower(email))`, and
-- the condition of a partial one. No row: there is no such index. Without quotes, which depend on quote_all_identifiers.
select replace(
    $1::text || '.' || pg_class.relname || ' (' || array_to_string(array(
        select pg_get_indexdef(pg_index.indexrelid, n, true) from generate_series(1, pg_index.indnkeyatts) as n
    ), ', ') || ')' || coalesce(' where ' || pg_get_expr(pg_index.indpred, pg_index.indrelid), ''),
    '"', ''
)::text as definition
from pg_catalog.pg_index
join pg_catalog.pg_class on pg_class.oid = pg_index.indrelid
where pg_index.indexrelid = to_regclass(format('%I.%I', $1::text, $2::text))
