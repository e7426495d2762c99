"""A server that sentinels name, which fails over to its replica: calls go on, and limits hold again."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from children import ended, forked
from gateway.gateways import Served, configuration
from hypothesis import given
from hypothesis import strategies as st
from loopback import core_of, nothing_left
from needs import need
from ports import free_port
from redis_machines import Watched, numbers_are_whole
from redis_sentinels import SERVICE, Replicated, Sentinel
from redis_server import Elsewhere, RedisServer, admitted, until

import fastroute
from fastroute import BudgetExceeded
from fastroute.config.redis_url import read_redis_url
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.state.redis import Shared, connection, permits
from fastroute.state.redis.address import AwayError, address_of
from fastroute.state.redis.sentinels import SentinelPool
from fastroute.testing import Provider

need("redis")
Watch = Callable[..., Watched]


def address(*ports: int, service: str = SERVICE) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/{service}"


# ------------------------------------------------------------------------------------- the master is killed


@pytest.fixture
def replicated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replicated]:
    found = Replicated(tmp_path, request.param)
    yield found
    found.close()


@pytest.mark.parametrize("replicated", ["redis-server"], indirect=True)
def test_processes_on_many_machines_go_on_while_the_master_is_replaced_and_then_keep_the_limit(
    replicated: Replicated, provider: Provider
) -> None:
    limits = {"rpm": 6, "burst": 3000, "max_in_flight": 64}
    tables = replicated.master.config(provider.base_url, state=replicated.address, timeout=1.0, limits=limits)
    machines = [Elsewhere(tables, pause=0.2) for _ in range(3)]
    before = sum(machine.ask("admit", 200) for machine in machines)
    for machine in machines:
        machine.tell("go on")
    promoted = replicated.kill_master()
    meanwhile = sum(machine.answer() for machine in machines)
    after = sum(machine.ask("admit", 3000) for machine in machines)
    # What was let in while nobody could be asked is not known there, nor a lease granted in the last moment.
    assert 3000 - 3 * 30 <= before + meanwhile + after <= 3000 + meanwhile + 3 * 30
    assert all(machine.ask("admit", 10) == 0 for machine in machines)
    for machine in machines:
        stats = machine.ask("stats")
        assert stats["there"]
        assert stats["failovers"] == 1
        machine.close()
    assert replicated.master is promoted
    numbers_are_whole(promoted)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was found away is tried again soon; and the tests beat."""
    monkeypatch.setattr(connection, "OPEN_S", 0.2)
    monkeypatch.setattr(permits, "RENEW_NS", 0)
    monkeypatch.setattr(Shared, "ensure", lambda self: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("replicated", ["valkey-server"], indirect=True)
def test_a_gateways_limits_and_budgets_of_callers_hold_over_it(
    replicated: Replicated, provider: Provider, tmp_path: Path
) -> None:
    from werkzeug.test import Client

    from fastroute.gateway.app import create_app

    keys = KeyFile(tmp_path / "keys.db")
    token, admin = keys.create(Caller("web", rpm=60)), keys.create(Caller("boss", admin=True))
    gateways = []
    with ExitStack() as stack:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            state = {"state": f"{replicated.address}?timeout=5"}
            app = create_app(
                configuration(provider.base_url, tmp_path / name, fastroute=state), keys=keys.path
            )
            stack.callback(app.close)
            gateways.append(Served(app, Client(app), provider, keys, token, admin))
        shared = [served.app.client.runtime.shared for served in gateways]
        payer = Caller("payer", budgets={"day": 0.001})
        budgets = [served.app.budgets.of(payer) for served in gateways]

        began = time.monotonic()
        statuses = [gateways[number % 2].post().status_code for number in range(6)]
        spent = spend(budgets, 8)
        replicated.kill_master()
        until(lambda: min([beats(one) for one in shared]))
        statuses += [gateways[number % 2].post().status_code for number in range(30)]
        # Ten at once, and one a second.
        assert 10 <= statuses.count(200) <= 10 + math.ceil(time.monotonic() - began)
        assert set(statuses) == {200, 429}
        assert spent == 8 * 50_000
        assert spent + spend(budgets, 40) == 1_000_000
        assert [one.stats()["failovers"] for one in shared] == [1, 1]


def beats(shared: Shared) -> bool:
    try:
        shared.beat()
    except AwayError:
        return False
    return True


def spend(budgets: list[Any], times: int) -> int:
    """Nano-dollars that were let through, from one budget and the next in turn."""
    spent = 0
    for number in range(times):
        try:
            budgets[number % len(budgets)].reserve(50_000, {"key": "payer"}, 60).settle(50_000)
        except BudgetExceeded:
            continue
        spent += 50_000
    return spent


# ------------------------------------------------------------------------------------- who is asked, and when


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, RedisServer, Sentinel]]:
    options = ("--repl-diskless-sync-delay", "0")
    first, second = (RedisServer("--port", str(free_port()), *options) for _ in range(2))
    sentinel = Sentinel(tmp_path_factory.mktemp("one"), first.port)
    yield first, second, sentinel
    for one in (first, second, sentinel):
        one.close()


@pytest.fixture
def first(servers: tuple[RedisServer, RedisServer, Sentinel]) -> RedisServer:
    """The master, and empty."""
    for one in servers[:2]:
        with one.connect() as connection:
            connection.replicaof("no", "one")
            connection.config_set("min-replicas-to-write", 0)
            connection.flushall()
    servers[2].watch(servers[0].port)
    return servers[0]


@pytest.fixture
def second(servers: tuple[RedisServer, RedisServer, Sentinel]) -> RedisServer:
    return servers[1]


@pytest.fixture
def sentinel(first: RedisServer, servers: tuple[RedisServer, RedisServer, Sentinel]) -> Sentinel:
    return servers[2]


@pytest.fixture
def hung() -> Iterator[socket.socket]:
    with says_nothing() as listening:
        yield listening


@contextmanager
def says_nothing() -> Iterator[socket.socket]:
    """It takes connections, and no more."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.setblocking(False)
        yield listening


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def accepted(listening: socket.socket) -> int:
    """How many connections were made since it was asked last."""
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.usefixtures("quick")
def test_a_master_that_has_become_a_replica_is_not_written_to_again(
    watch: Watch,
    first: RedisServer,
    second: RedisServer,
    sentinel: Sentinel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = watch(first, state=address(sentinel.port))
    granted = admitted(watched.core, 100)
    watched.machines.beat()
    with second.connect() as replica:
        replica.replicaof("127.0.0.1", first.port)
        first.until_replicated()
        replica.replicaof("no", "one")
    with first.connect() as master:
        master.replicaof("127.0.0.1", second.port)
    sentinel.watch(second.port)
    # The connection to the old one is there still, and says READONLY.
    watched.machines.beat()
    assert watched.ask() == "a/m"
    assert granted + 1 + admitted(watched.core, 1000) == 300
    assert watched.there
    assert watched.heard == []
    assert watched.client.stats()["redis"]["failovers"] == 1
    assert caplog.text.count("another Redis server is the master now") == 1


@pytest.mark.usefixtures("quick")
def test_a_master_cut_off_with_its_sentinel_is_left_for_the_one_that_others_name(
    watch: Watch, first: RedisServer, second: RedisServer, sentinel: Sentinel, tmp_path: Path
) -> None:
    other = Sentinel(tmp_path, second.port)
    try:
        watched = watch(first, state=address(sentinel.port, other.port))
        watched.machines.beat()
        with first.connect() as connection:
            connection.config_set("min-replicas-to-write", 1)
        watched.machines.beat_if_there()
        assert "NOREPLICAS" in watched.reason
        # The sentinel that named it does so still.
        watched.comes_back()
        with second.connect() as connection:
            assert connection.exists("{fastroute}:machines")
    finally:
        other.close()


@pytest.mark.usefixtures("quick")
def test_what_does_not_answer_as_a_sentinel_is_passed_over_and_asked_last_from_then_on(
    watch: Watch, first: RedisServer, second: RedisServer, sentinel: Sentinel, hung: socket.socket
) -> None:
    ports = (free_port(), port_of(hung), second.port, sentinel.port)  # nobody, who hangs, no sentinel, one
    watched = watch(first, state=address(*ports), timeout=2.0)
    watched.machines.beat()
    assert admitted(watched.core, 1000) == 300
    assert accepted(hung) == 1
    with first.connect() as connection:
        connection.client_kill_filter(_type="normal", skipme=True)
    watched.machines.beat()
    assert watched.there
    assert watched.heard == []
    assert accepted(hung) == 0


@pytest.mark.usefixtures("quick")
def test_a_sentinel_and_a_master_that_hang_cost_one_time_out_together(
    watch: Watch, first: RedisServer, sentinel: Sentinel, hung: socket.socket
) -> None:
    with says_nothing() as master:
        sentinel.watch(port_of(master))
        watched = watch(first, state=address(port_of(hung), sentinel.port), timeout=0.9)
        assert admitted(watched.core, 1) == 1
        assert not watched.there
        assert watched.machines.shared[0].connection.rest_ns > 0
        assert "Timeout" in watched.reason
        assert accepted(hung) == 1
        # A third of the time-out was the sentinel's, and the master had what was left of it.
        (connection,) = watched.machines.shared[0].connection.pool._available_connections
        assert 0 < connection.socket_connect_timeout <= 0.6
        assert connection.socket_timeout == 0.9
    sentinel.watch(first.port)
    watched.comes_back()


@pytest.mark.usefixtures("quick")
def test_sentinels_that_all_hang_cost_one_time_out(
    watch: Watch, first: RedisServer, hung: socket.socket
) -> None:
    with says_nothing() as other:
        watched = watch(first, state=address(port_of(hung), port_of(other)), timeout=0.25)
        assert admitted(watched.core, 1) == 1
        assert watched.machines.shared[0].connection.rest_ns > 0
        assert watched.reason == "no sentinel names a master (TimeoutError)"
        assert accepted(hung) == 1  # and none of the tries that follow a broken connection


@pytest.mark.usefixtures("quick")
def test_sentinels_that_are_away_at_the_start_and_come_later(
    watch: Watch, first: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    watched = watch(first, state=address(free_port(), port))
    watched.goes_on("no sentinel names a master (ConnectionError)")
    sentinel = Sentinel(tmp_path, first.port, port=port)
    try:
        watched.comes_back()
    finally:
        sentinel.close()


@pytest.mark.usefixtures("quick")
def test_a_service_that_nobody_knows_and_then_knows(
    watch: Watch, first: RedisServer, sentinel: Sentinel
) -> None:
    watched = watch(first, state=address(sentinel.port, service="Shop"))
    watched.goes_on("no sentinel names a master (service unknown)")
    sentinel.watch(first.port, service="Shop")
    watched.comes_back()
    sentinel.ask("REMOVE", "Shop")


@pytest.mark.usefixtures("quick")
def test_a_master_that_sentinels_know_to_be_down_is_not_tried(
    watch: Watch, second: RedisServer, tmp_path: Path, hung: socket.socket
) -> None:
    alone = Sentinel(tmp_path, port_of(hung), quorum=3)
    try:
        until(lambda: alone.state["is_sdown"])
        tried = accepted(hung)
        watched = watch(second, state=address(alone.port))
        watched.goes_on("no sentinel names a master (it is down)")
        assert tried
        alone.watch(second.port)
        watched.comes_back()
    finally:
        alone.close()


def test_a_time_out_that_asking_the_sentinels_has_used_up_is_a_time_out(
    first: RedisServer, sentinel: Sentinel
) -> None:
    redis = need("redis")
    options = {"socket_timeout": 1e-6, "protocol": 2}
    pool = SentinelPool(address_of(address(sentinel.port)), options, lambda: None)
    with pytest.raises(redis.TimeoutError):
        pool.get_connection()
    pool.disconnect()
    for known in pool.sentinel_manager.sentinels:
        known.close()


@pytest.mark.usefixtures("quick")
def test_a_forked_child_asks_for_itself(watch: Watch, first: RedisServer, sentinel: Sentinel) -> None:
    watched = watch(first, state=address(sentinel.port))
    assert admitted(watched.core, 5) == 5
    child = forked(lambda: admitted(watched.core, 100) == 100 or 1 / 0)
    assert ended(child) == 0
    assert admitted(watched.core, 1000) == 195
    assert watched.there


def test_closing_leaves_no_thread_and_no_connection(first: RedisServer, sentinel: Sentinel) -> None:
    with nothing_left():
        client = fastroute.Client(first.config(state=address(sentinel.port), timeout=5.0))
        assert client.runtime.shared is not None
        client.runtime.shared.ensure()
        assert admitted(core_of(client), 5) == 5
        pool = client.runtime.shared.connection.pool  # held, so that nothing ends by itself
        client.close()
    assert pool.sentinel_manager.sentinels


# ----------------------------------------------------------------------------------------- who may come in


@pytest.mark.usefixtures("quick")
def test_sentinels_and_their_server_have_passwords_of_their_own(
    watch: Watch,
    first: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "fastroute")
    port = free_port()
    user = "user watcher on >open-the-gate -@all +sentinel|masters"  # what is said to be enough
    lines = (f"port {port}", user, "requirepass keep-out")
    sentinel = Sentinel(tmp_path, first.port, *lines, port=port, password="keep-out")
    state = f"redis+sentinel://router@127.0.0.1:{port}/{SERVICE}/3"
    tables = {"fastroute": first.config(state=state, timeout=5.0)["fastroute"]}
    tables["fastroute"]["state"] += "&sentinel_username=watcher"
    try:
        with first.connect() as connection:
            connection.execute_command("ACL", "SETUSER", "router", "on", ">open-the-door", "~*", "+@all")
        nobody = watch(first, **tables)
        nobody.goes_on("no sentinel names a master (AuthenticationError)", "NOAUTH")
        (tmp_path / "p").write_text("open-the-gate\n")
        monkeypatch.setenv("FASTROUTE_REDIS_SENTINEL_PASSWORD_FILE", str(tmp_path / "p"))
        monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD", "wrong-key")
        stranger = watch(first, **tables)
        stranger.goes_on("WRONGPASS", "AuthenticationError")
        monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD", "open-the-door")
        watched = watch(first, **tables)
        watched.machines.beat()
        assert watched.there
        with first.connect(db=3) as connection:
            assert connection.exists("{fastroute}:machines")
        said = [repr(one.machines.shared[0].connection.address) for one in (nobody, stranger, watched)]
        said += [str(one.client.stats()) for one in (nobody, stranger, watched)]
        for secret in ("open-the", "wrong-key", "keep-out"):
            assert secret not in " ".join((*said, caplog.text))
    finally:
        sentinel.close()


@pytest.mark.usefixtures("quick")
def test_over_tls_with_a_ca_of_ones_own(
    watch: Watch, first: RedisServer, certificates: Path, tmp_path: Path
) -> None:
    port, own = free_port(), free_port()
    files = (("cert-file", "cert.pem"), ("key-file", "key.pem"), ("ca-cert-file", "ca.pem"))
    options = [f"--tls-{option}={certificates / name}".split("=") for option, name in files]
    plain = ("--tls-auth-clients", "no", *(word for pair in options for word in pair))
    lines = ("port 0", f"tls-port {own}", "tls-replication yes", "tls-auth-clients no")
    lines += tuple(" ".join(pair).removeprefix("--") for pair in options)
    secure = RedisServer("--port", "0", "--tls-port", str(port), *plain)
    sentinel = Sentinel(tmp_path, port, *lines, port=own, ssl=True, ssl_ca_certs=str(certificates / "ca.pem"))
    try:
        found = f"rediss{address(own).removeprefix('redis')}"
        stranger = watch(secure, state=found)
        stranger.goes_on("no sentinel names a master (ConnectionError)")
        tables = {"fastroute": secure.config(state=found, timeout=5.0)["fastroute"]}
        tables["fastroute"]["state"] += f"&ssl_ca_certs={certificates / 'ca.pem'}"
        watched = watch(secure, **tables)
        watched.machines.beat()
        assert watched.there
        assert admitted(watched.core, 1000) == 300
    finally:
        sentinel.close()
        secure.close()


# ------------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize(
    ("place", "hosts", "name", "user", "db", "tls"),
    [
        ("redis+sentinel://a,b:1,[::1]:2/s", [("a", 26379), ("b", 1), ("::1", 2)], "s", "", 0, False),
        ("rediss+sentinel://me%40x@a.b/My-Shop_1.2/15", [("a.b", 26379)], "My-Shop_1.2", "me@x", 15, True),
    ],
)
def test_an_address_is_taken_apart(
    place: str, hosts: list[tuple[str, int]], name: str, user: str, db: int, tls: bool
) -> None:
    found = address_of(f"{place}?prefix=shop&timeout=0.5&local=machine")
    assert (found.prefix, found.timeout) == ("shop", 0.5)
    service = found.service
    assert service is not None
    assert list(service.sentinels) == hosts
    assert (service.name, service.user, service.db, service.tls) == (name, user, db, tls)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("redis+sentinel://h:1", ["names no service"]),
        ("redis+sentinel:///s", ["names no sentinel"]),
        ("redis+sentinel://h:0,g/s", ["sentinel 1 of 2"]),
        ("redis+sentinel://h,g:65536/s", ["sentinel 2 of 2"]),
        ("redis+sentinel://h;g/s", ["sentinel 1 of 1"]),
        ("redis+sentinel://h,,g:x/s", ["sentinel 2, 3 of 3"]),
        ("redis+sentinel://[::g]/s", ["sentinel 1 of 1"]),
        ("redis+sentinel://h,h:26379/s", ["each once"]),
        ("redis+sentinel://h/s/x", ["database"]),
        ("redis+sentinel://h/s?db=1", ["'db'"]),
        ("redis+sentinel://h/s?ssl_ca_certs=/x", ["ssl_ca_certs", "rediss"]),
        ("redis+sentinel://h/s?sentinel_password=hunter2", ["FASTROUTE_REDIS_SENTINEL_PASSWORD"]),
        ("redis+sentinel://:hunter2@h/s", ["FASTROUTE_REDIS_PASSWORD"]),
        ("redis+sentinel://hunter2@:0/?nonsense=1&prefix=-", ["1 of 1", "service", "'nonsense'", "prefix"]),
        ("redis+sentinel:h/s", ["is not a valid address"]),
        ("redis://h/0?sentinel_username=x", ["'sentinel_username'"]),
        ("redis://h/0?ssl_keyfile=/x", ["ssl_keyfile", "rediss"]),
        ("redis://h?db=hunter2", ["invalid db"]),
        ("sentinel://:hunter2@h/s", ["unknown state", "redis+sentinel://"]),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_all_that_is_wrong(state: str, says: list[str]) -> None:
    tables = {
        "fastroute": {"state": state, "workers": 0},
        "providers": {"a": {"base_url": "http://127.0.0.1:9/v1"}},
        "endpoints": [{"provider": "a", "model": "m"}],
    }
    with pytest.raises(fastroute.ConfigError) as caught:
        fastroute.Client(tables)
    lines = str(caught.value).splitlines()
    assert any("fastroute.workers: " in line for line in lines)
    (line,) = (line for line in lines if "fastroute.state: " in line)
    assert [word for word in says if word not in line] == []
    assert "hunter2" not in line


@given(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        [":{}@h,g/s", "me:{}@h/s/1", "h/s?password={}", "h/s?prefix=a&sentinel_password={}", "h,:{}@g/s"]
    ),
)
def test_a_password_in_an_address_is_refused_and_no_part_of_it_repeated(around: str, form: str) -> None:
    secret = f"{around}hunter2{around}"
    with pytest.raises(ValueError, match=r"; (set|use|write|name) ") as caught:
        read_redis_url(f"redis+sentinel://{form.format(secret)}")
    assert "hunter2" not in str(caught.value)
