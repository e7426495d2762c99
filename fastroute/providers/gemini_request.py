"""Translates a request in OpenAI's shape into the body of a Gemini ``generateContent`` request.

Parameters that Gemini does not have are refused by name, unless their value asks for nothing; labels and
hints are left out. Unknown parameters are sent at the top level of the body as given, so ``safetySettings``,
``cachedContent`` and the caller's own ``generationConfig`` (merged over ours) work. A part or tool that
already has Gemini's shape is sent as given.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from fastroute import errors, types

from . import jsontext
from .base import Target

# Labels of the caller and hints to OpenAI's own caches and streams; they do not change the answer.
LABELS = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "stream_options"}
)
# The thinking budget of models before version 3, in tokens; later models take a level instead.
_BUDGETS = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 24576,
    "max": 24576,
}
_LEVELS = {"none": "minimal", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high"}
_VERSION = re.compile(r"gemini-(\d+)")
# From version 3 on a call in the history must have the signature of the thoughts that led to it. A call made
# by another model has none; Gemini documents this value for it.
UNSIGNED = "skip_thought_signature_validator"

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_TRANSLATED = frozenset(
    {
        *_SAMPLING,
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "response_format",
        "reasoning_effort",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "modalities",
        "service_tier",
        "stream",
        "generationConfig",
        # Taken from the request itself; values in the parameters are ignored.
        "model",
        "messages",
        "contents",
    }
)
# Parameters that Gemini does not have, with the values that ask for nothing.
_WITHOUT_A_WORD: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template_kwargs": ({},),
    "function_call": (),
    "functions": (),
    "guided_json": (),
    "logit_bias": ({},),
    "metadata": ({},),
    "min_p": (0,),
    "prediction": (),
    "reasoning": ({},),
    "repetition_penalty": (1,),
    "store": (False,),
    "thinking": ({},),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NOTHING: Mapping[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "top_logprobs": 0,
}
_SERVICE_TIERS = {"auto": None, "default": "standard", "flex": "flex", "priority": "priority"}


def body_of(request: types.Request, target: Target) -> dict[str, Any]:
    """The body as a mapping.

    Raises:
        BadRequestError: if Gemini cannot express the request; ``param`` names the parameter.
    """
    params = request.params
    system, contents = _conversation(request.messages, target.upstream)
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    tools, validated = _tools(params.get("tools"))
    if tools:
        body["tools"] = tools
    calling = _calling(params, validated)
    if calling:
        body["toolConfig"] = {"functionCallingConfig": calling}
    generation = _generation(params, target)
    if generation:
        body["generationConfig"] = generation
    tier = params.get("service_tier")
    if tier is not None:
        if tier not in _SERVICE_TIERS:
            raise _refused("service_tier", f"must be one of {', '.join(_SERVICE_TIERS)}")
        if _SERVICE_TIERS[tier] is not None:
            body["serviceTier"] = _SERVICE_TIERS[tier]
    for name, value in params.items():
        if name in _WITHOUT_A_WORD:
            if value is not None and value not in _WITHOUT_A_WORD[name]:
                raise _refused(name, "the gemini format has no such parameter; leave it out")
        elif name not in _TRANSLATED and name not in LABELS:
            body[name] = value
    return body


def _refused(path: str, why: str) -> errors.BadRequestError:
    return errors.BadRequestError(f"{path}: {why}", param=re.split(r"[.\[]", path)[0])


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    """``value`` if it is a mapping, or its ``to_dict()`` (a message of an earlier answer)."""
    if isinstance(value, Mapping):
        return value
    to_dict = getattr(value, "to_dict", None)
    found = to_dict() if callable(to_dict) else None
    if not isinstance(found, Mapping):
        raise _refused(path, f"must be a mapping, not {type(value).__name__}")
    return found


def version_of(upstream: str) -> int:
    """The major version in a model's name; 1000 if it has none, since such names mean the newest model."""
    found = _VERSION.search(upstream)
    return int(found[1]) if found else 1000


# ------------------------------------------------------------------------------------------------- messages


def _conversation(
    messages: Sequence[Mapping[str, Any]], upstream: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parts of all system messages, wherever they are, and the turns of user and model."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # function names by call id
    answering = False
    for place, each in enumerate(messages):
        path = f"messages[{place}]"
        message = _mapping(each, path)
        role = message.get("role")
        if message.get("name") is not None and role != "tool":
            raise _refused(f"{path}.name", "the gemini format has no participant names; leave it out")
        if role == "tool":
            part = _result(message, names, path)
            # All results of one turn go into one user turn, or Gemini treats the others as missing.
            if answering:
                contents[-1]["parts"].append(part)
            else:
                contents.append({"role": "user", "parts": [part]})
        elif role in ("system", "developer"):
            system += _parts(message.get("content"), path)
        elif role == "user":
            contents.append({"role": "user", "parts": _parts(message.get("content"), path)})
        elif role == "assistant":
            parts = _said(message, names, path, version_of(upstream) >= 3)
            if parts:
                contents.append({"role": "model", "parts": parts})
        else:
            raise _refused(
                f"{path}.role", "unknown role; use one of system, developer, user, assistant, tool"
            )
        answering = role == "tool"
    if not contents:
        raise _refused("messages", "has only system messages; the gemini format requires a user message")
    return system, contents


def _said(message: Mapping[str, Any], names: dict[str, str], path: str, signed: bool) -> list[dict[str, Any]]:
    whole = message.get("content_parts")
    if isinstance(whole, (list, tuple)) and whole and not any("type" in part for part in whole):
        return _as_received(whole, message.get("tool_calls"), names, path)
    content = message.get("content")
    parts = _parts(content, path) if content else []
    signature = _signature(message)
    if signature is not None and parts and "text" in parts[-1]:
        parts[-1]["thoughtSignature"] = signature
    images = message.get("images")
    for place, each in enumerate(images if isinstance(images, (list, tuple)) else ()):
        image = _mapping(each, f"{path}.images[{place}]")
        parts.append(_part(image, f"{path}.images[{place}]"))
        signature = _signature(image)
        if signature is not None:
            parts[-1]["thoughtSignature"] = signature
    if message.get("refusal"):
        parts.append({"text": str(message["refusal"])})
    if message.get("function_call"):
        raise _refused(f"{path}.function_call", "the gemini format has no such field; use tool_calls")
    for place, each in enumerate(message.get("tool_calls") or ()):
        where = f"{path}.tool_calls[{place}]"
        call = _mapping(each, where)
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise _refused(where, "must be a function call; the gemini format has no other tool calls")
        name, call_id = function.get("name"), call.get("id")
        made: dict[str, Any] = {"name": name, "args": _arguments(function.get("arguments"), where)}
        if isinstance(call_id, str):
            made["id"] = call_id
            names[call_id] = str(name)
        part: dict[str, Any] = {"functionCall": made}
        signature = _signature(call)
        if signature is None and signed and place == 0:
            signature = UNSIGNED
        if signature is not None:
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _as_received(whole: Sequence[Any], calls: Any, names: dict[str, str], path: str) -> list[dict[str, Any]]:
    """The parts of an earlier answer; its other fields cannot restore their order."""
    parts = []
    ids = iter(calls if isinstance(calls, (list, tuple)) else ())
    for place, each in enumerate(whole):
        where = f"{path}.content_parts[{place}]"
        # Items of lists in a stream carry an index, which is not Gemini's.
        part = {name: value for name, value in _mapping(each, where).items() if name != "index"}
        made = part.get("functionCall")
        if isinstance(made, Mapping):
            # The results name a call by the id that it has in ``tool_calls``.
            call = next(ids, None)
            call_id = _mapping(call, where).get("id") if call is not None else None
            if isinstance(call_id, str):
                names[call_id] = str(made.get("name"))
                part["functionCall"] = {**made, "id": call_id}
        parts.append(part)
    return parts


def _signature(signed: Mapping[str, Any]) -> str | None:
    """The thought signature in ``extra_content``, the place that Google's OpenAI-compatible API uses."""
    extra = signed.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    found = google.get("thought_signature") if isinstance(google, Mapping) else None
    return found if isinstance(found, str) else None


def _arguments(text: Any, path: str) -> Any:
    if isinstance(text, Mapping) or not text:
        return text or {}
    try:
        found = jsontext.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _refused(
            f"{path}.function.arguments", "must be the text of a JSON object for the gemini format"
        )
    return found


def _result(message: Mapping[str, Any], names: Mapping[str, str], path: str) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    name = names.get(call_id) if isinstance(call_id, str) else None
    if name is None:
        raise _refused(f"{path}.tool_call_id", "must be the id of a tool call in an earlier message")
    content = message.get("content")
    text = content
    if isinstance(content, (list, tuple)):
        texts = [part.get("text") for part in _parts(content, path)]
        if not all(isinstance(each, str) for each in texts):
            raise _refused(
                f"{path}.content", "must be text only; the gemini format has no other tool results"
            )
        text = "".join(each for each in texts if each)
    try:
        response = jsontext.loads(text) if isinstance(text, str) else text
    except ValueError:
        response = None
    if not isinstance(response, Mapping):
        # Gemini requires an object; its documentation names this key for any other value.
        response = {"result": text if isinstance(text, str) else ""}
    return {"functionResponse": {"id": call_id, "name": name, "response": response}}


def _parts(content: Any, path: str) -> list[dict[str, Any]]:
    if content is None:
        return [{"text": ""}]
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, (list, tuple)):
        raise _refused(f"{path}.content", f"must be text or a list of parts, not {type(content).__name__}")
    return [_part(part, f"{path}.content[{place}]") for place, part in enumerate(content)]


def _part(part: Any, path: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    part = _mapping(part, path)
    kind = part.get("type")
    if kind is None:
        return dict(part)  # already in Gemini's shape
    if kind in ("text", "refusal"):
        return {"text": part.get(kind)}
    value = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        url = value.get("url") if isinstance(value, Mapping) else value
        return _media(url, f"{path}.image_url.url", "image/jpeg")
    if kind == "input_audio" and isinstance(value, Mapping):
        return {"inlineData": {"mimeType": f"audio/{value.get('format')}", "data": value.get("data")}}
    if kind == "file" and isinstance(value, Mapping) and isinstance(value.get("file_data"), str):
        return _media(value["file_data"], f"{path}.file.file_data", "application/pdf")
    raise _refused(
        path,
        "the gemini format has no such content; use one of text, image_url, input_audio, file with file_data",
    )


_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*(;base64)?,", re.ASCII)


def _media(url: Any, path: str, usual: str) -> dict[str, Any]:
    """The data of a data: URL, or the address of a file that Gemini fetches."""
    if not isinstance(url, str):
        raise _refused(path, f"must be a URL, not {type(url).__name__}")
    if url[:5].lower() == "data:":
        found = _DATA_URL.match(url)
        if found is None:
            raise _refused(path, "is not a valid data: URL; write it like data:image/png;base64,…")
        data = url[found.end() :]
        if found[2] is None:
            import base64

            data = base64.b64encode(unquote_to_bytes(data)).decode()
        return {"inlineData": {"mimeType": found[1] or usual, "data": data}}
    try:
        guessed, _ = mimetypes.guess_type(urlsplit(url).path)
    except ValueError:
        raise _refused(path, "is not a valid URL") from None
    return {"fileData": {"mimeType": guessed or usual, "fileUri": url}}


# ---------------------------------------------------------------------------------------------------- tools


def _tools(tools: Any) -> tuple[list[dict[str, Any]], bool]:
    """The declarations, and whether one of them is ``strict``."""
    declared: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    strict = False
    for place, each in enumerate(_sequence(tools, "tools")):
        tool = _mapping(each, f"tools[{place}]")
        if "type" not in tool:
            own.append(dict(tool))  # Gemini's own, such as {"googleSearch": {}}
            continue
        function = tool.get("function")
        if tool["type"] != "function" or not isinstance(function, Mapping):
            raise _refused(f"tools[{place}]", "must be a function, or a tool of Gemini's own without a type")
        declaration = {"name": function.get("name")}
        if function.get("description"):
            declaration["description"] = function["description"]
        if function.get("parameters"):
            declaration["parametersJsonSchema"] = function["parameters"]
        declared.append(declaration)
        strict = strict or function.get("strict") is True
    return ([{"functionDeclarations": declared}] if declared else []) + own, strict


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return value
    raise _refused(name, f"must be a list, not {type(value).__name__}")


def _calling(params: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    if params.get("parallel_tool_calls") is False and params.get("tools"):
        raise _refused("parallel_tool_calls", "cannot be false in the gemini format; leave it out")
    choice = params.get("tool_choice")
    if choice is None:
        return {"mode": "VALIDATED"} if strict else {}
    if isinstance(choice, str):
        mode = {"auto": "VALIDATED" if strict else "AUTO", "none": "NONE", "required": "ANY"}.get(choice)
        if mode is None:
            raise _refused("tool_choice", "must be auto, none, required, or an object that names a function")
        return {"mode": mode}
    choice = _mapping(choice, "tool_choice")
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, Mapping):
        functions = [_mapping(tool, "tool_choice").get("function") for tool in allowed.get("tools") or ()]
        mode = "ANY" if allowed.get("mode") == "required" else "VALIDATED"
    else:
        functions, mode = [choice.get("function")], "ANY"
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    if not names or len(names) != len(functions):
        raise _refused("tool_choice", "must name a function in the gemini format")
    return {"mode": mode, "allowedFunctionNames": names}


# ------------------------------------------------------------------------------------------------ parameters


def _generation(params: Mapping[str, Any], target: Target) -> dict[str, Any]:
    found: dict[str, Any] = {
        theirs: params[ours]
        for ours, theirs in _SAMPLING.items()
        if params.get(ours) is not None and params[ours] != _NOTHING.get(ours)
    }
    limit = params.get("max_completion_tokens")
    if limit is None:
        limit = params.get("max_tokens")
    if isinstance(limit, int) and not isinstance(limit, bool):
        most = target.max_output
        limit = None if limit < 0 else limit if most is None else min(limit, most)
    if limit is not None:
        found["maxOutputTokens"] = limit
    stop = params.get("stop")
    if stop is not None:
        found["stopSequences"] = [stop] if isinstance(stop, str) else stop
    found.update(_answer_format(params.get("response_format")))
    effort = params.get("reasoning_effort")
    if effort is not None:
        found["thinkingConfig"] = _thinking(effort, target.upstream)
    modalities = params.get("modalities")
    if modalities is not None and list(modalities) != ["text"]:
        raise _refused("modalities", 'must be ["text"] in the gemini format')
    return _laid_over(found, params.get("generationConfig"))


def _answer_format(wanted: Any) -> Iterator[tuple[str, Any]]:
    if wanted is None:
        return
    wanted = _mapping(wanted, "response_format")
    kind = wanted.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise _refused("response_format.type", "must be text, json_object or json_schema")
    if kind == "text":
        return
    yield "responseMimeType", "application/json"
    if kind == "json_schema":
        schema = _mapping(wanted.get("json_schema"), "response_format.json_schema").get("schema")
        if schema is not None:
            yield "responseJsonSchema", schema


def _thinking(effort: Any, upstream: str) -> dict[str, Any]:
    if not isinstance(effort, str) or effort not in _BUDGETS:
        raise _refused("reasoning_effort", f"must be one of {', '.join(_BUDGETS)}")
    if version_of(upstream) < 3:
        return {"thinkingBudget": _BUDGETS[effort]}
    level = _LEVELS.get(effort, "high")
    # The pro models cannot turn thinking off.
    return {"thinkingLevel": "low" if level == "minimal" and "pro" in upstream else level}


def _laid_over(ours: dict[str, Any], theirs: Any) -> dict[str, Any]:
    if theirs is None:
        return ours
    merged = dict(ours)
    for name, value in _mapping(theirs, "generationConfig").items():
        before = merged.get(name)
        if isinstance(before, dict) and isinstance(value, Mapping):
            merged[name] = {**before, **value}
        else:
            merged[name] = value
    return merged


__all__ = ["LABELS", "UNSIGNED", "body_of", "version_of"]
