"""The server side of HTTP/1.1: request heads, chunked bodies, and the order of answers on a connection.

An `Application` makes the answers. Everything runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
from typing import NamedTuple, Protocol

logger = logging.getLogger("fastroute.testing")

LONGEST_HEAD = 64 << 10
LONGEST_BODY = 64 << 20
_LINGER_RESET = struct.pack("ii", 1, 0)


# Servers read a repeated one of these differently, which allows request smuggling.
_ONCE = {"content-length", "transfer-encoding", "host", "authorization"}


class Head(NamedTuple):
    """A parsed request line and header block."""

    method: str
    path: str
    headers: dict[str, str]
    length: int | None
    chunked: bool
    keep: bool
    http10: bool
    expects: bool


class BadRequest(Exception):
    """The bytes that arrived are not an HTTP request."""


def parse_head(block: bytes) -> Head:
    """The header block, without its empty line.

    Raises:
        BadRequest: if it is malformed.
    """
    first, *lines = block.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest("the request line is malformed")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest("a header line is malformed")
        name = name.lower()
        if name in headers and name in _ONCE:
            raise BadRequest(f"the header {name} is repeated")
        headers[name] = value.strip()
    length = headers.get("content-length")
    if length is not None and "transfer-encoding" in headers:
        raise BadRequest("the request has both Content-Length and Transfer-Encoding")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadRequest("Content-Length is not a number")
    connection = headers.get("connection", "").lower()
    http10 = words[2] == "HTTP/1.0"
    return Head(
        method=words[0],
        path=words[1],
        headers=headers,
        length=None if length is None else int(length),
        chunked="chunked" in headers.get("transfer-encoding", "").lower(),
        keep="keep-alive" in connection if http10 else "close" not in connection,
        http10=http10,
        expects=headers.get("expect", "").lower() == "100-continue",
    )


def read_chunks(data: bytes | bytearray, start: int) -> tuple[bytes, int] | None:
    """A chunked body and the position of its end; None while it is incomplete.

    Raises:
        BadRequest: if the chunks are malformed.
    """
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", start)
        if line < 0:
            return None
        try:
            size = int(bytes(data[start:line]).split(b";")[0], 16)
        except ValueError:
            raise BadRequest("a chunk's size is malformed") from None
        start = line + 2
        if size == 0:
            end = data.find(b"\r\n", start)
            while end > start:
                start = end + 2
                end = data.find(b"\r\n", start)
            return None if end < 0 else (b"".join(parts), end + 2)
        if len(data) < start + size + 2:
            return None
        parts.append(bytes(data[start : start + size]))
        start += size + 2


# ------------------------------------------------------------------------------------------- connection


class Application(Protocol):
    """Makes the answers of a connection."""

    def opened(self, connection: ServerConnection) -> None: ...
    def closed(self, connection: ServerConnection) -> None: ...
    def head(self, block: bytes) -> Head: ...
    def malformed(self, message: str) -> bytes: ...
    def serve(self, connection: ServerConnection, head: Head, body: bytes) -> None: ...


class ServerConnection(asyncio.Protocol):
    """One accepted connection: reads requests one after the other and writes the answers."""

    def __init__(self, server: Application) -> None:
        self._server = server
        self._buffer = bytearray()
        self._written: list[bytes] = []  # answers to requests that arrived together, sent together
        self._need = 0  # bytes that the next request has at least
        self._task: asyncio.Task[None] | None = None
        self._continued = False
        self._drained: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.number = 0
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # No buffering beyond the socket's: a reset must not overtake what was written before it.
        transport.set_write_buffer_limits(high=0)
        self._server.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        if self._task is not None:
            self._task.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._server.closed(self)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def drained(self) -> None:
        """Wait until all that was written has reached the socket."""
        if self._drained is not None:
            await self._drained

    async def delivered(self) -> None:
        """Wait until the peer's kernel has all that was written, a second at most: RST discards the rest."""
        await self.drained()
        sock = self.transport.get_extra_info("socket")
        pause = 0.0
        while pause < 0.5 and struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]:
            await asyncio.sleep(pause)
            pause = pause * 2 or 0.001

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._advance()
        elif len(self._buffer) > LONGEST_HEAD:
            self.transport.pause_reading()

    def _advance(self) -> None:
        """Serve the complete requests in the buffer until one needs a task."""
        self._serve_buffered()
        self._flush()

    def write(self, data: bytes) -> None:
        """Queue an answer; it is sent together with those to requests that arrived with it."""
        self._written.append(data)

    def _flush(self) -> None:
        if self._written:
            self.transport.write(b"".join(self._written))
            self._written.clear()

    def _serve_buffered(self) -> None:
        while self._buffer and self._task is None and not self.closing:
            if len(self._buffer) < self._need:
                return
            try:
                if not self._next():
                    return
            except BadRequest as error:
                self.write(self._server.malformed(str(error)))
                self.end("close")

    def _next(self) -> bool:
        """Serve one request if the buffer contains a complete one."""
        buffer = self._buffer
        split = buffer.find(b"\r\n\r\n")
        if split < 0:
            if len(buffer) > LONGEST_HEAD:
                raise BadRequest("the header block is too long")
            return False
        head = self._server.head(bytes(buffer[:split]))
        start = split + 4
        if head.expects and not self._continued and len(buffer) == start:
            self._continued = True
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.chunked:
            if len(buffer) > LONGEST_BODY:
                raise BadRequest("the body is too long")
            read = read_chunks(buffer, start)
            if read is None:
                return False
            body, end = read
        else:
            end = start + (head.length or 0)
            if end > LONGEST_BODY:
                raise BadRequest("the body is too long")
            if len(buffer) < end:
                self._need = end
                return False
            body = bytes(buffer[start:end])
        del buffer[:end]
        self._need = 0
        self._continued = False
        self._server.serve(self, head, body)
        return True

    def run(self, task: asyncio.Task[None]) -> None:
        """Let a task answer the request that was read last; later requests wait for it."""
        self._task = task
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            logger.error("an answer failed", exc_info=task.exception())
            self.end("reset")
        if not self.closing:
            self.transport.resume_reading()
            self._advance()

    def end(self, how: str) -> None:
        """Close the connection: ``close`` sends what is written and FIN, ``reset`` sends RST.

        A reset also ends a connection that is still closing because its peer reads nothing.
        """
        if self.closing and how != "reset":
            return
        if not self.closing:
            self._flush()
        self.closing = True
        if how == "reset":
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.transport.abort()
        else:
            self.transport.close()
