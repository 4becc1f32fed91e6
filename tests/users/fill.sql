-- 100,000 users, and as many stored responses, with which the plans of the statements are tested.
insert into users (email, name)
select 'user' || i || '@example.com', 'User ' || i
from generate_series(1, 100000) i;

insert into idempotency_keys (caller, key, fingerprint, body, created_at)
select '', i, 'f', 'b', now() - i * interval '1 second'
from generate_series(1, 100000) i;
