"""What is read from Redis may be anything: damaged, of another program, of another release, hostile."""

from __future__ import annotations

import logging
import random
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from loopback import core_of
from redis_machines import SLOW, Machines
from redis_server import RedisServer, admitted
from soak.stored import values_in_redis

import fastroute
from fastroute import _core
from fastroute.state.redis.address import AwayError
from fastroute.state.redis.answers import UnexpectedAnswerError, items, whole, words

DOLLAR = 1_000_000_000
DAY = [{"name": "day", "limit": 1.0, "window": "day"}]


def spend(client: fastroute.Client, nano: int, most: int = 10_000) -> int:
    """How many calls of a price are let in."""
    for count in range(most):
        try:
            client.runtime.generation.budgets.reserve(nano, {}, 60).settle(nano)
        except fastroute.BudgetExceeded:
            return count
    return most


def recorded(machines: Machines, redis: RedisServer, spent: int, folder: Path) -> fastroute.Client:
    """A client with a ledger, from which this much is read."""
    state = redis.config(timeout=5.0)["fastroute"]["state"]
    client = machines.client(budgets=DAY, fastroute={"ledger": str(folder / "ledger.db"), "state": state})
    client.runtime.generation.budgets.spent = lambda since, tags: spent
    return client


# Fields of the money of a window, and values that cannot be there.
MONEY: list[tuple[str, Any]] = [
    ("base", "nan"),
    ("base", ""),
    ("base", "-5"),
    ("base", "1.5"),
    ("base", "1e5"),
    ("base", "0x10"),
    ("base", "inf"),
    ("base", "9" * 19),
    ("base", "9" * 400),
    ("base", b"\xff\xfe"),
    ("base", "1" * 100_000),
    ("mine", "nan"),
    ("mine", " 5"),
    ("mine", "-1"),
    ("mine", "1e3"),
    ("mine", "9223372036854775807"),
    ("mine", b"\0"),
    ("m:another", "many"),
    ("m:another", "-1000000000000"),
    ("life", ""),
    ("life", "two words"),
    ("life", "x" * 10_000),
    ("life", b"\xff"),
    ("another release", "a b c"),
]


@pytest.mark.parametrize(("field", "value"), MONEY, ids=lambda value: str(value)[:20])
def test_damaged_money_is_counted_anew_from_the_ledger(
    machines: Machines,
    redis: RedisServer,
    field: str,
    value: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = recorded(machines, redis, DOLLAR // 2, tmp_path)
    assert spend(client, DOLLAR // 100, 10) == 10
    shared = machines.shared[0]
    with redis.connect() as connection:
        (key,) = connection.keys("*money*")
        connection.hset(key, "m:" + shared.machine if field == "mine" else field, value)
        if field == "another release":
            assert connection.hlen(key) > 3
    machines.beat()
    client.runtime.generation.budgets.spent = lambda since, tags: DOLLAR * 6 // 10
    assert 39 <= spend(client, DOLLAR // 100) <= 40
    assert shared.connection.there
    assert sum("count in Redis was damaged" in line for line in caplog.messages) == 1
    with redis.connect() as connection:
        assert set(connection.hgetall(key)) == {"base", "life", f"m:{shared.machine}"}


@pytest.mark.parametrize("kind", ["set", "rpush", "sadd"])
def test_money_of_another_kind_is_counted_anew(
    machines: Machines, redis: RedisServer, kind: str, tmp_path: Path
) -> None:
    client = recorded(machines, redis, 0, tmp_path)
    assert spend(client, DOLLAR // 100, 10) == 10
    with redis.connect() as connection:
        (key,) = connection.keys("*money*")
        connection.delete(key)
        getattr(connection, kind)(key, "x")
    client.runtime.generation.budgets.spent = lambda since, tags: DOLLAR // 10
    assert 89 <= spend(client, DOLLAR // 100) <= 90
    assert machines.shared[0].connection.there


def test_without_a_ledger_damaged_money_counts_as_spent(
    machines: Machines, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = machines.client(budgets=DAY), machines.client(budgets=DAY)
    assert spend(first, DOLLAR // 100, 10) == 10
    with redis.connect() as connection:
        (key,) = connection.keys("*money*")
        connection.hset(key, "base", "x")
    assert spend(second, DOLLAR // 100) == 0
    assert spend(first, DOLLAR // 100) <= 1
    assert "begins anew with all spent" in caplog.text


NEWS: list[tuple[str, Any]] = [
    ("breaker:a/m", "open 99999999999999999999 0 x"),
    ("breaker:a/m", "open nan 0 x"),
    ("breaker:a/m", "open 2795992913357 0 x"),
    ("breaker:a/m", "open -5 0 x"),
    ("breaker:a/m", "open"),
    ("breaker:a/m", "open 1 2 3 4 5"),
    ("breaker:a/m", b"\xff" * 100),
    ("breaker:a/m", "x" * 1_000_000),
    ("block:a/m", "blocked 99999999999999999 3 x"),
    ("block:a/m", "blocked {soon} 99 x"),
    ("block:a/m", "blocked {soon} -1 x"),
    ("block:a/m", "blocked {soon} 0 x"),
    ("block:a/m", "blocked {soon} 1e3 x"),
    ("block:nobody", "blocked {soon} 3 x"),
    ("blocked:a/m", "blocked {soon} 3 x"),
    ("", ""),
    ("y" * 5000, "open 1 2 3"),
]


@pytest.mark.parametrize(("field", "value"), NEWS, ids=lambda value: str(value)[:24])
def test_news_that_no_release_publishes_change_nothing(
    machines: Machines, redis: RedisServer, field: str, value: Any
) -> None:
    client = machines.client(limits=SLOW)
    core = core_of(client)
    machines.beat()
    with redis.connect() as connection:
        soon = int(connection.time()[0]) * 1000 + 60_000
        text = value.replace("{soon}", str(soon)) if isinstance(value, str) else value
        connection.hset(machines.shared[0].connection.key("news"), field, text)
        connection.set(machines.shared[0].connection.key("version"), "other")
    for _ in range(3):
        machines.beat()
    assert core.state() == _core.CLOSED
    assert core.blocked() == (0, 0)
    assert admitted(core, 8) == 8
    assert machines.shared[0].connection.there
    client.stats()


PERMITS = [
    "1 2",
    "x y z",
    "-1 {soon} 1",
    "99999 {soon} 1",
    "5 99999999999999 1",
    "5 {soon} 8999999999999999",
    "5 {soon} 99999999999999999999",
    "nan inf 1e9",
    "5 1 1",
    "9" * 100_000,
    b"\xff\0\xfe",
]


@pytest.mark.parametrize("who", ["mine", "another", "want:x", "new"])
@pytest.mark.parametrize("value", PERMITS, ids=lambda value: str(value)[:24])
def test_permits_that_no_release_writes_neither_add_nor_take_any(
    machines: Machines, redis: RedisServer, who: str, value: Any
) -> None:
    client = machines.client(limits=SLOW)
    core = core_of(client)
    shared = machines.shared[0]
    tickets = [core.admit(0) for _ in range(2)]
    assert all(ticket >= 0 for ticket in tickets)
    with redis.connect() as connection:
        soon = int(connection.time()[0]) * 1000 + 5_000
        key = shared.connection.key("permits", "a/m")
        text = value.replace("{soon}", str(soon)) if isinstance(value, str) else value
        connection.hset(key, shared.machine if who == "mine" else who, text)
    machines.beat()
    machines.grow_old()
    machines.beat()
    machines.pass_time()
    held = [ticket for ticket in (core.admit(0) for _ in range(20)) if ticket >= 0]
    counted = 5 if who == "another" and str(value).startswith("5 {soon} 8") else 0
    assert len(held) + 2 == 8 - counted
    for ticket in (*tickets, *held):
        core.finish(ticket, _core.OK, 0.1)
    assert shared.connection.there


@pytest.mark.parametrize("name", ["machines", "news", "permits"])
def test_a_hash_of_any_size_is_read_in_bounds(
    machines: Machines, redis: RedisServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = machines.client(limits=SLOW)
    shared = machines.shared[0]
    key = shared.connection.key(*((name, "a/m") if name == "permits" else (name,)))
    with redis.connect() as connection:
        connection.hset(key, mapping={f"field{n}": "0 1 2" for n in range(50_000)})
        connection.set(shared.connection.key("version"), "other" if name == "news" else "v" * 1_000_000)
        for _ in range(3):
            machines.beat_if_there()
            assert admitted(core_of(client), 8) == 8
        assert connection.hlen(key) < 10
    assert shared.connection.there
    assert len(shared.version) < 100
    assert sum(f"impossible value in {key};" in line for line in caplog.messages) == 1


# ------------------------------------------------------------------------------------ answers of any kind

ANSWERS: list[Any] = [
    None,
    "",
    "x",
    "1 2 3",
    "granted 1",
    "granted 99999999999 0 life",
    "granted -5 0 life",
    "granted 1e3 0 life",
    "perhaps 0 0 life",
    " ".join(["9" * 5000] * 8),
    "1 -1 0 0 0 0 0 0",
    "1 999 0 0 0 0 0 0",
    "2 0 0 0 0 0 0 0",
    "0 0 999999999999999999999 0 0 0 0 0",
    [],
    ["1", "2", "3"],
    [["1"]],
    ["1 2 3 0"],
    ["9999 0 -1 0"],
    ["1 0 99999999999999999999 0"],
    [None, None, None],
    [1795992913357, 0, "", ""],
    [1795992913357, 10**30, "", ""],
    -1,
    10**30,
    b":1.5\r\n",
    b":\r\n",
    b"$x\r\n",
    b"$-5\r\n",
    b"$5\r\nab\r\n",
    b"*-7\r\n",
    b"*1\r\n" * 5000 + b"$-1\r\n",
    b"?what\r\n",
    b"\0\xff\r\n",
    b"-WRONGTYPE Operation against a key\r\n",
    b"- \r\n",
    b"+" + b"x" * 100_000 + b"\r\n",
]


def encoded(answer: Any) -> bytes:
    """An answer in Redis's protocol; bytes as they are."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, list):
        return b"*%d\r\n" % len(answer) + b"".join(map(encoded, answer))
    if isinstance(answer, str):
        return b"$%d\r\n%b\r\n" % (len(answer), answer.encode())
    return b"$-1\r\n" if answer is None else b":%d\r\n" % answer


class Answering(socketserver.StreamRequestHandler):
    """Answers each script with the same, and what else a client sends with what it expects."""

    def handle(self) -> None:
        while (line := self.rfile.readline()).startswith(b"*"):
            words = []
            for _ in range(int(line[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2].upper())
            script = words[0] in (b"EVALSHA", b"EVAL")
            answer: bytes = self.server.answer  # type: ignore[attr-defined]
            self.wfile.write(answer if script else b"*0\r\n" if words[0] == b"CONFIG" else b"+OK\r\n")


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer)[:30])
def test_an_answer_of_any_kind_is_no_error_of_a_call(
    machines: Machines, answer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "s"), Answering) as server:
        server.daemon_threads = True
        server.answer = encoded(answer)  # type: ignore[attr-defined]
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            client = machines.client(
                limits={**SLOW, "tpm": 60_000},
                budgets=[{**DAY[0], "hard": False}],
                state=f"unix://{tmp_path / 's'}",
                timeout=0.25,
            )
            shared = machines.shared[0]
            core = core_of(client)
            held = [core.admit(10) for _ in range(20)]
            assert 1 <= sum(ticket >= 0 for ticket in held) <= 8
            for ticket in held:
                if ticket >= 0:
                    core.finish(ticket, _core.OK, 0.1)
            core.reserve(10, 0)
            assert spend(client, 1000, 3) == 3
            for work in (shared.beat, shared.settle):
                with suppress(AwayError):
                    work()
            assert core.state() == _core.CLOSED
            assert not shared.connection.there
            assert sum("Redis" in line for line in caplog.messages) <= 4
            client.close()
        finally:
            server.shutdown()
            serving.join()


def test_numbers_and_words_of_answers() -> None:
    assert whole("12") == whole(12) == 12
    assert whole("-1", -1) == -1
    for wrong in ("", "-", "--1", "+1", " 1", "1_0", "٣", "1.0", "nan", None, 1.0, "9" * 31, 1 << 60, -1, []):
        with pytest.raises(UnexpectedAnswerError):
            whole(wrong)
    assert words("a b", 2) == ["a", "b"]
    for line in ("a", "a b c", None, 5, ["a", "b"]):
        with pytest.raises(UnexpectedAnswerError):
            words(line, 2)
    assert items([1, 2], 2) == [1, 2]
    for found in ([1], None, "ab", {1: 2, 3: 4}):
        with pytest.raises(UnexpectedAnswerError):
            items(found, 2)


def test_any_value_in_redis_may_be_damaged(
    machines: Machines, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    caplog.set_level(logging.CRITICAL, "fastroute")
    assert values_in_redis(random.Random(seed), machines, redis, 60)["calls"]


LIMITS: list[tuple[str, Any]] = [
    ("rs", "nan"),
    ("rs", "inf"),
    ("rs", "9" * 12),
    ("rn", ""),
    ("rn", "-1e308"),
    ("ts", b"\xff"),
    ("tn", "9" * 400),
]


@pytest.mark.parametrize(("field", "value"), LIMITS, ids=str)
def test_a_damaged_limit_begins_anew_and_waits_for_nothing(
    machines: Machines, redis: RedisServer, field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    core = core_of(machines.client(limits={**SLOW, "tpm": 60_000}))
    assert admitted(core, 10, tokens=10) == 10
    with redis.connect() as connection:
        connection.hset(machines.shared[0].connection.key("limit", "a/m"), field, value)
    assert admitted(core, 200, tokens=10) == 200
    machines.beat()
    assert sum("impossible value in {fastroute}:limit:a/m;" in line for line in caplog.messages) <= 1
    assert machines.shared[0].connection.there
