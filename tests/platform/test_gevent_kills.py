"""A greenlet is killed, or its own gevent.Timeout goes off, at each place where a call can wait.

What it held must be free again, and the exception must come out as it is. The modules on a greenlet's stack
tell where it waits, so each place is really the one that is meant.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import need

from fastroute.testing import Fault, Provider, Received

SCRIPT = """
from gevent import monkey; monkey.patch_all()
import contextlib, json, sys
import gevent
import fastroute
from fastroute.platform import timer

FULL = "127.0.0.1:%d" % int(sys.argv[2])
URL = sys.argv[1]

def client_with(*, url=URL, cache=False, workers=4, pending=4, **limits):
    return fastroute.Client({
        "fastroute": {
            "ledger": "ledger.db", "timeout": 60, "connect_timeout": 30,
            "workers": workers, "max_pending": pending,
        },
        "providers": {"p": {"base_url": url, **limits}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1, "output_price": 1, "max_output_tokens": 100}},
        "budgets": [{"name": "all", "limit": 1000, "window": "total"}],
        "cache": {"enabled": cache},
        "policy": {"backoff_base": 30, "backoff_cap": 30, "throttle_base": 30, "throttle_cap": 30,
                   "queue_timeout": 50},
    })

def ask(client, text, stream=False):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="m", messages=messages, stream=stream)

def read(client, text):
    with ask(client, text, True) as stream:
        for _ in stream:
            pass

CONNECTING, SENT, READING = "urllib3.connection", "urllib3.connectionpool", "urllib3.response"
ATTEMPT, STREAM, DISPATCH = "fastroute.calls.attempt", "fastroute.calls.stream", "fastroute.calls.dispatch"
ADMISSION, QUEUE, CACHE = "fastroute.calls.admission", "fastroute.calls.queue", "fastroute.calls.cache"
WORKERS = "fastroute.platform.workers"

def modules(job):
    # Of the functions on its stack. A greenlet that another one looks at waits, so these say in what.
    frame, found = job.gr_frame, set()
    while frame is not None:
        found.add(frame.f_globals["__name__"])
        frame = frame.f_back
    return found

def waits_in(job, *names, without=()):
    with gevent.Timeout(20, AssertionError(f"not in {names}")):
        while not modules(job).issuperset(names) or modules(job).intersection(without):
            assert not job.ready(), (names, job.value)
            gevent.sleep(0.005)

def waits_for_headers(job):
    waits_in(job, SENT, without=[CONNECTING, READING])

def ended(job, how):
    # What came out of the call, as its type's name.
    gevent.kill(job, gevent.GreenletExit() if how == "kill" else gevent.Timeout(1))
    job.join(20)
    return job.out

class Job(gevent.Greenlet):
    def __init__(self, function, *values):
        super().__init__()
        self.function, self.values, self.out = function, values, None
        self.start()

    def _run(self):
        try:
            self.function(*self.values)
            self.out = "returned"
        except BaseException as error:
            self.out = type(error).__name__

PLACES = {}

def place(**settings):
    def add(function):
        PLACES[function.__name__] = (function, settings)
        return function
    return add

@place()
def headers(client):
    job = Job(ask, client, "hang")
    waits_for_headers(job)
    return job

@place()
def body(client):
    job = Job(ask, client, "stall")
    waits_in(job, READING, ATTEMPT, without=[STREAM])
    return job

@place()
def first_chunk(client):
    job = Job(ask, client, "silent", True)
    waits_in(job, READING, STREAM, ATTEMPT)
    return job

@place()
def next_chunk(client):
    job = Job(read, client, "silent later")
    waits_in(job, READING, STREAM, without=[ATTEMPT])
    return job

@place(url=f"http://{FULL}/v1")
def connecting(client):
    job = Job(ask, client, "anything")
    waits_in(job, CONNECTING)
    return job

@place()
def backoff(client):
    job = Job(ask, client, "busy")
    waits_in(job, ADMISSION, without=[QUEUE])
    return job

@place(max_in_flight=1)
def permit(client):
    holder = Job(ask, client, "hang")
    waits_for_headers(holder)
    job = Job(ask, client, "plain")
    waits_in(job, QUEUE)
    assert client.runtime.queue.waiters and not client.runtime.queue.times
    job.also = holder
    return job

@place(rpm=2, burst=1)
def rate(client):
    ask(client, "plain")
    job = Job(ask, client, "plain")
    waits_in(job, QUEUE)
    assert client.runtime.queue.times
    return job

@place(cache=True)
def follower(client):
    leader = Job(ask, client, "hang")
    waits_for_headers(leader)
    job = Job(ask, client, "hang")
    waits_in(job, CACHE, without=[DISPATCH])
    job.also = leader
    return job

@place(cache=True)
def leader(client):
    leader = Job(ask, client, "hang once")
    waits_for_headers(leader)
    heir = Job(ask, client, "hang once")
    waits_in(heir, CACHE, without=[DISPATCH])
    leader.heir = heir
    return leader

@place(workers=1, pending=0)
def submitting(client):
    client.submit(model="m", messages=[{"role": "user", "content": "short hang"}])
    job = Job(client.submit)
    waits_in(job, WORKERS)
    return job

found = {}
for name, (function, settings) in PLACES.items():
    for how in ("kill", "timeout"):
        with client_with(**settings) as client:
            job = function(client)
            problems = [] if (out := ended(job, how)) in ("GreenletExit", "Timeout") else [out]
            if out != {"kill": "GreenletExit", "timeout": "Timeout"}[how]:
                problems.append(f"{how} came out as {out}")
            if hasattr(job, "also"):
                job.also.kill()
            if hasattr(job, "heir"):
                job.heir.join(20)
                problems += [] if job.heir.out == "returned" else [f"the heir {job.heir.out}"]
            if name == "submitting":
                client.close()  # lets the submitted call end
            stats = client.stats()
            endpoint, budget = stats["endpoints"]["p/m"], stats["budgets"][0]
            cache = client.runtime.generation.cache
            left = {
                "in flight": endpoint["in_flight"],
                "reserved": budget.reserved_nano,
                "in line": stats["queued"],
                "reserved times": len(client.runtime.queue.times),
                "watched": len(timer.pending()),
                "shared calls": len(cache.flights) if cache is not None else 0,
            }
            problems += [f"{count} {what}" for what, count in left.items() if count]
            found[f"{name}, {how}"] = problems
print(json.dumps(found))
"""


def meet(received: Received) -> Fault | None:
    body = received.body
    if b"short hang" in body:
        return Fault.slow(0.5)
    if b"hang once" in body:
        # Its first two callers are killed, one each way; who takes over is answered.
        seen = MET[body] = MET.get(body, 0) + 1
        return Fault.black_hole() if seen % 2 else None
    if b"hang" in body:
        return Fault.black_hole()
    if b"stall" in body:
        return Fault.stall(20, part="body")
    if b"silent later" in body:
        return Fault.stream_stall(3)
    if b"silent" in body:
        return Fault.stream_stall(0)
    if b"busy" in body:
        return Fault.status(503)
    return None


MET: dict[bytes, int] = {}


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose queue of connections is full, so that further ones are neither taken nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for each in waiting:
                each.close()


def test_what_a_killed_greenlet_held_is_free_again(tmp_path: Path, full: int) -> None:
    need("gevent")
    MET.clear()
    with Provider(models=["m"]) as provider:
        provider.script(meet)
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, provider.base_url, str(full)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        provider.wait_until(lambda each: each.open_connections == 0)
    found = json.loads(ended.stdout)
    assert {place: problems for place, problems in found.items() if problems} == {}
    assert len(found) == 22
