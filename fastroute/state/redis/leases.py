"""Leases an endpoint's or a caller's limits of requests and tokens per minute to this machine.

Calls take from a local pool (`fastroute._core.Lease`), which also computes this machine's share of a limit
while Redis is unavailable. The shared counts are in `scripts.py`.

A lease is one per cent of the burst or one second's worth, whichever is more, and lasts two seconds. So most
calls find what they need on their own machine, and a machine that stops calling does not withhold much.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fastroute import _core

from .address import AwayError
from .answers import UnexpectedAnswerError, whole, words
from .connection import RedisConnection
from .scripts import LIMIT

LEASE_NS = 2_000_000_000
PATIENCE = 0.25  # seconds that a thread waits for another thread that is leasing the same limit
_MINUTE_NS = 60_000_000_000


def refusal(reason: int, wait_ns: int) -> int:
    """A refusal in the form that `Endpoint.admit` returns."""
    return -(max(0, wait_ns) << 3 | reason)


class SharedLimits:
    """The source of a `Lease`, which the core calls when the local pool is not enough.

    Args:
        core: the object that has the limits.
        kind: the first part of the limits' key in Redis, before the name.
        machines: returns the last known number of machines.
        wake: makes the sharing thread call `settle` soon.
        permits: whether calls in flight are leased by the same `Lease`.

    Thread safety: all methods.
    """

    def __init__(
        self,
        core: _core.Limited,
        kind: str,
        connection: RedisConnection,
        machines: Callable[[], int],
        wake: Callable[[], None],
        *,
        permits: bool = False,
    ) -> None:
        self.name = core.name
        self._key = connection.key(kind, core.name)
        self._connection = connection
        self._machines = machines
        self._wake = wake
        self._told: dict[str, bool] = {}  # kinds of work for the next `settle`
        self._balance = (-1, -1)  # at the last heartbeat
        self._refused_until = 0  # core clock (ns) until which calls are refused, by the last answer
        self.lease = _core.Lease(core, self, permits=permits)
        interval_r, burst_r, interval_t, burst_t = self.lease.limits()
        self._chunk = (_chunk(interval_r, burst_r), _chunk(interval_t, burst_t))
        self.lease.marks(self._chunk[0] // 2, self._chunk[1] // 2)
        self._asking = threading.Lock()

    def after_fork(self) -> None:
        """Replaces the lock in a forked child, where the thread that may hold it does not exist."""
        self._asking = threading.Lock()
        self._told = {}

    # ------------------------------------------------------------------------ called by the core

    def supply(self, tokens: int, now: int) -> int:
        """Leases at least one request and ``tokens`` into the pool; returns 0 or a refusal."""
        # After the time-out it asks Redis itself: two requests are better than a call that waits behind a
        # thread whose request hangs.
        asking = self._asking
        locked = asking.acquire(timeout=PATIENCE)
        try:
            now = _core.clock()
            if locked and self._enough(tokens, now):
                return 0  # another thread has leased it in the meantime
            return self._fill(tokens, now)
        finally:
            if locked:
                asking.release()

    def low(self) -> None:
        """Makes the sharing thread refill the pool."""
        # Called during admission, so without a lock: dict operations are atomic.
        if "low" not in self._told:
            self._told["low"] = True
            self._wake()

    # -------------------------------------------------------------------------- called by the sharing thread

    def settle(self) -> None:
        """Refills the pool if it is low.

        Raises:
            AwayError: if Redis is unavailable.
        """
        if self._told.pop("low", False) and self._asking.acquire(blocking=False):
            try:
                self._top_up(_core.clock())
            finally:
                self._asking.release()

    def give_back(self, everything: bool = False) -> None:
        """Returns what was not used since the last heartbeat, or everything; reads what others have returned.

        Raises:
            AwayError: if Redis is unavailable; the lease expires.
        """
        # An unchanged balance means no call for a second: all is returned. Otherwise two leases are kept.
        balance = self.lease.balance()
        idle = balance == self._balance
        self._balance = balance
        keep = (0, 0) if idle or everything else (2 * self._chunk[0], 2 * self._chunk[1])
        requests, tokens = self.lease.drain(*keep)
        debt_r, debt_t = (min(0, balance) for balance in self.lease.balance())
        # What is returned has left the pool before, and a debt leaves it only after it was charged. A process
        # killed in between loses permits or has a debt charged twice; no permit is used twice.
        if requests or tokens or debt_r or debt_t:
            self._ask(0, (-requests - debt_r, -1, 0, 0), (-tokens - debt_t, -1, 0, 0))
            self.lease.grant(-debt_r, -debt_t, _core.clock() + LEASE_NS)
        elif _core.clock() < self._refused_until:
            self._ask(0, (0, -1, 0, 0), (0, -1, 0, 0))  # others may have returned what calls here wait for

    # ------------------------------------------------------------------------------------------ inside

    def _enough(self, tokens: int, now: int) -> bool:
        interval_r, _, interval_t, _ = self.lease.limits()
        requests, there = self.lease.balance(now)
        return (interval_r < 0 or requests >= 1) and (interval_t < 0 or there >= tokens)

    def _fill(self, tokens: int, now: int) -> int:
        lease = self.lease
        requests, there = lease.balance(now)
        debt_r, debt_t = max(0, -requests), max(0, -there)
        need_r, need_t = max(0, 1 - max(0, requests)), max(0, tokens - max(0, there))
        try:
            granted, got_r, wait_r, _, got_t, wait_t, _ = self._ask(
                0,
                (debt_r, -1, need_r, max(need_r, self._chunk[0])),
                (debt_t, -1, need_t, max(need_t, self._chunk[1])),
            )
        except AwayError:
            return lease.share(tokens, self._machines(), _core.clock() + LEASE_NS)
        # The script charges a debt whether or not it grants a lease.
        lease.grant(got_r + debt_r, got_t + debt_t, _core.clock() + LEASE_NS)
        if granted:
            return 0
        self._refused_until = _core.clock() + max(wait_r, wait_t)
        return refusal(_core.REQUESTS, wait_r) if wait_r else refusal(_core.TOKENS, wait_t)

    def _top_up(self, now: int) -> None:
        """Leases up to one chunk more of each limit that has less than half a chunk left."""
        requests, tokens = self.lease.balance(now)
        chunk_r, chunk_t = self._chunk
        want_r = chunk_r if 0 <= requests < chunk_r // 2 else 0
        want_t = chunk_t if 0 <= tokens < chunk_t // 2 else 0
        if want_r or want_t:
            _, got_r, _, _, got_t, _, _ = self._ask(
                0, (0, -1, min(1, want_r), want_r), (0, -1, min(1, want_t), want_t)
            )
            self.lease.grant(got_r, got_t, _core.clock() + LEASE_NS)

    def _ask(self, patience: int, requests: tuple[int, ...], tokens: tuple[int, ...]) -> list[int]:
        """Runs the limit's script and records the fill of the shared buckets."""
        interval_r, burst_r, interval_t, burst_t = self.lease.limits()
        connection = self._connection
        keys = [self._key, connection.key("done", connection.request_id())]

        def read(text: Any) -> list[int]:
            *answer, damaged = (whole(word) for word in words(text, 8))
            granted, got_r, _, _, got_t, _, _ = answer
            if damaged:
                connection.mended(self._key)
            # More than was asked for would be taken from all others.
            if granted > 1 or got_r > max(requests[2:]) or got_t > max(tokens[2:]):
                raise UnexpectedAnswerError("more than was asked for")
            return answer

        answer = connection.run(
            LIMIT, keys, patience, interval_r, burst_r, *requests, interval_t, burst_t, *tokens, read=read
        )
        self.lease.heard(answer[3], answer[6])
        return answer


def _chunk(interval: int, burst: int) -> int:
    """Permits in one lease, at most half of the burst; the interval is ns per permit, -1 without a limit."""
    if interval <= 0:
        return 0
    per_minute = _MINUTE_NS // interval
    return max(1, min(max(per_minute // 60, burst // 100), burst // 2))
