"""The users API as a FastAPI + SQLAlchemy team usually writes it.

The layout is the usual one on purpose: pydantic schemas, a declarative model, a repository, a session per request by
dependency, a pool with pre-ping. The code is idiomatic and no straw man. Of two idiomatic ways it takes the faster one:
no expiry on commit, and server defaults by RETURNING instead of a refresh. It also keeps the gaps of the idiom:
uniqueness is checked before the insert and not at all on an update, so a taken email on PATCH is a 500. The
differential test compares this service with these answers.

    DATABASE_URL=postgresql://… uvicorn --factory benchmarks.peers.fastapi_sqlalchemy:create_app_from_environment
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, status
from pydantic import BaseModel, ConfigDict, EmailStr, Field
from sqlalchemy import URL, BigInteger, DateTime, Identity, Text, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The declarative base of every model."""


class User(Base):
    """A row of the table `users`; its columns `version` and `body` are not mapped, PostgreSQL fills them."""

    __tablename__ = "users"
    # RETURNING brings the server's defaults back with the INSERT or UPDATE itself.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - the declarative form that SQLAlchemy documents

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    name: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )


class UserCreate(BaseModel):
    """The body of a POST."""

    email: EmailStr
    name: str | None = Field(default=None, max_length=255)


class UserUpdate(BaseModel):
    """The body of a PATCH: an absent key is left alone, and an email cannot be null."""

    email: EmailStr = Field(default="")
    name: str | None = Field(default=None, max_length=255)


class UserResponse(BaseModel):
    """The user in an answer."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str | None
    created_at: datetime
    updated_at: datetime


class UserRepository:
    """Every query on users, over one session."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def list(self, skip: int, limit: int) -> Sequence[User]:
        """Return a page of users, ordered by id."""
        result = await self.session.execute(select(User).order_by(User.id).offset(skip).limit(limit))
        return result.scalars().all()

    async def get(self, user_id: int) -> User | None:
        """Return the user with this id."""
        return await self.session.get(User, user_id)

    async def get_by_email(self, email: str) -> User | None:
        """Return the user with this email."""
        result = await self.session.execute(select(User).where(User.email == email))
        return result.scalar_one_or_none()

    async def create(self, data: UserCreate) -> User:
        """Insert a user."""
        user = User(**data.model_dump())
        self.session.add(user)
        await self.session.commit()
        return user

    async def update(self, user: User, data: UserUpdate) -> User:
        """Set the keys that the client sent."""
        for key, value in data.model_dump(exclude_unset=True).items():
            setattr(user, key, value)
        await self.session.commit()
        return user

    async def delete(self, user: User) -> None:
        """Delete a user."""
        await self.session.delete(user)
        await self.session.commit()


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give each request a session of its own."""
    async with request.app.state.sessions() as session:
        yield session


def get_repository(session: Annotated[AsyncSession, Depends(get_session)]) -> UserRepository:
    """Give each request a repository over its session."""
    return UserRepository(session)


Repository = Annotated[UserRepository, Depends(get_repository)]
router = APIRouter(prefix="/api/v1/users", tags=["users"])


@router.get("/", response_model=list[UserResponse])
async def list_users(repository: Repository, skip: int = 0, limit: int = 100) -> Sequence[User]:
    """List users."""
    return await repository.list(skip, limit)


@router.post("/", response_model=UserResponse, status_code=status.HTTP_201_CREATED)
async def create_user(data: UserCreate, repository: Repository) -> User:
    """Create a user."""
    if await repository.get_by_email(data.email):
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "Email already registered")
    return await repository.create(data)


@router.get("/{user_id}", response_model=UserResponse)
async def get_user(user_id: int, repository: Repository) -> User:
    """Return one user."""
    user = await repository.get(user_id)
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")
    return user


@router.patch("/{user_id}", response_model=UserResponse)
async def update_user(user_id: int, data: UserUpdate, repository: Repository) -> User:
    """Change some fields of one user."""
    user = await repository.get(user_id)
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")
    return await repository.update(user, data)


@router.delete("/{user_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_user(user_id: int, repository: Repository) -> None:
    """Delete one user."""
    user = await repository.get(user_id)
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "User not found")
    await repository.delete(user)


def asyncpg_url(database_url: str) -> URL:
    """Turn a libpq URL, of a host or of a Unix socket, into one for SQLAlchemy's asyncpg dialect."""
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    if "sslmode" in url.query:  # asyncpg calls it ssl
        url = url.update_query_dict({"ssl": url.query["sslmode"]})
    return url.difference_update_query(["sslmode", "channel_binding"])


def create_app(database_url: str) -> FastAPI:
    """Build the application; its engine lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_async_engine(asyncpg_url(database_url), pool_size=5, max_overflow=10, pool_pre_ping=True)
        app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
        yield
        await engine.dispose()

    app = FastAPI(title="Users API", lifespan=lifespan)
    app.include_router(router)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    return app


def create_app_from_environment() -> FastAPI:
    """Build the application for uvicorn's --factory, over DATABASE_URL."""
    return create_app(os.environ["DATABASE_URL"])
