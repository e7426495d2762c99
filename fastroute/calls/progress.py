"""How far a call has come through its plan: who was asked, who may be asked again, and who refused."""

from __future__ import annotations

from attrs import frozen

from fastroute import errors
from fastroute.config.catalog import Model
from fastroute.state.endpoints import LiveEndpoint

from .queue import Waiter


@frozen
class NotAdmitted:
    """Why the core did not let a call in, and for how long (seconds; 0 if it cannot say)."""

    name: str
    endpoint: LiveEndpoint
    tier: str | None
    reason: int
    wait: float


class Progress:
    """One call's way through its plan.

    Attributes:
        tried: names of the endpoints that were asked.
        excluded: of those that may not be asked any more.
        primary: the error of the endpoint that was asked first, which is raised if no other answers.
        first: that endpoint.
    """

    __slots__ = (
        "chain",
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
        self.excluded: set[str] = set()
        # Tried, and may be asked again: with what each failed last, the longest ago first.
        self.retry: list[tuple[LiveEndpoint, errors.APIError]] = []
        self.refused: list[NotAdmitted] = []
        self.waiter: Waiter | None = None  # in line, while it waits
        self.primary: errors.Error | None = None
        self.first: LiveEndpoint | None = None
        self.others: list[errors.Error] = []  # what the later attempts failed with
        self.unsaid: errors.Error | None = None  # what the first format cannot express, where none was asked
        self.failed: LiveEndpoint | None = None
        self.failed_slowly = False
        self.gone = False  # an endpoint turned out not to serve its model
        self.too_large = 0  # refusals because of the size
        self.too_small: set[str] = set()  # models whose window the request does not fit
        self.respelled: set[tuple[str, str]] = set()  # endpoints and what was to be spelled another way
        self.twice: set[str] = set()  # endpoints that may be asked once more only
        self.wider_than = 0  # only models with a larger window than this are left to ask
        self.chain: tuple[str, Model] | None = None  # a chain that is asked before the plan, and whose it is
        self.leaves_plan = False  # the chain is asked in the plan's place

    def failure(self, endpoint: LiveEndpoint, error: errors.APIError) -> None:
        """Records what an attempt failed with."""
        if self.primary is None:
            self.primary, self.first = error, endpoint
        elif error is not self.primary:
            self.others.append(error)

    def refused_by_first(self, error: errors.APIError) -> None:
        """Makes this error the story, which the first endpoint answered with after another one."""
        if self.primary is not None and self.primary is not error:
            self.others = [self.primary, *(other for other in self.others if other is not error)]
            self.primary = error

    def story(self) -> errors.Error | None:
        """The error to raise: the first endpoint's, with those of the later attempts as its causes."""
        primary = self.primary or self.unsaid
        last: BaseException | None = primary
        while last is not None and self.others:
            if last.__cause__ is None:
                last.__cause__ = self.others.pop(0)
            last = last.__cause__
        return primary

    def detour(self, chain: str, model: Model, *, alone: bool) -> None:
        """Asks the models of a chain next, which can take what this model could not.

        ``alone``: and none of the plan after them.
        """
        self.chain = (chain, model)
        self.leaves_plan = alone
