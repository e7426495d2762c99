"""Health checks of many processes, and the thread that makes them."""

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

import pytest
from health_looks import INTERVAL, SECOND, Looks, Served, Start, checking, checks_of, lists
from loopback import MODEL, nothing_left
from needs import need

from fastroute import Client, errors
from fastroute.testing import Fault, Provider

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
        "breaker": {"failures": 3, "open": 600.0, "max_open": 600.0},
    }
    loop = start(2, policy=policy)
    loop.provider("a").script(Fault.status(500), repeat=True)
    for _ in range(3):
        loop.ask()
    loop.provider("a").clear_script()
    loop.provider("a").wait_until(lambda _: loop.endpoint()["state"] == "closed")
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"a/{MODEL}"
    callers = [attempt for attempt in loop.attempts if not attempt.tags]
    assert [attempt.outcome for attempt in callers if attempt.endpoint.startswith("a/")] == ["failed"] * 3 + [
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
    assert loop.client.runtime.health is None
    loop.ask()


def test_a_client_that_is_dropped_takes_its_thread_along(served: Served) -> None:
    with nothing_left():
        client = served()
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
        transports = list(client.runtime.generation.transports.values())
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
checks, turns, end = 0, 0, time.monotonic() + 20
while (checks < 2 or turns < 200) and time.monotonic() < end:
    gevent.sleep(0.001)  # were it held up until the next check each time, it would have 100 turns at most
    turns += 1
    checks = client.stats()["health_checks"]["a/m"]["checks"]
print(checks >= 2, turns >= 200)
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
    assert ended.stdout.splitlines() == ["True True", "[]"]
