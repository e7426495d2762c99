"""Host names to addresses, within a time limit.

The system's resolver takes no time-out and may hang for half a minute; no socket is open yet that somebody
could shut. So it is asked in a thread of its own, and whoever waits gives up in time. The thread stays until
the resolver returns: there is one a name at most, and calls that come meanwhile wait for the same one.

Nothing is remembered: what a name stands for is asked anew for every connection.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable

from urllib3.util.connection import allowed_gai_family

_LOOK = 0.05  # seconds between two looks whether an address is still wanted


class _Lookup:
    """A question to the resolver that is under way."""

    __slots__ = ("addresses", "done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[str] = []
        self.error: str | None = None


_lookups: dict[tuple[str, int], _Lookup] = {}
_lock = threading.Lock()


def after_fork() -> None:
    """In a forked child: the parent's threads are not here, and will never answer."""
    global _lookups, _lock
    _lookups = {}
    _lock = threading.Lock()


def is_address(host: str) -> bool:
    """Whether there is nothing to resolve."""
    return ":" in host or host.replace(".", "").isdigit()


def resolve(host: str, port: int, seconds: float | None, unwanted: Callable[[], bool]) -> list[str]:
    """The host's addresses, in the order in which to try them.

    Args:
        unwanted: whether nobody needs them any more.

    Raises:
        TimeoutError: the resolver did not answer in time, or while they were needed.
        socket.gaierror: there is no such name.
    """
    key = (host, port)
    with _lock:
        lookup = _lookups.get(key)
        if lookup is None:
            lookup = _Lookup()
            thread = threading.Thread(
                target=_look_up, args=(key, lookup), name="fastroute-resolver", daemon=True
            )
            thread.start()  # first: an interrupt between the two must not leave a question nobody asks
            _lookups[key] = lookup
    end = math.inf if seconds is None else time.monotonic() + seconds
    while not lookup.done.wait(min(max(end - time.monotonic(), 0.0), _LOOK)):
        if unwanted() or time.monotonic() >= end:
            raise TimeoutError("the resolver did not answer in time")
    if not lookup.addresses:
        raise socket.gaierror(socket.EAI_NONAME, lookup.error or "no address")
    return lookup.addresses


def _look_up(key: tuple[str, int], lookup: _Lookup) -> None:
    host, port = key
    try:
        found = socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)
        lookup.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    except (OSError, UnicodeError) as error:
        lookup.error = getattr(error, "strerror", None) or type(error).__name__
    finally:
        with _lock:
            if _lookups.get(key) is lookup:
                del _lookups[key]
        lookup.done.set()
