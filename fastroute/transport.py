"""Bytes to a provider and back: pooled connections, time limits, cancelling.

Owns the sockets of one process and every clock that can end a request: connect time-out, the attempt's own
deadline, the idle time-out of a stream, size caps. Says what went wrong as an `errors.APIConnectionError`.
What bytes mean is `providers/`; what happens after a failure is `dispatch.py`. The only module below the
integrations that imports requests.

A read time-out of a socket bounds one read, not an answer: a peer that sends a byte a second never meets it.
So each request has a `_Watch`, and one thread per process shuts the socket of any whose time is up. The
reader then sees a clean end of stream, which proves nothing: the watch's flag decides.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, cast

import requests
import urllib3
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from . import errors
from .config import address_problem

_NO_RETRY = Retry(total=False, redirect=False)
_PIECE = 65536
_ERROR_BODY_LIMIT = 65536
_TICK = 0.05  # seconds between two looks of the reaper, so also how late it may be
_QUIET_TICKS = 40  # ticks with nothing to watch before it goes to sleep
_DRAIN = 0.25  # seconds a finished stream may take to close its framing


# ----------------------------------------------------------------------------------------------- watching


class _Watch:
    """The time limit of one request, and the socket to shut when it is up.

    Thread safety: the caller's thread moves ``deadline``, the reaper reads it; each is one attribute.
    """

    __slots__ = ("_sock", "deadline", "expired", "private_allowed", "raw", "reused", "sent")

    def __init__(self, deadline: float, private_allowed: bool) -> None:
        self.deadline = deadline
        self.private_allowed = private_allowed
        self.expired = False
        self.raw: Any = None
        self.reused = False
        self.sent = False
        self._sock: socket.socket | None = None

    def hold(self, sock: socket.socket | None) -> None:
        self._sock = sock
        if self.expired:
            self.shut()

    def expire(self) -> None:
        # The flag goes first: whoever is woken by the shut socket must find it set.
        self.expired = True
        self.shut()

    def shut(self) -> None:
        raw = self.raw
        if raw is not None and getattr(raw, "connection", self) is None:
            return  # read to its end: the connection may be serving another request by now
        sock = self._sock
        if sock is not None:
            try:
                # Not SSLSocket.shutdown, which drops the TLS object under a thread that is reading from it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass
        elif raw is not None:
            try:
                raw.shutdown()
            except (ValueError, RuntimeError, OSError, AttributeError):
                pass

    def destroy(self) -> None:
        """Closes the socket although a half-read answer still holds it, as after headers that are refused."""
        sock, self._sock = self._sock, None
        if sock is not None:
            number = sock.detach()
            if number >= 0:
                os.close(number)


class _Reaper:
    """One thread that expires watches. Started when first needed, and again after a fork."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._wake = threading.Event()
        self._asleep = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, watch: _Watch) -> None:
        self._watches[id(watch)] = watch
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fastroute-reaper", daemon=True)
                    self._thread.start()
        elif self._asleep:
            self._wake.set()

    def discard(self, watch: _Watch) -> None:
        self._watches.pop(id(watch), None)

    def _look(self) -> None:
        # A function of its own: a name left over in the loop below would keep the last answer alive.
        now = time.monotonic()
        for watch in list(self._watches.values()):
            if watch.deadline <= now and not watch.expired:
                watch.expire()

    def _run(self) -> None:
        quiet = 0
        while True:
            if self._watches:
                quiet = 0
                self._look()
            else:
                quiet += 1
                if quiet > _QUIET_TICKS:
                    # Cleared before the last look: an `add` after that look sees `_asleep` and sets it.
                    self._wake.clear()
                    self._asleep = True
                    if not self._watches:
                        self._wake.wait()
                    self._asleep = False
                    quiet = 0
                    continue
            time.sleep(_TICK)


_reaper = _Reaper()
_current = threading.local()  # .watch: of the request that this thread is sending
_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork() -> None:
    global _reaper, _current
    _reaper = _Reaper()
    _current = threading.local()
    for transport in list(_transports):
        transport._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _reused(connection: Any) -> None:
    watch: _Watch | None = getattr(_current, "watch", None)
    if watch is not None:
        watch.reused = connection.sock is not None
        watch.hold(connection.sock)


def _connected(connection: Any) -> None:
    watch: _Watch | None = getattr(_current, "watch", None)
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
    watch: _Watch | None = getattr(_current, "watch", None)
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


# ------------------------------------------------------------------------------------------------- adapter


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


# ------------------------------------------------------------------------------------------------ exchange


class Exchange:
    """One request on the wire, from its headers' arrival to the end of its body.

    Read it with `body` or `pieces`, and `close` it on any other way out; a connection is reused only after
    its answer was read to the very end.

    Thread safety: one thread reads; `close` may be called from another.
    """

    __slots__ = ("_limit", "_raw", "_released", "_watch", "headers", "status")

    def __init__(self, response: requests.Response, watch: _Watch, limit: int) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._raw = response.raw
        self._watch = watch
        self._limit = limit
        self._released = False

    def extend(self, deadline: float) -> None:
        """Sets the moment (time.monotonic) at which the request is cut, earlier or later than before."""
        self._watch.deadline = deadline

    def body(self) -> bytes:
        """All of the decoded body.

        Raises:
            errors.APIConnectionError: it did not arrive whole, in time and within the size cap.
        """
        limit = self._limit if self.status < 400 else min(self._limit, _ERROR_BODY_LIMIT)
        raw = self._raw
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                part = raw.read(_PIECE, decode_content=True)
                if not part:
                    break
                parts.append(part)
                size += len(part)
                if size > limit:
                    if self.status >= 400:  # the start of an error body says enough
                        self.close()
                        return b"".join(parts)[:limit]
                    raise errors.UpstreamProtocolError(
                        f"the answer is larger than {limit} bytes (max_response_bytes)", maybe_billed=True
                    )
            if self._watch.expired:
                raise _timed_out(sent=True)
        except BaseException as error:
            self.close()
            raise translate(error, self._watch) from None
        self._finish()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """The decoded body as it arrives, until the peer ends it.

        Raises:
            errors.APIConnectionError: the connection broke, or the deadline (see `extend`) passed.
        """
        raw = self._raw
        read1 = raw.read1
        size = 0
        try:
            while True:
                piece = read1(decode_content=True)
                if self._watch.expired:
                    raise _timed_out(sent=True)
                if not piece:
                    break
                size += len(piece)
                if size > 2 * self._limit:
                    raise errors.UpstreamProtocolError(
                        f"the stream is larger than {2 * self._limit} bytes", maybe_billed=True
                    )
                yield piece
        except GeneratorExit:
            raise
        except BaseException as error:
            self.close()
            raise translate(error, self._watch) from None
        self._finish()

    def drain(self, pieces: Iterator[bytes]) -> None:
        """Reads a finished stream's last framing, so that its connection can be reused; else closes it."""
        self.extend(time.monotonic() + _DRAIN)
        try:
            for piece in pieces:
                if piece.strip():
                    break
            else:
                return
        except errors.APIConnectionError:
            return
        self.close()

    @property
    def expired(self) -> bool:
        """Whether the deadline cut it."""
        return self._watch.expired

    def close(self) -> None:
        """Shuts the connection, which is not used again. Does nothing once the body was read to its end."""
        if self._released:
            return
        self._released = True
        _reaper.discard(self._watch)
        self._watch.shut()
        try:
            self._raw.close()
        except (OSError, HTTPError, ValueError):
            pass

    def _finish(self) -> None:
        self._released = True
        _reaper.discard(self._watch)
        self._raw.release_conn()


# ----------------------------------------------------------------------------------------------- transport


class Transport:
    """The connections of this process to one provider.

    Thread safety: all methods may be called from any thread; after a fork the child starts with none of its
    parent's connections.
    """

    def __init__(
        self,
        *,
        pool_size: int = 100,
        connect_timeout: float = 5.0,
        max_response_bytes: int = 32 * 1024 * 1024,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        session: requests.Session | None = None,
        allow_private_hosts: bool = True,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._pool_size = pool_size
        self._connect_timeout = connect_timeout
        self._limit = max_response_bytes
        self._verify: str | bool = ca_bundle or True
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._session = session
        self._adapter: PooledAdapter | None = None
        self._closed = False
        self._lock = threading.Lock()
        _transports.add(self)

    def prepare(self, url: str, headers: Mapping[str, str], method: str = "POST") -> requests.PreparedRequest:
        """A request to be sent many times, each time with another body."""
        prepared = requests.Request(method, url, headers=dict(headers)).prepare()
        if self._session is None:
            # A plain dict is copied faster; a caller's own adapter gets the mapping that requests promises.
            prepared.headers = dict(prepared.headers)  # type: ignore[assignment]
        return prepared

    def send(
        self, prepared: requests.PreparedRequest, body: bytes | None, *, deadline: float, read_timeout: float
    ) -> Exchange:
        """Sends one request and waits for the headers of its answer.

        Args:
            prepared: from `prepare`.
            body: the request's body.
            deadline: time.monotonic at which the request is cut, whatever has arrived by then.
            read_timeout: seconds that one read may take.

        Raises:
            errors.APIConnectionError: or one of its kinds; nothing is left open.
        """
        now = time.monotonic()
        left = deadline - now
        if left <= 0:
            raise errors.APITimeoutError("no time was left to send the request")
        request = requests.PreparedRequest()
        request.method = prepared.method
        request.url = prepared.url
        headers = prepared.headers.copy()
        if body is not None:
            headers["Content-Length"] = str(len(body))
        request.headers = headers
        request.body = body
        request.hooks = prepared.hooks
        watch = _Watch(deadline, self._allow_private_hosts)
        timeout = Timeout(connect=min(self._connect_timeout, left), read=min(read_timeout, left))
        _reaper.add(watch)
        _current.watch = watch
        response = None
        try:
            try:
                response = self._post(request, timeout)
            except (requests.RequestException, HTTPError, OSError) as error:
                if not _closed_while_idle(error, watch):
                    raise
                response = self._post(request, timeout)
            watch.raw = response.raw
            self._check_framing(response.headers)
            if watch.expired:
                raise _timed_out(sent=True)
        except BaseException as error:
            _reaper.discard(watch)
            if response is not None:
                response.raw.close()
            else:
                watch.destroy()
            raise translate(error, watch) from None
        finally:
            _current.watch = None
        return Exchange(response, watch, self._limit)

    def close(self) -> None:
        """Closes the idle connections; requests under way finish, later ones are refused.

        A caller's own session stays open.
        """
        with self._lock:
            self._closed = True
            adapter, self._adapter = self._adapter, None
        if adapter is not None:
            adapter.close()

    def _post(self, request: requests.PreparedRequest, timeout: Timeout) -> requests.Response:
        session = self._session
        if session is None:
            adapter = self._adapter or self._open()
            return adapter.send(request, timeout)
        return session.get_adapter(request.url or "").send(
            request,
            stream=True,
            timeout=timeout,  # type: ignore[arg-type]
            verify=session.verify if session.verify is not None else True,
            cert=session.cert,
            proxies=dict(session.proxies) or dict(self._proxies),
        )

    def _open(self) -> PooledAdapter:
        with self._lock:
            if self._closed:
                raise errors.APIConnectionError("the client is closed")
            if self._adapter is None:
                self._adapter = PooledAdapter(self._pool_size, self._verify, self._proxies)
            return self._adapter

    def _forget(self) -> None:
        # In a forked child: the parent's sockets are not ours to close in any orderly way (a TLS close would
        # write into its session), so the object is only dropped.
        self._lock = threading.Lock()
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            _inherited.append(adapter)
        if self._session is not None:
            for mounted in self._session.adapters.values():
                if isinstance(mounted, HTTPAdapter):
                    _inherited.append((mounted.poolmanager, mounted.proxy_manager))
                    mounted.proxy_manager = {}
                    mounted.init_poolmanager(DEFAULT_POOLSIZE, self._pool_size)

    def _check_framing(self, headers: Mapping[str, str]) -> None:
        if "transfer-encoding" in headers and "content-length" in headers:
            raise errors.UpstreamProtocolError(
                "the answer has both Content-Length and Transfer-Encoding", maybe_billed=True
            )


_inherited: list[Any] = []  # kept for ever in a forked child, so that no finaliser touches a parent's socket


# -------------------------------------------------------------------------------------------------- errors


def _closed_while_idle(error: BaseException, watch: _Watch) -> bool:
    """Whether a kept connection ended before a byte of the answer, and the request may be sent once more.

    Providers close connections that were idle for long, and a request can cross that on its way.
    """
    if not watch.reused or watch.expired:
        return False
    watch.reused = False
    return any(isinstance(cause, (ConnectionResetError, BrokenPipeError)) for cause in _causes(error))


def _timed_out(sent: bool) -> errors.APITimeoutError:
    return errors.APITimeoutError("the provider did not answer in time", maybe_billed=sent)


def translate(error: BaseException, watch: _Watch) -> BaseException:
    """What an exception of the network stack means; anything unknown, and our own, is returned as it is."""
    if not isinstance(error, Exception):  # an interrupt, or a greenlet being killed: not ours to rename
        return error
    if watch.expired:
        return _timed_out(watch.sent)
    if isinstance(error, errors.Error):
        return error
    causes = list(_causes(error))
    kinds = tuple(type(cause) for cause in causes)

    def has(*wanted: type[BaseException]) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    sent = watch.sent
    exceptions = urllib3.exceptions
    if has(exceptions.SSLError, *_TLS) and not sent:
        return errors.TLSError(f"TLS was refused: {_words(causes)}")
    if has(exceptions.ReadTimeoutError) or (sent and has(TimeoutError)):
        return _timed_out(sent=True)
    if has(exceptions.ConnectTimeoutError, TimeoutError) and not has(exceptions.NewConnectionError):
        return errors.APITimeoutError("no connection in time")
    if has(exceptions.NameResolutionError):
        return errors.APIConnectionError("the provider's host name does not resolve")
    if has(exceptions.IncompleteRead, http.client.IncompleteRead, exceptions.InvalidChunkLength):
        return errors.UpstreamTruncated("the answer was cut off", maybe_billed=True)
    if has(exceptions.DecodeError):
        return errors.UpstreamProtocolError("the answer's compression is broken", maybe_billed=True)
    if has(http.client.RemoteDisconnected):
        return errors.APIConnectionError(
            "the provider closed the connection without an answer", maybe_billed=sent
        )
    if has(ConnectionError, exceptions.NewConnectionError, exceptions.ProxyError):
        return errors.APIConnectionError(f"the connection failed: {_words(causes)}", maybe_billed=sent)
    if has(http.client.HTTPException, exceptions.InvalidHeader, requests.exceptions.InvalidHeader):
        return errors.UpstreamProtocolError(f"the answer is not HTTP: {_words(causes)}", maybe_billed=sent)
    if has(exceptions.ProtocolError, requests.exceptions.ChunkedEncodingError):
        return errors.UpstreamTruncated("the answer was cut off", maybe_billed=True)
    if has(HTTPError, OSError, requests.exceptions.RequestException):
        return errors.APIConnectionError(f"the connection failed: {_words(causes)}", maybe_billed=sent)
    return error


def _tls_errors() -> tuple[type[BaseException], ...]:
    try:
        import ssl
    except ImportError:  # a Python built without TLS
        return ()
    return (ssl.SSLError,)


_TLS = _tls_errors()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it wraps, by any of the ways that the network stack wraps."""
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


def _words(causes: list[BaseException]) -> str:
    """The innermost system error's own words: they name neither headers nor bodies."""
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(causes[-1]).__name__
