"""A plan: who is asked for one request, in which order, and why.

A plan is a value: it explains itself, and says why no endpoint can serve the request. Making it, ranking its
stages and walking through them is in `planner.py`. A plan may be made and thrown away: nothing was sent or
counted for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import frozen

from fastroute import _core
from fastroute.config.catalog import (
    JSON_SCHEMA,
    SAMPLING,
    SAMPLING_WITHOUT_REASONING,
    STREAMING,
    TOOLS,
    VISION,
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
    """

    reason: str
    tier: str | None
    endpoints: tuple[Endpoint, ...]
    choice: _core.Choice
    by_value: bool
    base_tokens: int
    longer: Callable[[int], _core.Choice]

    def choice_for(self, estimate: int) -> _core.Choice:
        """The choice by the prices of such a prompt, as the model counts it that counts the most."""
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


class Judgement(partial[Classification]):
    """What a classifier found in a request. Called, it returns the `Classification`.

    It does not keep the request alive. Its arguments are a function that explains, a scan or an opinion (None
    if the classifier failed), and why it failed.

    Attributes:
        level: the class alone, which costs less than the classification; None if the classifier failed.
    """

    __slots__ = ("level",)

    level: str | None


class Plan:
    """Who would be asked for one request, in which order, and why.

    Attributes:
        request: what was planned for.
        estimate: tokens and time it is expected to take.
        needs: capabilities that a model must have, as bits.
        judgement: the class of the request.
        stages: the endpoints that may be asked, those of the first stage before those of the next.
        ranked: the stages that have been reached, each with the order of its endpoints at that moment. The
            planner adds to it; a plan that `Client.plan` returns has all of them.

    Thread safety: may be shared once all stages are ranked; before that, a plan belongs to one thread.
    """

    __slots__ = ("_classification", "estimate", "judgement", "needs", "ranked", "request", "stages")

    def __init__(
        self,
        request: Request,
        estimate: Estimate,
        needs: int,
        judgement: Judgement,
        stages: tuple[Stage, ...],
    ) -> None:
        self.request = request
        self.estimate = estimate
        self.needs = needs
        self.judgement = judgement
        self.stages = stages
        self.ranked: list[tuple[Stage, _core.Ranked]] = []
        self._classification: Classification | None = None

    @property
    def classification(self) -> Classification:
        """The class of the request, and why; worked out at the first access."""
        if self._classification is None:
            self._classification = self.judgement()
        return self._classification

    @property
    def tier(self) -> str | None:
        """The tier it is served from, if it was chosen by tier."""
        return self.stages[0].tier

    @property
    def level(self) -> str | None:
        """The class alone, which costs less than `classification`."""
        return self.judgement.level

    @property
    def relaxed(self) -> bool:
        """Whether no model met the wishes for quality, latency and price, so that the best one is taken."""
        return bool(self.ranked) and self.ranked[0][1].relaxed

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every endpoint of every stage, those that are asked first, in order."""
        inside: list[Candidate] = []
        outside: list[Candidate] = []
        for stage, ranked in self.ranked:
            figures = _Figures(stage, ranked)
            order = ranked.order
            for place in order:
                inside.append(self._candidate(figures, place, len(inside)))
            for place in range(len(stage.endpoints)):
                if place not in order:
                    outside.append(self._candidate(figures, place, None))
        return (*inside, *outside)

    def refusal(self) -> Error:
        """The error that says why nobody can serve it, each endpoint with its reason."""
        codes = set()
        lines = []
        waits = []
        now = _core.clock()
        for stage, ranked in self.ranked:
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
            f"asked     {self.request.model}, served from {self.stages[0].reason}"
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
