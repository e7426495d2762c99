"""One call on its way: what its attempts share, and what never changes between the attempts at one endpoint.

Owns the call (`Call`), its id, an endpoint's format, address and connections (`Wire`), and what let a call in
(`Grant`). An attempt is `settlement.py`'s.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from typing import Protocol

import requests
from attrs import evolve, frozen

from fastroute.config.catalog import sampling_bit
from fastroute.platform import forks
from fastroute.providers.base import Format, Target
from fastroute.quality import Validator
from fastroute.routing.plan import Estimate
from fastroute.state.endpoints import Endpoint
from fastroute.transport import Transport
from fastroute.types import SAMPLING_PARAMETERS, Attempt, Classification, Request, Route

from .race import Race
from .retry import Verdict


class _Ids:
    """Ids unique among processes: a random prefix per process and a count."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.renew()

    def renew(self) -> None:
        """In a forked child: ids of its own."""
        self._prefix = os.urandom(8).hex()

    def next(self) -> str:
        return f"{self._prefix}-{next(self._count):x}"


_ids = _Ids()
forks.in_child(_ids.renew)
next_id = _ids.next


class UnderWay(Protocol):
    """An attempt under way, as the call that it belongs to knows it."""

    def abandon(self) -> None:
        """Settles the attempt unless it has been settled, or its stream will settle it. Idempotent."""


class Call:
    """What the attempts of one call share.

    Attributes:
        deadline: time.monotonic by which the call must have ended.
        attempts: those that were sent, oldest first.
        validator: what the answer is held to, if anything.
        rejected: answers that failed it so far.
        waited: seconds spent waiting for limits and back-off.
        verdict: what the retry policy said of the last failure.
        gate: its ticket of the limit over all endpoints, the last one it had; -1 without one.
        held: what let it in, until its attempt answers for that.
        sending: the attempt that answers for it since.
        downgraded: the budget that sent it to the cheapest tier, if one did.
        timed: whether its latency counts where endpoints are compared by theirs.
        race: decides between the attempt under way and its hedge, where it may have one.
        beside: for the copy of the call that a hedge is sent for, the endpoint of the first attempt.
    """

    __slots__ = (
        "attempts",
        "beside",
        "classify",
        "deadline",
        "downgraded",
        "estimate",
        "gate",
        "held",
        "id",
        "level",
        "race",
        "rejected",
        "request",
        "settlement",
        "started",
        "tier",
        "timed",
        "validator",
        "verdict",
        "waited",
    )

    def __init__(
        self,
        request: Request,
        estimate: Estimate,
        level: str | None,
        classify: Callable[[], Classification],
        started: float,
        deadline: float,
    ) -> None:
        self.id = next_id()
        self.request = request
        self.estimate = estimate
        self.level = level
        self.classify = classify
        self.tier: str | None = None
        self.started = started
        self.deadline = deadline
        self.attempts: list[Attempt] = []
        rule = request.options.validate
        self.validator = None if rule is None else Validator.of(rule)
        self.rejected = 0
        self.waited = 0.0
        self.verdict: Verdict | None = None
        self.gate = -1
        self.held: Grant | None = None
        self.settlement: UnderWay | None = None
        self.downgraded: str | None = None
        self.timed = True
        self.race: Race | None = None
        self.beside: str | None = None

    def hedged(self, race: Race, beside: str) -> Call:
        """A copy for a second attempt beside the one under way there: of the same attempts and deadline."""
        other = copy.copy(self)
        other.race = race  # the call's own may be over by now
        other.beside = beside
        other.verdict = other.held = other.settlement = None
        other.gate = -1
        return other

    def route(self, wire: Wire, now: float, *, ttft: float | None = None) -> Route:
        """How the call was served, once its last attempt has ended."""
        cost: int | None = 0
        for attempt in self.attempts:
            cost = None if cost is None or attempt.cost_nano is None else cost + attempt.cost_nano
        endpoint = wire.endpoint
        return Route(
            endpoint.model.name,
            endpoint.name,
            endpoint.config.provider,
            self.tier,
            self.classify,
            cost,
            now - self.started,
            ttft,
            tuple(self.attempts),
            False,
            self.waited,
            self.attempts[-1].request_id if self.attempts else None,
            self.downgraded,
        )


class Wire:
    """One endpoint's format, address and connections; what never changes is prepared once.

    Thread safety: all threads share it. `forget_usage` is one attribute store.
    """

    def __init__(self, endpoint: Endpoint, format: Format, target: Target, transport: Transport) -> None:
        self.endpoint = endpoint
        self.format = format
        self.target = target
        self.transport = transport
        self._plain = transport.prepare(format.url(target, False), format.headers(target, False))
        self._stream = transport.prepare(format.url(target, True), format.headers(target, True))

    def prepared(self, stream: bool) -> requests.PreparedRequest:
        return self._stream if stream else self._plain

    def taken(self, request: Request) -> Request:
        """The request as the model takes it: without sampling parameters where it refuses them.

        Those that come this far say what leaving them out says, or are to be dropped: some refuse even that.
        """
        params = request.params
        if self.endpoint.model.capabilities & sampling_bit(params):
            return request
        if not any(name in params for name in SAMPLING_PARAMETERS):
            return request
        kept = {name: value for name, value in params.items() if name not in SAMPLING_PARAMETERS}
        return evolve(request, params=kept)

    def forget_usage(self) -> None:
        """The provider refuses stream_options: ask for no usage from now on, and estimate it."""
        self.target = evolve(self.target, include_usage=False)


@frozen
class Grant:
    """What let a call in, to be handed back.

    Attributes:
        ticket, tokens: of the endpoint's limits.
        gate: the ticket of the limit over all endpoints; -1 where there is none.
    """

    endpoint: Endpoint
    ticket: int
    tokens: int
    gate: int
