"""The connection of a request, as far as the server tells: to end it if its client neither sends nor reads.

A server with threads waits in the thread of the request for a client that sends its body or takes its
response slowly, and some wait for ever. gunicorn and waitress tell the socket, which another thread can shut:
then the waiting thread goes on with an error. With other servers nothing happens here; see docs/gateway.md.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastroute.platform.timer import Alarm, schedule, unschedule

_PIECE = 16 * 1024  # bytes of a response handed to the server at a time, so that slow progress is seen
_NEVER = float("inf")


class Connection:
    """One request's connection.

    Attributes:
        known: whether the server has told its socket.

    Thread safety: all methods.
    """

    def __init__(self, sock: Any, channel: Any = None) -> None:
        self._sock = sock
        self._channel = channel
        self.known = sock is not None

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> Connection:
        """The connection of a request's WSGI environment."""
        return cls(*server_socket(environ))

    def unsent(self) -> int | None:
        """Bytes of responses that the client has not taken; None if that is unknown."""
        waiting: int = getattr(self._channel, "total_outbufs_len", 0)
        queued = queued_bytes(self._sock)
        return None if queued is None else waiting + queued

    def hang_up(self) -> None:
        """Shuts the connection, which wakes a thread that reads from it or writes to it."""
        self._shut(socket.SHUT_RDWR)

    @contextmanager
    def reading_until(self, ends: float) -> Iterator[ReadLimit]:
        """Ends reading from the client at a time (time.monotonic); it can still be answered."""
        limit = ReadLimit(ends, self)
        # A server that has read the whole body before (waitress) does not wait for anything.
        watched = self.known and self._channel is None
        if watched:
            limit.start()
        try:
            yield limit
        finally:
            if watched:
                limit.cancel()

    def _shut(self, how: int) -> None:
        # Not SSLSocket.shutdown, which drops the TLS object under a thread that uses it.
        kind: Any = socket.socket if isinstance(self._sock, socket.socket) else type(self._sock)
        try:
            kind.shutdown(self._sock, how)
        except (OSError, AttributeError):
            pass  # closed already

    def end_reading(self) -> None:
        """The thread that reads from the client sees the end of what it sends."""
        self._shut(socket.SHUT_RD)


def server_socket(environ: Mapping[str, Any]) -> tuple[Any, Any]:
    """The socket of a request, and waitress's object around it; None where the server does not tell."""
    sock = environ.get("gunicorn.socket")
    if sock is not None:
        return sock, None
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    return getattr(channel, "socket", None), channel


def queued_bytes(sock: Any) -> int | None:
    """Bytes written to a socket that its peer has not acknowledged; None where the system does not tell."""
    import fcntl
    import termios

    try:
        found = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (OSError, ValueError, AttributeError):
        return None
    return int.from_bytes(found, "little")


class ReadLimit:
    """Ends reading from a connection at a time.

    Attributes:
        passed: whether it did.
    """

    def __init__(self, ends: float, connection: Connection) -> None:
        self.passed = False
        self._connection = connection
        self._alarm = Alarm(ends, self._end)

    def start(self) -> None:
        self._alarm.start()

    def cancel(self) -> None:
        self._alarm.cancel()

    def _end(self) -> None:
        self.passed = True  # before the reader wakes, which looks at it
        self._connection.end_reading()


class WatchedBody:
    """The body of a WSGI response, which ends when its client takes nothing of it for some time.

    While the server has a piece, this waits for it to ask for the next one. A client that takes bytes,
    however few, is not ended: what is left in the buffers of server and system tells.

    Args:
        body: the pieces; closed with the response.
        connection: the request's.
        timeout: seconds without progress.
        ends: time.monotonic at which the response ends, whatever progress there is.
        closed: called once when it has ended, in any way.

    Thread safety: the server's thread iterates and closes, the timer thread expires.
    """

    _open = False  # for `__del__`, if the constructor is interrupted

    def __init__(
        self,
        body: bytes | Iterator[bytes],
        connection: Connection,
        timeout: float,
        ends: float = _NEVER,
        closed: Callable[[], None] | None = None,
    ) -> None:
        self._pieces = _cut(body) if isinstance(body, bytes) else body
        self._close: Callable[[], None] | None = getattr(body, "close", None)
        self._closed = closed
        self._connection = connection
        self._half = timeout / 2
        self._ends = ends
        self._looked = False
        self._unsent: int | None = None  # when it was looked at
        self._scheduled = False
        # Held while the connection is shut: after `close` it belongs to the client's next request. Reentrant,
        # because a garbage collection may close another body meanwhile, or this one.
        self._shutting = threading.RLock()
        self.deadline = _NEVER
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.deadline = _NEVER  # from here on the time is the provider's
        try:
            piece = next(self._pieces)
        except StopIteration:
            unschedule(self)  # the timer thread would keep a body that a server forgets to close
            raise
        self._looked = False
        self.deadline = min(time.monotonic() + self._half, self._ends)
        if not self._scheduled:
            self._scheduled = True
            schedule(self)
        return piece

    def expire(self) -> bool:
        """Called by the timer thread: after half of the time it looks what is left, after all it compares."""
        with self._shutting:
            now = time.monotonic()
            if not self._open or self.deadline > now:
                return self._open
            before, self._unsent = self._unsent, self._connection.unsent()
            first, self._looked = not self._looked, True
            if now < self._ends and (first or self._unsent != before):
                self.deadline = min(now + self._half, self._ends)
                return True
            self._connection.hang_up()
        if not self._connection.known:
            self.close()  # the thread cannot be woken, but nothing is held for it any longer
        return False

    def close(self) -> None:
        """Ends the response. Idempotent, also if two threads do it at once."""
        with self._shutting:
            was_open, self._open = self._open, False
        if not was_open:
            return
        unschedule(self)
        try:
            if self._close is not None:
                self._close()
        finally:
            if self._closed is not None:
                self._closed()

    def __del__(self) -> None:
        if self._open:  # a server that did not close it
            self.close()


def _cut(body: bytes) -> Iterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), _PIECE):
        yield bytes(view[start : start + _PIECE]) if len(body) > _PIECE else body


__all__ = ["Connection", "ReadLimit", "WatchedBody", "queued_bytes", "server_socket"]
