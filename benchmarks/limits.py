"""Token buckets and breakers beside those of other packages, all in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fastroute import _core
from fastroute.calls.queue import Line

from .side_by_side import FLOOR, NO_OP, Comparison, Contender, Operation, Trial, need

PLENTY = 1_000_000_000  # a minute, the most there is: one each 60 ns, so a burst makes up the rest


def bucket(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        found = _core.Bucket(
            _core.Segment(64), "bench", PLENTY if granted else 1, 1_000_000_000 if granted else 1
        )
        if not granted:
            found.acquire(1)
        return Operation("acquire()", {"acquire": found.acquire}, lambda wait: (wait == 0) is granted)

    return make


def ratelimit(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        limits = need("ratelimit").limits
        limited = limits(calls=10**12 if granted else 1, period=3600, raise_on_limit=False)(lambda: True)
        if not granted:
            limited()
        return Operation("limited()", {"limited": limited}, lambda answer: bool(answer) is granted)

    return make


def token_bucket(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        package = need("token_bucket")
        limiter = package.Limiter(1e9 if granted else 1e-6, 10**9 if granted else 1, package.MemoryStorage())
        if not granted:
            limiter.consume("bench")
        return Operation("consume('bench')", {"consume": limiter.consume}, lambda answer: answer is granted)

    return make


def limits(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(stack: ExitStack) -> Operation:
        package = need("limits")
        storage = need("limits.storage").MemoryStorage()
        stack.callback(storage.reset)
        strategy = need("limits.strategies").FixedWindowRateLimiter(storage)  # its quickest
        item = package.RateLimitItemPerHour(10**12 if granted else 1)
        if not granted:
            strategy.hit(item, "bench")
        names = {"hit": strategy.hit, "item": item}
        return Operation("hit(item, 'bench')", names, lambda answer: answer is granted)

    return make


def pyrate(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(stack: ExitStack) -> Operation:
        package = need("pyrate_limiter")
        # A log of one entry a permit is its default; its own GCRA keeps a number, as ours does.
        rate = package.Rate(10**9 if granted else 1, package.Duration.HOUR)
        limiter = _pyrate_limiter(package, rate)
        stack.callback(limiter.close)
        if not granted:
            limiter.try_acquire("bench", blocking=False)
        return Operation(
            "acquire('bench', blocking=False)",
            {"acquire": limiter.try_acquire},
            lambda answer: answer is granted,
        )

    return make


def _pyrate_limiter(package: Any, rate: Any) -> Any:
    bucket = package.StateBucket([rate], algorithm=package.GCRA(), store=package.InMemoryStateStore())
    return package.Limiter(bucket)


def _acquiring(granted: bool) -> Comparison:
    word = "granted" if granted else "refused"
    return Comparison(
        f"Token bucket, {word}",
        (
            NO_OP,
            FLOOR,
            Contender("fastroute Bucket.acquire", bucket(granted), ours=True),
            Contender("ratelimit", ratelimit(granted)),
            Contender("token-bucket", token_bucket(granted)),
            Contender("limits", limits(granted)),
            Contender("pyrate-limiter", pyrate(granted)),
        ),
        base=FLOOR.name,
        note="ratio: to the floor",
    )


# ------------------------------------------------------------------------------------------------ breakers


def breaker(_: ExitStack) -> Operation:
    found = _core.Breaker(_core.Segment(64), "bench")
    names = {"allow": found.allow, "record": found.record, "OK": _core.OK}
    return Operation("record(allow(), OK)", names, lambda state: state == -1)  # -1: as it was


def call(_: ExitStack) -> Operation:
    return Operation("f()", {"f": _nothing})


def _nothing() -> None:
    pass


def circuitbreaker(_: ExitStack) -> Operation:
    wrapped = need("circuitbreaker").circuit(_nothing)
    return Operation("f()", {"f": wrapped})


def pybreaker(_: ExitStack) -> Operation:
    wrapped = need("pybreaker").CircuitBreaker(fail_max=5, reset_timeout=60)(_nothing)
    return Operation("f()", {"f": wrapped})


def endpoint(_: ExitStack) -> Operation:
    found = _core.Endpoint(
        _core.Segment(256), "bench", rpm=10**9, request_burst=10**9, tpm=10**9, token_burst=10**9
    )
    names = {"admit": found.admit, "finish": found.finish, "OK": _core.OK}
    return Operation("finish(admit(700), OK, 0.5, -100)", names)


COMPARISONS = (
    _acquiring(True),
    _acquiring(False),
    Comparison(
        "Breaker: what it adds to a call",
        (
            NO_OP,
            FLOOR,
            Contender("a Python call of nothing", call),
            Contender("fastroute Breaker.allow + record", breaker, ours=True),
            Contender(
                "fastroute Endpoint.admit + finish (limits, breaker, permits, latency)", endpoint, ours=True
            ),
            Contender("circuitbreaker, around a call of nothing", circuitbreaker),
            Contender("pybreaker, around a call of nothing", pybreaker),
        ),
        base="fastroute Breaker.allow + record",
        note="the peers wrap a call: take the call of nothing off them",
    ),
)


# ------------------------------------------------------------------------------------------ many threads


def _rate(
    make: Callable[[bool], Callable[[ExitStack], Operation]], threads: int
) -> Callable[[float], list[float]]:
    """Acquires a second of so many threads on one limiter, millions a second."""

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            operation = make(True)(stack)
            body = compile(f"for _ in range(200):\n    {operation.statement}", "<benchmark>", "exec")
            counts = [0] * threads
            ready, stop = threading.Barrier(threads + 1), threading.Event()

            def work(place: int) -> None:
                names = dict(operation.names)
                ready.wait()
                while not stop.is_set():
                    exec(body, names)
                    counts[place] += 200

            workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
            for worker in workers:
                worker.start()
            ready.wait()
            begun = time.perf_counter()
            stop.wait(seconds)
            done, took = sum(counts), time.perf_counter() - begun
            stop.set()
            for worker in workers:
                worker.join()
            return [done / took / 1e6]

    return run


def _threads() -> Trial:
    makers = {
        "fastroute Bucket.acquire": bucket,
        "ratelimit": ratelimit,
        "token-bucket": token_bucket,
        "limits": limits,
        "pyrate-limiter": pyrate,
    }
    runs: dict[str, Callable[[float], Sequence[float]]] = {}
    for name, make in makers.items():
        one, eight = _rate(make, 1), _rate(make, 8)

        def both(seconds: float, one: Any = one, eight: Any = eight) -> list[float]:
            alone, together = one(seconds)[0], eight(seconds)[0]
            return [alone, together, together / alone]

        runs[name] = both
    return Trial(
        "Token bucket, granted: 8 threads beside 1",
        ("million a second, 1 thread", "8 threads", "8 : 1"),
        runs,
        seconds=0.4,
        rounds=5,
    )


# ----------------------------------------------------------------------------------- waiting for a permit

WAITERS = 32
PER_SECOND = 500


def _waiting(take: Callable[[ExitStack], Callable[[], int]]) -> Callable[[float], list[float]]:
    """Threads that wait for one permit after the other: rate reached, asks a permit, how evenly."""

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            acquire = take(stack)
            got = [0] * WAITERS
            tries = [0] * WAITERS
            ready, stop = threading.Barrier(WAITERS + 1), threading.Event()

            def work(place: int) -> None:
                ready.wait()
                while not stop.is_set():
                    asked = acquire()
                    if stop.is_set():
                        return  # a permit that came after the end
                    got[place] += 1
                    tries[place] += asked

            workers = [threading.Thread(target=work, args=(place,)) for place in range(WAITERS)]
            for worker in workers:
                worker.start()
            ready.wait()
            begun = time.perf_counter()
            time.sleep(seconds)
            stop.set()
            took = time.perf_counter() - begun
            total, asked = sum(got), sum(tries)
            for worker in workers:
                worker.join()
            mean = total / WAITERS
            spread = max(abs(count - mean) for count in got) / mean if mean else 1.0
            return [total / (PER_SECOND * took), asked / max(1, total), spread]

    return run


def _endpoint() -> _core.Endpoint:
    return _core.Endpoint(
        _core.Segment(1024), "waiting", rpm=PER_SECOND * 60, request_burst=1, max_in_flight=1000
    )


def in_line(_: ExitStack) -> Callable[[], int]:
    """As the dispatcher: ask; if refused, or if others wait already, reserve a time, sleep once, go in."""
    found, line = _endpoint(), Line()

    def acquire() -> int:
        asked = 0
        if not line.reserved("waiting"):
            asked = 1
            ticket = found.admit(1)
            if ticket >= 0:
                found.finish(ticket, _core.OK, 0.001)
                return asked
        place = line.enter(1)
        try:
            while True:
                asked += 1
                ticket = line.sleep(place, "waiting", found, 1, 10.0)
                if ticket >= 0:
                    found.finish(ticket, _core.OK, 0.001)
                    return asked
        finally:
            line.leave(place)

    return acquire


def retrying(_: ExitStack) -> Callable[[], int]:
    """Ask; if refused, sleep as long as the answer says and ask again."""
    found = _core.Bucket(_core.Segment(64), "retrying", PER_SECOND * 60, 1)

    def acquire() -> int:
        asked = 1
        while wait := found.acquire():
            asked += 1
            time.sleep(wait / 1e9)
        return asked

    return acquire


def pyrate_waiting(gcra: bool) -> Callable[[ExitStack], Callable[[], int]]:
    def make(stack: ExitStack) -> Callable[[], int]:
        package = need("pyrate_limiter")
        second = package.Duration.SECOND
        if gcra:
            limiter = _pyrate_limiter(package, package.Rate(PER_SECOND, second, burst=1))
        else:
            limiter = package.Limiter(package.Rate(PER_SECOND, second))
        stack.callback(limiter.close)

        def acquire() -> int:
            limiter.try_acquire("bench")  # it does not say how often it asked
            return 0

        return acquire

    return make


def ratelimit_waiting(_stack: ExitStack) -> Callable[[], int]:
    package = need("ratelimit")
    waits = package.sleep_and_retry(package.limits(calls=PER_SECOND, period=1)(lambda: None))

    def acquire() -> int:
        waits()
        return 0

    return acquire


TRIALS = (
    _threads(),
    Trial(
        f"Waiting for a permit: {WAITERS} threads on {PER_SECOND} a second",
        ("share of the rate", "asks a permit", "largest deviation of a thread"),
        {
            "fastroute Endpoint: reserve, sleep once, admit": _waiting(in_line),
            "a loop that sleeps what the refusal says (Bucket.acquire)": _waiting(retrying),
            "pyrate-limiter, blocking, GCRA": _waiting(pyrate_waiting(True)),
            "pyrate-limiter, blocking, its default (a window)": _waiting(pyrate_waiting(False)),
            "ratelimit.sleep_and_retry (a window)": _waiting(ratelimit_waiting),
        },
        seconds=3.0,
        rounds=3,
        note="asks: 0 where the package does not tell; in line, a refusal is one, a reservation another; "
        "a window lets a second's worth go at once",
    ),
)
