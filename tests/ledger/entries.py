"""Entries, children that are killed, and waiting: what the ledger's tests are made of."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastroute.ledger import Ledger, journal
from fastroute.types import Attempt

DAY = 86_400
NOON = 20_000 * DAY + 43_200.25


def attempt(n: int = 0, **fields: Any) -> Attempt:
    return Attempt(
        **{
            "id": os.urandom(16).hex(),
            "call_id": f"call-{n}",
            "time": NOON + n,
            "endpoint": "openai/gpt-4.1",
            "provider": "openai",
            "model": "gpt-4.1",
            "cost_nano": 1_000_003 + n,
            "prompt_tokens": 10,
            "latency": 0.1,
            **fields,
        }
    )


class Opens:
    """A place for a ledger: called, it opens it, as often as it is called.

    Attributes:
        journal: the directory of its journal.
    """

    def __init__(self, place: str | Path, journal: Path | None = None) -> None:
        self.place = place
        self._fixed: dict[str, Any] = {} if journal is None else {"journal": journal}
        self.journal = journal or Path(f"{place}.journal")

    def __call__(self, **options: Any) -> Ledger:
        return Ledger(self.place, **self._fixed, **options)


def segments(directory: Path | str) -> list[str]:
    """A journal's files of entries."""
    return sorted(name for name in os.listdir(directory) if name.endswith(journal.SUFFIX))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a condition, for a bounded time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def in_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked child that is then killed by SIGKILL; the child's process id.

    A child whose work raises exits with 1, which `reap` notices.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child raised"
    assert os.WTERMSIG(status) == signal.SIGKILL
