"""The description of a resource: one object, from which everything outside its package is derived.

Derived are the scopes and the paths that they guard, the OpenAPI document, CORS, the routes on a replica, and what
/ready asks.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name

from starlette.routing import BaseRoute, Route

from api.database.fetch import Database
from api.database.indexes import register_index
from api.errors import Problem, register_constraint
from api.resources.services import Services


@dataclass(frozen=True)
class Description:
    """A resource. Describing it registers its constraints.

    `name` begins its scopes, NAME:read and NAME:write, and is its tag in the OpenAPI document; `noun` is the word for
    one of it. `path` is that of the collection, and every other path lies below it. `routes` makes them.
    `ping` runs the smallest statement that its requests run. `constraints` has the problem of each constraint that a
    request can violate, by name; `unreachable` has the reason why no request violates the others.
    """

    name: str
    noun: str
    path: str
    routes: Callable[[Services], Sequence[BaseRoute]]
    ping: Callable[[Database], Awaitable[object]]
    constraints: Mapping[str, Callable[[], Problem]] = field(default_factory=dict)
    indexes: Mapping[str, str] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Turn a violation of each constraint into its problem."""
        for name, problem in self.constraints.items():
            register_constraint(name, problem)
        for name, definition in self.indexes.items():
            register_index(name, definition)


def load(*names: str) -> tuple[Description, ...]:
    """Return the description in each of these packages of `api`: RESOURCE of its module `resource`.

    Raises ImportError or AttributeError if there is none.
    """
    return tuple(resolve_name(f"api.{name}.resource:RESOURCE") for name in names)


def make_routes(descriptions: Iterable[Description], services: Services) -> list[BaseRoute]:
    """Return the routes of resources. Raises ValueError for a route outside its resource's path.

    The guard could not tell whose scope such a route requires.
    """
    made: list[BaseRoute] = []
    for each in descriptions:
        for route in each.routes(services):
            path = route.path if isinstance(route, Route) else ""
            if path != each.path and not path.startswith(f"{each.path}/"):
                raise ValueError(f"{each.name}: the route {path!r} is not below {each.path}")
            made.append(route)
    return made


async def ping(descriptions: Iterable[Description], database: Database) -> None:
    """Run the ping of each resource. Raises what Database.fetch raises."""
    for each in descriptions:
        await each.ping(database)


def words_of(descriptions: Sequence[Description]) -> dict[str, str]:
    """Return what texts about all resources call them: their `names`, the `noun` for one of them, and a `path`."""
    return {
        "names": " and ".join(each.name for each in descriptions),
        "noun": " or ".join(each.noun for each in descriptions),
        "path": descriptions[0].path,
    }
