"""Every setting: its range, its error message, and its line in .env.example."""

import re
from pathlib import Path

import pytest

from api.settings import Settings, SettingsError, load_settings
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
