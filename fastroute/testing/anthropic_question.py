"""Reads an Anthropic Messages request as strictly as Anthropic: parameters, turns, blocks, tool calls."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from fastroute import json_codec

from .answer_source import TOKENS_PER_IMAGE, TOKENS_PER_MESSAGE, ProviderError, Question, count_tokens

_FIELDS = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "cache_control",
        "container",
        "diagnostics",
        "inference_geo",
        "metadata",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    ]
)
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_LEAST_THINKING = 1024


def _refuse(place: str, why: str) -> ProviderError:
    return ProviderError(400, None, f"{place}: {why}")


def _of(kind: type[Any], value: Any, place: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "string", dict: "dictionary", list: "list", int: "integer", bool: "boolean"}
        raise _refuse(place, f"Input should be a valid {names[kind]}")
    return value


def _known(block: Mapping[str, Any], place: str, required: str, optional: str = "") -> None:
    for name in required.split():
        if name not in block:
            raise _refuse(f"{place}.{name}", "Field required")
    for name in block:
        if name not in ("type", "cache_control") and name not in f"{required} {optional}".split():
            raise _refuse(f"{place}.{name}", "Extra inputs are not permitted")


def question_in(body: bytes) -> Question:
    """The question in a request's body.

    Raises:
        ProviderError: if Anthropic would refuse it, with Anthropic's wording as far as known.
    """
    try:
        asked = json_codec.loads(body)
    except json_codec.JSONDecodeError as error:
        raise ProviderError(400, None, "The request body is not valid JSON.") from error
    if not isinstance(asked, dict):
        raise ProviderError(400, None, "The request body must be a JSON object.")
    for name in ("model", "messages", "max_tokens"):
        if name not in asked:
            raise _refuse(name, "Field required")
    for name in asked:
        if name not in _FIELDS:
            raise _refuse(name, "Extra inputs are not permitted")
    model = _of(str, asked["model"], "model")
    limit = _of(int, asked["max_tokens"], "max_tokens")
    if limit < 0:
        raise _refuse("max_tokens", "Input should be greater than or equal to 0")
    tokens = _system_tokens(asked.get("system", ""))
    last, more = _Turns().read(_of(list, asked["messages"], "messages"))
    tools = {tool.get("name"): tool for tool in _tools(asked.get("tools", []))}
    if tools:
        tokens += count_tokens(json_codec.dumps(asked["tools"]).decode())
    _check_plain(asked)
    _check_thinking(asked.get("thinking"), limit, asked)
    tool, schema = _chosen_tool(asked, tools)
    wanted = _output_schema(asked.get("output_config"))
    if tool is None and wanted is not None:
        schema = wanted
    return Question(
        model,
        last,
        tokens + more,
        stream=_of(bool, asked.get("stream", False), "stream"),
        include_usage=True,
        max_tokens=limit,
        tool=tool,
        schema=schema,
        json=wanted is not None,
    )


# ---------------------------------------------------------------------------------------------- parameters


def _check_plain(asked: Mapping[str, Any]) -> None:
    for name in ("temperature", "top_p"):
        value = asked.get(name)
        if name in asked and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
        ):
            raise _refuse(name, "Input should be a number from 0 to 1")
    for place, text in enumerate(_of(list, asked.get("stop_sequences", []), "stop_sequences")):
        if not _of(str, text, f"stop_sequences.{place}").strip():
            raise _refuse(f"stop_sequences.{place}", "each stop sequence must contain non-whitespace")
    metadata = _of(dict, asked.get("metadata", {}), "metadata")
    _known(metadata, "metadata", "", "user_id")
    if metadata.get("user_id") is not None:
        _of(str, metadata["user_id"], "metadata.user_id")
    if asked.get("service_tier", "auto") not in ("auto", "standard_only"):
        raise _refuse("service_tier", "Input should be 'auto' or 'standard_only'")


def _check_thinking(thinking: Any, limit: int, asked: Mapping[str, Any]) -> None:
    if thinking is None:
        return
    kind = _of(dict, thinking, "thinking").get("type")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise _refuse("thinking", "Input tag does not match any of the expected tags")
    _known(thinking, f"thinking.{kind}", "budget_tokens" if kind == "enabled" else "", "display")
    if kind == "enabled":
        budget = _of(int, thinking["budget_tokens"], "thinking.enabled.budget_tokens")
        if budget < _LEAST_THINKING:
            raise _refuse("thinking.enabled.budget_tokens", "Input should be greater than or equal to 1024")
        if budget >= limit:
            raise ProviderError(400, None, "`max_tokens` must be greater than `thinking.budget_tokens`.")
    if kind in ("enabled", "adaptive"):
        if asked.get("temperature", 1) != 1:
            raise ProviderError(400, None, "`temperature` may only be set to 1 when thinking is enabled.")
        if (asked.get("tool_choice") or {}).get("type") in ("any", "tool"):
            raise ProviderError(400, None, "Thinking may not be enabled when tool_choice forces tool use.")


def _output_schema(config: Any) -> Mapping[str, Any] | None:
    if config is None:
        return None
    _known(_of(dict, config, "output_config"), "output_config", "", "effort format")
    effort = config.get("effort")
    if effort is not None and effort not in _EFFORTS:
        raise _refuse("output_config.effort", f"Input should be one of {', '.join(_EFFORTS)}")
    wanted = config.get("format")
    if wanted is None:
        return None
    place = "output_config.format"
    if _of(dict, wanted, place).get("type") != "json_schema":
        raise _refuse(f"{place}.type", "Input should be 'json_schema'")
    _known(wanted, place, "schema")
    schema: Mapping[str, Any] = _of(dict, wanted["schema"], f"{place}.schema")
    _check_closed(schema, f"{place}.schema")
    return schema


def _check_closed(schema: Any, place: str) -> None:
    if isinstance(schema, list):
        for inner in schema:
            _check_closed(inner, place)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise _refuse(place, "For 'object' type, 'additionalProperties' must be explicitly set to false")
    for word, inner in schema.items():
        if word in ("properties", "$defs") and isinstance(inner, dict):
            for each in inner.values():
                _check_closed(each, place)
        elif word in ("items", "anyOf", "allOf"):
            _check_closed(inner, place)


# --------------------------------------------------------------------------------------------------- tools


def _tools(tools: Any) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    names: set[str] = set()
    for place, tool in enumerate(_of(list, tools, "tools")):
        where = f"tools.{place}"
        if _of(dict, tool, where).get("type") not in (None, "custom"):
            continue  # a tool that the provider runs itself
        _known(
            tool,
            where,
            "name input_schema",
            "description strict defer_loading eager_input_streaming input_examples allowed_callers",
        )
        name = _of(str, tool["name"], f"{where}.name")
        if not _TOOL_NAME.fullmatch(name):
            raise _refuse(f"{where}.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
        if name in names:
            raise ProviderError(400, None, "tools: Tool names must be unique.")
        names.add(name)
        if _of(dict, tool["input_schema"], f"{where}.input_schema").get("type") != "object":
            raise _refuse(f"{where}.input_schema.type", "Input should be 'object'")
        found.append(tool)
    return found


def _chosen_tool(
    asked: Mapping[str, Any], tools: Mapping[Any, Mapping[str, Any]]
) -> tuple[str | None, Mapping[str, Any] | None]:
    if "tool_choice" not in asked:
        return None, None
    choice = _of(dict, asked["tool_choice"], "tool_choice")
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise _refuse("tool_choice", "Input tag does not match any of the expected tags")
    more = {"none": "", "tool": "disable_parallel_tool_use"}.get(kind, "disable_parallel_tool_use")
    _known(choice, f"tool_choice.{kind}", "name" if kind == "tool" else "", more)
    if not asked.get("tools"):
        raise _refuse("tool_choice", "may only be specified while providing tools")
    if kind == "tool":
        if choice["name"] not in tools:
            raise _refuse("tool_choice", "the tool was not found in tools")
        return choice["name"], tools[choice["name"]]["input_schema"]
    if kind == "any":
        name = next(iter(tools))
        return name, tools[name]["input_schema"]
    return None, None


# ------------------------------------------------------------------------------------------------- messages


def _system_tokens(system: Any) -> int:
    if isinstance(system, str):
        return count_tokens(system) + TOKENS_PER_MESSAGE if system else 0
    tokens = TOKENS_PER_MESSAGE
    for place, block in enumerate(_of(list, system, "system")):
        where = f"system.{place}"
        if _of(dict, block, where).get("type") != "text":
            raise _refuse(f"{where}.type", "Input should be 'text'")
        tokens += count_tokens(_text(block, where))
    return tokens


def _text(block: Mapping[str, Any], place: str) -> str:
    _known(block, place, "text", "citations")
    text: str = _of(str, block["text"], f"{place}.text")
    if not text:
        raise _refuse(place, "text content blocks must be non-empty")
    return text


class _Turns:
    """Reads the turns in order and keeps the tool calls without a result yet."""

    def __init__(self) -> None:
        self.tokens = 0
        self.open: set[str] = set()

    def read(self, messages: list[Any]) -> tuple[str, int]:
        """The text of the last user turn, and the tokens of all turns."""
        if not messages:
            raise _refuse("messages", "at least one message is required")
        last, role = "", ""
        for place, message in enumerate(messages):
            where = f"messages.{place}"
            _known(_of(dict, message, where), where, "role content")
            role = message["role"]
            if role not in ("user", "assistant"):
                raise _refuse(f"{where}.role", "Input should be 'user' or 'assistant'")
            said = self._turn(role, message["content"], where)
            if role == "user":
                last = said or last
            elif place == len(messages) - 1 and said != said.rstrip():
                raise _refuse("messages", "final assistant content cannot end with trailing whitespace")
        if self.open and role == "assistant":
            raise _refuse("messages", "`tool_use` ids were found without `tool_result` blocks after them")
        return last, self.tokens

    def _turn(self, role: str, content: Any, place: str) -> str:
        self.tokens += TOKENS_PER_MESSAGE
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not _of(list, content, f"{place}.content"):
            raise _refuse(place, "all messages must have non-empty content")
        waiting, self.open = self.open, set()
        texts: list[str] = []
        for number, block in enumerate(content):
            where = f"{place}.content.{number}"
            kind = _of(dict, block, where).get("type")
            if kind == "text":
                texts.append(_text(block, where))
                self.tokens += count_tokens(texts[-1])
            elif kind == "tool_result" and role == "user":
                identity = self._tool_result(block, where)
                if identity not in waiting:
                    raise _refuse(
                        where, f"unexpected `tool_use_id` found in `tool_result` blocks: {identity}"
                    )
                waiting.discard(identity)
            elif kind == "tool_use" and role == "assistant":
                self._tool_use(block, where)
            elif kind in ("thinking", "redacted_thinking") and role == "assistant":
                _known(block, where, "thinking signature" if kind == "thinking" else "data")
                if kind == "thinking" and not block["signature"]:
                    raise _refuse(where, "Invalid `signature` in `thinking` block")
            elif kind in ("image", "document") and role == "user":
                self._source(block, where)
            else:
                raise _refuse(where, "Input tag does not match any of the expected tags")
        if waiting:
            raise _refuse(place, "`tool_use` ids were found without `tool_result` blocks after them")
        return "".join(texts)

    def _tool_use(self, block: Mapping[str, Any], place: str) -> None:
        _known(block, place, "id name input", "caller")
        identity = _of(str, block["id"], f"{place}.id")
        if not _ID.fullmatch(identity):
            raise _refuse(f"{place}.id", "String should match pattern '^[a-zA-Z0-9_-]+$'")
        if identity in self.open:
            raise _refuse(place, "`tool_use` ids must be unique")
        self.open.add(identity)
        _of(str, block["name"], f"{place}.name")
        self.tokens += count_tokens(json_codec.dumps(_of(dict, block["input"], f"{place}.input")).decode())

    def _tool_result(self, block: Mapping[str, Any], place: str) -> str:
        _known(block, place, "tool_use_id", "content is_error")
        content = block.get("content", "")
        if isinstance(content, str):
            self.tokens += count_tokens(content)
        else:
            for number, part in enumerate(_of(list, content, f"{place}.content")):
                where = f"{place}.content.{number}"
                if _of(dict, part, where).get("type") == "text":
                    self.tokens += count_tokens(_text(part, where))
                else:
                    self._source(part, where)
        identity: str = _of(str, block["tool_use_id"], f"{place}.tool_use_id")
        return identity

    def _source(self, block: Mapping[str, Any], place: str) -> None:
        kind = block.get("type")
        if kind not in ("image", "document"):
            raise _refuse(place, "Input tag does not match any of the expected tags")
        _known(block, place, "source", "title context citations")
        where = f"{place}.source"
        source = _of(dict, block["source"], where)
        if source.get("type") == "url":
            _known(source, where, "url")
            if not _of(str, source["url"], f"{where}.url").startswith("https://"):
                raise _refuse(f"{where}.url", "Only HTTPS URLs are supported.")
        elif source.get("type") == "base64":
            _known(source, where, "media_type data")
            allowed = _IMAGES if kind == "image" else ("application/pdf",)
            if source["media_type"] not in allowed:
                raise _refuse(f"{where}.media_type", f"Input should be one of {', '.join(allowed)}")
            try:
                base64.b64decode(_of(str, source["data"], f"{where}.data"), validate=True)
            except binascii.Error:
                raise _refuse(f"{where}.data", "invalid base64 data") from None
        else:
            raise _refuse(where, "Input tag does not match any of the expected tags")
        self.tokens += TOKENS_PER_IMAGE
