"""Damages a state file, at rest and live, and checks what the core makes of it.

`Arena` has every kind of cell in one file. `exercise` uses all of it once and says what each object answered:
all but the object of the damaged cell must answer as without damage. `serves` then says whether the damaged
one serves again. `tests/soak/damage.py` runs the same for long.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastroute import _core

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
CELLS_AT = 66 * 64  # behind the header and the workers
CELLS = 256


class Source:
    """Lends what is asked for, as the other machines would."""

    lease: _core.Lease

    def supply(self, tokens: int, now: int) -> int:
        self.lease.balance(now)
        self.lease.grant(5, max(tokens, 500), now + 2 * SECOND, now)
        return 0

    def low(self) -> None: ...

    def reserve(self, tokens: int, max_wait: int, now: int) -> int:
        return 0

    def unreserve(self, tokens: int, now: int) -> None: ...

    def probe(self, now: int) -> int:
        return 0

    def extended(self, lease: int) -> None: ...

    def judged(self, flags: int) -> None: ...

    def tightened(self, requests: int, tokens: int) -> None: ...

    def blocked(self) -> None: ...

    def permit(self, now: int) -> int:
        _, held, turn, _, _ = self.lease.permits(now)
        return 0 if self.lease.lease_permits(turn, held + 4, now + 10 * SECOND) else -_core.BUSY


class Arena:
    """Objects of every kind on one segment in a file."""

    def __init__(self, path: Path, now: int, *, fresh: bool = True) -> None:
        with open(path, "w+b" if fresh else "r+b") as file:
            if fresh:
                file.truncate(_core.Segment.size(CELLS))
            self.segment = segment = _core.Segment.in_file(file.fileno(), fresh)
            self.memory = mmap.mmap(file.fileno(), 0)
        self.now = now
        limits: dict[str, Any] = {"rpm": 6000, "request_burst": 100, "tpm": 600_000, "token_burst": 10_000}
        self.endpoints = {
            name: _core.Endpoint(segment, name, max_in_flight=4, adaptive=name == "two", **limits)
            for name in ("one", "two")
        }
        self.endpoints["paced"] = _core.Endpoint(segment, "paced", max_in_flight=4)
        lent = self.endpoints["lent"] = _core.Endpoint(segment, "lent", max_in_flight=4, **limits)
        self.source = Source()
        self.source.lease = _core.Lease(lent, self.source, permits=True)
        self.bucket = _core.Bucket(segment, "bucket", 600, 10)
        self.quota = _core.Quota(segment, "quota", rpm=600, tpm=60_000)
        self.breaker = _core.Breaker(segment, "breaker")
        self.latency = _core.Latency(segment, "latency")
        self.retries = _core.RetryBudget(segment, "retries")
        self.tail = _core.Tail(segment, "tail")
        self.events = _core.EventCount(segment, "events")
        self.counters = {name: _core.Counter(segment, name) for name in ("money", "more money")}
        row = tuple(self.endpoints.values())
        same = {"models": 0, "windows": 0, "max_outputs": 0, "capabilities": 0, "input_prices": 1}
        self.ranking = _core.Ranking(
            row,
            **{name: [value] * len(row) for name, value in same.items()},  # type: ignore[arg-type]
            output_prices=[1] * len(row),
            qualities=[1.0] * len(row),
            latencies=[0.0] * len(row),
        )
        if fresh:
            for counter in self.counters.values():
                counter.begin(0, 7, 1000)
            self.endpoints["paced"].pace(1000, 60.0, 100_000, 60.0, now)

    def places(self) -> list[int]:
        """Where the cells in use are, the header and this process's slot among them."""
        used = [at for at in range(CELLS_AT, len(self.memory), 64) if any(self.memory[at : at + 8])]
        return [0, 64, 128, *used]

    def kind(self, place: int) -> str:
        if place < CELLS_AT:
            return "header" if place < 128 else "workers"
        return f"kind {self.memory[place] & 15}"

    def exercise(self, now: int) -> dict[str, Any]:
        """Uses everything once; the answer of each object by its name."""
        found: dict[str, Any] = {}
        for name, endpoint in self.endpoints.items():
            with contextlib.suppress(_core.SegmentFullError):
                ticket = endpoint.admit(50, now)
                found[name] = ticket >= 0
                if ticket >= 0:
                    endpoint.extend(ticket, 60.0, now)
                    endpoint.finish(ticket, _core.OK, 0.2, 5, now)
                endpoint.deposit(now)
                endpoint.withdraw(now)
                endpoint.record_ttft(0.1)
                waits = endpoint.reserve(10, SECOND, now)
                if waits >= 0:
                    endpoint.unreserve(10, now)
                figures = endpoint.snapshot(now)
                assert figures["health"] >= 0, figures
                assert 0 <= figures["in_flight"] <= 4096, figures
                assert 0 <= endpoint.ttft_timeout() <= 600, figures
                assert all(0 <= x <= 1e6 for x in endpoint.latencies())
        for strategy in range(_core.ORDERED + 1):
            ranked = self.ranking.rank(strategy, 10, 10, seed=3, now=now)
            assert sorted(ranked.order) == sorted(set(ranked.order))
            assert all(0 <= index < len(self.ranking) for index in ranked.order)
        self.ranking.pick(_core.LATENCY, 3, True, now)
        self.ranking.pick(_core.TWO_CHOICES, 3, False, now)
        found["bucket"] = (self.bucket.acquire(1, now) == 0, self.bucket.available(now))
        self.bucket.settle(-1, now)
        found["quota"] = (self.quota.pay(10, now) == 0, self.quota.available_tokens(now))
        self.quota.settle(-10, now)
        ticket = self.breaker.allow(now)
        found["breaker"] = (ticket >= 0, self.breaker.state(now))
        if ticket >= 0:
            self.breaker.record(ticket, _core.OK, now)
        self.breaker.blocked(now)
        self.latency.record(_core.OK, 0.2, now)
        found["latency"] = (round(self.latency.ewma(now), 3), self.latency.health(now)[0])
        found["retries"] = round(self.retries.balance(now), 3)
        self.tail.record(0.2, now)
        self.tail.hedge(0.1, now)
        found["tail"] = 0.0 <= self.tail.quantile(0.5, 1, now) <= 3000
        self.events.add(now)
        found["events"] = self.events.lately(2, now)
        for name, counter in self.counters.items():
            found[name] = self.spend(counter)
        with contextlib.suppress(BlockingIOError):  # the claim of a damaged word ends after seconds
            owned = _core.claim_counter(self.segment, "value", 7, _core.clock() + DAY)
            assert owned is not None
            found["value"] = self.spend(owned)
        return found

    def spend(self, counter: _core.Counter) -> tuple[int, bool]:
        """Reserves 100 of 1,100 and gives them back, as a budget does; what is committed then."""
        for _ in range(3):
            stamp = counter.stamp
            if counter.window != 7:
                counter.begin(stamp, 7, 1000)
                continue
            ticket = counter.reserve(stamp, 100, 1000, _core.clock() + HOUR)
            if ticket >= 0:
                counter.sent(ticket)
                counter.settle(ticket, 0)
            # Never more room than the limit leaves after what was spent.
            assert counter.reserve(counter.stamp, 101, 999, _core.clock() + HOUR) < 0
            return counter.committed, ticket >= 0
        return counter.committed, False

    def serves(self, now: int) -> list[str]:
        """What does not let a call in, after a look for dead workers and a day: nothing, if all is well."""
        self.segment.reap()
        _core.sweep_reservations(self.segment, now)
        lost = []
        for name, endpoint in self.endpoints.items():
            for later in (0, 3 * SECOND, 2 * DAY, 2 * DAY + HOUR):
                ticket = endpoint.admit(50, now + later)
                if ticket >= 0:
                    endpoint.finish(ticket, _core.OK, 0.2, 0, now + later)
                    break
            else:
                lost.append(f"{name}: {-ticket & 7}")
        later = now + 3 * DAY
        if self.bucket.acquire(1, later) and self.bucket.acquire(1, later + SECOND):
            lost.append("bucket")
        if self.quota.pay(10, later) and self.quota.pay(10, later + SECOND):
            lost.append("quota")
        if self.breaker.allow(later) < 0:
            lost.append("breaker")
        if not self.endpoints["one"].withdraw(later):
            lost.append("retries")
        return lost


class Damage:
    """One byte of one cell: where, and what it becomes."""

    def __init__(self, place: int, byte: int, value: int) -> None:
        self.place, self.byte, self.value = place, byte, value

    def __repr__(self) -> str:
        return f"byte {self.byte} of the cell at {self.place} to {self.value}"


def damages(arena: Arena, dice: random.Random, every: int) -> Iterator[Damage]:
    """Every byte of every cell to 0, 255 and any value; one in ``every`` of them, beginning anywhere."""
    number = dice.randrange(every)
    for place in arena.places():
        for byte in range(64):
            for value in (0, 255, dice.randrange(256)):
                number += 1
                if number % every == 0 and arena.memory[place + byte] != value:
                    yield Damage(place, byte, value)


class Found:
    """What a run over damages has seen."""

    def __init__(self) -> None:
        self.damages = self.misfits = self.delayed = 0
        self.problems: list[str] = []

    def check(self, arena: Arena, damage: Damage, kind: str, expected: dict[str, Any], now: int) -> None:
        """Uses everything, and keeps what it must not do."""
        self.damages += 1
        try:
            answers = arena.exercise(now)
        except AssertionError as problem:
            self.problems.append(f"{kind}, {damage}: {problem!r}")
            return
        others = [name for name, answer in expected.items() if answers.get(name) != answer]
        # No cell belongs to two of these objects.
        if len(others) > 1:
            self.problems.append(f"{kind}, {damage}: {others} answer otherwise")
        lost = arena.serves(now)
        if lost:
            self.problems.append(f"{kind}, {damage}: {lost} let no call in for days")


def mapped(path: Path, dice: random.Random, every: int) -> Found:
    """Damages bytes of a file that a process has mapped."""
    found, now = Found(), _core.clock()
    arena = Arena(path, now)
    arena.exercise(now)
    sound = arena.memory[:]
    expected = arena.exercise(now + SECOND)
    for damage in damages(arena, dice, every):
        arena.memory[:] = sound
        kind = arena.kind(damage.place)
        arena.memory[damage.place + damage.byte] = damage.value
        found.check(arena, damage, kind, expected, now + SECOND)
    return found


def at_rest(path: Path, dice: random.Random, every: int) -> Found:
    """Damages bytes of a file that a new process then opens."""
    found, now = Found(), _core.clock()
    arena = Arena(path, now)
    arena.exercise(now)
    sound = arena.memory[:]
    expected = arena.exercise(now + SECOND)
    for damage in damages(arena, dice, every):
        arena.memory[:] = sound
        kind = arena.kind(damage.place)
        arena.memory[damage.place + damage.byte] = damage.value
        try:
            opened = Arena(path, now, fresh=False)
        except _core.SegmentMisfitError:
            found.damages += 1
            found.misfits += 1  # a header: the file is renamed away, see tests/state
            continue
        found.check(opened, damage, kind, expected, now + SECOND)
    return found


def live(path: Path, dice: random.Random, seconds: float) -> Found:
    """Damages the file while two threads use it; the threads must end, and everything serve afterwards."""
    found, now = Found(), _core.clock()
    arena = Arena(path, now)
    arena.exercise(now)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            # A figure of a cell that changes while it is read, or a table without room: of the damage itself.
            with contextlib.suppress(AssertionError, _core.SegmentFullError):
                arena.exercise(_core.clock())
                arena.segment.tend()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    places, end = arena.places(), time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(10):
            at = dice.choice(places) + dice.randrange(64)
            arena.memory[at] = dice.choice((0, 255, dice.randrange(256)))
            found.damages += 1
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join(20)
        if thread.is_alive():
            found.problems.append("a call into the core has not returned for 20 s")
    return found
