"""The changes that a `Fault` makes to a good answer, one frozen class for each kind.

A change works at one of three levels, each a method: the events of a stream, the HTTP reply, or the bytes on
the wire.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from fastroute import json_codec

from .openai_format import ServerFormat
from .wire import SEND_SIZE, Headers, Piece, RawPiece, Repeat, Reply, Wire, take, unroll

JSON = "application/json"


class ReplyChange:
    """One change; methods that a subclass does not override change nothing."""

    __slots__ = ()

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        return events

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        return reply

    def on_wire(self, wire: Wire) -> Wire:
        return wire


# ------------------------------------------------------------------------------------ changes of the reply


@dataclass(frozen=True, slots=True)
class Replace(ReplyChange):
    """Another status, other headers, another body.

    Status 0 stands for the format's status of the error code, body None for the format's error body.
    """

    status: int
    headers: Headers = ()
    body: bytes | None = None
    code: str | None = None
    content_type: str = JSON

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        status = self.status or format.status_of(self.code or "")
        body = format.error(status, self.code, None) if self.body is None else self.body
        kept = tuple(pair for pair in reply.headers if pair[0].lower() != "content-type")
        fresh = Reply(status, kept, body)
        return fresh.with_headers((("content-type", self.content_type), *self.headers))


@dataclass(frozen=True, slots=True)
class AddHeaders(ReplyChange):
    """Additional headers; those of the same name are replaced."""

    headers: Headers

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        return reply.with_headers(self.headers)


@dataclass(frozen=True, slots=True)
class LongBody(ReplyChange):
    """A body of ``size`` bytes, generated while it is sent."""

    status: int
    size: int
    content_type: str = JSON

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        times, rest = divmod(self.size, SEND_SIZE)
        body = unroll((Repeat(b"x" * SEND_SIZE, times), b"x" * rest))
        fresh = Reply(self.status, reply.headers, body, length=self.size)
        return fresh.with_headers((("content-type", self.content_type),))


@lru_cache(maxsize=2)
def _bomb(decoded: int) -> bytes:
    """A gzip file of ``decoded`` spaces: one block that is compressed once and repeated."""
    block = b" " * min(decoded, 1 << 20)
    times = decoded // len(block) if block else 0
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    # A full flush resets the compressor, so equal blocks become equal bytes.
    packed = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(times):
        check = zlib.crc32(block, check)
    tail = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    size = (times * len(block)) & 0xFFFFFFFF
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    return head + packed * times + tail + check.to_bytes(4, "little") + size.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Compress(ReplyChange):
    """A content encoding: a bomb of ``decoded`` bytes, invalid data, or several layers of the good body."""

    kind: Literal["bomb", "rubbish", "layers"]
    decoded: int = 0
    layers: int = 1
    status: int = 200

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        encoding = "gzip"
        if self.kind == "bomb":
            reply = Reply(self.status, reply.headers, _bomb(self.decoded)).with_headers(
                (("content-type", JSON),)
            )
        elif self.kind == "rubbish":
            reply = replace(reply, body=b"\x1f\x8b\x08" + b"\x00rubbish, not gzip at all" * 4, length=None)
        else:
            body = (
                reply.body
                if isinstance(reply.body, bytes)
                else b"".join(piece for piece in reply.body if isinstance(piece, bytes))
            )
            for _ in range(self.layers):
                body = gzip.compress(body, mtime=0)
            reply = replace(reply, body=body, length=None)
            encoding = ", ".join(["gzip"] * self.layers)
        return reply.with_headers((("content-encoding", encoding),))


@dataclass(frozen=True, slots=True)
class Frame(ReplyChange):
    """Another framing of the body; the names are in `FRAMINGS`."""

    framing: str
    after: int = 0

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        return replace(reply, framing=self.framing, framing_after=self.after)


@dataclass(frozen=True, slots=True)
class Prelude(ReplyChange):
    """Bytes before the answer, such as interim answers."""

    data: bytes

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        return replace(reply, prelude=reply.prelude + self.data)


@dataclass(frozen=True, slots=True)
class Delay(ReplyChange):
    """Additional seconds before the answer."""

    seconds: float

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        return replace(reply, work=reply.work + self.seconds)


@dataclass(frozen=True, slots=True)
class SetUsage(ReplyChange):
    """Another value of ``usage``, in plain answers and in the events that have one."""

    value: bytes

    def _set(self, data: bytes) -> bytes:
        try:
            answer = json_codec.loads(data)
        except ValueError:
            return data  # another fault has changed it
        if isinstance(answer, dict) and answer.get("usage") is not None:
            answer["usage"] = json_codec.Fragment(self.value)
            return json_codec.dumps(answer)
        return data

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        if reply.status == 200 and isinstance(reply.body, bytes):
            return replace(reply, body=self._set(reply.body))
        return reply

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        for event in events:
            if isinstance(event, bytes) and b'"usage":{' in event:
                head, mark, rest = event.partition(b"data: ")
                line = rest.rstrip(b"\r\n")
                event = head + mark + self._set(line) + rest[len(line) :]
            yield event


# ----------------------------------------------------------------------------------- changes of the events


def split_events(events: Iterator[Piece], after: int) -> Iterator[Piece]:
    """The first ``after`` events with their pauses; comments are not counted."""
    while after > 0:
        piece = next(events, None)
        if piece is None:
            return
        yield piece
        if isinstance(piece, bytes) and not piece.startswith(b":"):
            after -= 1


@dataclass(frozen=True, slots=True)
class Insert(ReplyChange):
    """Given pieces after ``after`` events; then the stream continues, or ends there."""

    after: int
    pieces: tuple[RawPiece, ...]
    resume: bool = True

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        source = iter(events)
        yield from split_events(source, self.after)
        yield from unroll(self.pieces)
        if self.resume:
            yield from source


@dataclass(frozen=True, slots=True)
class ErrorEvent(ReplyChange):
    """An error in the format's shape as the last event, after ``after`` others."""

    after: int
    code: str

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        yield from split_events(iter(events), self.after)
        yield format.error_event(self.code)


@dataclass(frozen=True, slots=True)
class Rewrite(ReplyChange):
    """Other bytes in every event; with ``drop``, the events that contain them are left out."""

    old: bytes
    new: bytes = b""
    drop: bool = False

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        for event in events:
            if not isinstance(event, bytes):
                yield event
            elif not self.drop:
                yield event.replace(self.old, self.new)
            elif self.old not in event:
                yield event


@dataclass(frozen=True, slots=True)
class WithoutEnd(ReplyChange):
    """A stream without its end mark, if the format has one."""

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        mark = format.end_mark
        for event in events:
            if not (mark and isinstance(event, bytes) and mark in event):
                yield event


@dataclass(frozen=True, slots=True)
class AfterEnd(ReplyChange):
    """Pieces after the last event; by default the format's late events."""

    pieces: tuple[RawPiece, ...]

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        yield from events
        yield from unroll(self.pieces or (format.late_events(),))


@dataclass(frozen=True, slots=True)
class BrokenEvent(ReplyChange):
    """An invalid event after ``after`` others: JSON that is cut off, or text that is not UTF-8."""

    after: int
    text: bytes = b""

    def on_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        source = iter(events)
        yield from split_events(source, self.after)
        yield format.text_event(self.text) if self.text else format.broken_event()
        yield from source


@dataclass(frozen=True, slots=True)
class AsStream(ReplyChange):
    """These pieces as the complete body of an event stream, whatever was requested."""

    pieces: tuple[RawPiece, ...]

    def on_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        stream = replace(reply, status=200, body=unroll(self.pieces), length=None, framing="chunked")
        return stream.with_headers((("content-type", "text/event-stream; charset=utf-8"),))


# ------------------------------------------------------------------------------------- changes of the wire


@dataclass(frozen=True, slots=True)
class Cut(ReplyChange):
    """A tail after ``after`` bytes of the response (or of its body); then the rest if ``resume`` is set.

    With ``connect`` the connection is ended as soon as it is accepted, before any request.
    """

    after: int
    tail: tuple[Piece, ...]
    in_body: bool = False
    resume: bool = False
    connect: bool = False

    def on_wire(self, wire: Wire) -> Wire:
        limit = self.after + (wire.head_length if self.in_body else 0)
        pieces = take(wire.pieces, limit, self.tail, resume=self.resume)
        return wire._replace(pieces=pieces, keep=wire.keep and self.resume)


@dataclass(frozen=True, slots=True)
class Drip(ReplyChange):
    """The header block, the body or both in small portions with pauses between them."""

    part: Literal["headers", "body", "all"]
    size: int
    interval: float

    def _drip(self, pieces: Iterable[Piece], skip: int, until: int | None) -> Iterator[Piece]:
        seen = 0
        for piece in pieces:
            if not isinstance(piece, bytes):
                yield piece
                continue
            start = 0
            if seen < skip:
                start = min(len(piece), skip - seen)
                yield piece[:start]
            stop = len(piece) if until is None else max(start, min(len(piece), until - seen))
            for place in range(start, stop, self.size):
                yield self.interval
                yield piece[place : min(stop, place + self.size)]
            if stop < len(piece):
                yield piece[stop:]
            seen += len(piece)

    def on_wire(self, wire: Wire) -> Wire:
        skip = wire.head_length if self.part == "body" else 0
        until = wire.head_length if self.part == "headers" else None
        return wire._replace(pieces=self._drip(wire.pieces, skip, until))


@dataclass(frozen=True, slots=True)
class Raw(ReplyChange):
    """These pieces instead of the answer, including the status line; each is sent by itself."""

    pieces: tuple[RawPiece, ...]
    keep: bool

    def on_wire(self, wire: Wire) -> Wire:
        def separate() -> Iterator[Piece]:
            for piece in unroll(self.pieces):
                yield piece
                if isinstance(piece, bytes):
                    yield 0.0

        return Wire(separate(), 0, self.keep)
