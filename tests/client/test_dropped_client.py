"""A client that is dropped without `close` leaves no thread and no descriptor, and loses no entry."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastroute
from fastroute.ledger import Ledger
from fastroute.testing import Provider

MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(answer="one two three") as running:
        yield running


def client(provider: Provider, path: Path, **tables: Any) -> fastroute.Client:
    return fastroute.Client(
        {
            "fastroute": {"ledger": str(path), **tables.pop("fastroute", {})},
            "providers": {"local": {"base_url": provider.base_url, "models": ["m"]}},
            "cache": {"enabled": False},
            **tables,
        }
    )


def ask(made: fastroute.Client) -> None:
    made.chat.completions.create(model="m", messages=MESSAGES, timeout=10)


def ask_for_a_stream(made: fastroute.Client) -> None:
    for _ in made.chat.completions.create(model="m", messages=MESSAGES, stream=True, timeout=10):
        pass


def submit(made: fastroute.Client) -> None:
    made.submit(model="m", messages=MESSAGES, timeout=10).result(10)


def hold_nothing(made: fastroute.Client) -> None:
    """The client is made, and no call."""


def descriptors() -> set[str]:
    """What this process has open, as far as it belongs to a client: files and sockets."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            pass  # the descriptor of the listing itself
    return found


def wait_for(threads: set[threading.Thread]) -> set[threading.Thread]:
    """Those of the threads that do not end."""
    for thread in threads:
        thread.join(10)
    return {thread for thread in threads if thread.is_alive()}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("use", [ask, ask_for_a_stream, submit, hold_nothing])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"policy": {"health_check": {"enabled": True}}},
        {"policy": {"hedging": {"enabled": True}}},
        {"fastroute": {"reload": "signal"}},
    ],
    ids=["plain", "health checks", "hedging", "reload"],
)
def test_nothing_is_left(provider: Provider, tmp_path: Path, use: Any, tables: dict[str, Any]) -> None:
    with client(provider, tmp_path / "first.db") as warm:
        use(warm)  # threads and modules of the whole process start here
    gc.collect()
    threads, before = set(threading.enumerate()), descriptors()
    for _ in range(3):
        use(client(provider, tmp_path / "calls.db", **tables))
    gc.collect()
    # The provider has a thread for each connection until that is closed.
    assert not wait_for(set(threading.enumerate()) - threads)
    end = time.monotonic() + 10  # the timer thread may still be closing the last one
    while descriptors() - before and time.monotonic() < end:
        time.sleep(0.01)
    assert not descriptors() - before
    if use is not hold_nothing:
        with Ledger(tmp_path / "calls.db") as ledger:
            assert ledger.totals().calls == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_function_that_classifies_is_let_go(provider: Provider, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    made = client(provider, tmp_path / "calls.db", policy={"classifier_timeout": 5})
    made.close()
    made = fastroute.Client(made.config, classifier=lambda messages, params: "simple")
    plans = [made.submit(model="auto", messages=MESSAGES, timeout=10) for _ in range(4)]
    assert {plan.result(10).route.classification.level for plan in plans} == {"simple"}
    assert any(thread.name == "fastroute-classifier" for thread in threading.enumerate())
    del made, plans
    gc.collect()
    assert not wait_for(
        {each for each in set(threading.enumerate()) - threads if each.name != "fastroute-timer"}
    )


def test_a_stream_outlives_its_client(provider: Provider, tmp_path: Path) -> None:
    stream = client(provider, tmp_path / "calls.db").chat.completions.create(
        model="m", messages=MESSAGES, stream=True, timeout=10
    )
    gc.collect()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "one two three"
    before = set(threading.enumerate())
    del stream
    gc.collect()
    assert not wait_for({thread for thread in before if thread.name == "fastroute-ledger"})
    with Ledger(tmp_path / "calls.db") as ledger:
        assert ledger.totals().calls == 1
