"""Rules that validate answers, and the message that asks for a better answer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from fastroute import errors, json_codec
from fastroute.types import Choice, Completion

from .schema import PLACE, one_line, schema_check, schema_text

Rule = Mapping[str, Any] | str | Callable[[Completion], object]


class Validator:
    """A rule that validates answers.

    A schema or pattern checks the text of every choice. A choice with tool calls and no text passes. A
    callable gets the whole completion.

    - A mapping is a JSON Schema, draft 2020-12 unless its ``$schema`` names another. The text must be one
    JSON
      document, bare or in one Markdown code fence; NaN, the infinities and repeated keys are not JSON.
      ``format`` is checked as far as jsonschema can without other packages. A ``$ref`` refers to a place in
      the schema or to a published draft; nothing is fetched.
    - A string is a regular expression that must be found in the text (`re.search`). One with nested repeats
    can
      take very long on some texts.
    - A callable returns None or True if the answer is good, and False or a reason if it is not. If it
    raises, the
      answer is bad, with the name of the exception's class as the reason.

    Thread safety: immutable; a callable is called in the thread of the call.

    Args:
        rule: one of the three.
        key: identifies a callable in the cache, such as ``"invoice-3"``: equal calls whose callables have
            the same
            key share cached answers. Default: the callable's attribute ``key``.

    Attributes:
        key: the text of a schema or pattern; None for a callable without one, whose answers are not cached.

    Raises:
        BadRequestError: the rule is invalid; the message has the place.
        ConfigError: it is a schema, and the jsonschema package is not installed.
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
                raise errors.BadRequestError(f"{PLACE}: a callable's key must be a non-empty string")
        else:
            raise errors.BadRequestError(
                f"{PLACE}: must be a JSON Schema (a mapping), a regular expression (a string) or a callable, "
                f"not {'a class' if isinstance(rule, type) else type(rule).__name__}"
            )

        if key is not None and self.kind != "callable":
            raise errors.BadRequestError(f"{PLACE}: a {self.kind} takes no key; leave key out")

    @classmethod
    def of(cls, rule: Rule | Validator) -> Validator:
        """The validator of a rule; the last 64 of schemas are stored, because making one takes milliseconds.

        Raises: as the class does.
        """
        if isinstance(rule, Validator):
            return rule
        if not isinstance(rule, Mapping):
            return cls(rule)
        return _of_schema(schema_text(rule))

    def judge(self, completion: Completion) -> str | None:
        """Why the answer fails, or None if it is good; never raises, whatever the answer contains."""
        return self._check(completion)

    def __repr__(self) -> str:
        return f"Validator({self.kind})"


def feedback(reason: str) -> dict[str, str]:
    """The message that asks for a better answer, with the reason."""
    return {
        "role": "user",
        "content": f"Your last answer was not accepted: {reason}. "
        "Give the whole corrected answer again, and nothing else.",
    }


def with_feedback(
    messages: Sequence[Mapping[str, Any]], completion: Completion, reason: str
) -> tuple[Mapping[str, Any], ...]:
    """The messages of a retry: the conversation, the answer that failed, and `feedback`."""
    return (*messages, {"role": "assistant", "content": completion.text}, feedback(reason))


_TextCheck = Callable[[str], "str | None"]


def _each_choice(check: _TextCheck) -> Callable[[Completion], str | None]:
    def judge(completion: Completion) -> str | None:
        for choice in completion.choices:
            reason = _check_choice(choice, check)
            if reason is not None:
                return reason if len(completion.choices) == 1 else f"choice {choice.index}: {reason}"
        return None if completion.choices else "the answer has no choices"

    return judge


def _check_choice(choice: Choice, check: _TextCheck) -> str | None:
    message = choice.message
    if not message.content and message.tool_calls:
        return None
    if not message.content and message.refusal:
        return "the model refused to answer"
    reason = check(message.content or "")
    if reason is not None and choice.finish_reason == "length":
        return f"{reason} (it was cut off at the token limit)"
    return reason


@lru_cache(maxsize=64)
def _of_schema(text: bytes) -> Validator:
    return Validator(json_codec.loads(text))


# -------------------------------------------------------------------------------------------------- callables


def _callable(rule: Callable[[Completion], object]) -> Callable[[Completion], str | None]:
    if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(getattr(rule, "__call__", None)):  # noqa: B004
        raise errors.BadRequestError(f"{PLACE}: a coroutine function is not awaited; use a plain function")

    def judge(completion: Completion) -> str | None:
        try:
            said = rule(completion)
        except Exception as error:
            # Its message may quote the answer, so only the name of its class is used.
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
        raise errors.BadRequestError(f"{PLACE}: an empty pattern is found in every answer; write a pattern")
    try:
        compiled = re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        at = getattr(error, "pos", None)
        where = "" if at is None else f" at character {at}"
        said = getattr(error, "msg", None) or str(error)
        raise errors.BadRequestError(
            f"{PLACE}: invalid regular expression{where}: {said}; write one that re.compile accepts"
        ) from None
    reason = f"it does not match the pattern {one_line(rule)}"

    def check(text: str) -> str | None:
        return None if compiled.search(text) else reason

    return check
