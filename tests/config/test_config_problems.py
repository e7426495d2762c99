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
        (
            {"fastroute": {"timeout": "5"}},
            "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not '5'",
        ),
        (
            {"fastroute": {"timeout": True}},
            "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not true",
        ),
        (
            {"fastroute": {"timeout": 0}},
            "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not 0",
        ),
        (
            {"fastroute": {"timeout": float("nan")}},
            "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not nan",
        ),
        (
            {"fastroute": {"timeout": float("inf")}},
            "fastroute.timeout: must be a number above 0 and at most 86,400 (seconds), not inf",
        ),
        ({"fastroute": {"timeout": None}}, "fastroute.timeout: must not be None"),
        ({"fastroute": {"timeout": 1}}, "fastroute.connect_timeout: must be at most timeout (1 s), not 5"),
        (
            {"fastroute": {"max_response_bytes": 1.0}},
            "fastroute.max_response_bytes: must be an integer from 1",
        ),
        ({"fastroute": {"state": "shared"}}, "fastroute.state: unknown state 'shared'; use \"memory\""),
        ({"fastroute": {"state": "run/state"}}, "fastroute.state: unknown state 'run/state'"),
        ({"fastroute": {"state": "/run/app/"}}, "fastroute.state: unknown state '/run/app/'"),
        ({"fastroute": {"state": "machine:"}}, "fastroute.state: unknown state 'machine:'"),
        ({"fastroute": {"state": "machine:../x"}}, "fastroute.state: unknown state 'machine:../x'"),
        ({"fastroute": {"ledger": "mysql://x"}}, "fastroute.ledger: unknown kind of address; use a file"),
        (
            {"fastroute": {"ledger": "postgresql://u:p@h/db"}},
            "fastroute.ledger: contains a password; set PGPASSWORD",
        ),
        (
            {"fastroute": {"ledger": "postgres://h/db?a=1&password=p"}},
            "fastroute.ledger: contains a password",
        ),
        (
            {"fastroute": {"ledger_wal": "yes"}},
            "fastroute.ledger_wal: unknown ledger_wal 'yes'; use one of auto, on, off",
        ),
        (
            {"fastroute": {"defaultmodel": "x"}},
            "fastroute.defaultmodel: unknown key (did you mean default_model?); use one",
        ),
        (
            {"fastroute": {"policy": {}}},
            "fastroute.policy: is not a key of [fastroute]; write it as [policy]",
        ),
        ({"fastroute": 5}, "fastroute: must be a table, not 5"),
        ({"timeout": 5}, "timeout: is not a table; move it into [fastroute]"),
        ({"polcy": {}}, "polcy: unknown key (did you mean policy?); use one of fastroute, cache"),
        (
            {"classifiers": {"x": {"levels": [], "otherwise": {"level": "a"}}}},
            "classifiers.x.levels: must not be empty",
        ),
        (
            {"cache": {"ttl": -1}},
            "cache.ttl: must be a number above 0 and at most 31,536,000 (seconds), not -1",
        ),
        ({"cache": {"enabled": 1}}, "cache.enabled: must be true or false, not 1"),
        ({"cache": {"scope": "some"}}, 'cache.scope: must be "all" or a list of tag names, not'),
        (
            {"cache": {"max_bytes": 100}},
            "cache.max_entry_bytes: must be at most max_bytes (100), not 1,048,576",
        ),
        (
            {"policy": {"strategy": "fastest"}},
            "policy.strategy: unknown strategy 'fastest'; use one of latency, weighted",
        ),
        (
            {"policy": {"stratgy": "latency"}},
            "policy.stratgy: unknown key (did you mean strategy?); use one of",
        ),
        ({"policy": {"quality_floor": 1.5}}, "policy.quality_floor: must be a number from 0 to 1, not 1.5"),
        ({"policy": {"max_attempts": 0}}, "policy.max_attempts: must be an integer from 1 to 100, not 0"),
        (
            {"policy": {"max_cost": -0.5}},
            "policy.max_cost: must be a number from 0 to 1,000,000 (USD), not -0.5",
        ),
        ({"policy": {"backoff_base": 9}}, "policy.backoff_base: must be at most backoff_cap"),
        (
            {"policy": {"breaker": {"rate": 0}}},
            "policy.breaker.rate: must be a number above 0 and at most 1, not 0",
        ),
        ({"policy": {"breaker": {"open": 301}}}, "policy.breaker.open: must be at most max_open"),
        ({"policy": {"breaker": 5}}, "policy.breaker: must be a table, not 5"),
        (
            {"policy": {"health_check": {"kind": "ping"}}},
            "policy.health_check.kind: unknown kind 'ping'; use one of models, completion",
        ),
        (
            {"policy": {"health_check": {"interval": 0}}},
            "policy.health_check.interval: must be a number from 0.1 to 86,400",
        ),
        (
            {"policy": {"health_check": {"timeout": 31}}},
            "policy.health_check.timeout: must be at most interval",
        ),
        (
            {"policy": {"hedging": {"percentile": 95}}},
            "policy.hedging.percentile: must be a number from 0.5 to 0.999, not 95",
        ),
        (
            {"policy": {"max_attempts": 1, "hedging": {"enabled": True}}},
            "policy.hedging.enabled: a hedge is a second attempt; set policy.max_attempts to 2 or more",
        ),
        (
            {"policy": {"classes": {"trivail": "standard"}}},
            "policy.classes.trivail: unknown level 'trivail' (did you mean trivial?)",
        ),
        ({"policy": {"classes": {"trivial": "cheap"}}}, "policy.classes.trivial: unknown tier 'cheap'"),
        ({"policy": []}, "policy: must be a table, not a list"),
        (
            {"providers": provider(rpm=-1)},
            "providers.one.rpm: must be an integer from 0 to 1,000,000,000, not -1",
        ),
        (
            {"providers": provider(rpm=True)},
            "providers.one.rpm: must be an integer from 0 to 1,000,000,000, not true",
        ),
        ({"providers": provider(burst=5)}, "providers.one.burst: has no effect without rpm; set rpm too"),
        (
            {"providers": provider(token_burst=5)},
            "providers.one.token_burst: has no effect without tpm; set tpm too",
        ),
        (
            {"providers": provider(max_in_flight=5000)},
            "providers.one.max_in_flight: must be an integer from 0 to 4096, not 5000",
        ),
        ({"providers": provider(verify=False)}, "providers.one.verify: unknown key"),
        (
            {"providers": provider(format="gemni")},
            "providers.one.format: unknown format 'gemni' (did you mean gemini?); use one of",
        ),
        ({"providers": provider(api_version="2024-10-21")}, "providers.one.api_version: has no effect"),
        (
            {"providers": provider(format="azure", api_version="v 1")},
            "providers.one.api_version: must be a version of Azure's API, like 2024-10-21, not 'v 1'",
        ),
        (
            {"providers": provider(format="opneai")},
            "providers.one.format: unknown format 'opneai' (did you mean openai?)",
        ),
        (
            {"providers": provider(timeout=601)},
            "providers.one.timeout: must be at most fastroute.timeout (600 s), not 601",
        ),
        (
            {"providers": provider(timeout=1)},
            "providers.one.connect_timeout: must be at most timeout (1 s), not 5",
        ),
        ({"providers": provider(headers={"X Y": "z"})}, 'providers.one.headers."X Y": invalid header name'),
        (
            {"providers": provider(headers={"X": "a\r\nb"})},
            "providers.one.headers.X: must be a string of printable ASCII",
        ),
        (
            {"providers": provider(headers={"Host": "b"})},
            "providers.one.headers.Host: fastroute sets this header itself",
        ),
        ({"providers": provider(proxy="socks://x")}, "providers.one.proxy: must be the URL of a proxy"),
        (
            {"providers": provider(api_key_env="A", api_key_file="b")},
            "providers.one.api_key_file: api_key_env is set too",
        ),
        ({"aliases": {"a": "b", "b": "a"}}, "aliases.a: is circular (a → b → a); end it at a model"),
        (
            {"aliases": {"a": "gpt-4.l"}},
            "aliases.a: unknown model 'gpt-4.l' (did you mean gpt-4.1?); use a known model",
        ),
        (
            {"aliases": {"my-llama": "gpt-4.1"}},
            "aliases.my-llama: is the name of a model that has an endpoint",
        ),
        ({"aliases": {"auto": "gpt-4.1"}}, "aliases.auto: auto is reserved"),
        ({"aliases": {"a": 5}}, "aliases.a: must be a string, not 5"),
        (
            {"tiers": {"t": ["gpt-4.l"]}},
            "tiers.t: unknown model 'gpt-4.l' (did you mean gpt-4.1?); use a model that has",
        ),
        ({"tiers": {"t": ["gpt-5"]}}, "tiers.t: no endpoint serves 'gpt-5'"),
        ({"tiers": {"t": ["gpt-4"]}}, "tiers.t: 'gpt-4' is an alias; use the model's own name gpt-4.1"),
        ({"tiers": {"t": []}}, "tiers.t: is empty"),
        ({"tiers": {"t": "gpt-4.1"}}, "tiers.t: must be a list, not 'gpt-4.1'"),
        ({"tiers": {"my-llama": ["gpt-4.1"]}}, "tiers.my-llama: is the name of a model or alias too"),
        ({"tiers": {"t": ["gpt-4.1", "gpt-4.1"]}}, "tiers.t: must not have an entry twice"),
        (
            {"models": {"gpt-4.1": {"input_price": "1"}}},
            'models."gpt-4.1".input_price: must be a number from 0 to 100,000',
        ),
        ({"models": {"gpt-4.1": {"providers": {}}}}, 'models."gpt-4.1".providers: unknown key'),
        (
            {"models": {"my-lama": {"quality": 1}}},
            "models.my-lama: no endpoint serves this model (did you mean my-llama?)",
        ),
        ({"models": {"my-llama": {"fallbacks": ["my-llama"]}}}, "models.my-llama.fallbacks: names the model"),
        (
            {"models": {"my-llama": {"fallbacks": ["gpt-9"]}}},
            "models.my-llama.fallbacks: unknown model 'gpt-9'",
        ),
        ({"models": {"my-llama": {"fallbacks": ["gpt-5"]}}}, "models.my-llama.fallbacks: no endpoint serves"),
        (
            {"models": {"my-llama": {"fallbacks": ["gpt-4.1"]}, "gpt-4.1": {"fallbacks": ["my-llama"]}}},
            "models.my-llama.fallbacks: is circular (my-llama → gpt-4.1 → my-llama)",
        ),
        ({"fastroute": {"default_model": "gpt-5"}}, "fastroute.default_model: no endpoint serves 'gpt-5'"),
        ({"endpoints": []}, "endpoints: none are defined"),
        ({"endpoints": {"a": 1}}, "endpoints: must be a list of tables, not a table"),
        ({"endpoints": [None]}, "endpoints[0]: must be a table, not None"),
        ({"endpoints": [{"provider": "one"}]}, "endpoints[0].model: is missing"),
        (
            {"endpoints": [{"provider": "two", "model": "m"}]},
            "endpoints[0].provider: unknown provider 'two'; use one of one",
        ),
        ({"endpoints": [{"provider": "one", "model": "a b"}]}, "endpoints[0].model: invalid name 'a b'"),
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
    assert "is circular" in only_problem(models=models, endpoints=endpoints)[:80]


def test_bool_and_text_are_refused_in_values_made_in_python_too():
    with pytest.raises(ValueError, match=r"^max_attempts: must be an integer from 1 to 100, not true$"):
        Policy(max_attempts=True)
    with pytest.raises(ValueError, match=r"^quality_floor: must be a number from 0 to 1, not '0.5'$"):
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
