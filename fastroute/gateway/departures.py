"""Tells whether a caller has closed its connection while its call is made, where the server lets it be known.

WSGI itself has nothing for that. gunicorn and werkzeug hand out the connection, waitress a method of the
object that has it, and uWSGI its number. Under other servers the call runs to its end.

A caller that only ends its sending, and waits for the answer, cannot be told from one that is gone. HTTP's
clients do not do that.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastroute.platform.greenlets import system_poll

from .connection import server_socket

# The peer has closed: RDHUP says so while bytes of a next request are still unread. macOS has none.
_GONE = getattr(select, "POLLRDHUP", 0)


def departure(environ: Mapping[str, Any]) -> Callable[[], bool] | None:
    """A function that returns whether the caller is gone; None if this server does not let it be known.

    It returns at once, and may be called from any thread until the request's response is sent.
    """
    if system_poll() is None:
        return None
    connection = server_socket(environ)[0] or environ.get("werkzeug.socket")
    if connection is not None:
        return partial(_is_closed, int(connection.fileno()))
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None and "uwsgi.version" in environ:
        return partial(_is_closed, int(uwsgi.connection_fd()))
    return None


def _is_closed(number: int) -> bool:
    """Whether the peer of a connection has closed it. Reads nothing, so that the server misses nothing."""
    look = system_poll()()
    look.register(number, _GONE)
    # Errors and hang-ups are reported unasked.
    return any(found & (_GONE | select.POLLHUP | select.POLLERR) for _, found in look.poll(0))


__all__ = ["departure"]
