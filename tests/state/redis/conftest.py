"""One Redis server for all tests of one file, and clients as on many machines."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import need
from redis_machines import Machines, Watched
from redis_server import RedisServer

from fastroute.state.redis import Shared, connection, permits
from fastroute.testing import Provider


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
    monkeypatch.setattr(permits, "RENEW_NS", 0)  # every beat renews
    monkeypatch.setattr(connection, "OPEN_S", 0.2)  # a server that was found away is tried again soon
    found = Machines(redis)
    yield found
    found.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def watch(provider: Provider) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def begin(redis: RedisServer, **more: Any) -> Watched:
        made.append(Watched(redis, provider, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of the tests' own, and a server's certificate of it."""
    need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for line in (
        # Python 3.13 looks for what a CA's certificate should say of its use.
        f"req -x509 {curve} -days 2 -subj /CN=ca -addext keyUsage=keyCertSign -keyout ca.key -out ca.pem",
        f"req {curve} -subj /CN=localhost -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem",
    ):
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    return folder
