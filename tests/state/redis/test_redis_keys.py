"""Callers' limits and budgets in gateways on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gateway.gateways import Served, admit, configuration
from loopback import core_of
from needs import need
from redis_server import RedisServer, admitted

from fastroute import BudgetExceeded
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.gateway.limits import KeyLimits, LimitReached
from fastroute.state.redis import Shared
from fastroute.testing import Provider

need("flask")
Serve = Callable[[Caller], list[Served]]


@pytest.fixture
def serve(redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Two gateways, as on two machines, with one file of keys; the tests beat for them."""
    from werkzeug.test import Client

    from fastroute.gateway.app import create_app

    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    with ExitStack() as stack:

        def begin(caller: Caller) -> list[Served]:
            provider = stack.enter_context(Provider())
            keys = KeyFile(tmp_path / "keys.db")
            token, admin = keys.create(caller), keys.create(Caller("boss", admin=True))
            found = []
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
                state = {"state": f"unix://{redis.socket}?local=memory&timeout=5"}
                app = create_app(
                    configuration(provider.base_url, tmp_path / name, fastroute=state), keys=keys.path
                )
                stack.callback(app.close)
                found.append(Served(app, Client(app), provider, keys, token, admin))
            return found

        yield begin


def shared_of(served: Served) -> Shared:
    shared = served.app.client.runtime.shared
    assert shared is not None
    return shared


def test_a_callers_requests_are_counted_on_all_machines_together(serve: Serve) -> None:
    gateways = serve(Caller("web", rpm=60))  # ten at once
    statuses = [gateways[number % 2].post().status_code for number in range(24)]
    assert statuses.count(200) == 10
    refused = gateways[0].post()
    assert refused.status_code == 429
    assert float(refused.headers["Retry-After"]) >= 1


def test_a_callers_tokens_are_counted_on_all_machines_together_and_put_right(serve: Serve) -> None:
    first, second = (served.app for served in serve(Caller("web", tpm=1000)))
    caller = Caller("web", tpm=1000)
    permits = [admit(app.limits, caller, 300) for app in (first, second, first)]
    with pytest.raises(LimitReached):
        admit(second.limits, caller, 300)
    permits[0].settle(10)
    for app in (first, first, second):  # what nobody takes is given back, and heard of
        shared = app.client.runtime.shared
        assert shared is not None
        shared.beat()
    admit(second.limits, caller, 300)


def test_the_usual_call_of_a_caller_asks_nobody(redis: RedisServer) -> None:
    import fastroute

    with fastroute.Client(redis.config(timeout=5.0)) as client, redis.connect() as connection:
        limits = KeyLimits(client.runtime.generation.state.segment, client.runtime.shared)
        caller = Caller("web", rpm=60_000, tpm=60_000_000)
        admit(limits, caller, 100)
        before = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        for _ in range(300):
            admit(limits, caller, 100).settle(90)
        assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 6


def test_while_redis_is_away_each_machine_has_its_part(serve: Serve, redis: RedisServer) -> None:
    gateways = serve(Caller("web", rpm=60))
    for _ in range(2):
        for served in gateways:
            shared_of(served).beat()
    redis.kill()
    statuses = [[served.post().status_code for _ in range(8)] for served in gateways]
    assert [codes.count(200) for codes in statuses] == [5, 5]
    assert {code for codes in statuses for code in codes} == {200, 429}


def test_a_callers_budget_is_spent_on_all_machines_together(serve: Serve) -> None:
    gateways = serve(Caller("web", budgets={"day": 0.001}))
    budgets = [served.app.budgets.of(Caller("web", budgets={"day": 0.001})) for served in gateways]
    spent = 0
    for number in range(40):
        of_one = budgets[number % 2]
        assert of_one is not None
        try:
            of_one.reserve(50_000, {"key": "web"}, 60).settle(50_000)
        except BudgetExceeded:
            continue
        spent += 50_000
    assert spent == 1_000_000


def test_a_limit_that_is_changed_holds_at_once(redis: RedisServer) -> None:
    import fastroute

    with fastroute.Client(redis.config(timeout=5.0)) as client:
        limits = KeyLimits(client.runtime.generation.state.segment, client.runtime.shared)
        for rpm in (60, 0):
            let_in = 0
            for _ in range(20):
                try:
                    admit(limits, Caller("web", rpm=rpm), 0)
                except LimitReached:
                    continue
                let_in += 1
            assert let_in == rpm // 6  # at once


def test_callers_take_nothing_of_the_endpoints(redis: RedisServer) -> None:
    import fastroute

    with fastroute.Client(redis.config(timeout=5.0, limits={"rpm": 6, "burst": 20})) as client:
        limits = KeyLimits(client.runtime.generation.state.segment, client.runtime.shared)
        for _ in range(10):
            admit(limits, Caller("a/m", rpm=600), 0)
        core = core_of(client)
        assert admitted(core, 100) == 20
