"""Shares one endpoint between machines: its limits, calls in flight, breaker and blocks.

Publishes changes of the breaker and of blocks, and applies those of other machines. Leasing is in `leases.py`
and `permits.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastroute import _core
from fastroute.state.endpoints import BlockReason

from .address import AwayError
from .answers import whole, words
from .connection import RedisConnection
from .leases import PATIENCE, SharedLimits, refusal
from .permits import Permits
from .scripts import EXTEND, PROBE, PROBED, TELL

_LONGEST_MS = 32 * 86_400_000  # of a block or an opening: a quota of a month


class SharedEndpoint(SharedLimits):
    """The source of an endpoint's `Lease`.

    Args:
        machine: this machine's name.
        machines: returns the last known number of machines.
        wake: makes the sharing thread call `settle` soon.

    Attributes:
        permits: its permits for calls in flight.

    Thread safety: all methods.
    """

    def __init__(
        self,
        core: _core.Endpoint,
        connection: RedisConnection,
        machine: str,
        machines: Callable[[], int],
        wake: Callable[[], None],
        probe_lease_s: float,
    ) -> None:
        self._core = core
        self._machine = machine
        self._probe_lease_s = probe_lease_s
        self._left = (-1, -1)
        self._heard: dict[str, str] = {}
        self._free = False  # whether the end of a block is to be published
        self._extended = 0  # core clock (ns) until which the running probe may take
        super().__init__(core, "limit", connection, machines, wake, permits=True)
        self.permits = Permits(core, self.lease, connection, machine, machines)

    # ------------------------------------------------------------------------ called by the core

    def permit(self, now: int) -> int:
        """Leases a permit; returns 0 or a refusal."""
        locked = self._asking.acquire(timeout=PATIENCE)
        try:
            return 0 if self.permits.supply() else refusal(_core.BUSY, 0)
        finally:
            if locked:
                self._asking.release()

    def reserve(self, tokens: int, max_wait: int, now: int) -> int:
        """Pays one request and ``tokens`` in advance; returns the wait (ns) until their use, or a refusal."""
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
        """Returns what `reserve` paid."""
        try:
            self._ask(0, (-1, -1, 0, 0), (-tokens, -1, 0, 0))
        except AwayError:
            pass  # the reservation expires

    def probe(self, now: int) -> int:
        """Returns 0 if this machine may send the probe, or the ns after which to ask again."""
        lease = int(self._probe_lease_s * 1000)
        try:
            left = self._connection.run(
                PROBE,
                [self._connection.key("probe", self.name)],
                self._machine,
                lease,
                read=lambda left: whole(left, most=_LONGEST_MS),
            )
            return left * 1_000_000
        except AwayError:
            return 0  # without Redis each machine sends probes of its own

    def extended(self, lease: int) -> None:
        """Extends the time that the running probe may take, to ``lease`` ns from now."""
        self._extended = _core.clock() + lease
        self._told["extend"] = True
        self._wake()

    def judged(self, flags: int) -> None:
        """Publishes that a probe has ended; nonzero ``flags`` mean that the breaker has changed."""
        self._told["probed"] = True
        if flags:
            self._told["breaker"] = True
        self._wake()

    def tightened(self, requests: int, tokens: int) -> None:
        """Publishes what the provider's headers say is left; -1 for unknown."""
        self._left = (requests, tokens)
        self._told["limits"] = True
        self._wake()

    def blocked(self) -> None:
        """Publishes that the endpoint is blocked."""
        self._told["block"] = True
        self._wake()

    def unblocked(self) -> None:
        """Publishes that a block was ended early on this machine."""
        self._free = True
        self.blocked()

    # -------------------------------------------------------------------------- called by the sharing thread

    def settle(self) -> None:
        """Publishes pending changes and refills the pool if it is low.

        Raises:
            AwayError: if Redis is unavailable; pending changes are dropped, except of the breaker and blocks.
        """
        super().settle()
        # Each kind is removed before it is published: a change made during the request sets it again. Of
        # several changes of one kind only the last state is published.
        told = self._told
        probe = [self._connection.key("probe", self.name)]
        if told.pop("extend", False):
            left = (self._extended - _core.clock()) // 1_000_000
            self._connection.run(EXTEND, probe, self._machine, max(1, left), read=whole)
        if told.pop("probed", False):
            self._connection.run(PROBED, probe, self._machine, read=whole)
        if told.pop("limits", False):
            requests, tokens = self._left
            self._ask(0, (0, requests, 0, 0), (0, tokens, 0, 0))
        for kind, tell in (("breaker", self._tell_breaker), ("block", self._tell_block)):
            if told.pop(kind, False):
                try:
                    tell()
                except AwayError:
                    told[kind] = True  # other machines must hear of it, however late
                    raise

    def learn(self, field: str, value: str, server_ms: int, first: bool) -> None:
        """Applies a change that another machine has published, unless it was applied before."""
        kind = field.partition(":")[0]
        if kind not in ("breaker", "block") or self._heard.get(kind) == value:
            return
        self._heard[kind] = value
        # The end of an opening or block applies only when it is fresh: what a new machine reads first may be
        # older than what it has found out itself.
        try:
            word, until, code, _ = words(value, 4)
            left = whole(until) - server_ms
            reason = BlockReason(whole(code))
        except ValueError:  # not written by fastroute
            self._connection.mended(f"{self._connection.key('news')} ({field})")
            return
        if word in ("open", "blocked") and not 0 < left <= _LONGEST_MS:
            return  # over, or later than any release would say
        if kind == "breaker" and word == "open":
            self.lease.open(_core.clock() + left * 1_000_000)
        elif kind == "breaker" and word == "closed" and not first:
            self.lease.close()
        elif kind == "block" and word == "blocked" and reason:
            self._block(_core.clock() + left * 1_000_000, reason)
        elif kind == "block" and word == "free" and not first:
            self._core.unblock()

    # ------------------------------------------------------------------------------------------ inside

    def _block(self, until: int, reason: int) -> None:
        self._core.block(until, reason)
        self._told.pop("block", None)  # it came from Redis, so it is not published again

    def _tell_breaker(self) -> None:
        left = self._core.reopens_in()
        if left:
            self._tell("breaker", "open", left, 0)
        elif self._core.state() == _core.CLOSED:
            self._tell("breaker", "closed", 0, 0)

    def _tell_block(self) -> None:
        left, reason = self._core.blocked()
        if left:
            self._tell("block", "blocked", left, reason)
        elif self._free:
            self._tell("block", "free", 0, 0)
        self._free = False

    def _tell(self, kind: str, word: str, left_ns: int, code: int) -> None:
        connection = self._connection
        keys = [connection.key("news"), connection.key("version")]
        change = connection.request_id()
        told = (change, f"{kind}:{self.name}", word, left_ns // 1_000_000, code)
        connection.run(TELL, keys, *told, read=whole)
