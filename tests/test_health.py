"""Health checks: what needs one gets one, once an interval whoever asks, and no caller is any the worse.

Most tests make the looks themselves and say what time it is; the interval is so long that the client's own
thread makes none meanwhile.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loopback import MODEL, Loopback, nothing_left
from needs import need
from redis_server import RedisServer

from fastroute import Client, Completion, Stream, _core, errors, events
from fastroute.health import HealthChecks
from fastroute.providers import base
from fastroute.providers.openai import OpenAI
from fastroute.testing import Fault, Provider, Received
from fastroute.types import Attempt

Start = Callable[..., Loopback]
Served = Callable[..., Client]

INTERVAL = 1000.0
SECOND = 1_000_000_000


def checking(kind: str = "models", **keys: Any) -> dict[str, Any]:
    """The policy of a client with health checks."""
    keys = {"enabled": True, "kind": kind, "interval": INTERVAL, **keys}
    return {"health_check": keys}


def checks_of(client: Client) -> HealthChecks:
    checks = client._router.health
    assert checks is not None
    return checks


class Looks:
    """Looks at a client's endpoints, an interval later each time it is told."""

    def __init__(self, *clients: Client) -> None:
        self.clients = clients
        self.now = _core.clock()
        for client in clients:
            checks_of(client).look(self.now)  # nothing is known before the first one, so nothing is idle

    def later(self, intervals: float = 1.0) -> Looks:
        self.now += int(intervals * INTERVAL * SECOND)
        return self

    def look(self) -> None:
        for client in self.clients:
            checks_of(client).look(self.now)


def lists(provider: Provider) -> list[Received]:
    return [request for request in provider.requests if request.method == "GET"]


def posts(provider: Provider) -> list[Received]:
    return [request for request in provider.requests if request.method == "POST"]


def outcomes(loop: Loopback, name: str = "a") -> list[tuple[str, str | None]]:
    found = loop.of(events.HealthChecked)
    return [(event.outcome, event.error) for event in found if event.endpoint == f"{name}/{MODEL}"]


def broken(loop: Loopback) -> None:
    """Opens the breaker of ``a`` by failed calls, which ``b`` then serves."""
    loop.provider("a").script(Fault.status(500), repeat=True)
    for _ in range(5):
        loop.ask()
    assert loop.endpoint()["state"] == "open"
    loop.provider("a").clear_script()
    loop.provider("a").clear_requests()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


# ------------------------------------------------------------------------------------------- which, and when


def test_there_are_none_unless_they_are_wanted(start: Start) -> None:
    loop = start()
    loop.ask()
    assert loop.client._router.health is None
    assert loop.client.stats()["health_checks"] is None
    assert "fastroute-health" not in {thread.name for thread in threading.enumerate()}


def test_an_idle_endpoint_is_checked_once_an_interval(start: Start) -> None:
    loop = start(policy=checking())
    loop.ask()
    before = loop.endpoint()
    looks = Looks(loop.client)
    looks.look()
    assert lists(loop.provider()) == []
    looks.later(0.9).look()
    assert lists(loop.provider()) == []
    for done in range(1, 4):
        looks.later(1.05).look()
        assert len(lists(loop.provider())) == done
    looks.look()
    looks.later(0.9).look()
    assert len(lists(loop.provider())) == 3
    after = loop.endpoint()
    assert after["ewma_s"] <= before["ewma_s"]
    assert after["p50_s"] == before["p50_s"]
    assert after["succeeded"] == before["succeeded"] + 3
    assert len(posts(loop.provider())) == 1
    assert loop.client.stats()["health_checks"][f"a/{MODEL}"]["checks"] == 3
    assert outcomes(loop) == [("ok", None)] * 3


def test_an_endpoint_that_callers_use_is_not_checked(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client)
    for _ in range(3):
        loop.ask()
        looks.later(1.05).look()
    assert lists(loop.provider()) == []
    looks.later(1.05).look()
    assert len(lists(loop.provider())) == 1


@pytest.mark.parametrize(
    ("limits", "policy"),
    [
        ({"max_in_flight": 2}, {}),
        ({"rpm": 60, "burst": 2}, {}),
        ({"tpm": 6000, "token_burst": 6000}, {}),
        ({}, {"max_in_flight": 2}),
    ],
    ids=["permits", "requests", "tokens", "permits of all"],
)
def test_no_check_takes_what_a_caller_may_need(
    start: Start, limits: dict[str, int], policy: dict[str, int]
) -> None:
    loop = start(policy={**checking(), **policy}, providers={"a": limits})
    looks = Looks(loop.client)
    state = loop.client._router.snapshot.state
    core = state.gate or state.endpoints[0].core
    tokens = (4000, 0) if "burst" in limits else (4000,)
    tickets = [core.admit(count) for count in tokens]
    assert min(tickets) >= 0
    looks.later(2).look()
    assert lists(loop.provider()) == []
    for ticket, count in zip(tickets, tokens):
        core.undo(ticket, count)
    looks.look()
    assert len(lists(loop.provider())) == 1


def test_no_check_while_a_call_waits_in_line(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client).later(2)
    line = loop.client._router.line
    place = line.enter(1)
    looks.look()
    line.leave(place)
    assert lists(loop.provider()) == []
    looks.look()
    assert len(lists(loop.provider())) == 1


def test_a_blocked_endpoint_is_not_checked(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client).later(2)
    core = loop.client._router.snapshot.state.endpoints[0].core
    core.block(_core.clock() + 1000 * SECOND, 1)
    looks.look()
    assert lists(loop.provider()) == []
    core.unblock()
    looks.look()
    assert len(lists(loop.provider())) == 1


# ------------------------------------------------------------------------------------------- what comes of it


def test_a_check_by_answer_closes_a_breaker_before_any_caller_meets_the_endpoint(start: Start) -> None:
    loop = start(2, policy=checking("completion"), budgets=[{"name": "all", "limit": 10, "window": "total"}])
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert [request.json["max_tokens"] for request in posts(loop.provider())] == [1, 1]  # probes_to_close
    assert loop.endpoint()["state"] == "closed"
    looks.look()
    assert loop.provider().received == 7
    assert outcomes(loop) == [("ok", None)]
    assert loop.endpoint()["p50_s"] is None  # says nothing of how long callers' answers take
    failed = len([attempt for attempt in loop.attempts if attempt.outcome == "failed"])
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"a/{MODEL}"
    assert failed == 5 == len([attempt for attempt in loop.attempts if attempt.outcome == "failed"])
    # What a check spends is entered and charged.
    rows = [row for row in loop.client.ledger.entries(None) if row.tags.get("probe") == "health-check"]
    assert len(rows) == 2
    assert all(row.cost_nano for row in rows)
    spent = loop.client.stats()["budgets"][0].spent_nano
    assert spent == sum(attempt.cost_nano or 0 for attempt in loop.attempts)


def test_over_redis_a_check_by_answer_closes_a_breaker_too(start: Start, redis: RedisServer) -> None:
    policy = checking("completion")
    loop = start(2, policy=policy, fastroute={"state": f"unix://{redis.socket}"})
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert loop.endpoint()["state"] == "closed"
    assert len(posts(loop.provider())) == 2


def test_a_check_that_fails_opens_the_breaker_again(start: Start) -> None:
    loop = start(2, policy=checking("completion"))
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").script(Fault.status(503))
    looks.look()
    assert len(posts(loop.provider())) == 1
    assert loop.endpoint()["state"] == "open"
    assert outcomes(loop) == [("failed", "InternalServerError")]


def test_a_list_ends_the_opening_and_leaves_the_probe_to_a_call(start: Start) -> None:
    loop = start(2, policy=checking())
    looks = Looks(loop.client)
    broken(loop)
    looks.look()
    assert (len(lists(loop.provider())), len(posts(loop.provider()))) == (1, 0)
    assert loop.endpoint()["state"] == "half-open"
    reply = loop.ask()
    assert reply.route is not None
    assert (reply.route.endpoint, len(reply.route.attempts)) == (f"a/{MODEL}", 1)


def test_while_nobody_is_there_the_breaker_stays_open(start: Start) -> None:
    loop = start(2, policy=checking())
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").kill()
    looks.look()
    assert loop.endpoint()["state"] == "open"
    assert outcomes(loop) == [("failed", "APIConnectionError")]
    # Its time is up: the check takes the place of the probe, and no call is spent on it.
    core = loop.client._router.snapshot.state.endpoints[0].core
    assert core.hurry()
    looks.later().look()
    assert loop.endpoint()["state"] == "open"
    loop.provider("a").restart()


@pytest.mark.parametrize("kind", ["models", "completion"])
def test_an_endpoint_that_dies_while_idle_is_left_alone_before_a_caller_asks(start: Start, kind: str) -> None:
    loop = start(2, policy=checking(kind, max_tokens=3))
    looks = Looks(loop.client)
    loop.provider("a").kill()
    for _ in range(5):
        looks.later(1.05).look()
    assert loop.endpoint()["state"] == "open"
    assert len(loop.of(events.BreakerChanged)) == 1
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.endpoint for attempt in reply.route.attempts] == [f"b/{MODEL}"]
    loop.provider("a").restart()


@pytest.mark.parametrize(
    ("fault", "before", "after"),
    [
        (Fault.status(404), "unclear", "unclear"),
        (Fault.status(401), "unclear", "unclear"),
        (Fault.status(429), "unclear", "unclear"),
        (Fault.html(), "unclear", "failed"),
        (Fault.status(503), "unclear", "failed"),
        (Fault.reset(), "failed", "failed"),
        (Fault.black_hole(), "failed", "failed"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value,
)
def test_no_list_counts_against_an_endpoint_that_had_one(
    start: Start, fault: Fault, before: str, after: str
) -> None:
    loop = start(policy=checking(timeout=0.3))
    looks = Looks(loop.client)
    loop.provider().script(*[fault] * (2 if fault.name.startswith("reset") else 1))
    looks.later(1.05).look()
    loop.provider().clear_script()
    looks.later(1.05).look()
    loop.provider().script(*[fault] * (2 if fault.name.startswith("reset") else 1))
    looks.later(1.05).look()
    assert [outcome for outcome, _ in outcomes(loop)] == [before, "ok", after]
    figures = loop.endpoint()
    assert figures["failed"] == [before, after].count("failed")
    assert figures["blocked_s"] == 0


def test_an_answer_that_is_only_refused_counts_neither_way(start: Start) -> None:
    loop = start(2, policy=checking("completion"))
    looks = Looks(loop.client)
    broken(loop)
    loop.provider("a").script(Fault.status(400))
    looks.look()
    assert loop.endpoint()["state"] == "half-open"
    assert outcomes(loop) == [("unclear", "BadRequestError")]


def test_a_check_has_its_own_time_and_a_neighbour_does_not_wait_for_it(start: Start) -> None:
    loop = start(2, policy=checking("completion", timeout=0.4))
    looks = Looks(loop.client)
    loop.provider("a").script(Fault.black_hole())
    looks.later(1.05)
    looking = threading.Thread(target=looks.look)
    looking.start()
    loop.provider("a").wait_until(lambda known: known.in_flight == 1)
    loop.provider("b").wait_until(lambda known: known.received == 1)
    assert loop.provider("a").in_flight == 1
    looking.join()
    assert outcomes(loop) == [("failed", "APITimeoutError")]
    assert outcomes(loop, "b") == [("ok", None)]


def test_a_budget_that_is_used_up_leaves_the_check_out(start: Start) -> None:
    loop = start(policy=checking("completion"), budgets=[{"name": "all", "limit": 1e-9, "window": "total"}])
    Looks(loop.client).later(1.05).look()
    assert loop.provider().received == 0
    assert outcomes(loop) == []
    figures = loop.client.stats()["health_checks"][f"a/{MODEL}"]
    assert (figures["checks"], figures["skipped"]) == (0, 1)


@pytest.mark.parametrize("kind", ["models", "completion"])
@pytest.mark.parametrize("format", ["openai", "anthropic", "gemini", "azure"])
def test_every_format_can_be_checked(start: Start, format: str, kind: str) -> None:
    loop = start(format=format, policy=checking(kind))
    Looks(loop.client).later(1.05).look()
    assert outcomes(loop) == [("ok", None)]
    assert loop.provider().received == 1


@pytest.mark.parametrize(("kind", "count"), [("models", 0), ("completion", 1)])
def test_a_format_without_lists_is_checked_by_answer_or_not_at_all(
    start: Start, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    class Listless(OpenAI):
        name = "listless"

    monkeypatch.setitem(base._registered, "listless", Listless())
    loop = start({"a": Provider()}, format="listless", policy=checking(kind))
    Looks(loop.client).later(1.05).look()
    assert loop.provider().received == count
    figures = loop.client.stats()["health_checks"][f"a/{MODEL}"]
    assert (figures["checks"], figures["skipped"]) == (count, 1 - count)


# ------------------------------------------------------------------------------------------------ one of many


def at_once(count: int, work: Callable[[], object]) -> None:
    gate = threading.Barrier(count)

    def wait_and_work() -> None:
        gate.wait(20)
        work()

    threads = [threading.Thread(target=wait_and_work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def apart() -> Iterator[Provider]:
    """A provider in a process of its own, which no fork of a test's can take along."""
    with Provider([MODEL], process=True) as provider:
        yield provider


@pytest.fixture
def served(apart: Provider) -> Served:
    """Makes clients of it whose state is where it says."""
    apart.clear_requests()

    def make(state: str = "memory") -> Client:
        return Client(
            {
                "fastroute": {"ledger": "", "state": state},
                "cache": {"enabled": False},
                "providers": {"a": {"base_url": apart.base_url}},
                "endpoints": [{"provider": "a", "model": MODEL}],
                "policy": checking(),
            }
        )

    return make


def test_eight_threads_in_two_processes_make_one_check_an_interval(served: Served, apart: Provider) -> None:
    with served() as client:
        looks = Looks(client)
        moments = [looks.now + int(1.05 * place * INTERVAL * SECOND) for place in (1, 2, 3)]
        for done, moment in enumerate(moments, 1):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.close(write)
                    os.read(read, 1)  # both begin together
                    at_once(4, partial(checks_of(client).look, moment))
                    os._exit(0)
                finally:
                    os._exit(1)
            os.close(read)
            os.close(write)
            at_once(4, partial(checks_of(client).look, moment))
            assert os.waitpid(child, 0)[1] == 0
            assert len(apart.requests) == done
            # To who did not make it, the other's check looks like a call: the next interval begins with it.
            looks.now = moment
            looks.look()


def test_clients_that_share_a_file_make_one_check_an_interval(
    served: Served, apart: Provider, tmp_path: Path
) -> None:
    with served(str(tmp_path / "state")) as one, served(str(tmp_path / "state")) as two:
        looks = Looks(one, two)
        for done in range(1, 4):
            looks.later(1.05)
            at_once(2, looks.look)
            assert len(apart.requests) == done


def test_when_who_made_the_checks_is_gone_another_does(
    served: Served, apart: Provider, tmp_path: Path
) -> None:
    with served(str(tmp_path / "state")) as two:
        with served(str(tmp_path / "state")) as one:
            looks = Looks(one, two).later(1.05)
            looks.look()
            assert len(apart.requests) == 1
        looks.clients = (two,)
        looks.later(1.05).look()
        assert len(apart.requests) == 2


def test_a_forked_child_checks_by_a_thread_of_its_own(served: Served) -> None:
    with served() as client:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
        assert [thread.name for thread in threading.enumerate()].count("fastroute-health") == 1
        child = os.fork()
        if child == 0:
            try:
                names = [thread.name for thread in threading.enumerate()]
                assert names.count("fastroute-health") == 0
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
                names = [thread.name for thread in threading.enumerate()]
                assert names.count("fastroute-health") == 1
                client.close()
                names = [thread.name for thread in threading.enumerate()]
                assert names.count("fastroute-health") == 0
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


# ------------------------------------------------------------------------------------------- life of a thread


def test_by_itself_an_endpoint_that_is_back_is_found(start: Start) -> None:
    policy = {
        **checking("completion", interval=0.1, timeout=0.1),
        "breaker": {"open": 600.0, "max_open": 600.0},
    }
    loop = start(2, policy=policy)
    loop.provider("a").script(Fault.status(500), repeat=True)
    for _ in range(5):
        loop.ask()
    loop.provider("a").clear_script()
    loop.provider("a").wait_until(lambda _: loop.endpoint()["state"] == "closed")
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"a/{MODEL}"
    callers = [attempt for attempt in loop.attempts if not attempt.tags]
    assert [attempt.outcome for attempt in callers if attempt.endpoint.startswith("a/")] == ["failed"] * 5 + [
        "ok"
    ]


def test_a_reload_begins_and_ends_them(start: Start) -> None:
    loop = start()
    loop.ask()
    base = json.loads(json.dumps({"policy": checking(interval=0.1, timeout=0.1)}))
    tables = {
        "fastroute": {"ledger": loop.client.config.ledger},
        "cache": {"enabled": False},
        "providers": {"a": {"base_url": loop.provider().base_url}},
        "endpoints": [{"provider": "a", "model": MODEL}],
        "models": {MODEL: {"input_price": 1.0, "output_price": 2.0}},
    }
    loop.client.reload({**tables, **base})
    loop.ask()
    loop.provider().wait_until(lambda known: len(lists(known)) >= 2)
    loop.client.reload(tables)
    end = time.monotonic() + 5
    while "fastroute-health" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert loop.client._router.health is None
    loop.ask()


def test_a_client_that_is_dropped_takes_its_thread_along(served: Served) -> None:
    with nothing_left():
        client = served()
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
        transports = list(client._router.snapshot.transports.values())
        del client
        gc.collect()
        for transport in transports:
            transport.close()


def test_after_close_there_are_none(start: Start) -> None:
    loop = start(policy=checking())
    looks = Looks(loop.client)
    loop.client.close()
    with pytest.raises(errors.Error, match="closed"):
        looks.later().look()
    assert "fastroute-health" not in {thread.name for thread in threading.enumerate()}


GEVENT = """
from gevent import monkey; monkey.patch_all()
import json, sys, threading, time
import gevent
import fastroute

client = fastroute.Client(json.loads(sys.argv[1]))
client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
turns, end = 0, time.monotonic() + 20
while client.stats()["health_checks"]["a/m"]["checks"] < 2 and time.monotonic() < end:
    gevent.sleep(0.001)
    turns += 1
print(client.stats()["health_checks"]["a/m"]["checks"], turns > 50)
client.close()
print([thread.name for thread in threading.enumerate() if "health" in thread.name])
"""


def test_under_gevent_they_are_greenlets(tmp_path: Path) -> None:
    need("gevent")
    with Provider(["m"]) as provider:
        tables = {
            "fastroute": {"ledger": ""},
            "providers": {"a": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "a", "model": "m"}],
            "policy": checking(interval=0.2, timeout=0.2),
        }
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", GEVENT, json.dumps(tables)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["2 True", "[]"]


# --------------------------------------------------------------------------------------------- asked directly


def last(loop: Loopback) -> Attempt:
    return loop.attempts[-1]


def test_one_endpoint_is_asked_and_no_other(start: Start) -> None:
    loop = start(2)
    loop.provider("b").script(Fault.status(500))
    with pytest.raises(errors.InternalServerError) as caught:
        loop.client.probe(f"b/{MODEL}", max_tokens=5)
    assert [attempt.endpoint for attempt in caught.value.attempts] == [f"b/{MODEL}"]
    assert (loop.provider("a").received, loop.provider("b").received) == (0, 1)
    reply = loop.client.probe(f"b/{MODEL}", max_tokens=5)
    assert isinstance(reply, Completion)
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    assert last(loop).tags == {"probe": "call"}
    assert loop.endpoint("b")["p50_s"] is None
    assert last(loop).latency > 0


def test_a_stream_of_one_endpoint(start: Start) -> None:
    loop = start(2)
    stream = loop.client.probe(f"b/{MODEL}", stream=True, route={"tags": {"probe": "mine"}})
    assert isinstance(stream, Stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert last(loop).ttft is not None
    assert last(loop).tags == {"probe": "mine"}


def test_a_provider_that_knows_no_stream_options_is_asked_again_without(start: Start) -> None:
    loop = start()
    refusal = {"error": {"message": "Unknown parameter: 'stream_options'", "param": "stream_options"}}
    loop.provider().script(Fault.status(400, refusal))
    for _ in range(2):
        with loop.client.probe(f"a/{MODEL}", stream=True) as stream:
            assert list(stream)
    assert ["stream_options" in request.json for request in loop.provider().requests] == [True, False, False]


def test_a_name_that_no_endpoint_has(start: Start) -> None:
    loop = start(2)
    with pytest.raises(errors.NoEndpointError, match=f"did you mean a/{MODEL}"):
        loop.client.probe("a/test-modle")
    with pytest.raises(errors.NoEndpointError, match="there are a/"):
        loop.client.probe("xyz")
    with pytest.raises(errors.BadRequestError, match=r"route\.validate"):
        loop.client.probe(f"a/{MODEL}", route={"validate": "x"})


def test_an_endpoint_that_is_asked_waits_for_its_limit(start: Start) -> None:
    loop = start(2, providers={"a": {"rpm": 600, "burst": 1}})
    for _ in range(3):
        loop.client.probe(f"a/{MODEL}")
    assert (loop.provider("a").received, loop.provider("b").received) == (3, 0)
    assert last(loop).outcome == "ok"
    assert loop.client._router.line.waiting == 0


def test_an_endpoint_that_is_blocked_is_not_asked(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(401))
    with pytest.raises(errors.AuthenticationError):
        loop.client.probe(f"a/{MODEL}")
    with pytest.raises(errors.NoEndpointError, match="blocked") as caught:
        loop.client.probe(f"a/{MODEL}")
    assert caught.value.attempts == ()
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)
