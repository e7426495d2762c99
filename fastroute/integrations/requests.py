"""A drop-in for requests: an adapter that routes what a session posts to ``…/chat/completions``.

    session = requests.Session()
    session.mount("https://api.openai.com/", RoutingAdapter(client))

All other requests are sent as usual.
"""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Mapping
from http.client import responses as reasons
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from fastroute import errors
from fastroute.calls.stream import Stream
from fastroute.client import Client

from . import drop_ins, wire_openai


class RoutingAdapter(HTTPAdapter):
    """Answers ``POST …/chat/completions`` through a client; all other requests are sent as usual.

    The answer is an ordinary `requests.Response`: OpenAI's JSON, or its server-sent events if the body has
    ``"stream": true``. Errors are responses with their status and OpenAI's error object. Routing options may
    be in the body under ``route``, or as JSON in the header ``x-fastroute-route``. The session's other
    headers, including Authorization, are not sent anywhere: the client has its own keys.

    Args:
        client: routes the calls; it is not closed with the adapter.
        **options: of `requests.adapters.HTTPAdapter`, for all other requests.

    Raises, from the session's methods:
        requests.Timeout: if the call's or a provider's time limit passed.
        requests.ConnectionError: if no provider answered (`requests.exceptions.SSLError` if a certificate was
            refused). ``__cause__`` is fastroute's error with its ``attempts``.
        requests.exceptions.ChunkedEncodingError: if a stream broke after its start.

    The ``timeout`` of a request limits its whole call; of a pair the second number counts.

    Thread safety: may be used from all threads.
    """

    def __init__(self, client: Client, **options: Any) -> None:
        super().__init__(**options)
        self._client = client

    def __reduce__(self) -> Any:
        raise TypeError("a RoutingAdapter has a client and cannot be pickled; mount a new one")

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Answers or sends one request; called by the session."""
        if request.method != "POST" or not _path(request).endswith(drop_ins.COMPLETIONS):
            return super().send(request, stream, timeout, verify, cert, proxies)
        seconds = _seconds(timeout)
        try:
            answer = drop_ins.complete(
                self._client, _body(request), request.headers.get(wire_openai.ROUTE_HEADER), seconds
            )
        except errors.Error as error:
            _raise(error, request)
        headers = dict(answer.headers)
        raw: urllib3.HTTPResponse
        if answer.stream is None:
            headers["content-length"] = str(len(answer.body))
            raw = _plain(urllib3.HTTPResponse, io.BytesIO(answer.body), answer.status, headers, request)
        else:
            raw = _plain(_Streamed, _Pieces(answer.stream), answer.status, headers, request)
        return self.build_response(request, raw)


def _path(request: requests.PreparedRequest) -> str:
    return urlsplit(request.url or "").path.rstrip("/")


def _plain(
    kind: type[urllib3.HTTPResponse],
    body: Any,
    status: int,
    headers: Mapping[str, str],
    request: requests.PreparedRequest,
) -> urllib3.HTTPResponse:
    return kind(
        body,
        headers,
        status,
        version=11,
        version_string="HTTP/1.1",
        reason=reasons.get(status, ""),
        preload_content=False,
        request_method=request.method,
        request_url=request.url,
    )


def _body(request: requests.PreparedRequest) -> bytes:
    body: Any = request.body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8")
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    pieces = [body.read()] if hasattr(body, "read") else body
    return b"".join(piece.encode("utf-8") if isinstance(piece, str) else bytes(piece) for piece in pieces)


def _seconds(timeout: Any) -> float | None:
    """The time limit of a call in seconds; None for the client's own."""
    if isinstance(timeout, tuple):
        if len(timeout) != 2:
            raise ValueError(f"timeout: must be a number or a pair (connect, read), not {timeout!r}")
        timeout = timeout[1]
    elif isinstance(timeout, urllib3.Timeout):
        timeout = timeout.total if timeout.total is not None else timeout.read_timeout
    if timeout is None or timeout is urllib3.util.Timeout.DEFAULT_TIMEOUT:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout: must be a number of seconds above 0, not {timeout!r}")
    return float(timeout)


def _raise(error: errors.Error, request: requests.PreparedRequest) -> NoReturn:
    kind: type[requests.RequestException] = requests.ConnectionError
    if isinstance(error, TimeoutError):
        kind = requests.ReadTimeout
    elif isinstance(error, errors.TLSError):
        kind = requests.exceptions.SSLError
    raise kind(error.message, request=request) from error


class _Pieces(io.RawIOBase):
    """The events of a stream as a file; errors are raised as urllib3's."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._held = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def piece(self) -> bytes:
        """The rest of the last event, or the next event; empty at the end."""
        held, self._held = self._held, b""
        if held or self._ended or self.closed:
            return held
        try:
            for chunk in self._stream:
                return wire_openai.event_bytes(chunk)
        except errors.Error as error:
            if isinstance(error, (errors.DeadlineExceeded, errors.StreamStalled)):
                raise ReadTimeoutError(None, None, error.message) from error  # type: ignore[arg-type]
            raise ProtocolError(error.message, error) from error
        self._ended = True
        return wire_openai.DONE

    def readinto(self, buffer: Any) -> int:
        piece = self.piece()
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        self._held = piece[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream.close()


class _Streamed(urllib3.HTTPResponse):
    """Yields events as they arrive; the base class waits until it has as many bytes as requested."""

    def stream(
        self, amt: int | None = 2**16, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        pieces: Any = self._fp
        while piece := pieces.piece():
            step = amt or len(piece)
            for start in range(0, len(piece), step):
                yield piece[start : start + step]
        pieces.close()
