"""Every setting: its range, its error message, and its line in .env.example."""

import re
from pathlib import Path

import pytest

from api.auth.keys import make_api_key
from api.environment import SettingsError, warn_of_misspelt_names
from api.settings import VARIABLES, Settings, load_settings
from tests.support import ROOT

POOLED = "postgresql://ada:sesame@ep-x-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require"
DIRECT = POOLED.replace("-pooler", "")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "sesame" not in str(refused.value)
    return str(refused.value)


def test_defaults_suit_neon() -> None:
    settings = load_settings()
    assert (settings.database_url, settings.direct_url) == (None, None)
    assert settings.pool_min_size == 0
    assert settings.pool_idle_seconds < 300


def test_urls_come_from_the_environment_and_never_show_their_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", POOLED)
    monkeypatch.setenv("DIRECT_URL", DIRECT)
    settings = load_settings()
    assert settings.pooled.pooled
    assert not settings.direct.pooled
    assert settings.pooled.password == "sesame"
    assert "sesame" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("POOL_MAX_SIZE=3\nPOOL_IDLE_SECONDS=7\nUNRELATED=1\n")
    monkeypatch.setenv("POOL_MAX_SIZE", "4")
    settings = load_settings()
    assert (settings.pool_max_size, settings.pool_idle_seconds) == (4, 7)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_an_env_file_that_is_not_utf_8_is_named(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    Path(".env").write_bytes("POOL_MAX_SIZE=3 # at the café, sesame\n".encode(encoding))
    assert refusal(monkeypatch).startswith(".env: not UTF-8 at byte ")


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of secrets as Kubernetes mounts it, with nothing in it yet."""
    mount = Path("secrets")
    (mount / "..2026_11_24").mkdir(parents=True)
    (mount / "..data").symlink_to("..2026_11_24")
    monkeypatch.setenv("SECRETS_DIR", str(mount))
    return mount


def mount(mounted: Path, name: str, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    (mounted / "..data" / name).write_bytes(data)
    (mounted / name).symlink_to(f"..data/{name}")
    return mounted / name


@pytest.mark.parametrize("name", ["DATABASE_URL", "database_url"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_settings_come_from_mounted_files(mounted: Path, name: str, end: str) -> None:
    mount(mounted, name, DIRECT + end)
    mount(mounted, "POOL_MAX_SIZE", f"\ufeff7{end}")
    mount(mounted, "DIRECT_URL", end)  # An empty value counts as unset, as in the environment.
    mount(mounted, "ca.crt", b"\xff another program's")
    settings = load_settings()
    assert (settings.pooled.password, settings.pool_max_size, settings.direct_url) == ("sesame", 7, None)
    assert "sesame" not in repr(settings)


def test_the_environment_wins_over_mounted_files_and_they_over_the_env_file(
    monkeypatch: pytest.MonkeyPatch, mounted: Path
) -> None:
    monkeypatch.setenv("pool_max_size", "4")
    for name in ("POOL_MAX_SIZE", "BATCH_MAX_SIZE"):
        mount(mounted, name, "5\n")
    Path(".env").write_text("POOL_MAX_SIZE=6\nBATCH_MAX_SIZE=6\nBATCH_IN_FLIGHT=6\n")
    settings = load_settings()
    assert (settings.pool_max_size, settings.batch_max_size, settings.batch_in_flight) == (4, 5, 6)


def test_the_env_file_may_name_the_directory_of_mounted_files(monkeypatch: pytest.MonkeyPatch, mounted: Path) -> None:
    monkeypatch.delenv("SECRETS_DIR")
    mount(mounted, "POOL_MAX_SIZE", "5\n")
    Path(".env").write_text(f"SECRETS_DIR={mounted}\n")
    assert load_settings().pool_max_size == 5


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("absent", "SECRETS_DIR: absent: No such file or directory: mount a directory there that this user can read"),
        ("secrets/POOL_MAX_SIZE", "SECRETS_DIR: secrets/POOL_MAX_SIZE: Not a directory: mount a directory there"),
        ("'secrets'", "SECRETS_DIR: it is in quotes"),
        (" ", "SECRETS_DIR: it is blank: give it a value, or remove it"),
    ],
)
def test_a_directory_of_mounted_files_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, mounted: Path, directory: str, message: str
) -> None:
    mount(mounted, "POOL_MAX_SIZE", "5")
    assert refusal(monkeypatch, SECRETS_DIR=directory).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("DATABSE_URL", DIRECT, "not a setting (did you mean DATABASE_URL?): rename it or remove it"),
        ("api-keys", "sesame", "not a setting (did you mean API_KEYS?): rename it or remove it"),
        ("database_url", DIRECT, "another file has this name in other letters: remove one of them"),
        ("API_KEYS", b"sesame\xff", "not UTF-8 at byte 6: save it as UTF-8"),
    ],
)
def test_a_mounted_file_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, mounted: Path, name: str, content: str | bytes, message: str
) -> None:
    mount(mounted, "DATABASE_URL", DIRECT)
    mount(mounted, name, content)
    assert refusal(monkeypatch) == f"secrets/{name}: {message}"


def test_a_mounted_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, mounted: Path) -> None:
    """Docker makes a directory of a file that is missing where it is mounted from."""
    (mounted / "DATABASE_URL").mkdir()
    message = refusal(monkeypatch)
    assert message == ("secrets/DATABASE_URL: Is a directory: make it a file that this user can read, or remove it")
    (mounted / "DATABASE_URL").rmdir()
    (mounted / "DATABASE_URL").symlink_to("..data/DATABASE_URL")
    assert refusal(monkeypatch).startswith("secrets/DATABASE_URL: No such file or directory: ")


def test_a_mounted_value_that_cannot_be_used_names_its_setting(monkeypatch: pytest.MonkeyPatch, mounted: Path) -> None:
    mount(mounted, "DATABASE_URL", "mysql://ada:sesame@host/db\n")
    mount(mounted, "POOL_MAX_SIZE", "many\n")
    lines = refusal(monkeypatch).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["DATABASE_URL", "POOL_MAX_SIZE"]


@pytest.mark.parametrize(
    ("given", "missing", "used", "unusable"),
    [("DATABASE_URL", "DIRECT_URL", "pooled", "direct"), ("DIRECT_URL", "DATABASE_URL", "direct", "pooled")],
)
def test_one_url_without_the_other_serves_what_needs_that_one(
    monkeypatch: pytest.MonkeyPatch, given: str, missing: str, used: str, unusable: str
) -> None:
    monkeypatch.setenv(given, DIRECT)
    settings = load_settings()
    assert getattr(settings, used).user == "ada"
    with pytest.raises(
        SettingsError, match=f"^{missing} is not set, and .*: set it to the .*Neon's console shows both"
    ):
        getattr(settings, unusable)


@pytest.mark.parametrize(
    "url", ["mysql://ada:sesame@host/db", "sesame", "postgresql://ada:sesame@host:port/db", "postgresql://ada:sesame@/"]
)
def test_a_malformed_url_names_its_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert refusal(monkeypatch, DATABASE_URL=url, DIRECT_URL=DIRECT).startswith("DATABASE_URL: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_MAX_SIZE", "0"),
        ("POOL_MAX_SIZE", "many"),
        ("POOL_MIN_SIZE", "-1"),
        ("POOL_IDLE_SECONDS", "0"),
        ("ACQUIRE_TIMEOUT_SECONDS", "nan"),
        ("STATEMENT_TIMEOUT_SECONDS", "-3"),
        ("STATEMENT_CACHE_SIZE", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_out_of_range_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert refusal(monkeypatch, **{name: value}).startswith(f"{name}: ")


TEXTS = {
    "JWT_ISSUER": "https://auth.example.com",
    "JWT_AUDIENCE": "users-api",
    "JWT_JWKS_URL": "https://auth.example.com/jwks.json",
}
"""Three that are set together."""
OTHERS = {
    "DATABASE_URL": POOLED,
    "DIRECT_URL": DIRECT,
    "READ_DATABASE_URL": DIRECT,
    "API_KEYS": make_api_key("x", read_only=True)[1],
    "CORS_ORIGINS": "https://app.example.com",
    "LOG_LEVEL": "warning",
    "ACCESS_LOG": "true",
    "POOL_MAX_SIZE": "7",
    "READINESS_PROBE_SECONDS": "2.5",
}


@pytest.mark.parametrize("around", ["{} ", " {}", "\t{}\n", "{}\r", "\u00a0{}\u2003"])
def test_blanks_around_a_value_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    loaded = []
    for pattern in ("{}", around):
        for name, value in {**TEXTS, **OTHERS}.items():
            monkeypatch.setenv(name, pattern.format(value))
        loaded.append(load_settings())
    assert loaded[0] == loaded[1]
    assert loaded[1].jwt_issuer == "https://auth.example.com"
    monkeypatch.delenv("API_KEYS")
    for name in TEXTS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AUTH", around.format("off"))
    assert load_settings().auth == "off"


@pytest.mark.parametrize("name", [*TEXTS, *OTHERS, "AUTH", "METRICS_PORT"])
@pytest.mark.parametrize("blank", [" ", "\t", " \u00a0"])
def test_a_blank_value_is_no_value(monkeypatch: pytest.MonkeyPatch, name: str, blank: str) -> None:
    """An empty value counts as unset. A blank one is probably a mistake, so it is refused."""
    assert (
        refusal(monkeypatch, **{name: blank}).splitlines()[0] == f"{name}: it is blank: give it a value, or remove it"
    )


@pytest.mark.parametrize("name", [*TEXTS, *OTHERS])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_that_docker_keeps_are_named(monkeypatch: pytest.MonkeyPatch, name: str, quote: str) -> None:
    value = {**TEXTS, **OTHERS}[name]
    assert f"{name}: it is in quotes" in refusal(monkeypatch, **{**TEXTS, name: f"{quote}{value}{quote}"})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("hidden", ["\u200b", "\ufeff", "\u00ad", "\n", "\x7f", "\u202e", "\udcff"])
def test_a_character_that_cannot_be_seen_is_named(monkeypatch: pytest.MonkeyPatch, name: str, hidden: str) -> None:
    value = f"{TEXTS[name][:4]}{hidden}{TEXTS[name][4:]}"
    message = refusal(monkeypatch, **{**TEXTS, name: value})
    assert re.fullmatch(rf"{name}: it has .*an invisible character: type it anew", message)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://auth.example.com/jwks.json", "write an https:// URL"),
        ("https://auth.example.com:port/jwks.json", "its host or port cannot be read"),
        ("https://auth.example.com:99999/jwks.json", "its host or port cannot be read"),
        ("https://[::1/jwks.json", "its host or port cannot be read"),
        ("https://auth.example.com/jwks .json", "it has a blank"),
        ("https://ada:sesame@auth.example.com/jwks.json", "without a user"),
    ],
)
def test_an_address_of_keys_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, url: str, reason: str) -> None:
    message = refusal(monkeypatch, **{**TEXTS, "JWT_JWKS_URL": url})
    assert message.startswith("JWT_JWKS_URL: ")
    assert reason in message


@pytest.mark.parametrize("written", ["${x}", "${HOME}", "a${x:-b}c", "$x", "\\${x}"])
def test_a_value_in_the_env_file_is_taken_as_it_stands(written: str) -> None:
    """A reference would be nothing where the variable is not set, without a word."""
    Path(".env").write_text(f"x=other\nDATABASE_URL={DIRECT.replace('sesame', f'sesame{written}')}\n")
    assert load_settings().pooled.password == f"sesame{written}"


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfPOOL_MAX_SIZE=3\r\nLOG_LEVEL=error\r\n")
    settings = load_settings()
    assert (settings.pool_max_size, settings.log_level) == (3, "error")


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:9100", "udp://10.0.0.1:53", "sctp://10.0.0.1:9", "tcp://[::1]:9100"])
def test_the_link_of_a_service_is_explained(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    message = refusal(monkeypatch, METRICS_PORT=value)
    assert message.startswith("METRICS_PORT: it is an address that Kubernetes sets for a Service called metrics: ")
    assert "enableServiceLinks: false" in message
    assert "10.0.0.1" not in message


MISSPELT = {
    "API_KEY": "API_KEYS",
    "APIKEYS": "API_KEYS",
    "API-KEYS": "API_KEYS",
    "API_KEYS_FILE": "API_KEYS",
    "DATABASE_URL_FILE": "DATABASE_URL",
    "DATABASE_URI": "DATABASE_URL",
    "DATABSE_URL": "DATABASE_URL",
    "DIRECT_ULR": "DIRECT_URL",
    "READ_DATABASE_URLS": "READ_DATABASE_URL",
    "POOL_MAXSIZE": "POOL_MAX_SIZE",
    "pool_max": "POOL_MAX_SIZE",
    "POOL_SIZES": "POOL_MIN_SIZE",
    "JWT_AUD": "JWT_AUDIENCE",
    "JWT_JWKS": "JWT_JWKS_URL",
    "CORS_ORIGIN": "CORS_ORIGINS",
    "CORS_ALLOWED_ORIGINS": "CORS_ORIGINS",
    "BATCH_SIZE": "BATCH_MAX_SIZE",
    "BULK_REQUESTS": "BULK_MAX_REQUESTS",
    "STATEMENT_TIMEOUT": "STATEMENT_TIMEOUT_SECONDS",
    "ACQUIRE_TIMEOUT": "ACQUIRE_TIMEOUT_SECONDS",
    "GRACE_PERIOD_SECONDS": "GRACE_SECONDS",
    "LOGLEVEL": "LOG_LEVEL",
    "METRIC_PORT": "METRICS_PORT",
    "SECRET_DIR": "SECRETS_DIR",
}
PLATFORMS = """
    PORT HOST HOSTNAME PATH HOME LANG LC_ALL TERM SHELL USER LOGNAME PWD OLDPWD SHLVL TZ TMPDIR EDITOR PAGER MAIL
    SSH_AUTH_SOCK XAUTHORITY XDG_RUNTIME_DIR DISPLAY DEBUG CI EXPORT AUTHOR TOKEN SECRET_KEY PGHOST PGPORT PGUSER
    PGPASSWORD PGDATABASE PGSSLMODE PGHOST_UNPOOLED PGPASSFILE PGDATA PGOPTIONS POSTGRES_URL
    POSTGRES_URL_NON_POOLING POSTGRES_PRISMA_URL POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB POSTGRES_HOST
    DATABASE_URL_UNPOOLED DATABASE_PRIVATE_URL DATABASE_PUBLIC_URL TEST_DATABASE_URL SHADOW_DATABASE_URL
    DATABASE_NAME REDIS_URL AMQP_URL SENTRY_DSN MONGODB_URI RABBITMQ_URL BASE_URL APP_URL PUBLIC_URL
    KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS KUBERNETES_PORT
    KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_PROTO KUBERNETES_PORT_443_TCP_PORT KUBERNETES_PORT_443_TCP_ADDR
    METRICS_SERVICE_HOST METRICS_SERVICE_PORT METRICS_SERVICE_PORT_HTTP METRICS_PORT_9100_TCP
    METRICS_PORT_9100_TCP_ADDR POOL_SERVICE_HOST POOL_SERVICE_PORT POOL_PORT_6432_TCP POOL_PORT_6432_TCP_PORT
    JWT_SERVICE_HOST CORS_SERVICE_PORT BATCH_SERVICE_HOST BATCH_PORT_80_TCP API_KEYS_SERVICE_HOST K_SERVICE
    K_REVISION K_CONFIGURATION GOOGLE_CLOUD_PROJECT GOOGLE_APPLICATION_CREDENTIALS CLOUD_RUN_JOB BATCH_TASK_INDEX
    BATCH_TASK_COUNT BATCH_JOB_UID BATCH_HOSTS_FILE AWS_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
    AWS_SESSION_TOKEN AWS_BATCH_JOB_ID ECS_CONTAINER_METADATA_URI_V4 WEBSITE_HOSTNAME WEBSITES_PORT
    FUNCTIONS_WORKER_RUNTIME IDENTITY_ENDPOINT APPLICATIONINSIGHTS_CONNECTION_STRING DYNO HEROKU_APP_NAME
    HEROKU_SLUG_COMMIT HEROKU_POSTGRESQL_BLUE_URL WEB_CONCURRENCY WEB_MEMORY FLY_APP_NAME FLY_REGION FLY_ALLOC_ID
    FLY_PRIVATE_IP PRIMARY_REGION RENDER RENDER_SERVICE_ID IS_PULL_REQUEST RAILWAY_ENVIRONMENT RAILWAY_PROJECT_ID
    RAILWAY_SERVICE_NAME VERCEL VERCEL_URL VERCEL_ENV NEON_PROJECT_ID NEON_API_KEY OPENAI_API_KEY ANTHROPIC_API_KEY
    STRIPE_API_KEY DD_API_KEY MY_API_KEYS DD_AGENT_HOST DD_TRACE_ENABLED OTEL_SERVICE_NAME
    OTEL_EXPORTER_OTLP_ENDPOINT OTEL_LOG_LEVEL NEW_RELIC_LICENSE_KEY PROMETHEUS_MULTIPROC_DIR PYTHONPATH
    PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE VIRTUAL_ENV PIP_INDEX_URL UV_CACHE_DIR PYENV_VERSION PYENV_ROOT
    REQUESTS_CA_BUNDLE SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY NO_COLOR
    FORCE_COLOR GITHUB_ACTIONS GITHUB_TOKEN GITHUB_REF GITLAB_CI CI_JOB_TOKEN RUNNER_OS BUILD_NUMBER JENKINS_URL
    COMPOSE_PROJECT_NAME COMPOSE_FILE DOCKER_HOST INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET LISTEN_FDS
    SYSTEMD_EXEC_PID NVM_DIR NODE_ENV NODE_OPTIONS RUST_LOG RUST_BACKTRACE GOPATH JAVA_HOME LOG_FORMAT LOG_FILE
    SERVER_PORT SERVER_NAME METRICS_ENABLED METRICS_PATH ACCESS_TOKEN ACCESS_KEY AUTH_TOKEN AUTH_SECRET AUTH_URL
    BASIC_AUTH API_URL API_TOKEN UVICORN_LOG_LEVEL GUNICORN_CMD_ARGS WORKERS TIMEOUT SERVER_SOFTWARE READ_ONLY
    DIRECTORY USERS_API_SERVICE_HOST USERS_API_SERVICE_PORT USERS_API_PORT_8000_TCP USERS_API_LOOPBACK
    USERS_API_METRICS_PORT
"""


def warning(caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    warn_of_misspelt_names(VARIABLES)
    return "".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_name_that_looks_like_a_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, meant: str
) -> None:
    expected = f"not a setting, so without effect: {name} (did you mean {meant}?)"
    Path(".env").write_text(f"{name}=sesame\nUNRELATED=1\n")
    assert warning(caplog) == expected
    Path(".env").unlink()
    monkeypatch.setenv(name, "sesame")
    assert warning(caplog) == expected


def test_all_names_are_in_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    Path(".env").write_text("API_KEY=sesame\nPOOL_MAXSIZE=3\n")
    monkeypatch.setenv("API_KEY", "sesame")
    monkeypatch.setenv("JWT_SECRET", "sesame")
    assert warning(caplog).startswith(
        "not a setting, so without effect: API_KEY (did you mean API_KEYS?), JWT_SECRET ("
    )
    assert len(caplog.records) == 1


def test_names_of_platforms_and_programs_are_no_misspelt_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*PLATFORMS.split(), *VARIABLES, *(name.lower() for name in VARIABLES)]
    Path(".env").write_text("".join(f"{name}=1\n" for name in names))
    assert warning(caplog) == ""
    for name in PLATFORMS.split():
        monkeypatch.setenv(name, "1")
    for service in ("POOL", "JWT", "METRIC", "USERS_API"):
        monkeypatch.setenv(f"{service}_PORT", "tcp://10.0.0.1:80")
    assert warning(caplog) == ""


def test_a_replica_without_its_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, READ_DATABASE_URL=DIRECT)
    assert message.startswith("DATABASE_URL is not set, but READ_DATABASE_URL is")


@pytest.mark.parametrize("url", ["mysql://ada:sesame@host/db", DIRECT.replace("@", "@another,", 1)])
def test_a_replica_that_cannot_be_used_names_its_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    message = refusal(monkeypatch, DATABASE_URL=DIRECT, DIRECT_URL=DIRECT, READ_DATABASE_URL=url)
    assert message.startswith("READ_DATABASE_URL: ")


def test_every_fault_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refusal(monkeypatch, POOL_MAX_SIZE="0", LOG_LEVEL="x").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["POOL_MAX_SIZE", "LOG_LEVEL"]


def test_a_floor_above_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, POOL_MIN_SIZE="11").startswith("POOL_MIN_SIZE is 11, above POOL_MAX_SIZE")


def test_the_example_lists_every_setting_with_its_default() -> None:
    """docs/configuration.md is made from the settings: tests/system/test_document_facts.py."""
    example = (ROOT / ".env.example").read_text()
    for name, field in Settings.model_fields.items():
        variable = name.upper()
        default = "" if field.default is None else str(field.default).lower().removesuffix(".0")
        pattern = rf"^# {variable}=.+$" if field.default is None else rf"^# {variable}={re.escape(default)}$"
        assert re.search(pattern, example, re.MULTILINE), variable


def test_the_example_of_keys_is_refused_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = re.findall(r"^# API_KEYS=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert "users-api key NAME" in refusal(monkeypatch, API_KEYS=entry)
