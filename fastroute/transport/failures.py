"""Translates exceptions of the network stack into `fastroute.errors`."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from urllib3.exceptions import HTTPError

from fastroute import errors
from fastroute.errors import Blame

from .network import Network
from .request_timer import RequestTimer


def closed_while_idle(error: BaseException, timer: RequestTimer) -> bool:
    """Whether a kept connection ended before any byte of the answer, so that the request may be sent again.

    Providers close idle connections, and a request can be on its way at that moment.
    """
    if not timer.reused or timer.heard or timer.expired:
        return False
    ended: tuple[type[BaseException], ...] = (ConnectionResetError, BrokenPipeError, *_TLS_ENDED)
    return any(isinstance(cause, ended) for cause in _causes(error))


def timed_out(sent: bool) -> errors.APITimeoutError:
    return errors.APITimeoutError("the provider did not answer in time", maybe_billed=sent)


def translate(error: BaseException, timer: RequestTimer, network: Network | None = None) -> BaseException:
    """The `errors.Error` for an exception of the network stack; any other exception is returned unchanged.

    Args:
        network: for the words of a proxy that refused the connection.
    """
    if not isinstance(error, Exception):  # an interrupt, or a greenlet that is being killed
        return error
    # First, because shutting the socket can surface as almost any of the exceptions below.
    if timer.expired:
        return timed_out(timer.sent)
    if isinstance(error, errors.Error):
        return error
    causes = list(_causes(error))
    kinds = tuple(type(cause) for cause in causes)

    def has(*wanted: type[BaseException]) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    # The order matters, since an exception fits several checks: a TLS error is an OSError too.
    sent = timer.sent
    exceptions = urllib3.exceptions
    if has(exceptions.SSLError, *_TLS) and not (timer.fresh or timer.reused):
        return errors.TLSError(f"the TLS handshake failed: {_words(causes)}")
    # During the TLS handshake urllib3 reports a time-out as one of a read.
    if not timer.opening and (has(exceptions.ReadTimeoutError) or (sent and has(TimeoutError))):
        return timed_out(sent=True)
    if has(exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, TimeoutError) and not has(
        exceptions.NewConnectionError
    ):
        return errors.APITimeoutError("the connection was not made in time (connect_timeout)")
    if has(exceptions.NameResolutionError):
        return errors.APIConnectionError("the provider's host name does not resolve", blame=Blame.HOST)
    if has(exceptions.IncompleteRead, http.client.IncompleteRead, exceptions.InvalidChunkLength):
        return errors.UpstreamTruncated("the answer was cut off", maybe_billed=True)
    if has(exceptions.DecodeError):
        return errors.UpstreamProtocolError("the answer's compression is broken", maybe_billed=True)
    if has(http.client.RemoteDisconnected):
        return errors.APIConnectionError(
            "the provider closed the connection without an answer", maybe_billed=sent
        )
    if has(exceptions.ProxyError) and (said := _proxy_words(causes)):
        return (network or Network()).refused(said)
    if has(ConnectionError, exceptions.NewConnectionError, exceptions.ProxyError):
        # Refused, or without a way there: so are connections for all other models at that host.
        blame = Blame.HOST if not sent and has(exceptions.NewConnectionError) else None
        return errors.APIConnectionError(
            f"the connection failed: {_words(causes)}", blame=blame, maybe_billed=sent
        )
    if has(http.client.HTTPException, exceptions.InvalidHeader, requests.exceptions.InvalidHeader):
        return errors.UpstreamProtocolError(f"the answer is not HTTP: {_words(causes)}", maybe_billed=sent)
    if has(exceptions.ProtocolError, requests.exceptions.ChunkedEncodingError):
        return errors.UpstreamTruncated("the answer was cut off", maybe_billed=True)
    if has(HTTPError, OSError, requests.exceptions.RequestException):
        return errors.APIConnectionError(f"the connection failed: {_words(causes)}", maybe_billed=sent)
    return error


def _tls_errors(*names: str) -> tuple[type[BaseException], ...]:
    try:
        import ssl
    except ImportError:  # a Python built without TLS
        return ()
    return tuple(getattr(ssl, name) for name in names)


_TLS = _tls_errors("SSLError")
_TLS_ENDED = _tls_errors("SSLEOFError", "SSLZeroReturnError")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it wraps, by any means that the network stack uses."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [
            *current.args,
            getattr(current, "reason", None),
            getattr(current, "original_error", None),
            current.__cause__,
            current.__context__,
        ]


def _proxy_words(causes: list[BaseException]) -> str:
    """Status and reason with which a proxy refused a tunnel; empty if it did not."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.args and isinstance(cause.args[0], str):
            before, found, said = cause.args[0].partition("Tunnel connection failed: ")
            if found and not before:
                return "".join(char if " " <= char <= "~" else "?" for char in said)[:200]
    return ""


def _words(causes: list[BaseException]) -> str:
    """The text of the innermost system error, which contains neither headers nor bodies."""
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(causes[-1]).__name__
