"""Checks a chat completion request as strictly as OpenAI: parameters, messages, parts, tools, tool calls.

The parameters and fields are those of OpenAI's API reference for chat completions. Places are written as
OpenAI writes them, ``messages[1].content[0].type``. What depends on the model is not checked, since a local
provider serves any name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .answer_source import ProviderError

MOST_CHOICES = 128
MOST_STOPS = 4
MOST_TOOLS = 128

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KINDS: tuple[tuple[type[Any], str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a decimal"),
    (str, "a string"),
    (list, "an array"),
    (dict, "an object"),
)


def _kind(value: Any) -> str:
    return "null" if value is None else next(name for kind, name in _KINDS if isinstance(value, kind))


def _refuse(place: str, code: str | None, why: str) -> ProviderError:
    return ProviderError(400, code, why, place)


def _of(kind: type[Any], value: Any, place: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = dict(_KINDS)[kind]
        why = f"Invalid type for '{place}': expected {wanted}, but got {_kind(value)} instead."
        raise _refuse(place, "invalid_type", why)
    return value


def _one_of(value: Any, allowed: tuple[str, ...], place: str) -> None:
    if _of(str, value, place) not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed)
        why = f"Invalid value: '{value}'. Supported values are: {names}."
        raise _refuse(place, "invalid_value", why)


def _not_empty(value: Any, place: str) -> list[Any]:
    if not _of(list, value, place):
        why = f"Invalid '{place}': empty array. Expected an array with minimum length 1."
        raise _refuse(place, "empty_array", why)
    items: list[Any] = value
    return items


def _required(value: Any, place: str, name: str) -> Any:
    """A required field of an object."""
    if _of(dict, value, place).get(name) is None:
        where = f"{place}.{name}"
        raise _refuse(where, "missing_required_parameter", f"Missing required parameter: '{where}'.")
    return value[name]


def _known(value: Any, place: str, required: str, optional: str = "") -> None:
    """Check an object's fields; an optional one may also be null."""
    _of(dict, value, place)
    for name in required.split():
        _required(value, place, name)
    allowed = f"{required} {optional}".split()
    for name in value:
        if name not in allowed:
            where = f"{place}.{name}"
            raise _refuse(where, "unknown_parameter", f"Unknown parameter: '{where}'.")


def _named(value: Any, place: str) -> None:
    if not _NAME.fullmatch(_of(str, value, place)):
        why = f"Invalid '{place}': the string does not match the pattern '^[a-zA-Z0-9_-]{{1,64}}$'."
        raise _refuse(place, "invalid_value", why)


# ---------------------------------------------------------------------------------------------- parameters


def _number(least: float, most: float) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _refuse(
                place,
                "invalid_type",
                f"Invalid type for '{place}': expected a decimal, but got {_kind(value)} instead.",
            )
        _in_range(value, place, "decimal", least, most)

    return check


def _whole(least: int, most: int) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _in_range(_of(int, value, place), place, "integer", least, most)

    return check


def _in_range(value: float, place: str, kind: str, least: float, most: float) -> None:
    for wrong, edge, sign, bound in (
        (value < least, "below_min", ">=", least),
        (value > most, "above_max", "<=", most),
    ):
        if wrong:
            why = (
                f"Invalid '{place}': {kind} {edge.replace('_', ' ')} value. Expected a value {sign} {bound}."
            )
            raise _refuse(place, f"{kind}_{edge}_value", why)


def _plain(kind: type[Any]) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _of(kind, value, place)

    return check


def _word(*allowed: str) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _one_of(value, allowed, place)

    return check


def _fields(required: str, optional: str = "") -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _known(value, place, required, optional)

    return check


def _check_stop(value: Any, place: str) -> None:
    if isinstance(value, str):
        return
    if len(_of(list, value, place)) > MOST_STOPS:
        why = f"Invalid '{place}': array too long. Expected an array with maximum length {MOST_STOPS}."
        raise _refuse(place, "array_above_max_length", why)
    for number, text in enumerate(value):
        _of(str, text, f"{place}[{number}]")


def _check_bias(value: Any, place: str) -> None:
    for token, bias in _of(dict, value, place).items():
        _number(-100, 100)(bias, f"{place}.{token}")


def _check_metadata(value: Any, place: str) -> None:
    for name, text in _of(dict, value, place).items():
        _of(str, text, f"{place}.{name}")


def _check_modalities(value: Any, place: str) -> None:
    for number, name in enumerate(_not_empty(value, place)):
        _one_of(name, ("text", "audio"), f"{place}[{number}]")


def _check_prediction(value: Any, place: str) -> None:
    _known(value, place, "type content")
    _one_of(value["type"], ("content",), f"{place}.type")
    _check_content(value["content"], f"{place}.content", ("text",))


def _check_response_format(value: Any, place: str) -> None:
    _known(value, place, "type", "json_schema")
    _one_of(value["type"], ("json_object", "json_schema", "text"), f"{place}.type")
    if value["type"] == "json_schema":
        _known(value, place, "type json_schema")
        schema, where = value["json_schema"], f"{place}.json_schema"
        _known(schema, where, "name", "description schema strict")
        _named(schema["name"], f"{where}.name")
        if schema.get("schema") is not None:
            _of(dict, schema["schema"], f"{where}.schema")


def _check_function(function: Any, place: str) -> None:
    _known(function, place, "name", "description parameters strict")
    _named(function["name"], f"{place}.name")
    for name, kind in (("description", str), ("parameters", dict), ("strict", bool)):
        if function.get(name) is not None:
            _of(kind, function[name], f"{place}.{name}")


def _check_functions(value: Any, place: str) -> None:
    for number, function in enumerate(_not_empty(value, place)):
        _check_function(function, f"{place}[{number}]")


def _check_tools(value: Any, place: str) -> None:
    if len(_not_empty(value, place)) > MOST_TOOLS:
        why = f"Invalid '{place}': array too long. Expected an array with maximum length {MOST_TOOLS}."
        raise _refuse(place, "array_above_max_length", why)
    for number, tool in enumerate(value):
        where = f"{place}[{number}]"
        _known(tool, where, "type", "function custom")
        _one_of(tool["type"], ("function", "custom"), f"{where}.type")
        _known(tool, where, f"type {tool['type']}")
        if tool["type"] == "function":
            _check_function(tool["function"], f"{where}.function")
        else:
            _known(tool["custom"], f"{where}.custom", "name", "description format")
            _named(tool["custom"]["name"], f"{where}.custom.name")


def _check_choice(value: Any, place: str) -> None:
    if isinstance(value, str):
        _one_of(value, ("none", "auto", "required"), place)
        return
    _known(value, place, "type", "function custom allowed_tools")
    kinds = ("function", "custom", "allowed_tools")
    _one_of(value["type"], kinds, f"{place}.type")
    kind = value["type"]
    _known(value, place, f"type {kind}")
    _known(value[kind], f"{place}.{kind}", "mode tools" if kind == "allowed_tools" else "name")


# A check is called with the value, unless it is null, which OpenAI takes as absent.
_PARAMETERS: dict[str, Callable[[Any, str], None]] = {
    "audio": _fields("voice format"),
    "frequency_penalty": _number(-2, 2),
    "function_call": lambda value, place: (
        _one_of(value, ("none", "auto"), place) if isinstance(value, str) else _known(value, place, "name")
    ),
    "functions": _check_functions,
    "logit_bias": _check_bias,
    "logprobs": _plain(bool),
    "max_completion_tokens": _whole(1, 2**31 - 1),
    "max_tokens": _whole(1, 2**31 - 1),
    "metadata": _check_metadata,
    "modalities": _check_modalities,
    "model": _plain(str),
    "moderation": _fields("model", "policy"),
    "n": _whole(1, MOST_CHOICES),
    "parallel_tool_calls": _plain(bool),
    "prediction": _check_prediction,
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": _plain(str),
    "prompt_cache_options": _fields("", "mode ttl"),
    "prompt_cache_retention": _word("in_memory", "24h"),
    "reasoning_effort": _word("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "response_format": _check_response_format,
    "safety_identifier": _plain(str),
    "seed": _whole(-(2**63), 2**63 - 1),
    "service_tier": _word("auto", "default", "flex", "scale", "priority", "fast"),
    "stop": _check_stop,
    "store": _plain(bool),
    "stream": _plain(bool),
    "stream_options": _fields("", "include_usage include_obfuscation"),
    "temperature": _number(0, 2),
    "tool_choice": _check_choice,
    "tools": _check_tools,
    "top_logprobs": _whole(0, 20),
    "top_p": _number(0, 1),
    "user": _plain(str),
    "verbosity": _word("low", "medium", "high"),
    "web_search_options": _fields("", "search_context_size user_location"),
}

# A parameter, and the one without which it is refused.
_NEEDS = (
    ("stream_options", "stream"),
    ("top_logprobs", "logprobs"),
    ("tool_choice", "tools"),
    ("parallel_tool_calls", "tools"),
    ("function_call", "functions"),
)


def check_question(asked: Mapping[str, Any], also: frozenset[str] = frozenset()) -> None:
    """Refuse a request that OpenAI would refuse.

    Args:
        asked: the body of the request.
        also: parameters of a relative of OpenAI's API, whose values are not checked.

    Raises:
        ProviderError: with OpenAI's code, and the place of what is wrong as its param.
    """
    if asked.get("model") is None:
        raise _refuse("model", None, "You must provide a model parameter.")
    if asked.get("messages") is None:
        raise _refuse("messages", "missing_required_parameter", "Missing required parameter: 'messages'.")
    for name, value in asked.items():
        if name == "messages" or name in also:
            continue
        if name not in _PARAMETERS:
            raise _refuse(name, "unknown_parameter", f"Unknown parameter: '{name}'.")
        if value is not None:
            _PARAMETERS[name](value, name)
    _check_messages(asked["messages"])
    for name, needed in _NEEDS:
        if asked.get(name) is not None and not asked.get(needed):
            raise _refuse(name, None, f"The '{name}' parameter is only allowed when '{needed}' is set.")
    if asked.get("max_tokens") is not None and asked.get("max_completion_tokens") is not None:
        why = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise _refuse("max_tokens", "invalid_parameter_combination", why)


# ------------------------------------------------------------------------------------------------- messages

# By role: required fields, optional fields, types of content parts. `parsed`, and `parsed_arguments` in tool
# calls, come from the SDK's `parse`, whose messages are sent back whole.
_ROLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "system": ("content", "name", ("text",)),
    "assistant": (
        "",
        "content name refusal audio annotations tool_calls function_call parsed",
        ("text", "refusal"),
    ),
    "user": ("content", "name", ("text", "image_url", "input_audio", "file")),
    "function": ("name", "content", ("text",)),
    "tool": ("content tool_call_id", "name", ("text",)),
    "developer": ("content", "name", ("text",)),
}

# By type of part: the fields of the object in the field of the same name; None where that is a string.
_PARTS: dict[str, tuple[str, str] | None] = {
    "text": None,
    "refusal": None,
    "image_url": ("url", "detail"),
    "input_audio": ("data format", ""),
    "file": ("", "file_id file_data filename"),
}


def _check_messages(messages: Any) -> None:
    # The ids of the last calls, while only tool messages have followed, and those of them without a result.
    calls: dict[str, None] = {}
    open_calls: dict[str, None] = {}
    for number, message in enumerate(_not_empty(messages, "messages")):
        place = f"messages[{number}]"
        # The role says which fields are known, so it is looked at first.
        role = _required(message, place, "role")
        _one_of(role, tuple(_ROLES), f"{place}.role")
        if role == "tool":
            _check_result(message, place, calls)
            open_calls.pop(message["tool_call_id"], None)
        else:
            _check_answered(open_calls, f"{place}.role")
            calls = _check_turn(message, place)
            open_calls = dict(calls)
    _check_answered(open_calls, f"messages[{len(messages)}].role")


def _check_answered(open_calls: Mapping[str, None], place: str) -> None:
    if open_calls:
        why = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. No response messages were found for: {', '.join(open_calls)}"
        )
        raise _refuse(place, None, why)


def _check_result(message: Mapping[str, Any], place: str, calls: Mapping[str, None]) -> None:
    _check_turn(message, place)
    if not calls:
        why = (
            "Invalid parameter: messages with role 'tool' must be a response to a preceding message "
            "with 'tool_calls'."
        )
        raise _refuse(f"{place}.role", None, why)
    identity = _of(str, message["tool_call_id"], f"{place}.tool_call_id")
    if identity not in calls:
        why = f"Invalid parameter: 'tool_call_id' of '{identity}' not found in the preceding 'tool_calls'."
        raise _refuse(f"{place}.tool_call_id", None, why)


def _check_turn(message: Mapping[str, Any], place: str) -> dict[str, None]:
    """Check one message by itself; the ids of its tool calls."""
    required, optional, parts = _ROLES[message["role"]]
    _known(message, place, f"role {required}", optional)
    for name in ("name", "refusal"):
        if message.get(name) is not None:
            _of(str, message[name], f"{place}.{name}")
    content = message.get("content")
    if content is not None:
        _check_content(content, f"{place}.content", parts)
    elif message["role"] == "assistant" and not any(
        message.get(name) is not None for name in ("tool_calls", "function_call", "refusal", "audio")
    ):
        why = f"Invalid value for '{place}.content': expected a string, got null."
        raise _refuse(f"{place}.content", "invalid_type", why)
    if message.get("function_call") is not None:
        _known(message["function_call"], f"{place}.function_call", "name arguments")
    if message.get("tool_calls") is None:
        return {}
    calls = _not_empty(message["tool_calls"], f"{place}.tool_calls")
    return {_called(call, f"{place}.tool_calls[{number}]"): None for number, call in enumerate(calls)}


def _called(call: Any, place: str) -> str:
    """Check a tool call; its id."""
    _known(call, place, "id type", "function custom")
    _one_of(call["type"], ("function", "custom"), f"{place}.type")
    kind = call["type"]
    brings, more = ("arguments", "parsed_arguments") if kind == "function" else ("input", "")
    _known(call, place, f"id type {kind}")
    _known(call[kind], f"{place}.{kind}", f"name {brings}", more)
    for name in ("name", brings):
        _of(str, call[kind][name], f"{place}.{kind}.{name}")
    identity: str = _of(str, call["id"], f"{place}.id")
    return identity


def _check_content(content: Any, place: str, kinds: tuple[str, ...]) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        why = (
            f"Invalid type for '{place}': expected one of a string or array of objects, but got "
            f"{_kind(content)} instead."
        )
        raise _refuse(place, "invalid_type", why)
    for number, part in enumerate(_not_empty(content, place)):
        where = f"{place}[{number}]"
        kind = _required(part, where, "type")
        _one_of(kind, kinds, f"{where}.type")
        _known(part, where, f"type {kind}", "prompt_cache_breakpoint")
        fields = _PARTS[kind]
        if fields is None:
            _of(str, part[kind], f"{where}.{kind}")
            continue
        _known(part[kind], f"{where}.{kind}", *fields)
        if kind == "input_audio":
            _one_of(part[kind]["format"], ("wav", "mp3"), f"{where}.{kind}.format")
        elif kind == "image_url":
            _of(str, part[kind]["url"], f"{where}.{kind}.url")
