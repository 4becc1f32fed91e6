-- As export_users_csv.sql, with an apostrophe before each text that a spreadsheet could take for a formula, and before each
-- that begins with an apostrophe: so reading the file back can remove it (parsing.py).
select
    id::bigint,
    (case when left(email, 1) = any(firsts) then '''' else '' end || email)::text as email,
    (case when left(name, 1) = any(firsts) then '''' else '' end || name)::text as name,
    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') as created_at,
    to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') as updated_at
from public.users
-- The last four are the full-width forms. https://owasp.org/www-community/attacks/CSV_Injection
cross join (
    values (array['=', '+', '-', '@', '''', chr(9), chr(10), chr(13), '＝', '＋', '－', '＠'])
) as formulas (firsts)
order by id
