"""The JSON Schema of a request, an allow-list of fields with their bounds, and a checker for it.

`openapi.py` shows this schema and `checker` compiles it into functions, so the document always says what the
gateway does. Only the part of JSON Schema that is used here can be compiled; any other keyword is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal

from fastroute import errors
from fastroute.types import PRIORITIES

Json = dict[str, Any]
Check = Callable[[Any, str], None]

# ------------------------------------------------------------------------------------------- the request

_PRINTABLE = r"^[^\u0000-\u001f\u007f]*$"  # safe in a header or a log line


def _optional(**schema: Any) -> Json:
    kinds = schema.pop("type")
    return {"type": [*([kinds] if isinstance(kinds, str) else kinds), "null"], **schema}


def _object(properties: Json, required: tuple[str, ...] = (), *, more: bool = False) -> Json:
    found: Json = {"type": "object", "properties": properties, "additionalProperties": more}
    if required:
        found["required"] = list(required)
    return found


_LABEL: Json = {"type": "string", "maxLength": 128, "pattern": _PRINTABLE}
_NAME: Json = {**_LABEL, "type": ["string", "null"]}
_FUNCTION_NAME: Json = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
# The provider fetches an address, not the gateway. Callers must not make the provider read files or addresses
# in its own network.
_URL = "^(https://[^/?#\\s]|data:%s/)[^\\u0000-\\u0020]*$"  # with the media type of a data URL
_FILE_DATA = "^((https://[^/?#\\s]|data:[a-z]+/)[^\\u0000-\\u0020]*|[A-Za-z0-9+/=_-]+)$"  # or base64 alone

_PARTS: dict[str, Json] = {
    "text": _object({"type": {"const": "text"}, "text": {"type": "string"}}, ("type", "text"), more=True),
    "refusal": _object(
        {"type": {"const": "refusal"}, "refusal": {"type": "string"}}, ("type", "refusal"), more=True
    ),
    "image_url": _object(
        {
            "type": {"const": "image_url"},
            "image_url": _object(
                {
                    "url": {"type": "string", "pattern": _URL % "image"},
                    "detail": {"enum": ["auto", "low", "high", None]},
                },
                ("url",),
            ),
        },
        ("type", "image_url"),
        more=True,
    ),
    "video_url": _object(
        {
            "type": {"const": "video_url"},
            "video_url": _object(
                {"url": {"type": "string", "pattern": _URL % "[a-z]+"}}, ("url",), more=True
            ),
        },
        ("type", "video_url"),
        more=True,
    ),
    # The file itself. The id of an uploaded file would be one of the operator's account, which the caller has
    # no part in.
    "file": _object(
        {
            "type": {"const": "file"},
            "file": _object(
                {
                    "filename": _optional(type="string", maxLength=1000),
                    "file_data": {"type": "string", "pattern": _FILE_DATA},
                    "format": _optional(type="string", maxLength=128),
                },
                ("file_data",),
            ),
        },
        ("type", "file"),
        more=True,
    ),
    # Reasoning that an answer contained, in the history of a later request.
    "thinking": _object({"type": {"const": "thinking"}}, ("type",), more=True),
    "redacted_thinking": _object({"type": {"const": "redacted_thinking"}}, ("type",), more=True),
    "reasoning": _object({"type": {"const": "reasoning"}}, ("type",), more=True),
    "input_audio": _object(
        {
            "type": {"const": "input_audio"},
            "input_audio": _object(
                {"data": {"type": "string"}, "format": {"enum": ["wav", "mp3"]}}, ("data", "format")
            ),
        },
        ("type", "input_audio"),
        more=True,
    ),
}


def _tagged(group: str, kinds: Iterable[str], tag: str = "type") -> Json:
    """One of the schemas of a group, by a field of the object."""
    return {
        "oneOf": [{"$ref": f"#/components/schemas/{group}_{kind}"} for kind in kinds],
        "discriminator": {"propertyName": tag},
    }


def _content(*kinds: str, null: bool = False, empty: bool = False) -> Json:
    choices: list[Json] = [
        {"type": "string"},
        {"type": "array", **({} if empty else {"minItems": 1}), "items": _tagged("Part", kinds)},
    ]
    if null:
        choices.append({"type": "null"})
    return {"anyOf": choices}


_CALLS: dict[str, Json] = {
    "function": _object(
        {
            "id": {"type": "string", "minLength": 1},
            "type": {"const": "function"},
            "function": _object(
                {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "string"}},
                ("name", "arguments"),
                more=True,
            ),
        },
        ("id", "type", "function"),
        more=True,
    ),
    "custom": _object(
        {
            "id": {"type": "string", "minLength": 1},
            "type": {"const": "custom"},
            "custom": _object(
                {"name": {"type": "string", "minLength": 1}, "input": {"type": "string"}},
                ("name", "input"),
                more=True,
            ),
        },
        ("id", "type", "custom"),
        more=True,
    ),
}

_USERS = _content("text", "image_url", "input_audio", "video_url", "file")
_SAID = ("text", "refusal", "thinking", "redacted_thinking", "reasoning")
_MESSAGES: dict[str, Json] = {
    "system": _object(
        {"role": {"const": "system"}, "content": _content("text"), "name": _NAME},
        ("role", "content"),
        more=True,
    ),
    "developer": _object(
        {"role": {"const": "developer"}, "content": _content("text"), "name": _NAME},
        ("role", "content"),
        more=True,
    ),
    "user": _object(
        {"role": {"const": "user"}, "content": _USERS, "name": _NAME},
        ("role", "content"),
        more=True,
    ),
    "assistant": _object(
        {
            "role": {"const": "assistant"},
            "content": _content(*_SAID, null=True, empty=True),
            "name": _NAME,
            "refusal": _optional(type="string"),
            "tool_calls": _optional(type="array", items=_tagged("Call", _CALLS)),
            "function_call": _optional(
                type="object",
                properties={"name": {"type": "string", "minLength": 1}, "arguments": {"type": "string"}},
                required=["name", "arguments"],
                additionalProperties=True,
            ),
            "audio": _optional(
                type="object",
                properties={"id": {"type": "string", "minLength": 1}},
                required=["id"],
                additionalProperties=True,
            ),
        },
        ("role",),
        more=True,
    ),
    "tool": _object(
        {
            "role": {"const": "tool"},
            "content": _content("text", empty=True),
            "tool_call_id": {"type": "string", "minLength": 1},
        },
        ("role", "content", "tool_call_id"),
        more=True,
    ),
    "function": _object(
        {
            "role": {"const": "function"},
            "name": {"type": "string", "minLength": 1, "maxLength": 128},
            "content": _optional(type="string"),
        },
        ("role", "name", "content"),
        more=True,
    ),
}

_GRAMMAR = _object(
    {"definition": {"type": "string"}, "syntax": {"enum": ["lark", "regex"]}}, ("definition", "syntax")
)
_TOOLS: dict[str, Json] = {
    "function": _object(
        {
            "type": {"const": "function"},
            "function": _object(
                {
                    "name": _FUNCTION_NAME,
                    "description": _optional(type="string"),
                    "parameters": _optional(type="object"),
                    "strict": _optional(type="boolean"),
                },
                ("name",),
            ),
        },
        ("type", "function"),
    ),
    # A tool whose input is text, bounded by a grammar if there is one.
    "custom": _object(
        {
            "type": {"const": "custom"},
            "custom": _object(
                {
                    "name": _FUNCTION_NAME,
                    "description": {"type": "string"},
                    "format": _tagged("Input", ("text", "grammar")),
                },
                ("name",),
            ),
        },
        ("type", "custom"),
    ),
}
_INPUTS: dict[str, Json] = {
    "text": _object({"type": {"const": "text"}}, ("type",)),
    "grammar": _object({"type": {"const": "grammar"}, "grammar": _GRAMMAR}, ("type", "grammar")),
}


def _named_tool(kind: str) -> Json:
    return _object(
        {"type": {"const": kind}, kind: _object({"name": _FUNCTION_NAME}, ("name",))}, ("type", kind)
    )


_FORMATS: dict[str, Json] = {
    "text": _object({"type": {"const": "text"}}, ("type",)),
    "json_object": _object({"type": {"const": "json_object"}}, ("type",)),
    "json_schema": _object(
        {
            "type": {"const": "json_schema"},
            "json_schema": _object(
                {
                    "name": _FUNCTION_NAME,
                    "description": {"type": "string"},
                    "schema": {"type": "object"},
                    "strict": _optional(type="boolean"),
                },
                ("name",),
            ),
        },
        ("type", "json_schema"),
    ),
}

ROUTE = _object(
    {
        "tier": _optional(type="string", minLength=1, maxLength=200),
        "quality": _optional(type="number", minimum=0, maximum=1),
        "max_cost": _optional(type="number", minimum=0, maximum=1_000_000),
        "max_latency": _optional(type="number", minimum=0, maximum=86_400),
        "deadline": _optional(type="number", minimum=0.1, maximum=86_400),
        "cache": {"type": "boolean"},
        "priority": {"enum": [*PRIORITIES, None]},
        "tags": {
            "type": "object",
            "maxProperties": 8,
            "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,64}$"},
            "additionalProperties": _LABEL,
        },
    }
)

REQUEST = _object(
    {
        "model": _optional(type="string", maxLength=200, pattern="^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"),
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2000,
            "items": _tagged("Message", _MESSAGES, "role"),
        },
        "stream": _optional(type="boolean"),
        "stream_options": _optional(
            type="object",
            properties={"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}},
            additionalProperties=False,
        ),
        "temperature": _optional(type="number", minimum=0, maximum=2),
        "top_p": _optional(type="number", minimum=0, maximum=1),
        "n": _optional(type="integer", minimum=1, maximum=128),
        "max_tokens": _optional(type="integer", minimum=0, maximum=10_000_000),
        "max_completion_tokens": _optional(type="integer", minimum=0, maximum=10_000_000),
        "stop": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "maxItems": 16, "items": {"type": "string"}},
                {"type": "null"},
            ]
        },
        "presence_penalty": _optional(type="number", minimum=-2, maximum=2),
        "frequency_penalty": _optional(type="number", minimum=-2, maximum=2),
        "logit_bias": _optional(
            type="object",
            maxProperties=1024,
            additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
        ),
        "logprobs": _optional(type="boolean"),
        "top_logprobs": _optional(type="integer", minimum=0, maximum=20),
        "user": _NAME,
        "safety_identifier": _NAME,
        "prompt_cache_key": _NAME,
        "prompt_cache_retention": {"enum": ["in-memory", "24h", None]},
        "seed": _optional(type="integer", minimum=-(2**63), maximum=2**63 - 1),
        "tools": _optional(
            type="array",
            maxItems=128,
            items=_tagged("Tool", _TOOLS),
        ),
        "tool_choice": {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                _named_tool("function"),
                _named_tool("custom"),
                _object(
                    {
                        "type": {"const": "allowed_tools"},
                        "allowed_tools": _object(
                            {
                                "mode": {"enum": ["auto", "required"]},
                                "tools": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": 128,
                                    "items": {"anyOf": [_named_tool("function"), _named_tool("custom")]},
                                },
                            },
                            ("mode", "tools"),
                        ),
                    },
                    ("type", "allowed_tools"),
                ),
                {"type": "null"},
            ]
        },
        "parallel_tool_calls": _optional(type="boolean"),
        "functions": _optional(
            type="array",
            minItems=1,
            maxItems=128,
            items=_object(
                {
                    "name": _FUNCTION_NAME,
                    "description": _optional(type="string"),
                    "parameters": _optional(type="object"),
                },
                ("name",),
            ),
        ),
        "function_call": {
            "anyOf": [
                {"enum": ["none", "auto"]},
                _object({"name": _FUNCTION_NAME}, ("name",)),
                {"type": "null"},
            ]
        },
        "modalities": _optional(type="array", minItems=1, maxItems=2, items={"enum": ["text", "audio"]}),
        "audio": _optional(
            type="object",
            properties={
                "voice": {"anyOf": [_LABEL, _object({"id": _LABEL}, ("id",))]},
                "format": {"enum": ["wav", "aac", "mp3", "flac", "opus", "pcm16"]},
            },
            required=["voice", "format"],
            additionalProperties=False,
        ),
        "prediction": _optional(
            type="object",
            properties={"type": {"const": "content"}, "content": _content("text")},
            required=["type", "content"],
            additionalProperties=False,
        ),
        "web_search_options": _optional(
            type="object",
            properties={
                "search_context_size": {"enum": ["low", "medium", "high", None]},
                "user_location": _optional(
                    type="object",
                    properties={
                        "type": {"const": "approximate"},
                        "approximate": _object(
                            dict.fromkeys(("city", "country", "region", "timezone"), _NAME)
                        ),
                    },
                    required=["type", "approximate"],
                    additionalProperties=False,
                ),
            },
            additionalProperties=False,
        ),
        "response_format": {
            "anyOf": [
                _tagged("Format", _FORMATS),
                {"type": "null"},
            ]
        },
        "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", None]},
        "verbosity": {"enum": ["low", "medium", "high", None]},
        "service_tier": {"enum": ["auto", "default", "flex", "scale", "priority", None]},
        "metadata": _optional(
            type="object",
            maxProperties=16,
            propertyNames={"pattern": "^[^\\u0000-\\u001f\\u007f]{1,64}$"},
            additionalProperties={"type": "string", "maxLength": 512, "pattern": _PRINTABLE},
        ),
        "store": _optional(type="boolean"),
        # Parameters that OpenAI does not have, and many servers of its API do. A format that cannot express
        # one refuses it, and names it.
        "top_k": _optional(type="integer", minimum=-1, maximum=1_000_000),
        "min_p": _optional(type="number", minimum=0, maximum=1),
        "repetition_penalty": _optional(type="number", minimum=0, maximum=10),
        "chat_template_kwargs": _optional(type="object", maxProperties=32),
        "guided_json": {"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}]},
        "thinking": _optional(type="object", maxProperties=16),
        "reasoning": _optional(type="object", maxProperties=16),
        # This gateway's own: the model is chosen as for ``auto``, whatever ``model`` says.
        "auto_model_select": _optional(type="boolean"),
        "route": {"$ref": "#/components/schemas/Route"},
    },
    ("messages",),
)

INTEGERS = tuple(
    name for name, schema in REQUEST["properties"].items() if "integer" in schema.get("type", ())
)

COMPONENTS: dict[str, Json] = {
    "Request": REQUEST,
    "Route": ROUTE,
    **{f"Message_{role}": schema for role, schema in _MESSAGES.items()},
    **{f"Part_{kind}": schema for kind, schema in _PARTS.items()},
    **{f"Call_{kind}": schema for kind, schema in _CALLS.items()},
    **{f"Tool_{kind}": schema for kind, schema in _TOOLS.items()},
    **{f"Input_{kind}": schema for kind, schema in _INPUTS.items()},
    **{f"Format_{kind}": schema for kind, schema in _FORMATS.items()},
}


# --------------------------------------------------------------------------------------------- checks


@cache
def checker(component: str) -> Check:
    """A function of a value and its path that raises `BadRequestError` if the value is invalid."""
    return _compiled(COMPONENTS[component])


def request_with(parameters: Iterable[str]) -> Json:
    """The schema of a request that may have these parameters too, with any value."""
    extra = {name: True for name in parameters if name not in REQUEST["properties"]}
    return {**REQUEST, "properties": {**REQUEST["properties"], **extra}} if extra else REQUEST


def request_checker(parameters: Iterable[str]) -> Check:
    """As `checker("Request")`, for `request_with`."""
    return _compiled(request_with(parameters))


def _refused(path: str, what: str) -> errors.BadRequestError:
    shown = path or "the body"
    param = path if len(path) <= 100 else None
    return errors.BadRequestError(f"{shown[:100]}: {what}", param=param)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_ANNOTATIONS = frozenset({"description", "discriminator"})


def _compiled(schema: Json | Literal[True]) -> Check:
    """One check for all keywords of a schema.

    Raises:
        ValueError: a keyword of `COMPONENTS` cannot be compiled.
    """
    if schema is True:
        return lambda value, path: None
    rest = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    check = _taken(rest, schema)
    if rest:
        raise ValueError(f"a schema has keywords that are not compiled: {', '.join(sorted(rest))}")
    return check


def _taken(rest: Json, schema: Json) -> Check:
    """The check for the known keywords, which are removed from ``rest``."""
    if "$ref" in rest:
        name = rest.pop("$ref").rpartition("/")[2]
        return lambda value, path: checker(name)(value, path)
    if "oneOf" in rest:
        return _by_tag(rest.pop("oneOf"), schema["discriminator"]["propertyName"])
    if "anyOf" in rest:
        return _any_of(rest.pop("anyOf"))
    if "enum" in rest:
        return _one_of(rest.pop("enum"))
    if "const" in rest:
        return _one_of([rest.pop("const")])
    return _by_type(rest)


def _by_type(rest: Json) -> Check:
    kinds = rest.pop("type", None)
    checks = {
        "string": _string(rest),
        "array": _array(rest),
        "object": _mapping(rest),
        "number": _number(rest),
    }
    checks["integer"] = checks["number"]
    names = [kinds] if isinstance(kinds, str) else list(kinds or _KINDS)
    by_type: dict[type, Check | None] = {
        kind: checks.get(name) for name in reversed(names) for kind in _KINDS[name]
    }
    wanted = " or ".join(names)
    whole = "integer" in names

    def check(value: Any, path: str) -> None:
        kind = type(value)
        if whole and kind is float and value.is_integer():
            kind = int  # in JSON Schema, 2.0 is an integer
        if kind not in by_type:
            raise _refused(path, f"must be of type {wanted}")
        inner = by_type[kind]
        if inner is not None:
            inner(value, path)

    return check


def _one_of(values: list[Any]) -> Check:
    shown = ", ".join("null" if value is None else repr(value) for value in values)

    def check(value: Any, path: str) -> None:
        if not (value is None or type(value) is str) or value not in values:
            raise _refused(path, f"must be one of {shown}")

    return check


def _any_of(schemas: list[Json]) -> Check:
    checks = [_compiled(schema) for schema in schemas]

    def check(value: Any, path: str) -> None:
        deepest: errors.BadRequestError | None = None
        for inner in checks:
            try:
                return inner(value, path)
            except errors.BadRequestError as error:
                # The error deepest in the value is most likely of the form that the caller meant.
                if deepest is None or len(error.param or "") > len(deepest.param or ""):
                    deepest = error
        assert deepest is not None
        if deepest.param == (path or None):
            raise _refused(path, "must have one of the forms in /openapi.json")
        raise deepest

    return check


def _by_tag(schemas: list[Json], tag: str) -> Check:
    """The check of an object whose schema depends on one of its fields."""
    names = {schema["$ref"].rpartition("/")[2].partition("_")[2]: schema for schema in schemas}
    checks = {name: _compiled(schema) for name, schema in names.items()}
    shown = ", ".join(checks)

    def check(value: Any, path: str) -> None:
        if type(value) is not dict:
            raise _refused(path, "must be of type object")
        kind = value.get(tag)
        inner = checks.get(kind) if type(kind) is str else None
        if inner is None:
            raise _refused(f"{path}.{tag}", f"must be one of {shown}")
        inner(value, path)

    return check


def _string(rest: Json) -> Check | None:
    least, most = rest.pop("minLength", 0), rest.pop("maxLength", None)
    shown = rest.pop("pattern", None)
    # JSON Schema's $ is the end of the text and nothing else.
    pattern = None if shown is None else re.compile(re.sub(r"\$\Z", r"\\Z", shown))
    if not least and most is None and pattern is None:
        return None

    def check(value: str, path: str) -> None:
        if len(value) < least:
            raise _refused(path, f"must have at least {least} characters")
        if most is not None and len(value) > most:
            raise _refused(path, f"must have at most {most} characters")
        if pattern is not None and not pattern.search(value):
            raise _refused(path, f"must match {shown}")

    return check


def _number(rest: Json) -> Check | None:
    least, most = rest.pop("minimum", None), rest.pop("maximum", None)
    if least is None and most is None:
        return None

    def check(value: float, path: str) -> None:
        if (least is not None and value < least) or (most is not None and value > most):
            raise _refused(path, f"must be from {least} to {most}")

    return check


def _array(rest: Json) -> Check | None:
    least, most = rest.pop("minItems", 0), rest.pop("maxItems", None)
    items = _compiled(rest.pop("items")) if "items" in rest else None
    if not least and most is None and items is None:
        return None

    def check(value: list[Any], path: str) -> None:
        if len(value) < least:
            raise _refused(path, f"must have at least {least} item" + ("s" if least > 1 else ""))
        if most is not None and len(value) > most:
            raise _refused(path, f"must have at most {most} items")
        if items is not None:
            for place, item in enumerate(value):
                items(item, f"{path}[{place}]")

    return check


def _mapping(rest: Json) -> Check | None:
    known = {name: _compiled(schema) for name, schema in rest.pop("properties", {}).items()}
    required = rest.pop("required", [])
    most = rest.pop("maxProperties", None)
    names = _compiled({"type": "string", **rest.pop("propertyNames")}) if "propertyNames" in rest else None
    more = rest.pop("additionalProperties", True)
    other = _compiled(more) if isinstance(more, dict) else None
    if not known and not required and most is None and names is None and more is True:
        return None

    def check(value: dict[str, Any], path: str) -> None:
        for name in required:
            if name not in value:
                raise _refused(f"{path}.{name}" if path else name, "is required")
        if most is not None and len(value) > most:
            raise _refused(path, f"must have at most {most} keys")
        for name, item in value.items():
            inner = known.get(name)
            below = f"{path}.{name}" if path else name
            if inner is None:
                if more is False:
                    raise _refused(below, "is unknown or not supported by this gateway; leave it out")
                if names is not None:
                    names(name, f"{path} (one of its keys)")
                inner = other
            if inner is not None:
                inner(item, below)

    return check


__all__ = ["COMPONENTS", "INTEGERS", "REQUEST", "ROUTE", "checker", "request_checker", "request_with"]
