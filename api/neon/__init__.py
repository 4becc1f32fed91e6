"""A connection URL, its TLS context, and the drivers' arguments."""
