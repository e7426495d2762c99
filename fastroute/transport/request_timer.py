"""The time limit of a request under way, and the socket that is shut when it is up.

A read time-out of a socket bounds one read, not an answer: a peer that sends a byte a second never meets it.
So each request has a `RequestTimer`, and the timer thread (`platform/timer.py`) shuts the socket of any whose
time is up. The reader then sees a clean end of stream, which proves nothing: the timer's flag decides.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from fastroute.platform import forks
from fastroute.platform.timer import unschedule


class RequestTimer:
    """The time limit of one request, and the socket to shut when it is up, or when `cut` is called.

    Args:
        deadline: time.monotonic at which the request is cut, whatever has arrived by then.

    Attributes:
        private_allowed: whether it may go to an address in a private network.
        sent: the request is written, so the provider may be working on it.
        heard: some byte of an answer came.
        opening: a connection is being opened for it, and its TLS agreed on.
        fresh: that is done.
        reused: it went out on a connection that had served another request.
        resent: it went out a second time, because that connection had ended.

    Thread safety: the caller's thread moves ``deadline``, the timer thread reads it; each is one attribute.
    Any thread may call `cut`: it touches the socket under the lock under which `release` takes it away.
    """

    __slots__ = (
        "_handle",
        "_lock",
        "_shut",
        "_sock",
        "deadline",
        "expired",
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
        self.expired = False
        self.raw: Any = None
        self.heard = False
        self.opening = False
        self.fresh = False
        self.reused = False
        self.resent = False
        self.sent = False
        self._sock: socket.socket | None = None
        self._handle: socket.socket | None = None  # of a connection that is being opened
        self._shut = False
        # One that its own thread may take twice: a collection under it may finalise the same exchange.
        self._lock = threading.RLock()

    @property
    def unsent(self) -> bool:
        """Whether no byte of it can have arrived anywhere."""
        return self.opening and not self.resent

    def open(self, sock: socket.socket) -> None:
        """Holds a socket that is being connected, by a second handle: TLS takes the first one away."""
        self.hold(None)
        with self._lock:
            self._handle = sock.dup()
            self._sock = self._handle
        if self.expired:
            self.shut()

    def hold(self, sock: socket.socket | None) -> None:
        """Holds the connection's socket, if it has one."""
        with self._lock:
            self._sock = sock
            if self._handle is not None:
                self._handle.close()
                self._handle = None
        if self.expired:
            self.shut()

    def release(self) -> bool:
        """Leaves the connection alone, which may serve others from now on; whether it was shut before."""
        with self._lock:
            self._sock = self.raw = None
            return self._shut

    def cut(self) -> None:
        """Ends the request now, in whatever thread it is under way."""
        unschedule(self)
        self.expire()

    def expire(self) -> None:
        # The flag goes first: whoever is woken by the shut socket must find it set.
        self.expired = True
        self.shut()

    def shut(self) -> None:
        with self._lock:
            raw = self.raw
            if raw is not None and getattr(raw, "connection", self) is None:
                return  # read to its end: the connection waits for another request
            sock = self._sock
            if sock is not None:
                self._shut = True
                try:
                    # Not SSLSocket.shutdown, which drops the TLS object under a thread that reads from it.
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
        with self._lock:
            sock, self._sock = self._sock, None
            if sock is not None:
                number = sock.detach()
                if number >= 0:
                    os.close(number)


current = threading.local()  # .timer: of the request that this thread is sending


def _after_fork() -> None:
    # None of the parent's requests are in the child.
    global current
    current = threading.local()


forks.in_child(_after_fork)
