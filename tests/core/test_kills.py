"""A worker killed at any instruction: reaping repairs every state of the shared memory.

What a killed process leaves behind is its shared memory and nothing else. So a child is run one
instruction at a time (ptrace), and every state that the memory passes through is kept; each is then put
back and reaped. No line of the core knows of this.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastroute import _core
from fastroute._core import FAILURE, OK, Endpoint, Segment

SECOND = 10**9
T = _core.clock() + 3600 * SECOND
TRACEME, SINGLESTEP = 0, 9

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or platform.machine() != "x86_64",
        reason="needs Linux's single steps; elsewhere a step would break a load-linked swap for ever",
    ),
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


class Arena:
    """A small segment in a file, one endpoint in it, and the file's memory as bytes."""

    def __init__(self, path: Path) -> None:
        with open(path, "w+b") as file:
            file.truncate(Segment.size(64))
            self.segment = Segment.in_file(file.fileno(), True)
            self.memory = mmap.mmap(file.fileno(), 0)
        self.endpoint = Endpoint(
            self.segment,
            "e",
            max_in_flight=6,
            rpm=60,
            request_burst=40,
            tpm=6000,
            token_burst=4000,
            failures=3,
        )
        self.segment.slot()

    def moments(self, work: Callable[[], object]) -> list[bytes]:
        """Every state of the memory from before ``work`` in a child to after it."""
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(
            0, [min(processors)]
        )  # a step is then a change of process, and wakes no other processor
        try:
            return self._moments(work)
        finally:
            os.sched_setaffinity(0, processors)

    def _moments(self, work: Callable[[], object]) -> list[bytes]:
        ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        ptrace.restype = ctypes.c_long
        ptrace.argtypes = [ctypes.c_long] * 4
        pid = os.fork()
        if pid == 0:
            gc.disable()
            ptrace(TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                work()
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSTOPPED(status), "this container forbids ptrace"
        found = [self.memory[:]]
        while not os.WIFEXITED(status):
            assert ptrace(SINGLESTEP, pid, 0, 0) == 0
            _, status = os.waitpid(pid, 0)
            if self.memory[:] != found[-1]:
                found.append(self.memory[:])
        assert os.waitstatus_to_exitcode(status) == 0
        return found

    def after_each_kill(self, work: Callable[[], object]) -> Iterator[int]:
        """Puts each of those states back, reaped; at the end of all, the last one is the finished work's."""
        found = self.moments(work)
        assert len(found) > 3
        for place, moment in enumerate(found):
            self.memory[:] = moment
            self.segment.reap()
            assert self.segment.workers_known == 1
            assert self.endpoint.in_flight == 0
            yield place
            self.memory[:] = moment
            self.segment.reap()
        self.memory[:] = found[0]

    def all_permits(self, now: int = T) -> None:
        tickets = [self.endpoint.admit(0, now) for _ in range(7)]
        assert [ticket >= 0 for ticket in tickets] == [True] * 6 + [False]

    def left(self, now: int = T) -> tuple[int, int]:
        """(requests, tokens) free."""
        return self.endpoint.available_requests(now), self.endpoint.available_tokens(now)

    def open_breaker(self) -> int:
        """Opens it; when it may probe."""
        for _ in range(3):
            self.endpoint.finish(self.endpoint.admit(0, T), FAILURE, 0.0, 0, T)
        return T + self.endpoint.reopens_in(T)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(tmp_path / "segment")
    yield arena
    arena.memory.close()


def test_being_let_in(arena: Arena) -> None:
    work = lambda: arena.endpoint.admit(100, T)  # noqa: E731
    seen = []
    for _ in arena.after_each_kill(work):
        seen.append(arena.left())
        arena.all_permits()
    # What a request has paid stays paid, and no more than that.
    assert set(seen) == {(40, 4000), (39, 4000), (39, 3900)}


def test_a_whole_call(arena: Arena) -> None:
    def work() -> None:
        arena.endpoint.finish(arena.endpoint.admit(100, T), OK, 0.5, 50, T)

    for _ in arena.after_each_kill(work):
        assert arena.left()[0] in (39, 40)
        assert arena.endpoint.state(T) == _core.CLOSED
        assert arena.endpoint.latencies() in ([], [0.5], [0.0])
        arena.all_permits()
    assert arena.endpoint.counts == (0, 0)


def test_a_call_taken_back(arena: Arena) -> None:
    def work() -> None:
        arena.endpoint.undo(arena.endpoint.admit(100, T), 100, T)

    for _ in arena.after_each_kill(work):
        assert arena.left()[0] in (39, 40)
        arena.all_permits()


@pytest.mark.parametrize("outcome", [None, OK, FAILURE])
def test_a_probe(arena: Arena, outcome: int | None) -> None:
    """Whenever its owner dies, the breaker is not stuck: the next call probes, or it has opened or closed."""
    now = arena.open_breaker()

    def work() -> None:
        ticket = arena.endpoint.admit(0, now)
        if outcome is not None:
            arena.endpoint.finish(ticket, outcome, 0.1, 0, now)

    states = []
    for _ in arena.after_each_kill(work):
        states.append(arena.endpoint.state(now))
        probes = [arena.endpoint.admit(0, now) for _ in range(3)]
        wanted = 0 if states[-1] == _core.OPEN else 1
        assert sum(ticket >= 0 for ticket in probes) == wanted
    assert states[-1] == (_core.OPEN if outcome == FAILURE else _core.HALF_OPEN)


def test_a_probe_that_streams(arena: Arena) -> None:
    """Its place is free for the next one from when it begins to answer, whether it lives on or not."""
    now = arena.open_breaker()

    def work() -> None:
        ticket = arena.endpoint.admit(0, now)
        arena.endpoint.extend(ticket, 600.0, now)
        arena.endpoint.began(ticket, now)
        arena.endpoint.finish(ticket, OK, 0.1, 0, now)

    for _ in arena.after_each_kill(work):
        assert arena.endpoint.state(now) == _core.HALF_OPEN
        assert sum(arena.endpoint.admit(0, now) >= 0 for _ in range(3)) == 1


def test_a_place_in_line(arena: Arena) -> None:
    while arena.endpoint.reserve(100, 0, T) >= 0:
        pass
    before = arena.left()

    def work() -> None:
        assert arena.endpoint.reserve(100, 60 * SECOND, T) > 0

    seen = [arena.left() for _ in arena.after_each_kill(work)]
    # Between paying and its note one place is lost, until time brings it back; never is one gained.
    assert set(seen) <= {before, (before[0] - 1, before[1]), (before[0] - 1, before[1] - 100)} | {
        (before[0], before[1] - 100)
    }
    assert seen[-1] == before


def test_a_place_in_line_given_up_or_used(arena: Arena) -> None:
    before = arena.left()

    def give_up() -> None:
        arena.endpoint.reserve(100, 0, T)
        arena.endpoint.unreserve(100, T)

    def use() -> None:
        arena.endpoint.reserve(100, 0, T)
        arena.endpoint.finish(arena.endpoint.admit(100, T, True), OK, 0.1, 0, T)

    for work in (give_up, use):
        for _ in arena.after_each_kill(work):
            requests, tokens = arena.left()
            assert before[0] - 1 <= requests <= before[0]
            assert before[1] - 100 <= tokens <= before[1]
            arena.all_permits()


def test_reaping_itself(arena: Arena) -> None:
    """Whoever cleans up may be killed too, anywhere; the next one finishes."""
    now = arena.open_breaker()

    def probe() -> None:
        assert arena.endpoint.reserve(0, 0, now) == 0
        assert arena.endpoint.admit(0, now) >= 0

    last = arena.moments(probe)[-1]
    arena.memory[:] = last
    for _ in arena.after_each_kill(arena.segment.reap):
        assert sum(arena.endpoint.admit(0, now) >= 0 for _ in range(3)) == 1
