-- transactional: false
drop index concurrently if exists users_created_at;
drop index concurrently if exists users_lower_name;
