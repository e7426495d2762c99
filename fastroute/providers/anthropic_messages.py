"""Translates messages in OpenAI's shape into Anthropic's system prompt and turns.

Roles differ: instructions are not a turn but come before all turns, a tool's result is part of a user's turn,
and consecutive turns of one role are joined. Blocks that already have Anthropic's shape are sent as given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastroute import errors

from . import jsontext

Block = Mapping[str, Any]

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_NATIVE = frozenset({"image", "document", "search_result", "tool_result", "tool_use"})
_NOT_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """``value`` if it is a mapping, or its ``to_dict()`` (a message of an earlier answer); otherwise None."""
    if isinstance(value, Mapping):
        return value
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        made = to_dict()
        return made if isinstance(made, Mapping) else None
    return None


def system_and_turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str | list[Block], list[dict[str, Any]]]:
    """The system prompt (empty if there is none) and the turns.

    Instructions in the middle of a conversation move to its beginning and keep their order.

    Raises:
        BadRequestError: for what the format cannot express; the message names the place.
    """
    system: list[Block] = []
    turns: list[tuple[str, list[Block]]] = []
    for place, given in enumerate(messages):
        path = f"messages[{place}]"
        message = as_mapping(given)
        if message is None:
            raise _refused(path, f"must be a mapping, not {type(given).__name__}")
        role = message.get("role")
        if message.get("name") is not None and role != "tool":
            raise _refused(f"{path}.name", "the anthropic format has no participant names; leave it out")
        if role in ("system", "developer"):
            system += _texts_only(message, path)
            continue
        if role == "assistant":
            blocks = _assistant(message, path)
        elif role == "user":
            blocks = _blocks(message.get("content"), f"{path}.content")
            if not blocks:
                raise _refused(f"{path}.content", "is empty; the anthropic format requires content")
        elif role == "tool":
            role, blocks = "user", [_tool_result(message, path)]
        else:
            raise _refused(
                f"{path}.role", "unknown role; use one of system, developer, user, assistant, tool"
            )
        if not blocks:
            continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if turns:
        _trim_prefill(turns)
    if not turns:
        raise _refused("messages", "has only instructions; the anthropic format requires a user message")
    prompt: str | list[Block] = system
    if all(block.keys() == _PLAIN for block in system):
        prompt = "\n\n".join(block["text"] for block in system)
    return prompt, [{"role": role, "content": _short(blocks)} for role, blocks in turns]


_PLAIN = {"type", "text"}


def _refused(path: str, why: str) -> errors.BadRequestError:
    return errors.BadRequestError(f"{path}: {why}", param="messages")


def _short(blocks: list[Block]) -> str | list[Block]:
    if len(blocks) == 1 and blocks[0].keys() == _PLAIN:
        text: str = blocks[0]["text"]
        return text
    return blocks


def _trim_prefill(turns: list[tuple[str, list[Block]]]) -> None:
    """Strips trailing blanks, which are refused, from a final assistant message (the start of the answer)."""
    role, blocks = turns[-1]
    text = blocks[-1].get("text")
    if role == "assistant" and blocks[-1].get("type") == "text" and isinstance(text, str):
        if text.strip():
            blocks[-1] = {**blocks[-1], "text": text.rstrip()}
        else:
            blocks.pop()
            if not blocks:
                turns.pop()


# ----------------------------------------------------------------------------------------------------- roles


def _texts_only(message: Mapping[str, Any], path: str) -> list[Block]:
    blocks = _blocks(message.get("content"), f"{path}.content")
    for block in blocks:
        if block.get("type") != "text":
            raise _refused(
                f"{path}.content", "must be text only; the anthropic format has no other instructions"
            )
    return blocks


def _assistant(message: Mapping[str, Any], path: str) -> list[Block]:
    for name in ("function_call", "audio"):
        if message.get(name) is not None:
            raise _refused(f"{path}.{name}", "the anthropic format has no such field; leave it out")
    whole = message.get("content_blocks")
    if isinstance(whole, (list, tuple)) and whole:
        # An earlier answer as received; its other fields cannot restore the order of these blocks.
        return _mappings(whole, f"{path}.content_blocks")
    blocks: list[Block] = []
    thoughts = message.get("thinking_blocks")
    if isinstance(thoughts, (list, tuple)):
        blocks += _mappings(thoughts, f"{path}.thinking_blocks")
    blocks += _blocks(message.get("content"), f"{path}.content")
    refusal = message.get("refusal")
    if isinstance(refusal, str):
        blocks += _text(refusal)
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, (list, tuple)):
            raise _refused(f"{path}.tool_calls", f"must be a list, not {type(calls).__name__}")
        blocks += [_tool_use(call, f"{path}.tool_calls[{place}]") for place, call in enumerate(calls)]
    return blocks


def _mappings(values: Iterable[Any], path: str) -> list[Block]:
    blocks: list[Block] = []
    for place, value in enumerate(values):
        block = as_mapping(value)
        if block is None:
            raise _refused(f"{path}[{place}]", f"must be a mapping, not {type(value).__name__}")
        # Items of lists in a stream carry an index, which is not Anthropic's.
        blocks.append({name: part for name, part in block.items() if name != "index"})
    return blocks


def _tool_use(given: Any, path: str) -> Block:
    call = as_mapping(given)
    function = as_mapping(call.get("function")) if call is not None else None
    if call is None or function is None:
        raise _refused(path, "must be a function call")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise _refused(f"{path}.function.name", "must be a non-empty string")
    value: Any = arguments
    if isinstance(arguments, str):
        try:
            value = jsontext.loads(arguments) if arguments.strip() else {}
        except ValueError:
            value = None
    elif arguments is None:
        value = {}
    if not isinstance(value, Mapping):
        raise _refused(f"{path}.function.arguments", "must be a JSON object for the anthropic format")
    return {"type": "tool_use", "id": _id(call.get("id"), f"{path}.id"), "name": name, "input": value}


def _tool_result(message: Mapping[str, Any], path: str) -> Block:
    made: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": _id(message.get("tool_call_id"), f"{path}.tool_call_id"),
    }
    blocks = _blocks(message.get("content"), f"{path}.content")
    if blocks:
        made["content"] = _short(blocks)
    for name in ("is_error", "cache_control"):
        if message.get(name) is not None:
            made[name] = message[name]
    return made


def _id(value: Any, path: str) -> str:
    """A call's id with other characters than the allowed ones replaced, the same in a call and its result."""
    if not isinstance(value, str) or not value:
        raise _refused(path, "must be a non-empty string")
    return _NOT_AN_ID.sub("_", value)


# --------------------------------------------------------------------------------------------------- content


def _text(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text else []


def _blocks(content: Any, path: str) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return _text(content)
    if not isinstance(content, (list, tuple)):
        raise _refused(path, f"must be text or a list of parts, not {type(content).__name__}")
    blocks: list[Block] = []
    for place, given in enumerate(content):
        where = f"{path}[{place}]"
        part = as_mapping(given)
        if part is None:
            raise _refused(where, f"must be a mapping, not {type(given).__name__}")
        kind = part.get("type")
        if kind in ("text", "refusal"):
            text = part.get(kind)
            if not isinstance(text, str):
                raise _refused(f"{where}.{kind}", "must be a string")
            if text:
                blocks.append(part if kind == "text" else {"type": "text", "text": text})
        elif kind == "image_url":
            blocks.append(_with_cache_control(part, {"type": "image", "source": _image(part, where)}))
        elif kind == "file":
            blocks.append(_with_cache_control(part, _document(part, where)))
        elif isinstance(kind, str) and kind in _NATIVE:
            blocks.append(part)
        else:
            named = isinstance(kind, str) and re.fullmatch(r"\w{1,40}", kind)
            raise _refused(
                f"{where}.type",
                f"the anthropic format has no such content{f' as {kind}' if named else ''}; "
                f"use one of text, image_url, file, {', '.join(sorted(_NATIVE))}",
            )
    return blocks


def _with_cache_control(part: Mapping[str, Any], block: dict[str, Any]) -> Block:
    if "cache_control" in part:
        block["cache_control"] = part["cache_control"]
    return block


def _image(part: Mapping[str, Any], path: str) -> Block:
    given = part.get("image_url")
    described = as_mapping(given)
    url = described.get("url") if described is not None else given
    if not isinstance(url, str):
        raise _refused(f"{path}.image_url.url", "must be a string")
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    media_type, data = _data_url(url, f"{path}.image_url.url", "an https: or data: URL")
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type
    if media_type not in _IMAGE_TYPES:
        raise _refused(
            f"{path}.image_url.url", f"has an unknown media type; use one of {', '.join(_IMAGE_TYPES)}"
        )
    return {"type": "base64", "media_type": media_type, "data": data}


def _document(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    file = as_mapping(part.get("file"))
    data_url = file.get("file_data") if file is not None else None
    if file is None or not isinstance(data_url, str):
        raise _refused(
            f"{path}.file.file_data", "must be a data: URL; the anthropic format has no other files"
        )
    media_type, data = _data_url(data_url, f"{path}.file.file_data", "a data: URL")
    if media_type != "application/pdf":
        raise _refused(f"{path}.file.file_data", "must have the media type application/pdf")
    made: dict[str, Any] = {
        "type": "document",
        "source": {"type": "base64", "media_type": media_type, "data": data},
    }
    if isinstance(file.get("filename"), str):
        made["title"] = file["filename"]
    return made


def _data_url(url: str, path: str, wanted: str) -> tuple[str, str]:
    """Media type and Base64 text of a data: URL."""
    head, comma, _ = url[:200].partition(",")
    if not (comma and head.lower().startswith("data:") and head.lower().endswith(";base64")):
        raise _refused(path, f"must be {wanted} with Base64 data")
    return head[5:].partition(";")[0].strip().lower(), url[len(head) + 1 :]
