"""The description of the users resource."""

from collections.abc import Sequence

from starlette.routing import BaseRoute

from api.database.fetch import Database
from api.resources.description import Description
from api.resources.services import Services
from api.users.bulk.handlers import Bulk
from api.users.handlers import Users
from api.users.problems import EMAIL_KEY, USER, email_taken
from api.users.queries import select_users


def _routes(services: Services) -> Sequence[BaseRoute]:
    return [*Users(services).routes(), *Bulk(services).routes()]


async def _ping(database: Database) -> None:
    await select_users(database, ())


RESOURCE = Description(
    name="users",
    noun=USER.noun,
    path=USER.path,
    routes=_routes,
    ping=_ping,
    constraints={EMAIL_KEY: email_taken},
    indexes={EMAIL_KEY: "public.users (lower(email COLLATE pg_c_utf8))"},
    unreachable={"users_pkey": "PostgreSQL generates the id"},
)
