"""Rules that answers are held to, and what is said of those that fail.

Owns the three kinds of rule and the message that asks for a better answer. Schemas are `schema`'s.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import orjson

from fastroute import errors
from fastroute.types import Choice, Completion

from .schema import PLACE, one_line, schema_check, schema_text

Rule = Mapping[str, Any] | str | Callable[[Completion], object]


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
        key: what tells a callable from all others, such as ``"invoice-3"``: calls that differ in nothing else
            than callables of the same key share cached answers. Default: its own attribute ``key``.

    Attributes:
        key: of a schema or pattern, its text; None for a callable without one, whose answers are not cached.

    Raises:
        BadRequestError: the rule cannot be one; the message names the place.
        ConfigError: it is a schema, and the jsonschema package is not there.
    """

    __slots__ = ("_check", "key", "kind")

    kind: Literal["schema", "pattern", "callable"]
    key: str | None

    def __init__(self, rule: Rule, *, key: str | None = None) -> None:
        self._check: Callable[[Completion], str | None]
        if isinstance(rule, Mapping):
            self.kind = "schema"
            self._check = _each_choice(schema_check(rule))
            self.key = f"schema {schema_text(rule).decode()}"
        elif isinstance(rule, str):
            self.kind = "pattern"
            self._check = _each_choice(_pattern(rule))
            self.key = f"pattern {rule}"
        elif callable(rule) and not isinstance(rule, type):
            self.kind = "callable"
            self._check = _callable(rule)
            self.key = getattr(rule, "key", None) if key is None else key
            if self.key is not None and (not isinstance(self.key, str) or not self.key):
                raise errors.BadRequestError(f"{PLACE}: a key is a string that is not empty")
        else:
            raise errors.BadRequestError(
                f"{PLACE}: a JSON Schema (a mapping), a regular expression (a string) or a callable is "
                f"wanted, not {'a class' if isinstance(rule, type) else type(rule).__name__}"
            )

        if key is not None and self.kind != "callable":
            raise errors.BadRequestError(f"{PLACE}: a {self.kind} is its own key, give none")

    @classmethod
    def of(cls, rule: Rule | Validator) -> Validator:
        """The validator of a rule; the last 64 schemas are kept, since making one costs milliseconds.

        Raises: as the class does.
        """
        if isinstance(rule, Validator):
            return rule
        if not isinstance(rule, Mapping):
            return cls(rule)
        return _of_schema(schema_text(rule))

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


@lru_cache(maxsize=64)
def _of_schema(text: bytes) -> Validator:
    return Validator(orjson.loads(text))


# -------------------------------------------------------------------------------------------------- callables


def _callable(rule: Callable[[Completion], object]) -> Callable[[Completion], str | None]:
    if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(getattr(rule, "__call__", None)):  # noqa: B004
        raise errors.BadRequestError(f"{PLACE}: a coroutine function is never awaited; use a plain function")

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
            return one_line(said) or "the validator gave no reason"
        return f"the validator returned a value of type {type(said).__name__}, not None, a bool or a reason"

    return judge


# --------------------------------------------------------------------------------------------------- patterns


def _pattern(rule: str) -> _TextCheck:
    if not rule:
        raise errors.BadRequestError(f"{PLACE}: an empty pattern is found in any answer, write a pattern")
    try:
        compiled = re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        at = getattr(error, "pos", None)
        where = "" if at is None else f" at character {at}"
        said = getattr(error, "msg", None) or str(error)
        raise errors.BadRequestError(f"{PLACE}: not a regular expression{where}: {said}") from None
    reason = f"it does not hold what the pattern {one_line(rule)} asks for"

    def check(text: str) -> str | None:
        return None if compiled.search(text) else reason

    return check
