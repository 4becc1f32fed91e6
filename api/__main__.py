"""`python -m api` is `users-api`."""

from api.cli import main

main()
