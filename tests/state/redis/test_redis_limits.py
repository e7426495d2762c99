"""Limits, breakers and blocks that many machines share over a real Redis server."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import pytest
from children import ended, forked
from loopback import core_of, nothing_left
from needs import need
from redis_server import Elsewhere, RedisServer, admitted, until

import fastroute
from fastroute import _core, events
from fastroute.state.redis import Shared, leases
from fastroute.state.redis.address import AwayError
from fastroute.testing import Provider

need("redis")
SLOW = {
    "rpm": 6,
    "burst": 300,
}  # one every ten seconds: for as long as a test takes, the burst is all there is
MS = 1_000_000


@pytest.fixture
def make(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., fastroute.Client]]:
    """Clients as on many machines; their threads stand still, and the tests beat for them."""
    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    made: list[fastroute.Client] = []

    def client(**tables: Any) -> fastroute.Client:
        made.append(fastroute.Client(redis.config(**{"timeout": 5.0, **tables})))
        return made[-1]

    yield client
    for one in made:
        one.close()


def shared_of(client: fastroute.Client) -> Any:
    shared = client.runtime.shared
    assert shared is not None
    return shared


# ------------------------------------------------------------------------------------------------- limits


def test_processes_on_many_machines_are_granted_the_limit_and_no_more(redis: RedisServer) -> None:
    machines = [Elsewhere(redis.config(timeout=5.0, limits=SLOW)) for _ in range(3)]
    for machine in machines:
        machine.tell("admit", 1000)
    granted = [machine.answer() for machine in machines]
    # What one has left over when another is refused, it uses itself.
    assert sum(granted) == 300
    assert all(machine.ask("admit", 10) == 0 for machine in machines)
    for machine in machines:
        machine.close()


def test_threads_of_two_machines_are_granted_requests_and_tokens_together(make: Any) -> None:
    limits = {"rpm": 6, "burst": 1000, "tpm": 6, "token_burst": 2000}
    cores = [core_of(make(limits=limits)) for _ in range(2)]
    granted: list[int] = []

    def work(core: _core.Endpoint) -> None:
        granted.append(admitted(core, 1000, 10))

    threads = [threading.Thread(target=work, args=(core,)) for core in cores for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 200
    # The request that came along with refused tokens is not lost: 800 are left, here, there or in Redis.
    requests = sum(core.available_requests() for core in cores)
    assert requests >= 800


def test_the_usual_call_asks_nobody(make: Any, redis: RedisServer) -> None:
    core = core_of(make(limits={"rpm": 60_000, "burst": 60_000}))
    with redis.connect() as connection:
        assert admitted(core, 1) == 1
        before = connection.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        assert admitted(core, 400) == 400
        after = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before <= 4


def test_a_pool_that_runs_low_is_filled_before_a_call_finds_it_empty(make: Any, redis: RedisServer) -> None:
    client = make(limits={"rpm": 6, "burst": 1000, "tpm": 6, "token_burst": 2000})
    core = core_of(client)
    (limits,) = shared_of(client).endpoints.values()
    assert admitted(core, 5, 2) == 5
    assert limits.lease.balance() == (5, 10)  # of ten and twenty: not low yet
    limits.settle()
    assert limits.lease.balance() == (5, 10)
    assert admitted(core, 1, 2) == 1
    before = _core.clock()
    limits.settle()
    assert limits.lease.balance() == (14, 28)
    # The lease begins anew with it: the first one would have ended by then.
    assert limits.lease.balance(before + leases.LEASE_NS) == (14, 28)
    limits.settle()  # once
    assert limits.lease.balance() == (14, 28)
    with redis.connect() as connection:
        asked = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert admitted(core, 14, 2) == 14
        assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] == asked


def test_what_others_took_is_heard_with_every_answer(make: Any) -> None:
    limits = {"rpm": 6, "burst": 1000, "tpm": 6, "token_burst": 20_000}
    first, second = (core_of(make(limits=limits)) for _ in range(2))
    assert admitted(first, 500, 20) == 500
    assert (second.available_requests(), second.available_tokens()) == (1000, 20_000)
    assert admitted(second, 1, 20) == 1
    # Of a lease each has a few more than it has used.
    assert 489 <= second.available_requests() <= 499
    assert 9_780 <= second.available_tokens() <= 9_980


def test_a_refused_call_is_told_how_long_by_what_was_heard_last(make: Any) -> None:
    first, second = (core_of(make(limits={"rpm": 60, "burst": 10})) for _ in range(2))
    assert admitted(first, 100) + admitted(second, 100) == 10
    for core in (first, second):
        answer = core.admit(0)
        assert -answer & 7 == _core.REQUESTS
        assert 0 < -answer >> 3 <= 1_000_000_000


def test_waiting_is_in_one_line_for_all_machines(make: Any) -> None:
    first, second = (core_of(make(limits={"rpm": 60, "burst": 10})) for _ in range(2))
    assert admitted(first, 10) == 10
    waits = [core.reserve(0, 60_000 * MS) for core in (first, second, first)]
    assert waits == sorted(waits)
    for early, late in pairwise(waits):
        assert late - early == pytest.approx(1_000 * MS, rel=0.5)
    # Given back, the next one gets its place.
    second.unreserve(0)
    assert second.reserve(0, 60_000 * MS) < waits[2] + 100 * MS
    assert -second.reserve(0, MS) & 7 == _core.REQUESTS


def test_tokens_beyond_the_estimate_are_a_debt_of_all(make: Any) -> None:
    clients = [make(limits={"tpm": 60, "token_burst": 100}) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    ticket = first.admit(10)
    first.finish(ticket, _core.OK, 0.1, 150)
    shared_of(clients[0]).beat()
    assert second.admit(10) < 0
    wait = -second.admit(10) >> 3
    assert wait >= 65_000 * MS  # 160 used, 10 wanted, 100 at once, one a second


def test_what_nobody_takes_is_given_back(make: Any) -> None:
    clients = [make(limits={"rpm": 6, "burst": 1000}) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    assert admitted(first, 1) == 1  # leases ten
    shared_of(clients[0]).beat()
    shared_of(clients[0]).beat()  # nothing was taken since the last
    assert admitted(second, 2000) == 999


def test_closing_gives_back_at_once(make: Any) -> None:
    clients = [make(limits={"rpm": 6, "burst": 1000}) for _ in range(2)]
    assert admitted(core_of(clients[0]), 3) == 3
    clients[0].close()
    assert admitted(core_of(clients[1]), 2000) == 997


def test_what_the_provider_says_is_left_holds_for_all(make: Any) -> None:
    clients = [make(limits={"rpm": 6, "burst": 100}) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    first.tighten(remaining_requests=5)
    shared_of(clients[0]).settle()
    assert admitted(second, 100) == 5


def test_an_answer_that_was_lost_is_given_again_and_nothing_taken_twice(
    make: Any, redis: RedisServer
) -> None:
    client = make(limits=SLOW)
    connection = shared_of(client).connection
    from fastroute.state.redis.scripts import LIMIT

    interval, burst, _, _ = shared_of(client).endpoints["a/m"].lease.limits()
    words = (0, interval, burst, 0, -1, 7, 7, -1, 0, 0, -1, 0, 0)
    keys = [connection.key("limit", "a/m"), connection.key("done", "x")]
    first, again = (connection.run(LIMIT, keys, *words, read=str) for _ in range(2))
    assert first == again
    assert admitted(core_of(client), 1000) == 300 - 7


def test_every_key_has_an_end(make: Any, redis: RedisServer) -> None:
    client = make(limits=SLOW, budgets=[{"name": "b", "limit": 1.0, "window": "day"}])
    core = core_of(client)
    admitted(core, 3)
    client.runtime.generation.budgets.reserve(1000, {}, 60).settle(1000)
    core.block(_core.clock() + 10**9, 1)
    shared_of(client).settle()
    shared_of(client).beat()
    with redis.connect() as connection:
        keys = connection.keys("*")
        assert len(keys) >= 5
        assert [key for key in keys if connection.pttl(key) <= 0] == []


@pytest.mark.parametrize("garbage", ["text", "list", "numbers", "far"])
def test_garbage_in_a_key_is_written_over(make: Any, redis: RedisServer, garbage: str) -> None:
    client = make(limits=SLOW)
    shared = shared_of(client)
    names = [("limit", "a/m"), ("machines",), ("news",), ("version",), ("probe", "a/m")]
    with redis.connect() as connection:
        for name in names:
            key = shared.connection.key(*name)
            connection.delete(key)
            if garbage == "text":
                connection.set(key, b"\x80\x04\x95cposix\nsystem\n")
            elif garbage == "list":
                connection.rpush(key, "x", "y")
            elif garbage == "numbers":
                connection.hset(
                    key,
                    mapping={"rs": "nan", "rn": "-inf", "ts": "1e999", "tn": "", "breaker:a/m": "open x y"},
                )
            else:
                connection.hset(
                    key, mapping={"rs": "9" * 30, "rn": "1", "ts": "5", "tn": "-9", "breaker:a/m": "open 9"}
                )
    shared.beat()
    core = core_of(client)
    fail(core)
    core.hurry()
    for _ in range(2):
        core.finish(core.admit(0), _core.OK, 0.1)  # both probes
        shared.settle()
    assert core.state() == _core.CLOSED
    assert admitted(core, 1000) == 300 - 7
    core.block(_core.clock() + 10**9, 1)
    shared.settle()
    shared.beat()
    assert shared.connection.there


# ------------------------------------------------------------------------------------ breakers and blocks


def fail(core: _core.Endpoint) -> None:
    for _ in range(5):
        core.finish(core.admit(0), _core.FAILURE, 0.1)


def test_a_breaker_that_opens_opens_everywhere_and_closes_everywhere(make: Any) -> None:
    policy = {"breaker": {"open": 0.05, "max_open": 0.05, "probes_to_close": 1}}
    clients = [make(policy=policy) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    for client in clients:
        shared_of(client).beat()
    fail(first)
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    assert first.state() != _core.CLOSED
    assert second.state() != _core.CLOSED
    until(lambda: first.state() == _core.HALF_OPEN and second.state() == _core.HALF_OPEN)
    # One probe for all machines.
    ticket = second.admit(0)
    assert ticket >= 0
    assert -first.admit(0) & 7 == _core.BREAKER
    second.finish(ticket, _core.OK, 0.1)
    assert second.state() == _core.CLOSED
    shared_of(clients[1]).settle()
    shared_of(clients[0]).beat()
    assert first.state() == _core.CLOSED


def test_a_probe_that_says_nothing_goes_to_the_next_machine(make: Any) -> None:
    policy = {"breaker": {"open": 0.05, "max_open": 0.05}}
    clients = [make(policy=policy) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    for client in clients:
        shared_of(client).beat()
    fail(first)
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    until(lambda: first.state() == _core.HALF_OPEN and second.state() == _core.HALF_OPEN)
    ticket = first.admit(0)
    assert second.admit(0) < 0
    first.undo(ticket, 0)
    shared_of(clients[0]).settle()
    until(lambda: second.admit(0) >= 0)


def test_a_probe_that_takes_its_time_stays_the_only_one(make: Any, redis: RedisServer) -> None:
    policy = {"breaker": {"open": 0.5, "max_open": 0.5, "probe_lease": 10.0, "probes_to_close": 1}}
    clients = [make(policy=policy) for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    for client in clients:
        shared_of(client).beat()
    fail(first)
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    until(lambda: first.state() == _core.HALF_OPEN and second.state() == _core.HALF_OPEN)
    ticket = first.admit(0)
    first.extend(ticket, 100.0)
    shared_of(clients[0]).settle()
    wait = -second.admit(0)
    assert wait & 7 == _core.BREAKER
    assert 50e9 < wait >> 3 <= 100e9
    first.finish(ticket, _core.IGNORED)
    shared_of(clients[0]).settle()
    assert second.admit(0) >= 0


def test_a_block_is_learned(make: Any) -> None:
    clients = [make() for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    first.block(_core.clock() + 30 * 10**9, 3)
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    left, reason = second.blocked()
    assert reason == 3
    assert 20 * 10**9 < left <= 31 * 10**9


def test_the_end_of_a_block_is_learned(make: Any) -> None:
    clients = [make() for _ in range(3)]
    cores = [core_of(client) for client in clients]
    cores[0].block(_core.clock() + 30 * 10**9, 3)
    shared_of(clients[0]).settle()
    for client in clients:
        shared_of(client).beat()
    assert [bool(core.blocked()[0]) for core in cores] == [True] * 3
    clients[1].unblock("a/m")
    shared_of(clients[1]).settle()
    for client in clients:
        shared_of(client).beat()
    assert [core.blocked() for core in cores] == [(0, 0)] * 3
    cores[0].block(_core.clock() + 10**9, 3)  # and another one is told as ever
    shared_of(clients[0]).settle()
    shared_of(clients[2]).beat()
    assert cores[2].blocked()[0]


def test_clocks_that_differ_change_nothing(redis: RedisServer, make: Any) -> None:
    """Of both kinds, where the system lets one be set: the time of day, and that since the start."""
    words = ("unshare", "--time", "--fork", "--monotonic", "1000000")
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        words = ()
    machine = Elsewhere(redis.config(timeout=5.0, limits=SLOW), 5.0, words)
    client = make(limits=SLOW)
    core = core_of(client)
    until(lambda: shared_of(client).beat() or machine.ask("stats")["machines"] == 2)
    granted = admitted(core, 100)
    assert granted + machine.ask("admit", 1000) + admitted(core, 1000) == 300
    assert machine.ask("admit", 1) == 0
    core.block(_core.clock() + 30 * 10**9, 3)
    shared_of(client).settle()
    until(lambda: machine.ask("blocked")[0])
    left, reason = machine.ask("blocked")
    assert 10 * 10**9 < left <= 31 * 10**9
    assert reason == 3
    machine.close()


def test_old_news_neither_closes_nor_opens_again(make: Any) -> None:
    clients = [make() for _ in range(2)]
    first, second = (core_of(client) for client in clients)
    fail(first)
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    assert second.state() == _core.OPEN
    shared_of(clients[1]).endpoints["a/m"].lease.close()
    first.block(_core.clock() + 10**9, 1)  # other news, so that all of it is read again
    shared_of(clients[0]).settle()
    shared_of(clients[1]).beat()
    assert second.state() == _core.CLOSED


# ------------------------------------------------------------------------------------------ Redis in trouble


def test_away_from_the_beginning_each_machine_has_its_limit(make: Any, redis: RedisServer) -> None:
    redis.kill()
    heard: list[events.SharingChanged] = []
    client = make(limits=SLOW)
    client.on(heard.append, events.SharingChanged)
    assert admitted(core_of(client), 1000) == 300
    assert [(event.shared, event.machines) for event in heard] == [(False, 1)]
    figures = client.stats()["redis"]
    assert figures["there"] is False
    assert figures["reason"]


def test_while_it_is_away_each_goes_on_with_its_share_and_comes_back(
    make: Any, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.state.redis.connection.OPEN_S", 0.2)
    clients = [make(limits=SLOW) for _ in range(3)]
    for _ in range(2):
        for client in clients:
            shared_of(client).beat()
    assert [client.stats()["redis"]["machines"] for client in clients] == [3, 3, 3]
    redis.kill()
    assert [admitted(core_of(client), 1000) for client in clients] == [100, 100, 100]
    assert clients[0].stats()["redis"]["share"] == pytest.approx(1 / 3)
    redis.start()
    until(lambda: _beats(clients[0]))
    assert clients[0].stats()["redis"]["there"]
    assert clients[0].stats()["redis"]["share"] == 1.0


def _beats(client: fastroute.Client) -> bool:
    try:
        shared_of(client).beat()
    except AwayError:
        return False
    return True


def test_a_server_that_accepts_and_says_nothing_costs_one_time_out(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    listening = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s")
    listening.bind(path)
    listening.listen(64)
    config = RedisServer.config(_Named(path), limits=SLOW)  # type: ignore[arg-type]
    try:
        with fastroute.Client(config) as client:
            assert shared_of(client).connection.address.timeout == 0.25
            began = time.monotonic()
            assert admitted(core_of(client), 200) == 200
            # Each would have cost a quarter of a second.
            assert time.monotonic() - began < 5
            assert client.stats()["redis"]["there"] is False
            asked = 0
            listening.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    listening.accept()[0].close()
                    asked += 1
            assert asked == 1
    finally:
        listening.close()


def test_an_address_that_swallows_connections_costs_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "ensure", lambda self: None)
    tried: list[Any] = []
    connect = socket.socket.connect
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):  # its queue is full: who comes now is neither taken nor refused
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        monkeypatch.setattr(socket.socket, "connect", lambda sock, to: (tried.append(to), connect(sock, to)))
        state = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        config = RedisServer.config(_Named(""), state=state, limits=SLOW)  # type: ignore[arg-type]
        client = stack.enter_context(fastroute.Client(config))
        assert admitted(core_of(client), 200) == 200
        assert tried == [listening.getsockname()]
        redis = client.stats()["redis"]
        assert (redis["there"], redis["reason"]) == (False, "Redis is unavailable (TimeoutError)")


class _Named:
    def __init__(self, path: str) -> None:
        self.socket = path


def test_a_server_that_stands_still_is_left_alone(make: Any, redis: RedisServer) -> None:
    client = make(timeout=0.25, limits=SLOW)
    core = core_of(client)
    assert admitted(core, 1) == 1
    redis.pause()
    try:
        began = time.monotonic()
        assert admitted(core, 100) == 100
        assert time.monotonic() - began < 5
        assert not client.stats()["redis"]["there"]
    finally:
        redis.go_on()


@pytest.mark.parametrize(
    "trouble", ["pause", "busy", "full", "read-only", "forgetful", "password", "flushed scripts"]
)
def test_no_trouble_of_redis_reaches_a_caller(make: Any, redis: RedisServer, trouble: str) -> None:
    client = make(timeout=0.25, limits=SLOW)
    core = core_of(client)
    assert admitted(core, 1) == 1
    with redis.connect() as connection:
        if trouble == "pause":
            connection.client_pause(400)
        elif trouble == "full":
            connection.config_set("maxmemory", 1)
        elif trouble == "read-only":
            connection.replicaof("127.0.0.1", 1)
        elif trouble == "forgetful":
            connection.flushall()
        elif trouble == "flushed scripts":
            connection.script_flush()
        elif trouble == "password":
            connection.config_set("requirepass", "x")
            connection.execute_command("AUTH", "x")
            connection.client_kill_filter(_type="normal", skipme=True)
        sleeper = None
        if trouble == "busy":
            sleeper = threading.Thread(target=_sleep, args=(redis,))
            sleeper.start()
        granted = admitted(core, 1000)
        assert 250 <= granted <= 300 + 300  # a server that has forgotten all grants its burst once more
        if trouble in ("flushed scripts",):
            assert granted == 299
            assert client.stats()["redis"]["there"]
        if trouble in ("full", "read-only", "password"):
            assert client.stats()["redis"]["there"] is False
        if sleeper is not None:
            sleeper.join()
        connection.replicaof("no", "one")
        connection.config_set("requirepass", "")
        connection.config_set("maxmemory", 0)


def _sleep(redis: RedisServer) -> None:
    with redis.connect() as connection:
        connection.execute_command("DEBUG", "SLEEP", "0.4")


def test_a_server_that_throws_keys_away_is_warned_of(make: Any, redis: RedisServer) -> None:
    with redis.connect() as connection:
        connection.config_set("maxmemory-policy", "allkeys-lru")
    client = make(limits=SLOW)
    admitted(core_of(client), 1)
    assert "noeviction" in client.stats()["redis"]["warnings"][0]
    for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
        with redis.connect() as connection:
            connection.config_set("maxmemory-policy", policy)
        client = make(limits=SLOW)
        admitted(core_of(client), 1)
        assert client.stats()["redis"]["warnings"] == []


def test_a_server_that_comes_and_goes_is_not_stormed_and_counts_stay_whole(
    make: Any, redis: RedisServer
) -> None:
    clients = [make(limits=SLOW) for _ in range(2)]
    granted = 0
    for _ in range(2):
        redis.kill()
        granted += sum(admitted(core_of(client), 20) for client in clients)
        # When each of them tries again is drawn anew, so that many do not come at one moment.
        rests = [shared_of(client).connection.rest_ns for client in clients]
        assert 0 < min(rests) < max(rests) <= 5_001 * MS
        redis.start()
        granted += sum(admitted(core_of(client), 20) for client in clients)
    with redis.connect() as connection:
        # Found away, it is not asked again for seconds: both clients together have made a connection or two.
        assert connection.info("stats")["total_connections_received"] <= 10
        for key in connection.keys("*limit*"):
            assert all(float(value) >= 0 for value in connection.hgetall(key).values())
    assert granted <= 160


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(make: Any, redis: RedisServer) -> None:
    client = make(limits=SLOW)
    core = core_of(client)
    assert admitted(core, 5) == 5
    read, write = os.pipe()
    child = forked(lambda: os.write(write, str(admitted(core, 100)).encode()))
    os.close(write)
    with os.fdopen(read) as answers:
        theirs = int(answers.read())
    assert ended(child) == 0
    assert theirs == 100
    assert admitted(core, 1000) == 195


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_beats_for_itself(redis: RedisServer) -> None:
    with fastroute.Client(redis.config(timeout=5.0, limits={"rpm": 60_000})) as client:
        shared_of(client).ensure()
        core = core_of(client)
        assert admitted(core, 1) == 1

        def beats_here() -> bool:
            return "fastroute-shared" in {thread.name for thread in threading.enumerate()}

        def work() -> None:
            assert not beats_here()
            assert admitted(core, 2000) == 2000  # the pool runs low, which wakes whoever fills it
            assert beats_here()
            known = shared_of(client).version
            core.block(_core.clock() + 10**9, 3)
            until(lambda: shared_of(client).version != known)  # told, and heard of at a beat

        assert beats_here()
        assert ended(forked(work)) == 0


def test_calls_of_two_machines_wait_for_one_limit(redis: RedisServer) -> None:
    with ExitStack() as stack:
        provider = stack.enter_context(Provider())
        tables = redis.config(provider.base_url, limits={"rpm": 1200, "burst": 2})
        clients = [stack.enter_context(fastroute.Client(tables)) for _ in range(2)]
        began = time.monotonic()
        calls = [
            client.submit(model="m", messages=[{"role": "user", "content": str(number)}])
            for number in range(5)
            for client in clients
        ]
        waited = sum(call.result().route.waited for call in calls)
        # Two at once, then one every 50 ms; a lease may be two seconds old, but none is older than this test.
        assert time.monotonic() - began >= 8 * 0.05
        assert waited > 0.05
        assert len(provider.requests) == 10


def test_closing_leaves_no_thread_and_no_connection(redis: RedisServer) -> None:
    with nothing_left():
        client = fastroute.Client(redis.config(limits=SLOW))
        shared_of(client).ensure()
        assert admitted(core_of(client), 5) == 5
        client.close()


def test_the_thread_learns_by_itself(redis: RedisServer) -> None:
    with (
        fastroute.Client(redis.config(limits=SLOW)) as first,
        fastroute.Client(redis.config(limits=SLOW)) as second,
    ):
        for client in (first, second):
            shared_of(client).ensure()
        until(lambda: second.stats()["redis"]["machines"] == 2)
        fail(core_of(first))
        until(lambda: core_of(second).state() == _core.OPEN)


# ------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("redis://:secret@h/0", "FASTROUTE_REDIS_PASSWORD"),
        ("redis://h/0?prefix=a b", "prefix"),
        ("redis://h/0?timeout=99", "timeout"),
        ("redis://h/0?local=there", "local"),
        ("redis://h/0?nonsense=1", "option"),
        ("redis:///0", "is not a valid address"),
        ("unix://host/x", "socket"),
        ("redis://h:99999/0", "is not a valid address"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(state: str, says: str) -> None:
    config = RedisServer.config(_Named("/x"))  # type: ignore[arg-type]
    config["fastroute"]["state"] = state
    with pytest.raises(fastroute.ConfigError, match=says) as caught:
        fastroute.Client(config)
    assert "secret" not in str(caught.value)


def test_the_password_comes_from_the_environment_or_a_file(
    make: Any, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with redis.connect() as connection:
        connection.config_set("requirepass", "open sesame")
        try:
            monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD", "open sesame")
            client = make(limits=SLOW)
            admitted(core_of(client), 1)
            assert client.stats()["redis"]["there"]
            assert "sesame" not in repr(shared_of(client).connection.address)
            monkeypatch.delenv("FASTROUTE_REDIS_PASSWORD")
            (tmp_path / "p").write_text("open sesame\n")
            monkeypatch.setenv("FASTROUTE_REDIS_PASSWORD_FILE", str(tmp_path / "p"))
            client = make(limits=SLOW)
            admitted(core_of(client), 1)
            assert client.stats()["redis"]["there"]
        finally:
            connection.execute_command("AUTH", "open sesame")
            connection.config_set("requirepass", "")


def test_a_reload_changes_the_shared_limit(make: Any, redis: RedisServer) -> None:
    client = make(limits={"rpm": 6, "burst": 10})
    assert admitted(core_of(client), 100) == 10
    client.reload(redis.config(limits={"rpm": 6, "burst": 30}))
    assert admitted(core_of(client), 100) == 20
