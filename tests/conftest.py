"""Fixtures for everything that runs against the client and real sockets."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import samples
from loopback import Loopback, nothing_left

from fastroute.testing import Provider


def pytest_configure() -> None:
    """Ctrl-C is for everybody: a shell starts what runs in its background deaf to it, and so its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    samples.seed()  # before pytest-xdist starts its workers, which inherit it
    # The default ledger lies in the user's state folder, which is not for tests.
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fastroute-state-")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"samples: {samples.VARIABLE}={samples.seed()}")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """What the imports have made lives as long as the process: no collection need look at it again.

    Each test that looks for leaks collects before and after; over all modules of the SDKs that took longer
    than the test itself.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Loopback]]:
    """Starts local providers and a client in front of them; afterwards nothing may be held or leaked.

    ``start(2, policy={...}, providers={"a": {...}, "all": {...}})``: how many providers (or a mapping of
    started ones by name), the wire ``format`` of all of them, and tables over the usual configuration;
    ``check=False`` leaves the books alone.
    """
    with nothing_left(), ExitStack() as stack:
        started: list[tuple[Loopback, bool]] = []

        def begin(
            servers: int | dict[str, Provider] = 1,
            /,
            *,
            check: bool = True,
            session: Any = None,
            answer: Any = None,
            format: str = "openai",
            more_endpoints: list[dict[str, Any]] | None = None,
            ledger: bool = True,
            **tables: Any,
        ) -> Loopback:
            if isinstance(servers, int):
                names = [chr(ord("a") + place) for place in range(servers)]
                servers = {name: Provider(answer=answer, format=format) for name in names}
            for provider in servers.values():
                stack.enter_context(provider)
            path = tmp_path / f"ledger{len(started)}.db" if ledger else None
            loop = Loopback(servers, path, tables, session, more_endpoints, format)
            stack.callback(loop.client.close)
            started.append((loop, check))
            return loop

        yield begin
        for loop, check in started:
            if check:
                loop.check()
            loop.close()
