"""Scopes: NAME:read and NAME:write of each resource, for the paths that belong to it."""

from collections.abc import Iterable, Mapping

_READS = ("GET", "HEAD")


class Scopes:
    """The scopes of every path; `paths` has the path of each resource by its name.

    A path that belongs to no resource requires the scopes of all: no route is left open by mistake. Raises ValueError
    if a resource's path lies below another's.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.names = tuple(paths)
        self._owned = [(f"{path}/", path, name, *_pair([name])) for name, path in paths.items()]
        self._read, self._write = _pair(paths)
        for below, *_ in self._owned:
            if sum(below.startswith(other) for other, *_ in self._owned) > 1:
                raise ValueError(f"the path {below.rstrip('/')} belongs to two resources")

    def needed(self, path: str, method: str) -> tuple[str, ...]:
        """Return the scopes that a request requires: to read for GET and HEAD, to write for every other method."""
        for below, exact, _, read, write in self._owned:
            if path.startswith(below) or path == exact:
                return read if method in _READS else write
        return self._read if method in _READS else self._write

    def owner(self, path: str) -> str | None:
        """Return the name of the resource to which a path belongs; None if it belongs to no resource."""
        return next((name for below, _, name, *_ in self._owned if f"{path}/".startswith(below)), None)

    def granted(self, roles: Iterable[str]) -> frozenset[str]:
        """Return the scopes of an API key's roles, `read` and `write`: those of every resource."""
        return frozenset(f"{name}:{role}" for name in self.names for role in roles)


def _pair(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = list(names)
    return tuple(f"{name}:read" for name in names), tuple(f"{name}:write" for name in names)
