"""Connections that report to their watch, and requests' adapter over pools of them."""

from __future__ import annotations

import functools
import http.client
import math
import socket
import time
from collections.abc import Mapping
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import Retry, Timeout

from fastroute import errors
from fastroute.config import address_problem

from . import watch as watches
from .resolve import is_address, resolve
from .watch import Watch

_NO_RETRY = Retry(total=False, redirect=False)


def _reused(connection: Any) -> None:
    watch: Watch | None = getattr(watches.current, "watch", None)
    if watch is not None:
        if watch.resent and connection.sock is not None:
            connection.close()  # another kept one may have ended too: the second time goes out on a fresh one
        watch.reused = connection.sock is not None
        watch.hold(connection.sock)


def _connected(connection: Any) -> None:
    watch: Watch | None = getattr(watches.current, "watch", None)
    if watch is not None:
        watch.hold(connection.sock)
        if not watch.private_allowed:
            # The name was checked when the configuration was read; what it resolved to is known only now,
            # and nothing has been sent yet.
            problem = address_problem(connection.sock.getpeername()[0], allow_private_hosts=False)
            if problem is not None:
                connection.close()
                raise errors.APIConnectionError(f"the provider's host name was resolved, but {problem}")


def _ready_to_read() -> None:
    watch: Watch | None = getattr(watches.current, "watch", None)
    if watch is not None:
        watch.sent = True


def _plainly_named(line: bytes) -> bytes:
    """The line, with the bytes of a header's name that are not ASCII escaped.

    The standard library takes such a line for the end of the headers, and so would lose the length after it.
    """
    if line.isascii():
        return line
    name, colon, value = line.partition(b":")
    if colon and not name.isascii():
        line = b"".join(b"%%%02X" % byte if byte > 127 else bytes([byte]) for byte in name) + colon + value
    return line


class _Head:
    """The lines of an answer's head, with an eye on whether they come and whether they end too soon."""

    __slots__ = ("_file", "ended")

    def __init__(self, file: Any) -> None:
        self._file = file
        self.ended = False

    def readline(self, limit: int) -> bytes:
        watch: Watch | None = getattr(watches.current, "watch", None)
        try:
            line = _plainly_named(self._file.readline(limit))
        except ConnectionError:
            if watch is not None and self._file.peek(1):  # a part of a line came before the reset
                watch.heard = True
            raise
        if not line:
            self.ended = True
        elif watch is not None:
            watch.heard = True
        return line

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head is whole.

    The standard library takes the end of the input for the end of the head, so that the first bytes of an
    answer pass for a good one without a body; of a head with a broken line it keeps what came before that.
    """

    def begin(self) -> None:
        file = self.fp
        head: Any = _Head(file)
        self.fp = head
        try:
            super().begin()
        finally:
            if self.fp is head:  # not if it was closed
                self.fp = file
        if head.ended:
            raise http.client.HTTPException("the headers were cut off")
        if self.msg.defects and not self.msg.is_multipart() and self.msg.get_payload():
            raise http.client.HTTPException("a line among the headers is none")


class _Reporting:
    """Tells the watch what its connection does, and resolves names in time."""

    reports = True
    response_class: Any = _Answer
    port: Any
    timeout: Any
    _dns_host: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _connected(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _reused(self)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        _ready_to_read()
        return super().getresponse()  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        name: str = self._dns_host
        if is_address(name):
            return super()._new_conn()  # type: ignore[misc,no-any-return]
        limit: float | None = self.timeout
        end = math.inf if limit is None else time.monotonic() + limit
        try:
            addresses = resolve(name, self.port, limit)
        except TimeoutError as error:
            raise ConnectTimeoutError(cast(HTTPConnection, self), str(error)) from None
        except socket.gaierror as error:
            raise NameResolutionError(name, cast(HTTPConnection, self), error) from None
        try:
            for address in addresses[:-1]:
                # Each gets its share, so that a dead address does not use up the time of one that works.
                self._dns_host = address
                if limit is not None:
                    self.timeout = max((end - time.monotonic()) / 2, 0.001)
                try:
                    return super()._new_conn()  # type: ignore[misc,no-any-return]
                except (NewConnectionError, ConnectTimeoutError):
                    continue
            self._dns_host = addresses[-1]
            if limit is not None:
                self.timeout = max(end - time.monotonic(), 0.001)
            return super()._new_conn()  # type: ignore[misc,no-any-return]
        finally:
            self._dns_host, self.timeout = name, limit


class _Joining(_Reporting):
    """Sends a request's head and body in one piece.

    By themselves they go in two: two system calls, two packets, and a peer that is woken twice.
    """

    _held: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = []
        try:
            super().request(*args, **kwargs)
        finally:
            pieces, self._held = self._held, None
        self.send(b"".join(pieces))

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held.append(data)


class _Connection(_Joining, HTTPConnection):
    pass


class _TLSConnection(_Joining, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def report(pool: Any) -> None:
    """Makes the connections that a caller's own pool opens from now on tell their watch what they do.

    They do what they did before in every other way, and nothing new for requests that are not ours.
    """
    kind: Any = getattr(pool, "ConnectionCls", None)
    if isinstance(kind, type) and issubclass(kind, HTTPConnection) and not hasattr(kind, "reports"):
        pool.ConnectionCls = _reporting(cast(Any, kind))


@functools.cache
def _reporting(kind: Any) -> Any:
    return type(kind.__name__, (_Reporting, kind), {})


class _Response(requests.Response):
    """A response without the cookie jar and header copies that nobody reads on this way."""

    def __init__(self, raw: Any, request: requests.PreparedRequest) -> None:
        self.raw = raw
        self.status_code = raw.status
        self.headers = raw.headers
        self.request = request
        self.url = request.url  # type: ignore[assignment]
        self.reason = raw.reason
        self._content = False  # type: ignore[assignment]
        self._content_consumed = False


class PooledAdapter(HTTPAdapter):
    """requests' adapter with the parts of `send` that never change done once per URL.

    Thread safety: one instance serves all threads of a process. It must not cross a fork.
    """

    def __init__(self, pool_size: int, verify: str | bool, proxies: Mapping[str, str]) -> None:
        self._verify = verify
        self._proxies = dict(proxies)
        self._routes: dict[str, tuple[HTTPConnectionPool, str]] = {}
        super().__init__(pool_connections=4, pool_maxsize=pool_size, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, timeout: Timeout, **_: Any
    ) -> requests.Response:
        url = request.url or ""
        route = self._routes.get(url)
        if route is None:
            route = self._routes[url] = self._route(request)
        raw = route[0].urlopen(
            request.method or "POST",
            route[1],
            body=request.body,
            headers=request.headers,
            retries=_NO_RETRY,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
            decode_content=False,
        )
        return _Response(raw, request)

    def close(self) -> None:
        # The pool manager only drops its pools, and whoever still holds an error's traceback keeps them open.
        for pool, _ in list(self._routes.values()):
            pool.close()
        super().close()

    def _route(self, request: requests.PreparedRequest) -> tuple[HTTPConnectionPool, str]:
        pool = self.get_connection_with_tls_context(request, self._verify, proxies=self._proxies)
        self.cert_verify(pool, request.url, self._verify, None)  # type: ignore[no-untyped-call]
        return cast(HTTPConnectionPool, pool), self.request_url(request, self._proxies)
