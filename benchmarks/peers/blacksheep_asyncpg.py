"""The users API on BlackSheep, compiled in its core and the fastest Python framework of the usual comparisons.

It follows the documentation: bindings by annotation, pydantic models for bodies, a pool that lives as long as the
lifespan. Answers are orjson's bytes, since BlackSheep's JSON settings would decode and encode them once more.

    DATABASE_URL=postgresql://… uvicorn --factory benchmarks.peers.blacksheep_asyncpg:create_app_from_environment
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson
from blacksheep import Application, Content, FromJSON, Response, Router
from pydantic import BaseModel, EmailStr, Field

from benchmarks.peers import textbook_sql as sql


class UserCreate(BaseModel):
    """The body of a POST."""

    email: EmailStr
    name: str | None = Field(default=None, max_length=255)


class UserUpdate(BaseModel):
    """The body of a PATCH: an absent key is left alone, and an email cannot be null."""

    email: EmailStr = Field(default="")
    name: str | None = Field(default=None, max_length=255)


def answer(status: int, content: Any) -> Response:
    """Answer with JSON; dates become RFC 3339."""
    return Response(status, content=Content(b"application/json", orjson.dumps(content)))


def not_found() -> Response:
    """Answer that there is no such user."""
    return answer(404, {"detail": "User not found"})


class Database:
    """Return the pool, which exists while the application runs."""

    pool: "asyncpg.Pool[asyncpg.Record]"


def users_routes(database: Database) -> Router:
    """Return the routes of users: closures, since BlackSheep sets attributes on handlers, which methods forbid."""
    router = Router()

    @router.get("/api/v1/users/")
    async def list_users(skip: int = 0, limit: int = 100, after: int | None = None) -> Response:
        if after is None:
            rows = await database.pool.fetch(sql.LIST_USERS_SKIP, skip, limit)
        else:
            rows = await database.pool.fetch(sql.LIST_USERS_AFTER, after, limit)
        return answer(200, [dict(row) for row in rows])

    @router.post("/api/v1/users/")
    async def create_user(data: FromJSON[UserCreate]) -> Response:
        try:
            row = await database.pool.fetchrow(sql.INSERT_USER, data.value.email, data.value.name)
        except asyncpg.UniqueViolationError:
            return answer(409, {"detail": "Email already registered"})
        assert row is not None
        return answer(201, dict(row))

    @router.get("/api/v1/users/{user_id}")
    async def get_user(user_id: int) -> Response:
        row = await database.pool.fetchrow(sql.SELECT_USER, user_id)
        return answer(200, dict(row)) if row else not_found()

    @router.patch("/api/v1/users/{user_id}")
    async def update_user(user_id: int, data: FromJSON[UserUpdate]) -> Response:
        change = data.value
        try:
            row = await database.pool.fetchrow(
                sql.UPDATE_USER, user_id, change.email or None, "name" in change.model_fields_set, change.name
            )
        except asyncpg.UniqueViolationError:
            return answer(409, {"detail": "Email already registered"})
        return answer(200, dict(row)) if row else not_found()

    @router.delete("/api/v1/users/{user_id}")
    async def delete_user(user_id: int) -> Response:
        deleted = await database.pool.fetchval(sql.DELETE_USER, user_id)
        return not_found() if deleted is None else Response(204)

    return router


def create_app(database_url: str) -> Application:
    """Build the application; its pool lives as long as its lifespan."""
    database = Database()
    app = Application(router=users_routes(database))

    @app.lifespan  # type: ignore[untyped-decorator]
    async def open_pool() -> AsyncIterator[None]:
        async with asyncpg.create_pool(database_url, min_size=10, max_size=10) as database.pool:
            yield

    return app


def create_app_from_environment() -> Application:
    """Build the application for uvicorn's --factory, over DATABASE_URL."""
    return create_app(os.environ["DATABASE_URL"])
