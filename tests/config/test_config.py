"""The configuration: defaults, file and environment, precedence, limits and tiers, and none at all."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import attrs
import pytest
from config_tables import KEY, NOTHING, problems_of, provider, tables

from fastroute import errors
from fastroute.config import (
    CLASSIFIERS,
    BreakerConfig,
    CacheConfig,
    EndpointConfig,
    catalog_of,
    check,
    load,
    tiers_of,
)

# ------------------------------------------------------------------------------------------------ reading


def test_defaults_are_those_documented():
    config = load(tables(), environ=NOTHING)
    assert (config.default_model, config.state, config.ledger) == ("auto", None, None)
    assert (config.timeout, config.connect_timeout, config.max_response_bytes) == (600.0, 5.0, 32 << 20)
    assert config.cache == CacheConfig(
        enabled=True, ttl=3600.0, max_entries=10_000, max_bytes=64 << 20, max_entry_bytes=1 << 20, scope="all"
    )
    policy = config.policy
    assert (policy.backoff_base, policy.backoff_cap, policy.throttle_base, policy.throttle_cap) == (
        (0.5, 8.0, 1.0, 20.0)
    )
    assert (policy.max_attempts, policy.max_retry_after, policy.queue_timeout) == (3, 60.0, 30.0)
    assert policy.breaker == BreakerConfig(
        failures=5,
        rate=0.5,
        min_calls=20,
        window=30.0,
        open=5.0,
        max_open=300.0,
        reset=60.0,
        probe_lease=35.0,
        probes_to_close=2,
        ramp=10.0,
    )
    assert config.endpoints[0] == EndpointConfig(
        provider="one", model="gpt-4.1", upstream="gpt-4.1", name="one/gpt-4.1"
    )


def test_a_file_is_read(tmp_path):
    path = tmp_path / "router.toml"
    path.write_text(
        textwrap.dedent(
            """
            [fastroute]
            timeout = 60
            ledger = ""
            catalog = "prices.toml"
            [cache]
            scope = ["tenant"]
            [providers.local]
            base_url = "http://localhost:8000/v1/"
            api_key_file = "key"
            rpm = 600
            [[endpoints]]
            provider = "local"
            model = "house"
            upstream = "meta/House-70B"
            tpm = 9000
            [models.house]
            input_price = 0
            quality = 0.5
            [tiers]
            only = ["house"]
            [policy.classes]
            expert = "only"
            [policy.breaker]
            failures = 3
            """
        ),
        encoding="utf-8",
    )
    (tmp_path / "prices.toml").write_text("models.house.output_price = 0.25", encoding="utf-8")
    config = load(path, environ=NOTHING)
    assert config.timeout == 60
    assert config.ledger == ""
    assert config.cache.scope == ("tenant",)
    assert config.endpoints[0].upstream == "meta/House-70B"
    assert config.policy.breaker.failures == 3
    assert config.policy.classes == {"expert": "only"}
    assert config.providers["local"].api_key_file == str(tmp_path / "key"), "found from the file's place"
    model = catalog_of(config).model("house")
    assert (model.input_price, model.output_price) == (0, 250_000_000)
    limits = config.limits(config.endpoints[0])
    assert (limits.rpm, limits.burst, limits.tpm, limits.token_burst) == (600, 100, 9000, 9000)


def test_the_environment_goes_over_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "fastroute.toml"
    path.write_text(
        textwrap.dedent(
            """
            [fastroute]
            timeout = 60
            [providers.one]
            base_url = "https://one.example.com/v1"
            [[endpoints]]
            provider = "one"
            model = "gpt-4.1"
            [policy]
            strategy = "weighted"
            """
        ),
        encoding="utf-8",
    )
    config = load(
        path,
        environ={
            "FASTROUTE_TIMEOUT": "90",
            "FASTROUTE_POLICY__STRATEGY": "least-busy",
            "FASTROUTE_POLICY__BREAKER__FAILURES": "7",
            "FASTROUTE_MODELS__GPT_4_1__QUALITY": "0.25",
            "FASTROUTE_ENDPOINTS__ONE_GPT_4_1__RPM": "5",
            "FASTROUTE_ENDPOINTS__0__WEIGHT": "2.5",
            "FASTROUTE_PROVIDERS__ONE__RPM": "50",
            "FASTROUTE_CACHE__SCOPE": '["tenant"]',
            "FASTROUTE_TIERS": '{ low = ["gpt-4.1"] }',
            "FASTROUTE_POLICY__CLASSES__TRIVIAL": "low",
            "FASTROUTE_CONFIG": "ignored where a source is given",
            "FASTROUTE_ASAN": "1",
            "UNRELATED": "x",
        },
    )
    assert config.timeout == 90
    assert config.connect_timeout == 5
    assert config.policy.strategy == "least-busy"
    assert config.policy.breaker.failures == 7
    assert config.models["gpt-4.1"].quality == 0.25
    assert (config.endpoints[0].rpm, config.endpoints[0].weight) == (5, 2.5)
    assert config.providers["one"].rpm == 50
    assert config.cache.scope == ("tenant",)
    assert config.policy.classes == {"trivial": "low"}


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("FASTROUTE_TIMOUT", "5", "FASTROUTE_TIMOUT: names no key (did you mean FASTROUTE_TIMEOUT?)"),
        ("FASTROUTE_LEGDER", "x", "FASTROUTE_LEGDER: names no key (did you mean FASTROUTE_LEDGER?)"),
        ("FASTROUTE_CONFG", "x", "FASTROUTE_CONFG: names no key (did you mean FASTROUTE_CONFIG?)"),
        (
            "FASTROUTE_STRATEGY",
            "x",
            "FASTROUTE_STRATEGY: names no key (did you mean FASTROUTE_POLICY__STRATEGY?)",
        ),
        (
            "FASTROUTE_POLCY__STRATEGY",
            "x",
            "FASTROUTE_POLCY__STRATEGY: names no key (did you mean FASTROUTE_POLICY__",
        ),
        (
            "FASTROUTE_POLICY__STRATEGIE",
            "x",
            "policy.strategie (from FASTROUTE_POLICY__STRATEGIE): unknown key",
        ),
        ("FASTROUTE_TIMEOUT", "soon", "fastroute.timeout (from FASTROUTE_TIMEOUT): must be a number above 0"),
        ("FASTROUTE_TIMEOUT", "1\nledger = 2", "fastroute.timeout (from FASTROUTE_TIMEOUT): "),
        ("FASTROUTE_CACHE__SCOPE", "[1]", "cache.scope[0] (from FASTROUTE_CACHE__SCOPE): must be a string"),
        ("FASTROUTE_TIERS", "{ t = 1 }", "tiers.t (from FASTROUTE_TIERS): must be a list, not 1"),
        ("FASTROUTE_POLICY__STRATGY", "x", "policy.stratgy (from FASTROUTE_POLICY__STRATGY): unknown key"),
        ("FASTROUTE_POLICY____STRATEGY", "x", "FASTROUTE_POLICY____STRATEGY: has an empty part"),
        ("FASTROUTE_ENDPOINTS__9__RPM", "1", "FASTROUTE_ENDPOINTS__9__RPM: unknown endpoint '9'"),
        (
            "FASTROUTE_POLICY__STRATEGY__X__Y",
            "1",
            "FASTROUTE_POLICY__STRATEGY__X__Y: policy.strategy is not a table",
        ),
    ],
)
def test_a_wrong_variable_is_a_problem(variable, value, problem):
    source = tables(policy={"strategy": "latency"})
    found = check(source, environ={variable: value}).problems
    assert len(found) == 1
    assert found[0].startswith(problem), found
    assert source["policy"] == {"strategy": "latency"}, "the caller's mapping is left alone"


SERVICES = {
    "FASTROUTE_SERVICE_HOST": "10.0.0.1",
    "FASTROUTE_SERVICE_PORT": "8080",
    "FASTROUTE_SERVICE_PORT_HTTP_API": "8080",
    "FASTROUTE_PORT": "tcp://10.0.0.1:8080",
    "FASTROUTE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "FASTROUTE_PORT_8080_TCP_PROTO": "tcp",
    "FASTROUTE_PORT_8080_TCP_PORT": "8080",
    "FASTROUTE_PORT_8080_TCP_ADDR": "10.0.0.1",
    "FASTROUTE_PORT_53_UDP_ADDR": "10.0.0.1",
    "FASTROUTE_GATEWAY_SERVICE_HOST": "10.0.0.2",
    "FASTROUTE_GATEWAY_PORT": "tcp://10.0.0.2:80",
    "FASTROUTE_GATEWAY_PORT_80_TCP": "tcp://10.0.0.2:80",
    "FASTROUTE_STATE_REDIS_PORT": "tcp://10.0.0.3:6379",
}


def test_the_variables_of_a_kubernetes_service_are_ignored():
    found = check(tables(), environ=SERVICES)
    assert found.ok
    assert not [warning for warning in found.warnings if "FASTROUTE" in warning]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FASTROUTE_PORT", "8080"),
        ("FASTROUTE_VERSION", "1.2"),
        ("FASTROUTE_API_KEY", KEY),
        ("FASTROUTE_DEBUG", ""),
    ],
)
def test_any_other_variable_is_ignored_with_a_warning(variable, value):
    found = check(tables(), environ={variable: value})
    assert found.ok
    (warning,) = [warning for warning in found.warnings if warning.startswith(f"{variable}: names no key")]
    assert KEY not in warning
    assert "another prefix" in warning


def test_a_config_is_taken_as_it_is_but_checked():
    config = load(tables(), environ=NOTHING)
    assert load(config, environ={"FASTROUTE_TIMEOUT": "1"}) is config
    with pytest.raises(errors.ConfigError, match="default_model"):
        load(attrs.evolve(config, default_model="nothing-like-it"), environ=NOTHING)


def test_the_file_is_found_by_variable_then_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '[providers.p]\nbase_url = "https://p.example.com"\n[[endpoints]]\nprovider = "p"\nmodel = "%s"\n'
    Path("fastroute.toml").write_text(text % "here", encoding="utf-8")
    Path("other.toml").write_text(text % "there", encoding="utf-8")
    assert load(environ=NOTHING).served == ("here",)
    assert load(environ={"FASTROUTE_CONFIG": "other.toml"}).served == ("there",)
    with pytest.raises(errors.ConfigError, match=r"FASTROUTE_CONFIG: 'missing\.toml' does not exist"):
        load(environ={"FASTROUTE_CONFIG": "missing.toml"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a = 1\na = 2\n", "is not valid TOML"),
        (b"[policy\n", "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path, data, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(data)
    found = check(path, environ=NOTHING)
    assert not found.ok
    assert said in found.problems[0]


@pytest.mark.parametrize("source", ["", 5, ["x"]])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(errors.ConfigError, match="config: must be a path, a mapping, a Config or None"):
        load(source, environ=NOTHING)


# -------------------------------------------------------------------------------------------- limits, tiers


def test_endpoint_limits_go_over_provider_limits():
    config = load(
        tables(
            providers=provider(rpm=600, burst=50, tpm=6000, max_in_flight=10),
            endpoints=[
                {"provider": "one", "model": "a"},
                {"provider": "one", "model": "b", "rpm": 60, "max_in_flight": 3},
                {"provider": "one", "model": "c", "burst": 7, "token_burst": 100},
            ],
        ),
        environ=NOTHING,
    )
    found = [attrs.astuple(config.limits(endpoint)) for endpoint in config.endpoints]
    assert found == [(600, 6000, 50, 6000, 10), (60, 6000, 10, 6000, 3), (600, 6000, 7, 100, 10)]


def test_without_limits_there_are_none():
    config = load(tables(), environ=NOTHING)
    assert attrs.astuple(config.limits(config.endpoints[0])) == (None, None, None, None, 200)


def test_tiers_come_from_the_catalogue_unless_configured():
    config = load(tables(), environ=NOTHING)
    assert tiers_of(config, catalog_of(config)) == {"standard": ("gpt-4.1", "my-llama")}
    config = load(tables(tiers={"low": ["my-llama"], "high": ["gpt-4.1"]}), environ=NOTHING)
    assert list(tiers_of(config, catalog_of(config))) == ["low", "high"]


def test_weight_0_is_fine_beside_another():
    endpoints = [
        {"provider": "one", "model": "m", "weight": 0},
        {"provider": "one", "model": "m", "upstream": "m2", "name": "second"},
    ]
    assert problems_of(endpoints=endpoints) == []


def test_classes_go_by_the_classifier_configured():
    for classifier, levels in CLASSIFIERS.items():
        policy = {"classifier": classifier, "classes": dict.fromkeys(levels, "standard")}
        assert problems_of(policy=policy) == []


# ----------------------------------------------------------------------------------------- zero configuration


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("empty_directory")
def test_provider_keys_alone_are_a_configuration():
    config = load(environ={"OPENAI_API_KEY": KEY, "DEEPSEEK_API_KEY": KEY})
    assert config.providers["openai"].base_url == "https://api.openai.com/v1"
    assert config.providers["deepseek"].api_key_env == "DEEPSEEK_API_KEY"
    upstreams = {endpoint.name: endpoint.upstream for endpoint in config.endpoints}
    assert upstreams["openai/gpt-4.1"] == "gpt-4.1"
    assert upstreams["deepseek/deepseek-v4.1-flash"] == "deepseek-flash"
    assert list(tiers_of(config, catalog_of(config))) == ["ultra-budget", "budget", "standard", "premium"]
    assert KEY not in repr(config)


@pytest.mark.usefixtures("empty_directory")
def test_the_same_model_at_two_providers_is_two_endpoints():
    config = load(environ={"OPENAI_API_KEY": KEY, "OPENROUTER_API_KEY": KEY})
    assert [endpoint.name for endpoint in config.endpoints if endpoint.model == "gpt-4.1"] == [
        "openai/gpt-4.1",
        "openrouter/gpt-4.1",
    ]


@pytest.mark.usefixtures("empty_directory")
def test_keys_of_formats_not_spoken_are_skipped_with_a_warning(caplog):
    environ = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "GEMINI_API_KEY": KEY}
    assert list(load(environ=environ).providers) == ["openai", "anthropic", "gemini"]
    with caplog.at_level(logging.WARNING, "fastroute"):
        config = load(environ=environ, formats=("openai",))
    assert list(config.providers) == ["openai"]
    assert "ANTHROPIC_API_KEY: is ignored, because the anthropic format is not available" in caplog.text
    assert "GEMINI_API_KEY" in caplog.text
    assert KEY not in caplog.text
    both = load(environ={"ANTHROPIC_API_KEY": KEY}, formats=("openai", "anthropic"))
    assert "claude-sonnet-4.5" in both.served


@pytest.mark.usefixtures("empty_directory")
@pytest.mark.parametrize("environ", [NOTHING, {"AZURE_OPENAI_API_KEY": KEY}, {"OPENAI_API_KEY": ""}])
def test_with_nothing_usable_the_error_says_what_to_set(environ):
    with pytest.raises(errors.ConfigError) as caught:
        load(environ=environ)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "FASTROUTE_CONFIG" in str(caught.value)
    assert KEY not in str(caught.value)
    assert not check(environ=environ).ok


def test_tomllib_is_not_imported_before_a_file_is_read():
    code = "import sys, fastroute.config; sys.exit('tomllib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------ paths in a file


@pytest.mark.parametrize("named", ["fastroute.toml", "../app/fastroute.toml", "{app}/fastroute.toml", ""])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_paths_are_relative_to_the_file_and_not_to_the_working_directory(
    named: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "models.toml").write_text('date = 2026-01-01\nsource = "ours"\n')
    (app / "fastroute.toml").write_text(
        '[fastroute]\nledger = "spent.db"\nledger_journal = "journal"\ncatalog = "models.toml"\n'
        '[providers.p]\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["m"]\n'
        'api_key_file = "key"\nca_bundle = "ca.pem"\n'
    )
    monkeypatch.chdir(tmp_path if named.startswith("{") else app)
    if by == "variable":
        found = load(environ={**NOTHING, **({"FASTROUTE_CONFIG": named.format(app=app)} if named else {})})
    else:
        found = load(named.format(app=app) or None, environ=NOTHING)
    provider = found.providers["p"]
    paths = (found.ledger, found.ledger_journal, found.catalog, provider.api_key_file, provider.ca_bundle)
    names = ("spent.db", "journal", "models.toml", "key", "ca.pem")
    assert [Path(path or "").resolve() for path in paths] == [app / name for name in names]
    assert all(os.path.isabs(path or "") for path in paths)


def test_a_ledger_that_stays_behind_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions had it in the working directory; budgets would begin anew without a word."""
    app, elsewhere = tmp_path / "app", tmp_path / "elsewhere"
    for folder in (app, elsewhere):
        folder.mkdir()
    file = app / "fastroute.toml"
    file.write_text('[fastroute]\nledger = "spent.db"\n[providers.openai]\nmodels = ["gpt-4.1"]\n')

    def warned() -> bool:
        warnings = check(file, environ={"OPENAI_API_KEY": KEY}).warnings
        return any(
            "is not used" in warning and str(elsewhere / "spent.db") in warning for warning in warnings
        )

    monkeypatch.chdir(elsewhere)
    assert not warned()
    (elsewhere / "spent.db").touch()
    assert warned()
    (app / "spent.db").touch()
    assert not warned()
    monkeypatch.chdir(app)
    (app / "spent.db").unlink()
    assert not warned()


@pytest.mark.parametrize("ledger", ["", "postgresql://u@db.example/x", "/var/lib/spent.db"])
def test_what_is_no_relative_path_stays(ledger: str, tmp_path: Path) -> None:
    file = tmp_path / "fastroute.toml"
    file.write_text(f'[fastroute]\nledger = "{ledger}"\n[providers.openai]\nmodels = ["gpt-4.1"]\n')
    assert load(file, environ={"OPENAI_API_KEY": KEY}).ledger == ledger
