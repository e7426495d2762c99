"""Exactness under threads and across processes: of N permits exactly N are granted.

Forked children work on the parent's segment and answer through a pipe; none of them runs pytest's code.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from forking import fork
from opcode_yield import run_yielding

from fastroute import _core
from fastroute._core import (
    CLOSED,
    FAILURE,
    HALF_OPEN,
    IGNORED,
    OK,
    OPEN,
    Breaker,
    Bucket,
    Endpoint,
    Latency,
    RetryBudget,
    Segment,
)

SECOND = 1_000_000_000
T0 = 1_000_000 * SECOND
THREADS = 16
PROCESSES = 4


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(body: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What `body(i)` returns in each of so many threads, all let go at the same moment."""
    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def run(i: int) -> None:
        together.wait()
        results[i] = body(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Child:
    """A forked process that runs one body, which may talk through `say` and wait for `hear`."""

    def __init__(self, body: Callable[[Child], object]) -> None:
        ours, theirs = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            # Threads that other tests left behind do not come along, and the child needs none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = fork()
        if self.pid == 0:
            status = 1
            try:
                self.reader, self.writer = theirs[0], ours[1]
                os.close(ours[0])
                os.close(theirs[1])  # or hear() would wait on itself when the parent is gone
                body(self)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.reader, self.writer = ours[0], theirs[1]
        os.close(ours[1])
        os.close(theirs[0])

    def say(self, number: int = 0) -> None:
        os.write(self.writer, number.to_bytes(8, "little", signed=True))

    def hear(self) -> int:
        ready, _, _ = select.select([self.reader], [], [], 30)
        data = os.read(self.reader, 8) if ready else b""
        if not data:
            raise EOFError("the other process is gone or silent")
        return int.from_bytes(data, "little", signed=True)

    def end(self, kill: bool = False) -> None:
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)
        os.close(self.writer)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status) if kill else status == 0


def in_processes(body: Callable[[], int], count: int = PROCESSES) -> list[int]:
    """What `body()` returns in each of so many forked processes, all let go at the same moment."""

    def run(child: Child) -> None:
        child.say()
        child.hear()
        child.say(body())

    children = [Child(run) for _ in range(count)]
    for child in children:
        child.hear()
    for child in children:
        child.say()
    results = [child.hear() for child in children]
    for child in children:
        child.end()
    return results


class Gate:
    """Lets two forked processes go on only when both have come, within a fraction of a microsecond.

    Waking through a pipe leaves them far too long apart to meet inside a compare-and-swap.
    """

    PROCESSES = 2

    def __init__(self, rounds: int) -> None:
        segment = Segment(4 * rounds + 64)
        self.arrivals = [Bucket(segment, f"round {i}", 1, self.PROCESSES) for i in range(rounds)]

    def wait(self, i: int) -> None:
        arrivals, begun, spins = self.arrivals[i], _core.clock(), 0
        arrivals.acquire(1, T0)
        while arrivals.available(T0):
            spins += 1
            if spins % 1000 == 0:  # the other one has no processor: give it this one
                os.sched_yield()
                if _core.clock() - begun > 10 * SECOND:
                    raise TimeoutError("the other process did not come")


def everywhere(body: Callable[[], int]) -> int:
    """The sum of `body()` over threads of several forked processes."""
    return sum(in_processes(lambda: sum(in_threads(lambda _: body(), 4))))


WHERE: dict[str, Callable[[Callable[[], int]], int]] = {
    "threads": lambda body: sum(in_threads(lambda _: body())),
    "processes": everywhere,
}


@pytest.fixture(params=list(WHERE.values()), ids=list(WHERE))
def all_at_once(request: pytest.FixtureRequest) -> Callable[[Callable[[], int]], int]:
    """Runs a body in many places at once and adds up what they return."""
    run: Callable[[Callable[[], int]], int] = request.param
    return run


AllAtOnce = Callable[[Callable[[], int]], int]


class TestExactly:
    @pytest.mark.parametrize("burst", [1, 100, 2500])
    def test_permits_of_a_bucket(self, all_at_once: AllAtOnce, burst: int) -> None:
        bucket = Bucket(Segment(64), "b", 60, burst)
        assert all_at_once(lambda: sum(bucket.acquire(1, T0) == 0 for _ in range(600))) == burst
        assert bucket.available(T0) == 0

    def test_permits_of_a_bucket_taken_at_the_same_instant(self) -> None:
        bucket, gate = Bucket(Segment(64), "b", 60, 200_000), Gate(1)

        def body() -> int:
            gate.wait(0)
            return sum(bucket.acquire(1, T0) == 0 for _ in range(150_000))

        assert sum(in_processes(body, Gate.PROCESSES)) == 200_000

    def test_permits_of_a_bucket_by_the_clock(self, all_at_once: AllAtOnce) -> None:
        bucket = Bucket(Segment(64), "b", 600_000, 500)
        start = _core.clock()
        granted = all_at_once(lambda: sum(bucket.acquire() == 0 for _ in range(1500)))
        assert 500 <= granted <= 500 + (_core.clock() - start) * 10_000 // SECOND + 1

    def test_reservations_are_all_different(self, all_at_once: AllAtOnce) -> None:
        """Each waits one interval longer than the one before: the sum tells if one was given twice."""
        bucket = Bucket(Segment(64), "b", 60, 1)
        total = all_at_once(lambda: sum(bucket.reserve(1, 2**60, T0) // SECOND for _ in range(100)))
        assert total == sum(range(1600))

    def test_a_figure_is_never_read_half_written(self) -> None:
        """Between two times that differ in both halves of a word there is no third one."""
        bucket = Bucket(Segment(64), "b", 60, 1000)
        bucket.acquire(100, T0)

        def toggle(child: Child) -> None:
            child.say()
            while os.getppid() != 1:  # until killed
                bucket.settle(7, T0)
                bucket.settle(-7, T0)

        child = Child(toggle)
        child.hear()
        seen = set()
        for _ in range(30_000):
            seen.add(bucket.available(T0))
        child.end(kill=True)
        assert seen <= {900, 893}

    def test_settling_loses_nothing(self, all_at_once: AllAtOnce) -> None:
        bucket = Bucket(Segment(64), "b", 60, 100)
        bucket.acquire(50, T0)

        def body() -> int:
            for _ in range(200):
                bucket.settle(3, T0)
                bucket.settle(-2, T0)
            return 200

        assert 50 - all_at_once(body) == bucket.available(T0)

    def test_calls_in_flight(self, all_at_once: AllAtOnce) -> None:
        endpoint = Endpoint(Segment(128), "e", max_in_flight=100)
        assert all_at_once(lambda: sum(endpoint.admit(0, T0) >= 0 for _ in range(60))) == 100
        assert endpoint.in_flight == 100

    def test_never_more_in_flight_than_allowed(self, all_at_once: AllAtOnce) -> None:
        """Eight permits and many calls: never a ninth inside, and in the end all are back."""
        segment = Segment(128)
        endpoint = Endpoint(segment, "e", max_in_flight=8)
        inside = Bucket(segment, "inside", 1, 8)  # a second count of who is in: a bucket that never refills

        def body() -> int:
            over = 0
            for _ in range(150):
                ticket = endpoint.admit(0, T0)
                if ticket >= 0:
                    over += inside.acquire(1, T0) != 0
                    inside.settle(-1, T0)
                    endpoint.finish(ticket, OK, 0.1, 0, T0)
            return over

        assert all_at_once(body) == 0
        assert endpoint.in_flight == 0
        assert min(endpoint.admit(0, T0) for _ in range(8)) >= 0
        assert endpoint.admit(0, T0) < 0

    def test_requests_and_tokens_together(self, all_at_once: AllAtOnce) -> None:
        """Tokens for 40 calls, requests for 300: exactly 40 get in, and no refusal keeps a request."""
        endpoint = Endpoint(
            Segment(256), "e", rpm=1, request_burst=3000, tpm=1, token_burst=400, max_in_flight=4096
        )
        assert all_at_once(lambda: sum(endpoint.admit(10, T0) >= 0 for _ in range(100))) == 40
        assert endpoint.available_tokens(T0) == 0
        assert endpoint.available_requests(T0) == 2960

    def test_undo_gives_all_back(self, all_at_once: AllAtOnce) -> None:
        endpoint = Endpoint(Segment(256), "e", rpm=1, request_burst=3000, tpm=1, token_burst=40_000)

        def body() -> int:
            for i in range(100):
                ticket = endpoint.admit(i % 9, T0)
                if ticket >= 0:
                    endpoint.undo(ticket, i % 9, T0)
                endpoint.reserve(5, 2**60, T0)
                endpoint.unreserve(5, T0)
            return sum(endpoint.counts)

        assert all_at_once(body) == 0
        assert endpoint.in_flight == 0
        assert (endpoint.available_requests(T0), endpoint.available_tokens(T0)) == (3000, 40_000)

    def test_a_ticket_finished_by_many_counts_once(self) -> None:
        endpoint = Endpoint(Segment(128), "e")

        def finish(ticket: int, _: int) -> None:
            endpoint.finish(ticket, OK, 0.1, 0, T0)

        for n in range(1, 40):
            ticket = endpoint.admit(0, T0)
            in_threads(partial(finish, ticket), 4)
            assert endpoint.counts == (n, 0)
            assert endpoint.in_flight == 0

    def test_retries(self, all_at_once: AllAtOnce) -> None:
        budget = RetryBudget(Segment(64), "r", reserve_per_s=50.0)
        assert all_at_once(lambda: sum(budget.withdraw(T0) for _ in range(100))) == 500

    def test_counts_and_health(self, all_at_once: AllAtOnce) -> None:
        endpoint = Endpoint(Segment(128), "e", failures=255, min_calls=1_000_000)

        def body() -> int:
            for i in range(200):
                endpoint.finish(endpoint.admit(0, T0), OK if i % 4 else FAILURE, 0.25, 0, T0)
            return 200

        calls = all_at_once(body)
        assert endpoint.counts == (calls * 3 // 4, calls // 4)
        assert endpoint.ewma(T0) == 0.25
        assert endpoint.latencies() == [0.25] * 50
        assert 0.0 < endpoint.health()[1] < 1.0


class TestBreaker:
    def test_one_probe_whoever_asks(self, all_at_once: AllAtOnce) -> None:
        breaker = Breaker(Segment(64), "b")
        now = T0
        for _ in range(5):
            breaker.record(breaker.allow(now), FAILURE, now)

        def ask(now: int) -> int:
            return sum(breaker.allow(now) >= 0 for _ in range(50))

        for _ in range(3):  # each time its lease is over there is one more, and only one
            now += 36 * SECOND
            assert all_at_once(partial(ask, now)) == 1
            assert breaker.state(now) == HALF_OPEN

    def test_one_probe_at_the_same_instant(self) -> None:
        rounds = 1500
        breaker, gate = Breaker(Segment(64), "b"), Gate(rounds)
        for _ in range(5):
            breaker.record(breaker.allow(T0), FAILURE, T0)

        def body() -> int:
            probes = 0
            for i in range(rounds):  # each time the lease of the last probe is over
                now = T0 + (i + 1) * 36 * SECOND
                gate.wait(i)
                probes += breaker.allow(now) >= 0
            return probes

        assert sum(in_processes(body, Gate.PROCESSES)) == rounds

    def test_one_probe_at_the_endpoints_door(self, all_at_once: AllAtOnce) -> None:
        endpoint = Endpoint(Segment(128), "e", rpm=60_000)
        for _ in range(5):
            endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)
        assert all_at_once(lambda: sum(endpoint.admit(0, now) >= 0 for _ in range(50))) == 1
        assert endpoint.in_flight == 1

    def test_opens_once(self, all_at_once: AllAtOnce) -> None:
        breaker = Breaker(Segment(64), "b")
        tickets = [breaker.allow(T0) for _ in range(200)]
        assert all_at_once(lambda: sum(breaker.record(t, FAILURE, T0) == OPEN for t in tickets)) == 1
        assert 0 < breaker.reopens_in(T0) <= 5 * SECOND

    def test_closes_once_by_its_one_probe(self, all_at_once: AllAtOnce) -> None:
        breaker = Breaker(Segment(64), "b", probes_to_close=1)
        for _ in range(5):
            breaker.record(breaker.allow(T0), FAILURE, T0)
        now = T0 + breaker.reopens_in(T0)
        probe = breaker.allow(now)
        assert all_at_once(lambda: sum(breaker.record(probe, OK, now) == CLOSED for _ in range(20))) == 1
        assert breaker.state(now) == CLOSED

    def test_given_back_probes_stay_one(self, all_at_once: AllAtOnce) -> None:
        """Everybody takes and gives back; a bucket that never refills counts who holds it."""
        segment = Segment(64)
        breaker = Breaker(segment, "b")
        holders = Bucket(segment, "holders", 1, 1)
        for _ in range(5):
            breaker.record(breaker.allow(T0), FAILURE, T0)
        now = T0 + breaker.reopens_in(T0)

        def body() -> int:
            over = 0
            for _ in range(100):
                probe = breaker.allow(now)
                if probe >= 0:
                    over += holders.acquire(1, now) != 0
                    holders.settle(-1, now)
                    breaker.record(probe, IGNORED, now)
            return over

        assert all_at_once(body) == 0
        assert breaker.allow(now) >= 0

    def test_window_loses_no_result(self, all_at_once: AllAtOnce) -> None:
        """1600 results from everywhere, then as many failures as make exactly half of all."""
        breaker = Breaker(Segment(64), "b", failures=255, min_calls=3199)

        def body() -> int:
            for _ in range(100):
                breaker.record(breaker.allow(T0), OK, T0)
            return 100

        assert all_at_once(body) == 1600
        changes = []
        for i in range(1599):
            changes.append(breaker.record(breaker.allow(T0), FAILURE, T0))
            if i % 200 == 199:  # the row must not open it; each of these is one more failure needed
                changes.append(breaker.record(breaker.allow(T0), OK, T0))
        assert set(changes) == {-1}
        changes = [breaker.record(breaker.allow(T0), FAILURE, T0) for _ in range(8)]
        assert changes == [-1] * 7 + [OPEN]


class TestLatency:
    def test_no_sample_is_lost(self, all_at_once: AllAtOnce) -> None:
        latency = Latency(Segment(64), "l")

        def body() -> int:
            for i in range(200):
                latency.record(OK, 0.5 + i % 2, T0)
            return 200

        assert latency.count == 0
        calls = all_at_once(body)
        assert latency.count == calls
        assert set(latency.samples()) == {0.5, 1.5}
        assert latency.ewma(T0) == 1.5


class TestKilled:
    def test_permits_of_a_killed_worker_come_back(self) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "e", max_in_flight=10)
        mine = [endpoint.admit(0, T0) for _ in range(3)]

        def hold(child: Child) -> None:
            for _ in range(5):
                assert endpoint.admit(0, T0) >= 0
            child.say()
            child.hear()

        child = Child(hold)
        child.hear()
        assert endpoint.in_flight == 8
        assert segment.reap() == 0  # it lives
        assert endpoint.in_flight == 8
        child.end(kill=True)
        assert segment.reap() == 1
        assert endpoint.in_flight == 3
        tickets = [endpoint.admit(0, T0) for _ in range(7)]
        assert min(tickets) >= 0
        assert endpoint.admit(0, T0) < 0
        for ticket in (*mine, *tickets):
            endpoint.finish(ticket, OK, 0.1, 0, T0)
        assert endpoint.in_flight == 0
        assert segment.reap() == 0

    def test_workers_killed_at_any_instruction(self) -> None:
        """Killed in full flight, again and again: after each reaping all permits are there, exactly."""
        segment = Segment(256)
        endpoint = Endpoint(segment, "e", max_in_flight=30)

        def work(child: Child) -> None:
            child.say()
            held: list[int] = []
            while os.getppid() != 1:  # until killed
                held.append(endpoint.admit(0, T0))
                if len(held) > 7:
                    endpoint.finish(held.pop(0) if held[0] >= 0 else 0, OK, 0.1, 0, T0)
                    held = [ticket for ticket in held if ticket >= 0]

        for lives in range(12):
            children = [Child(work) for _ in range(3)]
            for child in children:
                child.hear()
            time.sleep(0.0005 * lives)  # how far they get does not matter, only that it differs
            for child in children:
                child.end(kill=True)
            segment.reap()
            assert endpoint.in_flight == 0
            tickets = [endpoint.admit(0, T0) for _ in range(30)]
            assert min(tickets) >= 0
            assert endpoint.admit(0, T0) < 0
            for ticket in tickets:
                endpoint.finish(ticket, OK, 0.1, 0, T0)

    def test_a_probe_dies_with_its_owner(self) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "e")
        for _ in range(5):
            endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)

        def probe(child: Child) -> None:
            child.say(endpoint.admit(0, now))
            child.hear()

        child = Child(probe)
        assert child.hear() >= 0
        assert endpoint.admit(0, now) < 0
        child.end(kill=True)
        segment.reap()
        assert endpoint.in_flight == 0
        assert endpoint.admit(0, now) >= 0
        assert endpoint.admit(0, now) < 0

    def test_a_probe_that_nobody_reaps_ends_with_its_lease(self) -> None:
        endpoint = Endpoint(Segment(256), "e")
        for _ in range(5):
            endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)
        assert endpoint.admit(0, now) >= 0
        assert endpoint.admit(0, now + 34 * SECOND) < 0
        assert endpoint.admit(0, now + 35 * SECOND) >= 0

    def test_of_two_that_may_hold_the_probe_the_living_keeps_it(self) -> None:
        """A late call of the dead worker is no reason to take the probe away from who has it."""
        segment = Segment(256)
        endpoint = Endpoint(segment, "e")

        def late(child: Child) -> None:
            child.say(endpoint.admit(0, T0))
            child.hear()

        child = Child(late)
        assert child.hear() >= 0
        for _ in range(5):
            endpoint.finish(endpoint.admit(0, T0), FAILURE, 0.0, 0, T0)
        now = T0 + endpoint.reopens_in(T0)
        assert endpoint.admit(0, now) >= 0
        child.end(kill=True)
        segment.reap()
        assert endpoint.in_flight == 1
        assert endpoint.admit(0, now) < 0

    def test_places_in_line_of_a_killed_worker_come_back(self) -> None:
        segment = Segment(256)
        start = _core.clock() + 3600 * SECOND
        endpoint = Endpoint(segment, "e", rpm=60, request_burst=2, tpm=600, token_burst=100)
        assert endpoint.reserve(20, 0, start) == 0

        def wait(child: Child) -> None:
            for _ in range(4):
                assert endpoint.reserve(20, 60 * SECOND, start) >= 0
            child.say(endpoint.admit(20, start, True))
            child.hear()

        child = Child(wait)
        assert child.hear() >= 0
        assert endpoint.available_requests(start) == -3
        child.end(kill=True)
        segment.reap()
        # Its own place stays; of the dead worker's four the one that was let in stays spent.
        assert endpoint.available_requests(start) == 0
        assert endpoint.available_tokens(start) == 60

    def test_a_ticket_of_another_process_is_nobodys(self) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "e")
        mine = endpoint.admit(0, T0)
        assert in_processes(lambda: endpoint.finish(mine, FAILURE, 0.0, 0, T0), 2) == [0, 0]
        assert endpoint.in_flight == 1
        assert endpoint.counts == (0, 0)

    def test_each_process_has_its_own_slot(self) -> None:
        segment = Segment(64)
        slots = [segment.slot(), *in_processes(segment.slot, 5)]
        assert len(set(slots)) == 6
        assert all(1 <= slot <= 255 for slot in slots)
        assert segment.reap() == 5
        assert segment.slot() == slots[0]

    @pytest.mark.parametrize("where", [lambda body: [body()], in_processes], ids=["here", "forked"])
    def test_threads_of_one_process_share_its_slot(
        self, where: Callable[[Callable[[], int]], list[int]]
    ) -> None:
        """Also when all are the first to ask: a second slot would orphan the first one's tickets."""

        def slots(segment: Segment) -> int:
            return len(set(in_threads(lambda _: segment.slot(), 4)))

        for _ in range(10):
            assert set(where(partial(slots, Segment(64)))) == {1}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracing in 3.10 writes old closure values back")
class TestOpcodeYield:
    """The tracer itself: it must bring out a race that is plainly there, and leave correct code correct."""

    def test_finds_a_lost_update(self) -> None:
        count = 0

        def add() -> None:
            nonlocal count
            for _ in range(100):
                seen = count
                count = seen + 1

        run_yielding([add] * 4, [__file__], seed=1)
        assert count < 400

    def test_leaves_locked_code_alone(self) -> None:
        count, lock = 0, threading.Lock()

        def add() -> int:
            nonlocal count
            for _ in range(50):
                with lock:
                    seen = count
                    count = seen + 1
            return 50

        assert run_yielding([add] * 4, [__file__]) == [50] * 4
        assert count == 200

    def test_hands_on_what_was_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            run_yielding([lambda: 1, lambda: 1 // 0], [__file__])
        assert sys.gettrace() is None
