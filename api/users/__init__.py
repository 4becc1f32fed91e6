"""The users resource: what a client may send, the statements, the handlers."""
