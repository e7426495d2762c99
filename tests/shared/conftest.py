"""One Redis server for all tests of one file, and clients as on many machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_machines import Machines
from redis_server import RedisServer

from fastroute.shared import Shared, permits, server


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis(running: RedisServer) -> RedisServer:
    """The server, running and empty."""
    if running.process is None:
        running.start()
    with running.connect() as connection:
        connection.flushall()
        connection.config_set("maxmemory", 0)
        connection.config_set("maxmemory-policy", "noeviction")
    return running


@pytest.fixture
def machines(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Their threads stand still, and the tests beat for them."""
    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    monkeypatch.setattr(permits, "_RENEW_NS", 0)  # every beat renews
    monkeypatch.setattr(server, "_OPEN_S", 0.2)  # a server that was found away is tried again soon
    found = Machines(redis)
    yield found
    found.close()
