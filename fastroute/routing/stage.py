"""Stages of a plan (endpoints that are ranked together), and the estimate of a request."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

from attrs import frozen

from fastroute import _core
from fastroute.providers.media import Media
from fastroute.state.endpoints import LiveEndpoint

ENDLESS = 1 << 62  # tokens


# Without slots: attrs fills the dict of a frozen class at once, but sets each slot by a call of its own.
@frozen(slots=False)
class Estimate:
    """The tokens and the time that a request is expected to take.

    Attributes:
        input_tokens: prompt tokens, from the text's length.
        output_tokens: answer tokens: the caller's limit, or the length of the model's recent answers.
        timeout: seconds that an attempt may take while another endpoint is ready; the last one has until the
            call's deadline.
        reasoning: whether the answer is expected to begin with reasoning.
        media: the parts of the request that are not text.
    """

    # Not a field: most requests are text, and each plan would pay for setting it.
    media: ClassVar[tuple[Media, ...]] = ()

    input_tokens: int
    output_tokens: int
    timeout: float
    reasoning: bool = False

    def with_media(self, media: tuple[Media, ...]) -> Estimate:
        """The same for a request with these parts that are not text."""
        made = copy.copy(self)
        made.__dict__["media"] = media
        return made

    @property
    def prompt_scale(self) -> float:
        """How many times longer the first token may take than for a short prompt."""
        return 1.0 + self.input_tokens / 10_000


@frozen(eq=False, kw_only=True)
class Stage:
    """Endpoints that are ranked together.

    Attributes:
        reason: where the stage comes from, in words.
        tier: the tier's name, if the stage is one.
        choice: chooses among the endpoints by the configuration's criteria.
        among_models: how models are ordered, as the core's number.
        base_tokens: prompts of up to this many tokens have the base price at every endpoint.
        longer: returns the choice by the prices for a longer prompt, given its tokens.
        pinned: whether the request named the provider, so that it must not go to another.
    """

    reason: str
    tier: str | None
    endpoints: tuple[LiveEndpoint, ...]
    choice: _core.RankingChoice
    among_models: int
    base_tokens: int
    longer: Callable[[int], _core.RankingChoice]
    pinned: bool = False

    def choice_for(self, estimate: int) -> _core.RankingChoice:
        """The choice by the prices for a prompt of this estimated length."""
        # Each model counts tokens in its own way. The highest count decides: no price is estimated too low.
        most = max(endpoint.calibration.apply(estimate) for endpoint in self.endpoints)
        return self.choice if most <= self.base_tokens else self.longer(most)
