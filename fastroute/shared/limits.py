"""One endpoint's limits, breaker and blocks, shared with other machines.

Owns how much is leased, when it is given back, and what is told to the others and learned from them. The pool
that calls take from, and this machine's part of a limit while Redis is away, are the core's
(`fastroute._core.Lease`); the shared counts are `scripts.py`'s.

A lease is one per cent of the burst or a second's worth, whichever is more, and good for two seconds.
So the usual call finds what it needs on its own machine, and a machine that stops calling holds nothing back
for long.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from fastroute import _core

from .scripts import LIMIT, PROBE, PROBED, TELL
from .server import AwayError, Server

log = logging.getLogger("fastroute")

LEASE_NS = 2_000_000_000
_MINUTE_NS = 60_000_000_000
_PATIENCE = 0.25  # seconds that a thread waits for another one of its process that asks for the same limit


def refusal(reason: int, wait_ns: int) -> int:
    """As `Endpoint.admit` answers."""
    return -(max(0, wait_ns) << 3 | reason)


class SharedEndpoint:
    """The source of an endpoint's `Lease`: what the core asks when this machine alone cannot say.

    Args:
        machine: this machine's name among all.
        machines: how many machines are at work, as last heard.
        wake: has `settle` called soon, in a thread of its own.

    Thread safety: all methods.
    """

    def __init__(
        self,
        core: _core.Endpoint,
        server: Server,
        machine: str,
        machines: Callable[[], int],
        wake: Callable[[], None],
        probe_lease_s: float,
    ) -> None:
        self.name = core.name
        self._core = core
        self._server = server
        self._machine = machine
        self._machines = machines
        self._wake = wake
        self._probe_lease_s = probe_lease_s
        self._told: dict[str, bool] = {}  # what is to be told: breaker, block, probed, limits, low
        self._limits = (-1, -1)
        self._heard: dict[str, str] = {}
        self._taken = (-1, -1)
        self.lease = _core.Lease(core, self)
        self.follow()
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: nobody asks here yet."""
        self._asking = threading.Lock()
        self._pid = os.getpid()
        self._told = {}

    def follow(self) -> None:
        """Takes over the endpoint's limits as they are now."""
        interval_r, burst_r, interval_t, burst_t = self.lease.limits()
        self._chunk = (_chunk(interval_r, burst_r), _chunk(interval_t, burst_t))
        self.lease.marks(self._chunk[0] // 2, self._chunk[1] // 2)

    # ------------------------------------------------------------------------ what the core asks for

    def supply(self, tokens: int, now: int) -> int:
        """Brings at least one request and ``tokens`` into the pool; 0, or a refusal."""
        asking = self._asking
        locked = asking.acquire(timeout=_PATIENCE)
        try:
            now = _core.clock()
            if locked and self._enough(tokens, now):
                return 0  # another thread has brought it meanwhile
            return self._fill(tokens, now)
        finally:
            if locked:
                asking.release()

    def low(self) -> None:
        if "low" not in self._told:
            self._told["low"] = True
            self._wake()

    def reserve(self, tokens: int, max_wait: int, now: int) -> int:
        """Pays one request and ``tokens`` in the shared limit, to be used after a wait."""
        interval_r, burst_r, interval_t, burst_t = self.lease.limits()
        if (interval_r >= 0 and burst_r < 1) or (interval_t >= 0 and tokens > burst_t):
            return refusal(_core.TOO_LARGE, 0)
        try:
            granted, _, wait_r, _, _, wait_t, _ = self._ask(max_wait, (0, -1, 1, 1), (0, -1, tokens, tokens))
        except AwayError:
            return self.lease.share_ahead(tokens, self._machines(), max_wait)
        if granted:
            return max(wait_r, wait_t)
        if wait_r > max_wait:
            return refusal(_core.REQUESTS, wait_r)
        return refusal(_core.TOKENS, wait_t)

    def unreserve(self, tokens: int, now: int) -> None:
        """Gives back what `reserve` paid."""
        try:
            self._ask(0, (-1, -1, 0, 0), (-tokens, -1, 0, 0))
        except AwayError:
            pass  # what was reserved there passes with its time

    def probe(self, now: int) -> int:
        """0: this machine may send the probe; or the ns until it is worth asking again."""
        lease = int(self._probe_lease_s * 1000)
        try:
            left = self._server.run(PROBE, [self._server.key("probe", self.name)], self._machine, lease)
            return int(left) * 1_000_000
        except (AwayError, ValueError):
            return 0

    def judged(self, flags: int) -> None:
        self._told["probed"] = True
        if flags:
            self._told["breaker"] = True
        self._wake()

    def tightened(self, requests: int, tokens: int) -> None:
        self._limits = (requests, tokens)
        self._told["limits"] = True
        self._wake()

    def blocked(self) -> None:
        self._told["block"] = True
        self._wake()

    # -------------------------------------------------------------------------- in a thread of its own

    def settle(self) -> None:
        """Tells what is to be told and fills the pool up if it was found low.

        Raises:
            AwayError: Redis is away; what was to be told is forgotten, but for the breaker and blocks.
        """
        told = self._told
        if told.pop("low", False) and self._asking.acquire(blocking=False):
            try:
                self._top_up(_core.clock())
            finally:
                self._asking.release()
        if told.pop("probed", False):
            self._server.run(PROBED, [self._server.key("probe", self.name)], self._machine)
        if told.pop("limits", False):
            requests, tokens = self._limits
            self._ask(0, (0, requests, 0, 0), (0, tokens, 0, 0))
        for kind, tell in (("breaker", self._tell_breaker), ("block", self._tell_block)):
            if told.pop(kind, False):
                try:
                    tell()
                except AwayError:
                    told[kind] = True
                    raise

    def give_back(self, everything: bool = False) -> None:
        """Gives back what nobody took since the last time, or all of it.

        Raises:
            AwayError: Redis is away; the lease passes with its time.
        """
        taken = self._core.counts[0] + self._core.counts[1], self._core.in_flight
        idle = taken == self._taken
        self._taken = taken
        keep = (0, 0) if idle or everything else (2 * self._chunk[0], 2 * self._chunk[1])
        requests, tokens = self.lease.drain(*keep)
        debt_r, debt_t = (min(0, balance) for balance in self.lease.balance())
        if requests or tokens or debt_r or debt_t:
            self._ask(0, (-requests - debt_r, -1, 0, 0), (-tokens - debt_t, -1, 0, 0))
            self.lease.grant(-debt_r, -debt_t, _core.clock() + LEASE_NS)

    def learn(self, field: str, value: str, server_ms: int, first: bool) -> None:
        """Takes over what another machine has told, unless it is known already."""
        if self._heard.get(field) == value:
            return
        self._heard[field] = value
        try:
            word, until, code, _ = value.split(" ")
            left = (int(until) - server_ms) * 1_000_000
            if field.startswith("breaker") and word == "open" and left > 0:
                self.lease.open(_core.clock() + left)
            elif field.startswith("breaker") and word == "closed" and not first:
                self.lease.close()
            elif field.startswith("block") and word == "blocked" and left > 0:
                self._block(_core.clock() + left, int(code))
        except (ValueError, OverflowError):
            return  # written by somebody else

    # ------------------------------------------------------------------------------------------ inside

    def _block(self, until: int, reason: int) -> None:
        self._core.block(until, reason)
        self._told.pop("block", None)  # it came from there

    def _tell_breaker(self) -> None:
        left = self._core.reopens_in()
        if left:
            self._tell("breaker", "open", left, 0)
        elif self._core.state() == _core.CLOSED:
            self._tell("breaker", "closed", 0, 0)

    def _tell_block(self) -> None:
        left, reason = self._core.blocked()
        self._tell("block", "blocked", left, reason)

    def _tell(self, kind: str, word: str, left_ns: int, code: int) -> None:
        server = self._server
        keys = [server.key("news"), server.key("version")]
        change = server.request_id()
        server.run(TELL, keys, change, f"{kind}:{self.name}", word, left_ns // 1_000_000, code)

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
        lease.grant(got_r + debt_r, got_t + debt_t, _core.clock() + LEASE_NS)
        if granted:
            return 0
        return refusal(_core.REQUESTS, wait_r) if wait_r else refusal(_core.TOKENS, wait_t)

    def _top_up(self, now: int) -> None:
        """Leases up to a chunk more of what is below half of one."""
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
        """Runs the limit's script; what it says of the buckets is taken note of."""
        interval_r, burst_r, interval_t, burst_t = self.lease.limits()
        server = self._server
        keys = [server.key("limit", self.name), server.key("done", server.request_id())]
        text = server.run(LIMIT, keys, patience, interval_r, burst_r, *requests, interval_t, burst_t, *tokens)
        try:
            answer = [int(word) for word in str(text).split(" ")]
            _, _, _, ahead_r, _, _, ahead_t = answer
        except ValueError:
            raise AwayError("Redis answered with something else") from None
        self.lease.heard(max(0, ahead_r), max(0, ahead_t))
        return answer


def _chunk(interval: int, burst: int) -> int:
    """Permits in one lease: of an interval (ns; -1: no limit), never more than half of the burst."""
    if interval <= 0:
        return 0
    per_minute = _MINUTE_NS // interval
    return max(1, min(max(per_minute // 60, burst // 100), burst // 2))
