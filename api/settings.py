"""Every setting, from the environment, from mounted files or from `.env`: typed, ranged, documented."""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.auth.keys import Caller, parse_api_keys
from api.auth.loopback import check_key_set_url
from api.environment import SettingsError, clean, read_files
from api.http.cors import parse_origins
from api.neon.drivers import DatabaseURL
from api.neon.url import parse_url

AUTHENTICATION_MISSING = (
    "authentication is not configured: set API_KEYS (create one with `users-api key NAME`) or JWT_ISSUER, JWT_AUDIENCE "
    "and JWT_JWKS_URL; AUTH=off disables it"
)


def _check_visible(value: str) -> None:
    if not value.isprintable():
        raise ValueError("it has an invisible character: type it anew")


def _check_replica(url: str) -> None:
    if len(parse_url(url).hosts) > 1:
        raise ValueError("it names several hosts, but replicas may lag differently: name one host")


_CHECKS: dict[str, Callable[[str], object]] = {
    "database_url": parse_url,
    "direct_url": parse_url,
    "read_database_url": _check_replica,
    "api_keys": parse_api_keys,
    "jwt_issuer": _check_visible,
    "jwt_audience": _check_visible,
    "jwt_jwks_url": check_key_set_url,
    "cors_origins": parse_origins,
}
"""The parser of each setting that is a text. It raises ValueError, with the remedy, for a text that is not valid."""


class Settings(BaseSettings):
    """The settings of an operator. The variable, which an error names, is the field's name in upper case."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = Field(
        default=None, description="Pooled connection URL of the server (on Neon: the host with `-pooler`)."
    )
    direct_url: SecretStr | None = Field(
        default=None,
        description="Direct connection URL (on Neon: without `-pooler`): `migrate`, `import` and `export` use it.",
    )
    read_database_url: SecretStr | None = Field(
        default=None,
        description="Connection URL of a read replica, which then serves GETs; if it cannot, the primary does.",
    )
    replica_wait_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Longest wait for the replica, or for it to replay a client's write."
    )
    pool_min_size: int = Field(
        default=0, ge=0, le=1000, description="Connections kept open while idle. 0 lets a Neon compute suspend."
    )
    pool_max_size: int = Field(
        default=10, ge=1, le=1000, description="Maximum connections per worker: replicas x workers x this in total."
    )
    pool_idle_seconds: float = Field(
        default=120.0, gt=0, le=86400, description="Idle connections are closed after this; keep it below Neon's 300."
    )
    acquire_timeout_seconds: float = Field(
        default=15.0, gt=0, le=300, description="Longest wait for a connection: waking a compute, restarts and retries."
    )
    statement_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="Longest run of one statement, which is then cancelled on the server."
    )
    statement_cache_size: int = Field(
        default=100, ge=0, le=10000, description="Prepared statements per connection; 0 for PgBouncer before 1.21."
    )
    batching: bool = Field(
        default=True, description="Send concurrent requests in shared statements; off: one statement per request."
    )
    batch_in_flight: int = Field(
        default=2, ge=1, le=100, description="Statements in flight at once, per kind of request and worker."
    )
    batch_max_size: int = Field(default=128, ge=1, le=10000, description="Maximum requests in one statement.")
    batch_max_waiting: int = Field(
        default=1000, ge=1, le=1000000, description="Waiting requests of one kind; more are refused with 503."
    )
    bulk_max_requests: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Imports and exports at once per worker; more are refused with 503. An authenticated caller "
        "gets one less, if there are several.",
    )
    bulk_idle_seconds: float = Field(
        default=25.0,
        gt=0,
        lt=30,
        description="Longest silence in an import or export, of the client or PostgreSQL. In this time a client has to "
        "send 1 KiB a second, or the rest. Below 30: then the connection would be closed without a response.",
    )
    requests_max_under_way: int = Field(
        default=2000, ge=1, le=1000000, description="Requests in progress per worker; more are refused with 503."
    )
    readiness_probe_seconds: float | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="/ready queries the database, at most this often. This keeps a compute awake.",
    )
    drain_seconds: float = Field(
        default=5.0, ge=0, le=300, description="Time after SIGTERM in which requests are served while /ready is 503."
    )
    grace_seconds: float = Field(
        default=25.0,
        gt=0,
        le=3600,
        description="Longest time from SIGTERM to the exit; below the orchestrator's (Kubernetes: 30).",
    )
    auth: Literal["required", "off"] = Field(
        default="required", description="`off` disables authentication: only behind a proxy that authenticates."
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="NAME:SHA256:SCOPE of each API key, as `users-api key` prints it, separated by commas.",
    )
    jwt_issuer: str | None = Field(default=None, description="Required `iss` of a token; set all three or none.")
    jwt_audience: str | None = Field(default=None, description="Audience that a token's `aud` must include.")
    jwt_jwks_url: str | None = Field(default=None, description="URL of the issuer's public keys (JWKS), with https.")
    cors_origins: str | None = Field(
        default=None, description="Origins whose pages may call from a browser, separated by commas; `*` for all."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Serve /metrics on this port of --host instead, without authentication: for Prometheus alone.",
    )
    slow_request_seconds: float = Field(
        default=1.0, ge=0, le=3600, description="Requests that take longer are logged, with the time of each phase."
    )
    access_log: bool = Field(default=False, description="Log every request.")
    server_timing: bool = Field(
        default=False, description="Report the time of each phase to every client, in the header Server-Timing."
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error."
    )
    secrets_dir: str | None = Field(
        default=None, description="Directory of mounted files, each named after a setting and holding its value."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _value_is_clean(cls, value: object, info: ValidationInfo) -> object:
        return clean(value, str(info.field_name).upper()) if isinstance(value, str) else value

    @field_validator(*_CHECKS)
    @classmethod
    def _value_is_usable(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        if value is not None:
            _CHECKS[str(info.field_name)](value.get_secret_value() if isinstance(value, SecretStr) else value)
        return value

    @model_validator(mode="after")
    def _authentication_is_complete(self) -> Self:
        tokens = {name: getattr(self, name.lower()) for name in ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_JWKS_URL")}
        missing = [name for name, value in tokens.items() if value is None]
        if 0 < len(missing) < len(tokens):
            raise ValueError(f"{' and '.join(missing)} not set: tokens need JWT_ISSUER, JWT_AUDIENCE and JWT_JWKS_URL")
        if self.auth == "off" and self.authentication_configured:
            raise ValueError(
                "AUTH is off, but API_KEYS or JWT_ISSUER is set and would have no effect: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _the_pool_fits(self) -> Self:
        if self.read_database_url is not None and self.database_url is None:
            raise ValueError("DATABASE_URL is not set, but READ_DATABASE_URL is: set DATABASE_URL to its primary")
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
                f"{self.grace_seconds:g}, for the requests in progress: lower the one or raise the other"
            )
        return self

    @property
    def authentication_configured(self) -> bool:
        """True if API keys or a token issuer are set."""
        return self.api_keys is not None or self.jwt_issuer is not None

    @property
    def keys(self) -> list[Caller]:
        """The callers listed in API_KEYS."""
        return parse_api_keys(self.api_keys.get_secret_value()) if self.api_keys else []

    @property
    def origins(self) -> list[str]:
        """The origins listed in CORS_ORIGINS."""
        return parse_origins(self.cors_origins) if self.cors_origins else []

    @property
    def pooled(self) -> DatabaseURL:
        """The parsed DATABASE_URL, for requests. Raises SettingsError if it is not set."""
        return _parse(self.database_url, "DATABASE_URL", "requests go over it: set it to the pooled URL")

    @property
    def direct(self) -> DatabaseURL:
        """The parsed DIRECT_URL, for migrations and the like. Raises SettingsError if it is not set."""
        return _parse(self.direct_url, "DIRECT_URL", "this command needs a session: set it to the URL without a pooler")

    @property
    def replica(self) -> DatabaseURL | None:
        """The parsed READ_DATABASE_URL, for reads. None if it is not set."""
        return None if self.read_database_url is None else parse_url(self.read_database_url.get_secret_value())


VARIABLES = tuple(name.upper() for name in Settings.model_fields)


def load_settings() -> Settings:
    """Read the environment, the files in SECRETS_DIR, and `.env` in the working directory; the first of them wins.

    Raises SettingsError with one line per invalid variable, or one line for a file that cannot be read.
    """
    try:
        return Settings(**read_files(VARIABLES))  # type: ignore[arg-type] # pydantic parses texts
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(each["loc"], each["msg"]) for each in error.errors())) from None


def _parse(url: SecretStr | None, variable: str, purpose: str) -> DatabaseURL:
    if url is None:
        raise SettingsError(
            f"{variable} is not set, and {purpose} (Neon's console shows both URLs, without a pooler they are the same)"
        )
    return parse_url(url.get_secret_value())


def _explain(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{str(location[0]).upper()}: {message}" if location else message
