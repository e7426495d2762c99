"""Sends bytes to a provider and reads the answer: pooled connections, time limits, cancelling.

Every failure is raised as an `errors.APIConnectionError` or one of its kinds. Wire formats are in
`providers/`; what happens after a failure is decided in `calls/dispatch.py`.

Time limits are in `request_timer.py`, pools in `adapter.py`, connections in `connection.py`, the reading of
heads and chunked bodies in `answer.py`, and the translation of the network stack's exceptions in
`failures.py`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse
from urllib3.util import Timeout

from fastroute import errors
from fastroute.platform import forks
from fastroute.platform.timer import schedule, unschedule

from . import request_timer, resolve, seams
from .adapter import PooledAdapter
from .connection import report
from .failures import closed_while_idle, timed_out, translate
from .network import Network
from .request_timer import RequestTimer

_PIECE = 65536
_ERROR_BODY_LIMIT = 65536
_CLOSED = "the client is closed"
_DRAIN = 0.25  # seconds for reading the end of a finished stream

_transports: weakref.WeakSet[Transport] = weakref.WeakSet()
_inherited: list[Any] = []  # never freed in a forked child, so that no finaliser touches a parent's socket


def _after_fork() -> None:
    resolve.after_fork()
    for transport in list(_transports):
        transport._forget()


forks.in_child(_after_fork)


class Exchange:
    """One request on the wire, from the arrival of its headers to the end of its body.

    Read it with `body` or `pieces`; in all other cases `close` it. A connection is reused only after its
    answer was read to the end.

    Attributes:
        headers: with names in lower case; the values of a repeated header are joined by a comma.
        limit: the most bytes of an answer (``max_response_bytes``).

    Thread safety: one thread reads; `close` may be called from another.
    """

    __slots__ = ("_pid", "_raw", "_released", "_timer", "headers", "limit", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str], raw: Any, timer: RequestTimer, limit: int
    ) -> None:
        self.status = status
        self.headers = headers
        self._raw = raw
        self._timer = timer
        self.limit = limit
        self._pid = os.getpid()
        self._released = False

    def extend(self, deadline: float) -> None:
        """Sets a new deadline (time.monotonic) at which the request is cut, earlier or later than before."""
        self._timer.deadline = deadline

    def body(self) -> bytes:
        """The complete decoded body.

        Raises:
            errors.APIConnectionError: if it did not arrive complete, in time and within the size limit.
        """
        limit = self.limit if self.status < 400 else min(self.limit, _ERROR_BODY_LIMIT)
        raw = self._raw
        length = getattr(raw, "length_remaining", None)
        # A body that is known to be short is read at once. A compressed one may be longer than its length.
        piece = None if length and length <= _PIECE and "content-encoding" not in self.headers else _PIECE
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                part = raw.read(piece, decode_content=True)
                if not part:
                    break
                parts.append(part)
                size += len(part)
                if size >= limit and self.status >= 400:
                    self.close()  # the start of an error body is enough
                    return b"".join(parts)[:limit]
                if size > limit:
                    raise errors.UpstreamProtocolError(
                        f"the answer is larger than {limit} bytes (max_response_bytes)", maybe_billed=True
                    )
                if piece is None:
                    break
            if self._timer.expired:
                raise timed_out(sent=True)
        except BaseException as error:
            self.close()
            raise translate(error, self._timer) from None
        self._finish()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """The decoded body as it arrives, until the peer ends it.

        Raises:
            errors.APIConnectionError: if the connection broke, or the deadline (see `extend`) passed.
        """
        raw = self._raw
        read1 = raw.read1
        # A few compressed bytes may expand to very many, so the size of a piece is limited then.
        most = _PIECE if "content-encoding" in self.headers else None
        size = 0
        try:
            while True:
                piece = read1(most, decode_content=True)
                # A socket that the timer shut looks like a clean end of the stream: only the flag tells.
                if self._timer.expired:
                    raise timed_out(sent=True)
                if not piece:
                    break
                size += len(piece)
                if size > 2 * self.limit:
                    raise errors.UpstreamProtocolError(
                        f"the stream is larger than {2 * self.limit} bytes (twice max_response_bytes)",
                        maybe_billed=True,
                    )
                yield piece
        except GeneratorExit:
            raise  # the consumer stopped reading and closes the exchange itself
        except BaseException as error:
            self.close()
            raise translate(error, self._timer) from None
        self._finish()

    def drain(self, pieces: Iterator[bytes]) -> None:
        """Reads the end of a finished stream, so that its connection can be reused; closes it on failure."""
        self.extend(time.monotonic() + _DRAIN)
        try:
            for piece in pieces:
                if piece.strip():  # more content after the end: give up the connection
                    break
            else:
                return
        except errors.APIConnectionError:
            return
        self.close()

    @property
    def resent(self) -> bool:
        """Whether the request was sent twice, and may be charged twice."""
        return self._timer.resent

    @property
    def expired(self) -> bool:
        """Whether the request was cut, by its deadline or by `RequestTimer.cut`."""
        return self._timer.expired

    def close(self) -> None:
        """Closes the connection, which is not reused. Does nothing if the body was read to its end."""
        if self._released:
            return
        self._released = True
        unschedule(self._timer)
        # Shut first: closing alone would not wake another thread that is reading from the socket.
        self._timer.shut()
        try:
            self._raw.close()
        except (OSError, HTTPError, ValueError):
            pass
        self._timer.release()

    def __del__(self) -> None:
        # An interrupt may have come before the caller got the object. A forked child must not shut the
        # parent's socket.
        if not getattr(self, "_released", True) and self._pid == os.getpid():
            self.close()

    def _finish(self) -> None:
        unschedule(self._timer)
        self._released = True
        self._raw.release_conn()
        self._timer.release()


class Transport:
    """The connections of this process to one provider.

    Thread safety: all methods may be called from any thread. After a fork the child starts without
    connections.
    """

    def __init__(
        self,
        *,
        pool_size: int = 100,
        connect_timeout: float = 5.0,
        max_response_bytes: int = 32 * 1024 * 1024,
        network: Network | None = None,
        session: requests.Session | None = None,
        allow_private_hosts: bool = True,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._pool_size = pool_size
        self._connect_timeout = connect_timeout
        self._limit = max_response_bytes
        self._network = network or Network()
        self._verify: str | bool = self._network.ca_bundle or True
        proxy = self._network.proxy
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._session = session
        self._adapter: PooledAdapter | None = None
        self._seen: tuple[tuple[Any, ...], requests.Session] | None = None
        self._closed = False
        self._lock = threading.Lock()
        _transports.add(self)

    def prepare(self, url: str, headers: Mapping[str, str], method: str = "POST") -> requests.PreparedRequest:
        """A request that can be sent many times, each time with another body."""
        prepared = requests.Request(method, url, headers=dict(headers)).prepare()
        if self._session is None:
            # A plain dict is copied faster; a caller's own adapter gets the mapping type of requests. The
            # Content-Length is removed, since each request sets that of its own body.
            prepared.headers = {  # type: ignore[assignment]
                name: value for name, value in prepared.headers.items() if name.lower() != "content-length"
            }
        return prepared

    def send(
        self,
        prepared: requests.PreparedRequest,
        body: bytes | None,
        timer: RequestTimer,
        *,
        read_timeout: float,
    ) -> Exchange:
        """Sends one request and waits for the headers of its answer.

        Args:
            prepared: from `prepare`.
            body: the request's body.
            timer: the request's deadline; its `cut` ends the request at once.
            read_timeout: seconds for one read on a connection of a caller's own session; reads on our own
                connections are limited by the deadline only.

        Raises:
            errors.APIConnectionError: or one of its kinds; nothing is left open.
        """
        now = time.monotonic()
        left = timer.deadline - now
        if left <= 0 or timer.expired:
            raise errors.APITimeoutError("no time was left to send the request")
        timer.private_allowed = self._allow_private_hosts
        connect_timeout, read_timeout = min(self._connect_timeout, left), min(read_timeout, left)
        request_timer.current.timer = timer
        raw = None
        try:
            schedule(timer)  # inside the try: starting the timer thread may switch greenlets and be killed
            try:
                status, headers, raw = self._post(prepared, body, timer, connect_timeout, read_timeout)
            except (requests.RequestException, HTTPError, OSError) as error:
                if not closed_while_idle(error, timer):
                    raise
                # Whether the provider has read the first one is unknown, so it counts as maybe billed.
                timer.resent, timer.reused = True, False
                status, headers, raw = self._post(prepared, body, timer, connect_timeout, read_timeout)
            timer.raw = raw
            if status == 407 and self._proxies:
                raise self._network.refused("407 Proxy Authentication Required")
            # Which of the two ends the body is ambiguous, and a proxy on the way may have used the other.
            if "transfer-encoding" in headers and "content-length" in headers:
                raise errors.UpstreamProtocolError(
                    "the answer has both Content-Length and Transfer-Encoding", maybe_billed=True
                )
            if timer.expired:
                raise timed_out(sent=True)
            exchange = Exchange(status, headers, raw, timer, self._limit)
        except BaseException as error:
            unschedule(timer)
            if raw is not None:
                raw.close()
            else:
                timer.destroy()
            failure = translate(error, timer, self._network)
            if isinstance(failure, errors.APIConnectionError) and not timer.sent:
                self._network.explain(failure, prepared.url)
            if timer.resent and isinstance(failure, errors.APIConnectionError):
                failure.maybe_billed = True
            # Not chained: exceptions of the network stack may quote header values.
            raise failure from None
        finally:
            request_timer.current.timer = None
        return exchange

    def close(self) -> None:
        """Closes idle connections. Running requests finish; later ones are refused.

        A caller's own session stays open.
        """
        with self._lock:
            self._closed = True
            adapter, self._adapter = self._adapter, None
            seen, self._seen = self._seen, None
        if adapter is not None:
            adapter.close()
        if seen is not None:
            seen[1].close()

    def _post(
        self,
        prepared: requests.PreparedRequest,
        body: bytes | None,
        timer: RequestTimer,
        connect_timeout: float,
        read_timeout: float,
    ) -> tuple[int, Mapping[str, str], Any]:
        """The answer's status, its headers, and urllib3's object for reading the body."""
        session = self._session
        places = seams.PLACES(seams.WHERE)
        seen = places != seams.OWN  # another tool answers or traces requests: then it must see ours
        if session is None:
            adapter = self._adapter or self._open()
            if not seen:
                # No read time-out: the timer's deadline limits the reads.
                return adapter.exchange(prepared, body, Timeout(connect=connect_timeout, read=None))
            session = self._seen_session(places)
        request = prepared.copy()
        request.headers = CaseInsensitiveDict(request.headers)
        request.body = body
        if body is not None:
            request.headers["Content-Length"] = str(len(body))
        mounted = session.get_adapter(request.url or "")
        verify = session.verify if session.verify is not None else True
        # A bundle that the configuration names counts for a caller's session too. Those of the environment
        # count where the session has no certificates of its own and trusts the environment, as in requests.
        if self._network.ca_source == "ca_bundle" or (verify is True and session.trust_env):
            verify = self._verify
            self._check_certificates()
        proxies = dict(session.proxies) or dict(self._proxies)
        if isinstance(mounted, HTTPAdapter) and (not seen or seams.connections_are_own()):
            report(
                mounted.get_connection_with_tls_context(request, verify, proxies=proxies, cert=session.cert)
            )
        else:
            # Its connections do not report, so from here on the provider may have got the request.
            timer.sent = True
        options: dict[str, Any] = {
            "stream": True,
            "timeout": Timeout(connect=connect_timeout, read=read_timeout),
            "verify": verify,
            "cert": session.cert,
            "proxies": proxies,
        }
        if seen:  # some tools replace the session's method, others the adapter's, which it calls
            response = session.send(request, allow_redirects=False, **options)
        else:
            response = mounted.send(request, **options)
        headers = {name.lower(): value for name, value in response.headers.items()}
        raw = response.raw if isinstance(response.raw, HTTPResponse) else seams.ReplayedBody(response)
        return response.status_code, headers, raw

    def _seen_session(self, places: tuple[Any, ...]) -> requests.Session:
        """A session of requests with our certificates, kept for as long as the same tools are there."""
        kept = self._seen
        if kept is not None and kept[0] == places:
            return kept[1]
        session = requests.Session()
        session.trust_env = False
        session.verify = self._verify
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=self._pool_size))
        with self._lock:
            if self._closed:
                raise errors.APIConnectionError(_CLOSED)
            # Of two threads that make one at once the later one's is kept; the other serves its own request.
            # Earlier tools are gone: their connections must not be used once more.
            before, self._seen = self._seen, (places, session)
        if before is not None:
            before[1].close()
        return session

    def _check_certificates(self) -> None:
        problem = self._network.problem()
        if problem is not None:
            raise errors.TLSError(problem)

    def _open(self) -> PooledAdapter:
        with self._lock:
            if self._closed:
                raise errors.APIConnectionError(_CLOSED)
            if self._adapter is None:
                self._check_certificates()
                self._adapter = PooledAdapter(self._pool_size, self._verify, self._proxies)
            return self._adapter

    def _forget(self) -> None:
        # A forked child must not close the parent's sockets in the orderly way: a TLS close would write
        # into the parent's session. The objects are kept, so that no finaliser closes them either.
        self._lock = threading.Lock()
        adapter, self._adapter = self._adapter, None
        seen, self._seen = self._seen, None
        _inherited.extend(each for each in (adapter, seen) if each is not None)
        if self._session is not None:
            for mounted in self._session.adapters.values():
                if isinstance(mounted, HTTPAdapter):
                    _inherited.append((mounted.poolmanager, mounted.proxy_manager))
                    mounted.proxy_manager = {}
                    mounted.init_poolmanager(DEFAULT_POOLSIZE, self._pool_size)
