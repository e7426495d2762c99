"""gevent: everything cooperates under its patches, and a greenlet may be killed wherever it waits.

Each test runs in a process of its own, since patches cannot be taken back; the providers are out here, in real
threads.
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
        assert "Traceback" not in ended.stderr, ended.stderr
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
    futures = [client.submit(model="m", messages=[{"role": "user", "content": f"later-{n}"}]) for n in range(20)]
    gevent.joinall([*plain, *streams, *same], raise_error=True)
    answers = [job.value.choices[0].message.content for job in plain] + [job.value for job in streams]
    answers += [future.result().choices[0].message.content for future in futures]
    expected = [f"{kind}-{n}" for kind, count in (("call", 40), ("stream", 20), ("later", 20)) for n in range(count)]
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
        # Nobody is answered before most have asked: were one to keep the others from it, none ever would be.
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
    assert found == {"right": True, "shared": True, "cost": True, "reserved": 0, "in_flight": 0, "entries": 81}
