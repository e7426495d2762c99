"""eventlet: everything cooperates under its patches if they come first, and late ones are refused.

Each test runs in a process of its own, since patches cannot be taken back; the provider is out here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs import need

from fastroute.testing import Provider, Received

PATCH = "import eventlet; eventlet.monkey_patch()\n"
CLIENT = """
import json, os, sys
import fastroute
client = fastroute.Client(json.loads(os.environ["TABLES"]))
def ask(text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="m", messages=messages, **more)
"""


def run(provider: Provider, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    need("eventlet", load=False)
    tables = {
        "fastroute": {"ledger": str(folder / "ledger.db"), "timeout": 20.0},
        "providers": {"p": {"base_url": provider.base_url, "max_in_flight": 100}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "cache": {"enabled": False},
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TABLES": json.dumps(tables)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


EVERYTHING = """
def streamed(text):
    with ask(text, stream=True) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

pool = eventlet.GreenPool(100)
plain = [pool.spawn(ask, f"call-{n}") for n in range(20)]
streams = [pool.spawn(streamed, f"stream-{n}") for n in range(10)]
later = [client.submit(model="m", messages=[{"role": "user", "content": f"later-{n}"}]) for n in range(10)]
answers = [job.wait().text for job in plain] + [job.wait() for job in streams]
answers += [future.result().text for future in later]
kinds = (("call", 20), ("stream", 10), ("later", 10))
expected = [f"{kind}-{n}" for kind, count in kinds for n in range(count)]
totals = client.ledger.totals()
client.close()
print(json.dumps([answers == expected, totals.attempts]))
"""


def test_calls_streams_and_submissions_cooperate(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        # Nobody is answered before 31 have asked: were one to keep the others from it, none ever would be.
        waiting: list[Received] = []

        def hold(received: Received) -> None:
            waiting.append(received)
            if len(waiting) == 1:
                provider.pause()
            if len(waiting) == 31:
                provider.resume()

        provider.script(hold)
        ended = run(provider, tmp_path, PATCH + CLIENT + EVERYTHING)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [True, 40]


ENDED = """
def outcome(**more):
    try:
        answer = ask("hello", **more)
        if more.get("stream"):
            with answer:
                list(answer)
        return "answered"
    except fastroute.Error as error:
        return type(error).__name__

jobs = [eventlet.spawn(outcome, timeout=0.5, stream=stream) for stream in (False, True)]
ends = [job.wait() for job in jobs]
killed = eventlet.spawn(ask, "killed")
while client.stats()["endpoints"]["p/m"]["in_flight"] == 0:
    eventlet.sleep(0.005)
killed.kill()
print(json.dumps([ends, client.stats()["endpoints"]["p/m"]["in_flight"]]))
"""


def test_deadlines_and_kills_end_calls_and_release_their_permits(tmp_path: Path) -> None:
    with Provider(models=["m"], answer=2000, tokens_per_second=20) as provider:
        ended = run(provider, tmp_path, PATCH + CLIENT + ENDED)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [["DeadlineExceeded"] * 2, 0]


LATE = {
    "before the client": ["import fastroute.client", PATCH, CLIENT],
    "after the client": [CLIENT, PATCH, "ask('late')"],
}


@pytest.mark.parametrize("when", LATE)
def test_late_patches_are_refused(when: str, tmp_path: Path) -> None:
    """Not an endless wait in the first call."""
    with Provider(models=["m"]) as provider:
        ended = run(provider, tmp_path, "\n".join(LATE[when]))
        assert provider.received == 0
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "fastroute.errors.Error: eventlet patched select, socket, thread, time after fastroute was imported; "
        "eventlet.monkey_patch() must come first, before any other import"
    )
