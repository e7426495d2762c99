"""Connections that report to their watch, and requests' adapter over pools of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Retry, Timeout

from fastroute import errors
from fastroute.config import address_problem

from . import watch as watches
from .watch import Watch

_NO_RETRY = Retry(total=False, redirect=False)


def _reused(connection: Any) -> None:
    watch: Watch | None = getattr(watches.current, "watch", None)
    if watch is not None:
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


class _Watched:
    """Tells the watch what its connection does, and sends a request's head and body in one piece.

    By themselves they go in two: two system calls, two packets, and a peer that is woken twice.
    """

    _held: list[bytes] | None = None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _connected(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _reused(self)
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
        finally:
            pieces, self._held = self._held, None
        self.send(b"".join(pieces))

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held.append(data)

    def getresponse(self) -> Any:
        _ready_to_read()
        return super().getresponse()  # type: ignore[misc]


class _Connection(_Watched, HTTPConnection):
    pass


class _TLSConnection(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


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
