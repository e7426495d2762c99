"""A client's configuration, a question, and forks of both kinds."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastroute import Client, Completion
from fastroute.platform import forks

SECOND = 10**9


def tables(base_url: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": str(tmp_path / "ledger.db"), "timeout": 20.0, **more.pop("fastroute", {})},
        "cache": {"enabled": False},
        "providers": {"p": {"base_url": base_url, **more.pop("provider", {})}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 1.0}},
        "policy": {"queue_timeout": 5.0, "max_attempts": 1},
        **more,
    }


def ask(client: Client, text: str = "hello", **params: Any) -> Completion:
    reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **params)
    assert isinstance(reply, Completion)
    return reply


def forked(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Callable[[], Any]:
    """Starts ``work`` in a forked child, which ends after 20 s at most; the result waits for its answer."""
    readable, writable = os.pipe()
    pid = fork()
    if pid == 0:
        signal.alarm(20)
        try:
            answer = {"answer": work()}
        except BaseException as error:
            answer = {"error": repr(error)}
        with os.fdopen(writable, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writable)

    def result() -> Any:
        with open(readable) as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert text, f"the child ended with {os.waitstatus_to_exitcode(status)}"
        found = json.loads(text)
        assert "error" not in found, found["error"]
        return found["answer"]

    return result


def unheard_fork() -> int:
    """As by a server that forks below Python: nothing of fastroute's is done (Python's own is)."""
    actions, forks.actions = forks.actions, []
    mutex, forks.mutex = forks.mutex, threading.RLock()
    try:
        pid = os.fork()
    finally:
        forks.actions, forks.mutex = actions, mutex
    if pid == 0:
        forks.handled = 0
    return pid


FORKS = pytest.mark.parametrize("fork", [os.fork, unheard_fork], ids=["heard", "unheard"])
