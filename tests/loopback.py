"""A client in front of local providers, and what must hold after every call whatever happened in it.

Nothing of a test is decided here: `Loopback` builds, and `Loopback.check` holds the books to the events.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastroute import Attempt, Client, Completion, Stream, _core, events
from fastroute.platform import timer
from fastroute.testing import Provider

MODEL = "test-model"
OTHER = "other-model"
QUICK = {
    "timeout_base": 5.0,
    "timeout_per_1k": 0.0,
    "backoff_base": 0.001,
    "backoff_cap": 0.002,
    "throttle_base": 0.001,
    "throttle_cap": 0.002,
    "queue_timeout": 5.0,
    "strategy": "ordered",
}
SLACK = 2.0
"""Seconds that a loaded machine may be late; what is held to it would otherwise take for ever."""


class Loopback:
    """A client and its providers, called ``a``, ``b``, ...: each serves `MODEL`, the first ones first."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        ledger: Path | None,
        config: Mapping[str, Mapping[str, Any]],
        session: Any = None,
        more_endpoints: list[dict[str, Any]] | None = None,
        format: str = "openai",
    ) -> None:
        self.providers = dict(providers)
        self.session = session
        tables: dict[str, Any] = {
            "fastroute": {"ledger": str(ledger) if ledger else "", "timeout": 20.0, "connect_timeout": 0.15},
            "cache": {"enabled": False},
            "providers": {
                name: {"base_url": provider.base_url, "format": format}
                for name, provider in providers.items()
            },
            "endpoints": [{"provider": name, "model": MODEL} for name in providers],
            "models": {MODEL: {"input_price": 1.0, "output_price": 2.0}},
            "policy": QUICK,
        }
        for table, keys in config.items():
            if table == "providers":
                for name, provider in tables["providers"].items():
                    provider.update(keys.get("all", {}), **keys.get(name, {}))
            elif isinstance(keys, Mapping):
                tables[table] = {**tables.get(table, {}), **keys}
            else:
                tables[table] = keys
        if more_endpoints:
            tables["endpoints"] = [*tables["endpoints"], *more_endpoints]
        if not any(endpoint["model"] == MODEL for endpoint in tables["endpoints"]):
            tables["models"].pop(MODEL)
        self.events: list[events.Event] = []
        self.client = Client(tables, session=session)
        self.client.on(self.events.append)

    def ask(self, text: str = "Say hello", **params: Any) -> Completion:
        params.setdefault("model", MODEL)
        params.setdefault("messages", [{"role": "user", "content": text}])
        reply = self.client.chat.completions.create(**params)
        assert isinstance(reply, Completion)
        return reply

    def stream(self, text: str = "Say hello", **params: Any) -> Stream:
        params.setdefault("model", MODEL)
        params.setdefault("messages", [{"role": "user", "content": text}])
        return self.client.chat.completions.create(stream=True, **params)

    def provider(self, name: str = "a") -> Provider:
        return self.providers[name]

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of that kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def attempts(self) -> list[Attempt]:
        """All attempts so far, oldest first, as the hooks heard of them."""
        return [event.attempt for event in self.of(events.AttemptFinished)]

    def endpoint(self, name: str = "a", model: str = MODEL) -> dict[str, Any]:
        """The endpoint's figures."""
        figures: dict[str, Any] = self.client.stats()["endpoints"][f"{name}/{model}"]
        return figures

    def check(self) -> None:
        """Nothing is held, nothing waits, and the ledger has each attempt once."""
        stats = self.client.stats()
        assert {name: at["in_flight"] for name, at in stats["endpoints"].items() if at["in_flight"]} == {}
        assert stats["queued"] == 0
        assert {book.name: book.reserved_nano for book in stats["budgets"] if book.reserved_nano} == {}
        ledger = self.client.ledger
        ledger.flush()
        if stats["ledger"].reason is None and hasattr(ledger, "path"):
            rows = sorted(row.id for row in ledger.entries(None))
            assert rows == sorted(attempt.id for attempt in self.attempts)

    def close(self) -> None:
        self.client.close()
        if self.session is not None:
            return  # its connections are its owner's to close
        for provider in self.providers.values():
            try:
                provider.wait_until(lambda known: known.open_connections == 0, SLACK)
            except TimeoutError as error:
                raise AssertionError(f"a connection stayed open: {error}") from None


def waiting_timers() -> list[object]:
    """What the timer thread holds, without the responses that a test of the gateway has not closed."""
    return [each for each in timer.pending() if type(each).__name__ != "WatchedBody"]


def counted(attempts: Iterable[Attempt]) -> int:
    """Nano-dollars that budgets count: what each cost, or its worst case where its usage is unknown."""
    return sum((each.cost_nano or 0) if each.budget_nano is None else each.budget_nano for each in attempts)


def core_of(client: Client, endpoint: str | None = None) -> _core.Endpoint:
    """The native state of the client's endpoint of that name, or of its first."""
    state = client.runtime.generation.state
    return (state.endpoints[0] if endpoint is None else state.named(endpoint)).core


def held(client: Client) -> dict[str, int]:
    """What the client's calls hold at this moment, without zeros: empty once all of them have ended."""
    stats, runtime = client.stats(), client.runtime
    generation = runtime.generation
    gate, cache = generation.state.gate, generation.cache
    counts = {
        "in flight": sum(at["in_flight"] for at in stats["endpoints"].values()),
        "at the gate": 0 if gate is None else gate.in_flight,
        "waiting": runtime.queue.waiting,
        "queues": len(runtime.queue.waiters),
        "reserved times": len(runtime.queue.times),
        "reserved nano-dollars": sum(status.reserved_nano or 0 for status in generation.budgets.snapshot()),
        "flights": 0 if cache is None else len(cache.flights),
    }
    return {name: count for name, count in counts.items() if count}


def threads() -> set[int]:
    """Those that run now, but for the one that watches the clock for the life of the process."""
    return {thread.ident or 0 for thread in threading.enumerate() if thread.name != "fastroute-timer"}


def open_files() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    if not os.path.isdir("/proc/self/fd"):
        return found  # only Linux tells
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            continue  # the one that lists
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails if a thread or a file descriptor outlives the block."""
    gc.collect()
    before, files = threads(), open_files()
    yield
    gc.collect()
    end = time.monotonic() + SLACK
    while threads() - before and time.monotonic() < end:
        time.sleep(0.005)
    assert threads() - before == set()
    assert {what for _, what in open_files() - files} == set()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails if the block did not end by its deadline, give or take what a loaded machine needs."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + SLACK


class _HangingResolver(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()


@contextmanager
def resolver_that_hangs(name: str) -> Iterator[_HangingResolver]:
    """In the place of the system's resolver one that does not come back for this name within the block.

    Yields what lets it come back, with ``asked``, which is set when it is asked for the name.
    """
    returns = _HangingResolver()
    real = socket.getaddrinfo

    def hangs(host: Any, *more: Any, **named: Any) -> Any:
        if host == name:
            returns.asked.set()
            assert returns.wait(60)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real(host, *more, **named)

    socket.getaddrinfo = hangs
    try:
        yield returns
    finally:
        socket.getaddrinfo = real
        returns.set()
        for thread in threading.enumerate():
            if thread.name == "fastroute-resolver":
                thread.join(10)
