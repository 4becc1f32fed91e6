-- transactional: false
-- What search needs: users by the beginning of their name, and in the order of their creation. By the beginning of their
-- address they are found with users_email_key already, since pg_c_utf8 orders strings by code point and so keeps those
-- with one beginning together.
--
-- Concurrently, so that users can be written meanwhile. A build that is interrupted leaves an invalid index behind, which
-- every write pays for and no read uses: hence each is dropped first, and the file can run twice.

set lock_timeout = '5s';
set statement_timeout = '1h';

drop index concurrently if exists users_lower_name;

-- With the id, so that users of one name have an order, and a page can go on behind any of them.
create index concurrently if not exists users_lower_name on users (lower(name collate pg_c_utf8), id)
where name is not null;

drop index concurrently if exists users_created_at;

create index concurrently if not exists users_created_at on users (created_at, id);
