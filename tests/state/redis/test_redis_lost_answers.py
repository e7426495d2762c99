"""Redis runs a script and its answer is lost: the repeated request changes nothing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from needs import need
from redis_machines import Machines
from redis_server import RedisServer, admitted

import fastroute
from fastroute import _core

need("redis")


class Passage:
    """Stands before a server and passes everything on, but for answers that it is told to lose.

    Attributes:
        lost: so many were.
    """

    def __init__(self, redis: RedisServer) -> None:
        self._target = redis.socket
        self.socket = os.path.join(redis.folder, "passage")
        self.lose = False
        self.lost = 0
        self._listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(self.socket)
        self._listener.bind(self.socket)
        self._listener.listen(16)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            self._open += (near, far)
            for work in (self._ask, self._answer):
                self._threads.append(threading.Thread(target=work, args=(near, far)))
                self._threads[-1].start()

    def _ask(self, near: socket.socket, far: socket.socket) -> None:
        with far, suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)

    def _answer(self, near: socket.socket, far: socket.socket) -> None:
        with near, suppress(OSError):
            while data := far.recv(65536):
                if self.lose:
                    self.lose = False
                    self.lost += 1
                    near.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads.pop(0).join()
        self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def passage(redis: RedisServer) -> Iterator[Passage]:
    made = Passage(redis)
    yield made
    made.close()


def test_of_limits(machines: Machines, passage: Passage) -> None:
    limits = {"rpm": 6, "burst": 20, "tpm": 6, "token_burst": 200}  # leased one by one
    core = machines.core(state=f"unix://{passage.socket}", limits=limits)
    other = machines.core(limits=limits)
    granted = admitted(core, 1, 10)
    for _ in range(9):
        passage.lose = True
        granted += admitted(core, 1, 10)
    assert passage.lost == 9
    assert granted + admitted(other, 100, 10) == 20
    assert machines.shared[0].connection.there


def test_of_permits(machines: Machines, passage: Passage) -> None:
    limits = {"max_in_flight": 8}
    core = machines.core(state=f"unix://{passage.socket}", limits=limits)
    other = machines.core(limits=limits)
    assert core.admit(0) >= 0
    for _ in range(30):
        passage.lose = True
        machines.pass_time()
        core.admit(0)
        other.admit(0)
        machines.beat()
    assert passage.lost > 3
    machines.pass_time()
    assert core.in_flight + other.in_flight == 8
    assert machines.shared[0].connection.there


def test_of_budgets(machines: Machines, passage: Passage) -> None:
    budgets = [{"name": "day", "limit": 1.0, "window": "day"}]
    client = machines.client(state=f"unix://{passage.socket}", budgets=budgets)
    other = machines.client(budgets=budgets)

    def spend(client: fastroute.Client, times: int) -> int:
        """Each as much as one lease."""
        for done in range(times):
            try:
                client.runtime.generation.budgets.reserve(10_000_000, {}, 60).settle(10_000_000)
            except fastroute.BudgetExceeded:
                return done
        return times

    spent = spend(client, 1)
    for _ in range(20):
        passage.lose = True
        spent += spend(client, 1)
    assert passage.lost >= 20
    assert spent + spend(other, 200) == 100
    assert spend(client, 1) == 0
    assert machines.shared[0].connection.there


def test_of_news(machines: Machines, passage: Passage) -> None:
    core = machines.core(state=f"unix://{passage.socket}")
    other = machines.core()
    machines.beat()
    for wait in (30, 60):
        core.block(_core.clock() + wait * 10**9, 3)
        passage.lose = True
        machines.shared[0].settle()
        machines.shared[1].beat()
        assert (wait - 20) * 10**9 < other.blocked()[0] <= (wait + 1) * 10**9
    assert passage.lost == 2
