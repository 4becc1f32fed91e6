"""Authentication and authorization: API keys, bearer tokens, and the guard in front of every route."""
