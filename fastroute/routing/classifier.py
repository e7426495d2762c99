"""Classifies requests by a rule set.

The core reads the text (`fastroute._core.Rules`). The form of rule sets is in `config/rules.py`; which tier
serves a level, and what a low confidence means, is decided in `planner.py`.

A classifier uses counts only, so a prompt cannot give it instructions. Its time is linear in the length of
the text, whatever the text is, and only the two ends of a very long one are examined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastroute import _core
from fastroute.config.messages import did_you_mean, show
from fastroute.config.rules import RuleSet, compiled, load_builtin
from fastroute.errors import ConfigError
from fastroute.types import Classification


class Classifier:
    """A compiled rule set.

    `scan` is on the way of every call: it is one native call and makes no other object. `explain` makes a
    `Classification` of its result when one is wanted.

    Attributes:
        rule_set: the rule set.
        scan: a request's messages and other parameters → counts, score and level. A method of the core,
            without a Python function around it. Raises TypeError if the messages are not a sequence of
            mappings.

    Thread safety: immutable; any number of threads may use one.
    """

    __slots__ = ("_rules", "rule_set", "scan")

    def __init__(self, rule_set: RuleSet, *, portable: bool = False) -> None:
        """``portable``: use no special instructions of the processor; the results are the same."""
        self.rule_set = rule_set
        self._rules = compiled(rule_set, portable)
        self.scan: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], _core.Scan] = self._rules.read

    @classmethod
    def named(cls, name: str, own: Mapping[str, RuleSet] | None = None) -> Classifier:
        """The classifier of a built-in rule set, or of one among ``own``.

        Raises:
            ConfigError: if no rule set has that name.
        """
        known = {**load_builtin(), **(own or {})}
        if name not in known:
            raise ConfigError(
                f"policy.classifier: there is no classifier {show(name)}{did_you_mean(name, known)}, "
                f"must be one of {', '.join(known)}"
            )
        return cls(known[name])

    @property
    def name(self) -> str:
        """The rule set's name."""
        return self.rule_set.name

    @property
    def levels(self) -> tuple[str, ...]:
        """Its levels, cheapest first."""
        return self.rule_set.levels

    def __repr__(self) -> str:
        return f"Classifier({self.name!r})"

    def explain(
        self, scan: _core.Scan, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> Classification:
        """The classification for a scan by this classifier, with the reason in words.

        Args:
            messages: not used; `routing/learned.py` finds words in them.
        """
        rule_set = self.rule_set
        return Classification(
            level=scan.level,
            score=None if rule_set.score is None else scan.score,
            confidence=scan.confidence,
            matches=scan.matches,
            classifier=rule_set.name,
            reason=self._reason(scan),
        )

    def classify(
        self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
    ) -> tuple[Classification, _core.Scan]:
        """`scan` and `explain` in one; raises what `scan` does."""
        scan = self.scan(messages, params)
        return self.explain(scan), scan

    def _reason(self, scan: _core.Scan) -> str:
        rules = self.rule_set.rules
        if scan.rule >= 0:
            conditions = rules[scan.rule].when
            text = " and ".join(map(str, conditions)) or "always"
        else:
            conditions = tuple(condition for rule in rules for condition in rule.when)
            text = "no rule holds"
        features = dict.fromkeys(condition.feature for condition in conditions)
        values = ", ".join(f"{name} is {_figure(scan.feature(name))}" for name in features)
        long = "; only the ends of a very long text were examined" if scan.truncated else ""
        return f"{text} ({values}){long}" if values else text + long


def _figure(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
