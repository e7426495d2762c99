"""Token buckets and breakers, compared with those of other packages, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from fastroute import _core
from fastroute.calls.queue import WaitQueue

from .side_by_side import FLOOR, NO_OP, Comparison, Contender, Operation, Trial, WrongAnswerError, need
from .workers import load

PLENTY = 1_000_000_000  # per minute, the maximum: one each 60 ns; a burst covers faster loops


def bucket(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        found = _core.Bucket(
            _core.Segment(64), "bench", PLENTY if granted else 1, 1_000_000_000 if granted else 1
        )
        if not granted:
            found.acquire(1)
        names = {"acquire": found.acquire}
        return Operation("acquire()", names, lambda wait: wait == 0 if granted else wait > 0)

    return make


def ratelimit(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        limits = need("ratelimit").limits
        limited = limits(calls=10**12 if granted else 1, period=3600, raise_on_limit=False)(lambda: True)
        if not granted:
            limited()
        expected = True if granted else None
        return Operation("limited()", {"limited": limited}, lambda answer: answer is expected)

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
        strategy = need("limits.strategies").FixedWindowRateLimiter(storage)  # its fastest strategy
        item = package.RateLimitItemPerHour(10**12 if granted else 1)
        if not granted:
            strategy.hit(item, "bench")
        names = {"hit": strategy.hit, "item": item}
        return Operation("hit(item, 'bench')", names, lambda answer: answer is granted)

    return make


def pyrate(granted: bool) -> Callable[[ExitStack], Operation]:
    def make(stack: ExitStack) -> Operation:
        package = need("pyrate_limiter")
        # Its default is a log with one entry per permit; its GCRA keeps a number, as ours does.
        rate = package.Rate(10**9 if granted else 1, package.Duration.HOUR)
        limiter = _pyrate_limiter(package, rate)
        stack.callback(limiter.close)
        if not granted:
            limiter.try_acquire("bench", blocking=False)
        # Without blocking, it also refuses a thread while another one is inside.
        names = {"acquire": limiter.try_acquire, "wait": granted}
        return Operation("acquire('bench', blocking=wait)", names, lambda answer: answer is granted)

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
    return Operation("record(allow(), OK)", names, lambda state: state == -1)  # -1: unchanged


def call(_: ExitStack) -> Operation:
    return Operation("f()", {"f": _called}, _was_called)


def _called() -> bool:
    return True


def _was_called(answer: Any) -> bool:
    return answer is True


def circuitbreaker(_: ExitStack) -> Operation:
    wrapped = need("circuitbreaker").circuit(_called)
    return Operation("f()", {"f": wrapped}, _was_called)


def pybreaker(_: ExitStack) -> Operation:
    wrapped = need("pybreaker").CircuitBreaker(fail_max=5, reset_timeout=60)(_called)
    return Operation("f()", {"f": wrapped}, _was_called)


def endpoint(_: ExitStack) -> Operation:
    found = _core.Endpoint(
        _core.Segment(256), "bench", rpm=10**9, request_burst=10**9, tpm=10**9, token_burst=10**9
    )
    names = {"admit": found.admit, "finish": found.finish, "OK": _core.OK}

    def went_through(state: int) -> bool:
        # After a refusal there would be no ticket to finish. The permit of this check is released.
        before = found.counts[0]
        finished = found.finish(found.admit(700), _core.OK, 0.5, -100)
        return state == finished == 0 and found.counts[0] == before + 1 and found.in_flight == 0

    return Operation("finish(admit(700), OK, 0.5, -100)", names, went_through)


COMPARISONS = (
    _acquiring(True),
    _acquiring(False),
    Comparison(
        "Breaker: what it adds to a call",
        (
            NO_OP,
            FLOOR,
            Contender("a call of an empty Python function", call),
            Contender("fastroute Breaker.allow + record", breaker, ours=True),
            Contender(
                "fastroute Endpoint.admit + finish (limits, breaker, permits, latency)", endpoint, ours=True
            ),
            Contender("circuitbreaker, around an empty function", circuitbreaker),
            Contender("pybreaker, around an empty function", pybreaker),
        ),
        base="fastroute Breaker.allow + record",
        note="the peers wrap a call: subtract the call of an empty function",
    ),
)


# ------------------------------------------------------------------------------------------ many threads


_BATCH = 200  # acquires between two checks of the time


def acquire_rate(make: Callable[[ExitStack], Operation], threads: int, seconds: float) -> float:
    """Millions of acquires per second of several threads on one limiter; checks the last of each batch."""
    with ExitStack() as stack:
        operation = make(stack)
        body = compile(
            f"for _ in range({_BATCH}):\n    answer = {operation.statement}", "<benchmark>", "exec"
        )

        def prepare(_: int) -> Callable[[], None]:
            names = dict(operation.names)

            def batch() -> None:
                exec(body, names)
                if not operation.check(names["answer"]):
                    raise WrongAnswerError(f"{operation.statement} gave {names['answer']!r}")

            return batch

        found = load(threads, seconds, prepare)
        return sum(found.counts) * _BATCH / found.seconds / 1e6


def alone_and_together(make: Callable[[ExitStack], Operation]) -> Callable[[float], list[float]]:
    def run(seconds: float) -> list[float]:
        alone, together = acquire_rate(make, 1, seconds), acquire_rate(make, 8, seconds)
        return [alone, together, together / alone]

    return run


_THREADS = Trial(
    "Token bucket, granted: 8 threads and 1",
    ("million per second, 1 thread", "8 threads", "8 : 1"),
    {
        "fastroute Bucket.acquire": alone_and_together(bucket(True)),
        "ratelimit": alone_and_together(ratelimit(True)),
        "token-bucket": alone_and_together(token_bucket(True)),
        "limits": alone_and_together(limits(True)),
        "pyrate-limiter": alone_and_together(pyrate(True)),
    },
    seconds=0.4,
    rounds=5,
)


# ----------------------------------------------------------------------------------- waiting for a permit

WAITERS = 32
PER_SECOND = 500


def waiting(take: Callable[[ExitStack], Callable[[], int]], burst: int) -> Callable[[float], list[float]]:
    """Threads that wait for one permit after the other: the rate, calls per permit, the deviation.

    Args:
        take: makes the limiter; returns a function that waits for a permit and returns its number of calls.
        burst: permits that may be granted at once. More than this and the rate together fail the run.
    """

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            begun = time.perf_counter()  # before the limiter exists, so that the bound is not too small
            acquire = take(stack)
            asks = [0] * WAITERS

            def prepare(place: int) -> Callable[[], None]:
                def one_more() -> None:
                    asks[place] += acquire()

                return one_more

            found = load(WAITERS, seconds, prepare)
            bound = burst + PER_SECOND * (time.perf_counter() - begun)
            if found.total > bound:
                raise WrongAnswerError(f"{found.total} permits were given where {bound:.0f} are the most")
            got = sum(found.counts)
            mean = got / WAITERS
            spread = max(abs(count - mean) for count in found.counts) / mean
            return [got / (PER_SECOND * found.seconds), sum(asks) / found.total, spread]

    return run


def _endpoint() -> _core.Endpoint:
    return _core.Endpoint(
        _core.Segment(1024), "waiting", rpm=PER_SECOND * 60, request_burst=1, max_in_flight=1000
    )


def in_line(_: ExitStack) -> Callable[[], int]:
    """Waits as `calls/admission.py` does: if refused, or if others wait, reserves a time and sleeps once."""
    found, queue = _endpoint(), WaitQueue()

    def go_in() -> int:
        return found.admit(1, reserved=True)

    def acquire() -> int:
        asked = 0
        if not queue.reserved("waiting"):
            asked = 1
            ticket = found.admit(1)
            if ticket >= 0:
                found.finish(ticket, _core.OK, 0.001)
                return asked
        waiter = queue.enter(queue.waiter(1))
        try:
            while True:
                asked += 1
                ticket = queue.sleep(waiter, "waiting", found, 1, 10.0, go_in)
                if ticket >= 0:
                    found.finish(ticket, _core.OK, 0.001)
                    return asked
        finally:
            queue.leave(waiter)

    return acquire


def retrying(_: ExitStack) -> Callable[[], int]:
    """Tries; if refused, sleeps for the time in the refusal and tries again."""
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
            if limiter.try_acquire("bench") is not True:
                raise WrongAnswerError("try_acquire gave no permit")
            return 0  # the package does not report its number of calls

        return acquire

    return make


def ratelimit_waiting(_stack: ExitStack) -> Callable[[], int]:
    package = need("ratelimit")
    waits = package.sleep_and_retry(package.limits(calls=PER_SECOND, period=1)(_called))

    def acquire() -> int:
        if waits() is not True:
            raise WrongAnswerError("the call was not made")
        return 0

    return acquire


TRIALS = (
    _THREADS,
    Trial(
        f"Waiting for a permit: {WAITERS} threads at {PER_SECOND} per second",
        ("share of the rate", "calls per permit", "largest deviation of a thread"),
        {
            "fastroute Endpoint: reserve, sleep once, admit": waiting(in_line, burst=1),
            "a loop that sleeps for the time in the refusal (Bucket.acquire)": waiting(retrying, burst=1),
            "pyrate-limiter, blocking, GCRA": waiting(pyrate_waiting(True), burst=1),
            "pyrate-limiter, blocking, its default (a window)": waiting(
                pyrate_waiting(False), burst=PER_SECOND
            ),
            "ratelimit.sleep_and_retry (a window)": waiting(ratelimit_waiting, burst=PER_SECOND),
        },
        seconds=3.0,
        rounds=3,
        note="calls per permit: 0 if the package does not report it; for fastroute a refusal and a "
        "reservation count one each; a window admits the permits of a second at once",
    ),
)
