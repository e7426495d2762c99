"""Known providers: what a configuration need not say, where keys go, and what happens if some are missing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from config_tables import KEY, NOTHING

from fastroute import errors
from fastroute.config import Config, EndpointConfig, ProviderConfig, check, load, load_with_keys
from fastroute.config.catalog import Catalog
from fastroute.config.known_providers import known_providers
from fastroute.config.urls import url_problem

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
OPENAI = "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def addresses(config: Config) -> dict[str, tuple[str, str, str]]:
    return {name: (at.base_url, at.format, at.api_key_env) for name, at in config.providers.items()}


def endpoints(config: Config) -> list[tuple[str, str]]:
    return [(entry.name, entry.upstream) for entry in config.endpoints]


def test_a_key_of_azure_goes_to_its_hosts() -> None:
    table = {"base_url": "https://mine.openai.azure.com", "models": ["deployment"]}
    config = load({"providers": {"azure": table}}, environ={"OPENAI_API_VERSION": "2024-10-21"})
    assert config.providers["azure"].api_key_env == "AZURE_OPENAI_API_KEY"
    assert config.providers["azure"].api_version == "2024-10-21"


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("name", known_providers())
def test_each_is_on_the_page_and_its_address_is_allowed(name: str) -> None:
    known = known_providers()[name]
    assert (
        not known.base_url or url_problem(known.base_url, allow_http=False, allow_private_hosts=False) is None
    )
    (row,) = [
        line
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("|") and f"`{name}`" in line[:40]
    ]
    for variable in (*known.api_key_env, *known.base_url_env):
        assert f"`{variable}`" in row


BASE_URLS = [(name, variable) for name, known in known_providers().items() for variable in known.base_url_env]


@pytest.mark.parametrize(("name", "variable"), BASE_URLS)
def test_a_vendors_variable_says_where_the_key_goes(name: str, variable: str) -> None:
    known = known_providers()[name]
    environ = {known.api_key_env[0]: KEY, variable: "https://proxy.example.com/x"}
    config = load({"providers": {name: {"models": ["m"]}}}, environ=environ)
    assert addresses(config) == {
        name: ("https://proxy.example.com/x" + known.path, known.format, known.api_key_env[0])
    }
    config = load(
        {"providers": {name: {"models": ["m"]}}},
        environ={**environ, variable: config.providers[name].base_url},
    )
    assert addresses(config)[name][0] == "https://proxy.example.com/x" + known.path, (
        "the path is not added twice"
    )
    if Catalog.builtin().served_by(name):
        assert addresses(load(environ=environ))[name][0] == "https://proxy.example.com/x" + known.path


def test_an_empty_variable_is_as_if_it_were_not_set() -> None:
    config = load(environ={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": " ", "OPENAI_API_BASE": ""})
    assert config.providers["openai"].base_url == OPENAI


def test_a_proxy_in_a_private_network_needs_both_permissions_which_come_in_one_message() -> None:
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://llm-proxy:4000/v1"}
    with pytest.raises(errors.ConfigError) as caught:
        load(environ=environ)
    (problem,) = caught.value.problems
    assert problem.startswith("providers.openai.base_url (from OPENAI_BASE_URL): the host is in a private")
    assert "allow_private_hosts = true and allow_http = true" in problem
    allowed = {f"FASTROUTE_PROVIDERS__OPENAI__ALLOW_{what}": "true" for what in ("HTTP", "PRIVATE_HOSTS")}
    assert load(environ={**environ, **allowed}).providers["openai"].base_url == "http://llm-proxy:4000/v1"


@pytest.mark.parametrize(
    ("table", "sent"),
    [
        ({}, "OPENAI_API_KEY"),
        ({"base_url": OPENAI}, "OPENAI_API_KEY"),
        ({"base_url": "https://eu.api.openai.com/v1"}, "OPENAI_API_KEY"),
        ({"base_url": "https://api.openai.com.example.com/v1"}, ""),
        ({"base_url": "https://proxy.example.com/v1"}, ""),
        ({"base_url": "http://localhost:8000/v1"}, ""),
        ({"base_url": "https://proxy.example.com/v1", "api_key_env": "OTHER"}, "OTHER"),
        ({"api_key_env": "OTHER"}, "OTHER"),
        ({"api_key_file": "key"}, ""),
    ],
)
def test_a_key_goes_to_the_vendors_hosts_only_unless_the_table_says_so(
    table: dict[str, Any], sent: str
) -> None:
    source = {"providers": {"openai": {"models": ["gpt-4.1"], **table}}}
    environ = {"OPENAI_API_KEY": KEY, "OTHER": KEY}
    found = check(source, environ=environ)
    assert found.config is not None
    assert found.config.providers["openai"].api_key_env == sent
    unsent = [warning for warning in found.warnings if "is not sent to" in warning]
    assert bool(unsent) == (not sent and "api_key_file" not in table)


# -------------------------------------------------------------------------------------- files that say little


@pytest.mark.parametrize(
    "source",
    [
        {"budgets": [{"name": "day", "limit": 5, "window": "day"}]},
        {"policy": {"max_attempts": 2}},
        {"fastroute": {"ledger": ""}, "providers": {}, "endpoints": []},
        {"cache": {"enabled": False}},
        {"providers": {"openai": {}}},
        {"providers": {"openai": {"rpm": 60}}},
    ],
)
def test_a_file_goes_over_what_the_keys_give(source: dict[str, Any]) -> None:
    config = load(source, environ={"OPENAI_API_KEY": KEY})
    assert addresses(config) == {"openai": (OPENAI, "openai", "OPENAI_API_KEY")}
    assert config.served == tuple(Catalog.builtin().served_by("openai"))


def test_a_file_that_names_a_provider_uses_no_other() -> None:
    environ = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    assert list(load({"policy": {}}, environ=environ).providers) == ["openai", "anthropic"]
    assert list(load({"providers": {"openai": {}}}, environ=environ).providers) == ["openai"]
    source = {"endpoints": [{"provider": "anthropic", "model": "claude-sonnet-4.5"}]}
    assert endpoints(load(source, environ=environ)) == [("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5")]
    assert list(load(environ={**environ, "FASTROUTE_PROVIDERS__OPENAI__RPM": "60"}).providers) == [
        "openai",
        "anthropic",
    ]


def test_an_empty_file_is_a_problem_though_there_are_keys() -> None:
    Path("fastroute.toml").write_text("# nothing yet\n", encoding="utf-8")
    found = check(environ={"OPENAI_API_KEY": KEY})
    assert [problem.partition(":")[0] for problem in found.problems] == ["endpoints"]


def test_models_stand_for_endpoints() -> None:
    source = {
        "providers": {
            "openai": {"models": ["gpt-4.1", "gpt-4.1-mini"]},
            "local": {"base_url": "http://localhost:8000/v1", "models": ["qwen3:8b"]},
        },
        "endpoints": [{"provider": "openai", "model": "gpt-4.1", "rpm": 5}],
    }
    config = load(source, environ={"FASTROUTE_ENDPOINTS__OPENAI_GPT_4_1_MINI__WEIGHT": "2"})
    assert endpoints(config) == [
        ("openai/gpt-4.1", "gpt-4.1"),
        ("openai/gpt-4.1-mini", "gpt-4.1-mini"),
        ("local/qwen3:8b", "qwen3:8b"),
    ]
    assert [(entry.rpm, entry.weight) for entry in config.endpoints] == [(5, 1.0), (None, 2.0), (None, 1.0)]
    assert load(config, environ=NOTHING) is config


def test_models_and_endpoints_from_the_environment_go_over_the_file() -> None:
    source = {"providers": {"openai": {"models": ["gpt-4.1", "gpt-4.1-mini"]}}}
    config = load(source, environ={"FASTROUTE_PROVIDERS__OPENAI__MODELS": '["gpt-4.1", "o3"]'})
    assert "o3" in config.served
    config = load(source, environ={"FASTROUTE_ENDPOINTS": '[{provider = "openai", model = "o3"}]'})
    assert config.served == ("o3",)


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ("gpt-4.1", "providers.openai.models: must be a list, not 'gpt-4.1'"),
        ([5], "providers.openai.models[0]: must be a string, not 5"),
        (["a b"], "providers.openai.models[0]: invalid name 'a b'"),
        (["o3", "o3"], "providers.openai.models: must not have an entry twice"),
    ],
)
def test_wrong_models_are_a_problem_at_their_place(models: Any, problem: str) -> None:
    found = check({"providers": {"openai": {"models": models}}}, environ=NOTHING).problems
    assert found[0].startswith(problem)
    assert not [each for each in found if each.startswith("endpoints[")]


def test_an_endpoint_of_a_wrong_type_is_a_problem_beside_models() -> None:
    source = {
        "providers": {"openai": {"models": ["o3"]}},
        "endpoints": [{"provider": ["openai"], "model": "o3"}],
    }
    found = check(source, environ=NOTHING).problems
    assert [problem.partition(":")[0] for problem in found] == ["endpoints[0].provider"]


def test_models_of_a_config_made_in_python_need_endpoints() -> None:
    at = ProviderConfig(base_url=OPENAI, models=("m",))
    endpoint = EndpointConfig(provider="p", model="n")
    found = check(Config(providers={"p": at}, endpoints=(endpoint,)), environ=NOTHING)
    assert found.problems == ("providers.p.models: 'm' has no endpoint; add an EndpointConfig for it",)


# -------------------------------------------------------------------------------------- the catalogue's names


@pytest.mark.parametrize(
    ("name", "table", "model", "upstream"),
    [
        ("anthropic", {}, "claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("anthropic", {"base_url": "http://localhost/x"}, "claude-sonnet-4.5", "claude-sonnet-4-5"),
        (
            "claude",
            {"format": "anthropic", "base_url": "https://proxy.example.com"},
            "claude-sonnet-4.5",
            "claude-sonnet-4-5",
        ),
        ("openrouter", {}, "claude-sonnet-4.5", "anthropic/claude-sonnet-4.5"),
        ("relay", {"base_url": "https://openrouter.ai/api/v1"}, "gpt-4.1", "openai/gpt-4.1"),
        ("openai", {"base_url": "https://openrouter.ai/api/v1"}, "gpt-4.1", "openai/gpt-4.1"),
        ("ollama", {"base_url": "http://localhost/v1"}, "gpt-4.1", "gpt-4.1"),
        ("local", {"base_url": "http://localhost/v1"}, "gpt-4.1", "gpt-4.1"),
        ("local", {"base_url": "http://localhost/v1"}, "claude-sonnet-4.5", "claude-sonnet-4.5"),
        ("openai", {}, "house", "house"),
    ],
)
def test_the_catalogues_name_of_a_model_is_sent(
    name: str, table: dict[str, Any], model: str, upstream: str
) -> None:
    for source in (
        {"providers": {name: {**table, "models": [model]}}},
        {"providers": {name: table}, "endpoints": [{"provider": name, "model": model}]},
    ):
        assert endpoints(load(source, environ=NOTHING)) == [(f"{name}/{model}", upstream)]
    own = {"provider": name, "model": model, "upstream": "mine"}
    assert endpoints(load({"providers": {name: table}, "endpoints": [own]}, environ=NOTHING)) == [
        (f"{name}/{model}", "mine")
    ]


def test_a_variable_that_leads_to_another_vendor_brings_its_models() -> None:
    config = load(environ={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://openrouter.ai/api/v1"})
    assert ("openai/claude-sonnet-4.5", "anthropic/claude-sonnet-4.5") in endpoints(config)
    assert config.served == tuple(Catalog.builtin().served_by("openrouter"))


def test_a_catalogue_file_names_models_at_providers_of_ones_own(tmp_path: Path) -> None:
    text = 'models.house = { providers = { local = "meta/House-70B" }, input_price = 1, output_price = 2 }\n'
    (tmp_path / "prices.toml").write_text(text, encoding="utf-8")
    (tmp_path / "fastroute.toml").write_text(
        'fastroute.catalog = "prices.toml"\n'
        '[providers.local]\nbase_url = "http://localhost/v1"\nmodels = ["house"]\n',
        encoding="utf-8",
    )
    assert endpoints(load(environ=NOTHING)) == [("local/house", "meta/House-70B")]


# ----------------------------------------------------------------------------------------------- missing keys

THREE: dict[str, Any] = {
    "fastroute": {"ledger": ""},
    "providers": {
        name: {
            "base_url": f"https://{name}.example.com/v1",
            "api_key_env": f"{name.upper()}_KEY",
            "models": [f"m-{name}"],
        }
        for name in ("first", "second", "third")
    },
    "tiers": {"low": ["m-first"], "high": ["m-second", "m-third"]},
    "policy": {"classes": {"trivial": "low", "expert": "high"}},
}


def test_a_provider_without_its_key_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastroute"):
        config, keys = load_with_keys(THREE, environ={"SECOND_KEY": KEY, "THIRD_KEY": KEY})
    assert config.served == ("m-second", "m-third")
    assert list(config.providers) == ["first", "second", "third"], "a reload may find its key"
    assert config.tiers == {"high": ("m-second", "m-third")}
    assert config.policy.classes == {"expert": "high"}
    assert set(keys) == {"second", "third"}
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "providers.first.api_key_env: the environment variable FIRST_KEY is not set; "
    )
    assert load_with_keys(config, environ={"SECOND_KEY": KEY, "THIRD_KEY": KEY})[0].served == config.served


@pytest.mark.parametrize("environ", [NOTHING, {"FIRST_KEY": "", "SECOND_KEY": " \n"}])
def test_without_any_key_every_variable_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        load_with_keys(THREE, environ=environ)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        f"providers.{name}.api_key_env" for name in ("first", "second", "third")
    ]


def test_a_provider_without_a_key_of_its_own_is_enough() -> None:
    providers = {
        **THREE["providers"],
        "local": {"base_url": "http://localhost:8000/v1", "models": ["m-local"]},
    }
    config, _ = load_with_keys({**THREE, "providers": providers}, environ=NOTHING)
    assert config.served == ("m-local",)
    assert config.tiers == {}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"fastroute": {"default_model": "m-first"}}, "fastroute.default_model"),
        ({"policy": {"fixed_model": "m-first"}}, "policy.fixed_model"),
        ({"fastroute": {"default_model": "low"}}, "fastroute.default_model"),
    ],
)
def test_what_the_configuration_cannot_do_without_is_a_problem(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        load_with_keys({**THREE, **changes}, environ={"SECOND_KEY": KEY, "THIRD_KEY": KEY})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        path,
        "providers.first.api_key_env",
    ]


def test_wrong_keys_and_wrong_values_come_in_one_round() -> None:
    source = {**THREE, "policy": {"strategy": "fastest"}, "fastroute": {"reload": "change"}}
    with pytest.raises(errors.ConfigError) as caught:
        load_with_keys(source, environ={"FIRST_KEY": f'"{KEY}"', "SECOND_KEY": KEY, "THIRD_KEY": KEY})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "policy.strategy",
        "fastroute.reload",
        "providers.first.api_key_env",
    ]
    assert KEY not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ hints


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        (
            {"GROQ_API_KEY": KEY},
            "GROQ_API_KEY: is set, but the catalogue has no models of groq; "
            'name them in a file: [providers.groq] models = ["…"]',
        ),
        ({"OPENAI_KEY": KEY}, "OPENAI_KEY: is not read; did you mean OPENAI_API_KEY?"),
        ({"OPEN_AI_API_KEY": KEY}, "OPEN_AI_API_KEY: is not read; did you mean OPENAI_API_KEY?"),
        ({"ANTHROPIC_KEY": KEY}, "ANTHROPIC_KEY: is not read; did you mean ANTHROPIC_API_KEY?"),
        ({"STRIPE_API_KEY": KEY}, None),
    ],
)
def test_with_no_usable_key_the_nearest_one_is_pointed_out(environ: dict[str, str], hint: str | None) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        load(environ=environ)
    first, *hints = caught.value.problems
    assert first.startswith("no configuration found; set one of OPENAI_API_KEY, ")
    assert "fastroute init" in first
    assert hints == ([] if hint is None else [hint])
    assert KEY not in str(caught.value)
