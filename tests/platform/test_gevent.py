"""gevent: everything cooperates under its patches, and a greenlet may be killed wherever it waits.

Each test runs in a process of its own, since patches cannot be taken back; the providers are out here, in
real threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import need

from fastroute.testing import Fault, Provider, Received

PATCHED = "from gevent import monkey; monkey.patch_all()\n"
PRELUDE = """
import json, os, subprocess, sys, threading, time
import gevent
import fastroute

MESSAGES = [{"role": "user", "content": "Hello there"}]

def client_with(**tables):
    with open("tables.json") as file:
        base = json.load(file)
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table} if isinstance(table, dict) else table
    return fastroute.Client(base)

def ask(client, text="Hello there", **more):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)
"""
Run = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _gevent() -> None:
    need("gevent")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs code in a process of its own; returns what its last line of output says, as JSON."""

    def run(provider: Provider, code: str, before: str = PATCHED) -> Any:
        tables = {
            "fastroute": {"ledger": str(tmp_path / "ledger.db"), "timeout": 20.0},
            "providers": {"p": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "models": {"m": {"input_price": 1, "output_price": 1, "max_output_tokens": 100}},
            "budgets": [{"name": "all", "limit": 1000, "window": "total"}],
            "cache": {"enabled": False},
            "policy": {"strategy": "ordered", "queue_timeout": 10.0},
        }
        (tmp_path / "tables.json").write_text(json.dumps(tables))
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", before + PRELUDE + code],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run


# ------------------------------------------------------------------------------------------- cooperation

EVERYTHING = """
def streamed(client, text):
    with client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], stream=True
    ) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

with client_with(cache={"enabled": True}) as client:
    plain = [gevent.spawn(ask, client, f"call-{n}") for n in range(40)]
    streams = [gevent.spawn(streamed, client, f"stream-{n}") for n in range(20)]
    same = [gevent.spawn(ask, client, "the same") for _ in range(20)]
    words = [[{"role": "user", "content": f"later-{n}"}] for n in range(20)]
    futures = [client.submit(model="m", messages=messages) for messages in words]
    gevent.joinall([*plain, *streams, *same], raise_error=True)
    answers = [job.value.choices[0].message.content for job in plain] + [job.value for job in streams]
    answers += [future.result().choices[0].message.content for future in futures]
    kinds = (("call", 40), ("stream", 20), ("later", 20))
    expected = [f"{kind}-{n}" for kind, count in kinds for n in range(count)]
    client.ledger.flush()
    budget = client.stats()["budgets"][0]
    print(json.dumps({
        "right": answers == expected,
        "shared": {job.value.choices[0].message.content for job in same} == {"the same"},
        "cost": client.ledger.totals().cost_nano == budget.spent_nano > 0,
        "reserved": budget.reserved_nano,
        "in_flight": client.stats()["endpoints"]["p/m"]["in_flight"],
        "entries": client.ledger.totals().attempts,
    }))
"""


def test_calls_streams_submissions_and_equal_questions_cooperate(run: Run) -> None:
    with Provider(models=["m"]) as provider:
        # Nobody is answered before 61 have asked: were one to keep the others from it, none ever would be.
        waiting: list[Received] = []

        def hold(received: Received) -> None:
            waiting.append(received)
            if len(waiting) == 1:
                provider.pause()
            if len(waiting) == 61:
                provider.resume()

        provider.script(hold)
        found = run(provider, EVERYTHING)
        assert provider.received == 81
        assert provider.peak_in_flight > 50
    assert found == {
        "right": True,
        "shared": True,
        "cost": True,
        "reserved": 0,
        "in_flight": 0,
        "entries": 81,
    }


DEADLINES = """
def outcome(stream):
    try:
        answer = client.chat.completions.create(model="m", messages=MESSAGES, timeout=0.5, stream=stream)
        if stream:
            with answer:
                list(answer)
        return "answered"
    except fastroute.Error as error:
        return type(error).__name__

with client_with() as client:
    jobs = [gevent.spawn(outcome, stream) for stream in (False, True) for _ in range(5)]
    gevent.joinall(jobs, raise_error=True)
    stats = client.stats()
    print(json.dumps([[job.value for job in jobs], stats["endpoints"]["p/m"]["in_flight"]]))
"""


HEDGES = """
hedging = {"enabled": True, "min_delay": 0.0, "min_samples": 10, "max_share": 1.0}
policy = {"hedging": hedging, "strategy": "ordered"}
endpoints = [{"provider": "p", "model": "m", "name": name, "upstream": name} for name in ("slow", "quick")]
with client_with(policy=policy, endpoints=endpoints) as client:
    for endpoint in client.runtime.generation.state.endpoints:
        for _ in range(100):
            endpoint.whole.record(0.001)
            endpoint.core.deposit()
    def tick():
        for _ in range(6):
            gevent.sleep(0.005)
        ask(client, "ticked")
    jobs = [gevent.spawn(ask, client, f"call-{n}") for n in range(10)]
    gevent.joinall([*jobs, gevent.spawn(tick)], raise_error=True)
    with gevent.Timeout(20):
        while sum(at["in_flight"] for at in client.stats()["endpoints"].values()):
            gevent.sleep(0.005)  # the tick may have a hedge too, which was let in and is given back unsent
    print(json.dumps({
        "right": [job.value.choices[0].message.content for job in jobs] == [f"call-{n}" for n in range(10)],
        "outcomes": sorted({"/".join(sorted(a.outcome for a in job.value.route.attempts)) for job in jobs}),
        "winners": sorted({job.value.route.endpoint for job in jobs}),
    }))
"""


def test_a_hedge_wins_and_its_loser_is_cut(run: Run) -> None:
    asked: set[tuple[str, str]] = set()
    calls = {(model, f"call-{number}") for model in ("slow", "quick") for number in range(10)}

    def slow_or_quick(request: Received) -> Fault | None:
        model, text = request.json["model"], request.json["messages"][0]["content"]
        if not asked:
            provider.pause()
        asked.add((model, text))
        # Nothing is answered before each call and its hedge have been sent, in whatever order, and the other
        # greenlet has had its turns.
        if asked >= calls and any(other == "ticked" for _, other in asked):
            provider.resume()
        return Fault.slow(60.0) if model == "slow" and text != "ticked" else None

    with Provider() as provider:
        provider.script(slow_or_quick)
        assert run(provider, HEDGES) == {
            "right": True,
            "outcomes": ["hedge_lost/ok"],
            "winners": ["quick"],
        }


def test_the_deadline_cuts_answers_that_trickle(run: Run) -> None:
    """Each piece comes in time, so that only the timer thread, a greenlet here, can end them."""
    with Provider(models=["m"], answer=2000, tokens_per_second=20) as provider:
        outcomes, in_flight = run(provider, DEADLINES)
        provider.wait_until(lambda each: each.open_connections == 0)
    assert outcomes == ["DeadlineExceeded"] * 10
    assert in_flight == 0


WAITING = """
limits = {"max_in_flight": 2}
with open("tables.json") as file:
    limits["base_url"] = json.load(file)["providers"]["p"]["base_url"]
with client_with(providers={"p": limits}) as client:
    jobs = [gevent.spawn(ask, client, f"call-{n}") for n in range(12)]
    gevent.joinall(jobs, raise_error=True)
    waited = sum(job.value.route.waited > 0 for job in jobs)
    rate = client_with(providers={"p": {**limits, "rpm": 600, "burst": 1}})
    with rate:
        more = [gevent.spawn(ask, rate, f"more-{n}") for n in range(6)]
        gevent.joinall(more, raise_error=True)
        print(json.dumps([waited, sum(job.value.route.waited > 0 for job in more)]))
"""


def test_waiting_for_a_permit_and_for_a_rate(run: Run) -> None:
    with Provider(models=["m"], latency=0.02) as provider:
        for_permits, for_the_rate = run(provider, WAITING)
        assert provider.peak_in_flight == 2
    assert for_permits >= 8
    assert for_the_rate >= 4


RELOAD = """
with open("tables.json") as file:
    url = json.load(file)["providers"]["p"]["base_url"]

def write(name):
    with open("new.toml", "w") as file:
        file.write(
            f'[fastroute]\\nledger = ""\\nreload = "change"\\n[providers.p]\\nbase_url = "{url}"\\n'
            f'[[endpoints]]\\nprovider = "p"\\nmodel = "{name}"\\n'
        )
    os.replace("new.toml", "fastroute.toml")

write("first")
with fastroute.Client("fastroute.toml") as client:
    write("second")
    with gevent.Timeout(20):
        while client.config.endpoints[0].model != "second":
            gevent.sleep(0.01)
    print(json.dumps(client.config.endpoints[0].model))
"""


def test_a_changed_configuration_is_noticed(run: Run) -> None:
    with Provider(models=["m"]) as provider:
        assert run(provider, RELOAD) == "second"


LOCKED = """
with client_with() as client:
    ask(client)
    client.ledger.flush()
    other = subprocess.Popen(
        [sys.executable, "-c",
         "import sqlite3; ledger = sqlite3.connect('ledger.db', isolation_level=None); "
         "ledger.execute('BEGIN IMMEDIATE'); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    ask(client)
    with gevent.Timeout(20):
        # The ledger's greenlet goes for the database, and a thread of the pool waits for its lock.
        while not gevent.get_hub().threadpool.task_queue.unfinished_tasks:
            gevent.sleep(0.001)
    for _ in range(50):
        ask(client)
    healthy = client.ledger.health.ok
    other.communicate(b"\\n")
    client.ledger.flush(30)
    print(json.dumps([healthy, client.ledger.totals().attempts]))
"""


def test_a_locked_ledger_keeps_no_greenlet_from_going_on(run: Run) -> None:
    """Were the hub to wait in SQLite, the lock would have been given up on before the calls had ended."""
    with Provider(models=["m"]) as provider:
        assert run(provider, LOCKED) == [True, 52]


# ------------------------------------------------------------------------------- patched late, or not at all

LATE = """
client = None
if WHEN == "before the client":
    fastroute.Client
else:
    client = client_with()
    ask(client)
from gevent import monkey; monkey.patch_all()
try:
    client = client or client_with()
    ask(client)
    print(json.dumps("nothing was said"))
except fastroute.Error as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("when", ["before the client", "after a call"])
def test_patches_after_the_import_are_refused(run: Run, when: str) -> None:
    with Provider(models=["m"]) as provider:
        said = run(provider, LATE, f"import warnings; warnings.simplefilter('ignore'); WHEN = {when!r}\n")
    assert "after fastroute was imported; gevent.monkey.patch_all() must come first" in said


def test_without_patches_gevent_changes_nothing(run: Run) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with client_with() as client, ThreadPoolExecutor(8) as pool:
    replies = list(pool.map(lambda n: ask(client, f"call-{n}"), range(20)))
    client.ledger.flush()
    print(json.dumps([reply.choices[0].message.content for reply in replies]))
"""
    with Provider(models=["m"]) as provider:
        assert run(provider, code, before="") == [f"call-{number}" for number in range(20)]
