"""Every setting, from the environment or from `.env`: typed, ranged, documented. An error names its variable."""

import re
import socket
from ipaddress import ip_address
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.auth.keys import Caller, parse_api_keys
from api.neon.drivers import DatabaseURL
from api.neon.url import parse_url

NOBODY_TO_ASK = (
    "nobody would be asked who they are: set API_KEYS (`users-api key NAME` makes a key), or JWT_ISSUER, JWT_AUDIENCE "
    "and JWT_JWKS_URL; AUTH=off lets everybody in, where something in front asks"
)

_ORIGIN = re.compile(r"\*|https?://[^/?#\s@]+")


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
    read_database_url: SecretStr | None = Field(
        default=None,
        description="Connection URL of a read replica, which then answers GETs; the primary where it cannot.",
    )
    replica_wait_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Longest wait for the replica, or for what a client wrote to reach it."
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
        default=15.0, gt=0, le=300, description="Longest wait for a connection: waking a compute, restarts and retries."
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
        default=25.0,
        gt=0,
        lt=30,
        description="Longest silence in an import or export, of the client or PostgreSQL. Below 30, since a connection "
        "on which less than 1 KiB of a body comes in 30 s ends without an answer.",
    )
    requests_max_under_way: int = Field(
        default=2000, ge=1, le=1000000, description="Requests under way in each worker; more are refused with 503."
    )
    readiness_probe_seconds: float | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="/ready asks the database, at most this often: a compute that is asked never sleeps.",
    )
    drain_seconds: float = Field(
        default=5.0,
        ge=0,
        le=300,
        description="After SIGTERM everything is still served for this long, while /ready says no.",
    )
    grace_seconds: float = Field(
        default=25.0,
        gt=0,
        le=3600,
        description="From SIGTERM to the exit at most; below what the orchestrator waits (Kubernetes 30).",
    )
    auth: Literal["required", "off"] = Field(
        default="required", description="`off` lets everybody in: only where something in front asks who they are."
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="NAME:SHA256:SCOPE of each API key, as `users-api key` prints it; commas between.",
    )
    jwt_issuer: str | None = Field(default=None, description="What a token's `iss` has to be; set all three or none.")
    jwt_audience: str | None = Field(default=None, description="What a token's `aud` has to name.")
    jwt_jwks_url: str | None = Field(default=None, description="Where the issuer publishes its keys (JWKS): https.")
    cors_origins: str | None = Field(
        default=None, description="Origins whose pages may call from a browser, commas between; `*` for every one."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Serve /metrics on this port of --host instead, to whoever reaches it: for Prometheus alone.",
    )
    slow_request_seconds: float = Field(
        default=1.0, ge=0, le=3600, description="A request that takes longer is logged, with where its time went."
    )
    access_log: bool = Field(default=False, description="Log every request.")
    server_timing: bool = Field(
        default=False, description="Tell every client where the time went, in the header Server-Timing."
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error."
    )

    @field_validator("database_url", "direct_url", "read_database_url")
    @classmethod
    def _url_is_usable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_url(value.get_secret_value())
        return value

    @field_validator("read_database_url")
    @classmethod
    def _one_replica(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(parse_url(value.get_secret_value()).hosts) > 1:
            raise ValueError("it names several hosts, but what one replica has says nothing of another: name one")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_are_readable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_api_keys(value.get_secret_value())
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _keys_come_over_https(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://unset")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError("write an https:// URL (http:// for the loopback address alone)")
        if not parts.hostname or parts.username is not None:
            raise ValueError("write https://HOST/PATH, without a user")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: str | None) -> str | None:
        for number, origin in enumerate(_origins(value), start=1):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"entry {number} is no origin such as https://app.example.com, without a path")
        return value

    @model_validator(mode="after")
    def _authentication_is_whole(self) -> Self:
        tokens = {name: getattr(self, name.lower()) for name in ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_JWKS_URL")}
        missing = [name for name, value in tokens.items() if value is None]
        if 0 < len(missing) < len(tokens):
            raise ValueError(f"{' and '.join(missing)} not set: tokens need JWT_ISSUER, JWT_AUDIENCE and JWT_JWKS_URL")
        if self.auth == "off" and self.asks_for_credentials:
            raise ValueError(
                "AUTH is off, but API_KEYS or JWT_ISSUER is set, and would protect nothing: take out one of them"
            )
        return self

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
        if self.read_database_url is not None and self.database_url is None:
            raise ValueError(
                "DATABASE_URL is not set, but READ_DATABASE_URL is: set DATABASE_URL and DIRECT_URL to its primary"
            )
        if self.pool_min_size > self.pool_max_size:
            raise ValueError(
                f"POOL_MIN_SIZE is {self.pool_min_size}, above POOL_MAX_SIZE, which is {self.pool_max_size}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _draining_ends_in_time(self) -> Self:
        if self.drain_seconds >= self.grace_seconds:
            raise ValueError(
                f"DRAIN_SECONDS is {self.drain_seconds:g}, which leaves nothing of GRACE_SECONDS, which is "
                f"{self.grace_seconds:g}, for the requests under way: lower the one or raise the other"
            )
        return self

    @property
    def asks_for_credentials(self) -> bool:
        """Whether there is anything to check a caller with."""
        return self.api_keys is not None or self.jwt_issuer is not None

    @property
    def keys(self) -> list[Caller]:
        """The callers that API_KEYS names."""
        return parse_api_keys(self.api_keys.get_secret_value()) if self.api_keys else []

    @property
    def origins(self) -> list[str]:
        """The origins that CORS_ORIGINS names."""
        return _origins(self.cors_origins)

    @property
    def pooled(self) -> DatabaseURL:
        """The parsed DATABASE_URL: what requests use. Raises SettingsError where it is not set."""
        return _parse(self.database_url, "DATABASE_URL")

    @property
    def direct(self) -> DatabaseURL:
        """The parsed DIRECT_URL: what migrations use. Raises SettingsError where it is not set."""
        return _parse(self.direct_url, "DIRECT_URL")

    @property
    def replica(self) -> DatabaseURL | None:
        """The parsed READ_DATABASE_URL: what reads use. None where it is not set."""
        return None if self.read_database_url is None else parse_url(self.read_database_url.get_secret_value())


def load_settings() -> Settings:
    """Read the environment and `.env` in the working directory; the environment wins.

    Raises SettingsError with one line for each variable that cannot be used, or for `.env`, where it cannot be read.
    """
    try:
        return Settings(_env_file=".env")
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(fault["loc"], fault["msg"]) for fault in error.errors())) from None
    except UnicodeDecodeError as error:  # whose text quotes what may be a secret
        raise SettingsError(f".env: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise SettingsError(f".env: {error.strerror}: let this user read it, or take it away") from None


def is_loopback(host: str) -> bool:
    """Whether every address that a name, or an address, stands for can be reached from this machine alone.

    As a server listens: the empty name is every address.
    """
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _origins(text: str | None) -> list[str]:
    return (text or "").replace(",", " ").split()


def _parse(url: SecretStr | None, variable: str) -> DatabaseURL:
    if url is None:
        raise SettingsError(f"{variable} is not set: set DATABASE_URL and DIRECT_URL, see .env.example")
    return parse_url(url.get_secret_value())


def _explain(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{str(location[0]).upper()}: {message}" if location else message
