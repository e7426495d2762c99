"""The HTTP server of a provider: connections, the log, the script, and the answer to each request.

Everything runs in the thread of the server's event loop, so nothing is locked. `Provider` uses it only
through commands, the methods of `Server` in `COMMANDS`.

A good answer without a delay is written at once, in the call that received the request. Any other answer is a
task that sends pieces and waits between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from .answer_source import ProviderError, Question, Said, settle
from .faults import Fault
from .formats import FORMATS
from .http_connection import Head, ServerConnection, parse_head
from .latency import check_seconds
from .openai_format import ERRORS, ServerFormat
from .rate_limits import RateLimits
from .settings import Received, Settings
from .wire import SEND_SIZE, Headers, Piece, Reply, Wire, encode, frame

logger = logging.getLogger("fastroute.testing")

MOST_HEADS = 256  # cached header blocks: clients send the same one repeatedly
MOST_SAID = 256  # cached answers: a benchmark sends the same request repeatedly
LONGEST_SAID = 4096
LOG_BYTES = 256 << 20  # the most bytes of bodies in the log
_JSON: Headers = (("content-type", "application/json"),)
_EVENTS: Headers = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))

Script = Fault | None
ScriptFunction = Callable[[Received], Fault | None]


# ----------------------------------------------------------------------------------------------- server


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: if the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is given.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Server:
    """The provider in its event loop. Not thread-safe: call it only in the loop's thread."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._format: ServerFormat = FORMATS[settings.format]()
        self._limits = RateLimits(settings.requests_per_minute, settings.tokens_per_minute)
        self._rng = random.Random(settings.seed)
        self._listener: socket.socket | None = listener
        self._address: tuple[str, int] = listener.getsockname()[:2]
        self._reserved: socket.socket | None = None
        self._acceptor: asyncio.Server | None = None
        self._connections: set[ServerConnection] = set()
        self._heads: dict[bytes, Head] = {}
        self._said: dict[tuple[str, bytes], tuple[Question, Said]] = {}
        self._script: deque[Script] = deque()
        self._repeat = False
        self._function: ScriptFunction | None = None
        self._log: deque[Received] = deque()
        self._log_bytes = 0
        self._resumed: asyncio.Event = asyncio.Event()
        self._resumed.set()
        self._serial = 0
        self._counts = {"connections": 0, "received": 0, "in_flight": 0, "peak_in_flight": 0, "abandoned": 0}

    # -------------------------------------------------------------------------------------- life

    async def open(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        self._acceptor = await loop.create_server(lambda: ServerConnection(self), sock=self._listener)

    async def kill(self) -> None:
        """Refuse and reset all connections; the port stays reserved."""
        acceptor, listener = self._acceptor, self._listener
        if acceptor is None or listener is None:
            return
        self._acceptor = self._listener = None
        with contextlib.suppress(OSError):
            # Also stops listening if a forked child has a copy of the socket.
            listener.shutdown(socket.SHUT_RDWR)
        # Let asyncio take over what was accepted: it logs an error for a listener that is closed before that.
        asyncio.get_running_loop().remove_reader(listener)
        await asyncio.sleep(0)
        acceptor.close()
        listener.close()
        for connection in tuple(self._connections):
            connection.end("reset")
        while self._connections:
            await asyncio.sleep(0)
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        reserved = socket.socket(family, socket.SOCK_STREAM)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(self._address)
        except OSError:
            reserved.close()
        else:
            self._reserved = reserved

    def _free(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def restart(self) -> None:
        """Listen on the same port again, after `kill` or not."""
        await self.kill()
        self._free()
        self._listener = listen(*self._address)
        self._resumed.set()
        await self.open()

    async def close(self) -> None:
        """Release everything; the server cannot be used afterwards."""
        await self.kill()
        self._free()
        own = asyncio.current_task()
        # Sockets accepted at the last moment that are not connections yet end after a turn or two.
        for _ in range(100):
            others = [task for task in asyncio.all_tasks() if task is not own]
            if not others and not self._connections:
                break
            await asyncio.sleep(0)

    def opened(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        self._counts["connections"] += 1
        connection.number = self._counts["connections"]
        if self._acceptor is None:
            connection.end("reset")
            return
        head = self._script[0] if self._script else None
        if head is not None and head.on_connect:
            self._advance_script()
            how = next(tail for change in head.changes for tail in getattr(change, "tail", ()))
            connection.end(how)

    def closed(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)

    # ---------------------------------------------------------------------------------- commands

    def script(self, faults: Iterable[Script], repeat: bool) -> None:
        self._function = None
        if repeat or self._repeat:
            self._script.clear()
        self._repeat = repeat
        self._script.extend(faults)

    def script_function(self, function: ScriptFunction) -> None:
        self._function = function

    def clear_script(self) -> None:
        self._script.clear()
        self._function = None
        self._repeat = False

    def configure(self, changes: Mapping[str, Any]) -> None:
        self._settings = replace(self._settings, **changes)
        self._said.clear()

    def setting(self, name: str) -> Any:
        return getattr(self._settings, name)

    def counts(self) -> dict[str, int]:
        return {
            **self._counts,
            "open_connections": len(self._connections),
            "scripted": len(self._script),
            "logged": len(self._log),
        }

    def requests(self) -> tuple[Received, ...]:
        return tuple(self._log)

    def clear_requests(self) -> None:
        self._log.clear()
        self._log_bytes = 0

    def pause(self) -> None:
        self._resumed.clear()

    def resume(self) -> None:
        self._resumed.set()

    # ------------------------------------------------------------------------------- one request

    def head(self, block: bytes) -> Head:
        known = self._heads.get(block)
        if known is None:
            known = parse_head(block)
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            self._heads[block] = known
        return known

    def malformed(self, message: str) -> bytes:
        """The answer to bytes that are not a request."""
        return encode(Reply(400, _JSON, self._format.error(400, None, message)), keep=False)

    def _advance_script(self) -> None:
        fault = self._script.popleft()
        if self._repeat:
            self._script.append(fault)

    def _fault(self, received: Received) -> Fault | None:
        if self._script:
            fault = self._script[0]
            self._advance_script()
            return fault
        if self._function is not None:
            fault = self._function(received)
            if fault is not None and not isinstance(fault, Fault):
                raise TypeError(
                    f"the script function returned {type(fault).__name__}; return a Fault or None"
                )
            return fault
        settings = self._settings
        if settings.fail_rate and self._rng.random() < settings.fail_rate:
            return self._rng.choice(settings.fail_with)
        return None

    def _remember(self, received: Received) -> None:
        log = self._log
        log.append(received)
        self._log_bytes += len(received.body)
        while len(log) > self._settings.log_size or self._log_bytes > LOG_BYTES:
            self._log_bytes -= len(log.popleft().body)

    def serve(self, connection: ServerConnection, head: Head, body: bytes) -> None:
        """Answer one request, now or in a task."""
        now = time.monotonic()
        self._serial += 1
        counts = self._counts
        counts["received"] += 1
        method, path, headers = head.method, head.path, head.headers
        number = connection.number
        received = Received(method, path, headers, body, time=now, connection=number)
        fault: Fault | None = None
        try:
            if self._script or self._function is not None or self._settings.fail_rate:
                fault = self._fault(received)
            if fault is not None:
                received = Received(
                    method, path, headers, body, time=now, connection=number, fault=fault.name
                )
            reply = self._reply(received, now, fault)
            latency = self._settings.latency
            if callable(latency):
                latency = check_seconds("latency", latency(self._rng))
        except Exception:
            # A user's function failed; answer 500, so that the client does not wait for nothing.
            logger.exception("a function given to the provider failed")
            message = "A function given to the provider raised; its log has the traceback."
            reply = Reply(500, _JSON, self._format.error(500, None, message))
            latency = 0.0
        self._remember(received)
        delay = latency + reply.work
        if fault is None and not delay and isinstance(reply.body, bytes) and self._resumed.is_set():
            counts["peak_in_flight"] = max(counts["peak_in_flight"], counts["in_flight"] + 1)
            connection.write(encode(reply, keep=head.keep))
            if not head.keep:
                connection.end("close")
            return
        if fault is not None:
            reply = fault.change_reply(reply, self._format)
            delay += reply.work
        wire = frame(reply, keep=head.keep, http10=head.http10)
        if fault is not None:
            wire = fault.change_wire(wire)
        counts["in_flight"] += 1
        counts["peak_in_flight"] = max(counts["peak_in_flight"], counts["in_flight"])
        loop = asyncio.get_running_loop()
        connection.run(loop.create_task(self._carry_out(connection, wire, delay)))

    def _reply(self, received: Received, now: float, fault: Fault | None) -> Reply:
        """The good answer, or the provider's own refusal."""
        form, settings = self._format, self._settings
        common: Headers = (form.request_id(self._serial),)
        try:
            question, said = self._read(received)
            if question is None or said is None:
                return Reply(
                    200, common + _JSON, form.models(settings.models, received.path.partition("?")[2])
                )
            if self._limits:
                refused = self._limits.take(said.prompt_tokens + said.completion_tokens, now)
                common += form.limit_headers(self._limits.state(now))
                if refused is not None:
                    headers, body = form.refused(refused)
                    return Reply(429, common + _JSON + headers, body)
        except ProviderError as error:
            if self._limits:
                common += form.limit_headers(self._limits.state(now))
            status = form.status_of(error.code) if error.code in ERRORS else error.status
            body = form.error(status, error.code, error.message, error.param)
            return Reply(status, common + _JSON, body)
        created = int(time.time())
        pace = 1 / settings.tokens_per_second if settings.tokens_per_second else 0.0
        if not question.stream:
            body = form.completion(question, said, self._serial, created)
            return Reply(200, common + _JSON, body, work=said.generated * pace)
        events: Iterable[Piece] = form.events(question, said, self._serial, created, settings.style, pace)
        if fault is not None:
            events = fault.change_events(events, form)
        return Reply(200, common + _EVENTS, events)

    def _read(self, received: Received) -> tuple[Question | None, Said | None]:
        """The question and its answer; None twice for the list of models."""
        form, settings = self._format, self._settings
        path = received.path.partition("?")[0]
        route = form.route(received.method, path)
        if route is None:
            raise ProviderError(404, None, f"Invalid URL ({received.method} {path})")
        if settings.api_keys and form.key(received.headers) not in settings.api_keys:
            raise ProviderError(401, "invalid_api_key", "Incorrect API key provided.")
        if route == "models":
            return None, None
        known = self._said.get((received.path, received.body))
        if known is not None:
            return known
        question = form.read(received.body, received.path, settings.strict)
        if settings.models and question.model not in settings.models:
            raise ProviderError(
                404, "model_not_found", "The model does not exist or is not yours to use.", "model"
            )
        said = settle(
            settings.answer,
            question,
            received,
            cached_tokens=settings.cached_tokens,
            reasoning_tokens=settings.reasoning_tokens,
        )
        if len(received.body) <= LONGEST_SAID and not callable(settings.answer):
            if len(self._said) >= MOST_SAID:
                self._said.clear()
            self._said[received.path, received.body] = question, said
        return question, said

    async def _carry_out(self, connection: ServerConnection, wire: Wire, delay: float) -> None:
        """Wait, then send an answer's pieces with their pauses."""
        try:
            await self._send(connection, wire, delay)
        except asyncio.CancelledError:
            self._counts["abandoned"] += 1
            raise
        finally:
            self._counts["in_flight"] -= 1

    async def _send(self, connection: ServerConnection, wire: Wire, delay: float) -> None:
        loop = asyncio.get_running_loop()
        # Each pause starts at the planned end of the one before, so that delays of the loop do not add up.
        due = loop.time() + delay
        if delay > 0:
            await asyncio.sleep(delay)
        held: list[bytes] = []
        size = 0

        async def flush() -> None:
            nonlocal size
            await self._resumed.wait()
            if held:
                connection.transport.write(b"".join(held))
                held.clear()
                size = 0
            await connection.drained()

        for piece in wire.pieces:
            if isinstance(piece, bytes):
                held.append(piece)
                size += len(piece)
                if size >= SEND_SIZE:
                    await flush()
                    await asyncio.sleep(0)
            elif isinstance(piece, str):
                await flush()
                if piece == "reset":
                    await connection.delivered()
                elif piece == "hang":
                    await loop.create_future()
                connection.end(piece)
                return
            else:
                await flush()
                due += piece
                await asyncio.sleep(max(0.0, due - loop.time()))
        await flush()
        if not wire.keep:
            connection.end("close")


COMMANDS = frozenset(
    {
        "clear_requests",
        "clear_script",
        "configure",
        "counts",
        "kill",
        "pause",
        "requests",
        "restart",
        "resume",
        "script",
        "script_function",
        "setting",
    }
)
