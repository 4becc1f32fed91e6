"""users-api: a users API on Neon Postgres. Raw SQL, no ORM, one statement a request."""
