"""The configuration: precedence, every problem at once with its path, addresses, keys, zero configuration."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastroute import errors
from fastroute.catalog import ModelOverride
from fastroute.config import (
    CLASSIFIERS,
    BreakerConfig,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    Policy,
    ProviderConfig,
    Secret,
    address_problem,
    catalog_of,
    check,
    load,
    read_key,
    read_keys,
    tiers_of,
)
from fastroute.config.keys import key_problem
from fastroute.config.models import SETTINGS, TABLES
from fastroute.config.urls import url_problem

NOTHING: dict[str, str] = {}
KEY = "sk-0123456789abcdefNEVERSHOWN"


def tables(**changes: Any) -> dict[str, Any]:
    """A small configuration that is right, with some of its tables replaced."""
    return {
        "providers": {"one": {"base_url": "https://one.example.com/v1"}},
        "endpoints": [{"provider": "one", "model": "gpt-4.1"}, {"provider": "one", "model": "my-llama"}],
        **changes,
    }


def problems_of(**changes: Any) -> list[str]:
    return list(check(tables(**changes), environ=NOTHING).problems)


def only_problem(**changes: Any) -> str:
    found = problems_of(**changes)
    assert len(found) == 1, found
    return found[0]


def provider(**changes: Any) -> dict[str, Any]:
    return {"one": {"base_url": "https://one.example.com/v1", **changes}}


# ------------------------------------------------------------------------------------------------ reading


def test_defaults_are_those_documented():
    config = load(tables(), environ=NOTHING)
    assert (config.default_model, config.state, config.ledger) == ("auto", "memory", "fastroute.db")
    assert (config.timeout, config.connect_timeout, config.max_response_bytes) == (600.0, 5.0, 32 << 20)
    assert config.cache == CacheConfig(True, 3600.0, 10_000, 64 << 20, 1 << 20, "all")
    policy = config.policy
    assert (policy.backoff_base, policy.backoff_cap, policy.throttle_base, policy.throttle_cap) == (
        (0.5, 8.0, 1.0, 20.0)
    )
    assert (policy.max_attempts, policy.max_retry_after, policy.queue_timeout) == (3, 60.0, 30.0)
    assert policy.breaker == BreakerConfig(5, 0.5, 20, 30.0, 5.0, 300.0, 60.0, 35.0, 2, 10.0)
    assert config.endpoints[0] == EndpointConfig("one", "gpt-4.1", "gpt-4.1", "one/gpt-4.1")


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
        ("FASTROUTE_TIMOUT", "5", "FASTROUTE_TIMOUT: names no key; did you mean FASTROUTE_TIMEOUT?"),
        ("FASTROUTE_TIMEOUT", "soon", "fastroute.timeout (from FASTROUTE_TIMEOUT): 'soon' is not a number"),
        ("FASTROUTE_TIMEOUT", "1\nledger = 2", "fastroute.timeout (from FASTROUTE_TIMEOUT): "),
        ("FASTROUTE_POLICY__STRATGY", "x", "policy.stratgy (from FASTROUTE_POLICY__STRATGY): unknown key"),
        ("FASTROUTE_POLICY____STRATEGY", "x", "FASTROUTE_POLICY____STRATEGY: has an empty part"),
        ("FASTROUTE_ENDPOINTS__9__RPM", "1", "FASTROUTE_ENDPOINTS__9__RPM: names no endpoint"),
        ("FASTROUTE_POLICY__STRATEGY__X__Y", "1", "FASTROUTE_POLICY__STRATEGY__X__Y: goes through"),
    ],
)
def test_a_wrong_variable_is_a_problem(variable, value, problem):
    source = tables(policy={"strategy": "latency"})
    found = check(source, environ={variable: value}).problems
    assert len(found) == 1
    assert found[0].startswith(problem), found
    assert source["policy"] == {"strategy": "latency"}, "the caller's mapping is left alone"


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
    with pytest.raises(errors.ConfigError, match=r"missing\.toml: cannot be read"):
        load(environ={"FASTROUTE_CONFIG": "missing.toml"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a = 1\na = 2\n", "is not valid TOML"),
        (b"[policy\n", "is not valid TOML"),
        (b"\xff\xfe", "is not text in UTF-8"),
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
    with pytest.raises(errors.ConfigError, match="is no configuration"):
        load(source, environ=NOTHING)


# ----------------------------------------------------------------------------------------- problems of keys


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fastroute": {"timeout": "5"}}, "fastroute.timeout: '5' is not a number, must be a number above 0"),
        ({"fastroute": {"timeout": True}}, "fastroute.timeout: true is not a number"),
        ({"fastroute": {"timeout": 0}}, "fastroute.timeout: 0 is out of range"),
        ({"fastroute": {"timeout": float("nan")}}, "fastroute.timeout: nan is out of range"),
        ({"fastroute": {"timeout": float("inf")}}, "fastroute.timeout: inf is out of range"),
        ({"fastroute": {"timeout": None}}, "fastroute.timeout: is nothing"),
        ({"fastroute": {"timeout": 1}}, "fastroute.connect_timeout: 5 s is longer than timeout (1 s)"),
        ({"fastroute": {"max_response_bytes": 1.0}}, "fastroute.max_response_bytes: 1.0 is not a whole"),
        ({"fastroute": {"state": "shared"}}, "fastroute.state: 'shared' is no state, must be \"memory\""),
        ({"fastroute": {"state": "run/state"}}, "fastroute.state: 'run/state' is no state"),
        ({"fastroute": {"state": "/run/app/"}}, "fastroute.state: '/run/app/' is no state"),
        ({"fastroute": {"state": "machine:"}}, "fastroute.state: 'machine:' is no state"),
        ({"fastroute": {"state": "machine:../x"}}, "fastroute.state: 'machine:../x' is no state"),
        ({"fastroute": {"ledger": "mysql://x"}}, "fastroute.ledger: is an address"),
        ({"fastroute": {"ledger": "postgresql://u:p@h/db"}}, "fastroute.ledger: holds a password, must not"),
        ({"fastroute": {"ledger": "postgres://h/db?a=1&password=p"}}, "fastroute.ledger: holds a password"),
        ({"fastroute": {"ledger_wal": "yes"}}, "fastroute.ledger_wal: 'yes' is none of the words known"),
        ({"fastroute": {"defaultmodel": "x"}}, "fastroute.defaultmodel: unknown key; did you mean default_"),
        ({"fastroute": {"policy": {}}}, "fastroute.policy: unknown key, must stand in a table [policy]"),
        ({"fastroute": 5}, "fastroute: 5 is not a table"),
        ({"timeout": 5}, "timeout: unknown key here, must stand in [fastroute]"),
        ({"polcy": {}}, "polcy: unknown key; did you mean policy?"),
        (
            {"classifiers": {"x": {"levels": [], "otherwise": {"level": "a"}}}},
            "classifiers.x.levels: must be",
        ),
        ({"cache": {"ttl": -1}}, "cache.ttl: -1 is out of range"),
        ({"cache": {"enabled": 1}}, "cache.enabled: 1 is neither true nor false"),
        ({"cache": {"scope": "some"}}, "cache.scope: 'some' is no scope"),
        ({"cache": {"max_bytes": 100}}, "cache.max_entry_bytes: is more than max_bytes"),
        ({"policy": {"strategy": "fastest"}}, "policy.strategy: 'fastest' is none of the words known"),
        ({"policy": {"stratgy": "latency"}}, "policy.stratgy: unknown key; did you mean strategy?"),
        ({"policy": {"quality_floor": 1.5}}, "policy.quality_floor: 1.5 is out of range"),
        ({"policy": {"max_attempts": 0}}, "policy.max_attempts: 0 is out of range"),
        ({"policy": {"max_cost": -0.5}}, "policy.max_cost: -0.5 is out of range"),
        ({"policy": {"backoff_base": 9}}, "policy.backoff_base: is longer than backoff_cap"),
        ({"policy": {"breaker": {"rate": 0}}}, "policy.breaker.rate: 0 is out of range"),
        ({"policy": {"breaker": {"open": 301}}}, "policy.breaker.open: is longer than max_open"),
        ({"policy": {"breaker": 5}}, "policy.breaker: 5 is not a table"),
        ({"policy": {"classes": {"trivail": "standard"}}}, "policy.classes.trivail: the five-level"),
        ({"policy": {"classes": {"trivial": "cheap"}}}, "policy.classes.trivial: 'cheap' is no tier here"),
        ({"policy": []}, "policy: a value of type list is not a table"),
        ({"providers": provider(rpm=-1)}, "providers.one.rpm: -1 is out of range"),
        ({"providers": provider(rpm=True)}, "providers.one.rpm: true is not a whole number"),
        ({"providers": provider(burst=5)}, "providers.one.burst: has no effect without rpm"),
        ({"providers": provider(token_burst=5)}, "providers.one.token_burst: has no effect without tpm"),
        ({"providers": provider(max_in_flight=5000)}, "providers.one.max_in_flight: 5000 is out of range"),
        ({"providers": provider(verify=False)}, "providers.one.verify: unknown key"),
        (
            {"providers": provider(format="gemni")},
            "providers.one.format: 'gemni' is no format known; did you",
        ),
        ({"providers": provider(api_version="2024-10-21")}, "providers.one.api_version: has no effect"),
        (
            {"providers": provider(format="azure", api_version="v 1")},
            "providers.one.api_version: 'v 1' is no version",
        ),
        ({"providers": provider(format="opneai")}, "providers.one.format: 'opneai' is no format known; did"),
        (
            {"providers": provider(timeout=601)},
            "providers.one.timeout: 601 s is longer than the whole call's",
        ),
        (
            {"providers": provider(timeout=1)},
            "providers.one.connect_timeout: 5 s is longer than timeout (1 s)",
        ),
        ({"providers": provider(headers={"X Y": "z"})}, "providers.one.headers: 'X Y' is no header name"),
        ({"providers": provider(headers={"X": "a\r\nb"})}, "providers.one.headers: 'X': has a value"),
        ({"providers": provider(headers={"Host": "b"})}, "providers.one.headers: Host is set by fastroute"),
        ({"providers": provider(proxy="socks://x")}, "providers.one.proxy: is no proxy's address"),
        (
            {"providers": provider(api_key_env="A", api_key_file="b")},
            "providers.one.api_key_file: stands beside api_key_env",
        ),
        ({"aliases": {"a": "b", "b": "a"}}, "aliases.a: goes round in a circle (a → b → a)"),
        ({"aliases": {"a": "gpt-4.l"}}, "aliases.a: no model is called 'gpt-4.l'; did you mean gpt-4.1?"),
        ({"aliases": {"my-llama": "gpt-4.1"}}, "aliases.my-llama: is the name of a model with an endpoint"),
        ({"aliases": {"auto": "gpt-4.1"}}, "aliases.auto: is the word for choosing by complexity"),
        ({"aliases": {"a": 5}}, "aliases.a: 5 is not text"),
        ({"tiers": {"t": ["gpt-4.l"]}}, "tiers.t: no model is called 'gpt-4.l'; did you mean gpt-4.1?"),
        ({"tiers": {"t": ["gpt-5"]}}, "tiers.t: no endpoint serves 'gpt-5'"),
        ({"tiers": {"t": ["gpt-4"]}}, "tiers.t: 'gpt-4' is an alias, must be the model's own name gpt-4.1"),
        ({"tiers": {"t": []}}, "tiers.t: is empty"),
        ({"tiers": {"t": "gpt-4.1"}}, "tiers.t: 'gpt-4.1' is not a list"),
        ({"tiers": {"my-llama": ["gpt-4.1"]}}, "tiers.my-llama: is the name of a model or alias too"),
        ({"tiers": {"t": ["gpt-4.1", "gpt-4.1"]}}, "tiers.t: names something twice"),
        (
            {"models": {"gpt-4.1": {"input_price": "1"}}},
            "models.\"gpt-4.1\".input_price: '1' is not a number",
        ),
        ({"models": {"gpt-4.1": {"providers": {}}}}, 'models."gpt-4.1".providers: unknown key'),
        ({"models": {"my-lama": {"quality": 1}}}, "models.my-lama: no endpoint serves such a model; did you"),
        ({"models": {"my-llama": {"fallbacks": ["my-llama"]}}}, "models.my-llama.fallbacks: names the model"),
        ({"models": {"my-llama": {"fallbacks": ["gpt-9"]}}}, "models.my-llama.fallbacks: no model is called"),
        ({"models": {"my-llama": {"fallbacks": ["gpt-5"]}}}, "models.my-llama.fallbacks: no endpoint serves"),
        (
            {"models": {"my-llama": {"fallbacks": ["gpt-4.1"]}, "gpt-4.1": {"fallbacks": ["my-llama"]}}},
            "models.my-llama.fallbacks: go round in a circle (my-llama → gpt-4.1 → my-llama)",
        ),
        ({"fastroute": {"default_model": "gpt-5"}}, "fastroute.default_model: no endpoint serves 'gpt-5'"),
        ({"endpoints": []}, "endpoints: there are none"),
        ({"endpoints": {"a": 1}}, "endpoints: a value of type dict is not a list"),
        ({"endpoints": [{"provider": "one"}]}, "endpoints[0].model: is missing"),
        ({"endpoints": [{"provider": "two", "model": "m"}]}, "endpoints[0].provider: 'two' is no provider"),
        ({"endpoints": [{"provider": "one", "model": "a b"}]}, "endpoints[0].model: 'a b' is no usable name"),
        ({"endpoints": [{"provider": "one", "model": "m", "weight": 0}]}, "endpoints: all endpoints of 'm'"),
        (
            {"endpoints": [{"provider": "one", "model": "m"}, {"provider": "one", "model": "m"}]},
            "endpoints[1].name: 'one/m' is the name of endpoints[0] too",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_problem_is_named_with_its_path(changes, problem):
    assert only_problem(**changes).startswith(problem), problems_of(**changes)


def test_all_problems_come_at_once_and_none_hides_another():
    found = problems_of(
        fastroute={"timeout": "5", "stat": 1},
        polcy={},
        policy={"strategy": "fastest", "stratgy": 1, "breaker": {"failures": 0, "rte": 1}},
        providers={
            "one": {"base_url": "http://one.example.com", "rpm": 1.5},
            "two": {"base_url": "https://u:p@two.example.com"},
        },
        endpoints=[{"provider": "one", "model": "m", "weight": -1}, {"provider": "three", "model": "n"}],
        tiers={"t": ["m", "x"], "u": 5},
        models={"m": {"quality": 2}},
    )
    assert {problem.partition(": ")[0] for problem in found} == {
        "fastroute.timeout",
        "fastroute.stat",
        "polcy",
        "policy.strategy",
        "policy.stratgy",
        "policy.breaker.failures",
        "policy.breaker.rte",
        "providers.one.rpm",
        "providers.one.base_url",
        "providers.two.base_url",
        "endpoints[0].weight",
        "endpoints[1].provider",
        "tiers.t",
        "tiers.u",
        "models.m.quality",
    }
    with pytest.raises(errors.ConfigError) as caught:
        load({"policy": {"strategy": 1}}, environ=NOTHING)
    assert len(caught.value.problems) == 2


def test_a_long_chain_of_fallbacks_is_no_circle():
    names = [f"m{number}" for number in range(3000)]
    models = {name: {"fallbacks": [after]} for name, after in itertools.pairwise(names)}
    endpoints = [{"provider": "one", "model": name} for name in names]
    assert problems_of(models=models, endpoints=endpoints) == []
    models[names[-1]] = {"fallbacks": [names[0]]}
    assert "go round in a circle" in only_problem(models=models, endpoints=endpoints)[:80]


def test_bool_and_text_are_refused_in_values_made_in_python_too():
    with pytest.raises(ValueError, match="not a whole number"):
        Policy(max_attempts=True)
    with pytest.raises(ValueError, match="not a number"):
        Policy(quality_floor="0.5")  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["base_url", "rpm", "headers", "model", "provider", "fallbacks", "classes", "breaker", "timeout", "x"]


# The first text drawn on a fresh machine builds Hypothesis's table of characters, which takes seconds.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["fastroute", *TABLES, "other"]),
        JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4) | st.lists(JSON, max_size=3),
        max_size=5,
    )
)
def test_whatever_is_in_the_tables_gives_a_config_or_problems(source):
    found = check(source, environ=NOTHING)
    assert (found.config is None) == bool(found.problems)


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


# ------------------------------------------------------------------------------------------------ addresses

PUBLIC = [
    "https://api.openai.com/v1",
    "https://api.openai.com",
    "https://API.example.com:8443/v1/",
    "https://8.8.8.8/v1",
    "https://[2606:4700::1111]/v1",
    "https://xn--bcher-kva.example/v1",
]
LOCAL = ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:11434/v1", "https://localhost"]
PRIVATE = [
    "https://10.0.0.1/v1",
    "https://192.168.1.1",
    "https://172.16.0.1",
    "https://169.254.169.254/latest",
    "https://100.64.0.1",
    "https://0.0.0.0",
    "https://127.0.0.2",
    "https://224.0.0.1",
    "https://255.255.255.255",
    "https://[fe80::1]",
    "https://[fc00::1]",
    "https://[::]",
    "https://[64:ff9b::a00:1]",
    "https://[2002:a00:1::]",
    "https://vllm:8000/v1",
    "https://metadata.google.internal",
    "https://printer.local",
    "https://app.localhost",
    "https://LOCALHOST",
]
NEVER = [
    "",
    "api.openai.com/v1",
    "ftp://api.openai.com",
    "file:///etc/passwd",
    "//api.openai.com",
    "https://",
    "https:///v1",
    "https://user:pw@api.openai.com",
    "https://user@api.openai.com",
    "https://api.openai.com#x",
    "https://api.openai.com/v1?key=1",
    "https://api.openai.com/v1?",
    "https://api.openai.com./v1",
    "https://localhost./v1",
    "https://0x7f.1",
    "https://0x7f000001",
    "https://2130706433",
    "https://127.1",
    "https://0177.0.0.1",
    "https://8.8.8.08",
    "https://1.2.3.4.5",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:8.8.8.8]",
    "https://[0:0:0:0:0:0:0:1]",
    "https://[::1%25eth0]",
    "https://[::1",
    "https://[zz]",
    "https://оpenai.com",
    "https://api.openai。com",
    "https://api.openai.com:0",
    "https://api.openai.com:99999",
    "https://api.openai.com:",
    "https://api.openai.com:x",
    "https://api openai.com",
    "https://api.openai.com\\@evil.example",
    "https://api.openai.com/../v1",
    "https://%61pi.openai.com",
    "https://-a.example",
    "https://a..example",
    "https://api.openai.com\n",
    "https://" + "a" * 3000,
]


@pytest.mark.parametrize("url", PUBLIC + LOCAL)
def test_public_and_loopback_addresses_need_no_permission(url):
    assert url_problem(url, allow_http=False, allow_private_hosts=False) is None


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_need_permission(url):
    assert url_problem(url, allow_http=False, allow_private_hosts=False) is not None
    assert url_problem(url, allow_http=False, allow_private_hosts=True) is None


@pytest.mark.parametrize("url", NEVER, ids=lambda url: ascii(url)[:50])
def test_some_addresses_are_never_right(url):
    for allowed in (False, True):
        problem = url_problem(url, allow_http=allowed, allow_private_hosts=allowed)
        assert problem is not None
        assert ", must " in problem


def test_plain_http_to_other_hosts_needs_permission():
    url = "http://api.example.com/v1"
    problem = url_problem(url, allow_http=False, allow_private_hosts=True)
    assert problem is not None
    assert "allow_http" in problem
    assert url_problem(url, allow_http=True, allow_private_hosts=False) is None
    assert only_problem(providers=provider(base_url=url)).startswith("providers.one.base_url: is plain HTTP")
    assert problems_of(providers=provider(base_url=url, allow_http=True)) == []


@given(st.text(max_size=60) | st.text(max_size=30).map("https://{}".format))
def test_any_text_as_an_address_is_judged_and_not_repeated(url):
    problem = url_problem(url, allow_http=False, allow_private_hosts=False)
    if problem is not None and len(url) > 12 and not re.search(r"[0-9]", url):
        assert url not in problem


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "junk"]
)
def test_an_address_that_a_public_name_resolved_to_must_be_public(address):
    assert address_problem(address, allow_private_hosts=False) is not None


def test_public_resolved_addresses_are_fine():
    assert address_problem("8.8.8.8", allow_private_hosts=False) is None
    assert address_problem("2606:4700::1111", allow_private_hosts=False) is None
    assert address_problem("10.0.0.1", allow_private_hosts=True) is None


# ----------------------------------------------------------------------------------------------------- keys


def test_a_secret_does_not_show():
    secret = Secret(KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>10}", format(secret, ""), repr([secret])]
    shown += [json.dumps({"key": secret}, default=str), repr(attrs.make_class("C", ["k"])(secret))]
    assert all(KEY not in text and "***" in text for text in shown)
    assert secret.reveal() == KEY
    with pytest.raises(TypeError) as caught:
        json.dumps(secret)
    assert KEY not in str(caught.value)
    with pytest.raises(TypeError):
        list(secret)
    with pytest.raises(AttributeError):
        secret.other = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        secret._Secret__value = "x"  # type: ignore[attr-defined]


def test_copies_of_a_secret_work_and_pickles_lose_it():
    secret = Secret(KEY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0].reveal() == KEY
    data = pickle.dumps(secret)
    assert KEY.encode() not in data
    lost = pickle.loads(data)
    assert repr(lost) == "***"
    with pytest.raises(ValueError, match="pickled"):
        lost.reveal()


FROM_ENV = ProviderConfig("https://x.example.com", api_key_env="THE_KEY")


def test_a_key_is_read_from_the_environment():
    found = read_key("one", FROM_ENV, {"THE_KEY": KEY})
    assert found is not None
    assert found.reveal() == KEY
    assert read_key("one", ProviderConfig("https://x.example.com"), NOTHING) is None


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_one_trailing_newline_is_left_out_with_a_warning(ending, caplog):
    with caplog.at_level(logging.WARNING, "fastroute"):
        found = read_key("one", FROM_ENV, {"THE_KEY": KEY + ending})
    assert found is not None
    assert found.reveal() == KEY
    assert "newline" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("\ufeff" + KEY, "byte order mark"),
        (f'"{KEY}"', "in quotes"),
        (f"'{KEY}'", "in quotes"),
        (KEY + "\n\n", "white space"),
        (" " + KEY, "white space"),
        (KEY + " x", "white space"),
        (KEY + "\x00", "cannot carry"),
        (KEY + "é", "cannot carry"),
    ],
)
def test_a_key_that_cannot_be_right_is_refused_without_showing_it(value, said):
    with pytest.raises(errors.ConfigError, match=said) as caught:
        read_key("one", FROM_ENV, {"THE_KEY": value})
    assert KEY not in str(caught.value)
    assert str(caught.value).startswith("providers.one.api_key_env: the key ")


@given(st.text(min_size=1, max_size=40))
def test_what_is_wrong_with_a_key_never_repeats_it(value):
    problem = key_problem(value)
    if problem is None:
        assert all("!" <= char <= "~" for char in value)
    elif len(value) > 12:
        assert value not in problem


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(errors.ConfigError, match="environment variable THE_KEY is not set"):
        read_key("one", FROM_ENV, NOTHING)


def test_a_check_warns_of_a_ledger_whose_directory_is_not_here(tmp_path):
    file = tmp_path / "gone" / "calls.db"
    found = check(tables(fastroute={"ledger": str(file)}), environ={})
    assert found.ok
    assert any(warning.startswith("fastroute.ledger: ") for warning in found.warnings)
    file.parent.mkdir()
    found = check(tables(fastroute={"ledger": str(file)}), environ={})
    assert not any(warning.startswith("fastroute.ledger: ") for warning in found.warnings)


def test_all_missing_keys_come_at_once_and_are_warnings_of_a_check():
    source = tables(
        providers={
            name: {"base_url": "https://x.example.com", "api_key_env": name.upper()}
            for name in ("one", "two")
        }
    )
    found = check(source, environ=NOTHING)
    assert found.ok
    assert found.config is not None
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "providers.one.api_key_env",
        "providers.two.api_key_env",
    ]
    with pytest.raises(errors.ConfigError) as caught:
        read_keys(found.config, NOTHING)
    assert caught.value.problems == found.warnings
    assert set(read_keys(found.config, {"ONE": "a", "TWO": "b"})) == {"one", "two"}


def from_file(path: Path) -> ProviderConfig:
    return ProviderConfig("https://x.example.com", api_key_file=str(path))


def test_a_key_is_read_from_a_file(tmp_path, caplog):
    path = tmp_path / "key"
    path.write_text(KEY + "\n", encoding="utf-8")
    path.chmod(0o600)
    found = read_key("one", from_file(path), NOTHING)
    assert found is not None
    assert found.reveal() == KEY
    assert "every user" not in caplog.text
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "fastroute"):
        read_key("one", from_file(path), NOTHING)
    assert "every user of this machine may read" in caplog.text


def test_a_key_file_that_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        read_key("one", from_file(tmp_path / "missing"), NOTHING)
    with pytest.raises(errors.ConfigError, match="no regular file"):
        read_key("one", from_file(tmp_path), NOTHING)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 70_000)
    with pytest.raises(errors.ConfigError, match="too large"):
        read_key("one", from_file(path), NOTHING)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match="not text"):
        read_key("one", from_file(path), NOTHING)


@pytest.mark.parametrize(
    "changes",
    [
        {"providers": provider(api_key=KEY)},
        {"providers": provider(key=KEY)},
        {"providers": provider(**{KEY: 1})},
        {"models": {KEY: {"qality": 1}}},
        {"tiers": {"t": [KEY]}},
        {"aliases": {"a": KEY}},
        {"endpoints": [{"provider": KEY, "model": "m"}]},
        {"providers": provider(token=KEY)},
        {"providers": provider(api_key_env=KEY)},
        {"providers": provider(headers={"Authorization": f"Bearer {KEY}"})},
        {"providers": provider(headers={"x-api-key": KEY})},
        {"providers": provider(base_url=f"https://{KEY}@one.example.com")},
        {"providers": provider(base_url=f"https://one.example.com?key={KEY}")},
        {"providers": provider(format=KEY)},
        {"providers": provider(rpm=KEY)},
        {"providers": provider(proxy=KEY)},
        {"fastroute": {"api_key": KEY}},
        {"fastroute": {"timeout": KEY}},
        {"fastroute": {"default_model": KEY}},
        {"policy": {"strategy": KEY}},
        {"api_key": KEY},
    ],
)
def test_a_literal_key_is_refused_and_never_shown(changes):
    found = problems_of(**changes)
    assert found
    assert all(KEY not in problem for problem in found)


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.3-70B-Instruct", "anthropic/claude-sonnet-4.5-20250929"]
)
def test_the_long_name_of_a_model_is_shown(name):
    assert name in only_problem(tiers={"t": [name]})


def test_a_literal_key_is_told_where_to_go():
    assert "api_key_env" in only_problem(providers=provider(api_key=KEY))


def test_neither_headers_nor_proxy_show_in_a_config():
    source = tables(
        providers=provider(headers={"X-Team": "hush"}, proxy="http://me:hush@proxy.example.com:1")
    )
    config = load(source, environ=NOTHING)
    assert config.providers["one"].headers == {"X-Team": "hush"}
    assert "hush" not in repr(config)


def test_sslkeylogfile_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "fastroute"):
        load(tables(), environ={"SSLKEYLOGFILE": "/tmp/keys"})
    assert sum("SSLKEYLOGFILE" in record.message for record in caplog.records) == 1


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
    assert "ANTHROPIC_API_KEY: is set, but the anthropic format is not spoken here" in caplog.text
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


def test_cattrs_is_not_imported_before_a_table_is_read():
    code = "import sys, fastroute.config; sys.exit('cattrs' in sys.modules or 'tomllib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
SECTIONS: dict[str, list[str]] = {
    "[fastroute]": list(SETTINGS),
    "[cache]": [field.name for field in attrs.fields(CacheConfig)],
    "[providers.NAME]": [field.name for field in attrs.fields(ProviderConfig)],
    "[[endpoints]]": [field.name for field in attrs.fields(EndpointConfig)],
    '[models."NAME"]': [f.name for f in attrs.fields(ModelOverride) if f.name != "providers"],
    "[policy]": [f.name for f in attrs.fields(Policy) if f.name not in ("breaker", "classes")],
    "[policy.breaker]": [field.name for field in attrs.fields(BreakerConfig)],
    "[[budgets]]": [field.name for field in attrs.fields(BudgetConfig)],
}


def section(heading: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"## `{heading}`\n")
    assert found, heading
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_every_key_and_no_other(heading):
    rows = re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)
    assert rows == SECTIONS[heading]


def defaults() -> list[tuple[str, str, Any]]:
    found = []
    classes = {
        "[fastroute]": Config,
        "[cache]": CacheConfig,
        "[providers.NAME]": ProviderConfig,
        "[policy]": Policy,
        "[policy.breaker]": BreakerConfig,
        "[[budgets]]": BudgetConfig,
    }
    for heading, kind in classes.items():
        for field in attrs.fields(kind):
            if field.name in SECTIONS[heading] and isinstance(field.default, (bool, int, float, str)):
                found.append((heading, field.name, field.default))
    return found


@pytest.mark.parametrize(("heading", "key", "default"), defaults())
def test_the_page_states_the_real_default(heading, key, default):
    row = re.search(rf"^\| `{key}` \|[^|]*\|([^|]*)\|", section(heading), re.MULTILINE)
    assert row is not None
    written = row.group(1).strip().strip("`")
    if isinstance(default, bool):
        assert written == str(default).lower()
    elif isinstance(default, str):
        assert written == f'"{default}"'
    else:
        assert float(written.replace(",", "").replace("_", "")) == default


def test_the_example_on_the_page_is_a_configuration(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    path = tmp_path / "fastroute.toml"
    path.write_text(example.group(1), encoding="utf-8")
    assert check(path, environ=NOTHING).problems == ()
