"""Health checks whose moments a test decides, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopback import MODEL, Loopback

from fastroute import Client, _core, events
from fastroute.runtime.health import HealthChecks
from fastroute.testing import Fault, Provider, Received

Start = Callable[..., Loopback]
Served = Callable[..., Client]

INTERVAL = 1000.0
SECOND = 1_000_000_000


def checking(kind: str = "models", **keys: Any) -> dict[str, Any]:
    """The policy of a client with health checks, whose breakers open at the third failure.

    After the third the endpoint is unhealthy, and callers ask another one.
    """
    keys = {"enabled": True, "kind": kind, "interval": INTERVAL, **keys}
    return {"health_check": keys, "breaker": {"failures": 3}}


def checks_of(client: Client) -> HealthChecks:
    checks = client.runtime.health
    assert checks is not None
    return checks


class Looks:
    """Looks at a client's endpoints, an interval later each time it is told."""

    def __init__(self, *clients: Client) -> None:
        self.clients = clients
        self.now = _core.clock()
        for client in clients:
            checks_of(client).look(self.now)  # nothing is known before the first one, so nothing is idle

    def later(self, intervals: float = 1.0) -> Looks:
        self.now += int(intervals * INTERVAL * SECOND)
        return self

    def look(self) -> None:
        for client in self.clients:
            checks_of(client).look(self.now)


def lists(provider: Provider) -> list[Received]:
    return [request for request in provider.requests if request.method == "GET"]


def posts(provider: Provider) -> list[Received]:
    return [request for request in provider.requests if request.method == "POST"]


def outcomes(loop: Loopback, name: str = "a") -> list[tuple[str, str | None]]:
    found = loop.of(events.HealthChecked)
    return [(event.outcome, event.error) for event in found if event.endpoint == f"{name}/{MODEL}"]


def broken(loop: Loopback) -> None:
    """Opens the breaker of ``a`` by failed calls, which ``b`` then serves."""
    loop.provider("a").script(Fault.status(500), repeat=True)
    for _ in range(3):
        loop.ask()
    assert loop.endpoint()["state"] == "open"
    loop.provider("a").clear_script()
    loop.provider("a").clear_requests()
