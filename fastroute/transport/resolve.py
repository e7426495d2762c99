"""Resolves host names within a time limit.

The system's resolver takes no time-out and may hang for half a minute, and there is no socket yet that could
be shut. So it runs in a thread of its own, and the caller stops waiting at its limit. The thread lasts until
the resolver returns. There is at most one thread for each name and port, which concurrent callers share.

Nothing is cached: a name is resolved again for every connection.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable

from urllib3.util.connection import allowed_gai_family

_LOOK = 0.05  # seconds between two checks whether the request was cut


class _Lookup:
    """A running query to the resolver."""

    __slots__ = ("addresses", "done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[str] = []
        self.error: str | None = None


_lookups: dict[tuple[str, int], _Lookup] = {}
_lock = threading.Lock()


def after_fork() -> None:
    """Forgets the running lookups in a forked child, where the parent's threads do not exist."""
    global _lookups, _lock
    _lookups = {}
    _lock = threading.Lock()


def is_address(host: str) -> bool:
    """Whether the host is an IP address, so that there is nothing to resolve."""
    return ":" in host or host.replace(".", "").isdigit()


def resolve(host: str, port: int, seconds: float | None, unwanted: Callable[[], bool]) -> list[str]:
    """The host's addresses, in the order in which to try them.

    Args:
        unwanted: returns whether the caller no longer needs them.

    Raises:
        TimeoutError: if the resolver did not answer in time, or the addresses are no longer needed.
        socket.gaierror: if the name does not resolve.
    """
    key = (host, port)
    with _lock:
        lookup = _lookups.get(key)
        if lookup is None:
            lookup = _Lookup()
            thread = threading.Thread(
                target=_look_up, args=(key, lookup), name="fastroute-resolver", daemon=True
            )
            # Started before it is entered: an interrupt in between must not leave an entry without a thread.
            thread.start()
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
        # Removed before the waiting threads go on, so that a later call starts a new lookup.
        with _lock:
            if _lookups.get(key) is lookup:
                del _lookups[key]
        lookup.done.set()
