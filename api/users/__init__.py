"""The users resource: request schemas, statements and handlers."""
