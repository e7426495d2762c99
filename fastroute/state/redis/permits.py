"""Leases permits for calls in flight at an endpoint to this machine.

Calls take permits from the local lease (`fastroute._core.Lease`). Redis counts what all machines have leased
(`scripts.PERMITS`).

A machine keeps a few more permits than it uses. They last ten seconds and are renewed every second, so most
calls need no request to Redis. When another machine was refused a permit, all machines return their unused
ones with the next heartbeat. Permits are taken from the local lease before Redis gets them back, and each
request names the turn of the lease for which it was made. So no permit is held twice, whichever answer is
lost or late. The permits of a killed machine end with its lease.

While Redis is unavailable a lease is used until it ends, since other machines may still have Redis. After
that the machine has its share of the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from fastroute import _core

from .address import AwayError
from .answers import items, whole, words
from .connection import RedisConnection
from .scripts import PERMITS

LIFE_NS = 10_000_000_000
_FREEZE_NS = 1_000_000_000  # the longest time that a returning machine admits no more, to be counted
_ALONE_NS = 1_000_000_000  # how long a machine uses its share before it tries Redis again
RENEW_NS = 800_000_000
"""A lease older than this is renewed with the next heartbeat of any process."""
_MOST = 4096
_MOST_TURNS = 10**9  # by which a lease changes while a request is under way; see `scripts.PERMITS`
_FULL_NS = 50_000_000  # pause after a refusal before the process asks again


@frozen(kw_only=True)
class PermitRequest:
    """One endpoint's request: six arguments of `scripts.PERMITS`.

    Attributes:
        turn: the turn of the lease at the time of the request.
        limit: calls in flight of all machines together.
        part: this machine's share, its most as long as the others' permits are unknown.
        floor: permits in use here, which are counted in any case.
        need: the fewest permits that are of use.
        want: the permits wanted.
    """

    turn: int
    limit: int
    part: int
    floor: int
    need: int
    want: int

    @property
    def words(self) -> tuple[int, ...]:
        return (self.turn, self.limit, self.part, self.floor, self.need, self.want)


class Permits:
    """One endpoint's permits, as leased by this machine.

    Args:
        machines: returns the last known number of machines.

    Attributes:
        wanted: whether another machine was refused permits recently, by the last answer.

    Thread safety: all methods; of two concurrent requests, one answer counts.
    """

    def __init__(
        self,
        core: _core.Endpoint,
        lease: _core.Lease,
        connection: RedisConnection,
        machine: str,
        machines: Callable[[], int],
    ) -> None:
        self._core = core
        self._lease = lease
        self._connection = connection
        self._machine = machine
        self._machines = machines
        self.wanted = False

    @property
    def key(self) -> str:
        return self._connection.key("permits", self._core.name)

    def supply(self) -> bool:
        """Leases permits for a call that found none left; returns False if none can be leased now."""
        # More than once, because another thread may take what was leased, or change the lease so that the
        # answer no longer applies.
        for _ in range(4):
            leased, held, _, left, alone = self._lease.permits()
            if leased > held:
                return True
            # Redis is known to be unavailable, and this machine's share is in use.
            if alone and left and self._connection.rest_ns:
                break
            try:
                request = self.request(1)
                if request is None:
                    continue
                begun = _core.clock()
                answer = ask(self._connection, self._machine, [self.key], [request])[0]
            except AwayError:
                if not self.away():
                    break
                continue
            self.take(request, answer, begun)
            # Redis has decided that there are not enough. (After a later turn it has to be asked again.)
            if answer[0] < request.need and answer[2] < 0:
                break
        leased, held, _, _, _ = self._lease.permits()
        if leased > held:
            return True
        self._lease.full(_core.clock() + _FULL_NS)
        return False

    def due(self) -> PermitRequest | None:
        """The request for this heartbeat; None if another process of the machine has renewed the lease.

        Call `take` with the answer, or `away`.
        """
        leased, held, _, left, alone = self._lease.permits()
        # A lease that Redis knows. It is made smaller here before Redis is told, see above.
        if left and not alone:
            spare = 0 if self.wanted else self._spare
            if leased > held + spare:
                self._shrink(held + spare)
            elif left > LIFE_NS - RENEW_NS and leased >= held + spare // 2:
                return None
        return self.request(0)

    def give_up(self) -> PermitRequest | None:
        """Gives up all unused permits; returns the request that tells Redis, or None if there are none."""
        leased, held, _, _, alone = self._lease.permits()
        if alone or leased <= held:
            return None
        self._shrink(held)
        leased, held, turn, _, _ = self._lease.permits()
        return self._request(turn, held, need=0, want=leased)

    def take(self, request: PermitRequest, answer: tuple[int, bool, int], begun: int) -> None:
        """Applies an answer, if the lease has not changed since the request.

        Args:
            begun: core clock (ns) before the request was sent: the lease runs from then.
        """
        many, self.wanted, later = answer
        leased, _, turn, left, alone = self._lease.permits()
        if turn != request.turn:
            return
        if later >= 0:
            # Redis knows a later turn of this machine's lease: continue from that turn.
            self._lease.lease_permits(turn, leased, _core.clock() + left, alone=alone, after=later)
        else:
            self._set(turn, many, begun + LIFE_NS)

    def away(self) -> bool:
        """Uses this machine's share of the limit while Redis is unavailable, once the lease has ended.

        Returns:
            Whether that admits a call.
        """
        _, held, turn, left, alone = self._lease.permits()
        if left and not alone:
            return False
        part = self._part
        return self._lease.lease_permits(turn, part, _core.clock() + _ALONE_NS, alone=True) and part > held

    # ------------------------------------------------------------------------------------------ inside

    @property
    def _spare(self) -> int:
        """Permits kept beyond those in use: a quarter of the limit for all machines together."""
        return max(1, self._core.max_in_flight // (4 * self._machines()))

    @property
    def _part(self) -> int:
        return min(self._core.max_in_flight, max(1, self._core.max_in_flight // self._machines()))

    def request(self, more: int) -> PermitRequest | None:
        """A request for ``more`` permits than are in use; None if the lease has just changed."""
        leased, held, turn, left, alone = self._lease.permits()
        limit = self._core.max_in_flight
        if alone or not left:
            # Others may have leased the permits in use here: admit no more calls until they are counted.
            if not self._lease.lease_permits(turn, held, _core.clock() + _FREEZE_NS, alone=True):
                return None
            leased, held, turn, _, _ = self._lease.permits()
        spare = 0 if self.wanted else self._spare
        want = min(limit, max(leased, held + max(more, spare)))
        return self._request(turn, held, need=held + more, want=want)

    def _request(self, turn: int, held: int, *, need: int, want: int) -> PermitRequest:
        return PermitRequest(
            turn=turn, limit=self._core.max_in_flight, part=self._part, floor=held, need=need, want=want
        )

    def _shrink(self, many: int) -> None:
        """Makes the lease smaller, but not below what is in use; calls may be admitted in the meantime."""
        leased, held, turn, left, alone = self._lease.permits()
        if not alone and leased > max(many, held):
            self._set(turn, many, _core.clock() + left)

    def _set(self, turn: int, many: int, until: int) -> None:
        """Sets the lease if it is still at this turn, but never below what is in use.

        Redis counts at least as much for this machine until a request with a later turn.
        """
        # Calls may be admitted between reading and setting, up to the old lease. They are counted after it
        # was set, when no more can be: see the core's `permit_take_leased`.
        held = self._lease.permits()[1]
        if self._lease.lease_permits(turn, max(many, held), until):
            leased, held, turn, _, _ = self._lease.permits()
            if held > leased:
                self._lease.lease_permits(turn, held, until)


def ask(
    connection: RedisConnection, machine: str, keys: list[str], requests: list[PermitRequest]
) -> list[tuple[int, bool, int]]:
    """Answers for all requests: permits leased, whether another machine wants some, a later known turn or -1.

    Raises:
        AwayError: if Redis is unavailable.
    """
    asked = [word for request in requests for word in request.words]

    def read(found: Any) -> list[tuple[int, bool, int]]:
        answers = []
        for text, request, key in zip(items(found, len(requests)), requests, keys):
            many, wanted, later, damaged = words(text, 4)
            if whole(damaged, most=1):
                connection.mended(key)
            # A turn far ahead would never be reached by the others that know this machine's lease.
            turn = whole(later, -1, request.turn + _MOST_TURNS)
            answers.append((whole(many, most=_MOST), whole(wanted, most=1) == 1, turn))
        return answers

    return connection.run(PERMITS, keys, machine, LIFE_NS // 1_000_000, *asked, read=read)
