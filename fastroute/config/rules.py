"""Rule sets: how to tell the level of a request, as data.

Their form, their checks, and the four that come with the package (``data/classifiers.toml``). A `Classifier`
(`routing/classifier.py`) is made of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from attrs import field, frozen

from fastroute import _core
from fastroute._core import Rules
from fastroute.errors import ConfigError

from .messages import quoted, show
from .reader import read_toml

Mode = Literal["substring", "word", "pattern"]
Scope = Literal["user", "all"]
Operator = Literal["<", "<=", ">", ">=", "=="]

OPERATORS: tuple[Operator, ...] = ("<", "<=", ">", ">=", "==")
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*", re.ASCII)
_LARGEST = 2**53
# As listed, not the 64 different ones that the core tells apart: it bounds how long checking them takes.
_MOST_PATTERNS = 256

# --------------------------------------------------------------------------------------------- rule sets


@frozen
class Group:
    """Words or phrases that say the same about a request.

    Attributes:
        name: as in ``group.NAME``, the feature that counts how many of them occur.
        patterns: ASCII; case is ignored.
        mode: ``substring`` finds a pattern anywhere; ``word`` between word boundaries, where a dot is any
            character but a line feed; ``pattern`` takes regular expressions of the subset in
            docs/classifiers.md.
        weight: what each pattern that occurs adds to the score.
    """

    name: str
    patterns: tuple[str, ...]
    mode: Mode = "substring"
    weight: float = 0.0


@frozen
class Condition:
    """One comparison, such as ``average < 50``."""

    feature: str
    operator: Operator
    value: float

    def __str__(self) -> str:
        return f"{self.feature} {self.operator} {self.value:.15g}"


@frozen
class Rule:
    """A level and the conditions that must all hold for it.

    Attributes:
        confidence: 0..1, how far to trust the level when this rule decides.
    """

    level: str
    when: tuple[Condition, ...] = ()
    confidence: float = 1.0


@frozen
class Score:
    """The score is ``base`` plus the weights of what occurs, held to ``low`` .. ``high``."""

    base: float = 0.0
    low: float = 0.0
    high: float = 10.0


@frozen(kw_only=True)
class RuleSet:
    """How to tell a request's level, as data; checked when it is made.

    Attributes:
        name: the classifier's name.
        levels: cheapest first.
        rules: the first of which all conditions hold decides.
        otherwise: decides if none does; it has no conditions.
        groups: the words looked for.
        scope: ``user`` looks in messages of role user only.
        score: None if the rule set has no score.
        tiers: level to tier, where the rule set itself names tiers.
        unsure: the level to go by instead when the confidence is under the policy's threshold; None: the
            level stands.

    Raises:
        ConfigError: listing everything in it that cannot be right.
    """

    name: str
    levels: tuple[str, ...]
    rules: tuple[Rule, ...]
    otherwise: Rule
    groups: tuple[Group, ...] = ()
    scope: Scope = "all"
    score: Score | None = None
    tiers: Mapping[str, str] = field(factory=dict)
    unsure: str | None = None

    def __attrs_post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ConfigError([f"classifiers.{quoted(self.name)}.{problem}" for problem in problems])

    @classmethod
    def from_mapping(cls, name: str, table: Mapping[str, Any]) -> RuleSet:
        """Reads a rule set in the form of ``data/classifiers.toml``.

        Raises:
            ConfigError: listing every problem with its path.
        """
        return _Reader(name).rule_set(table)


def _problems(rule_set: RuleSet) -> list[str]:
    """What in a well-formed rule set cannot be right, each with its place."""
    found: list[str] = []
    levels = rule_set.levels
    if not levels or len(set(levels)) != len(levels):
        found.append("levels: there must be at least one, and none twice")
    if rule_set.scope not in ("user", "all"):
        found.append(f"scope: {rule_set.scope!r} is unknown; 'user' or 'all'")
    if rule_set.unsure is not None and rule_set.unsure not in levels:
        found.append(f"unsure: unknown level {rule_set.unsure!r}; known: {', '.join(levels)}")
    found += [
        f"tiers.{level}: unknown level; known: {', '.join(levels)}"
        for level in rule_set.tiers
        if level not in levels
    ]
    score = rule_set.score
    if score is not None and not (
        all(map(math.isfinite, (score.base, score.low, score.high))) and score.low <= score.high
    ):
        found.append("score: base, low and high must be finite, and low not above high")
    total = sum(len(group.patterns) for group in rule_set.groups)
    if total > _MOST_PATTERNS:
        found.append(f"groups: {total} patterns are too many, must be at most {_MOST_PATTERNS}")
    for group in rule_set.groups:
        if total <= _MOST_PATTERNS:
            found += _group_problems(group)
        if score is None and group.weight:
            found.append(f"groups.{group.name}.weight: there is no score for it to count in")
    features = {*_core.SCAN_FEATURES, *(f"group.{group.name}" for group in rule_set.groups)}
    if score is None:
        features.discard("score")
    for place, rule in [
        *((f"rules[{index}]", rule) for index, rule in enumerate(rule_set.rules)),
        ("otherwise", rule_set.otherwise),
    ]:
        if rule.level not in levels:
            found.append(f"{place}.level: unknown level {rule.level!r}; known: {', '.join(levels)}")
        if not 0 <= rule.confidence <= 1:
            found.append(f"{place}.confidence: must be from 0 to 1")
        for index, condition in enumerate(rule.when):
            where = f"{place}.when[{index}]"
            if condition.feature not in features:
                found.append(
                    f"{where}: unknown feature {condition.feature!r}; known: {', '.join(sorted(features))}"
                )
            if condition.operator not in OPERATORS:
                found.append(
                    f"{where}: unknown operator {condition.operator!r}; one of {' '.join(OPERATORS)}"
                )
            if not math.isfinite(condition.value):
                found.append(f"{where}: the number must be finite")
    if rule_set.otherwise.when:
        found.append("otherwise.when: it decides when nothing else does, so it has no conditions")
    if not found:
        # What only the compiler can know: bad or too many patterns, names that clash.
        try:
            compiled(rule_set)
        except ValueError as error:
            found.append(f"groups: {error}")
    return found


def _group_problems(group: Group) -> Iterator[str]:
    """What is wrong with each pattern by itself."""
    if group.mode not in _core.SCAN_MODES:
        yield f"groups.{group.name}.mode: must be one of {', '.join(_core.SCAN_MODES)}"
        return
    for index, pattern in enumerate(group.patterns):
        try:
            _core.check_pattern(pattern, group.mode)
        except ValueError as error:
            yield f"groups.{group.name}.patterns[{index}]: {show(pattern)} cannot be used: {error}"


def compiled(rule_set: RuleSet, portable: bool = False) -> Rules:
    """The core's form of a rule set; ``portable`` keeps to plain C where the processor could do more."""
    score = rule_set.score or Score(0.0, 0.0, 0.0)
    return Rules(
        groups=[(group.name, group.patterns, group.mode, group.weight) for group in rule_set.groups],
        scope=rule_set.scope,
        base=score.base,
        low=score.low,
        high=score.high,
        levels=rule_set.levels,
        rules=[
            (rule.level, rule.confidence, [(c.feature, c.operator, c.value) for c in rule.when])
            for rule in rule_set.rules
        ],
        default=(rule_set.otherwise.level, rule_set.otherwise.confidence),
        portable=portable,
    )


class _Reader:
    """Turns a table into a rule set and collects what is wrong with it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[str] = []

    def rule_set(self, table: Mapping[str, Any]) -> RuleSet:
        table = self._table(
            "", table, ("scope", "levels", "rules", "otherwise", "score", "tiers", "unsure", "groups")
        )
        levels = self._strings("levels", table.get("levels"))
        groups = tuple(
            self._group(key, value) for key, value in self._table("groups", table.get("groups", {})).items()
        )
        rules_value = table.get("rules", [])
        if not isinstance(rules_value, list):
            self._problem("rules", "must be a list of tables")
            rules_value = []
        rules = tuple(self._rule(f"rules[{index}]", value) for index, value in enumerate(rules_value))
        otherwise = self._rule("otherwise", table.get("otherwise"))
        score = None
        if "score" in table:
            bounds = self._table("score", table["score"], ("base", "low", "high"))
            score = Score(**{key: self._number(f"score.{key}", value) for key, value in bounds.items()})
        tiers = {
            level: self._string(f"tiers.{level}", tier)
            for level, tier in self._table("tiers", table.get("tiers", {})).items()
        }
        unsure = self._string("unsure", table["unsure"]) if "unsure" in table else None
        scope = self._choice("scope", table.get("scope", "all"), ("user", "all"))
        if self._found:
            raise ConfigError(self._found)
        return RuleSet(
            name=self._name,
            levels=levels,
            rules=rules,
            otherwise=otherwise,
            groups=groups,
            scope=scope,  # type: ignore[arg-type]  # one of the two choices
            score=score,
            tiers=tiers,
            unsure=unsure,
        )

    def _group(self, name: str, value: Any) -> Group:
        where = f"groups.{name}"
        if not _NAME.fullmatch(name):
            self._problem(where, "a group's name consists of letters, digits, '_' and '-'")
        table = self._table(where, value, ("mode", "patterns", "weight"))
        mode = self._choice(f"{where}.mode", table.get("mode", "substring"), _core.SCAN_MODES)
        patterns = self._strings(f"{where}.patterns", table.get("patterns"))
        weight = self._number(f"{where}.weight", table.get("weight", 0.0))
        return Group(name, patterns, mode, weight)  # type: ignore[arg-type]  # one of the two choices

    def _rule(self, where: str, value: Any) -> Rule:
        table = self._table(where, value, ("level", "confidence", "when"))
        level = self._string(f"{where}.level", table.get("level"))
        confidence = self._number(f"{where}.confidence", table.get("confidence", 1.0))
        when = self._strings(f"{where}.when", table["when"]) if "when" in table else ()
        conditions = [self._condition(f"{where}.when[{index}]", text) for index, text in enumerate(when)]
        return Rule(level, tuple(conditions), confidence)

    def _condition(self, where: str, text: str) -> Condition:
        match = _CONDITION.fullmatch(text)
        if match is None:
            self._problem(where, f"{text!r} is no condition; write it like 'average < 50'")
            return Condition("chars", "<", 0.0)
        feature, operator, value = match.groups()
        return Condition(feature, operator, float(value))  # type: ignore[arg-type]  # the pattern's alternatives

    def _table(self, where: str, value: Any, keys: Sequence[str] = ()) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._problem(where, f"must be a table, not {_kind(value)}")
            return {}
        for key in value:
            if keys and key not in keys:
                self._problem(
                    f"{where}.{key}" if where else str(key), f"unknown key; known: {', '.join(keys)}"
                )
        return {key: item for key, item in value.items() if not keys or key in keys}

    def _strings(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            self._problem(where, "must be a list of at least one string")
            return ()
        return tuple(self._string(f"{where}[{index}]", item) for index, item in enumerate(value))

    def _string(self, where: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            self._problem(where, f"must be a string, not {_kind(value)}")
            return ""
        return value

    def _choice(self, where: str, value: Any, choices: Sequence[str]) -> str:
        if value not in choices:
            self._problem(where, f"must be one of {', '.join(choices)}")
        return str(value)

    def _number(self, where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
            self._problem(where, f"must be a finite number, not {_kind(value)}")
            return 0.0
        return float(value)

    def _problem(self, where: str, text: str) -> None:
        path = f"classifiers.{quoted(self._name)}" + (f".{where}" if where else "")
        self._found.append(f"{path}: {text}")


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "an empty string" if value == "" else type(value).__name__


@lru_cache(maxsize=1)
def load_builtin() -> Mapping[str, RuleSet]:
    """The rule sets that come with the package, by name; read at the first use.

    Thread safety: any number of threads may ask; at worst the file is read twice.
    """
    tables = read_toml(Path(__file__).with_name("data") / "classifiers.toml")
    return MappingProxyType({name: RuleSet.from_mapping(name, table) for name, table in tables.items()})
