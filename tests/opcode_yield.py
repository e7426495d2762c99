"""A tracer that gives the interpreter lock away between bytecodes, where another thread can do the most harm.

Python code that only by luck is never interrupted between a check and its act looks correct for years. Here
every thread may lose the lock after any bytecode of the chosen files, by a seeded draw, so that a race of few
bytecodes shows within a test's few calls. Code in C runs as it is: its steps are not bytecodes.

It owns no threads: it runs the callables it is given, each in one, all started together. Threads that they
start are interrupted like them.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import fastroute

T = TypeVar("T")
_SOURCES = tuple(str(path) for path in Path(fastroute.__file__).parent.rglob("*.py"))


def real(parts: Iterable[str]) -> tuple[str, ...]:
    """The parts of file names as they are; fails for one that no source file has."""
    found = tuple(parts)
    for part in found:
        assert Path(part).exists() or any(part in name for name in _SOURCES), f"no source file matches {part}"
    return found


def run_yielding(
    calls: Sequence[Callable[[], T]], files: Iterable[str], *, seed: int = 0, share: float = 0.2
) -> list[T]:
    """Runs all calls at the same time, switching threads between bytecodes.

    Args:
        calls: One for each thread.
        files: Ends of the names of the source files whose bytecodes are interrupted, such as ``"cache.py"``.
        seed: Decides which bytecodes; the scheduler still has its say in who comes next.
        share: Of the bytecodes after which the lock is given away.

    Returns:
        What the calls returned, in their order.

    Raises:
        BaseException: The first that a call raised, once all have ended.
    """
    endings = real(files)
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []
    together = threading.Barrier(len(calls))

    def tracer(i: int) -> Callable[[FrameType, str, Any], Any]:
        draw = random.Random(seed * 1_000_003 + i).random

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "call":
                if not frame.f_code.co_filename.endswith(endings):
                    return None
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            elif event == "opcode" and draw() < share:
                time.sleep(0)  # lets the lock go; whoever waits for it runs on
            return trace

        return trace

    def body(i: int, call: Callable[[], T]) -> None:
        together.wait()
        sys.settrace(tracer(i))
        try:
            results[i] = call()
        except BaseException as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=body, args=item) for item in enumerate(calls)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threading.settrace(tracer(len(calls)))
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]
    return results
