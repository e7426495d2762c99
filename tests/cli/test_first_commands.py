"""`fastroute init` and `fastroute check` in an empty folder, with nothing but keys in the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastroute.cli.group import cli
from fastroute.config import check
from fastroute.config.known_providers import known_providers
from fastroute.testing import Provider

KEY = "sk-0123456789abcdefNEVERSHOWN"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to be in, and an environment that configures nothing."""
    variables = {
        variable
        for known in known_providers().values()
        for variable in (*known.api_key_env, *known.base_url_env, known.api_version_env)
    }
    for name in list(os.environ):
        if name.startswith("FASTROUTE_") or name in variables:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert KEY not in result.output
    return result


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# --------------------------------------------------------------------------------------------------- init


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OPENAI_API_KEY": KEY},
        {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://llm-proxy:4000/v1"},
        {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://api.example.com/v1"},
        {"ANTHROPIC_API_KEY": KEY, "GOOGLE_API_KEY": KEY, "ANTHROPIC_BASE_URL": "https://10.0.0.1"},
        {"OPENAI_API_KEY": KEY, "GROQ_API_KEY": KEY},
        {"GROQ_API_KEY": KEY, "MISTRAL_API_KEY": KEY},
        {"AZURE_OPENAI_API_KEY": KEY},
        {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com/"},
        {known.api_key_env[0]: KEY for known in known_providers().values() if known.api_key_env},
    ],
    ids=lambda environ: " ".join(environ) or "nothing",
)
def test_what_init_writes_passes_check(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert done("init") == "fastroute.toml\n"
    text = Path("fastroute.toml").read_text("utf-8")
    assert KEY not in text
    for name in environ:
        if name.endswith("_API_KEY"):
            assert name in text
    found = check(environ=environ)
    assert found.problems == ()
    assert found.warnings == () or not environ
    assert re.search(r"^  configuration: /\S+/fastroute\.toml$", done("check"), re.MULTILINE)


def test_every_setting_that_init_shows_as_a_comment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    run("init")
    text = Path("fastroute.toml").read_text("utf-8")
    shown = re.sub(r"^# (?=\[|\w+ = |[\w-]+ = \[)", "", text, flags=re.MULTILINE)
    assert shown.count("\n[") > text.count("\n[") + 2
    Path("fastroute.toml").write_text(shown, encoding="utf-8")
    assert check(environ={"OPENAI_API_KEY": KEY}).problems == ()


def test_init_replaces_no_file_unless_forced() -> None:
    Path("fastroute.toml").write_text("mine", encoding="utf-8")
    result = run("init")
    assert result.exit_code == 1
    assert "fastroute.toml exists already; add --force to replace it, or name another file" in result.stderr
    assert Path("fastroute.toml").read_text("utf-8") == "mine"
    assert done("init", "other.toml") == "other.toml\n"
    done("init", "--force")
    assert "[providers.openai]" in Path("fastroute.toml").read_text("utf-8")
    result = run("init", "missing/fastroute.toml")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.stderr


# --------------------------------------------------------------------------------------------------- check


def test_check_shows_where_each_key_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://llm-proxy.example.com/v1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    lines = done("check").splitlines()
    assert "  configuration: no file; the provider keys in the environment" in lines
    assert f"  ledger: {tmp_path}/state/fastroute/fastroute.db (the default)" in lines
    assert re.match(r"openai +https://llm-proxy\.example\.com/v1 +OPENAI_API_KEY +\d+$", lines[-2])
    assert re.match(r"anthropic +https://api\.anthropic\.com +ANTHROPIC_API_KEY +\d+$", lines[-1])
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    assert "warning  GROQ_API_KEY: is set, but the catalogue has no models of groq" in done("check")


def test_check_names_the_file_of_problems_and_the_missing_key() -> None:
    Path("mine.toml").write_text('[providers.openai]\n[policy]\nstrategy = "fast"\n', encoding="utf-8")
    result = run("check", "mine.toml")
    assert result.exit_code == 1
    assert re.fullmatch(r"1 problem in /\S+/mine\.toml, 1 warning", result.stdout.splitlines()[-1])
    Path("mine.toml").write_text('[providers.openai]\n[fastroute]\nledger = ""\n', encoding="utf-8")
    text = done("check", "mine.toml")
    assert "warning  no endpoint has its key on this machine, so a client would not start here" in text
    assert re.search(
        r"^openai +https://api\.openai\.com/v1 +OPENAI_API_KEY \(missing\) +\d+$", text, re.MULTILINE
    )
    assert "  ledger: none\n" in text


def test_online_asks_each_provider_and_says_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    with (
        Provider(["m"], api_keys=[KEY]) as good,
        Provider(["m"], api_keys=["another"]) as bad,
        Provider(["m"]) as open_,
    ):
        Path("fastroute.toml").write_text(
            f"""
            [providers.good]
            base_url = "{good.base_url}"
            api_key_env = "THE_KEY"
            models = ["m", "n"]
            [providers.open]
            base_url = "{open_.base_url}"
            models = ["m"]
            [providers.keyless]
            base_url = "{open_.base_url}"
            api_key_env = "NOT_SET"
            models = ["m"]
            """,
            encoding="utf-8",
        )
        text = done("check", "--online")
        assert re.search(r"^good +200 +\S+ ?\S+ +1 models?$", text, re.MULTILINE), text
        assert re.search(r"^open +200 ", text, re.MULTILINE)
        assert re.search(r"^keyless +- +- +not asked, because its key is missing$", text, re.MULTILINE)
        assert "warning  endpoint good/n: good does not list n" in text
        with open("fastroute.toml", "a", encoding="utf-8") as file:
            file.write(
                f'\n[providers.bad]\nbase_url = "{bad.base_url}"\napi_key_env = "THE_KEY"\nmodels = ["m"]\n'
            )
            file.write('[providers.away]\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["m"]\n')
        result = run("check", "--online")
        assert result.exit_code == 1
        assert re.search(r"^bad +401 +\S+ ?\S+ +the key is refused: ", result.stdout, re.MULTILINE)
        assert re.search(r"^away +- +\S+ ?\S+ +the connection failed", result.stdout, re.MULTILINE)
