"""Connections that keep their `RequestTimer` up to date.

They resolve names within a time limit, send a request in one piece, and read the head of its answer. TLS,
proxies, pooling and the reading of bodies are urllib3's.
"""

from __future__ import annotations

import functools
import http.client
import math
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

from urllib3._collections import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.response import HTTPResponse
from urllib3.util.connection import allowed_gai_family

from fastroute import errors
from fastroute.config import address_problem

from . import request_timer
from .answer import StrictResponse
from .request_timer import RequestTimer
from .resolve import is_address, resolve

# A peer that is gone (a crashed host, a NAT that forgot the connection) is found within about a minute.
# Silence alone does not tell: a model that reasons may be silent for longer.
_KEEPALIVE = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),  # seconds of silence before the first probe
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 30),  # the same on macOS
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    )
    if hasattr(socket, name)
)


def _timer() -> RequestTimer | None:
    """The timer of the request that this thread is sending; None for a request that is not ours."""
    return getattr(request_timer.current, "timer", None)


def _taken(connection: Any, timer: RequestTimer | None) -> bool:
    """Assigns the connection to this request, so that cutting an earlier request cannot shut it.

    Returns whether it was shut already, by a cut just after the earlier answer was read.
    """
    before, connection.timer = connection.timer, timer
    return before is not None and before is not timer and before.release()


def begin_request(connection: Any) -> None:
    """Prepares the connection and the timer for a request."""
    timer = _timer()
    if _taken(connection, timer):
        connection.close()
    if timer is not None:
        # urllib3 opens a TLS connection before the request, so an open socket may be a fresh one.
        kept = connection.sock is not None and not timer.fresh
        if kept and timer.resent:
            # Another kept connection may have been closed too: send the second time on a fresh one.
            connection.close()
            kept = False
        timer.reused = kept
        timer.hold(connection.sock)


def _connected(connection: Any, timer: RequestTimer) -> None:
    timer.opening, timer.fresh = False, True
    timer.hold(connection.sock)
    if not timer.private_allowed:
        # The name was checked when the configuration was read, but its address is known only now. Nothing
        # has been sent yet.
        problem = address_problem(connection.sock.getpeername()[0], allow_private_hosts=False)
        if problem is not None:
            connection.close()
            raise errors.APIConnectionError(
                f"the provider's host name resolves to a forbidden address: {problem}",
                blame=errors.Blame.HOST,
            )


def _ready_to_read() -> None:
    # The request is written: from here on the provider may charge for it, even if no answer comes.
    timer = _timer()
    if timer is not None:
        timer.sent = True


class Reporting:
    """Updates the timer at each step of its connection, and resolves names within the time limit."""

    reports = True
    timer: RequestTimer | None = None
    response_class: Any = StrictResponse
    port: Any
    timeout: Any
    _dns_host: Any

    def connect(self) -> None:
        timer = _timer()
        _taken(self, timer)
        if timer is None:
            super().connect()  # type: ignore[misc]
            return
        timer.opening = True
        try:
            super().connect()  # type: ignore[misc]
            _connected(self, timer)
        except BaseException:
            timer.hold(None)
            raise

    def request(self, *args: Any, **kwargs: Any) -> None:
        begin_request(self)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        _ready_to_read()
        return super().getresponse()  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        name: str = self._dns_host
        if is_address(name):
            return super()._new_conn()  # type: ignore[misc,no-any-return]
        # urllib3 would resolve the name without a limit, and give every address the whole time-out. So the
        # name is resolved here, and the base class connects to one address at a time.
        limit: float | None = self.timeout
        end = math.inf if limit is None else time.monotonic() + limit
        try:
            timer = _timer()
            addresses = resolve(name, self.port, limit, lambda: timer is not None and timer.expired)
        except TimeoutError as error:
            raise ConnectTimeoutError(cast(HTTPConnection, self), str(error)) from None
        except socket.gaierror as error:
            raise NameResolutionError(name, cast(HTTPConnection, self), error) from None
        try:
            for address in addresses[:-1]:
                # Each address gets half of the time left, so that a dead one leaves time for the others.
                self._dns_host = address
                if limit is not None:
                    self.timeout = max((end - time.monotonic()) / 2, 0.001)
                try:
                    return super()._new_conn()  # type: ignore[misc,no-any-return]
                except (NewConnectionError, ConnectTimeoutError):
                    if timer is not None and timer.expired:
                        raise
            self._dns_host = addresses[-1]
            if limit is not None:
                self.timeout = max(end - time.monotonic(), 0.001)
            return super()._new_conn()  # type: ignore[misc,no-any-return]
        finally:
            # The object may connect again later, to whatever the name resolves to then.
            self._dns_host, self.timeout = name, limit


class _Dialing:
    """Opens connections that can be cut while they are being opened."""

    host: str
    port: Any
    timeout: Any
    source_address: Any
    socket_options: Any
    _dns_host: Any

    def _new_conn(self) -> socket.socket:
        timer = _timer()
        if timer is None:
            return super()._new_conn()  # type: ignore[misc,no-any-return]
        sock = None
        try:
            host = self._dns_host.strip("[]")
            found = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]  # the host is an address, so there is only one
            sock = socket.socket(family, kind, protocol)
            for option in (*(self.socket_options or ()), *_KEEPALIVE):
                sock.setsockopt(*option)
            sock.settimeout(self.timeout)
            if self.source_address:
                sock.bind(self.source_address)
            # Known to the timer before it connects, so that a deadline can end the attempt too.
            timer.open(sock)
            if timer.expired:  # a socket that is shut before `connect` would still connect
                raise ConnectionAbortedError("cut before it was sent")
            sock.connect(address)
            sys.audit("http.client.connect", self, self.host, self.port)  # as urllib3 does
            return sock
        except BaseException as error:
            if sock is not None:
                sock.close()
            # From here as in urllib3's own method, whose exceptions sessions and `translate` expect.
            connection = cast(HTTPConnection, self)
            if isinstance(error, socket.gaierror):
                raise NameResolutionError(self.host, connection, error) from error
            if isinstance(error, TimeoutError):
                words = f"no connection to {self.host} in {self.timeout} s"
                raise ConnectTimeoutError(connection, words) from error
            if isinstance(error, OSError):
                raise NewConnectionError(connection, f"no connection: {error}") from error
            raise


class _Scribe(http.client.HTTPConnection):
    """Collects the head of a request instead of sending it."""

    written = b""

    def send(self, data: Any) -> None:
        self.written += data


class _Direct(Reporting):
    """Sends a request in one piece, with a head that is built once for all equal requests.

    `http.client` sends head and body separately: two system calls, two packets, and a peer that wakes up
    twice. The socket has no time-out of its own, since with one every read and write would be two system
    calls, each with a release of the interpreter lock. The timer's deadline limits them all.
    """

    sock: Any
    host: str
    default_port: int
    _tunnel_host: str | None
    _tunnel_port: int | None
    _written: tuple[str, str, Mapping[str, str], bytes] | None = None
    _asked: tuple[str, str] = ("", "")

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(None)

    def request(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] = {}, **_: Any
    ) -> None:
        begin_request(self)
        if self.sock is None:
            self.connect()
        self._asked = method, url
        head = self._head(method, url, headers)
        if body is None:
            self.sock.sendall(head + b"\r\n")
        else:
            self.sock.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))

    def getresponse(self) -> HTTPResponse:
        _ready_to_read()
        method, url = self._asked
        sock = self.sock
        answer = StrictResponse(sock, method=method)
        try:
            answer.begin()
            if answer.will_close:
                self.close()  # type: ignore[attr-defined]  # the answer keeps the socket until it is read
            fields = answer.fields
            framing = HTTPHeaderDict()
            for name in _FRAMING:
                if name in fields:
                    framing[name] = fields[name]
            return HTTPResponse(
                body=answer,
                headers=framing,  # urllib3 reads no other headers. Ours come from the answer itself.
                status=answer.status,
                version=answer.version,
                reason=answer.reason,
                preload_content=False,
                decode_content=False,
                original_response=answer,
                request_method=method,
                request_url=url,
                sock_shutdown=sock.shutdown,
            )
        except BaseException:
            answer.close()
            raise

    def _head(self, method: str, url: str, headers: Mapping[str, str]) -> bytes:
        """The request line and headers, without the Content-Length and the final empty line."""
        # All requests to an endpoint have the same headers, so the last head usually fits.
        known = self._written
        if known is not None and known[0] == method and known[1] == url and known[2] == headers:
            return known[3]
        # Written by http.client itself, with its rules for Host, Accept-Encoding and invalid values.
        scribe = _Scribe(self._tunnel_host or self.host, self._tunnel_port or self.port)
        scribe.default_port = self.default_port
        names = {name.lower() for name in headers}
        scribe.putrequest(
            method, url, skip_host="host" in names, skip_accept_encoding="accept-encoding" in names
        )
        for name, value in headers.items():
            scribe.putheader(name, value)
        scribe.endheaders()
        head = scribe.written.removesuffix(b"\r\n")
        self._written = method, url, headers, head
        return head


_FRAMING = ("content-length", "transfer-encoding", "content-encoding")


class DirectConnection(_Direct, _Dialing, HTTPConnection):  # type: ignore[misc]
    pass


class DirectTLSConnection(_Direct, _Dialing, HTTPSConnection):  # type: ignore[misc]
    pass


def report(pool: Any) -> None:
    """Makes the connections that a caller's own pool opens from now on update their timer.

    They are unchanged otherwise, and for requests that are not ours.
    """
    kind: Any = getattr(pool, "ConnectionCls", None)
    # A pool without a class of urllib3's kind is left alone, and so is one that was changed before.
    if isinstance(kind, type) and issubclass(kind, HTTPConnection) and not hasattr(kind, "reports"):
        pool.ConnectionCls = _reporting(cast(Any, kind))


@functools.cache
def _reporting(kind: Any) -> Any:
    # A class with its own way to open connections, such as through SOCKS, keeps it.
    plain = kind._new_conn is HTTPConnection._new_conn
    return type(kind.__name__, (Reporting, _Dialing, kind) if plain else (Reporting, kind), {})
