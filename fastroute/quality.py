"""Judges answers, and notices when a model's answers get worse.

Owns what a validation rule is (a JSON Schema, a pattern, a callable), what is said of an answer that fails
one, and the success and validation rates of each model in each tier. What is done about a failed answer is
`dispatch.py`'s; nothing here sends, retries or waits.

No reason given here quotes the answer: reasons end up in logs, errors and events, and an answer may hold
anything. They name what the rule asks for, in the rule's own words. The one exception is a callable of the
user's, whose words are passed on.

Drift is a change, not a level. Of each rate the last ``window`` results are held against the ten windows
before those. A model that is always right 80 % of the time never drifts; one that falls from 99 to 90 % does,
once, and after ten windows at 90 % that is its baseline.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import orjson
from attrs import frozen

from . import errors
from ._checks import quoted, show
from .events import DriftDetected, Hooks
from .types import Choice, Completion

if TYPE_CHECKING:
    from .config import QualityConfig

_PLACE = "route.validate"
_LONGEST_REASON = 300
_MOST_PROBLEMS = 3
_BASELINE_WINDOWS = 10
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"

Rule = Mapping[str, Any] | str | Callable[[Completion], object]

# ------------------------------------------------------------------------------------------------- judging


class Validator:
    """A rule that answers are held to.

    A schema or pattern judges the text of every choice; a choice that calls tools and says nothing is no
    answer yet and passes. A callable is given the whole completion.

    - A mapping is a JSON Schema, draft 2020-12 unless its ``$schema`` names another. The text must be one
      JSON document and nothing else, but for one Markdown code fence around all of it; NaN, the infinities
      and repeated keys are not JSON. ``format`` is checked as far as jsonschema can do it by itself. A
      ``$ref`` leads inside the schema or to a published draft; nothing is ever fetched.
    - A string is a regular expression, which must be found somewhere in the text (`re.search`). It is the
      program's own: one with nested repeats can take very long on an unlucky text.
    - A callable returns None or True if the answer is good, False or the reason if it is not. What it raises
      makes the answer a bad one, with the exception's kind as reason.

    Thread safety: immutable; a callable is called from whichever thread makes the call.

    Args:
        rule: one of the three.

    Raises:
        BadRequestError: the rule cannot be one; the message names the place.
        ConfigError: it is a schema, and the jsonschema package is not there.
    """

    __slots__ = ("_check", "kind")

    kind: Literal["schema", "pattern", "callable"]

    def __init__(self, rule: Rule) -> None:
        self._check: Callable[[Completion], str | None]
        if isinstance(rule, Mapping):
            self.kind = "schema"
            self._check = _each_choice(_schema(rule))
        elif isinstance(rule, str):
            self.kind = "pattern"
            self._check = _each_choice(_pattern(rule))
        elif callable(rule) and not isinstance(rule, type):
            self.kind = "callable"
            self._check = _callable(rule)
        else:
            raise errors.BadRequestError(
                f"{_PLACE}: a JSON Schema (a mapping), a regular expression (a string) or a callable is "
                f"wanted, not {'a class' if isinstance(rule, type) else type(rule).__name__}"
            )

    @classmethod
    def of(cls, rule: Rule | Validator) -> Validator:
        """The validator of a rule; the last 64 schemas are kept, since making one costs milliseconds.

        Raises: as the class does.
        """
        if isinstance(rule, Validator):
            return rule
        if not isinstance(rule, Mapping):
            return cls(rule)
        return _of_schema(_schema_text(rule))

    def judge(self, completion: Completion) -> str | None:
        """Why the answer fails, or None if it is good. Never raises for what is in the answer."""
        return self._check(completion)

    def __repr__(self) -> str:
        return f"Validator({self.kind})"


def feedback(reason: str) -> dict[str, str]:
    """The message that asks for a better answer, for a retry with the validator's words."""
    return {
        "role": "user",
        "content": f"Your last answer was not accepted: {reason}. "
        "Give the whole answer again with this put right, and nothing else.",
    }


def with_feedback(
    messages: Sequence[Mapping[str, Any]], completion: Completion, reason: str
) -> tuple[Mapping[str, Any], ...]:
    """The conversation, the answer that failed, and `feedback`: what a retry sends."""
    return (*messages, {"role": "assistant", "content": completion.text}, feedback(reason))


_TextCheck = Callable[[str], "str | None"]


def _each_choice(check: _TextCheck) -> Callable[[Completion], str | None]:
    def judge(completion: Completion) -> str | None:
        for choice in completion.choices:
            reason = _judge_choice(choice, check)
            if reason is not None:
                return reason if len(completion.choices) == 1 else f"choice {choice.index}: {reason}"
        return None if completion.choices else "the answer holds no choices"

    return judge


def _judge_choice(choice: Choice, check: _TextCheck) -> str | None:
    message = choice.message
    if not message.content and message.tool_calls:
        return None
    if not message.content and message.refusal:
        return "the model refused to answer"
    reason = check(message.content or "")
    if reason is not None and choice.finish_reason == "length":
        return f"{reason} (it was cut off at the most tokens allowed)"
    return reason


# ------------------------------------------------------------------------------------------------- callables


def _callable(rule: Callable[[Completion], object]) -> Callable[[Completion], str | None]:
    if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(getattr(rule, "__call__", None)):  # noqa: B004
        raise errors.BadRequestError(f"{_PLACE}: a coroutine function is never awaited; use a plain function")

    def judge(completion: Completion) -> str | None:
        try:
            said = rule(completion)
        except Exception as error:
            # Its message may quote the answer, so only its kind is passed on.
            return f"the validator raised {type(error).__name__}"
        if said is None or said is True:
            return None
        if said is False:
            return "the validator returned False"
        if isinstance(said, str):
            return _line(said) or "the validator gave no reason"
        return f"the validator returned a value of type {type(said).__name__}, not None, a bool or a reason"

    return judge


def _line(text: str) -> str:
    """On one line, and not too long for a log."""
    words = " ".join(text[: 4 * _LONGEST_REASON].split())
    return words if len(words) <= _LONGEST_REASON else words[: _LONGEST_REASON - 1] + "…"


# -------------------------------------------------------------------------------------------------- patterns


def _pattern(rule: str) -> _TextCheck:
    if not rule:
        raise errors.BadRequestError(f"{_PLACE}: an empty pattern is found in any answer, write a pattern")
    try:
        compiled = re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        at = getattr(error, "pos", None)
        where = "" if at is None else f" at character {at}"
        said = getattr(error, "msg", None) or str(error)
        raise errors.BadRequestError(f"{_PLACE}: not a regular expression{where}: {said}") from None
    reason = f"it does not hold what the pattern {_line(rule)} asks for"

    def check(text: str) -> str | None:
        return None if compiled.search(text) else reason

    return check


# --------------------------------------------------------------------------------------------------- schemas


class _NotJSON(ValueError):
    """Why a text is not JSON, without any of it."""


def read_json(text: str) -> Any:
    """The value of an answer that is one JSON document, bare or in one Markdown code fence.

    Raises:
        ValueError: it is not; the message says where, and holds none of it.
    """
    try:
        return json.loads(
            _unfenced(text),
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except _NotJSON:
        raise
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _NotJSON("it is empty, not JSON" if not text.strip() else f"it is not JSON: {found}") from None
    except RecursionError:
        raise _NotJSON("its JSON is nested too deeply") from None
    except ValueError:
        raise _NotJSON("its JSON holds a number of too many digits") from None


def _unfenced(text: str) -> str:
    """Models put JSON in a code fence however they are asked; one around the whole answer is taken off."""
    stripped = text.strip()
    if not (stripped.startswith("```") and stripped.endswith("```") and len(stripped) > 6):
        return stripped
    label, line_break, inner = stripped[3:-3].partition("\n")
    return inner.strip() if line_break and label.strip().lower() in ("", "json") else stripped


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotJSON("its JSON holds an object with the same key twice")
    return found


def _no_constant(word: str) -> Any:
    raise _NotJSON(f"it is not JSON: {word} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NotJSON("its JSON holds a number that is too large")
    return number


def _schema_text(rule: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(rule if isinstance(rule, dict) else dict(rule))
    except (TypeError, RecursionError) as error:
        raise errors.BadRequestError(f"{_PLACE}: a JSON Schema must be plain JSON: {error}") from None


@lru_cache(maxsize=64)
def _of_schema(text: bytes) -> Validator:
    return Validator(orjson.loads(text))


def _schema(rule: Mapping[str, Any]) -> _TextCheck:
    # A copy of its own: what the caller does to the mapping later changes no rule in force.
    schema = orjson.loads(_schema_text(rule))
    judge = _schema_validator(schema)
    own_names = frozenset(_property_names(schema))

    def check(text: str) -> str | None:
        try:
            value = read_json(text)
        except ValueError as error:
            return str(error)
        try:
            problems = [_problem(error, own_names) for error in islice(judge(value), _MOST_PROBLEMS)]
        except RecursionError:
            return "its JSON is nested too deeply"
        return "; ".join(dict.fromkeys(problems)) or None

    return check


def _schema_validator(schema: dict[str, Any]) -> Callable[[Any], Iterator[Any]]:
    """jsonschema's validator for a schema that is right in itself."""
    try:
        import jsonschema.validators
        import referencing.jsonschema
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    except ImportError:
        raise errors.ConfigError(
            f"{_PLACE}: a JSON Schema needs the jsonschema package: pip install 'fastroute[validate]'"
        ) from None
    dialect = schema.get("$schema", _DRAFT)
    known = sorted(uri.rstrip("#") for uri in REGISTRY if uri.rstrip("#").endswith("/schema"))
    if not isinstance(dialect, str) or dialect.rstrip("#") not in known:
        raise errors.BadRequestError(
            f'{_PLACE}."$schema": {show(dialect)} is no draft known, must be left out or one of '
            f"{', '.join(known)}"
        )
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        wrong = jsonschema.exceptions.best_match(
            kind(kind.META_SCHEMA, format_checker=kind.FORMAT_CHECKER).iter_errors(schema)
        )
    except RecursionError:
        raise errors.BadRequestError(f"{_PLACE}: the schema is nested too deeply") from None
    if wrong is not None:
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{quoted(part)}" for part in wrong.absolute_path
        )
        right = f"must be one of {', '.join(_TYPES)}" if place.endswith(".type") else _expected(wrong)
        raise errors.BadRequestError(f"{_PLACE}{place}: {show(wrong.instance)} {right}", param="validate")
    # A registry of its own: without one, jsonschema would fetch what a $ref names over the network.
    resource = referencing.jsonschema.specification_with(dialect).create_resource(schema)
    own_uri = resource.id() or ""
    resolver = REGISTRY.with_resource(own_uri, resource).resolver(own_uri)
    _resolve_all(resource, resolver)
    found: Callable[[Any], Iterator[Any]] = kind(
        schema, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER
    ).iter_errors
    return found


def _resolve_all(resource: Any, resolver: Any) -> None:
    """Looks up every reference once, so that a wrong one is found before anything is paid for."""
    from referencing.exceptions import Unresolvable

    waiting = [(resource, resolver)]
    while waiting:
        current, own = waiting.pop()
        contents = current.contents
        for word in ("$ref", "$dynamicRef") if isinstance(contents, Mapping) else ():
            if isinstance(contents.get(word), str):
                try:
                    own.lookup(contents[word])
                except Unresolvable:
                    raise errors.BadRequestError(
                        f'{_PLACE}: "{word}" {show(contents[word])} leads nowhere, must lead inside the '
                        "schema or to a published draft; nothing is fetched",
                        param="validate",
                    ) from None
        waiting += [(inner, own.in_subresource(inner)) for inner in current.subresources()]


def _property_names(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            properties = part.get("properties")
            if isinstance(properties, dict):
                yield from properties
            required = part.get("required")
            if isinstance(required, list):
                yield from (name for name in required if isinstance(name, str))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _problem(error: Any, own_names: frozenset[str]) -> str:
    """One violation: where, by names that the schema itself uses, and what would be right."""
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" if part in own_names else ".*"
        for part in error.absolute_path
    )
    return f"${_line(place)} {_expected(error)}" if place else f"the JSON {_expected(error)}"


def _expected(error: Any) -> str:
    """What the violated keyword asks for. jsonschema's own messages quote the value, so they are not used."""
    word, wanted = error.validator, error.validator_value
    if word == "required" and isinstance(error.instance, dict) and isinstance(wanted, list):
        missing = [str(name) for name in wanted if name not in error.instance]
        return _line(f"must have {', '.join(missing)}")
    if word == "type":
        return f"must be of type {' or '.join(wanted) if isinstance(wanted, list) else wanted}"
    if word == "enum":
        return _line(f"must be one of {_json(wanted)}")
    if word in ("additionalProperties", "unevaluatedProperties") and wanted is False:
        return "must have no other properties than the schema names"
    if word in ("anyOf", "oneOf"):
        number = len(wanted) if isinstance(wanted, list) else 0
        return f"must match {'exactly' if word == 'oneOf' else 'at least'} one of {number} alternatives"
    return _line(f"must satisfy {word or 'the schema'}: {_json(wanted)}")


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


# ----------------------------------------------------------------------------------------------------- rates

Measure = Literal["success", "validation"]


@frozen
class Rate:
    """One rate of one model in one tier.

    Attributes:
        model, tier: whose.
        measure: ``success`` (of all attempts) or ``validation`` (of the answers that were judged).
        rate: 0..1 over the last ``samples`` results; None without any.
        baseline: 0..1 over the ``baseline_samples`` results before those; None without any.
        drifting: whether the one is away from the other, and this has been said.
    """

    model: str
    tier: str | None
    measure: Measure
    rate: float | None
    samples: int
    baseline: float | None
    baseline_samples: int
    drifting: bool


class Rates:
    """Success and validation rates by model and tier, with an event when one drifts.

    A rate drifts when its recent window and its baseline hold ``min_samples`` each and are more than
    ``drift`` apart, up or down. That is said once; it may be said again when they have come within half of
    ``drift``.

    Thread safety: all methods. Hooks run after the lock is let go.

    Args:
        config: ``[quality]``: drift, window, min_samples.
        hooks: hear `DriftDetected`.
    """

    def __init__(self, config: QualityConfig, hooks: Hooks) -> None:
        self._window = config.window
        self._least = min(config.min_samples, config.window)
        # Shares are compared as whole numbers, so that "more than 5 points" has no rounding in it.
        self._drift = Decimal(str(config.drift)).as_integer_ratio()
        self._hooks = hooks
        self._series: dict[tuple[str, str | None, Measure], _Series] = {}
        self._lock = threading.Lock()

    def record(self, model: str, tier: str | None, ok: bool, valid: bool | None = None) -> None:
        """Counts one attempt.

        Args:
            model: that was asked.
            tier: it was asked from, if any.
            ok: whether an answer came. An attempt that the caller cancelled says nothing: leave it out.
            valid: whether the answer passed; None if it was not judged.
        """
        found: list[DriftDetected] = []
        with self._lock:
            self._count(model, tier, "success", ok, found)
            if valid is not None:
                self._count(model, tier, "validation", valid, found)
        for event in found:
            self._hooks.emit(event)

    def _count(
        self, model: str, tier: str | None, measure: Measure, good: bool, found: list[DriftDetected]
    ) -> None:
        key = (model, tier, measure)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(self._window)
        series.add(good)
        if series.moved(self._drift, self._least):
            recent, baseline = series.samples, series.baseline_samples
            found.append(
                DriftDetected(
                    model,
                    tier,
                    measure,
                    series.good / recent,
                    series.baseline_good / baseline,
                    recent,
                    baseline,
                )
            )

    def snapshot(self) -> tuple[Rate, ...]:
        """All rates at this moment, in the order in which they first appeared."""
        with self._lock:
            return tuple(series.rate(*key) for key, series in self._series.items())

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there, half-way through a count."""
        self._lock = threading.Lock()
        for series in self._series.values():
            series.recount()


class _Series:
    """The last results of one rate: a ring of a window and the baseline before it, and the sums of both."""

    __slots__ = ("_ring", "_side", "_total", "_window", "baseline_good", "good")

    def __init__(self, window: int) -> None:
        self._window = window
        self._ring = bytearray(window * (1 + _BASELINE_WINDOWS))
        self._total = 0  # results ever; the newest stands at (total - 1) modulo the ring's length
        self._side = 0  # the direction of the drift that has been said: -1, 1, or 0 for none
        self.good = 0
        self.baseline_good = 0

    @property
    def samples(self) -> int:
        total, window = self._total, self._window
        return total if total < window else window

    @property
    def baseline_samples(self) -> int:
        total, size, window = self._total, len(self._ring), self._window
        return 0 if total < window else (total if total < size else size) - window

    def add(self, good: bool) -> None:
        ring, total = self._ring, self._total
        place = total % len(ring)
        if total >= self._window:
            leaving = ring[(total - self._window) % len(ring)]
            self.good -= leaving
            self.baseline_good += leaving
        if total >= len(ring):
            self.baseline_good -= ring[place]
        ring[place] = good
        self.good += good
        self._total = total + 1

    def moved(self, drift: tuple[int, int], least: int) -> bool:
        """Whether a drift, more than this fraction, begins with the newest result."""
        recent, baseline = self.samples, self.baseline_samples
        if recent < least or baseline < least:
            return False
        apart = (self.good * baseline - self.baseline_good * recent) * drift[1]
        limit = drift[0] * recent * baseline
        side = 1 if apart > limit else -1 if apart < -limit else 0
        if side:
            begins = side != self._side
            self._side = side
            return begins
        if 2 * abs(apart) <= limit:
            self._side = 0
        return False

    def recount(self) -> None:
        """The sums, taken anew from the ring."""
        size = len(self._ring)
        kept = min(self._total, size)
        newest = [self._ring[(self._total - 1 - back) % size] for back in range(kept)]
        self.good = sum(newest[: self._window])
        self.baseline_good = sum(newest[self._window :])

    def rate(self, model: str, tier: str | None, measure: Measure) -> Rate:
        recent, baseline = self.samples, self.baseline_samples
        return Rate(
            model,
            tier,
            measure,
            self.good / recent if recent else None,
            recent,
            self.baseline_good / baseline if baseline else None,
            baseline,
            bool(self._side),
        )


__all__ = ["Measure", "Rate", "Rates", "Rule", "Validator", "feedback", "read_json", "with_feedback"]
