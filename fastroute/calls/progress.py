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
    """

    __slots__ = (
        "chain",
        "excluded",
        "failed",
        "failed_slowly",
        "primary",
        "refused",
        "retry",
        "too_small",
        "tried",
        "waiter",
        "wider_than",
        "without_usage",
    )

    def __init__(self) -> None:
        self.tried: set[str] = set()
        self.excluded: set[str] = set()
        # Tried, and may be asked again: with what each failed last, the longest ago first.
        self.retry: list[tuple[LiveEndpoint, errors.APIError]] = []
        self.refused: list[NotAdmitted] = []
        self.waiter: Waiter | None = None  # in line, while it waits
        self.primary: errors.Error | None = None
        self.failed: LiveEndpoint | None = None
        self.failed_slowly = False
        self.too_small: set[str] = set()  # models whose window the request does not fit
        self.without_usage: set[str] = set()  # endpoints that were to be asked again without stream_options
        self.wider_than = 0  # only models with a larger window than this are left to ask
        self.chain: tuple[str, Model] | None = None  # the chain that took the plan's place, and whose it is

    def detour(self, chain: str, model: Model) -> None:
        """Leaves the plan for a chain of models that can take what this one could not, if it has one."""
        if getattr(model, chain):
            self.chain = (chain, model)
