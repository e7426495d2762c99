"""Endpoints that are ranked together, and what a request is expected to take."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from fastroute import _core
from fastroute.state.endpoints import LiveEndpoint

ENDLESS = 1 << 62  # tokens


# Without slots: attrs fills the dict of a frozen class at once, but sets each slot by a call of its own.
@frozen(slots=False)
class Estimate:
    """What the request is expected to take.

    Attributes:
        input_tokens: prompt tokens, by the text's length.
        output_tokens: answer tokens: those asked for, or what such answers took lately.
        timeout: seconds that an attempt may take while another endpoint is ready; the last one has until the
            call's deadline.
        reasoning: whether the answer is expected to begin with reasoning.
    """

    input_tokens: int
    output_tokens: int
    timeout: float
    reasoning: bool = False

    @property
    def prompt_scale(self) -> float:
        """How many times as long as to a short prompt the first token may take."""
        return 1.0 + self.input_tokens / 10_000


@frozen(eq=False, kw_only=True)
class Stage:
    """Endpoints that are ranked together.

    Attributes:
        reason: where the stage comes from, in words.
        tier: the tier's name, if it is one.
        choice: chooses among them by the configuration's wishes.
        by_value: models by price / (quality × speed); otherwise in the order given.
        base_tokens: prompts of up to so many tokens have their usual price at every endpoint.
        longer: the choice by the prices of a longer prompt, of so many tokens.
    """

    reason: str
    tier: str | None
    endpoints: tuple[LiveEndpoint, ...]
    choice: _core.RankingChoice
    by_value: bool
    base_tokens: int
    longer: Callable[[int], _core.RankingChoice]

    def choice_for(self, estimate: int) -> _core.RankingChoice:
        """The choice by the prices of such a prompt, as the model counts it that counts the most."""
        most = max(endpoint.calibration.apply(estimate) for endpoint in self.endpoints)
        return self.choice if most <= self.base_tokens else self.longer(most)
