"""gevent: waiting for Redis or PostgreSQL keeps no other greenlet from going on.

What ends the waiting is done by another greenlet, so were the hub to wait too, it would never end well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger.postgres_server import PostgresServer, missing
from needs import need
from redis_server import RedisServer

from fastroute.testing import Provider

need("gevent")
need("redis")

PRELUDE = """
from gevent import monkey; monkey.patch_all()
import json, os, signal, subprocess, sys
import gevent
import fastroute

with open("tables.json") as file:
    client = fastroute.Client(json.load(file))

def ask(text="hello"):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
"""


def run(folder: Path, tables: dict[str, Any], code: str, *arguments: str) -> Any:
    """What the last line of output of code under gevent's patches says, in a process of its own."""
    (folder / "tables.json").write_text(json.dumps(tables))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


STOPPED = """
server = int(sys.argv[1])
events = []
client.on(lambda event: events.append(event.shared), fastroute.events.SharingChanged)
ticks = []

def wake():
    while len(ticks) < 5:
        ticks.append(1)
        gevent.sleep(0.01)
    os.kill(server, signal.SIGCONT)

ask("first")
os.kill(server, signal.SIGSTOP)
waking = gevent.spawn(wake)
jobs = [gevent.spawn(ask, f"call-{n}") for n in range(60)]  # more than were leased
gevent.joinall([waking, *jobs], raise_error=True)
answers = [job.value.choices[0].message.content for job in jobs]
state = client.stats()["redis"]
client.close()
print(json.dumps([answers == [f"call-{n}" for n in range(60)], len(ticks), state["there"], events]))
"""


def test_a_redis_that_is_slow_stops_only_who_needs_it(redis: RedisServer, tmp_path: Path) -> None:
    assert redis.process is not None
    with Provider(models=["m"], latency=0.05) as provider:
        limits = {"rpm": 600, "burst": 100, "max_in_flight": 80}
        tables = redis.config(provider.base_url, timeout=10.0, limits=limits)
        assert run(tmp_path, tables, STOPPED, str(redis.process.pid)) == [True, 5, True, []]


AWAY = """
os.kill(int(sys.argv[1]), signal.SIGKILL)
jobs = [gevent.spawn(ask, f"call-{n}") for n in range(20)]
gevent.joinall(jobs, raise_error=True)
there = client.stats()["redis"]["there"]
with gevent.Timeout(20):
    client.close()
print(json.dumps([len(jobs), there]))
"""


def test_a_redis_that_is_away_hangs_nobody(tmp_path: Path) -> None:
    redis = RedisServer()
    try:
        assert redis.process is not None
        with Provider(models=["m"]) as provider:
            tables = redis.config(provider.base_url, limits={"rpm": 600, "burst": 100})
            assert run(tmp_path, tables, AWAY, str(redis.process.pid)) == [20, False]
    finally:
        redis.close()


HOLDER = """
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as own, psycopg.connect(sys.argv[1]) as other:
    other.execute("LOCK TABLE fastroute_attempts IN ACCESS EXCLUSIVE MODE")
    print(flush=True)
    while not own.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:
        time.sleep(0.01)
    print(flush=True)
    input()
"""

LOCKED = """
address, holder = sys.argv[1:]
ask()
client.ledger.flush()
other = subprocess.Popen(
    [sys.executable, "-c", holder, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
other.stdout.readline()
ask()
other.stdout.readline()  # the ledger's greenlet waits for the lock
for _ in range(20):
    ask()
healthy = client.ledger.health.ok
other.communicate(b"\\n")
client.ledger.flush(30)
found = client.ledger.totals().attempts
client.close()
print(json.dumps([healthy, found]))
"""


def test_a_postgresql_that_is_slow_stops_no_call(tmp_path: Path) -> None:
    program = missing()
    if program is not None:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"{program} is not installed")
    server = PostgresServer()
    try:
        server.start()
        address = server.new_schema()
        with Provider(models=["m"]) as provider:
            tables = {
                "fastroute": {"ledger": address, "timeout": 20.0},
                "providers": {"p": {"base_url": provider.base_url}},
                "endpoints": [{"provider": "p", "model": "m"}],
                "cache": {"enabled": False},
            }
            assert run(tmp_path, tables, LOCKED, address, HOLDER) == [True, 22]
    finally:
        server.close()
