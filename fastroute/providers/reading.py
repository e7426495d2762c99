"""Reads an answer's JSON without trusting it: a field of the wrong type counts as absent or is an error.

Shared by all formats.
"""

from __future__ import annotations

import time
from typing import Any

from fastroute import errors
from fastroute._core import JSONBoundsError

from . import error_reader, jsontext
from .base import Target
from .decoder import StreamDecoder
from .sse import ServerSentEvent

# Each event repeats what stands around its part of the answer.
_EVENTS_TIMES = 8
_MAX_COUNT = 1 << 53  # tokens; a larger number is an error of the provider


def malformed(what: str) -> errors.UpstreamProtocolError:
    """The error for an answer that is not of the format; the provider may have charged for it."""
    return errors.UpstreamProtocolError(what, maybe_billed=True)


def document(body: bytes, target: Target) -> Any:
    """The JSON value of an answer's body.

    Raises:
        EmptyResponse: if the body is empty.
        UpstreamTruncated: if the JSON stops in the middle.
        UpstreamProtocolError: if it is not JSON; the message shows how it begins, redacted.
    """
    try:
        return jsontext.loads(body, target.max_values)
    except jsontext.TruncatedJSON:
        if not body.strip():
            raise errors.EmptyResponse("the answer is empty", maybe_billed=True) from None
        raise errors.UpstreamTruncated("the answer's JSON stops in the middle", maybe_billed=True) from None
    except JSONBoundsError as error:
        raise malformed(f"the answer is {error} (max_response_values)") from None
    except ValueError as error:
        reason = str(error)
        if not body.lstrip().startswith((b"{", b"[")):
            reason += f"; it begins: {error_reader.excerpt(body, target)}"
        raise malformed(f"the answer is {reason}") from None


def event_json(event: ServerSentEvent, target: Target, stream: StreamDecoder) -> Any:
    """The JSON value of a stream event; an event named ``error`` that is not JSON is raised as that error.

    Many small events may add up to a large answer, so the values of all events together are limited too.
    """
    try:
        stream.values += jsontext.check(event.data, target.max_values)
        if stream.values > _EVENTS_TIMES * target.max_values:
            raise malformed(
                f"the stream is JSON with more than {_EVENTS_TIMES * target.max_values} values "
                f"({_EVENTS_TIMES} times max_response_values)"
            )
        return jsontext.unbounded(event.data)
    except jsontext.TruncatedJSON:
        # An event's end is marked, so only the end of the input can cut its JSON off.
        raise errors.UpstreamTruncated(
            "a stream event's JSON stops in the middle", maybe_billed=True
        ) from None
    except JSONBoundsError as error:
        raise malformed(f"a stream event is {error} (max_response_values)") from None
    except ValueError as error:
        if event.event == "error":
            raise error_reader.from_error(event.data, None, target) from None
        raise malformed(f"a stream event is {error}") from None


def not_an_object(value: Any, target: Target) -> errors.APIError:
    """The error for a stream event that is not an object; an error in a list is that error."""
    found = error_reader.error_object(value)
    if found is not None:
        return error_reader.from_error(found, None, target)
    return malformed("a stream event is not a JSON object")


def string(value: Any) -> str:
    """``value`` if it is a string, or an empty one."""
    return value if isinstance(value, str) else ""


def this_second() -> int:
    """The time of an answer, for formats that do not send it; seconds since the epoch."""
    return int(time.time())


def count(value: Any) -> int | None:
    """``value`` if it is an integer from 0 to 2**53, such as a number of tokens; otherwise None."""
    if type(value) is int and 0 <= value <= _MAX_COUNT:
        return value
    return None
