"""The mistakes of a newcomer's configuration: a message says where, what is wrong and what would be right."""

# ruff: noqa: E501  # messages stand here as they are printed
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_tables import KEY

import fastroute
from fastroute.config import check

OPENAI: dict[str, Any] = {"models": ["gpt-4.1"]}
ENVIRON = {"OPENAI_API_KEY": KEY}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def openai(**keys: Any) -> dict[str, Any]:
    return {"providers": {"openai": {**OPENAI, **keys}}}


def beside(**tables: Any) -> dict[str, Any]:
    return {"providers": {"openai": OPENAI}, **tables}


def budget(**keys: Any) -> dict[str, Any]:
    table = {"name": "day", "limit": 5, "window": "day", **keys}
    return beside(budgets=[{key: value for key, value in table.items() if value is not None}])


# ------------------------------------------------------------------------------------------------- tables

TABLES: list[tuple[dict[str, Any], str]] = [
    (
        openai(base_url="api.openai.com/v1"),
        "providers.openai.base_url: has no scheme; write https:// before it",
    ),
    (
        openai(base_url="http://10.0.0.5:8000/v1"),
        "providers.openai.base_url: 10.0.0.5 is in a private, local or reserved network, and the URL is plain "
        "HTTP; use https:// and a public host, or set allow_private_hosts = true and allow_http = true for this "
        "provider",
    ),
    (
        openai(base_url="http://api.example.com/v1"),
        "providers.openai.base_url: is plain HTTP; use https://, or set allow_http = true for this provider",
    ),
    (
        openai(base_url="https://user:secret@api.example.com/v1"),
        "providers.openai.base_url: contains a user name or password; use api_key_env or api_key_file",
    ),
    (
        openai(api_key=KEY),
        "providers.openai.api_key: a configuration must not contain keys; use api_key_env (the name of an "
        "environment variable) or api_key_file (the path of a file)",
    ),
    (
        openai(api_key_env=KEY),
        "providers.openai.api_key_env: must be the name of an environment variable, like OPENAI_API_KEY",
    ),
    (
        openai(headers={"Authorization": f"Bearer {KEY}"}),
        "providers.openai.headers.Authorization: this header carries a key; use api_key_env or api_key_file "
        "instead",
    ),
    (
        openai(api_base="https://x.example.com"),
        "providers.openai.api_base: unknown key (did you mean base_url?); use one of …",
    ),
    (openai(model="gpt-4.1"), "providers.openai.model: unknown key (did you mean models?); use one of …"),
    (openai(models="gpt-4.1"), "providers.openai.models: must be a list, not 'gpt-4.1'"),
    (openai(models=[{"name": "gpt-4.1"}]), "providers.openai.models[0]: must be a string, not a table"),
    (openai(rpm="500"), "providers.openai.rpm: must be an integer from 0 to 1,000,000,000, not '500'"),
    (openai(tpm=2e6), "providers.openai.tpm: must be an integer from 0 to 1,000,000,000, not 2000000.0"),
    (
        openai(format="opena"),
        "providers.openai.format: unknown format 'opena' (did you mean openai?); use one of openai, anthropic, "
        "gemini, azure",
    ),
    (
        {"providers": {"opneai": OPENAI}},
        "providers.opneai.base_url: is missing (did you mean [providers.openai]?); set it to the URL of the API, "
        "like https://api.example.com/v1",
    ),
    (
        {"providers": {"azure": OPENAI}},
        "providers.azure.base_url: is missing; set it, or set AZURE_OPENAI_ENDPOINT",
    ),
    ({"providers": [{"name": "openai"}]}, "providers: must be a table of tables, not a list"),
    ({"providers": {"openai": "gpt-4.1"}}, "providers.openai: must be a table, not 'gpt-4.1'"),
    (beside(provider={}), "provider: unknown key (did you mean providers?); use one of …"),
    (beside(timeout=30), "timeout: is not a table; move it into [fastroute]"),
    (
        beside(fastroute={"policy": {}}),
        "fastroute.policy: is not a key of [fastroute]; write it as [policy]",
    ),
    (
        beside(endpoints=[{"provider": "locl", "model": "m"}]),
        "endpoints[0].provider: unknown provider 'locl'; use one of openai, or add [providers.locl] with its "
        "base_url",
    ),
    (
        {"endpoints": [{"provider": "opneai", "model": "m"}]},
        "endpoints[0].provider: unknown provider 'opneai' (did you mean openai?); add [providers.opneai] with its "
        "base_url",
    ),
    (beside(endpoints=[{"provider": "openai"}]), "endpoints[0].model: is missing; must be a string"),
    (
        beside(endpoints={"provider": "openai", "model": "m"}),
        "endpoints: must be a list of tables, not a table; write [[endpoints]]",
    ),
    (
        beside(endpoints=[{"provider": "openai", "model": "m"}] * 2),
        "endpoints[1].name: 'openai/m' is the name of endpoints[0] too; use a unique name",
    ),
    (budget(window=None), "budgets[0].window: is missing; must be one of request, day, month, total"),
    (
        budget(window="daily"),
        "budgets[0].window: unknown window 'daily' (did you mean day?); use one of request, day, month, total",
    ),
    (budget(limit="$5"), "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not '$5'"),
    (
        budget(alerts=[50, 90]),
        "budgets[0].alerts[0]: must be a number above 0 and at most 1 (a share, 0.5 is half), not 50",
    ),
    (budget(per="team"), 'budgets[0].per: must be "" or "tag:NAME", not \'team\''),
    (budget(max_budget=5), "budgets[0].max_budget: unknown key (did you mean limit?); use one of …"),
    (beside(budgets={"name": "day"}), "budgets: must be a list of tables, not a table; write [[budgets]]"),
    (
        beside(fastroute={"timeout": "30s"}),
        "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not '30s'",
    ),
    (beside(fastroute={"default_model": 5}), "fastroute.default_model: must be a string, not 5"),
    (
        beside(fastroute={"default_model": "gpt-4.l"}),
        "fastroute.default_model: unknown model 'gpt-4.l' (did you mean gpt-4.1?); use a model that has an "
        "endpoint",
    ),
    (
        beside(fastroute={"default_model": "claude-sonnet-4.5"}),
        "fastroute.default_model: no endpoint serves 'claude-sonnet-4.5'; use a model that has an endpoint",
    ),
    (
        beside(fastroute={"ledger": "mysql://host/db"}),
        'fastroute.ledger: unknown kind of address; use a file, postgresql://… or "" for none',
    ),
    (
        beside(policy={"strategy": "fastest"}),
        "policy.strategy: unknown strategy 'fastest'; use one of latency, weighted, least-busy, lowest-cost, "
        "lowest-usage, two-choices, ordered",
    ),
    (
        beside(policy={"max_retries": 3}),
        "policy.max_retries: unknown key (did you mean max_attempts?); use one of …",
    ),
    (beside(policy={"quality_floor": 90}), "policy.quality_floor: must be a number from 0 to 1, not 90"),
    (
        beside(models={"gpt-4.1": {"input_price": "2"}}),
        "models.\"gpt-4.1\".input_price: must be a number from 0 to 100,000 (USD per million tokens), not '2'",
    ),
    (
        beside(models={"gpt-4.2": {"quality": 1}}),
        'models."gpt-4.2": no endpoint serves this model (did you mean gpt-4.1?); add an endpoint, or remove this '
        "table",
    ),
    (beside(tiers={"premium": "gpt-4.1"}), "tiers.premium: must be a list, not 'gpt-4.1'"),
    (
        beside(tiers={"premium": ["gpt-4-1"]}),
        "tiers.premium: unknown model 'gpt-4-1' (did you mean gpt-4.1?); use a model that has an endpoint",
    ),
    (
        {"policy": {}},
        "endpoints: none are defined; set one of OPENAI_API_KEY, DEEPSEEK_API_KEY, OPENROUTER_API_KEY, "
        "ANTHROPIC_API_KEY, GEMINI_API_KEY to an API key, or name a provider and its models: [providers.openai] "
        'models = ["gpt-4.1"]',
    ),
]


@pytest.mark.parametrize(("tables", "message"), TABLES, ids=[message[:50] for _, message in TABLES])
def test_a_table(tables: dict[str, Any], message: str) -> None:
    environ = {} if tables == {"policy": {}} else ENVIRON
    (problem,) = check(tables, environ=environ).problems
    start, more, _ = message.partition("…") if message.endswith("…") else (message, "", "")
    assert problem.startswith(start)
    assert more or problem == message


# -------------------------------------------------------------------------------------------------- files

FILES = [
    (
        "fastroute.toml",
        "[providers.openai\n",
        "is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 18); correct it "
        "there: text needs quotes, and each key and [table] comes once",
    ),
    (
        "fastroute.toml",
        "[policy]\nstrategy = latency\n",
        "is not valid TOML: Invalid value (at line 2, column 12); correct it there: text needs quotes, and each "
        "key and [table] comes once",
    ),
    (
        "fastroute.yaml",
        "policy:\n  strategy: latency\n",
        "is not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 7); write the file in "
        "TOML, not YAML",
    ),
    (
        "fastroute.toml",
        "# nothing yet",
        "endpoints: none are defined, because the file is empty; name a provider in it, such as [providers.openai], or remove it",
    ),
    (
        "missing.toml",
        None,
        "cannot be read, because it does not exist; use the path of a TOML file (fastroute init writes a "
        "configuration)",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), FILES, ids=[message[:50] for _, _, message in FILES])
def test_a_file(name: str, text: str | None, message: str) -> None:
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    (problem,) = check(name, environ=ENVIRON).problems
    assert problem.removeprefix(f"{name}: ").startswith(message)


def test_a_file_that_the_environment_names() -> None:
    assert check(environ={"FASTROUTE_CONFIG": "typo.toml"}).problems == (
        "FASTROUTE_CONFIG: 'typo.toml' does not exist; set it to the path of a TOML file, or unset it",
    )


def test_the_file_of_several_problems_is_named() -> None:
    Path("fastroute.toml").write_text('[policy]\nstrategy = "fast"\nmax_attempts = 0\n', encoding="utf-8")
    with pytest.raises(fastroute.ConfigError) as caught:
        fastroute.Client("fastroute.toml")
    assert str(caught.value).startswith("3 problems in ")
    assert "fastroute.toml:\n  policy.strategy: " in str(caught.value)


# ------------------------------------------------------------------------------------------ the environment

VARIABLES = [
    (
        "FASTROUTE_TIMOUT",
        "5",
        "FASTROUTE_TIMOUT: names no key (did you mean FASTROUTE_TIMEOUT?); use a key of docs/configuration.md, or "
        "another prefix for a variable of your own",
    ),
    (
        "FASTROUTE_POLICY_STRATEGY",
        "latency",
        "FASTROUTE_POLICY_STRATEGY: names no key (did you mean FASTROUTE_POLICY__STRATEGY?); use a key of "
        "docs/configuration.md, or another prefix for a variable of your own",
    ),
    (
        "FASTROUTE_TIMEOUT",
        "30s",
        "fastroute.timeout (from FASTROUTE_TIMEOUT): must be a number above 0 and at most 86,400 (seconds), not "
        "'30s'",
    ),
    (
        "OPENAI_BASE_URL",
        "llm-proxy.example.com/v1",
        "providers.openai.base_url (from OPENAI_BASE_URL): has no scheme; write https:// before it",
    ),
]


@pytest.mark.parametrize(("variable", "value", "message"), VARIABLES)
def test_a_variable(variable: str, value: str, message: str) -> None:
    assert check({"policy": {}}, environ={**ENVIRON, variable: value}).problems == (message,)


WARNINGS = [
    (
        {"FASTROUTE_X": "1"},
        {"policy": {}},
        "FASTROUTE_X: names no key and is ignored; use a key of docs/configuration.md, or another prefix for a "
        "variable of your own",
    ),
    (
        {"FASTROUTE_OPENAI_API_KEY": KEY},
        {"policy": {}},
        "FASTROUTE_OPENAI_API_KEY: names no key and is ignored; set OPENAI_API_KEY to the API key",
    ),
    (
        {},
        openai(base_url="https://api.openai.com/v1/chat/completions"),
        "providers.openai.base_url: ends with /chat/completions, which fastroute appends itself, so every call "
        "will fail; use https://api.openai.com/v1",
    ),
    (
        {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "https://proxy.example.com/v1/messages/"},
        {"providers": {"anthropic": {}}},
        "providers.anthropic.base_url (from ANTHROPIC_BASE_URL): ends with /messages, which fastroute appends "
        "itself, so every call will fail; use https://proxy.example.com/v1",
    ),
    (
        {},
        openai(base_url="https://api.openai.com"),
        "providers.openai.base_url: has no path, but most servers answer below /v1; if calls fail (404), use "
        "https://api.openai.com/v1",
    ),
    (
        {},
        {"providers": {"local": {"base_url": "http://localhost:8000/", "models": ["m"]}}},
        "providers.local.base_url: has no path, but most servers answer below /v1; if calls fail (404), use "
        "http://localhost:8000/v1",
    ),
    (
        {"GEMINI_API_KEY": KEY},
        {
            "providers": {
                "gemini": {
                    "base_url": "https://generativelanguage.googleapis.com/v1beta/openai/",
                    "models": ["m"],
                }
            }
        },
        'providers.gemini.base_url: is Google\'s OpenAI-compatible API; set format = "openai", or use '
        "https://generativelanguage.googleapis.com/v1beta",
    ),
    (
        {},
        openai(base_url="https://proxy.example.com/v1"),
        "providers.openai: the key in OPENAI_API_KEY is not sent to proxy.example.com, which is not the "
        'provider\'s own host; if the key is for it, set api_key_env = "OPENAI_API_KEY"',
    ),
    (
        {},
        {"providers": {"openai": OPENAI, "local": {"base_url": "http://localhost:8000/v1"}}},
        'providers.local: has no endpoint, so no call goes there; add models = ["…"] to it, or remove it',
    ),
    (
        {},
        {
            "providers": {"openai": {"models": ["gpt-4.1", "gpt-4-1"]}},
            "fastroute": {"ledger": ""},
            "budgets": [{"name": "day", "limit": 5, "window": "day"}],
        },
        'models."gpt-4-1": has no price (did you mean gpt-4.1?), so it is not used under the hard budget "day"; '
        "set input_price and output_price (0 if it costs nothing)",
    ),
    (
        {"ANTHROPIC_API_KEY": KEY},
        {"providers": {"anthropic": {"models": ["claude-sonnet-4-5"]}}},
        "endpoints: 'claude-sonnet-4-5' is not a model of the catalogue, so its price and quality are unknown; use model = 'claude-sonnet-4.5', and upstream for the provider's name if it is another",
    ),
    (
        {},
        {"providers": {"openai": {"models": ["house"]}}, "policy": {"max_cost": 1}},
        'models."house": has no price, so it is not used under policy.max_cost; set input_price and output_price '
        "(0 if it costs nothing)",
    ),
    (
        {"OPENAI_API_KEY": ""},
        {"providers": {"openai": OPENAI, "local": {"base_url": "http://localhost:8000/v1", "models": ["m"]}}},
        "providers.openai.api_key_env: the key in OPENAI_API_KEY is empty; set it to the API key (for a server "
        "without keys, leave api_key_env out)",
    ),
]


@pytest.mark.parametrize(("environ", "tables", "message"), WARNINGS, ids=[each[2][:50] for each in WARNINGS])
def test_what_is_valid_but_cannot_work_is_a_warning(
    environ: dict[str, str], tables: dict[str, Any], message: str
) -> None:
    found = check(tables, environ={**ENVIRON, **environ})
    assert found.ok
    assert found.warnings == (message,)
    assert KEY not in message


def test_a_budget_over_the_shared_ledger_is_warned_of() -> None:
    (warning,) = check(budget(), environ=ENVIRON).warnings
    assert warning.startswith(
        "fastroute.ledger: budgets count what all programs of this user spend that share /"
    )
    assert warning.endswith('; set ledger = "NAME.db" for a ledger of its own')


# ---------------------------------------------------------------------------------------------- the client

ARGUMENTS = [
    (
        {"api_key": KEY},
        "Client(api_key=…): there is no such argument; keys come from the environment: set OPENAI_API_KEY, or the "
        "variable that api_key_env names",
    ),
    (
        {"base_url": "https://api.example.com"},
        "Client(base_url=…): there is no such argument; set base_url in [providers.NAME], or OPENAI_BASE_URL",
    ),
    (
        {"timeout": 5},
        "Client(timeout=…): there is no such argument; set timeout in [fastroute] or FASTROUTE_TIMEOUT, or use "
        "client.with_options(timeout=…)",
    ),
    (
        {"max_retries": 5},
        "Client(max_retries=…): there is no such argument; set max_attempts in [policy], or "
        "FASTROUTE_POLICY__MAX_ATTEMPTS",
    ),
    (
        {"clasifier": len},
        "Client(clasifier=…): there is no such argument; use one of config, session, compress, classifier, "
        "default_state (did you mean classifier?)",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_an_argument_of_the_client(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        fastroute.Client(**arguments)
    assert str(caught.value) == message


def test_a_key_in_place_of_the_configuration_is_not_shown() -> None:
    with pytest.raises(fastroute.ConfigError) as caught:
        fastroute.Client(KEY)
    assert str(caught.value) == (
        "config: looks like an API key, not like the path of a file; set the key in the environment, such as "
        "OPENAI_API_KEY, and leave config out"
    )


def test_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(environ={}).problems == (
        "no configuration found; set one of OPENAI_API_KEY, DEEPSEEK_API_KEY, OPENROUTER_API_KEY, "
        "ANTHROPIC_API_KEY, GEMINI_API_KEY to an API key, set FASTROUTE_CONFIG to a file, or create "
        "./fastroute.toml (fastroute init writes one)",
    )
