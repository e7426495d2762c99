"""Case 140: what is no `Exception` may be raised at any line of a call, and nothing stays held."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from interrupts import Tracer
from loopback import nothing_left
from raw_server import RawServer, Say
from walks import Variant

import fastroute
from fastroute import Client
from fastroute.transport import watch

OWN = ("/fastroute/",)
BUSY = Say(b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
LATE = 3.0


class Stage:
    """A client with every limit in force, in front of two servers."""

    def __init__(self, servers: list[RawServer], ledger: Path, **policy: Any) -> None:
        self.servers = servers
        self.client = Client(
            {
                "fastroute": {"ledger": str(ledger), "timeout": 20.0},
                "cache": {"enabled": True},
                "providers": {
                    name: {
                        "base_url": server.base_url,
                        "max_in_flight": 1,
                        "tpm": 1_000_000_000,
                        "rpm": 1_000_000,
                        "burst": 100_000,
                    }
                    for name, server in zip("ab", servers, strict=False)
                },
                "endpoints": [
                    {"provider": name, "model": "m"} for name, _ in zip("ab", servers, strict=False)
                ],
                "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
                "budgets": [{"name": "all", "limit": 1000.0, "window": "total"}],
                "policy": {
                    "strategy": "ordered",
                    "max_in_flight": 5,
                    "queue_timeout": 0.03,
                    "backoff_base": 0.001,
                    "backoff_cap": 0.002,
                    "breaker": {"failures": 255, "min_calls": 10_000},
                    **policy,
                },
            }
        )
        self.turn = 0

    def ask(self) -> None:
        self.turn += 1
        messages = [{"role": "user", "content": f"Good day {self.turn}"}]
        self.client.chat.completions.create(model="m", messages=messages)

    def stream(self) -> None:
        messages = [{"role": "user", "content": "Good day"}]
        with self.client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
            for _ in stream:
                pass

    def check(self, where: str) -> None:
        gc.collect()  # a stream whose `with` block was never entered
        stats = self.client.stats()
        router = self.client._router
        snapshot = router.snapshot
        held = {
            "in flight": sum(at["in_flight"] for at in stats["endpoints"].values()),
            "at the gate": snapshot.state.gate.in_flight if snapshot.state.gate is not None else 0,
            "waiting": router.line.waiting,
            "lines": len(router.line._lines),
            "times": len(router.line._times),
            "money": sum(status.reserved_nano or 0 for status in snapshot.budgets.snapshot()),
            "flights": len(snapshot.cache._flights) if snapshot.cache is not None else 0,
            "clocks": len(watch.reaper._watches),
        }
        assert {name: count for name, count in held.items() if count} == {}, where
        end = time.monotonic() + LATE
        while any(server.open_connections > 1 for server in self.servers) and time.monotonic() < end:
            time.sleep(0.002)
        assert all(server.open_connections <= 1 for server in self.servers), where


@contextmanager
def staged(folder: Path, count: int = 1, **policy: Any) -> Iterator[Stage]:
    with nothing_left(), ExitStack() as stack:
        servers = [stack.enter_context(RawServer(parallel=4)) for _ in range(count)]
        stage = Stage(servers, folder / "ledger.db", **policy)
        stack.callback(stage.client.close)
        gc.collect()
        gc.freeze()  # what there is already need not be looked at again after each interrupt
        stack.callback(gc.unfreeze)
        yield stage
        ids = [row.id for row in stage.client.ledger.entries(None)]
        assert len(ids) == len(set(ids))


def interrupt_everywhere(
    stage: Stage, call: Callable[[], None], every: int, parts: tuple[str, ...] = OWN
) -> int:
    """Interrupts the call at one in so many of its lines; returns at how many of them."""

    def heard() -> None:
        try:
            call()
        except fastroute.Error:
            pass

    heard()  # what is made on first use is made
    whole = Tracer(0, parts)
    whole.run(heard)
    stage.check("uninterrupted")
    count = 0
    for at in range(1, whole.lines + 1, every):
        tracer = Tracer(at, parts)
        count += tracer.run(heard)
        stage.check(tracer.where)
    assert count > whole.lines / every * 0.5  # else it was not where it seemed to be
    return count


PLAIN = Say(Variant().answer())
STREAM = Say(Variant(stream=True, framing="chunked").answer())


def test_140_a_plain_call(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.servers[0].say = PLAIN
        interrupt_everywhere(stage, stage.ask, every=11)


# A stream dropped by the interrupt is closed by its finalizer: what is raised in there nobody can catch.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_140_a_stream(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        stage.servers[0].say = STREAM
        interrupt_everywhere(stage, stage.stream, every=13)


def test_140_a_failover(tmp_path: Path) -> None:
    with staged(tmp_path, 2) as stage:
        stage.servers[0].say, stage.servers[1].say = BUSY, PLAIN
        interrupt_everywhere(stage, stage.ask, every=17)
