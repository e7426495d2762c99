"""Reading an answer's JSON with suspicion: the document, and fields that are of the right kind or nothing.

Shared by all formats. What the fields mean is a format's; JSON's corners are `jsontext.py`'s.
"""

from __future__ import annotations

import time
from typing import Any

from fastroute import errors

from . import error_reader, jsontext
from .base import Target
from .sse import ServerSentEvent

_MAX_COUNT = 1 << 53  # tokens; a larger figure is a fault, not a count


def malformed(what: str) -> errors.UpstreamProtocolError:
    return errors.UpstreamProtocolError(what, maybe_billed=True)


def document(body: bytes, target: Target) -> Any:
    try:
        return jsontext.loads(body)
    except jsontext.TruncatedJSON:
        if not body.strip():
            raise errors.EmptyResponse("the answer is empty", maybe_billed=True) from None
        raise errors.UpstreamTruncated("the answer's JSON stops in the middle", maybe_billed=True) from None
    except ValueError as error:
        reason = str(error)
        if not body.lstrip().startswith((b"{", b"[")):
            reason += f"; it begins: {error_reader.excerpt(body, target)}"
        raise malformed(f"the answer is {reason}") from None


def event_json(event: ServerSentEvent, target: Target) -> Any:
    """The value in an event of a stream; one named ``error`` is raised as what its text says."""
    try:
        return jsontext.loads(event.data)
    except jsontext.TruncatedJSON:
        # Only the end of the input cuts an event off.
        raise errors.UpstreamTruncated(
            "a stream event's JSON stops in the middle", maybe_billed=True
        ) from None
    except ValueError as error:
        if event.event == "error":
            raise error_reader.from_error(event.data, None, target) from None
        raise malformed(f"a stream event is {error}") from None


def string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def this_second() -> int:
    """When an answer came, for formats whose answers do not say; seconds since the epoch."""
    return int(time.time())


def count(value: Any) -> int | None:
    """A number of tokens or the like, or None where it is not a sane one."""
    if type(value) is int and 0 <= value <= _MAX_COUNT:
        return value
    return None
