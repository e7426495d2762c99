"""Answers requests to OpenAI's API with a client in the same process, for the two HTTP drop-ins.

A call's failure becomes an error response, except where no answer came back: that is raised, and the drop-in
translates it into an error of its own library.
"""

from __future__ import annotations

from attrs import field, frozen

from fastroute import errors
from fastroute.calls.stream import Stream
from fastroute.client import Client
from fastroute.types import Completion

from . import wire_openai

COMPLETIONS = "/chat/completions"


@frozen
class DropInAnswer:
    """An HTTP answer, with its body in ``body`` or, if streamed, from ``stream``."""

    status: int
    headers: dict[str, str]
    body: bytes = field(default=b"", repr=False)
    stream: Stream | None = None


def unanswered(error: errors.Error) -> bool:
    """Whether an error means that no answer came back, which no HTTP response can express.

    A malformed answer is not such an error: it becomes a 502, as from a proxy.
    """
    if isinstance(error, errors.APIConnectionError):
        return not isinstance(error, errors.UpstreamProtocolError)
    return isinstance(error, errors.DeadlineExceeded)


def complete(client: Client, body: bytes, route: str | None, timeout: float | None) -> DropInAnswer:
    """The answer to ``POST /chat/completions``.

    Raises:
        APIConnectionError, DeadlineExceeded: if the error is `unanswered`.
    """
    try:
        reply = wire_openai.parse(body, route=route).run(client, timeout=timeout)
    except errors.Error as error:
        if unanswered(error):
            raise
        return DropInAnswer(*wire_openai.error_response(error))
    if isinstance(reply, Completion):
        headers = {**wire_openai.JSON_HEADERS, **wire_openai.route_headers(reply.route)}
        return DropInAnswer(200, headers, wire_openai.answer_bytes(reply))
    headers = {**wire_openai.STREAM_HEADERS, **wire_openai.route_headers(reply.route, running=True)}
    return DropInAnswer(200, headers, stream=reply)


def models(client: Client, name: str | None) -> DropInAnswer:
    """The answer to ``GET /models`` and ``GET /models/NAME``."""
    try:
        body = wire_openai.models_bytes(client) if name is None else wire_openai.model_bytes(client, name)
    except errors.Error as error:
        return DropInAnswer(*wire_openai.error_response(error))
    return DropInAnswer(200, dict(wire_openai.JSON_HEADERS), body)
