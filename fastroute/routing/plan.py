"""A plan: the endpoints that may serve one request, in which order, and why.

A plan is a value: it explains itself, and says why no endpoint can serve the request. Making it, ranking its
stages and walking through them is in `planner.py`. Nothing is sent for a plan, and no limit counts it,
so it may be made and thrown away.
"""

from __future__ import annotations

from functools import partial

from fastroute import _core
from fastroute.errors import Error
from fastroute.types import Classification, Request

from .explain import Candidate, StageRanking, candidates_of, refusal_of, text_of
from .stage import Estimate, Stage


class Judgement(partial[Classification]):
    """The result of classifying a request. Calling it returns the `Classification`.

    A partial, so that the classification is made only when it is wanted and the request is not kept alive.
    Its arguments are `Planner.explain`, a scan or an opinion (None if the classifier failed), and why it
    failed. It may be called with the request's messages, in which a learned score finds the words that moved
    it.

    Attributes:
        level: the class alone, which costs less than the classification; None if the classifier failed.
        score: the learned score; None if there is none.
    """

    __slots__ = ("level", "score")

    level: str | None
    score: float | None


class Plan:
    """The endpoints that may serve one request, in which order, and why.

    Attributes:
        request: the request.
        estimate: the tokens and time that it is expected to take.
        needs: capabilities that a model must have, as bits.
        judgement: the class of the request.
        stages: the endpoints, in stages that are tried one after the other.
        ranked: the stages that have been reached, each with the order of its endpoints at that time. The
            planner adds to it; a plan that `Client.plan` returns has all stages.

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
        """The class of the request, and why; computed at the first access."""
        if self._classification is None:
            self._classification = self.judgement(self.request.messages)
        return self._classification

    @property
    def tier(self) -> str | None:
        """The tier that serves the request, if it is served by a tier."""
        return self.stages[0].tier

    @property
    def level(self) -> str | None:
        """The class alone, which costs less than `classification`."""
        return self.judgement.level

    @property
    def relaxed(self) -> bool:
        """Whether no model met the limits of quality, latency and price, so that the best model is taken."""
        return bool(self.ranked) and self.ranked[0][1].relaxed

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every endpoint of every stage: first those that may serve it, in order, then those left out."""
        return candidates_of(self._rankings())

    def refusal(self) -> Error:
        """The error that says why no endpoint can serve the request, each with its reason."""
        return refusal_of(self._rankings())

    def __str__(self) -> str:
        return text_of(self._rankings(), self.classification, self.request.model, self.relaxed)

    def _rankings(self) -> list[StageRanking]:
        return [StageRanking(stage, ranked, self.estimate, self.needs) for stage, ranked in self.ranked]
