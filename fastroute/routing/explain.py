"""Explains a plan: each endpoint with its figures and verdict, as values, as text or as an error."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from fastroute import _core
from fastroute.config.catalog import (
    AUDIO,
    FILE,
    JSON_SCHEMA,
    SAMPLING,
    SAMPLING_WITHOUT_REASONING,
    STREAMING,
    TOOLS,
    VIDEO,
    VISION,
)
from fastroute.errors import (
    BudgetExceeded,
    ContextLengthExceeded,
    Error,
    NoEndpointError,
    NotFoundError,
    RequestTooLargeForLimit,
)
from fastroute.figures import dollars, duration
from fastroute.state.endpoints import STATE_NAMES, BlockReason, LiveEndpoint
from fastroute.types import NANO, Classification

from .stage import Estimate, Stage

_CAPABILITIES = {
    STREAMING: "streaming",
    TOOLS: "tools",
    VISION: "vision",
    JSON_SCHEMA: "JSON schema",
    FILE: "file",
    AUDIO: "audio",
    VIDEO: "video",
    SAMPLING: "temperature or top_p (policy.drop_sampling leaves them out)",
    SAMPLING_WITHOUT_REASONING: "temperature or top_p (policy.drop_sampling leaves them out)",
}


# Without slots: attrs fills the dict of a frozen class at once, but sets each slot by a call of its own.
@frozen(kw_only=True, slots=False)
class Candidate:
    """One endpoint of a plan, with its figures at the time of planning.

    Attributes:
        rank: 0 is tried first; None: left out.
        verdict: why it is in the plan or left out.
        price: estimated USD; None if unknown.
        latency: expected seconds; 0 if never measured.
        health: its health score, 0 to 100; under 70 it comes after the healthy ones.
        state: of its breaker.
        value: price / (quality × speed), lower is better.
        available_requests, available_tokens: what its limits allow now; None: no limit.
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
    health: int
    in_flight: int
    state: str
    value: float
    available_requests: int | None
    available_tokens: int | None


class StageRanking:
    """A ranked stage, its figures read once, with the estimate and needs of the request."""

    __slots__ = ("estimate", "needs", "now", "order", "prices", "stage", "unhealthy", "values", "verdicts")

    def __init__(self, stage: Stage, ranked: _core.Ranked, estimate: Estimate, needs: int) -> None:
        self.stage = stage
        self.estimate = estimate
        self.needs = needs
        self.order = ranked.order
        self.verdicts = ranked.verdicts
        self.values = ranked.values
        self.prices = ranked.prices
        self.unhealthy = ranked.unhealthy
        self.now = _core.clock()

    def candidate(self, place: int, rank: int | None) -> Candidate:
        """The endpoint at a place of the stage; ``rank`` is None if it is left out."""
        stage = self.stage
        endpoint = stage.endpoints[place]
        core, model, now = endpoint.core, endpoint.model, self.now
        price = self.prices[place]
        return Candidate(
            endpoint=endpoint.name,
            model=model.name,
            provider=endpoint.config.provider,
            stage=stage.reason,
            rank=rank,
            verdict=self.verdict(place),
            price=None if price < 0 else price / NANO,
            quality=model.quality,
            latency=core.ewma(now) or model.latency,
            success_rate=core.success_rate(now),
            health=core.health(now)[0],
            in_flight=core.in_flight,
            state=STATE_NAMES[core.state(now)],
            value=self.values[place],
            available_requests=_limited(core.available_requests(now)),
            available_tokens=_limited(core.available_tokens(now)),
        )

    def lacking(self, place: int) -> list[str]:
        """The capabilities that the request needs and the model at a place does not have."""
        missing = self.needs & ~self.stage.endpoints[place].model.reads
        return [name for bit, name in _CAPABILITIES.items() if missing & bit]

    def verdict(self, place: int) -> str:
        """Why the endpoint at a place of the stage is in the plan or left out."""
        stage = self.stage
        code = self.verdicts[place]
        endpoint = stage.endpoints[place]
        if code == 0:
            if not self.unhealthy[place]:
                return stage.reason
            score, errors = endpoint.core.health(self.now)
            return f"{stage.reason}, after healthy ones: health {score} of 100, {errors:.0%} errors lately"
        model = endpoint.model
        estimate = self.estimate
        tokens_in = endpoint.calibration.apply(estimate.input_tokens)
        price = self.prices[place]
        cost = "unknown" if price < 0 else dollars(price)
        if code == _core.OUT_CAPABILITY:
            return f"left out: no {', '.join(self.lacking(place))}"
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


def candidates_of(rankings: Sequence[StageRanking]) -> tuple[Candidate, ...]:
    """Every endpoint of every stage: first those that may serve the request, in order, then the others."""
    inside: list[Candidate] = []
    outside: list[Candidate] = []
    for ranking in rankings:
        order = ranking.order
        for place in order:
            inside.append(ranking.candidate(place, len(inside)))
        for place in range(len(ranking.stage.endpoints)):
            if place not in order:
                outside.append(ranking.candidate(place, None))
    return (*inside, *outside)


def refusal_of(rankings: Sequence[StageRanking]) -> Error:
    """The error that says why no endpoint can serve the request, each with its reason."""
    codes = set()
    lines = []
    waits = []
    now = _core.clock()
    for ranking in rankings:
        for place, endpoint in enumerate(ranking.stage.endpoints):
            code = ranking.verdicts[place]
            codes.add(code)
            lines.append(f"{endpoint.name}: {ranking.verdict(place)}")
            if code in (_core.OUT_BLOCKED, _core.OUT_BREAKER):
                waits.append(_reopens(endpoint, now))
    text = "; ".join(lines)
    # Where waiting helps for any endpoint, the error says how long. Only otherwise is the request the cause.
    endpoints = [endpoint for ranking in rankings for endpoint in ranking.stage.endpoints]
    if codes == {_core.OUT_BLOCKED} and all(endpoint.model_gone for endpoint in endpoints):
        return NotFoundError(f"no provider serves the model: {text}", retry_after=min(waits))
    if waits:
        return NoEndpointError(f"no endpoint can serve the request: {text}", retry_after=min(waits))
    if codes <= {_core.OUT_PRICE_CAP}:
        return BudgetExceeded(f"every endpoint would cost more than the cap: {text}")
    if codes <= {_core.OUT_WINDOW}:
        return ContextLengthExceeded(f"the request is longer than every context window: {text}")
    if codes <= {_core.OUT_TOO_LARGE}:
        return RequestTooLargeForLimit(f"the request is larger than every limit: {text}")
    refusal = NoEndpointError(f"no endpoint can serve the request: {text}", status_code=400)
    lacking = [set(ranking.lacking(place)) for ranking in rankings for place in range(len(ranking.verdicts))]
    refusal.lacking = tuple(sorted(set.intersection(*filter(None, lacking)))) if any(lacking) else ()
    return refusal


def text_of(
    rankings: Sequence[StageRanking], classification: Classification, asked: str, relaxed: bool
) -> str:
    """The plan as lines of text: the class and why, what was asked for, and every endpoint."""
    stage, estimate = rankings[0].stage, rankings[0].estimate
    words = ", ".join(word for group in classification.matches.values() for word in group)
    score = "" if classification.score is None else f", score {classification.score:g}"
    lines = [
        f"class     {classification.level} ({classification.classifier}{score}, "
        f"confidence {classification.confidence:.2f})" + (f": {words}" if words else ""),
        f"why       {classification.reason}",
        f"asked     {asked}, served from {stage.reason}"
        + (", no model meets the criteria: best quality first" if relaxed else ""),
        f"estimate  {estimate.input_tokens} tokens in, {estimate.output_tokens} out",
    ]
    for candidate in candidates_of(rankings):
        place = "-" if candidate.rank is None else str(candidate.rank + 1)
        price = "price ?" if candidate.price is None else dollars(round(candidate.price * NANO))
        lines.append(
            f"{place:>3} {candidate.endpoint:<36} {price:>11} {duration(candidate.latency):>8} "
            f"{candidate.in_flight:4d} in flight  {candidate.state:<9} {candidate.verdict}"
        )
    return "\n".join(lines)


def _reopens(endpoint: LiveEndpoint, now: int) -> float:
    blocked, _ = endpoint.core.blocked(now)
    return max(blocked, endpoint.core.reopens_in(now)) / 1e9


def _limited(available: int) -> int | None:
    return None if available >= 2**62 else available  # without a limit the core returns its largest number
