"""Every setting, from the environment or from `.env`: typed, ranged, documented. An error names its variable."""

from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.neon import DatabaseURL
from api.url import parse_url


class SettingsError(Exception):
    """Settings that cannot be used; the message names each variable and the remedy, and holds no secret."""


class Settings(BaseSettings):
    """What an operator can set. The environment variable is the field's name in upper case."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = Field(
        default=None, description="Pooled connection URL, as Neon's console hands it out (host with `-pooler`)."
    )
    direct_url: SecretStr | None = Field(
        default=None, description="Direct connection URL (the same host without `-pooler`): migrations go over it."
    )
    pool_min_size: int = Field(
        default=0, ge=0, le=1000, description="Connections kept open while idle. 0 lets a Neon compute fall asleep."
    )
    pool_max_size: int = Field(
        default=10, ge=1, le=1000, description="Connections of each worker at most: replicas x workers x this in all."
    )
    pool_idle_seconds: float = Field(
        default=120.0, gt=0, le=86400, description="An idle connection is closed after this; below Neon's 300."
    )
    acquire_timeout_seconds: float = Field(
        default=15.0, gt=0, le=300, description="Longest wait for a connection, waking a sleeping compute included."
    )
    statement_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="Longest run of one statement; it is cancelled on the server then."
    )
    statement_cache_size: int = Field(
        default=100, ge=0, le=10000, description="Prepared statements of each connection; 0 for PgBouncer before 1.21."
    )
    batching: bool = Field(
        default=True, description="Gather concurrent requests into shared statements; off: a statement each."
    )
    batch_in_flight: int = Field(
        default=2, ge=1, le=100, description="Statements on their way at once, for each kind of request and worker."
    )
    batch_max_size: int = Field(default=128, ge=1, le=10000, description="Requests in one statement at most.")
    batch_max_waiting: int = Field(
        default=1000, ge=1, le=1000000, description="Requests of one kind that wait at most; more are refused with 503."
    )
    bulk_max_requests: int = Field(
        default=2, ge=1, le=100, description="Imports and exports at once, for each worker; more are refused with 503."
    )
    bulk_idle_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="Longest silence in an import or export, of the client or PostgreSQL."
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error."
    )

    @field_validator("database_url", "direct_url")
    @classmethod
    def _url_is_usable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_url(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _both_urls_or_none(self) -> Self:
        if (self.database_url is None) != (self.direct_url is None):
            missing, present = (
                ("DATABASE_URL", "DIRECT_URL") if self.database_url is None else ("DIRECT_URL", "DATABASE_URL")
            )
            raise ValueError(
                f"{missing} is not set, but {present} is: set both (Neon's console shows both, "
                "without a pooler they are the same), or neither to use the embedded development database"
            )
        if self.pool_min_size > self.pool_max_size:
            raise ValueError(
                f"POOL_MIN_SIZE is {self.pool_min_size}, above POOL_MAX_SIZE, which is {self.pool_max_size}: "
                "lower the one or raise the other"
            )
        return self

    @property
    def pooled(self) -> DatabaseURL:
        """The parsed DATABASE_URL: what requests use. Raises SettingsError where it is not set."""
        return _parse(self.database_url, "DATABASE_URL")

    @property
    def direct(self) -> DatabaseURL:
        """The parsed DIRECT_URL: what migrations use. Raises SettingsError where it is not set."""
        return _parse(self.direct_url, "DIRECT_URL")


def load_settings() -> Settings:
    """Read the environment and `.env` in the working directory; the environment wins.

    Raises SettingsError with one line for each variable that cannot be used.
    """
    try:
        return Settings(_env_file=".env")
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(fault["loc"], fault["msg"]) for fault in error.errors())) from None


def _parse(url: SecretStr | None, variable: str) -> DatabaseURL:
    if url is None:
        raise SettingsError(f"{variable} is not set: set DATABASE_URL and DIRECT_URL, see .env.example")
    return parse_url(url.get_secret_value())


def _explain(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{str(location[0]).upper()}: {message}" if location else message
