"""Classifies a provider's error and makes a message that may be shown.

Shared by all formats and relays with errors in OpenAI's shape. What providers say is a table in
`wordings.py`; what is done about an error is decided in `calls/retry.py`.

A message keeps the provider's text, shortened, with everything that looks like a key redacted and long
quotations dropped. A provider may still quote a few words of a prompt ("invalid value: 'hello'"). Where not
even that may be logged, log ``type(error)``, ``error.code`` and ``error.param`` instead of the message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from fastroute import errors

from . import history, jsontext, limit_headers, waits
from .base import Target, request_id_of
from .wordings import CHARGED, CHARGED_CODES, SPELLINGS, WORDINGS

MESSAGE_LIMIT = 500
EXCERPT_LIMIT = 200
_READ_LIMIT = 4_000  # characters of a message that are read

# ------------------------------------------------------------------------------------------------ redaction

_SECRETS = re.compile(
    r"""
      (?P<scheme> \b(?:bearer|basic) ) \s+ [^\s"',;]{4,}
    | (?P<label> \b(?:x-)?(?:api|access|auth|secret|goog-api)[_\- ]?(?:key|token|id)s? (?:\s+provided)?
        | \b(?:authorization|password|passwd|secret|token|cookie) )
      ["']? \s* [:=] \s* ["']? (?!(?:bearer|basic)\s) [^\s"',;&]{3,}
    | (?<![\w-]) (?:sk|pk|rk|gsk|xai|hf|r8|ghp|glpat|nvapi|pplx|tgp|csk) [-_] [\w\-*.…]{6,}
    | \b AIza [\w-]{10,}
    | \b AKIA [A-Z0-9]{8,}
    | \b eyJ [\w\-.]{10,}
    | (?<![\w/+-]) (?=[a-zA-Z_\-/+]{0,64}[0-9]) [\w\-/+]{32,} ={0,2}
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
# An apostrophe inside a word does not open a quotation.
_QUOTATION = re.compile(r"(?<!\w)'[^']{65,}'(?!\w)|\"[^\"]{65,}\"|`[^`]{65,}`")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def _blot(match: re.Match[str]) -> str:
    kept = match["scheme"] or match["label"]
    return f"{kept} [redacted]" if kept else "[redacted]"


def redact(text: str, limit: int = MESSAGE_LIMIT, target: Target | None = None) -> str:
    """The text as one line of at most ``limit`` characters, without keys and long quotations."""
    if target is not None and target.key is not None:
        key = target.key.reveal()
        if len(key) >= 4:
            text = text.replace(key, "[redacted]")
    if len(text) > _READ_LIMIT:
        # The cut may go through a key, whose first half would no longer look like one: cut at a blank.
        text = text[:_READ_LIMIT]
        text = text[: max(text.rfind(blank) for blank in " \n\t") + 1]
    text = _BLANK.sub(" ", text).strip()
    text = _SECRETS.sub(_blot, text)
    text = _QUOTATION.sub("'[...]'", text)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def excerpt(body: bytes, target: Target | None = None) -> str:
    """The beginning of a body that is not an answer, redacted, for an error message."""
    return redact(body[: _READ_LIMIT + 4].decode("utf-8", "replace"), EXCERPT_LIMIT, target)


# ------------------------------------------------------------------------------------------- classification

# For errors without a status: inside a 200 answer, or in a stream.
_STATUS_BY_CODE = {
    "overloaded_error": 529,
    "overloaded": 529,
    "engine_overloaded": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "rate_limit": 429,
    "resource_exhausted": 429,
    "too_many_requests": 429,
    "slow_down": 429,
    "tokens": 429,
    "requests": 429,
    "invalid_request_error": 400,
    "invalid_request": 400,
    "bad_request": 400,
    "badrequesterror": 400,
    "invalid_argument": 400,
    "authentication_error": 401,
    "unauthorized": 401,
    "unauthenticated": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "forbidden": 403,
    "not_found_error": 404,
    "not_found": 404,
    "notfounderror": 404,
    "request_too_large": 413,
    "request_timeout": 408,
    "timeout_error": 504,
    "gateway_timeout_error": 504,
    "timeout": 504,
    "gateway_timeout": 504,
    "deadline_exceeded": 504,
    "service_unavailable": 503,
    "unavailable": 503,
    "bad_gateway": 502,
    # MiniMax's numbers.
    "1000": 500,
    "1001": 504,
    "1002": 429,
    "1013": 500,
    "1039": 429,
    "2013": 400,
    "2056": 429,
}
_CODE = re.compile(r"[\w.\-/ ]{1,80}", re.ASCII)


_BESIDE = ("code", "type", "error_type", "param", "retry_after", "retry_after_seconds", "retryAfter")


def error_object(body: Any) -> Any:
    """The error in a decoded body; None if the body is not an error.

    Known places: ``{"error": {...} or "text"}``, the same in a list of one, ``{"object": "error", ...}`` of
    vLLM, ``{"base_resp": {...}}`` of MiniMax, and ``{"detail": ...}`` or ``{"message": ...}`` where there are
    no choices.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if error:
        beside = {name: body[name] for name in _BESIDE if body.get(name)}
        # xAI and TGI put the code beside the text.
        return {"message": error, **beside} if isinstance(error, str) and beside else error
    status = body.get("base_resp")
    if isinstance(status, dict) and status.get("status_code"):
        return {"message": status.get("status_msg"), "code": status["status_code"]}
    if body.get("object") == "error" or (
        "choices" not in body and (body.get("detail") or isinstance(body.get("message"), str))
    ):
        return body
    return None


def from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    target: Target | None = None,
    now: float | None = None,
) -> errors.APIError:
    """The error for an answer with any status but 200.

    ``now``: the time, seconds since the epoch, for answers without a Date; default: this machine's clock.
    """
    lowered = limit_headers.lowered(headers)
    request_id = request_id_of(lowered)
    where = f"{target.endpoint} " if target is not None else ""
    if 300 <= status < 400:
        return errors.APIStatusError(
            f"{where}answered with a redirect ({status}); redirects are not followed, set base_url to the "
            "final address",
            status_code=status,
            request_id=request_id,
        )
    if status == 204:
        return errors.EmptyResponse("the answer is empty (204)", request_id=request_id, maybe_billed=True)
    if not 400 <= status < 600:
        return errors.UpstreamProtocolError(
            f"{where}answered with the unknown status {status}; expected 200 or 400 to 599",
            status_code=status,
            request_id=request_id,
            maybe_billed=True,
        )
    try:
        found = error_object(jsontext.loads(body))
    except ValueError:
        found = None
    now = time.time() if now is None else now
    sent = limit_headers.time_of(lowered, now)
    error = from_error(found if found is not None else excerpt(body, target), status, target, sent)
    error.request_id = request_id
    said = lowered.get("x-should-retry")
    if said in ("true", "false"):
        error.should_retry = said == "true"
    error.retry_after = limit_headers.parse_retry_after(lowered, now) or error.retry_after
    if error.retry_after is None and status == 429:
        error.retry_after = waits.wait_in_headers(lowered, now)
    return error


def from_error(
    error: Any, status: int | None = None, target: Target | None = None, now: float | None = None
) -> errors.APIStatusError:
    """The error for an error object or its bare text.

    Without ``status`` (an error inside a 200 answer or a stream) the object's code, type or text gives it; if
    none is known it counts as 500, since the provider had accepted the request. ``now``: when it was sent,
    seconds since the epoch; default: this moment.
    """
    fields = error if isinstance(error, dict) else {}
    code = _name(fields.get("code"))
    kind = _name(fields.get("type")) or _name(fields.get("status")) or _name(fields.get("error_type"))
    param = _name(fields.get("param"))
    text = (error if isinstance(error, str) else _text(fields))[: 2 * _READ_LIMIT]
    # Relays put the code into different fields; the names are distinct enough to look for them in all.
    named = {word.lower() for word in (code, kind, *_inner_codes(fields)) if word}
    given = status if status is not None else _own_status(fields)
    # A relay passes on its own provider's error, which concerns the request and not our account.
    handed_on = text + _handed_on(fields)
    found = next(
        (
            wording
            for wording in WORDINGS
            if wording.said(given, named, handed_on if wording.blame is errors.Blame.REQUEST else text)
        ),
        None,
    )
    if given is None:
        given = found.status if found is not None else _status_of(named)
    kept: type[errors.APIStatusError] = errors.for_status(given)
    blame = None
    if found is not None:
        kept, blame = found.error or kept, found.blame
    elif given == 402:
        kept = errors.QuotaExceededError
    respell: dict[str, Any] = {}
    if given in (400, 422) and param != "model" and issubclass(kept, _PARAMETER_ERRORS):
        respell = {f"refused_fields.{name}": True for name in history.refused_fields(text)}
        if param != "messages":
            param, changes = _respelled(param, text)
            respell.update(changes)
    shown = redact(text, MESSAGE_LIMIT, target)
    said = ", ".join(dict.fromkeys(part for part in (code, kind) if part))
    wait = None
    if issubclass(kept, _PASSING) or given in _PASSING_STATUSES:
        wait = waits.wait_in_error(fields, handed_on, time.time() if now is None else now)
    return kept(
        f"{given}{f' ({said})' if said else ''}: {shown or 'no message'}",
        status_code=given,
        retry_after=wait,
        code=code,
        type=kind,
        param=param,
        blame=blame,
        respell=respell,
        maybe_billed=given in CHARGED or code in CHARGED_CODES,
    )


# Refusals that pass with time: what they say of it is read, see `waits.py`.
_PASSING = (errors.RateLimitError, errors.ConflictError, errors.InternalServerError)
_PASSING_STATUSES = (408, 425, 498)
_PARAMETER_ERRORS = (errors.BadRequestError, errors.UnprocessableEntityError)


def _respelled(param: str | None, text: str) -> tuple[str | None, dict[str, Any]]:
    """The parameter that was refused, and the changes to a target with which it is spelled another way."""
    for spelling in SPELLINGS:
        match = spelling.refused.search(f"{param}: {text}")
        if match is not None:
            number = next((group for group in match.groups() if group), None)
            value = spelling.value if number is None else int(number)
            if spelling.change == "include_usage":
                param = "stream_options"
            if value is not None:
                return param, {spelling.change: value}
    return param, {}


def _name(value: Any) -> str | None:
    """A code or type as text; None if it does not look like one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**9 else None
    return redact(value, 80) or None if isinstance(value, str) and _CODE.fullmatch(value) else None


def _inner_codes(fields: Mapping[str, Any]) -> list[str]:
    found = []
    for place in ("innererror", "details", "metadata"):
        inner = fields.get(place)
        if isinstance(inner, dict):
            for key in ("code", "error_code", "error_type"):
                word = _name(inner.get(key))
                if word:
                    found.append(word)
    return found


def _text(fields: Mapping[str, Any]) -> str:
    """What the error says; Mistral's message is an object or a list where it is about a parameter."""
    for place in ("message", "detail", "title"):
        text = _said(fields.get(place))
        if text:
            return text
    return ""


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _said(value.get("detail") or value.get("message"))
    if isinstance(value, list):
        # FastAPI's validation errors: the place and the message. Their "input" is left out: it is the prompt.
        parts = []
        for item in value[:5]:
            if isinstance(item, dict):
                place = item.get("loc")
                where = ".".join(str(step) for step in place[:8]) if isinstance(place, list) else ""
                parts.append(f"{where}: {item.get('msg', '')}"[:200])
        return "; ".join(parts)
    return ""


def _handed_on(fields: Mapping[str, Any]) -> str:
    """The error of a relay's own provider, which OpenRouter keeps in ``metadata.raw``."""
    metadata = fields.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return f" {raw[:_READ_LIMIT]}" if isinstance(raw, str) else ""


def _own_status(fields: Mapping[str, Any]) -> int | None:
    for place in ("code", "status_code", "status", "http_code"):
        value = fields.get(place)
        if isinstance(value, str) and re.fullmatch(r"[45][0-9]{2}", value):
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


def _status_of(named: set[str]) -> int:
    statuses = [_STATUS_BY_CODE[word] for word in named if word in _STATUS_BY_CODE]
    # Where two names disagree one is vaguer and has the lower status, as "invalid_request_error" beside
    # "not_found".
    return max(statuses, default=500)
