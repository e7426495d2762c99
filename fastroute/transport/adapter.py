"""The requests adapter of our own pools, whose connections keep their `RequestTimer` up to date."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Retry, Timeout

from .connection import DirectConnection, DirectTLSConnection

_MOST_ROUTES = 1000
# total=False raises the original exceptions instead of MaxRetryError; a redirect is returned as an answer.
_NO_RETRY = Retry(total=False, redirect=False)


class _IdleConnections:
    """The idle connections of a pool, the last one first: what a pool needs of `queue.LifoQueue`.

    A pool of ours never waits for a connection, so this needs no lock: a deque's methods are atomic. The
    standard library's queue has Python code around its lock, and a MemoryError there may leave the lock held
    for ever, so that all later calls to the provider hang.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._idle: deque[Any] = deque()

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, connection: Any, block: bool = False, timeout: float | None = None) -> None:
        if len(self._idle) >= self._maxsize:
            raise queue.Full
        self._idle.append(connection)

    def qsize(self) -> int:
        return len(self._idle)


class _DirectPool(HTTPConnectionPool):
    ConnectionCls: Any = DirectConnection
    QueueCls: Any = _IdleConnections


class _DirectTLSPool(HTTPSConnectionPool):
    ConnectionCls: Any = DirectTLSConnection
    QueueCls: Any = _IdleConnections


_POOLS = {"http": _DirectPool, "https": _DirectTLSPool}


class PooledAdapter(HTTPAdapter):
    """A requests adapter that does the parts of `send` that never change once per URL.

    Thread safety: one instance serves all threads of a process. It must not cross a fork.
    """

    def __init__(self, pool_size: int, verify: str | bool, proxies: Mapping[str, str]) -> None:
        self._verify = verify
        self._proxies = dict(proxies)
        # The pool and the request target of each URL. URLs come from the configuration, so there are few.
        # Those with a caller's own query are not kept beyond `_MOST_ROUTES`.
        self._routes: dict[str, tuple[HTTPConnectionPool, str]] = {}
        super().__init__(pool_connections=4, pool_maxsize=pool_size, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def exchange(
        self, prepared: requests.PreparedRequest, body: bytes | None, timeout: Timeout
    ) -> tuple[int, dict[str, str], Any]:
        """Sends a request and waits for the head of its answer.

        Returns:
            The status, the headers, and urllib3's object for reading the body.
        """
        url = prepared.url or ""
        route = self._routes.get(url)
        if route is None:
            route = self._route(prepared)
            if len(self._routes) < _MOST_ROUTES:
                self._routes[url] = route
        raw: Any = route[0].urlopen(
            prepared.method or "POST",
            route[1],
            body=body,
            headers=prepared.headers,
            retries=_NO_RETRY,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
            decode_content=False,  # `Exchange` decodes the body, with a limit on its decoded size
        )
        return raw.status, raw._original_response.fields, raw

    def close(self) -> None:
        # The pool manager only drops its pools; a reference from an error's traceback would keep them open.
        for pool, _ in list(self._routes.values()):
            pool.close()
        super().close()

    def _route(self, request: requests.PreparedRequest) -> tuple[HTTPConnectionPool, str]:
        pool = self.get_connection_with_tls_context(request, self._verify, proxies=self._proxies)
        self.cert_verify(pool, request.url, self._verify, None)  # type: ignore[no-untyped-call]
        return cast(HTTPConnectionPool, pool), self.request_url(request, self._proxies)
