"""Forks while other threads hold locks, with or without Python's hooks."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client_processes import FORKS, ask, forked, tables, unheard_fork
from needs import need

from fastroute import Attempt, Client
from fastroute.ledger import Ledger
from fastroute.platform import forks
from fastroute.testing import Provider


def locks_of(*roots: object) -> list[Any]:
    """Every lock that fastroute's objects refer to, found from its modules and the roots."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    seen: set[int] = set()
    found: list[Any] = []
    todo: list[object] = list(roots)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "fastroute" and "testing" not in name:
            todo += [value for value in vars(module).values() if not isinstance(value, types.ModuleType)]
    while todo:
        at = todo.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, kinds):
            found.append(at)
        ours = type(at).__module__.split(".")[0] in ("fastroute", "builtins", "threading", "queue", "weakref")
        if ours and not isinstance(at, (type, types.ModuleType, types.FunctionType, threading.Thread)):
            todo += gc.get_referents(at)
            if isinstance(at, types.MethodType):
                todo.append(at.__self__)
    return found


@contextmanager
def every_lock_held(fork: Callable[[], int], *roots: object) -> Iterator[int]:
    """Another thread holds what it can get of the locks; so many they are."""
    held, go = threading.Event(), threading.Event()
    kept: list[Any] = []
    # This one is held over a fork that is heard: `os.fork` waits for whoever holds it.
    spared = forks.mutex if fork is os.fork else None

    def hold() -> None:
        for lock in locks_of(*roots):
            if lock is not spared and lock.acquire(blocking=False):
                kept.append(lock)
        held.set()
        go.wait()
        for lock in kept:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert (spared is None) == (forks.mutex in kept)
        yield len(kept)
    finally:
        go.set()
        holder.join()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Client]:
    """A client that has been used, with all that has locks."""
    with Provider(process=True) as provider:
        settings = tables(
            provider.base_url,
            tmp_path,
            cache={"enabled": True},
            budgets=[{"name": "all", "window": "day", "limit": 100.0}],
        )
        with Client(settings) as client:
            ask(client, "before")
            client.submit(model="m", messages=[{"role": "user", "content": "before too"}]).result(20)
            client.ledger.flush()
            yield client


@FORKS
def test_a_fork_while_another_thread_holds_every_lock(busy: Client, fork: Callable[[], int]) -> None:
    copy = busy.with_options(budget=5.0)
    ask(copy, "before")

    def child() -> str | None:
        answer = ask(copy, "child")
        busy.on(lambda event: None)
        busy.submit(model="m", messages=[{"role": "user", "content": "pool"}]).result(10)
        busy.stats()
        busy.ledger.flush()
        busy.close()
        return answer.choices[0].message.content

    with every_lock_held(fork, busy, copy) as count:
        assert count > 8
        result = forked(child, fork)
    assert result() == "child"
    assert ask(busy, "parent").choices[0].message.content == "parent"


FIRST: dict[str, Callable[[Client], object]] = {
    "plan": lambda client: client.plan(model="m", messages=[{"role": "user", "content": "hello"}]),
    "submit": lambda client: client.submit(model="m", messages=[{"role": "user", "content": "hello"}]).result(
        9
    ),
    "stats": lambda client: client.stats(),
    "on": lambda client: client.on(print),
    "reload": lambda client: client.reload(client.config),
    "flush": lambda client: client.ledger.flush(),
    "totals": lambda client: client.ledger.totals(),
    "append": lambda client: client.ledger.append(client.ledger.entries(1)[0]),
    "health": lambda client: client.ledger.health,
    "close": lambda client: client.close(),
}


def test_whatever_a_child_that_nobody_heard_of_does_first(busy: Client) -> None:
    for first in FIRST.values():
        with every_lock_held(unheard_fork, busy):
            result = forked(lambda do=first: bool(do(busy)) or busy.ledger.health.ok, unheard_fork)  # type: ignore[misc]
        assert result()
    ask(busy, "parent")
    rows = busy.ledger.entries(None)
    assert len(rows) == len({row.id for row in rows}) == 4  # two before, one by a child's pool, one now


BELOW = """
import contextlib, ctypes, json, os, signal, sys, threading
from fastroute import Attempt, Client
from fastroute.platform import forks
client = Client(json.loads(sys.argv[1]))
client.ledger.append(Attempt(
        id="before", call_id="call", time=1e9, endpoint="p/m", provider="p", model="m", cost_nano=1))
client.ledger.flush()
writer = client.ledger.writer
while writer.awake: pass  # now its thread waits for a word, and is not in Python
held, go = threading.Event(), threading.Event()
owners = writer, client.runtime.workers, client.runtime.queue
kinds = type(threading.Lock()), type(threading.RLock())
locks = [value for owner in owners for value in vars(owner).values() if type(value) in kinds]
assert len(locks) >= 3
def hold():
    with contextlib.ExitStack() as stack:
        for lock in (forks.mutex, *locks):
            stack.enter_context(lock)
        held.set()
        go.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
# Not CDLL, which would let go of the interpreter: a thread that has it is not in the child.
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    signal.alarm(20)
    message = [{"role": "user", "content": "child"}]
    client.submit(model="m", messages=message).result(10)
    print(client.chat.completions.create(model="m", messages=message).choices[0].message.content, flush=True)
    client.close()
    os._exit(0)
go.set()
holder.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(len(client.ledger.entries(None)))
client.close()
"""


def test_a_fork_below_python_while_another_thread_holds_locks(tmp_path: Path) -> None:
    """With the system's own fork, and no other thread at work in Python: its own locks know no better."""
    with Provider(process=True) as provider:
        words = [sys.executable, "-c", BELOW, json.dumps(tables(provider.base_url, tmp_path))]
        run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert run.stdout == "child\n3\n", run.stderr


def test_a_ledger_closed_before_the_fork_takes_a_childs_entry(tmp_path: Path) -> None:
    def entry(name: str) -> Attempt:
        return Attempt(
            id=name, call_id="call", time=1e9, endpoint="p/m", provider="p", model="m", cost_nano=1
        )

    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.append(entry("before"))

    with every_lock_held(unheard_fork, ledger):
        result = forked(lambda: ledger.append(entry("child")), unheard_fork)
    result()
    with Ledger(path) as ledger:
        assert sorted(row.id for row in ledger.entries()) == ["before", "child"]


def test_a_gateway_goes_on_in_a_child_that_nobody_heard_of(busy: Client) -> None:
    need("flask")
    from fastroute.gateway import create_app

    app = create_app(client=busy, keyless=True)

    def get(path: str) -> str:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1"}
        b"".join(app(environ, lambda status, headers: said.append(status)))
        return said[0]

    before = get("/metrics")
    with every_lock_held(unheard_fork, app):
        result = forked(lambda: [get("/metrics"), get("/health")], unheard_fork)
    assert result() == [before, "200 OK"]
