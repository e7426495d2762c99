"""Ranking in plain Python: a verdict for each endpoint, then one sort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .endpoint import Endpoint
from .segment import (
    IN,
    LATENCY,
    LEAST_BUSY,
    LOWEST_COST,
    LOWEST_USAGE,
    ORDERED,
    OUT_BLOCKED,
    OUT_BREAKER,
    OUT_CAPABILITY,
    OUT_PRICE_CAP,
    OUT_TOO_LARGE,
    OUT_WINDOW,
    SOFT_LATENCY,
    SOFT_PRICE,
    SOFT_QUALITY,
    TWO_CHOICES,
    VALUE,
    ceil_div,
    clock,
)


@dataclass(frozen=True)
class Ranked:
    """A decision: who, in what order, and why not the others."""

    order: tuple[int, ...]
    verdicts: bytes
    keys: tuple[float, ...]
    values: tuple[float, ...]
    prices: tuple[int, ...]
    relaxed: bool

    @property
    def first(self) -> int:
        return self.order[0] if self.order else -1


class Calibration:
    """Real tokens over estimated ones, a moving average held within bounds."""

    def __init__(self) -> None:
        self.ratio = 1.0

    def apply(self, estimate: int) -> int:
        return estimate if self.ratio == 1 else math.ceil(estimate * self.ratio)

    def learn(self, estimate: float, real: float) -> None:
        if estimate > 0 and real > 0:
            self.ratio += 0.1 * (min(max(real / estimate, 0.3), 3.0) - self.ratio)


@dataclass
class Admitted:
    """Whom a choice let in where."""

    chosen: int
    tokens: int
    ticket: int

    def take(self) -> int:
        if self.ticket < 0:
            raise ValueError("no ticket")
        ticket, self.ticket = self.ticket, -1
        return ticket


@dataclass(frozen=True)
class RankingChoice:
    """Wishes kept."""

    ranking: Ranking
    wishes: dict[str, Any]

    def rank(
        self, tokens_in: int = 0, tokens_out: int = 0, capabilities: int = 0, seed: int = 0, now: int = 0
    ) -> Ranked:
        request = {"tokens_in": tokens_in, "tokens_out": tokens_out, "capabilities": capabilities}
        return self.ranking.rank(**self.wishes, **request, seed=seed, now=now)

    def admit(
        self, tokens_in: int = 0, tokens_out: int = 0, capabilities: int = 0, seed: int = 0, now: int = 0
    ) -> Admitted:
        row = self.ranking
        for i in self.rank(tokens_in, tokens_out, capabilities, seed, now).order:
            tokens = row.input(i, tokens_in) + row.output(i, tokens_out)
            ticket = row.endpoints[i].admit(tokens, now)
            if ticket >= 0:
                return Admitted(i, tokens, ticket)
        return Admitted(-1, 0, -1)


class Ranking:
    """Filters, then orders models, then each model's endpoints. Weights are not drawn here (WEIGHTED)."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        models: Sequence[int],
        windows: Sequence[int],
        max_outputs: Sequence[int],
        capabilities: Sequence[int],
        input_prices: Sequence[int],
        output_prices: Sequence[int],
        qualities: Sequence[float],
        latencies: Sequence[float],
        calibrations: Sequence[Calibration] | None = None,
    ) -> None:
        self.calibrations = calibrations or [Calibration() for _ in endpoints]
        self.endpoints = endpoints
        self.models, self.windows, self.capabilities = models, windows, capabilities
        self.max_outputs = max_outputs
        self.input_prices, self.output_prices = input_prices, output_prices
        self.qualities, self.latencies = qualities, latencies

    def choice(self, strategy: int, **wishes: Any) -> RankingChoice:
        return RankingChoice(self, {"strategy": strategy, **wishes})

    def rank(
        self,
        strategy: int,
        tokens_in: int = 0,
        tokens_out: int = 0,
        capabilities: int = 0,
        max_price: int = -1,
        price_ceiling: int = -1,
        quality_floor: float = 0.0,
        max_latency: float = 0.0,
        among_models: int = ORDERED,
        limit: int = 0,
        seed: int = 0,
        decay: bool = True,
        now: int = 0,
    ) -> Ranked:
        assert decay, "the twin always lets the past fade"
        now = now or clock()
        n = range(len(self.endpoints))
        prices = tuple(self.price(i, tokens_in, tokens_out) for i in n)
        expected = [self.expected(i, now) for i in n]

        def verdict(i: int) -> int:
            endpoint, tokens = self.endpoints[i], self.input(i, tokens_in) + self.output(i, tokens_out)
            price = min(prices[i], 0) if tokens == 0 else prices[i]  # of nothing there is nothing to cap
            if capabilities & ~self.capabilities[i]:
                return OUT_CAPABILITY
            if 0 < self.windows[i] < tokens:
                return OUT_WINDOW
            if max_price >= 0 and not 0 <= price <= max_price:
                return OUT_PRICE_CAP
            if endpoint.blocked(now)[0]:
                return OUT_BLOCKED
            if not endpoint.breaker.would_allow(now):
                return OUT_BREAKER
            if endpoint.never(tokens):
                return OUT_TOO_LARGE
            if self.qualities[i] < quality_floor:
                return SOFT_QUALITY
            if 0 < max_latency < self.expected(i, now, forget=True):
                return SOFT_LATENCY
            if price_ceiling >= 0 and not 0 <= price <= price_ceiling:
                return SOFT_PRICE
            return IN

        verdicts = [verdict(i) for i in n]
        chosen = [i for i in n if verdicts[i] == IN]
        softly_out = [i for i in n if verdicts[i] >= SOFT_QUALITY]
        relaxed = not chosen and bool(softly_out)

        # A model is as quick as the quickest of its endpoints that are in.
        seconds: dict[int, float] = {}
        for i in chosen:
            if expected[i] > 0:
                seconds[self.models[i]] = min(seconds.get(self.models[i], math.inf), expected[i])
        values = tuple(
            prices[i] / (self.qualities[i] * (1 / seconds.get(self.models[i], 1.0)))
            if prices[i] >= 0 and self.qualities[i] > 0
            else math.inf
            for i in n
        )
        keys = tuple(self.key(strategy, i, prices[i], now) for i in n)
        among = tuple(self.key(among_models, i, prices[i], now) for i in n)

        def unhealthy(i: int) -> bool:
            return not self.endpoints[i].breaker.probe_due(now) and self.endpoints[i].latency.unhealthy(now)

        def place(i: int) -> tuple[float, ...]:
            model = self.models[i]
            within = (not self.endpoints[i].breaker.probe_due(now), keys[i], (i - seed) % len(n))
            if relaxed:
                return (unhealthy(i), -self.qualities[i], 0, *within)
            if among_models != ORDERED:
                figures = values if among_models == VALUE else among
                best = min(figures[j] for j in chosen if self.models[j] == model)
                return (unhealthy(i), best, model, *within)
            return (unhealthy(i), model, model, *within)

        self.place = place
        order = sorted(softly_out if relaxed else chosen, key=place)
        return Ranked(tuple(order[: limit or None]), bytes(verdicts), keys, values, prices, relaxed)

    def pick(self, strategy: int, seed: int = 0, decay: bool = True, now: int = 0) -> int:
        return next(iter(self.rank(strategy, limit=1, seed=seed, decay=decay, now=now).order), -1)

    def input(self, i: int, tokens_in: int) -> int:
        """Tokens of the prompt as the model counts them."""
        return self.calibrations[i].apply(tokens_in)

    def output(self, i: int, tokens_out: int) -> int:
        """Tokens of the answer: never more than the model gives."""
        return min(tokens_out, self.max_outputs[i] or tokens_out)

    def price(self, i: int, tokens_in: int, tokens_out: int) -> int:
        """Nano-dollars, rounded up; -1 unknown. Of no tokens: a million in and out, to compare by."""
        if tokens_in == tokens_out == 0:
            tokens_in = tokens_out = 1_000_000
        else:
            tokens_in, tokens_out = self.input(i, tokens_in), self.output(i, tokens_out)
        parts = ((tokens_in, self.input_prices[i]), (tokens_out, self.output_prices[i]))
        if any(tokens and price < 0 for tokens, price in parts):
            return -1
        return min(ceil_div(sum(tokens * price for tokens, price in parts), 1_000_000), 2**63 - 1)

    def expected(self, i: int, now: int, forget: bool = False) -> float:
        """Seconds a call here should take, 0 unknown: what was measured, fading into the model's prior.

        Where no prior is known it stays as it is, unless it is to be forgotten.
        """
        times, prior = self.endpoints[i].latency, self.latencies[i]
        if not times.state.samples:
            return prior
        measured = times.state.ewma + times.spread
        if prior > 0 or forget:
            measured = prior + (measured - prior) * times.fade(times.state.ewma_at, now)
        return measured

    def key(self, strategy: int, i: int, price: int, now: int) -> float:
        endpoint = self.endpoints[i]
        if strategy in (LATENCY, TWO_CHOICES):
            return endpoint.load(now)
        if strategy == LEAST_BUSY:
            return endpoint.in_flight / endpoint.weight
        if strategy == LOWEST_COST:
            return float(price) if price >= 0 else math.inf
        if strategy == LOWEST_USAGE:
            return endpoint.usage(now)
        return float(i)
