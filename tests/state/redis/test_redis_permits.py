"""Calls at once that many machines share over a real Redis server."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import core_of
from redis_machines import Machines
from redis_server import Elsewhere, RedisServer

import fastroute
from fastroute import _core
from fastroute.state.redis import permits
from fastroute.testing import Provider

MS = 1_000_000


def calls(core: _core.Endpoint, most: int) -> list[int]:
    """Tickets of as many calls as are let in at once, up to ``most``."""
    found = []
    while len(found) < most and (ticket := core.admit(0)) >= 0:
        found.append(ticket)
    return found


def end(core: _core.Endpoint, tickets: list[int]) -> None:
    for ticket in tickets:
        core.finish(ticket, _core.OK, 0.01)


def test_processes_on_many_machines_hold_the_limit_and_no_more(redis: RedisServer, tmp_path: Path) -> None:
    # Three machines: on one of them are two processes.
    states = [str(tmp_path / "state"), str(tmp_path / "state"), "memory", "memory"]
    with ExitStack() as stack:
        machines = []
        for state in states:
            machine = Elsewhere(redis.config(local=state, timeout=5.0, limits={"max_in_flight": 90}))
            stack.callback(machine.close)
            machines.append(machine)
        for machine in machines:
            machine.tell("hold", 100)
        held = [machine.answer() for machine in machines]

        def fill() -> None:
            # What a machine has leased and does not use, it gives up when another one asks for it.
            for _ in range(300):
                assert sum(held) <= 90
                if sum(held) == 90:
                    return
                for place, machine in enumerate(machines):
                    held[place] += machine.ask("hold", 100, 0.02)
            raise AssertionError(held)

        fill()
        most = held.index(max(held))  # of four at least 23; any one may have come too late for some
        assert machines[most].ask("let go", 7) == 7
        held[most] -= 7
        fill()


def test_threads_of_two_machines_are_never_more_than_the_limit(machines: Machines) -> None:
    cores = [machines.core(limits={"max_in_flight": 12}) for _ in range(2)]
    lock = threading.Lock()
    under_way, most, let_in = 0, 0, 0

    def work(core: _core.Endpoint) -> None:
        nonlocal under_way, most, let_in
        for _ in range(150):
            ticket = core.admit(0)
            if ticket < 0:
                continue
            with lock:
                under_way += 1
                let_in += 1
                most = max(most, under_way)
            with lock:
                under_way -= 1
            core.finish(ticket, _core.OK, 0.01)

    threads = [threading.Thread(target=work, args=(core,)) for core in cores for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 12
    assert let_in > 200
    assert [core.in_flight for core in cores] == [0, 0]


def test_all_of_it_can_be_had_by_one(machines: Machines) -> None:
    first, second = (machines.core(limits={"max_in_flight": 40}) for _ in range(2))
    machines.beat()
    machines.beat()
    assert len(calls(first, 50)) == 20  # as long as nobody can know what others have in use
    machines.grow_old()
    machines.pass_time()
    calls(first, 50)
    assert first.in_flight >= 30  # the rest is kept ready by the other one
    assert -first.admit(0) & 7 == _core.BUSY
    machines.beat()  # hears that some were wanted
    machines.pass_time()
    calls(first, 50)
    assert first.in_flight == 40
    assert calls(second, 1) == []


def test_the_usual_call_asks_nobody(machines: Machines, redis: RedisServer) -> None:
    core = machines.core()
    end(core, calls(core, 1))
    with redis.connect() as connection:
        before = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        for _ in range(200):
            end(core, calls(core, 5))
        assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] == before


@pytest.mark.parametrize(("under_way", "asks"), [(0, False), (5, False), (6, True), (10, True)])
def test_a_fresh_lease_is_renewed_only_if_little_of_it_is_left(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, under_way: int, asks: bool
) -> None:
    monkeypatch.setattr(permits, "RENEW_NS", permits.LIFE_NS)  # all leases are fresh
    core = machines.core(limits={"max_in_flight": 40})
    end(core, calls(core, 1))  # leases a quarter
    assert machines.leases[0].permits()[0] == 10
    calls(core, under_way)
    (endpoint,) = machines.shared[0].endpoints.values()
    request = endpoint.permits.due()
    assert (request is not None) == asks
    if request is not None:
        assert (request.floor, request.need, request.want) == (under_way, under_way, under_way + 10)


def test_a_refused_machine_does_not_ask_at_every_call(machines: Machines, redis: RedisServer) -> None:
    first, second = (machines.core(limits={"max_in_flight": 8}) for _ in range(2))
    calls(first, 8)
    assert calls(second, 1) == []
    with redis.connect() as connection:
        before = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        now = _core.clock()
        for _ in range(100):
            assert -second.admit(0, now) & 7 == _core.BUSY
        assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 2


def test_a_killed_machine_loses_its_permits_with_its_lease(machines: Machines, redis: RedisServer) -> None:
    elsewhere = Elsewhere(redis.config(timeout=5.0, limits={"max_in_flight": 20}))
    assert elsewhere.ask("hold", 20) == 20
    core = machines.core(limits={"max_in_flight": 20})
    assert calls(core, 1) == []
    elsewhere.process.kill()
    elsewhere.close()
    machines.pass_time()
    assert calls(core, 1) == []  # it may only be slow
    with redis.connect() as connection:
        (key,) = connection.keys("*permits*")
        for field, value in connection.hgetall(key).items():
            count, until, turn = value.split(" ")
            seconds, micros = connection.time()
            assert 0 < int(until) - seconds * 1000 - micros // 1000 <= permits.LIFE_NS // MS
            connection.hset(key, field, f"{count} {int(until) - permits.LIFE_NS // MS} {turn}")
    machines.pass_time()
    assert len(calls(core, 30)) == 20


def test_while_redis_is_away_a_lease_goes_on_and_then_each_has_its_part(
    machines: Machines, redis: RedisServer
) -> None:
    cores = [machines.core(limits={"max_in_flight": 40}) for _ in range(2)]
    machines.beat()
    machines.beat()
    machines.grow_old()
    held = calls(cores[0], 25)
    assert len(held) == 25
    redis.kill()
    others = calls(cores[1], 40)
    # The first one may still have Redis for all that the second one knows: not one more than was leased.
    assert 1 <= len(others) <= 15
    for lease in machines.leases:
        machines.expire(lease)
    machines.pass_time()
    assert len(others) + len(calls(cores[1], 40)) == 20
    assert calls(cores[0], 40) == []  # it has more than its part already
    end(cores[0], held)
    assert len(calls(cores[0], 40)) == 20
    redis.start()
    machines.until_back()
    for core in cores:
        assert core.in_flight == 20
    machines.pass_time()
    assert [calls(core, 1) for core in cores] == [[], []]


def test_a_machine_that_comes_back_is_counted_with_all_it_has_under_way(
    machines: Machines, redis: RedisServer
) -> None:
    first, second = (machines.core(limits={"max_in_flight": 10}) for _ in range(2))
    redis.kill()
    mine, theirs = calls(first, 10), calls(second, 10)
    assert (len(mine), len(theirs)) == (10, 10)  # neither has ever heard of the other
    redis.start()
    machines.until_back()
    end(first, mine)
    machines.beat()
    machines.pass_time()
    assert calls(first, 1) == []  # ten are under way
    end(second, theirs[:4])
    machines.beat()
    machines.beat()
    machines.pass_time()
    assert 1 <= len(calls(first, 10)) <= 4


def test_closing_gives_them_up_at_once(machines: Machines) -> None:
    first, second = (machines.core(limits={"max_in_flight": 10}) for _ in range(2))
    end(first, calls(first, 10))
    assert len(calls(second, 10)) < 10
    machines.clients[0].close()
    machines.pass_time()
    calls(second, 10)
    assert second.in_flight == 10


def test_a_late_answer_is_not_believed(machines: Machines) -> None:
    core = machines.core(limits={"max_in_flight": 10})
    held = calls(core, 3)
    shared = machines.shared[0].endpoints["a/m"]
    connection, machine = machines.shared[0].connection, machines.shared[0].machine
    asked = shared.permits.request(1)
    assert asked is not None
    (answer,) = permits.ask(connection, machine, [shared.permits.key], [asked])
    end(core, held)
    given_up = shared.permits.give_up()
    assert given_up is not None
    begun = _core.clock()
    shared.permits.take(asked, answer, begun)  # it comes after some were given up
    assert shared.lease.permits()[0] == 0
    (answer,) = permits.ask(connection, machine, [shared.permits.key], [given_up])
    assert answer[0] == 0
    # And what is sent late changes nothing there.
    assert permits.ask(connection, machine, [shared.permits.key], [asked])[0][2] >= given_up.turn


def test_a_machine_whose_state_was_made_anew_goes_on(machines: Machines) -> None:
    core = machines.core(limits={"max_in_flight": 10})
    shared = machines.shared[0].endpoints["a/m"]
    asked = permits.PermitRequest(turn=10**6, limit=10, part=10, floor=0, need=0, want=5)
    permits.ask(machines.shared[0].connection, machines.shared[0].machine, [shared.permits.key], [asked])
    assert len(calls(core, 20)) == 10


@pytest.mark.parametrize("garbage", ["text", "list", "words", "far"])
def test_garbage_is_written_over(machines: Machines, redis: RedisServer, garbage: str) -> None:
    core = machines.core(limits={"max_in_flight": 10})
    key = machines.shared[0].endpoints["a/m"].permits.key
    with redis.connect() as connection:
        if garbage == "text":
            connection.set(key, b"\x80\x04\x95cposix\nsystem\n")
        elif garbage == "list":
            connection.rpush(key, "x")
        elif garbage == "words":
            connection.hset(key, mapping={"x": "nan inf 1", "y": "", "z": "1 2"})
        else:
            connection.hset(key, mapping={"x": f"9 {'9' * 30} 1", "y": "99999 5 5"})
    assert len(calls(core, 20)) == 10
    assert machines.shared[0].connection.there


def test_the_limit_of_all_endpoints_together_is_shared(machines: Machines) -> None:
    tables = {
        "policy": {"max_in_flight": 6},
        "endpoints": [{"provider": "a", "model": "m"}, {"provider": "a", "model": "n"}],
        "models": {"n": {}},
    }
    clients = [machines.client(**tables) for _ in range(2)]
    gates = [client.runtime.generation.state.gate for client in clients]
    assert gates[0] is not None
    assert gates[1] is not None
    held = calls(gates[0], 10)
    assert len(held) == 6
    assert calls(gates[1], 1) == []
    for ticket in held:
        gates[0].undo(ticket, 0)
    machines.beat()
    machines.beat()
    machines.grow_old()
    machines.pass_time()
    assert len(calls(gates[1], 10)) >= 4


def test_a_lowered_limit_is_kept_by_what_is_under_way(machines: Machines, redis: RedisServer) -> None:
    client = machines.client(limits={"max_in_flight": 10})
    held = calls(core_of(client), 10)
    client.reload(redis.config(limits={"max_in_flight": 4}))
    core = core_of(client)
    assert calls(core, 1) == []
    end(core, held[:7])
    machines.pass_time()
    assert len(calls(core, 10)) == 1


def test_calls_of_two_machines_are_never_more_at_once_upstream(redis: RedisServer) -> None:
    with ExitStack() as stack:
        provider = stack.enter_context(Provider(latency=0.02))
        tables = redis.config(provider.base_url, timeout=5.0, limits={"max_in_flight": 4})
        clients = [stack.enter_context(fastroute.Client(tables)) for _ in range(2)]
        futures = [
            client.submit(model="m", messages=[{"role": "user", "content": str(number)}])
            for number in range(20)
            for client in clients
        ]
        for future in futures:
            future.result()
        assert provider.peak_in_flight <= 4
        assert provider.peak_in_flight >= 3
        assert len(provider.requests) == 40


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "end", "beat", "give up", "lost"]), st.integers(0, 2)), max_size=40
    )
)
def test_whatever_happens_in_whatever_order_it_is_never_more(
    machines: Machines, redis: RedisServer, steps: list[tuple[str, int]]
) -> None:
    with redis.connect() as connection:
        connection.flushall()
    cores = [machines.core(limits={"max_in_flight": 5}) for _ in range(3)]
    shared = machines.shared[-3:]
    held: list[list[int]] = [[], [], []]
    for step, who in steps:
        if step == "take":
            machines.pass_time()
            held[who] += calls(cores[who], 1)
        elif step == "end":
            end(cores[who], held[who][:1])
            del held[who][:1]
        elif step == "beat":
            shared[who].beat()
        else:
            own = shared[who].endpoints["a/m"].permits
            request = own.give_up() if step == "give up" else own.request(1)
            if request is not None:  # and its answer is lost
                permits.ask(shared[who].connection, shared[who].machine, [own.key], [request])
        assert sum(map(len, held)) <= 5
    for core, tickets in zip(cores, held):
        end(core, tickets)
    for client in machines.clients[-3:]:
        client.close()
    del machines.clients[-3:]
