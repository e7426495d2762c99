"""Fits the messages of earlier answers to the endpoint that they are sent to.

A conversation may change its provider. An answer of one has fields that another refuses, and ids of tool
calls in a form that another does not take. What an endpoint refuses is known here for some hosts, and is
learned from its refusals (`wordings.SPELLINGS`, `refused_fields`) for all others.

Only what is sent is changed: the program keeps its own messages, so their fields go to an endpoint that takes
them, and results name calls by the ids that the program knows. An id that does not fit is replaced by one
that is computed from it, the same in a call and its result and in every request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# Fields that make a message what it is: they are left out only where they are null.
_CORE = frozenset(
    {
        "arguments",
        "content",
        "custom",
        "function",
        "id",
        "input",
        "name",
        "role",
        "tool_call_id",
        "tool_calls",
        "type",
    }
)
# What fastroute keeps of answers in other formats, and what the SDK's `parse` adds to a message. Servers of
# OpenAI's format do not take them.
OWN_FIELDS = frozenset({"content_blocks", "content_parts", "parsed", "parsed_arguments"})
# What the answers of some servers have beside OpenAI's fields.
_FOREIGN = OWN_FIELDS | {
    "citations",
    "extra_content",
    "images",
    "provider_specific_fields",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "thinking",
    "thinking_blocks",
}
# Parts of a content with reasoning. Where `_NO_THOUGHTS` is among the refused fields, they are left out.
_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
_NO_THOUGHTS = "content.thinking"
# By host: the fields that it refuses, and the form of ids that it demands.
_HOSTS: Mapping[str, tuple[frozenset[str], str]] = {
    "api.openai.com": (_FOREIGN | {_NO_THOUGHTS}, "short"),
    "api.mistral.ai": (_FOREIGN | {"annotations", "audio", "function_call", "refusal"}, "nine"),
    "codestral.mistral.ai": (_FOREIGN | {"annotations", "audio", "function_call", "refusal"}, "nine"),
    "api.groq.com": (_FOREIGN - {"reasoning"} | {_NO_THOUGHTS}, ""),
    "api.cerebras.ai": (_FOREIGN - {"reasoning"} | {_NO_THOUGHTS}, ""),
}
_AZURE = re.compile(r"\.(?:openai|cognitiveservices|services\.ai)\.azure\.com\Z")


def known(base_url: str) -> tuple[frozenset[str], str]:
    """The fields of messages that a host refuses, and the form of call ids that it demands (empty: any)."""
    try:
        host = urlsplit(base_url).hostname or ""
    except ValueError:
        host = ""
    if _AZURE.search(host):
        host = "api.openai.com"
    return _HOSTS.get(host, (OWN_FIELDS, ""))


# ---------------------------------------------------------------------------------------------- refusals

_MOST_NAMES = 8
_NAME = r"(?P<name>[A-Za-z_]\w{0,63})"
# A place inside of messages, such as ``messages[1].tool_calls[0].`` or ``body.messages.1.assistant.``
_IN_MESSAGES = r"messages?\W{0,2}\d+\]?(?:\.?\[?\w{1,40}\]?){0,6}?[.'\]]{1,2}"
_REFUSED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Groq, Cerebras
        rf"property '(?:[\w.\[\]]*\.)?{_NAME}' is (?:unsupported|not supported|not allowed)",
        # Groq, for models without reasoning
        rf"messages\[\w+\]\.{_NAME}: \w+ is not supported",
        # Mistral and other servers with pydantic; Fireworks
        rf"{_IN_MESSAGES}{_NAME}: extra inputs are not permitted",
        rf"extra inputs are not permitted, field: '{_IN_MESSAGES}{_NAME}'",
        # OpenAI
        rf"(?:unknown|unrecognized|unsupported) parameter: '{_IN_MESSAGES}{_NAME}'",
        rf"additional properties are not allowed \('{_NAME}' (?:was|were) unexpected\)[^a-z]{{0,6}}messages",
        # Google
        rf"unknown name \W{{0,3}}{_NAME}\W{{1,3}} at '?messages",
        # Servers in Rust and Go
        rf"messages\W{{0,2}}\d{{0,6}}\W{{0,4}}unknown field \W?{_NAME}",
    )
)


def refused_fields(text: str) -> Sequence[str]:
    """The fields of messages that an error's text says are not taken, at most eight."""
    found: dict[str, None] = {}
    for pattern in _REFUSED:
        for match in pattern.finditer(text):
            found.setdefault(match["name"])
    return list(found)[:_MOST_NAMES]


# ---------------------------------------------------------------------------------------------- messages


def fit(
    messages: Iterable[Mapping[str, Any]], refused: frozenset[str], call_ids: str
) -> list[Mapping[str, Any]]:
    """The messages without the refused fields, and with call ids in the form ``call_ids``."""
    return [_fitted(message, refused, call_ids) for message in messages]


def _fitted(given: Any, refused: frozenset[str], call_ids: str) -> Any:
    message = given if isinstance(given, Mapping) else _as_dict(given)
    if message is None:
        return given
    kept = _without(message, refused)
    if type(kept.get("content")) is list and message.get("role") in ("assistant", "tool"):
        kept["content"] = _fitted_content(kept["content"], refused) or None
    calls = message.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        kept["tool_calls"] = [_fitted_call(call, refused, call_ids) for call in calls]
    if call_ids and isinstance(message.get("tool_call_id"), str):
        kept["tool_call_id"] = call_id(message["tool_call_id"], call_ids)
    lost = len(kept) < len(message) or (kept.get("content") is None and message.get("content") is not None)
    if lost and message.get("role") == "assistant" and not kept.get("content"):
        # What is left must still say something; a refusal is what the model said.
        refusal = message.get("refusal")
        if "refusal" not in kept and isinstance(refusal, str):
            kept["content"] = refusal
        elif not kept.get("tool_calls") and not kept.get("function_call"):
            kept["content"] = ""
    elif lost and kept.get("content") is None:
        kept["content"] = ""  # a tool's result that has nothing in it
    return kept


def _fitted_content(parts: list[Any], refused: frozenset[str]) -> list[Any]:
    """The parts of an answer's content, or of a tool's result, as a request may have them.

    Empty lists, which clients send beside tool calls, are refused by most servers. What an answer's text has
    beside it, like citations, is in no request.
    """
    kept = []
    for part in parts:
        if isinstance(part, Mapping):
            if _NO_THOUGHTS in refused and part.get("type") in _THOUGHTS:
                continue
            if part.get("type") == "text" and "annotations" in part:
                part = {name: value for name, value in part.items() if name != "annotations"}
        kept.append(part)
    return kept


def _fitted_call(given: Any, refused: frozenset[str], call_ids: str) -> Any:
    call = given if isinstance(given, Mapping) else _as_dict(given)
    if call is None:
        return given
    kept = _without(call, refused)
    function = call.get("function")
    if isinstance(function, Mapping):
        kept["function"] = _without(function, refused)
    if call_ids and isinstance(call.get("id"), str):
        kept["id"] = call_id(call["id"], call_ids)
    return kept


def _as_dict(given: Any) -> Mapping[str, Any] | None:
    to_dict = getattr(given, "to_dict", None)
    made = to_dict() if callable(to_dict) else None
    return made if isinstance(made, Mapping) else None


def _without(value: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    return {
        name: item
        for name, item in value.items()
        if name not in refused or (item is not None and name in _CORE)
    }


# ---------------------------------------------------------------------------------------------- call ids

_SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_SHORT = 40


def call_id(identity: str, form: str) -> str:
    """A call's id in the form that an endpoint demands; unchanged if it has it.

    Args:
        identity: the id.
        form: ``nine`` for nine letters and digits (Mistral), ``short`` for at most 40 characters (OpenAI).
    """
    if form == "nine" and not _NINE.fullmatch(identity):
        number = int.from_bytes(_digest(identity), "big")
        signs = []
        for _ in range(9):
            number, rest = divmod(number, len(_SIGNS))
            signs.append(_SIGNS[rest])
        return "".join(signs)
    if form == "short" and len(identity) > _SHORT:
        return f"call_{_digest(identity).hex()}"
    return identity


def _digest(identity: str) -> bytes:
    # Not for secrecy: two ids of a conversation must not become one.
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()
