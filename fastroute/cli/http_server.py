"""The server of ``fastroute serve``: waitress, with limits for clients that are slow or hostile.

One thread does all reading and writing, and a thread of a pool runs each request once it has arrived. A
client that takes nothing of a response occupies a thread of the pool, and one that sends nothing occupies a
connection. So beside what waitress does by itself:

- health checks and errors of the server have threads of their own, so that no caller can occupy them;
- a request must arrive within a time, and a client must take its response with some progress;
- the bytes of all bodies that have arrived are limited;
- if no connection is free, idle ones are closed, the longest idle first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from attrs import frozen
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher
from waitress.utilities import Error

from fastroute.gateway.connection import queued_bytes

from .access_log import Application
from .group import refuse

_HEADER_BYTES = 32 * 1024
_UNSENT_BYTES = 1024 * 1024  # buffered for a slow client before its stream is paused
_TICK = 0.5  # seconds between two checks for a signal and for slow clients
_RESERVED_THREADS = 2


@frozen
class ServerLimits:
    """What clients may occupy.

    Attributes:
        threads: calls served at once; more calls wait.
        connections: open at once.
        body_bytes: size of a body.
        bytes_under_way: bytes of all bodies that have arrived and are not answered.
        read_timeout: seconds in which a request must arrive.
        write_timeout: seconds after which a client that takes nothing is disconnected.
        reserved: paths that are served by threads of their own.
        known: whether an Authorization header has a valid key; must not wait.
    """

    threads: int
    connections: int
    body_bytes: int
    bytes_under_way: int
    read_timeout: float
    write_timeout: float
    reserved: Collection[str]
    known: Callable[[str], bool]


class _RequestTimeout(Error):
    code = 408
    reason = "Request Timeout"


class _ServiceUnavailable(Error):
    code = 503
    reason = "Service Unavailable"

    def to_response(self, ident: Any = None) -> Any:
        status, headers, body = super().to_response(ident)
        return status, [*headers, ("Retry-After", "1")], body


class _Arrived:
    """Counts the bytes of bodies that have arrived.

    Whoever has no valid key may fill an eighth of the room only, so that strangers keep no caller out.

    Thread safety: all methods; the thread of the connections adds, others take away.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.known = limits.known
        most = limits.bytes_under_way
        self._most = {True: most, False: min(most, max(most // 8, limits.body_bytes))}
        self._bytes = {True: 0, False: 0}  # by whether the key is known
        self._lock = threading.Lock()

    def add(self, request: _ArrivingRequest, size: int) -> bool:
        """Counts bytes of a request; False if they are too many."""
        with self._lock:
            if self._bytes[request.known] + size > self._most[request.known]:
                return False
            self._bytes[request.known] += size
            request.counted += size
            return True

    def drop(self, request: _ArrivingRequest) -> None:
        """Takes away what was counted of a request. Idempotent."""
        with self._lock:
            self._bytes[request.known] -= request.counted
            request.counted = 0


class _ArrivingRequest(HTTPRequestParser):
    """A request that arrives. One with both a length and chunks is refused.

    If a proxy in front of it uses the other of the two, one of them reads a second request in the first one's
    body (request smuggling).
    """

    adj: Any  # with `arrived`, which `serve` adds

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.began = time.monotonic()
        self.counted = 0
        self.known = False  # whether its key is

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Content-Length and Transfer-Encoding in one request")
        self.known = self.adj.arrived.known(self.headers.get("AUTHORIZATION", ""))

    def received(self, data: bytes) -> int:
        before = self.body_bytes_received
        consumed: int = super().received(data)
        size = self.body_bytes_received - before
        if size and self.error is None and not self.adj.arrived.add(self, size):
            self.error = _ServiceUnavailable("requests of too many bytes are under way; try again")
            self.completed = True
        return consumed

    def close(self) -> None:
        super().close()
        self.adj.arrived.drop(self)


class _Channel(HTTPChannel):
    """One connection."""

    parser_class = _ArrivingRequest
    request: Any  # types-waitress has other types for these
    requests: Any
    requests_lock: Any
    server: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._unsent = 0
        self._moved = 0.0  # time.monotonic when it last changed
        super().__init__(*arguments, **options)

    @property
    def is_idle(self) -> bool:
        return not self.requests and not self.total_outbufs_len and self.request is None

    def handle_close(self) -> None:
        super().handle_close()
        request, self.request = self.request, None
        if request is not None:
            request.close()  # else its bytes stayed counted

    def look(self, now: float, limits: ServerLimits) -> None:
        """Ends what takes too long: a request that does not arrive, a response that is not taken."""
        request = self.request
        if request is not None and self.requests:
            request.began = now  # nothing is read while the request before it runs
        elif request is not None and now - request.began > limits.read_timeout:
            self._time_out(request, limits)
        if not self.total_outbufs_len:
            self._moved = now
            return
        unsent = self.total_outbufs_len + (queued_bytes(self.socket) or 0)
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif now - self._moved > limits.write_timeout:
            self.handle_close()  # wakes a thread that waits to write

    def _time_out(self, request: _ArrivingRequest, limits: ServerLimits) -> None:
        with self.requests_lock:
            request.error = _RequestTimeout(f"the request must arrive within {limits.read_timeout:g} seconds")
            request.completed = True
            self.request = None
            self.requests.append(request)
            self.server.add_task(self)


def serve(
    app: Application,
    host: str,
    port: int,
    limits: ServerLimits,
    grace: float,
    *,
    ready: Callable[[str, int], object] = lambda host, port: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running calls end.

    Args:
        grace: seconds to wait for running calls.
        ready: called with host and port once the server listens.
    """
    sockets: dict[int, Any] = {}
    try:
        server: Any = create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            threads=limits.threads,
            max_request_header_size=_HEADER_BYTES,
            max_request_body_size=limits.body_bytes + 1,  # the first size that is refused
            outbuf_high_watermark=_UNSENT_BYTES,
            connection_limit=limits.connections,
            asyncore_use_poll=True,
            ident=None,
        )
    except OSError as error:
        refuse(f"cannot listen on {host}:{port}: {error.strerror}")
    reserved = ThreadedTaskDispatcher()
    reserved.set_thread_count(_RESERVED_THREADS)
    arrived = _Arrived(limits)
    for listener in _listeners(sockets):
        listener.channel_class = _Channel
        listener.adj.arrived = arrived
        listener.add_task = _router(listener.task_dispatcher, reserved, limits.reserved)
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for address, bound in getattr(server, "effective_listen", None) or [
            (server.effective_host, server.effective_port)
        ]:
            ready(address, int(bound))
        next_look = 0.0
        while not asked:
            wasyncore.loop(timeout=_TICK, use_poll=True, map=sockets, count=1)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _TICK
                _look(sockets, limits)
        _drain(sockets, time.monotonic() + grace, limits)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for dispatcher in (server.task_dispatcher, reserved):
            dispatcher.shutdown(timeout=1)
        wasyncore.close_all(sockets, ignore_all=True)


def _router(
    calls: ThreadedTaskDispatcher, reserved: ThreadedTaskDispatcher, paths: Collection[str]
) -> Callable[[Any], None]:
    """Gives a connection's next request to the threads for it."""

    def add_task(channel: Any) -> None:
        request = channel.requests[0]
        quick = request.error is not None or request.path in paths
        (reserved if quick else calls).add_task(channel)

    return add_task


def _listeners(sockets: dict[int, Any]) -> list[Any]:
    return [known for known in sockets.values() if isinstance(known, BaseWSGIServer)]


def _channels(sockets: dict[int, Any]) -> list[_Channel]:
    return [known for known in sockets.values() if isinstance(known, _Channel)]


def _look(sockets: dict[int, Any], limits: ServerLimits) -> None:
    """Ends slow requests and responses, and makes room for new connections."""
    now = time.monotonic()
    for channel in _channels(sockets):
        channel.look(now, limits)
    if len(sockets) >= limits.connections:
        idle = [channel for channel in _channels(sockets) if channel.is_idle]
        for channel in sorted(idle, key=lambda each: each.last_activity)[: limits.connections // 10 + 1]:
            channel.handle_close()


def _drain(sockets: dict[int, Any], ends: float, limits: ServerLimits) -> None:
    """Accepts no more connections, and serves the open ones until their calls are answered."""
    for listener in _listeners(sockets):
        listener.del_channel(sockets)
        listener.socket.close()
    while time.monotonic() < ends:
        _look(sockets, limits)
        for channel in _channels(sockets):
            if channel.is_idle:
                channel.handle_close()
        if not _channels(sockets):
            return
        wasyncore.loop(timeout=0.05, use_poll=True, map=sockets, count=1)
