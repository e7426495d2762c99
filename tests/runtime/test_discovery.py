"""Discovery: a provider's models in every format, the validity of the key, and models that are not listed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from loopback import nothing_left

from fastroute import errors
from fastroute.cli.group import cli
from fastroute.config import Config, load
from fastroute.providers.base import Target
from fastroute.providers.listing import Page, listing_of
from fastroute.runtime import discovery
from fastroute.testing import Fault, Provider, Received

KEY = "local-key-of-a-provider"
FORMATS = ("openai", "anthropic", "gemini", "azure")
NAMES = ["gpt-4.1", "gpt-4.1-mini", "claude-sonnet-4-5-20250929"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    monkeypatch.delenv("FASTROUTE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


def tables(base_url: str, format: str = "openai", *upstreams: str, **more: Any) -> dict[str, Any]:
    endpoints = [
        {"provider": "one", "model": f"model-{place}", "upstream": upstream}
        for place, upstream in enumerate(upstreams or ("gpt-4.1",))
    ]
    provider = {"base_url": base_url, "format": format, "api_key_env": "LOCAL_KEY", **more}
    models = {f"model-{place}": {"input_price": 1, "output_price": 1} for place in range(len(endpoints))}
    return {"providers": {"one": provider}, "endpoints": endpoints, "models": models}


def config_of(provider: Provider, format: str = "openai", *upstreams: str, **more: Any) -> Config:
    return load(tables(provider.base_url, format, *upstreams, **more), environ={})


@pytest.mark.parametrize("format", FORMATS)
def test_the_models_of_every_format(format: str) -> None:
    with Provider(NAMES, format=format, api_keys=[KEY]) as provider:
        found = discovery.models(config_of(provider, format), "one")
        assert (found.status, found.models, found.error) == ("valid", tuple(NAMES), None)
        assert found.ok
        first = provider.requests[0]
        assert first.method == "GET"
        assert KEY not in first.path
        assert KEY in str(first.headers)
        assert not any(KEY in str(request.headers) for request in provider.requests[1:])


@pytest.mark.parametrize("format", FORMATS)
def test_a_key_that_is_refused(format: str) -> None:
    with Provider(NAMES, format=format, api_keys=["another-key-than-that"]) as provider:
        found = discovery.models(config_of(provider, format), "one")
    assert (found.status, found.models, found.ok) == ("refused", (), False)
    assert isinstance(found.error, errors.AuthenticationError)
    assert KEY not in str(found.error)


@pytest.mark.parametrize("format", ["anthropic", "gemini"])
def test_all_pages_are_read(format: str) -> None:
    names = [f"model-{number:04}" for number in range(2500)]
    with Provider(names, format=format, api_keys=[KEY]) as provider:
        found = discovery.models(config_of(provider, format, "model-2499"), "one")
        assert found.models == tuple(names)
        assert found.lacking == ()
        assert provider.received == 4  # three pages, and one that asks without the key


def test_a_provider_that_lists_nothing_says_nothing_of_what_is_lacking() -> None:
    with Provider([], api_keys=[KEY]) as provider:
        provider.script(Fault.status(200, {"object": "list", "data": []}))
        found = discovery.models(config_of(provider, "openai"), "one")
    assert (found.models, found.lacking, found.compared, found.ok) == ((), (), False, False)


def test_pages_that_lead_on_for_ever_are_given_up() -> None:
    def on_and_on(request: Received) -> Fault:
        return Fault.status(200, {"models": [{"name": "models/x"}], "nextPageToken": "again"})

    with Provider(format="gemini") as provider:
        provider.script(on_and_on)
        found = discovery.models(config_of(provider, "gemini"), "one")
    assert found.status == "unknown"
    assert "its pages repeat" in str(found.error)


def test_what_the_configuration_names_in_vain() -> None:
    upstreams = ("gpt-4.1", "gpt-4.1-mni", "claude-sonnet-4-5", "claude-sonnet-latest", "nothing-of-the-kind")
    with Provider(NAMES, api_keys=[KEY]) as provider:
        found = discovery.models(config_of(provider, "openai", *upstreams), "one")
    assert found.status == "valid"
    assert not found.ok
    assert [(lack.endpoint, lack.upstream) for lack in found.lacking] == [
        ("one/model-1", "gpt-4.1-mni"),
        ("one/model-3", "claude-sonnet-latest"),
        ("one/model-4", "nothing-of-the-kind"),
    ]
    assert found.lacking[0].near[0] == "gpt-4.1-mini"
    assert found.lacking[2].near == ()


@pytest.mark.parametrize(
    ("listed", "upstream", "served"),
    [
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-latest", True),
        ("gpt-4.1-2025-04-14", "gpt-4.1", True),
        ("gpt-4.1-2025-04-14", "gpt-4", False),
        ("llama3:latest", "llama3", True),
        ("meta/llama-3", "meta/llama-3:free", True),
        ("llama-3", "llama-3:free", False),
        ("gemini-2.5-pro", "models/gemini-2.5-pro", True),
    ],
)
def test_what_a_listed_name_stands_for(listed: str, upstream: str, served: bool) -> None:
    assert (not list(discovery.not_listed({"e": upstream}, (listed,)))) is served


def test_azure_s_deployments_are_not_compared() -> None:
    with Provider(NAMES, format="azure", api_keys=[KEY]) as provider:
        found = discovery.models(config_of(provider, "azure", "a-deployment"), "one")
    assert (found.ok, found.compared, found.lacking) == (True, False, ())


def test_a_list_that_is_open_to_anyone_says_nothing_of_the_key() -> None:
    with Provider(NAMES) as provider:
        assert discovery.models(config_of(provider), "one").status == "open"
        without = tables(provider.base_url)
        del without["providers"]["one"]["api_key_env"]
        assert discovery.models(load(without, environ={}), "one").status == "valid"


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        found = discovery.models(load(tables(address), environ={}), "one")
    assert (found.status, found.ok) == ("unreachable", False)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.html(), "unknown"),
        (Fault.status(404), "unknown"),
        (Fault.status(500), "unknown"),
        (Fault.error("insufficient_quota"), "unknown"),
        (Fault.status(200, b"{}"), "unknown"),
        (Fault.status(200, b'{"data": ['), "unknown"),
        (Fault.status(200, b'{"data": 5}'), "unknown"),
        (Fault.status(403), "refused"),
        (Fault.reset(), "unreachable"),
        (Fault.black_hole(), "unreachable"),
        (Fault.drip(1, 0.05), "unreachable"),
        (Fault.huge_body(64 << 20, 200), "unknown"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value,
)
def test_answers_that_are_none(fault: Fault, status: str) -> None:
    with Provider(NAMES, api_keys=[KEY]) as provider:
        provider.script(fault, repeat=True)
        slow = fault.name.startswith(("black", "drip"))
        found = discovery.models(config_of(provider), "one", timeout=0.3 if slow else 30)
    assert (found.status, found.models) == (status, ())
    assert found.error is not None


def test_018_a_redirect_is_not_followed() -> None:
    with Provider(NAMES) as elsewhere, Provider(NAMES) as provider:
        provider.script(Fault.redirect(307, elsewhere.base_url + "/models"), repeat=True)
        found = discovery.models(config_of(provider), "one")
        assert elsewhere.connections == 0
    assert found.status == "unknown"
    assert "redirect" in str(found.error)


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tables("http://127.0.0.1:9/v1"), environ={})
    with pytest.raises(errors.ConfigError, match=r"unknown provider 'on' \(did you mean one\?\)"):
        discovery.models(config, "on")
    monkeypatch.delenv("LOCAL_KEY")
    with pytest.raises(errors.ConfigError, match="LOCAL_KEY is not set"):
        discovery.models(config, "one")


def test_a_format_of_one_s_own_brings_its_list_or_has_none() -> None:
    class Mine:
        name = "mine"

    class Listed(Mine):
        class listing:
            by_name = True

            @staticmethod
            def url(target: Target, after: str | None) -> str:
                return target.base_url

            @staticmethod
            def page(value: Any) -> Page:
                return Page(tuple(value))

    assert listing_of(Mine()) is None  # type: ignore[arg-type]
    found = listing_of(Listed())  # type: ignore[arg-type]
    assert found is not None
    assert found.page(["x"]).names == ("x",)


# --------------------------------------------------------------------------------------------- command line


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments])


def written(provider: Provider, upstream: str = "gpt-4.1", name: str = "fastroute.toml") -> None:
    Path(name).write_text(
        f'[providers.one]\nbase_url = "{provider.base_url}"\napi_key_env = "LOCAL_KEY"\n'
        f'[[endpoints]]\nprovider = "one"\nmodel = "gpt-4.1"\nupstream = "{upstream}"\n'
    )


def test_the_command_shows_the_list_and_whose_it_is() -> None:
    with Provider(NAMES, api_keys=[KEY]) as provider:
        written(provider)
        done = run("--provider", "one")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["gpt-4.1", "one/gpt-4.1"]
    assert lines[2].split() == ["gpt-4.1-mini"]
    assert lines[-1].endswith("the key is valid")
    assert KEY not in done.output


def test_the_command_calls_no_key_valid_where_there_is_none() -> None:
    with Provider(NAMES) as provider:
        Path("fastroute.toml").write_text(
            f'[providers.one]\nbase_url = "{provider.base_url}"\n'
            '[[endpoints]]\nprovider = "one"\nmodel = "gpt-4.1"\n'
        )
        done = run("--provider", "one")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].endswith("no key is configured, and none is needed")


def test_the_command_names_what_is_lacking() -> None:
    with Provider(NAMES, api_keys=[KEY]) as provider:
        written(provider, "gpt-4.1-mni")
        done = run("--provider", "one")
        told = json.loads(run("--provider", "one", "--json").stdout)
    assert done.exit_code == 1
    assert "not listed  one/gpt-4.1 uses gpt-4.1-mni; similar names: gpt-4.1-mini, gpt-4.1" in done.stdout
    assert told["status"] == "valid"
    assert told["models"] == NAMES
    assert told["lacking"] == [
        {"endpoint": "one/gpt-4.1", "upstream": "gpt-4.1-mni", "near": ["gpt-4.1-mini", "gpt-4.1"]}
    ]


def test_the_command_says_that_the_key_was_refused() -> None:
    with Provider(NAMES, api_keys=["another-key-than-that"]) as provider:
        written(provider)
        done = run("--provider", "one")
        told = json.loads(run("--provider", "one", "--json").stdout)
    assert done.exit_code == 1
    assert "the key was refused" in done.stdout
    assert told["status"] == "refused"
    assert told["error"].startswith("401")
    assert KEY not in done.output


def test_the_command_called_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC", "GEMINI", "DEEPSEEK", "OPENROUTER"):
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
    alone = run("--provider", "one")
    assert (alone.exit_code, "no configuration found" in alone.output) == (1, True)
    with Provider(NAMES) as provider:
        written(provider)
        both = run("--provider", "one", "--all")
        other = run("--provider", "two")
    assert both.exit_code == 2
    assert (other.exit_code, "unknown provider 'two'" in other.output) == (1, True)
