"""Calls that run out of stack, memory, descriptors or disk, at each point where that can happen, one by one.

It is both the code that starts the process in which this happens and that process's program: a fault hits
whatever runs there, so the servers and the checks of the result are outside. The child makes a call of one
kind again and again, each time with the fault one step further on, until a call meets it no more. After each
of them nothing may be held, whatever came of it, and what was acknowledged must be in the ledger in the end.

`failing_calls.c` makes calls of the operating system fail; `_testcapi.set_nomemory` makes allocations fail.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import gc
import inspect
import itertools
import json
import linecache
import os
import re
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

_HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(_HERE.parent), str(_HERE)]

from loopback import held, open_files, threads, waiting_timers  # noqa: E402
from raw_server import RawServer, Say  # noqa: E402
from walks import Variant  # noqa: E402

import fastroute  # noqa: E402
from fastroute import Client, events  # noqa: E402
from fastroute.ledger import Ledger  # noqa: E402

KINDS = ("plain", "stream", "cached", "hedged", "submit", "failover")
FAULTS = ("stack", "memory", "descriptors", "disk", "full", "limit")
"""What fails: a call at a depth, one allocation, one opening, one writing, all writing from one on, and
all opening beyond a real limit of descriptors."""

LATE = 3.0
_HANGS = 30.0  # seconds after which a call is one that never ends
PLAIN = Say(Variant().answer())
STREAM = Say(Variant(stream=True, framing="chunked").answer())
BUSY = Say(b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
SILENT = Say(b"", "stall")
_ANSWERS = {"stream": (STREAM, STREAM), "hedged": (SILENT, PLAIN), "failover": (BUSY, PLAIN)}


def run(kind: str, fault: str, folder: Path, *, every: int = 1, seed: int = 0) -> dict[str, int]:
    """Makes such calls in a process of its own.

    Args:
        every: steps between two points at which the fault comes; ``seed`` chooses the first of them.

    Returns:
        How many calls were made, and how many of them met the fault.

    Raises:
        AssertionError: something was left or lost; the message tells the points.
    """
    at, counts = 1 + seed % every, Counter[str]()
    with RawServer(parallel=8) as a, RawServer(parallel=8) as b:
        a.say, b.say = answers(kind)
        needs_library = fault in ("descriptors", "disk", "full")
        more = {"LD_PRELOAD": failing_calls(folder)} if needs_library else {}
        while True:
            child = folder / f"from{at}"
            child.mkdir()
            servers = [a.base_url, b.base_url]
            command = [sys.executable, __file__, kind, fault, *servers, str(child), str(at), str(every)]
            ended = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **more},
            )
            steps = re.findall(r"^at (\d+)$", ended.stdout, re.M)
            said = re.sub(r"^at \d+\n", "", ended.stdout, flags=re.M)
            if ended.returncode >= 0 or fault != "memory" or not _interpreters_own(said):
                break
            # CPython itself does not survive a lack of memory everywhere. On from the next point.
            counts["crashes of the interpreter"] += 1
            counts["calls"] += len(steps)
            at = int(steps[-1]) + every
    assert ended.returncode == 0, f"exit status {ended.returncode}:\n{said[-8000:]}"
    counts.update(json.loads(said.splitlines()[-1]))
    return dict(counts)


def answers(kind: str) -> tuple[Say, Say]:
    """What the first and the second server say to calls of a kind."""
    return _ANSWERS.get(kind, (PLAIN, PLAIN))


def at_the_limit(frames: int, call: Callable[[], None]) -> None:
    """Runs the call with room for about so many frames on the stack."""
    usual = sys.getrecursionlimit()
    # The limit counts calls in C as well in some versions, so the lowest one that is accepted here is
    # searched for and not computed.
    for limit in itertools.count(_depth()):
        try:
            sys.setrecursionlimit(limit + frames)
            break
        except RecursionError:
            continue
    try:
        call()
    finally:
        sys.setrecursionlimit(usual)


def _depth() -> int:
    frame, count = inspect.currentframe(), -1
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


def frames_of(subject: Subject) -> int:
    """How many frames a call of the subject nests in this thread at most."""
    subject.prepare()
    here, deepest = _depth(), 0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal deepest
        if event in ("call", "c_call"):
            count, outer = 0, frame.f_back
            while outer is not None:
                count, outer = count + 1, outer.f_back
            deepest = max(deepest, count - here)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        subject.call()
    finally:
        sys.setprofile(before)
    return deepest


def _interpreters_own(said: str) -> bool:
    """Whether a process has crashed in C code of the standard library or of orjson: both have such places."""
    found = re.search(r'^Current thread .*\n  File "(.+?)", line (\d+)', said, re.M)
    if found is None:
        return False
    file, line = found[1], linecache.getline(found[1], int(found[2]))
    library = os.path.dirname(os.__file__) + os.sep
    return (
        (file.startswith(library) and "site-packages" not in file)
        or "orjson." in line
        or "json_codec." in line
    )


@cache
def failing_calls(folder: Path) -> str:
    """The path of the library that makes calls of the operating system fail, compiled there."""
    library = folder / "failing_calls.so"
    source = _HERE / "failing_calls.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return str(library)


# ------------------------------------------------------------------------------------------------ the child


class Subject:
    """A client in front of the two servers, with every limit in force, and the calls made through it."""

    def __init__(self, kind: str, servers: list[str], ledger: Path) -> None:
        self.kind = kind
        self.ledger = ledger
        self.acknowledged: set[str] = set()
        self._turn = 0
        self.client = Client(
            {
                "fastroute": {"ledger": str(ledger), "timeout": 20.0},
                "cache": {"enabled": kind == "cached"},
                "providers": {
                    name: {
                        "base_url": url,
                        "max_in_flight": 2,
                        "tpm": 1_000_000_000,
                        "rpm": 10_000_000,
                        "burst": 1_000_000,
                    }
                    for name, url in zip("ab", servers)
                },
                "endpoints": [{"provider": name, "model": "m"} for name in "ab"],
                "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
                "budgets": [{"name": "all", "limit": 1000.0, "window": "total"}],
                "policy": {
                    "strategy": "ordered",
                    "max_in_flight": 5,
                    "queue_timeout": 0.03,
                    "backoff_base": 0.001,
                    "backoff_cap": 0.002,
                    "breaker": {"failures": 255, "min_calls": 10_000},
                    "hedging": {
                        "enabled": kind == "hedged",
                        "min_delay": 0.0,
                        "min_samples": 10,
                        "max_share": 1.0,
                    },
                },
            }
        )
        self.client.on(self._finished, events.AttemptFinished)

    def _finished(self, event: events.AttemptFinished) -> None:
        self.acknowledged.add(event.attempt.id)

    def prepare(self) -> None:
        """What is needed before each call, and is no part of it."""
        self._turn += 1
        if self.kind == "hedged":
            first, second = self.client.runtime.generation.state.endpoints
            tail = first.tail(False)
            assert tail is not None
            for _ in range(10):
                tail.record(0.001)
                second.core.deposit()

    def call(self) -> None:
        create = self.client.chat.completions.create
        text = "Good day" if self.kind != "cached" else f"Good day {self._turn}"
        messages = [{"role": "user", "content": text}]
        if self.kind == "stream":
            with create(model="m", messages=messages, stream=True) as stream:
                for _ in stream:
                    pass
        elif self.kind == "submit":
            self.client.submit(model="m", messages=messages).result(LATE)
        else:
            create(model="m", messages=messages)

    def left(self) -> dict[str, Any]:
        """What the calls have left behind, once what ends by itself has had its time."""
        end = time.monotonic() + LATE
        while True:
            found: dict[str, Any] = held(self.client)
            if waiting_timers():
                found["timers"] = len(waiting_timers())
            if not found or time.monotonic() > end:
                return found
            gc.collect()
            time.sleep(0.002)

    def close(self) -> dict[str, Any]:
        """Closes the client; what it has lost of what was acknowledged."""
        self.client.close()
        with Ledger(self.ledger) as ledger:
            written = [attempt.id for attempt in ledger.entries(None)]
        found: dict[str, Any] = {}
        if len(written) != len(set(written)):
            found["entries written twice"] = len(written) - len(set(written))
        if lost := self.acknowledged - set(written):
            found["entries lost"] = len(lost)
        return found


class Fault:
    """Something that fails at a chosen step of what is run."""

    fresh = True
    """Whether each call needs a client of its own, because only a first one opens files and connections."""
    allowed: tuple[type[BaseException], ...] = (fastroute.Error,)

    def strike(self, at: int, call: Callable[[], None]) -> bool:
        """Runs the call with the fault at this step, from 1; returns whether the call came as far."""
        raise NotImplementedError


class Stack(Fault):
    """The recursion limit: so many frames are left."""

    fresh = False
    allowed = (fastroute.Error, RecursionError)

    def strike(self, at: int, call: Callable[[], None]) -> bool:
        try:
            at_the_limit(at, call)
        except RecursionError:
            return True
        return False


class Memory(Fault):
    """One allocation, of whatever thread."""

    fresh = False
    # CPython has places that report a lack of memory as "returned NULL without setting an exception".
    allowed = (fastroute.Error, MemoryError, SystemError)

    def __init__(self) -> None:
        import _testcapi

        self._set: Callable[[int, int], None] = _testcapi.set_nomemory
        self._end: Callable[[], None] = _testcapi.remove_mem_hooks

    def strike(self, at: int, call: Callable[[], None]) -> bool:
        met = True
        self._set(at, at + 1)
        try:
            call()
            # If it is still to come, it comes here.
            try:
                for _ in range(at):
                    bytearray(8)
            except MemoryError:
                met = False
        finally:
            self._end()
        return met


class Doors(Fault):
    """One call of the operating system, or all of them from one on."""

    def __init__(self, kind: int, error: int, sticky: bool) -> None:
        self._library = ctypes.CDLL(None)
        self._library.stop_failing.restype = ctypes.c_long
        self._how = kind, error, sticky

    def strike(self, at: int, call: Callable[[], None]) -> bool:
        kind, error, sticky = self._how
        seen = 0
        self._library.fail_at(kind, ctypes.c_long(at), error, int(sticky))
        try:
            call()
        finally:
            seen = self._library.stop_failing()
        return seen >= at


class Descriptors(Fault):
    """A real limit of open descriptors: no more than there are, then one more each time."""

    def strike(self, at: int, call: Callable[[], None]) -> bool:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        numbers = [int(number) for number in os.listdir("/proc/self/fd")]
        free = [number for number in range(max(numbers) + 40) if number not in numbers]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[at - 1], hard))
        try:
            call()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return at <= 16


_OPENING, _WRITING = 1, 2  # as in failing_calls.c
_FAULTS: dict[str, Callable[[], Fault]] = {
    "stack": Stack,
    "memory": Memory,
    "descriptors": lambda: Doors(_OPENING, errno.EMFILE, False),
    "limit": Descriptors,
    "disk": lambda: Doors(_WRITING, errno.ENOSPC, False),
    "full": lambda: Doors(_WRITING, errno.ENOSPC, True),
}


class Runs:
    """The calls of one kind with one fault, and what was wrong with them."""

    def __init__(self, kind: str, fault: str, servers: list[str], folder: Path) -> None:
        self._kind = kind
        self._fault = _FAULTS[fault]()
        self._servers = servers
        self._folder = folder
        self._subject: Subject | None = None
        self._clients = 0
        self.wrong: list[str] = []
        self.calls = self.served = self.hit = 0

    def all(self, at: int, every: int) -> None:
        """Steps on until calls do not come as far any more."""
        self._warm()
        self._files, self._threads = open_files(), threads()
        missed = 0
        while missed < 2:
            met = self._step(at)
            missed = 0 if met else missed + 1
            self.hit += met
            at += every
        if self._subject is not None:
            self._end(self._subject, "at the end")

    def _warm(self) -> None:
        """What is made at a first call of the process is made, and is no part of what is compared."""
        for _ in range(2):
            with self._begun() as subject:
                for _ in range(3):
                    subject.prepare()
                    subject.call()

    @contextmanager
    def _begun(self) -> Iterator[Subject]:
        self._clients += 1
        subject = Subject(self._kind, self._servers, self._folder / f"{self._clients}.db")
        try:
            yield subject
        finally:
            subject.client.close()

    def _step(self, at: int) -> bool:
        subject = self._subject
        if subject is None:
            self._clients += 1
            subject = Subject(self._kind, self._servers, self._folder / f"{self._clients}.db")
        subject.prepare()
        where = f"at {at}"
        self.calls += 1
        print(where, flush=True)
        faulthandler.dump_traceback_later(_HANGS, exit=True)

        def call() -> None:
            try:
                subject.call()
                self.served += 1
            except RuntimeError as error:
                if isinstance(error, RecursionError):
                    raise
                # "can't allocate lock": so the interpreter says it where memory is short.
                if not (isinstance(self._fault, Memory) and str(error).startswith("can't ")):
                    unexpected.append(error)
            except self._fault.allowed as error:
                if isinstance(error, (RecursionError, MemoryError, SystemError)):
                    error.__traceback__ = None
                    raise
            except BaseException as error:
                unexpected.append(error)

        unexpected: list[BaseException] = []
        met = True
        try:
            met = self._fault.strike(at, call)
        except (RecursionError, MemoryError, SystemError):
            pass
        if unexpected:
            self.wrong.append(f"{where}: " + "".join(traceback.format_exception(unexpected[0])))
        unexpected.clear()
        left = subject.left()
        if left:
            self.wrong.append(f"{where}: {left}")
            self._subject = None
            subject.client.close()
        elif self._fault.fresh:
            self._end(subject, where)
        else:
            self._subject = subject
        return met

    def _end(self, subject: Subject, where: str) -> None:
        lost = subject.close()
        self._subject = None
        gc.collect()
        end = time.monotonic() + LATE
        while threads() - self._threads and time.monotonic() < end:
            time.sleep(0.002)
        if more := threads() - self._threads:
            lost["threads"] = [each.name for each in threading.enumerate() if each.ident in more]
        if files := {what for _, what in open_files() - self._files}:
            lost["files"] = sorted(files)
        if lost:
            self.wrong.append(f"{where}: {lost}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("servers", nargs=2)
    parser.add_argument("folder", type=Path)
    parser.add_argument("at", type=int)
    parser.add_argument("every", type=int)
    options = parser.parse_args()
    faulthandler.enable()
    runs = Runs(options.kind, options.fault, options.servers, options.folder)
    runs.all(options.at, options.every)
    faulthandler.cancel_dump_traceback_later()
    for line in runs.wrong:
        print(line)
    print(json.dumps({"calls": runs.calls, "served": runs.served, "hit": runs.hit}))
    sys.exit(1 if runs.wrong else 0)


if __name__ == "__main__":
    main()
