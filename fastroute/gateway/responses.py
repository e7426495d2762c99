"""The gateway's responses: JSON, errors in OpenAI's format, and event streams.

An error's message contains enough to correct the request, and nothing about keys, endpoints, budgets and
code behind the gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from attrs import frozen

from fastroute import errors, json_codec
from fastroute.calls.stream import Stream
from fastroute.figures import decimal_dollars
from fastroute.integrations import wire_openai
from fastroute.types import Completion, Route

from .limits import LimitReached
from .models import ModelNotAllowed

log = logging.getLogger("fastroute")

Headers = Sequence[tuple[str, str]]

JSON = "application/json"
_EVERYWHERE: Headers = (
    ("Cache-Control", "no-store"),
    ("Vary", "Authorization"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)


@frozen
class Response:
    """A response: status, body and additional headers.

    Attributes:
        closed: called when the response has been sent, or its client is gone.
    """

    status: int
    body: bytes | EventStream
    content_type: str = JSON
    headers: Headers = ()
    closed: Callable[[], None] | None = None

    def head(self, request_id: str) -> tuple[str, list[tuple[str, str]]]:
        """Status line and headers for WSGI."""
        own = {name.lower() for name, _ in self.headers}
        headers = [
            ("Content-Type", self.content_type),
            ("x-request-id", request_id),
            *(header for header in _EVERYWHERE if header[0].lower() not in own),
            *self.headers,
        ]
        if isinstance(self.body, bytes):
            headers.append(("Content-Length", str(len(self.body))))
        # The one status that is not in the standard is written to logs only: its caller has left.
        phrase = "Client Closed Request" if self.status == 499 else HTTPStatus(self.status).phrase
        return f"{self.status} {phrase}", headers


def json_response(value: Mapping[str, Any], status: int = 200, headers: Headers = ()) -> Response:
    return Response(status, json_codec.dumps(value), JSON, headers)


def completion_response(completion: Completion) -> Response:
    return Response(200, wire_openai.answer_bytes(completion), JSON, _route_headers(completion.route))


def stream_response(stream: Stream, ended: Callable[[Stream], None]) -> Response:
    """Args: ended: see `EventStream`."""
    headers = {name: value for name, value in wire_openai.STREAM_HEADERS.items() if name != "content-type"}
    return Response(
        200,
        EventStream(stream, ended),
        wire_openai.STREAM_HEADERS["content-type"],
        (*headers.items(), *_route_headers(stream.route, running=True)),
    )


def _route_headers(route: Route | None, *, running: bool = False) -> Headers:
    found = wire_openai.route_headers(route, running=running)
    found.pop("x-request-id", None)  # the provider's; the response has the gateway's own
    if route is not None and route.latency is not None and not running:
        found["x-fastroute-time"] = f"{route.latency:.6f}"
    return tuple(found.items())


# ------------------------------------------------------------------------------------------------- errors


class GatewayError(errors.APIStatusError):
    """An error of the gateway itself; no provider was called."""

    def __init__(self, status: int, message: str, code: str, headers: Headers = (), **rest: Any) -> None:
        super().__init__(message, status_code=status, code=code, **rest)
        self.headers = headers


class Overloaded(GatewayError):
    """This process has as much under way as it may have; the caller should try again."""

    def __init__(self, what: str, code: str) -> None:
        super().__init__(503, f"the gateway is busy: {what}; try again", code, retry_after=1.0)


def error_response(error: BaseException, key_budgets: bool = False) -> Response:
    """The response for any exception.

    Args:
        key_budgets: whether the caller has budgets of its own, so that messages may name them.
    """
    shown = disclosed(error, key_budgets)
    status, headers, body = wire_openai.error_response(shown, behind_gateway=True)
    kind = headers.pop("content-type")
    headers.pop("retry-after-ms", None)
    headers.pop("x-request-id", None)
    headers["x-fastroute-attempts"] = str(len(getattr(error, "attempts", ())))
    if isinstance(error, (LimitReached, Overloaded)):
        # The gateway has made no attempt, so the caller's SDK should retry.
        del headers["x-should-retry"]
    more = error.headers if isinstance(error, GatewayError) else ()
    return Response(status, body, kind, (*headers.items(), *more))


def disclosed(error: BaseException, key_budgets: bool = False) -> BaseException:
    """The error to show to a caller; messages about what is behind the gateway are replaced."""
    if isinstance(error, (errors.ModelNotFoundError, ModelNotAllowed, LimitReached, GatewayError)):
        return error
    if isinstance(error, errors.BudgetExceeded):
        # A caller may know its own budgets, and not those of all callers together.
        if key_budgets and (error.budget or "").startswith("key-"):
            return error
        return errors.BudgetExceeded(
            "a budget does not allow this call; set a smaller max_tokens or try again later",
            retry_after=error.retry_after,
        )
    if isinstance(error, errors.RequestTooLargeForLimit):
        return errors.RequestTooLargeForLimit(
            "the request needs more tokens than any limit allows; shorten it"
        )
    if isinstance(error, errors.NoEndpointError) and error.status_code == 400:
        lacking = " and ".join(error.lacking) or "what this request needs"
        return errors.BadRequestError(
            f"no model that may serve this request can do {lacking}; /v1/models lists what each can do",
            code="model_not_capable",
        )
    if isinstance(error, (errors.NoEndpointError, errors.QuotaExceededError)):
        wait = error.retry_after if error.retry_after is not None else 1.0
        return errors.NoEndpointError(
            "no endpoint can serve this request now; try again later", retry_after=wait
        )
    if isinstance(error, errors.CallCancelled):
        return errors.CallCancelled("the caller closed its connection")
    if isinstance(error, errors.DeadlineExceeded):
        return errors.DeadlineExceeded("the request was not completed within its deadline")
    if isinstance(error, errors.APITimeoutError):
        return errors.APITimeoutError("the provider did not respond in time")
    if isinstance(error, errors.APIStatusError) and not _inside(error):
        return error
    if isinstance(error, (errors.APIError, errors.StreamInterrupted)):
        return errors.APIConnectionError("the provider failed or gave no usable response")
    if isinstance(error, errors.ValidationError):
        return errors.ValidationError("the response did not pass validation")
    if isinstance(error, errors.Error) and error.status_code is not None:
        return error
    return RuntimeError()  # shown as an internal error without details


def _inside(error: errors.APIStatusError) -> bool:
    """Whether a provider's error is about the gateway's key or configuration, and not about the request."""
    status = error.status_code or 500
    return status >= 500 or status < 400 or status in (401, 403, 404)


# ------------------------------------------------------------------------------------------------- streams


class EventStream:
    """A stream as the server-sent events of OpenAI's API, for the body of a WSGI response.

    The server calls `close` at the end, or when its client has disconnected, which cancels the provider's
    request too. If the stream fails, the last event contains the error, and ``[DONE]`` is not sent.

    Args:
        ended: called once with the stream when it has ended, in either way.

    Attributes:
        deadline: time.monotonic at which the call ends.
    """

    def __init__(self, stream: Stream, ended: Callable[[Stream], None]) -> None:
        self._stream = stream
        self._ended = ended
        self._open = True
        self.deadline = stream.deadline
        self._events = self._made()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def _made(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                yield wire_openai.event_bytes(chunk)
        except Exception as error:
            if not isinstance(error, errors.Error):
                log.exception("a stream failed")
            yield wire_openai.error_event(disclosed(error), behind_gateway=True)
        else:
            # The figures that the headers could not have yet. Clients skip comments.
            route = self._stream.route
            figures = [("x-fastroute-time", f"{route.latency:.6f}")] if route.latency is not None else []
            if route.cost_nano is not None:
                figures.append(("x-fastroute-cost", decimal_dollars(route.cost_nano)))
            yield "".join(f": {name}: {value}\n" for name, value in figures).encode() + b"\n"
            yield wire_openai.DONE

    def close(self) -> None:
        """Ends the stream. Idempotent."""
        if self._open:
            self._open = False
            self._stream.close()
            self._ended(self._stream)


__all__ = [
    "EventStream",
    "GatewayError",
    "Headers",
    "Overloaded",
    "Response",
    "completion_response",
    "disclosed",
    "error_response",
    "json_response",
    "stream_response",
]
