"""How far a call has come through its plan: the endpoints tried, refused, and left to try."""

from __future__ import annotations

from attrs import frozen

from fastroute import errors
from fastroute.config.catalog import Model
from fastroute.state.endpoints import LiveEndpoint

from .queue import Waiter


@frozen
class NotAdmitted:
    """Why the core did not admit a call, and for how long (seconds; 0 if unknown)."""

    name: str
    endpoint: LiveEndpoint
    tier: str | None
    reason: int
    wait: float


class Progress:
    """The state of one call between its attempts.

    Attributes:
        tried: names of the endpoints that were tried.
        excluded: names of the endpoints that must not be tried any more.
        primary: the error of the first endpoint tried, which is raised if no other answers.
        first: that endpoint.
    """

    __slots__ = (
        "chain",
        "counted",
        "excluded",
        "failed",
        "failed_slowly",
        "first",
        "gone",
        "leaves_plan",
        "others",
        "primary",
        "refused",
        "respelled",
        "retry",
        "too_large",
        "too_small",
        "tried",
        "twice",
        "unsaid",
        "waiter",
        "wider_than",
    )

    def __init__(self) -> None:
        self.tried: set[str] = set()
        self.counted: set[str] = set()  # those whose retry budget has got its share for this call
        self.excluded: set[str] = set()
        # Endpoints that may be tried again, with the last error of each, the oldest first.
        self.retry: list[tuple[LiveEndpoint, errors.APIError]] = []
        self.refused: list[NotAdmitted] = []
        self.waiter: Waiter | None = None  # its place in the queue, while it waits
        self.primary: errors.Error | None = None
        self.first: LiveEndpoint | None = None
        self.others: list[errors.Error] = []  # the errors of the later attempts
        self.unsaid: errors.Error | None = None  # the first error of a format that cannot express the request
        self.failed: LiveEndpoint | None = None
        self.failed_slowly = False
        self.gone = False  # an endpoint turned out not to serve its model
        self.too_large = 0  # refusals because of the size
        self.too_small: set[str] = set()  # models whose window the request does not fit
        self.respelled: set[tuple[str, str]] = set()  # endpoints and parameters that were spelled another way
        self.twice: set[str] = set()  # endpoints that may be tried only once more
        self.wider_than = 0  # only models with a larger window than this are left to try
        self.chain: tuple[str, Model] | None = None  # fallbacks to try before the plan, and whose they are
        self.leaves_plan = False  # these fallbacks replace the plan

    def failure(self, endpoint: LiveEndpoint, error: errors.APIError) -> None:
        """Records the error of an attempt."""
        if self.primary is None:
            self.primary, self.first = error, endpoint
        elif error is not self.primary:
            self.others.append(error)

    def refused_by_first(self, error: errors.APIError) -> None:
        """Makes this later error of the first endpoint the one to raise."""
        if self.primary is not None and self.primary is not error:
            self.others = [self.primary, *(other for other in self.others if other is not error)]
            self.primary = error

    def story(self) -> errors.Error | None:
        """The error to raise: that of the first endpoint, with those of the later attempts as its causes."""
        # The causes are moved, so that a second call does not chain them again.
        primary = self.primary or self.unsaid
        last: BaseException | None = primary
        while last is not None and self.others:
            if last.__cause__ is None:
                last.__cause__ = self.others.pop(0)
            last = last.__cause__
        return primary

    def detour(self, chain: str, model: Model, *, alone: bool) -> None:
        """Makes the models of a chain the next to try, since they can take what this model could not.

        ``alone``: the rest of the plan is not tried after them.
        """
        self.chain = (chain, model)
        self.leaves_plan = alone
