"""One configured budget: its counters, and how much may be committed before a call."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice

from fastroute import _core
from fastroute.config import BudgetConfig

from .windows import Window, window_at, zone_of

ANY = 2**63 - 1  # no bound: more than can ever be committed

KEY_TAG = "key"  # set by the gateway only: whose calls bring the values of another tag
CROWDED_MINUTES = 5  # for which a budget counts as crowded after the last such call
_MOST_SCOPES = 1024  # values that one process remembers; their counters are in the segment
_CLAIM_AGAIN = 0.0005  # seconds, while another process claims a cell
_CLAIMS = 200
_ENDLESS_NS = 2**60


def crowding(segment: _core.Segment, budget: str) -> _core.EventCount:
    """Counts the calls of values that a budget had no room to count by themselves, by minute.

    Raises:
        SegmentFullError: the segment has no room for the count.
    """
    return _core.EventCount(segment, f"budget {budget}, others", periods=CROWDED_MINUTES, period_s=60)


class Budget:
    """One configured budget: its limit in nano-dollars and its current window."""

    __slots__ = ("_limits", "_whole", "config", "limit", "others", "scopes", "thresholds", "window", "zone")

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.limit = config.limit_nano
        self._limits = {name: int(Decimal(repr(share)) * self.limit) for name, share in config.shares.items()}
        self.zone = zone_of(config.timezone)
        self.window: Window | None = None
        self.scopes: dict[tuple[str, str], Scope] = {}  # by value and group
        self.others: dict[str, Scope] = {}  # by group
        self._whole = Scope(self, "") if config.tag is None else None
        self.thresholds = tuple(
            (max(1, math.ceil(Decimal(repr(share)) * self.limit)), share) for share in sorted(config.alerts)
        )

    def window_at(self, when: float) -> Window:
        known = self.window
        if known is None or not known.start <= when < known.end:
            known = self.window = window_at(self.config.window, self.zone, when)
        return known

    def scope(self, tags: Mapping[str, str]) -> Scope:
        """The scope of a call with these tags, if there is room to count it by itself."""
        if self._whole is not None:
            return self._whole
        tag = self.config.tag or ""
        value = tags.get(tag, "")
        group = "" if tag == KEY_TAG else tags.get(KEY_TAG, "")
        found = self.scopes.get((value, group))
        if found is None:
            if len(self.scopes) >= _MOST_SCOPES:
                # The oldest half, so that this is rare. A scope that is still used is made again.
                for old in tuple(islice(self.scopes, _MOST_SCOPES // 2)):
                    self.scopes.pop(old, None)
            found = self.scopes.setdefault((value, group), Scope(self, value, group))
        return found

    def all_scopes(self) -> tuple[Scope, ...]:
        """Those that this process has used lately."""
        whole = () if self._whole is None else (self._whole,)
        return (*whole, *tuple(self.scopes.values()), *tuple(self.others.values()))

    def scope_of_others(self, group: str) -> Scope:
        """The scope in which all values of a group are counted together that have no counter of their own."""
        return self.others.get(group) or self.others.setdefault(group, Scope(self, "", group, others=True))

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
    """The part of a budget that is counted together: one value of its tag, or all calls.

    The counters of values are in a table of the segment and may be given to other values while nothing is
    reserved in them; see `fastroute._core.claim_counter`.

    Attributes:
        value: of the tag; empty for calls without it.
        group: the gateway's key that brings the value; one key can use its share of the counters only.
        others: whether all values of the group are counted here that have no counter of their own.
        is_value: whether it is counted in a cell that other values may get.
    """

    __slots__ = (
        "_counters",
        "alerted",
        "budget",
        "group",
        "is_value",
        "others",
        "unreadable_until",
        "value",
    )

    def __init__(self, budget: Budget, value: str, group: str = "", *, others: bool = False) -> None:
        self.budget = budget
        self.value = value
        self.group = group
        self.others = others
        self.is_value = budget.config.tag is not None and not others
        # By the window's number modulo 2: calls that began in one window are not counted in the next.
        self._counters: dict[int, tuple[int, _core.Counter]] = {}
        self.alerted = (0, 0)  # the counter's stamp, and how many alerts are known to have been emitted
        self.unreadable_until = 0

    @property
    def tags(self) -> dict[str, str]:
        tag = self.budget.config.tag
        return {} if tag is None else {tag: self.value}

    @property
    def shown(self) -> str | None:
        if self.others:
            return f"others of {self.group}" if self.group else "others"
        return None if self.budget.config.tag is None else self.value

    def known_counter(self, segment: _core.Segment, window: Window, kind: str) -> _core.Counter | None:
        """The counter of a window if there is one now; None for a value that has no cell.

        Raises:
            SegmentFullError: the segment has no room for another cell; not for a value.
        """
        kept = self._counters.get(window.number & 1)
        if kept is not None and kept[0] == window.number and not (self.is_value and kept[1].lost):
            return kept[1]
        # The name contains the settings, so a budget whose settings changed gets a new counter.
        if not self.is_value:
            return self._keep(window, _core.Counter(segment, f"{kind}\0{self.name}\0{window.number & 1}"))
        found = _core.find_counter(segment, f"{kind}\0{self.name}", window.number)
        return None if found is None else self._keep(window, found)

    def claimed_counter(
        self, segment: _core.Segment, window: Window, kind: str, *, shared: bool, when: float, clock: int
    ) -> _core.Counter | None:
        """A counter for a value that has none; None if all cells that it may have are in use.

        Args:
            kind: the beginning of its name.
            shared: whether many machines count, see `Bank`.
            when, clock: one moment in seconds since the epoch, and on the core's clock.
        """
        end = _ENDLESS_NS if math.isinf(window.end) else clock + int(max(0.0, window.end - when) * 1e9)
        for _ in range(_CLAIMS):
            try:
                found = _core.claim_counter(
                    segment,
                    f"{kind}\0{self.name}",
                    window.number,
                    end,
                    group=self.group,
                    shared=shared,
                    now=clock,
                )
            except BlockingIOError:
                time.sleep(_CLAIM_AGAIN)  # another thread or process claims one, which takes microseconds
            else:
                return None if found is None else self._keep(window, found)
        return None

    def _keep(self, window: Window, counter: _core.Counter) -> _core.Counter:
        self._counters[window.number & 1] = (window.number, counter)
        return counter

    @property
    def name(self) -> str:
        config = self.budget.config
        parts = (config.name, config.window, config.timezone, config.per, self.value)
        # No budget has an empty name, so no value has the name of the others.
        return "\0".join(("", *parts[:-1], self.group) if self.others else parts)
