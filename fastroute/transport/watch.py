"""The clocks of requests under way, and the one thread that looks at them.

A read time-out of a socket bounds one read, not an answer: a peer that sends a byte a second never meets it.
So each request has a `Watch`, and one thread per process shuts the socket of any whose time is up. The reader
then sees a clean end of stream, which proves nothing: the watch's flag decides. The same thread does what
else is due at a time (`Alarm`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

_TICK = 0.05  # seconds between two looks of the reaper, so also how late it may be
_QUIET_TICKS = 40  # ticks with nothing to watch before it goes to sleep


class Timed(Protocol):
    """Something to happen at a time (time.monotonic)."""

    @property
    def deadline(self) -> float: ...

    def expire(self) -> None: ...


class Alarm:
    """Does something at a time, up to a tick late, in the thread of all clocks: so it must not wait or fail.

    Thread safety: all methods.
    """

    __slots__ = ("_action", "deadline")

    def __init__(self, deadline: float, action: Callable[[], None]) -> None:
        self.deadline = deadline
        self._action = action
        reaper.add(self)

    def expire(self) -> None:
        self._action()

    def cancel(self) -> None:
        """Calls it off, unless it is being done already."""
        reaper.discard(self)


class Watch:
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

    Thread safety: the caller's thread moves ``deadline``, the reaper reads it; each is one attribute. Any
    thread may call `cut`: it touches the socket under the lock under which `release` takes it away.
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
        reaper.discard(self)
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


class Reaper:
    """One thread that expires watches and alarms. Started when first needed, and again after a fork."""

    def __init__(self) -> None:
        self._watches: dict[int, Timed] = {}
        self._wake = threading.Event()
        self._asleep = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, watch: Timed) -> None:
        self._watches[id(watch)] = watch
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fastroute-reaper", daemon=True)
                    self._thread.start()
        elif self._asleep:
            self._wake.set()

    def discard(self, watch: Timed) -> None:
        self._watches.pop(id(watch), None)

    def _look(self) -> None:
        # A function of its own: a name left over in the loop below would keep the last answer alive.
        now = time.monotonic()
        for watch in list(self._watches.values()):
            if watch.deadline <= now:
                self.discard(watch)
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


reaper = Reaper()
current = threading.local()  # .watch: of the request that this thread is sending


def after_fork() -> None:
    """In a forked child: the parent's thread is not here, and none of its requests are."""
    global reaper, current
    reaper = Reaper()
    current = threading.local()
