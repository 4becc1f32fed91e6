"""The error of a connection URL."""


class InvalidURLError(ValueError):
    """A connection URL that cannot be used. The message gives the reason and the remedy, and quotes no value."""
