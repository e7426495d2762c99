"""The first client in environments as they are: proxies, missing keys, read-only file systems, clusters."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fastroute
from fastroute.testing import Provider

MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, a home of its own, and an environment that configures nothing."""
    for name in list(os.environ):
        if name.startswith(("FASTROUTE_", "OPENAI_", "ANTHROPIC_", "XDG_")) or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path


def ask(client: fastroute.Client, model: str) -> str:
    return client.chat.completions.create(model=model, messages=MESSAGES, timeout=10).text


# ------------------------------------------------------------------------------------------- where a key goes


@pytest.mark.parametrize(
    ("format", "key", "address", "model", "header"),
    [
        ("openai", "OPENAI_API_KEY", "OPENAI_BASE_URL", "gpt-4.1-mini", "authorization"),
        ("openai", "OPENAI_API_KEY", "OPENAI_API_BASE", "gpt-4.1-mini", "authorization"),
        ("openai", "OPENROUTER_API_KEY", "OPENROUTER_BASE_URL", "gpt-4.1-mini", "authorization"),
        ("anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "claude-sonnet-4.5", "x-api-key"),
        ("gemini", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL", "gemini-2.5-flash", "x-goog-api-key"),
        ("gemini", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "gemini-2.5-flash", "x-goog-api-key"),
    ],
)
def test_key_and_prompt_go_where_the_vendors_variable_points(
    monkeypatch: pytest.MonkeyPatch, format: str, key: str, address: str, model: str, header: str
) -> None:
    with Provider(answer="from the proxy", format=format) as proxy:
        monkeypatch.setenv(key, "key-of-the-proxy")
        monkeypatch.setenv(address, proxy.base_url)
        with fastroute.Client() as client:
            assert ask(client, model) == "from the proxy"
        (request,) = proxy.requests
        assert request.headers[header].removeprefix("Bearer ") == "key-of-the-proxy"


def test_a_provider_without_its_key_is_not_asked_and_a_reload_finds_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Provider(answer="first") as first, Provider(answer="second") as second:
        tables = {
            "fastroute": {"ledger": ""},
            "cache": {"enabled": False},
            "providers": {
                "first": {"base_url": first.base_url, "api_key_env": "FIRST_API_KEY", "models": ["m"]},
                "second": {"base_url": second.base_url, "models": ["m"]},
            },
            "policy": {"strategy": "ordered"},
        }
        with fastroute.Client(tables) as client:
            assert ask(client, "m") == "second"
            assert not first.requests
            assert "FIRST_API_KEY is not set" in caplog.text
            monkeypatch.setenv("FIRST_API_KEY", "key")
            client.reload()
            assert ask(client, "m") == "first"


# ----------------------------------------------------------------------------------------- the default ledger


def test_the_default_ledger_is_in_the_users_state_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider() as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        with fastroute.Client() as client:
            ask(client, "gpt-4.1-mini")
            assert client.ledger.totals().calls == 1
        folder = home.joinpath(*_state_of_this_system())
        assert (folder / "fastroute.db").is_file()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(Path().iterdir()) == [], "nothing is left in the working directory"
        monkeypatch.setenv("XDG_STATE_HOME", "relative")
        assert fastroute.Config().ledger_place == str(folder / "fastroute.db")
        monkeypatch.setenv("XDG_STATE_HOME", str(home / "elsewhere"))
        assert fastroute.Config().ledger_place == str(home / "elsewhere" / "fastroute" / "fastroute.db")


def _state_of_this_system() -> tuple[str, ...]:
    if sys.platform == "darwin":
        return "Library", "Application Support", "fastroute"
    return ".local", "state", "fastroute"


def test_a_default_ledger_that_cannot_be_opened_is_skipped_with_one_warning(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "state").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    with Provider() as provider:
        tables = {
            "providers": {"local": {"base_url": provider.base_url, "models": ["m"]}},
            "models": {"m": {"input_price": 1, "output_price": 1, "max_output_tokens": 100}},
            "budgets": [{"name": "day", "limit": 5, "window": "day"}],
        }
        with caplog.at_level(logging.WARNING, "fastroute"), fastroute.Client(tables) as client:
            for _ in range(3):
                ask(client, "m")
            client.reload()
            ask(client, "m")
            assert client.config.ledger == ""
            assert client.ledger.entries() == []
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        "fastroute.ledger: nothing is recorded, because the default ledger cannot be used"
    )
    assert "FASTROUTE_LEDGER" in warning
    assert "Budgets begin at 0" in warning


def test_a_user_without_a_home_has_no_default_ledger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "relative")
    with (
        Provider() as provider,
        fastroute.Client(
            {"providers": {"local": {"base_url": provider.base_url, "models": ["m"]}}}
        ) as client,
    ):
        ask(client, "m")
    assert "this user has no home directory" in caplog.text
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("way", ["file", "variable"])
def test_a_ledger_that_is_configured_must_be_usable(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (home / "file").touch()
    ledger = str(home / "file" / "calls.db")
    tables: dict[str, object] = {
        "providers": {"local": {"base_url": "http://localhost:9/v1", "models": ["m"]}}
    }
    if way == "file":
        tables["fastroute"] = {"ledger": ledger}
    else:
        monkeypatch.setenv("FASTROUTE_LEDGER", ledger)
    with pytest.raises(fastroute.ConfigError, match="ledger: "):
        fastroute.Client(tables)


def test_the_read_only_container_of_a_cluster_serves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may write nowhere, in a namespace with a Service named fastroute."""
    program = (
        "import fastroute\n"
        "with fastroute.Client() as client:\n"
        "    messages = [{'role': 'user', 'content': 'Say hello'}]\n"
        "    print(client.chat.completions.create(model='gpt-4.1-mini', messages=messages).text)\n"
    )
    with Provider(answer="served") as provider:
        environ = {
            **os.environ,
            "HOME": "/proc/nowhere",
            "OPENAI_API_KEY": "key",
            "OPENAI_BASE_URL": provider.base_url,
            "FASTROUTE_PORT": "tcp://10.0.0.1:8080",
            "FASTROUTE_SERVICE_HOST": "10.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, cwd="/", capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "served\n"
    assert "FASTROUTE_LEDGER" in done.stderr
