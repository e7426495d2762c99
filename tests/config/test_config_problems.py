"""The configuration: every problem at once, each with its path."""

from __future__ import annotations

import itertools

import pytest
from config_tables import NOTHING, only_problem, problems_of, provider
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastroute import errors
from fastroute.config import (
    Policy,
    check,
    load,
)
from fastroute.config.tables import TABLES


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
        ({"policy": {"health_check": {"kind": "ping"}}}, "policy.health_check.kind: 'ping'"),
        ({"policy": {"health_check": {"interval": 0}}}, "policy.health_check.interval: 0 is out of range"),
        (
            {"policy": {"health_check": {"timeout": 31}}},
            "policy.health_check.timeout: is longer than interval",
        ),
        ({"policy": {"hedging": {"percentile": 95}}}, "policy.hedging.percentile: 95 is out of range"),
        (
            {"policy": {"max_attempts": 1, "hedging": {"enabled": True}}},
            "policy.hedging.enabled: a hedge is a second attempt, policy.max_attempts must be 2 or more",
        ),
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
