"""One call: what its attempts share, its permits, and which of two attempts wins.

Sending and settling one attempt is in `settlement.py`; beginning a second one beside it is in `hedge.py`.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
from collections.abc import Callable
from typing import Protocol

from attrs import define

from fastroute.errors import APIError
from fastroute.platform import forks
from fastroute.quality import Validator
from fastroute.routing.plan import Judgement
from fastroute.routing.stage import Estimate
from fastroute.state.endpoints import LiveEndpoint
from fastroute.types import Attempt, BudgetStatus, Request, Route

from .queue import Waiter
from .retry import Verdict


class _Ids:
    """Ids unique among processes: a random prefix for each process, and a count.

    ``next`` is a method of an iterator in C: it runs for every call and every attempt.
    """

    next: Callable[[], str]

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Takes another prefix, in a forked child: otherwise it would repeat its parent's ids."""
        self.next = map(f"{os.urandom(8).hex()}-{{:x}}".format, itertools.count()).__next__


ids = _Ids()
forks.in_child(ids.renew)


LARGE_BODY = 1 << 20
"""Bytes; a larger body is sent to one other endpoint at most after one has found it too large."""


class UnderWay(Protocol):
    """The attempt under way, as far as its call needs it."""

    settled: bool

    def abandon(self) -> None:
        """Settles the attempt unless it has been settled, or its stream will settle it. Idempotent."""

    def cut(self) -> None:
        """Ends what it sends and receives; its own thread settles it then. From any thread."""


class Call:
    """What the attempts of one call share.

    Attributes:
        deadline: `time.monotonic` by which the call must have ended.
        attempts: those that were sent and settled, in the order of their ends.
        validator: the caller's check of the answer, if any.
        rejected: answers that have failed it.
        uncounted: the endpoints of attempts that do not count against ``max_attempts``.
        uploads: the sizes of the bodies sent that were larger than `LARGE_BODY`.
        waited: seconds spent waiting for limits and back-off.
        verdict: the retry policy's verdict on the last failure.
        gate: its last ticket of the limit over all endpoints; -1 without one.
        held: its permits, until an attempt takes responsibility for them.
        settlement: the attempt that is responsible for them since.
        downgraded: the budget that moved it to the cheapest tier, if one did.
        served: whether a budget has moved it to the cheapest tier there is, where a soft budget admits it.
        turn: its place among the calls that wait for money, from its first such wait on.
        output_limit: the ``max_tokens`` that was sent although the caller named none; None if none was.
        timed: whether its latency counts for the ranking of endpoints.
        race: decides between the attempt under way and its hedge, if it may have one.
        elsewhere: returns whether another endpoint is ready to take over from the attempt under way.
        beside: in the copy of the call for a hedge, the endpoint of the first attempt.
        budgets: returns what is left of the budgets that the call counts in; None if there are none.
        cancelled: whether the program does not want the answer any more.
    """

    __slots__ = (
        "attempts",
        "beside",
        "budgets",
        "cancelled",
        "deadline",
        "downgraded",
        "elsewhere",
        "estimate",
        "gate",
        "held",
        "id",
        "judgement",
        "level",
        "output_limit",
        "race",
        "rejected",
        "request",
        "served",
        "settlement",
        "started",
        "tier",
        "timed",
        "turn",
        "uncounted",
        "uploads",
        "validator",
        "verdict",
        "waited",
    )

    def __init__(
        self,
        request: Request,
        estimate: Estimate,
        judgement: Judgement,
        started: float,
        deadline: float,
    ) -> None:
        self.id = ids.next()
        self.request = request
        self.estimate = estimate
        self.level = judgement.level
        self.judgement = judgement
        self.tier: str | None = None
        self.started = started
        self.deadline = deadline
        self.attempts: list[Attempt] = []
        rule = request.options.validate
        self.validator = None if rule is None else Validator.of(rule)
        self.rejected = 0
        self.uncounted: list[str] = []
        self.uploads: list[int] = []
        self.waited = 0.0
        self.verdict: Verdict | None = None
        self.gate = -1
        self.held: Grant | None = None
        self.settlement: UnderWay | None = None
        self.downgraded: str | None = None
        self.served = False
        self.turn: Waiter | None = None
        self.output_limit: int | None = None
        self.timed = True
        self.race: Race | None = None
        self.beside: str | None = None
        self.elsewhere: Callable[[], bool] | None = None
        self.budgets: Callable[[], tuple[BudgetStatus, ...]] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Ends the call, from any thread; the call's own thread sees it once it waits no more."""
        # In this order: an attempt that begins in between finds the deadline passed, and is not sent.
        self.cancelled = True
        self.deadline = 0.0
        settlement = self.settlement
        if settlement is not None:
            settlement.cut()

    def hedged(self, race: Race, beside: str) -> Call:
        """A copy for a second attempt beside the one under way; it shares attempts and deadline."""
        # Permits and verdict belong to one attempt; the threads of the two must not see each other's.
        other = copy.copy(self)
        other.race = race  # the call's own may be over by now
        other.beside = beside
        other.verdict = other.held = other.settlement = None
        other.gate = -1
        other.elsewhere = None
        return other

    def route(self, endpoint: LiveEndpoint, now: float, *, ttft: float | None = None) -> Route:
        """How the call was served, after its last attempt has ended."""
        cost: int | None = 0
        for attempt in self.attempts:
            cost = None if cost is None or attempt.cost_nano is None else cost + attempt.cost_nano
        return Route(
            model=endpoint.model.name,
            endpoint=endpoint.name,
            provider=endpoint.config.provider,
            tier=self.tier,
            classification=self.judgement,
            cost_nano=cost,
            latency=now - self.started,
            ttft=ttft,
            attempts=tuple(self.attempts),
            waited=self.waited,
            request_id=self.attempts[-1].request_id if self.attempts else None,
            downgraded=self.downgraded,
            budgets=self.budgets or (),
        )


@define
class Grant:
    """The permits of an admitted call, to be given back.

    It is made, and kept in the call, before the endpoint is asked: with the permit taken first, an interrupt
    or a lack of memory in between would lose it.

    Attributes:
        ticket, tokens: of the endpoint's limits; the ticket is negative before and after a refusal.
        gate: the ticket of the limit over all endpoints; -1 where there is none.
    """

    endpoint: LiveEndpoint
    ticket: int
    tokens: int
    gate: int


class Superseded(APIError):
    """Another attempt of the call was answered, or the call has ended. Callers never see this error."""


class Contestant(Protocol):
    """An attempt that takes part in a race."""

    def lose(self, output_tokens: int | None) -> None:
        """Ends the attempt at once and charges what it may have cost.

        Args:
            output_tokens: length of the winner's answer; None if unknown or if none has won.
        """


class Race:
    """Decides between the attempts of one call.

    Thread safety: all methods.
    """

    __slots__ = ("_contestants", "_decided", "_lock", "_winner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contestants: list[Contestant] = []
        self._winner: Contestant | None = None
        self._decided = False

    def enter(self, contestant: Contestant) -> None:
        """Takes part. Call it before anything is sent.

        Raises:
            Superseded: if the race is decided.
        """
        with self._lock:
            if self._decided:
                raise Superseded("another attempt was quicker")
            self._contestants.append(contestant)

    def win(self, contestant: Contestant) -> bool:
        """Returns True for the first contestant that calls this, and False for all others."""
        with self._lock:
            if not self._decided:
                self._decided = True
                self._winner = contestant
            return self._winner is contestant

    def end(self, output_tokens: int | None = None) -> None:
        """Ends all that have not won; afterwards none can win. Idempotent."""
        # Losers are settled outside the lock: that writes to the ledger and may take time.
        with self._lock:
            self._decided = True
            losers = [each for each in self._contestants if each is not self._winner]
        for each in losers:
            each.lose(output_tokens)
