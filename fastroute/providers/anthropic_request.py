"""Translates a request in OpenAI's shape into the body of an Anthropic Messages request.

Parameters that Anthropic names differently are renamed. Those that it does not have are left out if their
value asks for nothing, and are otherwise refused by name before anything is sent. Parameters that are not
OpenAI's are sent as given. Messages are translated in `anthropic_messages.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastroute import errors, types

from .anthropic_messages import as_mapping, system_and_turns
from .base import Target

# Without a limit from the caller or the catalogue; the format requires one, and current models allow it.
_DEFAULT_MAX_TOKENS = 8192
_LEAST_THINKING = 1024
_MOST_THINKING = 32_000

# OpenAI's parameters that the format does not have, with the values that ask for nothing.
_INEXPRESSIBLE: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template_kwargs": ({},),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": (),
    "guided_json": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning": ({},),
    "repetition_penalty": (1,),
    "seed": (),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_INSTEAD = {
    "functions": "; use tools",
    "function_call": "; use tool_choice",
    "guided_json": "; use response_format",
    "reasoning": "; use reasoning_effort or thinking",
}
# Translated below or, if only hints to OpenAI's own caches and streams, left out.
_TRANSLATED = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "user",
    }
)
_SERVICE_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
# The thinking budget as a share of the output tokens, for models that take a budget.
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}
_VERSION = re.compile(r"claude-(?:(?:opus|sonnet|haiku|instant)-)?(\d+)(?:[-.](\d{1,2})(?!\d))?")
_FIRST_ADAPTIVE = (4, 6)

JSON_TOOL = "json_answer"


def body_of(request: types.Request, target: Target) -> dict[str, Any]:
    """The body as a mapping.

    Raises:
        BadRequestError: for what the format cannot express, with the parameter's name or the place in the
            messages, never with the caller's text.
    """
    params = {name: value for name, value in request.params.items() if value is not None}
    _refuse_inexpressible(params)
    system, turns = system_and_turns(request.messages)
    most = _max_tokens(request, target)
    body: dict[str, Any] = {"model": target.upstream, "max_tokens": most, "messages": turns}
    if system:
        if "system" in params:
            raise refused("system", "is given as well as system messages; use one of them")
        body["system"] = system
    body.update({name: value for name, value in params.items() if name not in _KNOWN})
    _sampling(body, params)
    _tools(body, params)
    _response_format(body, params)
    if "thinking" not in params:
        _reasoning(body, params, target.upstream, most)
    _labels(body, params)
    if "output_config" in params:
        body["output_config"] = {**body.get("output_config", {}), **_mapping(params, "output_config")}
    if request.stream:
        body["stream"] = True
    return body


_KNOWN = _TRANSLATED | _INEXPRESSIBLE.keys()


def refused(param: str, why: str) -> errors.BadRequestError:
    """The error for a parameter that this format cannot express."""
    return errors.BadRequestError(f"{param}: {why}", param=param.partition("[")[0].partition(".")[0])


def answers_by_tool(request: types.Request) -> bool:
    """Whether the answer is the input of `JSON_TOOL`, because JSON was requested without a schema."""
    wanted = request.params.get("response_format")
    return isinstance(wanted, Mapping) and wanted.get("type") == "json_object"


def _refuse_inexpressible(params: Mapping[str, Any]) -> None:
    for name in params:
        nothing = _INEXPRESSIBLE.get(name)
        if nothing is not None and params[name] not in nothing:
            raise refused(
                name, f"the anthropic format has no such parameter{_INSTEAD.get(name, '; leave it out')}"
            )


def _mapping(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = as_mapping(params[name])
    if value is None:
        raise refused(name, f"must be a mapping, not {type(params[name]).__name__}")
    return value


def _max_tokens(request: types.Request, target: Target) -> int:
    wanted, most = request.max_tokens, target.max_output
    if wanted is None:
        return most or _DEFAULT_MAX_TOKENS
    return wanted if most is None else min(wanted, most)


# ------------------------------------------------------------------------------------------ plain parameters


def _sampling(body: dict[str, Any], params: Mapping[str, Any]) -> None:
    temperature = params.get("temperature")
    if temperature is not None:
        if isinstance(temperature, (int, float)) and temperature > 1:
            raise refused("temperature", "must be from 0 to 1 in the anthropic format")
        body["temperature"] = temperature
    stop = params.get("stop")
    if stop is None:
        return
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, (list, tuple)) or not all(isinstance(each, str) for each in sequences):
        raise refused("stop", "must be a string or a list of strings")
    if not all(each.strip() for each in sequences):
        raise refused("stop", "must not contain empty or blank sequences in the anthropic format")
    if sequences:
        body["stop_sequences"] = list(sequences)


def _labels(body: dict[str, Any], params: Mapping[str, Any]) -> None:
    """Sets the caller's id and the service tier."""
    metadata = dict(_mapping(params, "metadata")) if "metadata" in params else {}
    if metadata.keys() - {"user_id"}:
        raise refused("metadata", "the anthropic format has user_id only; use route.tags for the rest")
    user = params.get("user") or params.get("safety_identifier")
    if user is not None:
        metadata.setdefault("user_id", user)
    if metadata:
        body["metadata"] = metadata
    wanted = params.get("service_tier")
    if wanted is not None:
        tier = _SERVICE_TIERS.get(wanted) if isinstance(wanted, str) else None
        if tier is None:
            raise refused("service_tier", f"must be one of {', '.join(_SERVICE_TIERS)}")
        body["service_tier"] = tier


def _reasoning(body: dict[str, Any], params: Mapping[str, Any], model: str, most: int) -> None:
    effort = params.get("reasoning_effort")
    if effort is None:
        return
    budgeted = _thinks_by_budget(model)
    if effort == "none":
        if not budgeted:
            body["thinking"] = {"type": "disabled"}
        return
    if effort not in _EFFORTS:
        raise refused("reasoning_effort", f"must be one of none, {', '.join(_EFFORTS)}")
    if not budgeted:
        body["thinking"] = {"type": "adaptive"}
        body.setdefault("output_config", {})["effort"] = "low" if effort == "minimal" else effort
        return
    if most <= _LEAST_THINKING:
        raise refused(
            "reasoning_effort",
            f"needs max_tokens above {_LEAST_THINKING}, not {most}; this model's thinking counts toward it",
        )
    budget = min(max(int(most * _SHARES[effort]), _LEAST_THINKING), _MOST_THINKING, most - 1)
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _thinks_by_budget(model: str) -> bool:
    """Whether a model takes a thinking budget in tokens; later and unknown models take an effort.

    Only old models are recognised by name, because their names will not change.
    """
    found = _VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) < _FIRST_ADAPTIVE


# ----------------------------------------------------------------------------------------------------- tools


def _tools(body: dict[str, Any], params: Mapping[str, Any]) -> None:
    given = params.get("tools")
    if given is not None:
        if not isinstance(given, (list, tuple)):
            raise refused("tools", f"must be a list, not {type(given).__name__}")
        if given:
            body["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(given)]
    if "tool_choice" in params:
        choice = _tool_choice(params["tool_choice"])
        # OpenAI's servers accept "none" and "auto" without tools, where they change nothing.
        if "tools" in body or choice["type"] not in ("none", "auto"):
            body["tool_choice"] = choice
    if params.get("parallel_tool_calls") is False and "tools" in body:
        choice = body.setdefault("tool_choice", {"type": "auto"})
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True


def _tool(given: Any, path: str) -> Mapping[str, Any]:
    tool = as_mapping(given)
    if tool is None:
        raise refused(path, f"must be a mapping, not {type(given).__name__}")
    function = as_mapping(tool.get("function"))
    if function is None:
        if "input_schema" in tool or tool.get("type") not in (None, "function", "custom"):
            return tool  # Anthropic's own
        raise refused(path, "must be of type function, or a tool of Anthropic's own")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise refused(f"{path}.function.name", "must be a non-empty string")
    schema = as_mapping(function.get("parameters")) or {"properties": {}}
    made: dict[str, Any] = {"name": name, "input_schema": {"type": "object", **schema}}
    for field in ("description", "strict"):
        if function.get(field) is not None:
            made[field] = function[field]
    if "cache_control" in tool:
        made["cache_control"] = tool["cache_control"]
    return made


def _tool_choice(given: Any) -> dict[str, Any]:
    known = {"auto": "auto", "none": "none", "required": "any"}
    if isinstance(given, str) and given in known:
        return {"type": known[given]}
    choice = as_mapping(given)
    if choice is not None:
        kind = choice.get("type")
        if kind in ("auto", "any", "tool", "none"):
            return dict(choice)  # Anthropic's own
        function = as_mapping(choice.get("function"))
        if kind == "function" and function is not None and isinstance(function.get("name"), str):
            return {"type": "tool", "name": function["name"]}
    raise refused("tool_choice", "must be auto, none, required, or an object that names a function")


# ------------------------------------------------------------------------------------------ structured output


def _response_format(body: dict[str, Any], params: Mapping[str, Any]) -> None:
    if "response_format" not in params:
        return
    wanted = _mapping(params, "response_format")
    kind = wanted.get("type")
    if kind == "text":
        return
    if kind == "json_object":
        if "tools" in body:
            raise refused(
                "response_format",
                "json_object cannot be combined with tools in the anthropic format; use json_schema",
            )
        body["tools"] = [
            {
                "name": JSON_TOOL,
                "description": "Takes the whole answer as one JSON object, in whatever shape was asked for.",
                "input_schema": {"type": "object", "additionalProperties": True},
            }
        ]
        body["tool_choice"] = {"type": "tool", "name": JSON_TOOL, "disable_parallel_tool_use": True}
        return
    described = as_mapping(wanted.get("json_schema"))
    schema = as_mapping(described.get("schema")) if described is not None else None
    if kind != "json_schema" or schema is None:
        raise refused("response_format", "must be text, json_object, or json_schema with a schema")
    body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": _closed(schema)}


def _closed(schema: Any, depth: int = 0) -> Any:
    """The schema with ``additionalProperties: false`` on objects that leave it open, as the format requires.

    Any value that fits the closed schema also fits the caller's.
    """
    if depth > 100:
        raise refused("response_format", "the schema is nested more than 100 deep or contains itself")
    if isinstance(schema, (list, tuple)):
        return [_closed(part, depth + 1) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for word, part in schema.items():
        if word in _BY_NAME and isinstance(part, Mapping):
            made[word] = {name: _closed(inner, depth + 2) for name, inner in part.items()}
        else:
            made[word] = part if word in _LITERAL else _closed(part, depth + 1)
    kind = made.get("type", "object" if "properties" in made else None)
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        made.setdefault("additionalProperties", False)
    return made


# Keywords of JSON Schema with schemas by name as values, and keywords with data as values.
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LITERAL = frozenset({"const", "default", "enum", "examples", "required"})
