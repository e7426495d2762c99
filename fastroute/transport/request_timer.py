"""The time limit of a running request; its socket is shut when the time is up.

A socket's read time-out limits one read, not an answer: a peer that sends a byte a second never exceeds it.
So each request has a `RequestTimer`, and the timer thread (`platform/timer.py`) shuts its socket at the
deadline. The reader then sees a clean end of the stream, so it must check the timer's ``expired``.
"""

from __future__ import annotations

import _socket
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from fastroute.platform import forks
from fastroute.platform.timer import unschedule


class RequestTimer:
    """The time limit of one request, with the socket that is shut at the deadline or by `cut`.

    Args:
        deadline: time.monotonic at which the request is cut, whatever has arrived by then.

    Attributes:
        expired: whether the request was cut.
        raw: urllib3's object for reading the body, once the headers have arrived.
        private_allowed: whether the request may go to an address in a private network.
        sent: whether the request is written, so that the provider may be working on it.
        heard: whether any byte of an answer has arrived.
        opening: whether a connection is being opened for it, including TLS.
        fresh: whether a connection was opened for it.
        reused: whether it was sent on a connection that had served another request.
        resent: whether it was sent a second time, because such a connection had ended.
        extension: asked at the deadline for a later one; 0 if there is none.

    Thread safety: the caller's thread sets ``deadline`` and the timer thread reads it, one attribute access
    each. Any thread may call `cut`: the lock keeps it from shutting a socket that `release` has given up.
    ``extension`` is called by the timer thread, so it must neither wait nor fail.
    """

    __slots__ = (
        "_handle",
        "_lock",
        "_shut",
        "_sock",
        "deadline",
        "expired",
        "extension",
        "fresh",
        "heard",
        "opening",
        "private_allowed",
        "raw",
        "resent",
        "reused",
        "sent",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.private_allowed = True
        self.extension: Callable[[], float] | None = None
        self.expired = False
        self.raw: Any = None
        self.heard = False
        self.opening = False
        self.fresh = False
        self.reused = False
        self.resent = False
        self.sent = False
        self._sock: socket.socket | None = None
        self._handle: socket.socket | None = None  # duplicate of a socket that is being connected
        self._shut = False
        # Reentrant: a garbage collection while it is held may finalise the same exchange in the same thread.
        self._lock = threading.RLock()

    @property
    def unsent(self) -> bool:
        """Whether no byte of the request can have reached the provider."""
        return self.opening and not self.resent

    def open(self, sock: socket.socket) -> None:
        """Keeps a duplicate of a socket that is being connected, since TLS detaches the original."""
        self.hold(None)
        with self._lock:
            self._handle = sock.dup()
            self._sock = self._handle
        if self.expired:  # cut before there was a socket to shut
            self.shut()

    def hold(self, sock: socket.socket | None) -> None:
        """Keeps the connection's socket, or None, as the one to shut."""
        with self._lock:
            self._sock = sock
            if self._handle is not None:
                self._handle.close()
                self._handle = None
        if self.expired:
            self.shut()

    def release(self) -> bool:
        """Gives up the connection, which may serve other requests now; returns whether it was shut before."""
        with self._lock:
            self._sock = self.raw = None
            return self._shut

    def cut(self) -> None:
        """Ends the request now; the thread that runs it sees ``expired``."""
        unschedule(self)
        self._end()

    def expire(self) -> bool:
        """Called by the timer thread at the deadline; ends the request unless it is given more time.

        Returns:
            Whether it was, and ``deadline`` is later now.
        """
        later = self.extension() if self.extension is not None else 0.0
        if later > self.deadline and not self.expired:
            self.deadline = later
            return True
        self._end()
        return False

    def _end(self) -> None:
        # Set before the socket is shut, because that wakes the reader, which checks it.
        self.expired = True
        self.shut()

    def shut(self) -> None:
        """Shuts the socket without closing it, which wakes a thread that reads from it."""
        with self._lock:
            raw = self.raw
            if raw is not None and getattr(raw, "connection", self) is None:
                return  # read to its end: the connection is back in the pool
            sock = self._sock
            if sock is not None:
                self._shut = True
                try:
                    # Not SSLSocket.shutdown, which drops the TLS object under a thread that reads from it.
                    _SHUTDOWN(getattr(sock, "fd", sock), socket.SHUT_RDWR)
                except OSError:
                    pass
            elif raw is not None:
                # A connection that does not report to the timer, of a caller's own adapter.
                try:
                    raw.shutdown()
                except (ValueError, RuntimeError, OSError, AttributeError):
                    pass

    def destroy(self) -> None:
        """Closes the socket even if a half-read answer refers to it, for instance after malformed headers."""
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                number = sock.detach()
                if number >= 0:
                    os.close(number)


# eventlet's class has no methods of its own for what does not block; its `fd` is a plain socket.
_SHUTDOWN = getattr(socket.socket, "shutdown", None) or _socket.socket.shutdown

current = threading.local()  # .timer: the timer of the request that this thread is sending


def _after_fork() -> None:
    # The parent's requests do not run in the child.
    global current
    current = threading.local()


forks.in_child(_after_fork)
