"""The users API on Starlette, asyncpg and orjson: the plain and fast code of an experienced team.

It has a pool of 10, `pool.fetchrow` and `pool.fetch`, pydantic for bodies, orjson for answers, and no model for rows.
It uses every optimisation that the documentation of these libraries offers.

    DATABASE_URL=postgresql://… uvicorn --factory benchmarks.peers.starlette_textbook:create_app_from_environment
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import orjson
from pydantic import BaseModel, EmailStr, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers import textbook_sql as sql

Model = TypeVar("Model", bound=BaseModel)


class UserCreate(BaseModel):
    """The body of a POST."""

    email: EmailStr
    name: str | None = Field(default=None, max_length=255)


class UserUpdate(BaseModel):
    """The body of a PATCH: an absent key is left alone, and an email cannot be null."""

    email: EmailStr = Field(default="")
    name: str | None = Field(default=None, max_length=255)


class JSON(Response):
    """A response that orjson encodes; dates become RFC 3339."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return orjson.dumps(content)


async def read_body(request: Request, model: type[Model]) -> Model:
    """Read the body into a model, or answer 422."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(422, error.json(include_context=False)) from None


def read_number(request: Request, name: str, default: int) -> int:
    """Read a non-negative number from the query string, or answer 422."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise HTTPException(422, f"{name} must be a number")
    return int(text)


async def list_users(request: Request) -> Response:
    """List users."""
    pool, limit = request.app.state.pool, read_number(request, "limit", 100)
    if "after" in request.query_params:
        rows = await pool.fetch(sql.LIST_USERS_AFTER, read_number(request, "after", 0), limit)
    else:
        rows = await pool.fetch(sql.LIST_USERS_SKIP, read_number(request, "skip", 0), limit)
    return JSON([dict(row) for row in rows])


async def create_user(request: Request) -> Response:
    """Create a user."""
    data = await read_body(request, UserCreate)
    try:
        row = await request.app.state.pool.fetchrow(sql.INSERT_USER, data.email, data.name)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "Email already registered") from None
    return JSON(dict(row), status_code=201)


async def get_user(request: Request) -> Response:
    """Return one user."""
    row = await request.app.state.pool.fetchrow(sql.SELECT_USER, request.path_params["user_id"])
    if row is None:
        raise HTTPException(404, "User not found")
    return JSON(dict(row))


async def update_user(request: Request) -> Response:
    """Change some fields of one user."""
    data = await read_body(request, UserUpdate)
    arguments = (request.path_params["user_id"], data.email or None, "name" in data.model_fields_set, data.name)
    try:
        row = await request.app.state.pool.fetchrow(sql.UPDATE_USER, *arguments)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "Email already registered") from None
    if row is None:
        raise HTTPException(404, "User not found")
    return JSON(dict(row))


async def delete_user(request: Request) -> Response:
    """Delete one user."""
    if await request.app.state.pool.fetchval(sql.DELETE_USER, request.path_params["user_id"]) is None:
        raise HTTPException(404, "User not found")
    return Response(status_code=204)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an HTTP exception as JSON."""
    assert isinstance(error, HTTPException)
    return JSON({"detail": error.detail}, status_code=error.status_code)


ROUTES = [
    Route("/api/v1/users/{user_id:int}", get_user, methods=["GET"]),
    Route("/api/v1/users/", list_users, methods=["GET"]),
    Route("/api/v1/users/", create_user, methods=["POST"]),
    Route("/api/v1/users/{user_id:int}", update_user, methods=["PATCH"]),
    Route("/api/v1/users/{user_id:int}", delete_user, methods=["DELETE"]),
]


def create_app(database_url: str) -> Starlette:
    """Build the application; its pool lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with asyncpg.create_pool(database_url, min_size=10, max_size=10) as pool:
            app.state.pool = pool
            yield

    return Starlette(routes=ROUTES, exception_handlers={HTTPException: answer_error}, lifespan=lifespan)


def create_app_from_environment() -> Starlette:
    """Build the application for uvicorn's --factory, over DATABASE_URL."""
    return create_app(os.environ["DATABASE_URL"])
