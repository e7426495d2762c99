"""Rule sets: how to tell the level of a request, as data.

The form of a rule set, its checks, and the four that come with the package (``data/classifiers.toml``).
`routing/classifier.py` classifies requests with one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, get_args

import attrs
from attrs import field, frozen
from attrs.validators import optional

from fastroute import _core
from fastroute.errors import ConfigError

from .messages import quoted, show, unknown
from .reader import read_shipped, read_table
from .validators import mapping_of, number, one_of, sequence_of, text

Mode = Literal["substring", "word", "pattern"]
Scope = Literal["user", "all"]
Operator = Literal["<", "<=", ">", ">=", "=="]

OPERATORS: tuple[Operator, ...] = get_args(Operator)
# The levels of each built-in classifier; [policy.classes] may name these only.
CLASSIFIERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "five-level": ("trivial", "simple", "moderate", "complex", "expert"),
        "task-tier": ("bulk", "structured", "standard", "complex"),
        "ten-point": ("ultra-budget", "budget", "standard", "premium"),
        "three-level": ("low", "medium", "high"),
    }
)
LEARNED = "learned"
LEARNED_LEVELS = ("weak", "strong")
UNFAMILIAR = "unfamiliar"  # the level of what the score says nothing about, if the default tier serves it

_CONDITION = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*", re.ASCII)
_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*", re.ASCII)
_points = number(least=-(2**53), most=2**53)
# It bounds the time for checking them; the core allows 64 different ones.
_MOST_PATTERNS = 256


@frozen
class Group:
    """Words or phrases that are counted together.

    Attributes:
        patterns: ASCII; case is ignored.
        mode: ``substring`` finds a pattern anywhere; ``word`` between word boundaries, where a dot is any
            character but a line feed; ``pattern`` takes regular expressions of the subset in
            docs/classifiers.md.
        weight: added to the score for each pattern that occurs.
    """

    patterns: tuple[str, ...] = field(validator=sequence_of(text(control=True), least=1, unique=False))
    mode: Mode = field(default="substring", validator=one_of("mode", _core.SCAN_MODES))
    weight: float = field(default=0.0, validator=_points)


@frozen
class Condition:
    """One comparison, such as ``average < 50``."""

    feature: str
    operator: Operator = field(validator=one_of("operator", OPERATORS))
    value: float = field(validator=number())

    @classmethod
    def from_text(cls, written: object) -> Condition:
        """Reads ``average < 50``.

        Raises:
            ValueError: it is not a comparison.
        """
        match = _CONDITION.fullmatch(written) if isinstance(written, str) else None
        if match is None:
            raise ValueError(f"must be a comparison like 'average < 50', not {show(written)}")
        feature, operator, value = match.groups()
        return cls(feature, operator, float(value))  # type: ignore[arg-type]  # the pattern's alternatives

    def __str__(self) -> str:
        return f"{self.feature} {self.operator} {self.value:.15g}"


@frozen
class Rule:
    """A level and the conditions that must all hold for it.

    Attributes:
        confidence: 0..1, of the level when this rule decides.
    """

    level: str = field(validator=text(control=True))
    when: tuple[Condition, ...] = ()
    confidence: float = field(default=1.0, validator=number(least=0, most=1))


@frozen
class Score:
    """The score: ``base`` plus the weights of the patterns that occur, limited to ``low`` .. ``high``."""

    base: float = field(default=0.0, validator=_points)
    low: float = field(default=0.0, validator=_points)
    high: float = field(default=10.0, validator=_points)


@frozen(kw_only=True)
class RuleSetTable:
    """A ``[classifiers.NAME]`` table.

    Attributes:
        levels: cheapest first.
        rules: the first rule whose conditions all hold decides.
        otherwise: decides if no rule does; it has no conditions.
        groups: the words looked for, by name; the feature ``group.NAME`` counts how many of them occur.
        scope: ``user`` counts in messages of role user only.
        score: None if the rule set has no score.
        tiers: level to tier, where the rule set itself names tiers.
        unsure: the level to take instead when the confidence is under the policy's threshold; None: the
            level stands.
    """

    levels: tuple[str, ...] = field(validator=sequence_of(text(control=True), least=1))
    rules: tuple[Rule, ...] = ()
    otherwise: Rule
    groups: Mapping[str, Group] = field(factory=dict)
    scope: Scope = field(default="all", validator=one_of("scope", get_args(Scope)))
    score: Score | None = None
    tiers: Mapping[str, str] = field(factory=dict, validator=mapping_of(text(control=True)))
    unsure: str | None = field(default=None, validator=optional(text(control=True)))


@frozen(kw_only=True)
class RuleSet(RuleSetTable):
    """How to tell a request's level, as data; checked as a whole when it is made.

    Attributes:
        name: the classifier's name.

    Raises:
        ConfigError: with every problem of its parts together.
    """

    name: str

    def __attrs_post_init__(self) -> None:
        problems = list(_problems(self))
        if not problems:
            # Only the compiler finds these: too many patterns or states, patterns that clash.
            try:
                compiled(self)
            except ValueError as error:
                problems.append(f"groups: {error}")
        if problems:
            raise ConfigError([f"classifiers.{quoted(self.name)}.{problem}" for problem in problems])

    @classmethod
    def from_mapping(cls, name: str, table: Mapping[str, Any]) -> RuleSet:
        """Reads a rule set in the form of ``data/classifiers.toml``.

        Raises:
            ConfigError: with every problem and its path.
        """
        problems: list[str] = []
        found = read_table(RuleSetTable, table, f"classifiers.{quoted(name)}", problems)
        if found is None:
            raise ConfigError(problems)
        return cls.from_table(name, found)

    @classmethod
    def from_table(cls, name: str, table: RuleSetTable) -> RuleSet:
        """The rule set of a table that was read.

        Raises:
            ConfigError: as the class does.
        """
        return cls(name=name, **attrs.asdict(table, recurse=False))


def _problems(rule_set: RuleSet) -> Iterator[str]:
    """Parts of a rule set that do not fit each other, each with its path."""
    levels, score = rule_set.levels, rule_set.score
    if rule_set.unsure is not None and rule_set.unsure not in levels:
        yield f"unsure: {unknown('level', rule_set.unsure, levels)}"
    for level in rule_set.tiers:
        if level not in levels:
            yield f"tiers.{quoted(level)}: {unknown('level', level, levels)}"
    if score is not None and score.low > score.high:
        yield f"score.low: must be at most high ({score.high:g}), not {score.low:g}"
    total = sum(len(group.patterns) for group in rule_set.groups.values())
    if total > _MOST_PATTERNS:
        yield f"groups: must have at most {_MOST_PATTERNS} patterns together, not {total}"
    for name, group in rule_set.groups.items():
        path = f"groups.{quoted(name)}"
        if not _GROUP_NAME.fullmatch(name):
            yield f"{path}: invalid name; use letters, digits, _ and -"
        for place, pattern in enumerate(group.patterns if total <= _MOST_PATTERNS else ()):
            try:
                _core.check_pattern(pattern, group.mode)
            except ValueError as error:
                yield f"{path}.patterns[{place}]: {show(pattern)} cannot be used: {error}"
        if score is None and group.weight:
            yield f"{path}.weight: has no effect without a score; add score, or leave weight out"
    features = {*_core.SCAN_FEATURES, *(f"group.{name}" for name in rule_set.groups)}
    if score is None:
        features.discard("score")
    rules = {f"rules[{place}]": rule for place, rule in enumerate(rule_set.rules)}
    for path, rule in {**rules, "otherwise": rule_set.otherwise}.items():
        if rule.level not in levels:
            yield f"{path}.level: {unknown('level', rule.level, levels)}"
        for place, condition in enumerate(rule.when):
            if condition.feature not in features:
                yield f"{path}.when[{place}]: {unknown('feature', condition.feature, sorted(features))}"
    if rule_set.otherwise.when:
        yield "otherwise.when: has no effect, because otherwise decides when no rule does; leave it out"


def compiled(rule_set: RuleSet, portable: bool = False) -> _core.Rules:
    """A rule set compiled by the core; ``portable`` uses plain C even where the processor has vectors."""
    score = rule_set.score or Score(0.0, 0.0, 0.0)
    return _core.Rules(
        groups=[(name, group.patterns, group.mode, group.weight) for name, group in rule_set.groups.items()],
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


@lru_cache(maxsize=1)
def load_builtin() -> Mapping[str, RuleSet]:
    """The rule sets of the package, by name; they are read at the first call.

    Thread safety: any thread; at worst the file is read twice.
    """
    tables = read_shipped("classifiers.toml")
    return MappingProxyType({name: RuleSet.from_mapping(name, table) for name, table in tables.items()})
