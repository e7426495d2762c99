"""Background checks of endpoints without calls or with an open breaker, and calls to one endpoint.

A check of kind ``completion`` is a call like any other (`ask`), with its ledger entry and cost; one of kind
``models`` uses `discovery`. The core decides what a result does to the breaker.

An endpoint is checked if it had no result for an interval, or if its breaker is not closed. All processes
that share the state look for such endpoints, and one claims the check: the claim is a bucket of the shared
state with the capacity of one interval in milliseconds, which a claim empties. So there is at most one check
per interval, and if the process that claimed it is killed, another one claims the next.

A check takes nothing that a caller may need: it does not wait for limits, and it is skipped while a limit is
half used. Its latency is not recorded, because its answer is shorter than that of a usual call.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, evolve

from fastroute import _core, errors, events
from fastroute.calls.call import Call
from fastroute.calls.queue import WaitQueue
from fastroute.calls.stream import Stream
from fastroute.config import HealthCheckConfig
from fastroute.state.endpoints import STATE_NAMES, LiveEndpoint
from fastroute.types import Completion, Request, RouteOptions

from .generation import Generation

if TYPE_CHECKING:
    from fastroute.providers.listing import Listing

log = logging.getLogger("fastroute")

PROMPT = "Reply with OK."
TAG = "probe"  # the tag of calls that only measure; its value says why they were made

_MESSAGES = ({"role": "user", "content": PROMPT},)
_OPTIONS = RouteOptions(tags={TAG: "health-check"}, cache=False, priority="low")
_MS = 1_000_000  # ns
_TICK = 20 * _MS  # more than the delay of the coarse clock that plans use
_AT_ONCE = 4  # endpoints that are checked at the same time
_JITTER = 0.1  # random delay, as a share of the interval, so that machines do not check at the same time
_PAUSE, _PAUSES = 0.05, 20  # seconds between tries of a second probe, and their number
_TRY_AGAIN = 1.0  # seconds after an unexpected error


def ask(
    generation: Generation, endpoint: LiveEndpoint, request: Request, timeout: float, *, wait: bool
) -> Completion | Stream:
    """One call to one endpoint: no cache, no other endpoint, no second attempt.

    It is limited, recorded and charged like any other call. Its latency does not affect the ranking of
    endpoints, because such requests usually differ from those of callers.

    Args:
        generation: the generation that serves the call.
        endpoint: one of its endpoints.
        request: the request; its model and tier are ignored.
        timeout: seconds that it may take, including waiting.
        wait: whether it may wait for a limit.

    Raises:
        Error: the attempt failed, or, if ``.attempts`` is empty, the call was not admitted.
    """
    started = time.monotonic()
    plan = generation.planner.plan(request, endpoint)
    estimate = evolve(plan.estimate, timeout=min(plan.estimate.timeout, timeout))
    call = Call(request, estimate, plan.judgement, started, started + timeout)
    call.timed = False
    return generation.dispatcher.once(call, plan, wait=wait)


# ------------------------------------------------------------------------------------------- in background


class Owner(Protocol):
    """The runtime whose endpoints are checked."""

    hooks: events.Hooks
    queue: WaitQueue

    def enter(self, token: object) -> Generation: ...
    def leave(self, generation: Generation | None, token: object) -> None: ...


@define(eq=False, kw_only=True)
class _Known:
    """This process's record of one endpoint.

    Attributes:
        counts: the endpoint's numbers of good and bad results when they were last read.
        since: when these numbers last changed, ns.
        claim: the bucket from which its checks are claimed.
        interval: the interval for which ``claim`` was made, ms.
        listed: whether its provider has returned its list of models before.
        checks, failed, unclear: the checks that this process made, and those with this outcome.
        skipped: checks that this process claimed, but that were not admitted.
    """

    counts: tuple[int, int]
    since: int
    claim: _core.Bucket | None = None
    interval: int = 0
    listed: bool = False
    checks: int = 0
    failed: int = 0
    unclear: int = 0
    skipped: int = 0
    outcome: str | None = None
    at: float | None = None
    took: float | None = None
    error: str | None = None


class HealthChecks:
    """Checks the endpoints of a client in a separate thread.

    Args:
        owner: the client's runtime; its current generation has the endpoints and the settings.

    Thread safety: all methods. The thread starts with the first call of a process, and again in a forked
    child; it ends when this object is collected.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = weakref.ref(owner)  # the owner refers to this
        self._hooks, self._queue = owner.hooks, owner.queue
        self._known: dict[str, _Known] = {}
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: has no thread yet, and a new random generator."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._random = random.Random()

    def ensure(self) -> None:
        """Starts this process's thread if it does not run."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stopped:
                wake = self._wake
                self._thread = threading.Thread(
                    target=_look_until_stopped,
                    args=(weakref.ref(self, lambda _: wake.set()), wake),
                    name="fastroute-health",
                    daemon=True,
                )
                self._thread.start()

    def wake(self) -> None:
        """Makes the thread look at once, after a change of the configuration."""
        self._wake.set()

    def stop(self, *, wait: bool = True) -> None:
        """Ends the thread after its current check. Idempotent.

        Args:
            wait: whether to wait for its end.
        """
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._wake.set()
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def look(self, now: int = 0) -> float:
        """Makes the checks that are due.

        Args:
            now: the time by the core's clock, ns; 0 reads the clock.

        Returns:
            Seconds until the next check may be due.

        Raises:
            Error: the client is closed.
        """
        owner = self._owner()
        if owner is None:
            raise errors.Error("the client is closed")
        token, generation = object(), None
        try:
            generation = owner.enter(token)
            rule = generation.config.policy.health_check
            now = now or _core.clock()
            interval = int(rule.interval * 1e9)
            waits, due = [interval], []
            found: dict[str, _Known] = {}
            for endpoint in generation.state.endpoints:
                known = self._known.get(endpoint.name) or _Known(counts=endpoint.core.counts, since=now)
                found[endpoint.name] = known
                wait = self._due_in(generation, endpoint, known, interval, now)
                if wait > 0:
                    waits.append(wait)
                else:
                    due.append(partial(self._check, generation, endpoint, known, rule))
            self._known = found
            self._side_by_side(due)
        finally:
            owner.leave(generation, token)
        return (min(waits) + self._random.random() * _JITTER * interval) / 1e9

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The figures of this process's checks by endpoint, as plain values."""
        return {
            name: {
                "checks": known.checks,
                "failed": known.failed,
                "unclear": known.unclear,
                "skipped": known.skipped,
                "outcome": known.outcome,
                "time": known.at,
                "took_s": known.took,
                "error": known.error,
            }
            for name, known in tuple(self._known.items())
        }

    # ------------------------------------------------------------------------------------- when, and by whom

    def _due_in(
        self, generation: Generation, endpoint: LiveEndpoint, known: _Known, interval: int, now: int
    ) -> int:
        """Nanoseconds until the endpoint should be looked at again; 0 if this process checks it now."""
        core = endpoint.core
        counts = core.counts
        if counts != known.counts:
            known.counts, known.since = counts, now
        blocked, _ = core.blocked()
        if blocked:
            return blocked
        if core.state() == _core.CLOSED and now < known.since + interval:
            return known.since + interval - now
        if self._is_tight(generation, core):
            return interval // 10
        return self._claimed_for(generation, endpoint.name, known, interval // _MS, now)

    def _claimed_for(self, generation: Generation, name: str, known: _Known, interval: int, now: int) -> int:
        """Nanoseconds until the check can be claimed again; 0 if this process has claimed it now."""
        if known.claim is None or known.interval != interval:
            try:
                known.claim = _core.Bucket(generation.state.segment, f"(health) {name}", 60_000, interval)
            except _core.SegmentFullError:
                return interval * _MS  # the segment is full, also for other processes: make no check
            known.interval = interval
        return known.claim.acquire(interval, now)

    def _is_tight(self, generation: Generation, core: _core.Endpoint) -> bool:
        """Whether a limit is half used, so that callers may soon need what a check would take."""
        if self._queue.waiting:
            return True
        permits = core.max_in_flight if core.bearable is None else core.bearable
        if 2 * core.in_flight >= permits:
            return True
        if core.rpm >= 0 and 2 * core.available_requests() < core.request_burst:
            return True
        if core.tpm >= 0 and 2 * core.available_tokens() < core.token_burst:
            return True
        gate = generation.state.gate
        return gate is not None and 2 * gate.in_flight >= gate.max_in_flight

    def _side_by_side(self, checks: Sequence[Callable[[], None]]) -> None:
        """Makes checks at the same time, so that an endpoint that hangs does not delay the others."""
        left: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for check in checks:
            left.put(check)

        def work() -> None:
            while not self._stopped:
                try:
                    left.get_nowait()()
                except queue.Empty:
                    return

        threads = [
            threading.Thread(target=work, name=f"fastroute-health-{place}", daemon=True)
            for place in range(1, min(len(checks), _AT_ONCE))
        ]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()

    # ------------------------------------------------------------------------------------------------ a check

    def _check(
        self, generation: Generation, endpoint: LiveEndpoint, known: _Known, rule: HealthCheckConfig
    ) -> None:
        core = endpoint.core
        started = time.monotonic()
        error: errors.Error | None = None
        outcome = "ok"
        try:
            if rule.kind == "completion":
                sent = self._complete(generation, endpoint, rule)
            else:
                sent = self._list(generation, endpoint, rule, known)
        except errors.Error as problem:
            error, sent = problem, True
            outcome = "failed" if _is_failure(problem, rule.kind, known.listed) else "unclear"
        except Exception:
            log.exception("the check of %s failed with an unexpected error", endpoint.name)
            return
        finally:
            known.counts = core.counts  # so that the check's own result does not count as that of a call
        took = time.monotonic() - started
        with self._lock:
            if not sent:
                known.skipped += 1
                return
            known.checks += 1
            known.failed += outcome == "failed"
            known.unclear += outcome == "unclear"
            known.outcome, known.at, known.took = outcome, time.time(), took
            known.error = None if error is None else type(error).__name__
        if self._hooks.wanted:
            state = STATE_NAMES[core.state()]
            self._hooks.emit(
                events.HealthChecked(
                    endpoint=endpoint.name,
                    kind=rule.kind,
                    outcome=outcome,
                    seconds=took,
                    error=known.error,
                    state=state,
                )
            )

    def _complete(self, generation: Generation, endpoint: LiveEndpoint, rule: HealthCheckConfig) -> bool:
        """Requests a short answer, as a probe unless the breaker is closed; returns whether it was admitted.

        An open breaker is made half-open first, so that a recovery is detected before its time. Further
        probes follow at once until the breaker closes.
        """
        core = endpoint.core
        request = Request(endpoint.model.name, _MESSAGES, {"max_tokens": rule.max_tokens}, False, _OPTIONS)
        good, pauses = 0, _PAUSES
        _end_opening(core)
        while good < generation.config.policy.breaker.probes_to_close:
            try:
                ask(generation, endpoint, request, rule.timeout, wait=False)
                good += 1
            except errors.Error as error:
                if error.attempts:
                    raise
                if not good or not pauses or self._stopped:
                    return good > 0
                # With many machines, the right to send a probe is returned a moment after the probe.
                pauses -= 1
                time.sleep(_PAUSE)
            if core.state() != _core.HALF_OPEN:
                break
        return True

    def _list(
        self, generation: Generation, endpoint: LiveEndpoint, rule: HealthCheckConfig, known: _Known
    ) -> bool:
        """Requests the provider's list of models; returns False if there is none or it was not admitted.

        A list shows that the provider is reachable, not that the model answers. So it makes an open breaker
        half-open, and the next call is the probe. Without a list the breaker stays open.
        """
        from fastroute.providers.listing import listing_of  # imports all formats

        core = endpoint.core
        listing = listing_of(generation.upstreams[endpoint.name].format)
        if listing is None:
            return False
        if core.state() == _core.OPEN:
            self._read_list(generation, endpoint, listing, rule.timeout)
            known.listed = True
            _end_opening(core)
            return True
        ticket = core.admit()
        if ticket < 0:
            return False
        ended: int | None = None
        try:
            half_open = core.state() == _core.HALF_OPEN  # then this request is the probe
            try:
                self._read_list(generation, endpoint, listing, rule.timeout)
                known.listed = True
                ended = _core.IGNORED if half_open else _core.OK
            except errors.Error as error:
                ended = _core.FAILURE if _is_failure(error, "models", known.listed) else _core.IGNORED
                raise
        finally:
            if ended is None:
                core.undo(ticket, 0)
            else:
                self._finish(endpoint, ticket, ended)
            self._queue.freed(endpoint.name)
        return True

    def _read_list(
        self, generation: Generation, endpoint: LiveEndpoint, listing: Listing, timeout: float
    ) -> None:
        from . import discovery

        upstream = generation.upstreams[endpoint.name]
        deadline = time.monotonic() + timeout
        discovery.page(upstream.transport, upstream.format, listing, upstream.target, None, deadline)

    def _finish(self, endpoint: LiveEndpoint, ticket: int, outcome: int) -> None:
        opened = endpoint.core.finish(ticket, outcome)  # only a call closes the breaker
        if not opened:
            return
        log.warning("the breaker of %s is open: its list of models is unavailable", endpoint.name)
        if self._hooks.wanted:
            self._hooks.emit(events.BreakerChanged(endpoint.name, "open"))


def _end_opening(core: _core.Endpoint) -> None:
    """Makes an open breaker half-open, so that the next call is its probe."""
    core.hurry(_core.clock() - _TICK)


def _is_failure(error: errors.Error, kind: str, listed: bool) -> bool:
    """Whether an error is caused by the endpoint, and not by the key, the limits or the check itself.

    Some providers that serve calls have no list of models, so an invalid list counts only if there was a
    valid one before.
    """
    if isinstance(error, errors.UpstreamProtocolError) or (
        isinstance(error, errors.APIStatusError) and (error.status_code or 0) >= 500
    ):
        return kind == "completion" or listed
    return isinstance(error, errors.APIConnectionError)


def _look_until_stopped(found: weakref.ref[HealthChecks], wake: threading.Event) -> None:
    while True:
        wake.clear()
        checks = found()
        if checks is None or checks.stopped:
            return
        try:
            pause = checks.look()
        except errors.Error:
            return  # the client is closed
        except Exception:
            log.exception("the search for endpoints to check failed; it will be tried again")
            pause = _TRY_AGAIN
        # So that unused checks can be collected.
        del checks
        wake.wait(pause)


__all__ = ["PROMPT", "TAG", "HealthChecks", "ask"]
