"""Threads and processes for contenders. Their exceptions are raised in the caller too, which fails the run.

No other module of this package starts a thread or forks; a test checks this.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, BinaryIO, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ChildError(Exception):
    """A process of a contender raised an exception, or ended without a result."""


# ----------------------------------------------------------------------------------------------- threads


@contextmanager
def thread_failures() -> Iterator[None]:
    """Raises the first exception of any thread that ended within the block."""
    failures: list[BaseException] = []

    def keep(failure: Any) -> None:
        if failure.exc_value is not None:
            failures.append(failure.exc_value)

    before = threading.excepthook
    threading.excepthook = keep
    try:
        yield
    finally:
        threading.excepthook = before
        if failures:
            raise failures[0]


@dataclass(frozen=True)
class Load:
    """The work of threads in a given time.

    Attributes:
        counts: repetitions of each thread at the end of the time.
        total: repetitions of all threads, including those that ended afterwards.
        seconds: the wall-clock time.
        cpu: the CPU seconds of the process in that time.
    """

    counts: tuple[int, ...]
    total: int
    seconds: float
    cpu: float


def load(threads: int, seconds: float, prepare: Callable[[int], Callable[[], object]]) -> Load:
    """Repeats something in threads that start at the same time.

    Args:
        prepare: called in each thread with its number before the clock starts; returns what to repeat.

    Raises:
        BaseException: an exception of a thread; the other threads stop then.
    """
    counts = [0] * threads
    ready, stop = threading.Barrier(threads + 1), threading.Event()

    def work(place: int) -> None:
        try:
            repeat = prepare(place)
            ready.wait()
            while not stop.is_set():
                repeat()
                counts[place] += 1
        except threading.BrokenBarrierError:
            pass  # another thread failed
        except BaseException:
            stop.set()
            ready.abort()
            raise

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    with thread_failures():
        for worker in workers:
            worker.start()
        try:
            ready.wait()
            begun, used = time.perf_counter(), time.process_time()
            stop.wait(seconds)
            while not any(counts) and not stop.is_set():  # the first repetition takes longer than that
                stop.wait(seconds)
            done = tuple(counts)
            took, used = time.perf_counter() - begun, time.process_time() - used
        except threading.BrokenBarrierError:
            pass
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    return Load(done, sum(counts), took, used)


def in_threads(threads: int, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Calls the function for each item in several threads, and returns the results in order."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


# --------------------------------------------------------------------------------------------- processes


class Child:
    """A forked process that works and sends back its result."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(reader)
                with open(writer, "wb") as pipe:
                    self._answer(work, pipe)
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = open(reader, "rb")  # noqa: SIM115 (`result` and `kill` close it)

    def _answer(self, work: Callable[[], Any], pipe: BinaryIO) -> None:
        try:
            answer = pickle.dumps((work(), None))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        pipe.write(answer)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it has answered or ended; returns whether it has, within ``seconds``."""
        return bool(select.select([self._reader], [], [], seconds)[0])

    def result(self) -> Any:
        """The result of its work, after it has ended.

        Raises:
            ChildError: it raised an exception or was killed.
        """
        with self._reader:
            sent = self._reader.read()
        _, status = os.waitpid(self._pid, 0)
        if not sent:
            raise ChildError(f"a forked process ended without an answer, with wait status {status}")
        answer, failure = pickle.loads(sent)
        if failure is not None:
            raise ChildError(f"a forked process raised:\n{failure}")
        return answer

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self._reader.close()
        os.waitpid(self._pid, 0)


def forked(processes: int, work: Callable[[], T]) -> list[T]:
    """Does the work in several forked processes at the same time, and returns their results.

    Raises:
        ChildError: one of them raised an exception or was killed.
    """
    children = [Child(work) for _ in range(processes)]
    results, failure = [], None
    for child in children:
        try:
            results.append(child.result())
        except ChildError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return results


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[Child]:
    """A forked process that repeats the work until the end of the block.

    Raises:
        ChildError: the process raised an exception or was killed before the end of the block.
    """

    def repeat() -> None:
        while True:
            work()

    child = Child(repeat)
    try:
        yield child
    finally:
        if child.wait(0.0):
            child.result()
        else:
            child.kill()


def spawned(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function of a module in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


__all__ = [
    "Child",
    "ChildError",
    "Load",
    "beside",
    "forked",
    "in_threads",
    "load",
    "spawned",
    "thread_failures",
]
