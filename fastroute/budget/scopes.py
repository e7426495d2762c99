"""One configured budget: its counters, and how much may be committed before a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from fastroute import _core
from fastroute.config import BudgetConfig

from .windows import Window, window_at, zone_of

ANY = 2**63 - 1  # no bound: more than can ever be committed


class Budget:
    """One configured budget: its limit in nano-dollars and its current window."""

    __slots__ = ("_limits", "config", "limit", "scopes", "thresholds", "window", "zone")

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.limit = config.limit_nano
        self._limits = {name: int(Decimal(repr(share)) * self.limit) for name, share in config.shares.items()}
        self.zone = zone_of(config.timezone)
        self.window: Window | None = None
        self.scopes: dict[str, Scope] = {}
        self.thresholds = tuple(
            (max(1, math.ceil(Decimal(repr(share)) * self.limit)), share) for share in sorted(config.alerts)
        )

    def window_at(self, when: float) -> Window:
        known = self.window
        if known is None or not known.start <= when < known.end:
            known = self.window = window_at(self.config.window, self.zone, when)
        return known

    def scope(self, tags: Mapping[str, str]) -> Scope:
        """The scope of a call with these tags."""
        tag = self.config.tag
        value = "" if tag is None else tags.get(tag, "")
        return self.scopes.get(value) or self.scopes.setdefault(value, Scope(self, value))

    def limit_for(self, priority: str) -> int:
        """The limit for calls of a class of priority, nano-dollars."""
        return self._limits.get(priority, self.limit)

    def most(self, amount: int | None, forced: bool, served: bool, priority: str) -> int:
        """How much may be committed before a call of this amount; -1 if the call is refused in any case.

        ``forced`` and ``served`` are those of `Budgets.reserve`.
        """
        if amount == 0:
            return ANY
        if not self.config.hard and (forced or (served and self.config.on_breach == "downgrade")):
            return ANY
        limit = self.limit_for(priority)
        if amount is None:
            return -1 if self.config.hard else limit - 1
        return max(limit - amount, -1) if self.config.hard else limit - 1


class Scope:
    """The part of a budget that is counted together: one value of its tag, or all calls."""

    __slots__ = ("alerted", "budget", "counters", "unreadable_until", "value")

    def __init__(self, budget: Budget, value: str) -> None:
        self.budget = budget
        self.value = value
        self.counters: dict[int, _core.Counter] = {}
        self.alerted = (0, 0)  # the counter's stamp, and how many alerts are known to have been emitted
        self.unreadable_until = 0

    @property
    def tags(self) -> dict[str, str]:
        tag = self.budget.config.tag
        return {} if tag is None else {tag: self.value}

    @property
    def shown(self) -> str | None:
        return None if self.budget.config.tag is None else self.value

    def counter(self, segment: _core.Segment, window: Window, kind: str = "budget") -> _core.Counter:
        # Two cells alternate, so that calls that began in one window are not counted in the next.
        turn = window.number & 1
        found = self.counters.get(turn)
        if found is None:
            # The name contains the settings, so a budget whose settings changed gets a new counter.
            found = self.counters.setdefault(turn, _core.Counter(segment, f"{kind}\0{self.name}\0{turn}"))
        return found

    @property
    def name(self) -> str:
        config = self.budget.config
        return "\0".join((config.name, config.window, config.timezone, config.per, self.value))
