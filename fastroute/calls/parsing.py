"""Answers as instances of a pydantic model: its JSON Schema for the request, and `parsed` for the answer.

The schema and the results are those of the OpenAI SDK. pydantic is the caller's; it is imported only for its
dataclasses, so that a program without pydantic needs none.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from attrs import evolve, field, frozen

from fastroute import errors
from fastroute.providers import jsontext
from fastroute.types import Choice, Completion, FunctionCall, Message, ToolCall

T = TypeVar("T")


@frozen
class ParsedFunctionCall(FunctionCall):
    """A function call with its arguments read.

    Attributes:
        parsed_arguments: an instance of the tool's pydantic model, JSON of a strict tool, or None.
    """

    parsed_arguments: Any = None

    def _shape(self, full: bool) -> dict[str, Any]:
        return {**super()._shape(full), "parsed_arguments": _dumped(self.parsed_arguments)}


@frozen
class ParsedMessage(Message, Generic[T]):
    """A message with its content read.

    Attributes:
        parsed: an instance of the model; None for a refusal, and for an answer without content.
    """

    parsed: T | None = field(default=None, kw_only=True)

    def _shape(self, full: bool) -> dict[str, Any]:
        return {**super()._shape(full), "parsed": _dumped(self.parsed)}


@frozen(kw_only=True)
class ParsedChoice(Choice, Generic[T]):
    message: ParsedMessage[T]


@frozen(kw_only=True)
class ParsedCompletion(Completion, Generic[T]):
    """An answer whose messages have ``.parsed``."""

    choices: tuple[ParsedChoice[T], ...]


def _dumped(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ requests


def is_model(value: Any) -> bool:
    """Whether it is a pydantic model, or a dataclass of pydantic."""
    return isinstance(value, type) and (
        hasattr(value, "model_json_schema") or hasattr(value, "__pydantic_config__")
    )


def response_format(model: Any) -> dict[str, Any]:
    """The parameter ``response_format`` that asks for the JSON of a model."""
    schema = (
        model.model_json_schema()
        if hasattr(model, "model_json_schema")
        else importlib.import_module("pydantic").TypeAdapter(model).json_schema()
    )
    return {
        "type": "json_schema",
        "json_schema": {"name": model.__name__, "strict": True, "schema": _strict(schema, schema)},
    }


def _strict(node: Any, root: Mapping[str, Any]) -> Any:
    """A schema in the subset that OpenAI's strict mode takes.

    Objects allow no other properties and require all of them. A default of null is left out, and a reference
    with words beside it is replaced by what it refers to, since neither is allowed.
    """
    if not isinstance(node, dict):
        return node
    made = dict(node)
    for name in ("$defs", "definitions", "properties"):
        if isinstance(made.get(name), dict):
            made[name] = {key: _strict(value, root) for key, value in made[name].items()}
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("properties"), dict):
        made["required"] = list(made["properties"])
    if isinstance(made.get("items"), dict):
        made["items"] = _strict(made["items"], root)
    for name in ("anyOf", "allOf"):
        if isinstance(made.get(name), list):
            made[name] = [_strict(each, root) for each in made[name]]
    if isinstance(made.get("allOf"), list) and len(made["allOf"]) == 1:
        (only,) = made.pop("allOf")
        made.update(only)
    if "default" in made and made["default"] is None:
        del made["default"]
    reference = made.get("$ref")
    if isinstance(reference, str) and len(made) > 1:
        del made["$ref"]
        return _strict({**_resolved(reference, root), **made}, root)
    return made


def _resolved(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


# ------------------------------------------------------------------------------------------------- answers


def parsed(completion: Completion, model: type[T] | None, tools: Sequence[Any] = ()) -> ParsedCompletion[T]:
    """The answer with ``parsed`` messages.

    Args:
        completion: the answer.
        model: what the content is read as; None to read only the arguments of tools.
        tools: the request's tools. The arguments of strict ones are read, with their pydantic model if they
            were made by ``openai.pydantic_function_tool``.

    Raises:
        ValidationError: the answer does not fit its model, or was cut at ``max_tokens``; the error has it.
        ContentFilterError: the content filter ended the answer.
    """
    choices: list[ParsedChoice[T]] = []
    for choice in completion.choices:
        check_ended(choice.finish_reason, completion)
        message = choice.message
        content = None
        if model is not None and message.content and not message.refusal:
            content = read_as(model, message.content, completion, "response_format")
        calls = message.tool_calls
        choices.append(
            ParsedChoice(
                index=choice.index,
                message=ParsedMessage(
                    message.role,
                    message.content,
                    None if calls is None else tuple(_parsed_call(call, tools, completion) for call in calls),
                    message.refusal,
                    message._raw,
                    parsed=content,
                ),
                finish_reason=choice.finish_reason,
                raw=choice._raw,
            )
        )
    return ParsedCompletion(
        id=completion.id,
        created=completion.created,
        model=completion.model,
        choices=tuple(choices),
        usage=completion.usage,
        route=completion.route,
        raw=completion._raw,
        object=completion.object,
    )


def check_ended(reason: str | None, completion: Completion) -> None:
    """Raises if an answer is not complete, so that reading it would fail for a reason of no use."""
    if reason == "length":
        raise _failed(completion, "the answer was cut at its limit; use a larger max_tokens")
    if reason == "content_filter":
        error = errors.ContentFilterError(
            "the content filter ended the answer before it was complete", code="content_filter"
        )
        error.attempts = () if completion.route is None else completion.route.attempts
        raise error


def read_as(model: Any, text: str, completion: Completion | None, where: str) -> Any:
    """JSON text as an instance of a pydantic model.

    Raises:
        ValidationError: with the places and reasons, and without the text.
    """
    pydantic = importlib.import_module("pydantic")
    _check(text, completion, f"{where} {model.__name__}")
    try:
        if hasattr(model, "model_validate_json"):
            return model.model_validate_json(text)
        return pydantic.TypeAdapter(model).validate_json(text)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        reason = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'JSON'}: {each['msg']}" for each in found[:5]
        )
        # Not chained: pydantic's text quotes the answer.
        raise _failed(completion, f"{where} {model.__name__}: {reason}") from None


def _parsed_call(call: ToolCall, tools: Sequence[Any], completion: Completion) -> ToolCall:
    if call.type != "function":
        return call
    function = ParsedFunctionCall(
        call.function.name, call.function.arguments, arguments_of(call.function, tools, completion)
    )
    return evolve(call, function=function)


def arguments_of(function: FunctionCall, tools: Sequence[Any], completion: Completion | None) -> Any:
    """The arguments of a call of a tool that is strict or has a pydantic model; None of any other tool."""
    tool = tool_named(tools, function.name)
    if tool is None:
        return None
    model = getattr(tool, "model", None)
    if model is not None:
        return read_as(model, function.arguments, completion, f"tools.{function.name}")
    if not tool.get("strict"):
        return None
    _check(function.arguments, completion, f"tools.{function.name}")
    try:
        return json.loads(function.arguments)
    except ValueError:
        raise _failed(completion, f"tools.{function.name}: the arguments are not JSON") from None


def _check(text: str, completion: Completion | None, where: str) -> None:
    try:
        jsontext.check(text)
    except ValueError as error:
        raise _failed(completion, f"{where}: {error}") from None


def tool_named(tools: Sequence[Any], name: str | None) -> Any:
    """The function of the request's tool of that name, or None."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and function.get("name") == name:
            return function
    return None


def _failed(completion: Completion | None, reason: str) -> errors.ValidationError:
    error = errors.ValidationError(
        f"the answer cannot be parsed: {reason}", completion=completion, reason=reason
    )
    if completion is not None and completion.route is not None:
        error.attempts = completion.route.attempts
    return error
