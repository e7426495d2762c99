"""Runs a provider's server in a thread of this process, or in a process of its own.

Both hosts accept the same commands, the methods of `Server` in `COMMANDS`. A process gets each command as a
line of JSON and answers with another.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import inspect
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any, Protocol

from fastroute import json_codec

from . import answer_source, changes, faults, latency, openai_format, settings, wire
from .server import COMMANDS, Server, listen
from .settings import Received, Settings

STOP_SECONDS = 10.0


class Host(Protocol):
    """A running server that takes commands from any thread."""

    port: int
    pid: int

    def call(self, command: str, *arguments: Any) -> Any: ...
    def stop(self) -> None: ...


def _check_process(owner: int) -> None:
    if owner != os.getpid():
        raise RuntimeError(
            "the provider can only be controlled by the process that started it; a fork can send requests"
        )


# ----------------------------------------------------------------------------------------------- thread


class ThreadHost:
    """A server in a daemon thread of this process. Thread-safe."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        listener = listen(host, port)
        self.port: int = listener.getsockname()[1]
        self.pid = self._owner = os.getpid()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._server: Server | None = None
        self._late: asyncio.Future[Any] | None = None  # a running command of a scripted function
        self._thread = threading.Thread(
            target=self._run, args=(settings, listener), name=f"fastroute-provider-{self.port}", daemon=True
        )
        self._thread.start()
        self._ready.wait()

    def _run(self, settings: Settings, listener: Any) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(settings, listener))
        finally:
            self._ready.set()
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _serve(self, settings: Settings, listener: Any) -> None:
        self._server = Server(settings, listener)
        await self._server.open()
        self._ready.set()
        await self._stopping.wait()
        await self._server.close()

    async def _invoke(self, command: str, arguments: tuple[Any, ...]) -> Any:
        result = getattr(self._server, command)(*arguments)
        return await result if inspect.isawaitable(result) else result

    def call(self, command: str, *arguments: Any) -> Any:
        """Run a command in the server's thread and return its result."""
        if command not in COMMANDS:
            raise ValueError(
                f"command: unknown command {command!r}; use one of {', '.join(sorted(COMMANDS))}"
            )
        _check_process(self._owner)
        if threading.get_ident() == self._thread.ident:
            # Called by a script or answer function: waiting for our own loop would block forever.
            result = getattr(self._server, command)(*arguments)
            if inspect.isawaitable(result):
                self._late = asyncio.ensure_future(result, loop=self._loop)
                return None
            return result
        return asyncio.run_coroutine_threadsafe(self._invoke(command, arguments), self._loop).result()

    def stop(self) -> None:
        if self._owner == os.getpid() and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()


# ---------------------------------------------------------------------------------------------- process

_VALUES: dict[str, type[Any]] = {
    value.__name__: value
    for module in (answer_source, changes, faults, latency, openai_format, settings, wire)
    for value in vars(module).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}


def _encode(value: object) -> Any:
    if isinstance(value, bytes):
        return {"!": "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, Received):
        return {"!": "Received", **{name: getattr(value, name) for name in Received.__slots__}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"!": type(value).__name__, **fields}
    if callable(value):
        raise TypeError("a function cannot be sent to a provider in its own process; use process=False")
    raise TypeError(f"{type(value).__name__} cannot be sent to a provider in its own process; use plain data")


def dumps(value: object) -> bytes:
    """A value of this package as one line of JSON.

    Raises:
        TypeError: if it contains a function, or anything else that is not data.
    """
    try:
        return json_codec.dumps(value, default=_encode, option=json_codec.OPT_PASSTHROUGH_DATACLASS) + b"\n"
    except TypeError as error:
        raise error.__cause__ if isinstance(error.__cause__, TypeError) else error from None


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.pop("!", None)
    fields = {name: _decode(item) for name, item in value.items()}
    if kind is None:
        return fields
    if kind == "bytes":
        return base64.b64decode(fields["base64"])
    return (Received if kind == "Received" else _VALUES[kind])(**fields)


def loads(line: bytes) -> Any:
    """The value that `dumps` wrote; lists become tuples."""
    return _decode(json_codec.loads(line))


class ProcessHost:
    """A server in a process of its own that ends with this process. Thread-safe."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        first = dumps({"settings": settings, "host": host, "port": port})
        root = str(pathlib.Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fastroute.testing", "--json-config"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.pid = self._child.pid
        try:
            self.port = int(self._exchange(first))
        except BaseException:
            self.stop()
            raise

    def _exchange(self, line: bytes) -> Any:
        with self._lock:
            child = self._child
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(line)
                child.stdin.flush()
                answer = child.stdout.readline()
            except (OSError, ValueError):
                answer = b""
        if not answer:
            raise RuntimeError("the provider's process has ended")
        told: Mapping[str, Any] = loads(answer)
        if "error" in told:
            kind = {"OSError": OSError, "TypeError": TypeError, "ValueError": ValueError}.get(told["kind"])
            raise (kind or RuntimeError)(told["error"])
        return told["result"]

    def call(self, command: str, *arguments: Any) -> Any:
        """Send a command to the process and return its result."""
        _check_process(self._owner)
        return self._exchange(dumps({"command": command, "arguments": arguments}))

    def stop(self) -> None:
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        if self._owner != os.getpid():
            return  # in a fork: the server belongs to the parent
        # The process stops at the end of its input, which also comes if this process dies.
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def serve_commands(source: IO[bytes], sink: IO[bytes]) -> None:
    """Run the server in the child process; settings and commands are read as lines until their end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes our input
    server: ThreadHost | None = None
    try:
        for line in source:
            try:
                told = loads(line)
                if server is None:
                    server = ThreadHost(told["settings"], told["host"], told["port"])
                    result: Any = server.port
                else:
                    result = server.call(told["command"], *told["arguments"])
                answer = dumps({"result": result})
            except Exception as error:
                name = "OSError" if isinstance(error, OSError) else type(error).__name__
                answer = dumps({"error": str(error), "kind": name})
            sink.write(answer)
            sink.flush()
    finally:
        if server is not None:
            server.stop()
