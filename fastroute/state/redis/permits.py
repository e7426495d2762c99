"""How many calls one machine of many may have under way at an endpoint.

Owns leasing permits: how many, when more are asked for, and when they are given up. Taking one and counting
them is the core's (`fastroute._core.Lease`); what all machines hold is `scripts.PERMITS`'s to count.

A machine keeps a few permits more than it uses, good for ten seconds and renewed every second, so the usual
call asks nobody. When another machine was refused one, all give up what they do not use with their next beat.
What is given up is taken away here before Redis hears of it, and each request names the turn of the lease
that it was asked at: so no permit is ever held twice, whichever answer is lost or late. A machine that was
killed loses its permits with its lease.

While Redis is away a lease goes on until it ends, for the others may still have Redis. After that the machine
has its part of the limit.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from fastroute import _core

from .address import AwayError
from .connection import RedisConnection
from .scripts import PERMITS

LIFE_NS = 10_000_000_000
_FREEZE_NS = 1_000_000_000  # how long, at most, a machine that comes back holds still to be counted
_ALONE_NS = 1_000_000_000  # how long a machine has its own part before it asks again
RENEW_NS = 800_000_000
"""A lease older than this is renewed with the next beat of any process."""
_MOST = 4096
_FULL_NS = 50_000_000  # how long a process that was refused asks no more


@frozen
class PermitRequest:
    """What one endpoint asks of all machines: six words of `scripts.PERMITS`.

    Attributes:
        turn: of the lease, when it was asked.
        limit: calls at once, of all machines.
        part: of it, that this machine may have as long as it cannot be known what the others have.
        floor: permits that are in use here, whatever the others do.
        need: below which it does not help.
        want: how many it would have.
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
        machines: how many are at work, as last heard.

    Attributes:
        wanted: whether another machine was refused some lately, as heard last.

    Thread safety: all methods; of two that ask at once, one's answer counts.
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
        """Leases for a call that found none left here; False: there are none at all for now."""
        for _ in range(4):
            leased, held, _, left, alone = self._lease.permits()
            if leased > held:
                return True
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
            if answer[0] < request.need and answer[2] < 0:
                break
        leased, held, _, _, _ = self._lease.permits()
        if leased > held:
            return True
        self._lease.full(_core.clock() + _FULL_NS)
        return False

    def due(self) -> PermitRequest | None:
        """What to ask with this beat; None if another process of the machine has done so already.

        It is to be followed by `take`, or `away`.
        """
        leased, held, _, left, alone = self._lease.permits()
        if left and not alone:
            spare = 0 if self.wanted else self._spare
            if leased > held + spare:
                self._shrink(held + spare)
            elif left > LIFE_NS - RENEW_NS and leased >= held + spare // 2:
                return None
        return self.request(0)

    def give_up(self) -> PermitRequest | None:
        """Gives up all that is not in use; what to ask so that the others know, if anything."""
        leased, held, _, _, alone = self._lease.permits()
        if alone or leased <= held:
            return None
        self._shrink(held)
        leased, held, turn, _, _ = self._lease.permits()
        return PermitRequest(turn, self._core.max_in_flight, self._part, held, 0, leased)

    def take(self, request: PermitRequest, answer: tuple[int, bool, int], begun: int) -> None:
        """Takes over what was answered, if nothing has changed since it was asked.

        Args:
            begun: ns, before it was asked: the lease runs from then.
        """
        many, self.wanted, later = answer
        leased, _, turn, left, alone = self._lease.permits()
        if turn != request.turn:
            return
        if later >= 0:
            # The state of this machine is newer than what Redis remembers of it: go on from there.
            self._lease.lease_permits(turn, leased, _core.clock() + left, alone=alone, after=later)
        else:
            self._set(turn, min(many, _MOST), begun + LIFE_NS)

    def away(self) -> bool:
        """Nobody can be asked: once the lease has ended, this machine has its part.

        Returns:
            Whether that lets a call in.
        """
        _, held, turn, left, alone = self._lease.permits()
        if left and not alone:
            return False
        part = self._part
        return self._lease.lease_permits(turn, part, _core.clock() + _ALONE_NS, alone=True) and part > held

    # ------------------------------------------------------------------------------------------ inside

    @property
    def _spare(self) -> int:
        """Permits kept beyond those in use: of the limit a quarter for all machines together."""
        return max(1, self._core.max_in_flight // (4 * self._machines()))

    @property
    def _part(self) -> int:
        return min(self._core.max_in_flight, max(1, self._core.max_in_flight // self._machines()))

    def request(self, more: int) -> PermitRequest | None:
        """The request for this many permits more than are in use; None if the lease has changed since."""
        leased, held, turn, left, alone = self._lease.permits()
        limit = self._core.max_in_flight
        if alone or not left:
            # Others may have leased what runs here: stand still, so that what is in use can be counted.
            if not self._lease.lease_permits(turn, held, _core.clock() + _FREEZE_NS, alone=True):
                return None
            leased, held, turn, _, _ = self._lease.permits()
        spare = 0 if self.wanted else self._spare
        want = min(limit, max(leased, held + max(more, spare)))
        return PermitRequest(turn, limit, self._part, held, held + more, want)

    def _shrink(self, many: int) -> None:
        """Makes the lease smaller, but never than what is in use: calls may be let in meanwhile."""
        leased, held, turn, left, alone = self._lease.permits()
        if not alone and leased > max(many, held):
            self._set(turn, many, _core.clock() + left)

    def _set(self, turn: int, many: int, until: int) -> None:
        """Sets the lease if its turn is still this one, but never to less than what is in use.

        What Redis has for this machine is at least as much, until it is asked at a later turn.
        """
        held = self._lease.permits()[1]
        if self._lease.lease_permits(turn, max(many, held), until):
            leased, held, turn, _, _ = self._lease.permits()
            if held > leased:
                self._lease.lease_permits(turn, held, until)


def ask(
    connection: RedisConnection, machine: str, keys: list[str], requests: list[PermitRequest]
) -> list[tuple[int, bool, int]]:
    """For each: permits leased, whether another machine wants some, and the later turn that is known (or -1).

    Raises:
        AwayError: Redis is away.
    """
    words = [word for request in requests for word in request.words]
    found = connection.run(PERMITS, keys, machine, LIFE_NS // 1_000_000, *words)
    try:
        answers = []
        for text in found:
            many, wanted, later = (int(word) for word in str(text).split(" "))
            answers.append((many, bool(wanted), later))
        if len(answers) != len(requests):
            raise ValueError
    except (ValueError, TypeError):
        raise AwayError("Redis answered with something else") from None
    return answers
