"""The configuration's settings: each has an effect, and what is accepted makes a client, whatever its values.

Here are those that no other file's tests would miss.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import attrs
import pytest

import fastroute
from fastroute import _core, config
from fastroute.config.policy import HealthCheckConfig
from fastroute.config.tables import TABLES as INNER
from fastroute.state.endpoints import State
from fastroute.testing import Provider

LEAST: dict[str, Any] = {
    "fastroute": {"ledger": ""},
    "providers": {"a": {"base_url": "http://127.0.0.1:9/v1"}},
    "endpoints": [{"provider": "a", "model": "m"}],
}
Path = tuple[str | int, ...]


def tables_with(path: Path, **settings: Any) -> dict[str, Any]:
    """The least configuration with settings in the table at the path."""
    tables = copy.deepcopy(LEAST)
    inner: Any = tables
    for name in path:
        inner = inner[name] if isinstance(name, int) else inner.setdefault(name, {})
    inner.update(settings)
    return tables


# -------------------------------------------------------------------------------------------------- any value

TABLES: dict[Path, type] = {
    ("fastroute",): config.Config,
    ("cache",): config.CacheConfig,
    ("providers", "a"): config.ProviderConfig,
    ("policy",): config.Policy,
    ("policy", "breaker"): config.BreakerConfig,
    ("policy", "health_check"): HealthCheckConfig,
    ("policy", "hedging"): config.HedgingConfig,
    ("quality",): config.QualityConfig,
}
# Beginnings and ends of what numbers may be; each is tried where its check takes it.
VALUES: tuple[Any, ...] = (0, 1, 1e-9, 0.001, 0.01, 1.0, 3600, 86_400, 10**6, 10**9)


@pytest.mark.parametrize("path", TABLES, ids=str)
def test_whatever_is_accepted_makes_a_client(path: Path) -> None:
    made = 0
    for setting in attrs.fields(TABLES[path]):
        for value in VALUES:
            tables = tables_with(path, **{setting.name: value})
            if setting.name not in INNER and not config.check(tables, environ={}).problems:
                fastroute.Client(tables).close()
                made += 1
    assert made


# -------------------------------------------------------------------------------------------- limits, breaker


def lived(tables: dict[str, Any]) -> list[tuple[int, int, int, float]]:
    """What an endpoint of that configuration does in a life of good and bad times, the same for all."""
    made = config.load(tables, environ={})
    (endpoint,) = State(made, config.catalog_of(made)).endpoints
    core, chance, now = endpoint.core, random.Random(1), 10**15
    seen = []
    for _ in range(15):
        for failing in (0.0, 1.0, 0.4, 0.05):
            for _ in range(60):
                now += chance.choice((10**7, 10**8, 10**9, 3 * 10**9))
                ticket = core.admit(500, now)
                seen.append((min(ticket, 0), core.state(now), core.reopens_in(now), core.load(now)))
                if ticket < 0:
                    continue
                now += 10**8
                failed = chance.random() < failing
                if core.state(now) != _core.HALF_OPEN or chance.random() < 0.5:  # else its worker was killed
                    core.finish(ticket, _core.FAILURE if failed else _core.OK, 0.1, 0, now)
    return seen


# So many that the rate decides, which the rules of the window are about.
BREAKER = {"failures": 50}
RULES: dict[str, float] = {
    "failures": 3,
    "rate": 0.3,
    "min_calls": 10,
    "window": 5.0,
    "open": 1.0,
    "max_open": 20.0,
    "reset": 600.0,
    "probe_lease": 5.0,
    "probes_to_close": 4,
    "ramp": 40.0,
}


@pytest.mark.parametrize("rule", [field.name for field in attrs.fields(config.BreakerConfig)])
def test_every_rule_of_the_breaker_changes_what_it_does(rule: str) -> None:
    path = ("policy", "breaker")
    before, after = (lived(tables_with(path, **{**BREAKER, **more})) for more in ({}, {rule: RULES[rule]}))
    assert before != after


@pytest.mark.parametrize("path", [("providers", "a"), ("endpoints", 0)], ids=str)
@pytest.mark.parametrize(
    "limit",
    [
        {"rpm": 60},
        {"rpm": 60, "burst": 1},
        {"tpm": 20_000},
        {"tpm": 20_000, "token_burst": 500},
        {"max_in_flight": 3},
    ],
    ids=str,
)
def test_every_limit_of_an_endpoint_or_its_provider_changes_what_it_lets_in(
    path: Path, limit: dict[str, int]
) -> None:
    *others, (last, value) = limit.items()
    before = lived(tables_with(path, **dict(others)))
    assert before != lived(tables_with(path, **dict(others), **{last: value}))


# --------------------------------------------------------------------------------------------------- choosing

MODELS = {
    "small": {"input_price": 1.0, "output_price": 1.0, "quality": 0.5, "latency": 1.0},
    "large": {"input_price": 50.0, "output_price": 50.0, "quality": 0.9, "latency": 5.0},
}


def planned(text: str = "Hello", model: str = "auto", **policy: Any) -> fastroute.Plan:
    tables = {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}},
        "endpoints": [{"provider": "p", "model": name} for name in MODELS],
        "models": MODELS,
        "tiers": {"one": ["small"], "both": list(MODELS), "other": ["large"]},
        "policy": {"classifier": "task-tier", "cascade": False, **policy},
    }
    with fastroute.Client(tables) as client:
        return client.plan(model=model, messages=[{"role": "user", "content": text}], max_tokens=1000)


def test_below_the_threshold_of_confidence_the_standard_tier_is_used() -> None:
    policy = {"classes": {"structured": "other", "standard": "both"}}
    assert planned("Return JSON.", **policy, confidence_threshold=0.85).tier == "other"
    assert planned("Return JSON.", **policy, confidence_threshold=0.86).tier == "both"


@pytest.mark.parametrize(
    ("wish", "kept"),
    [
        ({}, ["small", "large"]),
        ({"quality_floor": 0.8}, ["large"]),
        ({"max_latency": 2.0}, ["small"]),
        ({"price_ceiling": 0.002}, ["small"]),
        ({"max_cost": 0.002}, ["small"]),
    ],
    ids=str,
)
def test_a_policys_wish_leaves_models_out(wish: dict[str, float], kept: list[str]) -> None:
    plan = planned(model="both", **wish)
    assert {candidate.model for candidate in plan.candidates if candidate.rank is not None} == set(kept)


def test_the_time_an_attempt_may_take_grows_with_the_tokens_asked_for() -> None:
    for settings, seconds in (
        ({}, 40.0),
        ({"timeout_base": 7.0}, 17.0),
        ({"timeout_per_1k": 3.0}, 33.0),
    ):
        with fastroute.Client(tables_with(("policy",), **settings)) as client:
            plan = client.plan(model="m", messages=[{"role": "user", "content": "Hi"}], max_tokens=1000)
            assert plan.estimate.timeout == seconds, settings


# ---------------------------------------------------------------------------------------------------- network


def asked(provider: Provider, texts: str, *, tagged: bool = False, **cache: Any) -> int:
    """How often the provider is asked when a client with that cache is given these one-letter questions."""
    tables = tables_with(("cache",), **cache)
    tables["providers"]["a"]["base_url"] = provider.base_url
    provider.clear_requests()
    with fastroute.Client(tables) as client:
        for place, text in enumerate(texts):
            client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": text}],
                route={"tags": {"user": str(place)} if tagged else {}},
            )
    return len(provider.requests)


def test_every_setting_of_the_cache_has_an_effect() -> None:
    with Provider(models=["m"], answer="hello") as provider:
        assert asked(provider, "aba") == 2
        assert asked(provider, "aba", enabled=False) == 3
        assert asked(provider, "aba", ttl=1e-9) == 3
        assert asked(provider, "aba", max_entries=1) == 3
        assert asked(provider, "aba", max_bytes=600, max_entry_bytes=600) == 3  # one answer fits, not two
        assert asked(provider, "aba", max_bytes=6000, max_entry_bytes=600) == 2
        assert asked(provider, "aba", max_bytes=6000, max_entry_bytes=6) == 3
        assert asked(provider, "aba", tagged=True) == 3
        assert asked(provider, "aba", tagged=True, scope=["tenant"]) == 2


def test_a_provider_behind_a_proxy_is_asked_through_it() -> None:
    with Provider() as proxy:
        tables = tables_with(
            ("providers", "a"),
            base_url="http://models.example/v1",
            allow_http=True,
            proxy=proxy.base_url.removesuffix("/v1"),
        )
        with fastroute.Client(tables) as client, pytest.raises(fastroute.NotFoundError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        (seen,) = proxy.requests
        assert (seen.path, seen.headers["host"]) == (
            "http://models.example/v1/chat/completions",
            "models.example",
        )


def test_a_version_of_azures_api_is_named_in_every_address() -> None:
    with Provider(format="azure", models=["m"]) as provider:
        settings = {"base_url": f"{provider.url}/openai", "format": "azure", "api_version": "2024-10-21"}
        with fastroute.Client(tables_with(("providers", "a"), **settings)) as client:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert provider.requests[0].path == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
