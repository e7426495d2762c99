"""A plugin for pytest: a fixture with a provider that answers on this machine, and a guard of the network.

It is active wherever fastroute is installed beside pytest. ``fastroute_provider`` is a running
`Provider`. With ``fastroute_guard = true`` in pytest's ini file, or ``--fastroute-guard`` on its
command line, tests can reach nothing but this machine: no test can spend money by mistake, whatever
sends the request.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastroute.testing import Provider

_HELP = "fail a test that asks for a host name or connects to an address other than this machine's"
_CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname")


class NetworkBlocked(RuntimeError):
    """A test was about to reach another machine while the guard is on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("fastroute_guard", _HELP, type="bool", default=False)
    parser.getgroup("fastroute").addoption("--fastroute-guard", action="store_true", help=_HELP)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("fastroute_guard") or config.getini("fastroute_guard"):
        guard = _Guard()
        config.pluginmanager.register(guard, "fastroute-guard")
        # Python has no way to remove a hook, so this one can be switched off.
        sys.addaudithook(guard.check)


class _Guard:
    """Refuses connections to other machines from its creation to the end of the test run."""

    def __init__(self) -> None:
        self._on = True

    def pytest_unconfigure(self) -> None:
        self._on = False

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on or not event.startswith("socket."):
            return
        if event in _CONNECTS:
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else None  # a path: a socket of this machine
        elif event in _NAMES:
            host = arguments[0]
        else:
            return
        if not _is_here(host):
            shown = host.decode("ascii", "replace") if isinstance(host, bytes) else host
            raise NetworkBlocked(
                f"a test was about to reach {shown}; answer it with the fixture fastroute_provider or a "
                "mock, or run without --fastroute-guard and fastroute_guard"
            )


def _is_here(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture
def fastroute_provider() -> Iterator[Provider]:
    """A provider on 127.0.0.1 that answers each model with what it was asked; it stops with the test."""
    from fastroute.testing import Provider

    with Provider() as provider:
        yield provider
