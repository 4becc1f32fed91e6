"""The users API on FastAPI and asyncpg without an ORM, as both projects' documentation shows it.

The lifespan creates the pool, pydantic models are used in and out, and each request runs one statement. FastAPI
serialises a declared return type straight to JSON bytes in Rust; its documentation recommends that over any response
class.

    DATABASE_URL=postgresql://… uvicorn --factory benchmarks.peers.fastapi_asyncpg:create_app_from_environment
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, status
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


class User(BaseModel):
    """The user in an answer."""

    id: int
    email: str
    name: str | None
    created_at: datetime
    updated_at: datetime


def get_pool(request: Request) -> Any:
    """Give each request the pool of the process."""
    return request.app.state.pool


# Any, since FastAPI reads the annotation at run time, where asyncpg's Pool takes no parameters.
Pool = Annotated[Any, Depends(get_pool)]
router = APIRouter(prefix="/api/v1/users", tags=["users"])


@router.get("/", response_model=list[User])
async def list_users(
    pool: Pool,
    skip: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: int | None = None,
) -> list[dict[str, Any]]:
    """List users."""
    if after is None:
        rows = await pool.fetch(sql.LIST_USERS_SKIP, skip, limit)
    else:
        rows = await pool.fetch(sql.LIST_USERS_AFTER, after, limit)
    return [dict(row) for row in rows]


@router.post("/", response_model=User, status_code=status.HTTP_201_CREATED)
async def create_user(data: UserCreate, pool: Pool) -> dict[str, Any]:
    """Create a user."""
    try:
        row = await pool.fetchrow(sql.INSERT_USER, data.email, data.name)
    except asyncpg.UniqueViolationError:
        raise HTTPException(status.HTTP_409_CONFLICT, "Email already registered") from None
    return dict(row)


@router.get("/{user_id}", response_model=User)
async def get_user(user_id: int, pool: Pool) -> dict[str, Any]:
    """Return one user."""
    row = await pool.fetchrow(sql.SELECT_USER, user_id)
    if row is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")
    return dict(row)


@router.patch("/{user_id}", response_model=User)
async def update_user(user_id: int, data: UserUpdate, pool: Pool) -> dict[str, Any]:
    """Change some fields of one user."""
    try:
        row = await pool.fetchrow(
            sql.UPDATE_USER, user_id, data.email or None, "name" in data.model_fields_set, data.name
        )
    except asyncpg.UniqueViolationError:
        raise HTTPException(status.HTTP_409_CONFLICT, "Email already registered") from None
    if row is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")
    return dict(row)


@router.delete("/{user_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_user(user_id: int, pool: Pool) -> None:
    """Delete one user."""
    if await pool.fetchval(sql.DELETE_USER, user_id) is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")


def create_app(database_url: str) -> FastAPI:
    """Build the application; its pool lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(database_url, min_size=10, max_size=10) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(title="Users API", lifespan=lifespan)
    app.include_router(router)
    return app


def create_app_from_environment() -> FastAPI:
    """Build the application for uvicorn's --factory, over DATABASE_URL."""
    return create_app(os.environ["DATABASE_URL"])
