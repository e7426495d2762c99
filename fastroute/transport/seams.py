"""Where other tools put themselves between a program and its network, and whether one has.

Tools that answer in tests (responses, requests-mock, vcrpy) and tools that trace replace a method or a
class of requests, urllib3 or http.client. The transport's own connections pass by these places. So as
long as one of them is not what its library defines, requests go through a plain session of requests,
where the tool sees them.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from operator import attrgetter
from types import FunctionType, SimpleNamespace
from typing import Any

from requests import Response, Session
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

WHERE = SimpleNamespace(
    HTTPAdapter=HTTPAdapter,
    Session=Session,
    HTTPConnectionPool=HTTPConnectionPool,
    HTTPSConnectionPool=HTTPSConnectionPool,
    HTTPConnection=HTTPConnection,
    Plain=http.client.HTTPConnection,  # the class itself, whatever its name in http.client stands for later
    http_client=http.client,
)
_NAMES = (
    "HTTPAdapter.send",
    "Session.send",
    "Session.get_adapter",
    "HTTPConnectionPool.urlopen",
    "HTTPConnectionPool.ConnectionCls",
    "HTTPSConnectionPool.ConnectionCls",
    "HTTPConnection.request",
    "HTTPConnection.getresponse",
    "Plain.putrequest",
    "Plain.endheaders",
    "Plain.getresponse",
    "http_client.HTTPConnection",
)
_CONNECTIONS = slice(4, 6)

PLACES = attrgetter(*_NAMES)
"""What is at these places of `WHERE` now. Each call asks, so it is one native call."""


def _is_own(place: Any) -> bool:
    """Whether the library itself defines it, and not a tool that came before our import."""
    if isinstance(place, FunctionType):
        # A wrapper that borrows the name of what it wraps still has the globals of its own module.
        module = sys.modules.get(place.__module__)
        return not hasattr(place, "__wrapped__") and place.__globals__ is getattr(module, "__dict__", None)
    return isinstance(place, type) and place in (HTTPConnection, HTTPSConnection, WHERE.Plain)


OWN = tuple(place if _is_own(place) else None for place in PLACES(WHERE))
"""What the libraries define there. If `PLACES` differs, another tool wants to see requests."""


def connections_are_own() -> bool:
    """Whether pools open urllib3's own connections."""
    found: tuple[object, ...] = PLACES(WHERE)
    return found[_CONNECTIONS] == OWN[_CONNECTIONS]


class ReplayedBody:
    """The body of a response that a tool made, which may lack methods of urllib3's."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._pieces: Iterator[bytes] = response.iter_content(65536)

    def read(self, amt: int | None = None, decode_content: bool = True) -> bytes:
        """The next piece, whatever ``amt`` is; the whole rest without it."""
        return b"".join(self._pieces) if amt is None else next(self._pieces, b"")

    def read1(self, amt: int | None = None, decode_content: bool = True) -> bytes:
        return next(self._pieces, b"")

    def release_conn(self) -> None:
        """The tool has no connection to give back."""

    def close(self) -> None:
        self._response.close()
