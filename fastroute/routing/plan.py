"""A plan: who is asked for one request, in which order, and why.

Owns the plan as a value: walking through it, explaining it, and the error that says why nobody can serve. How
it is made is `planner.py`; carrying it out is `dispatch.py`. A plan may be made and thrown away: nothing was
sent or counted for it, and only `Plan.admit` lets a request in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

from fastroute import _core
from fastroute.config.catalog import (
    JSON_SCHEMA,
    SAMPLING,
    SAMPLING_WITHOUT_REASONING,
    STREAMING,
    TOOLS,
    VISION,
    Model,
)
from fastroute.errors import (
    BudgetExceeded,
    ContextLengthExceeded,
    Error,
    NoEndpointError,
    RequestTooLargeForLimit,
)
from fastroute.figures import dollars, duration
from fastroute.state.endpoints import STATE_NAMES, BlockReason, Endpoint
from fastroute.types import NANO, Classification, Request

if TYPE_CHECKING:
    from .planner import Planner

ENDLESS = 1 << 62  # tokens
_CAPABILITIES = {
    STREAMING: "streaming",
    TOOLS: "tools",
    VISION: "vision",
    JSON_SCHEMA: "JSON schema",
    SAMPLING: "temperature or top_p (policy.drop_sampling leaves them out)",
    SAMPLING_WITHOUT_REASONING: "temperature or top_p (policy.drop_sampling leaves them out)",
}


@frozen
class Estimate:
    """What the request is expected to take.

    Attributes:
        input_tokens: prompt tokens, by the text's length.
        output_tokens: answer tokens: those asked for, or what such answers took lately.
        timeout: seconds one attempt at a plain call may take.
    """

    input_tokens: int
    output_tokens: int
    timeout: float

    @property
    def prompt_scale(self) -> float:
        """How many times as long as to a short prompt the first token may take."""
        return 1.0 + self.input_tokens / 10_000


@frozen(eq=False)
class Stage:
    """Endpoints that are ranked together.

    Attributes:
        reason: where the stage comes from, for people.
        tier: the tier's name, if it is one.
        choice: chooses among them by the configuration's wishes.
        by_value: models by price / (quality × speed); otherwise in the order given.
        base_tokens: prompts of up to so many tokens have their usual price at every endpoint.
        longer: the choice by the prices of a longer prompt, of so many tokens.
        alone: nobody else is asked, whatever becomes of it.
    """

    reason: str
    tier: str | None
    endpoints: tuple[Endpoint, ...]
    choice: _core.Choice
    by_value: bool
    base_tokens: int
    longer: Callable[[int], _core.Choice]
    alone: bool = False

    def choice_for(self, estimate: int) -> _core.Choice:
        """The choice by the prices of such a prompt, as the model counts it that counts the most."""
        if self.base_tokens == ENDLESS:
            return self.choice
        most = max(endpoint.calibration.apply(estimate) for endpoint in self.endpoints)
        return self.choice if most <= self.base_tokens else self.longer(most)


@frozen
class Candidate:
    """One endpoint as a plan saw it.

    Attributes:
        rank: 0 is asked first; None: left out.
        verdict: why it is in or out.
        price: USD by estimate; None if unknown.
        latency: expected seconds; 0 if never measured.
        state: of its breaker.
        value: price / (quality × speed), lower is better.
        available_requests, available_tokens: what its limits let in at this moment; None: no limit.
    """

    endpoint: str
    model: str
    provider: str
    stage: str
    rank: int | None
    verdict: str
    price: float | None
    quality: float
    latency: float
    success_rate: float
    in_flight: int
    state: str
    value: float
    available_requests: int | None
    available_tokens: int | None


class Plan:
    """Who would be asked for one request, in which order, and why.

    Attributes:
        request: what was planned for.
        estimate: tokens and time it is expected to take.
        tier: the tier it is served from, if it was chosen by tier.

    Thread safety: not to be shared while it is being walked through.
    """

    __slots__ = (
        "_classification",
        "_failure",
        "_first",
        "_planner",
        "_scan",
        "_stages",
        "estimate",
        "needs",
        "request",
    )

    def __init__(
        self,
        planner: Planner,
        request: Request,
        scan: Any,
        failure: str | None,
        first: Stage,
        estimate: Estimate,
        needs: int,
    ) -> None:
        self.request = request
        self.estimate = estimate
        self.needs = needs
        self._planner = planner
        self._scan = scan
        self._failure = failure
        self._classification: Classification | None = None
        self._first = first
        self._stages: list[tuple[Stage, _core.Ranked]] = []  # those ranked so far

    @property
    def level(self) -> str | None:
        """The class alone, which costs less than `classification`."""
        return self._scan.level if self._scan is not None else None

    def explainer(self) -> Callable[[], Classification]:
        """Works out the classification without keeping the request alive."""
        return partial(self._planner.explain, self._scan, self._failure)

    @property
    def classification(self) -> Classification:
        if self._classification is None:
            self._classification = self._planner.explain(self._scan, self._failure)
        return self._classification

    @property
    def tier(self) -> str | None:
        return self._first.tier

    @property
    def ranked(self) -> bool:
        """Whether its order is settled, as far as it has been reached."""
        return bool(self._stages)

    def rank(self) -> Plan:
        """Settles who is asked first by the state of this moment, and not of when it is first read."""
        if not self._stages:
            self._stages.append((self._first, self._planner.rank(self, self._first)))
        return self

    def admit(self) -> tuple[Endpoint, _core.Ranked] | None:
        """Ranks the first stage and lets the request in at its first endpoint that can take it.

        Returns:
            That endpoint and who holds its ticket, to be taken; None if nobody there lets it in.
        """
        ranked = self._planner.admit(self, self._first)
        self._stages.append((self._first, ranked))
        return None if ranked.chosen < 0 else (self._first.endpoints[ranked.chosen], ranked)

    def walk(self) -> Iterator[tuple[Endpoint, Stage]]:
        """Every endpoint that may serve it, first choice first; a later stage is ranked when reached."""
        for stage, ranked in self._ranked():
            endpoints = stage.endpoints
            # Mostly the first serves it, and then nobody has to know in which order the others come.
            if ranked.first >= 0:
                yield endpoints[ranked.first], stage
                for place in ranked.order[1:]:
                    yield endpoints[place], stage

    def beside(self, endpoint: Endpoint) -> Iterator[Endpoint]:
        """The others of the stage in which the endpoint is; nobody if it is in none."""
        for stage, ranked in self._ranked():
            if endpoint in stage.endpoints:
                for place in ranked.order:
                    if stage.endpoints[place] is not endpoint:
                        yield stage.endpoints[place]
                return

    def higher(self) -> Plan | None:
        """The plan for the same request from the next dearer tier, or None at the top or without a tier."""
        return self._planner.higher(self, self._first)

    def lengthened(self, request: Request) -> Plan:
        """The plan for the same request with another ``max_tokens``, of the same class and tier."""
        return self._planner.lengthened(self, self._first, request)

    def cheapest(self) -> Plan | None:
        """The plan for the same request from the cheapest tier; None if there is none cheaper."""
        return self._planner.cheapest(self, self._first)

    def detour(self, chain: str, model: Model) -> Iterator[tuple[Endpoint, str | None]]:
        """As `walk`, over the models that stand in for one that cannot take this input."""
        return self._planner.detour(self, chain, model)

    @property
    def relaxed(self) -> bool:
        """Whether no model met the wishes for quality, latency and price, so that the best one is taken."""
        return self.rank()._stages[0][1].relaxed

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every endpoint of every stage, those that are asked first, in order."""
        inside: list[Candidate] = []
        outside: list[Candidate] = []
        for stage, ranked in self._ranked():
            figures = _Figures(stage, ranked)
            order = ranked.order
            for place in order:
                inside.append(self._candidate(figures, place, len(inside)))
            for place in range(len(stage.endpoints)):
                if place not in order:
                    outside.append(self._candidate(figures, place, None))
        return (*inside, *outside)

    @property
    def max_price(self) -> int:
        """Nano-dollars that all attempts together may cost by estimate; -1 for no cap."""
        return self._planner.max_price(self.request)

    def room(self) -> int:
        """Input tokens that would fit, if the request is too long for all who could serve it; else 0."""
        widest = 0
        for stage, ranked in self._ranked():
            if ranked.first >= 0:
                return 0
            for place, endpoint in enumerate(stage.endpoints):
                if ranked.verdicts[place] == _core.OUT_WINDOW:
                    widest = max(widest, endpoint.model.context_window)
        return max(widest - self.estimate.output_tokens, 0)

    def opened(self) -> Iterator[tuple[Endpoint, str | None]]:
        """Endpoints that only their breaker keeps out, and their tier."""
        for stage, ranked in self._ranked():
            for place, endpoint in enumerate(stage.endpoints):
                if ranked.verdicts[place] == _core.OUT_BREAKER:
                    yield endpoint, stage.tier

    def refusal(self) -> Error:
        """The error that says why nobody can serve it, each endpoint with its reason."""
        codes = set()
        lines = []
        waits = []
        now = _core.clock()
        for stage, ranked in self._ranked():
            figures = _Figures(stage, ranked)
            for place, endpoint in enumerate(stage.endpoints):
                code = figures.verdicts[place]
                codes.add(code)
                lines.append(f"{endpoint.name}: {self._verdict(figures, place)}")
                if code in (_core.OUT_BLOCKED, _core.OUT_BREAKER):
                    waits.append(_reopens(endpoint, now))
        text = "; ".join(lines)
        if waits:
            return NoEndpointError(f"no endpoint can serve the request: {text}", retry_after=min(waits))
        if codes <= {_core.OUT_PRICE_CAP}:
            return BudgetExceeded(f"every endpoint would cost more than the cap: {text}")
        if codes <= {_core.OUT_WINDOW}:
            return ContextLengthExceeded(f"the request is longer than every context window: {text}")
        if codes <= {_core.OUT_TOO_LARGE}:
            return RequestTooLargeForLimit(f"the request is larger than every limit: {text}")
        return NoEndpointError(f"no endpoint can serve the request: {text}", status_code=400)

    def __str__(self) -> str:
        classification = self.classification
        words = ", ".join(word for group in classification.matches.values() for word in group)
        score = "" if classification.score is None else f", score {classification.score:g}"
        lines = [
            f"class     {classification.level} ({classification.classifier}{score}, "
            f"confidence {classification.confidence:.2f})" + (f": {words}" if words else ""),
            f"why       {classification.reason}",
            f"asked     {self.request.model}, served from {self._first.reason}"
            + (", nothing meets the wishes: best quality first" if self.relaxed else ""),
            f"estimate  {self.estimate.input_tokens} tokens in, {self.estimate.output_tokens} out",
        ]
        for candidate in self.candidates:
            place = "-" if candidate.rank is None else str(candidate.rank + 1)
            price = "price ?" if candidate.price is None else dollars(round(candidate.price * NANO))
            lines.append(
                f"{place:>3} {candidate.endpoint:<36} {price:>11} {duration(candidate.latency):>8} "
                f"{candidate.in_flight:4d} in flight  {candidate.state:<9} {candidate.verdict}"
            )
        return "\n".join(lines)

    def _ranked(self) -> Iterator[tuple[Stage, _core.Ranked]]:
        yield self.rank()._stages[0]
        for place, stage in enumerate(self._planner.later_stages(self._first), 1):
            if place == len(self._stages):
                self._stages.append((stage, self._planner.rank(self, stage)))
            yield self._stages[place]

    def _candidate(self, figures: _Figures, place: int, rank: int | None) -> Candidate:
        stage = figures.stage
        endpoint = stage.endpoints[place]
        core, model, now = endpoint.core, endpoint.model, figures.now
        price = figures.prices[place]
        return Candidate(
            endpoint.name,
            model.name,
            endpoint.config.provider,
            stage.reason,
            rank,
            self._verdict(figures, place),
            None if price < 0 else price / NANO,
            model.quality,
            core.ewma(now) or model.latency,
            core.success_rate(now),
            core.in_flight,
            STATE_NAMES[core.state(now)],
            figures.values[place],
            _limited(core.available_requests(now)),
            _limited(core.available_tokens(now)),
        )

    def _verdict(self, figures: _Figures, place: int) -> str:
        stage = figures.stage
        code = figures.verdicts[place]
        if code == 0:
            return stage.reason
        endpoint = stage.endpoints[place]
        model = endpoint.model
        estimate = self.estimate
        tokens_in = endpoint.calibration.apply(estimate.input_tokens)
        price = figures.prices[place]
        cost = "unknown" if price < 0 else dollars(price)
        if code == _core.OUT_CAPABILITY:
            lacking = [name for bit, name in _CAPABILITIES.items() if self.needs & ~model.capabilities & bit]
            return f"left out: no {', '.join(lacking)}"
        if code == _core.OUT_WINDOW:
            return (
                f"left out: about {tokens_in} + "
                f"{estimate.output_tokens} tokens, "
                f"window {model.context_window}"
            )
        if code == _core.OUT_PRICE_CAP:
            return f"left out: would cost {cost}, over the cap"
        if code == _core.OUT_BLOCKED:
            _, reason = endpoint.core.blocked()
            words = BlockReason(reason).words
            return f"left out: blocked for {duration(_reopens(endpoint, _core.clock()))} ({words})"
        if code == _core.OUT_BREAKER:
            state = STATE_NAMES[endpoint.core.state()]
            return f"left out: breaker {state}, next try in {duration(_reopens(endpoint, _core.clock()))}"
        if code == _core.OUT_TOO_LARGE:
            return (
                f"left out: about {tokens_in + estimate.output_tokens} tokens, "
                "more than its limit lets in at once"
            )
        if code == _core.SOFT_QUALITY:
            return f"left out: quality {model.quality:g} is under the floor"
        if code == _core.SOFT_LATENCY:
            return f"left out: {duration(endpoint.core.ewma() or model.latency)} is over the latency budget"
        return f"left out: {cost} is over the price ceiling"


class _Figures:
    """What a ranking says of its endpoints, taken out once for all of them, at one moment."""

    __slots__ = ("now", "prices", "stage", "values", "verdicts")

    def __init__(self, stage: Stage, ranked: _core.Ranked) -> None:
        self.stage = stage
        self.verdicts = ranked.verdicts
        self.values = ranked.values
        self.prices = ranked.prices
        self.now = _core.clock()


def _reopens(endpoint: Endpoint, now: int) -> float:
    blocked, _ = endpoint.core.blocked(now)
    return max(blocked, endpoint.core.reopens_in(now)) / 1e9


def _limited(available: int) -> int | None:
    return None if available >= 2**62 else available  # the core's word for no limit is its largest number
