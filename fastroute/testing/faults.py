"""What can go wrong at a provider, as frozen values.

Owns `Fault`: a name and the changes it makes to an otherwise good answer. Faults are joined with ``|``; their
changes happen in order. The changes themselves are in `_changes`; which request meets a fault is the
provider's script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from .changes import (
    AddHeaders,
    AfterEnd,
    AsStream,
    BrokenEvent,
    Change,
    Compress,
    Cut,
    Delay,
    Drip,
    ErrorEvent,
    Frame,
    Insert,
    LongBody,
    Prelude,
    Raw,
    Replace,
    Rewrite,
    SetUsage,
    WithoutEnd,
)
from .latency import check_seconds
from .openai_format import ERRORS, ServerFormat
from .wire import ENDINGS, FRAMINGS, SEND_SIZE, Headers, Piece, RawPiece, Repeat, Reply, Wire, check_pieces


def _after(after: int | str, part: str) -> tuple[int, bool]:
    """An offset as (bytes, whether counted from the body)."""
    if part not in ("response", "body"):
        raise ValueError(f"part: {part!r}; use 'response' or 'body'")
    if after == "request":
        return 0, False
    if after == "headers":
        return 0, True
    return _count("after", after), part == "body"


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: {value!r}; use a whole number, 0 or more")
    return value


def _data(event: bytes | str | Mapping[str, Any]) -> bytes:
    """One event: a mapping as JSON data, text and bytes as the data itself."""
    data = orjson.dumps(event) if isinstance(event, Mapping) else event
    return b"data: " + (data.encode() if isinstance(data, str) else data) + b"\n\n"


HeaderSource = Mapping[str, str] | Iterable[tuple[str, str]]


def _pairs(headers: HeaderSource | None) -> Headers:
    """Header lines from a mapping, or from pairs where a name comes twice."""
    pairs = tuple((headers.items() if isinstance(headers, Mapping) else headers) or ())
    for name, value in pairs:
        try:
            f"{name}: {value}".encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"headers: {name!r} goes beyond Latin-1; use raw() for that") from None
    return pairs


def _code(fault: str, code: str) -> str:
    if code not in ERRORS:
        raise ValueError(f"{fault}: {code!r} is unknown; use one of {', '.join(sorted(ERRORS))}")
    return code


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with one request; made by the class methods, joined with ``|``.

    A fault happens when the answer would have come, after the provider's latency. In stream faults
    ``after`` counts events, the first of which brings the role; plain answers are not touched by them.

    Attributes:
        name: what it is, for logs.
        changes: what it does to the answer, in order.
    """

    name: str
    changes: tuple[Change, ...]

    def __or__(self, other: Fault) -> Fault:
        return Fault(f"{self.name} | {other.name}", self.changes + other.changes)

    @property
    def on_connect(self) -> bool:
        """Whether it ends a new connection before any request."""
        return any(isinstance(change, Cut) and change.connect for change in self.changes)

    def change_events(self, events: Iterable[Piece], format: ServerFormat) -> Iterable[Piece]:
        for change in self.changes:
            events = change.on_events(events, format)
        return events

    def change_reply(self, reply: Reply, format: ServerFormat) -> Reply:
        for change in self.changes:
            reply = change.on_reply(reply, format)
        return reply

    def change_wire(self, wire: Wire) -> Wire:
        for change in self.changes:
            wire = change.on_wire(wire)
        return wire

    # ---------------------------------------------------------------------------------- whole answers

    @classmethod
    def status(
        cls,
        code: int,
        body: bytes | str | Mapping[str, Any] | None = None,
        headers: HeaderSource | None = None,
    ) -> Fault:
        """Answer with a status (200 to 999); without a body, with the format's own error body."""
        if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code <= 999:
            raise ValueError(f"status: {code!r}; use a number from 200 to 999")
        if isinstance(body, Mapping):
            data: bytes | None = orjson.dumps(body)
        else:
            data = body.encode() if isinstance(body, str) else body
        return cls(f"status({code})", (Replace(code, _pairs(headers), data),))

    @classmethod
    def error(cls, code: str, headers: HeaderSource | None = None) -> Fault:
        """Answer with a well-known error, such as ``context_length_exceeded`` or ``insufficient_quota``."""
        _code("error", code)
        return cls(f"error({code})", (Replace(0, _pairs(headers), None, code),))

    @classmethod
    def error_in_200(cls, code: str = "server_error") -> Fault:
        """Answer 200 with an error object as its body."""
        _code("error_in_200", code)
        return cls(f"error_in_200({code})", (Replace(200, (), None, code),))

    @classmethod
    def redirect(cls, code: int, location: str) -> Fault:
        """Answer with a redirect to another place."""
        return cls(f"redirect({code})", (Replace(code, _pairs({"location": location}), b""),))

    @classmethod
    def html(cls, body: str = "<!doctype html><title>Sign in</title>", code: int = 200) -> Fault:
        """Answer with a web page, as captive portals and broken proxies do."""
        return cls("html", (Replace(code, (), body.encode(), content_type="text/html; charset=utf-8"),))

    @classmethod
    def huge_body(cls, size: int = 1 << 30, code: int = 500) -> Fault:
        """Answer with a body of so many bytes (1 GiB), made while it is sent."""
        return cls(f"huge_body({size})", (LongBody(code, _count("size", size)),))

    @classmethod
    def headers(cls, headers: HeaderSource) -> Fault:
        """A good answer with more headers, or others of the same name."""
        return cls("headers", (AddHeaders(_pairs(headers)),))

    @classmethod
    def many_headers(cls, count: int = 200) -> Fault:
        """A good answer with so many headers more."""
        extra = tuple((f"x-filler-{turn}", "x") for turn in range(_count("count", count)))
        return cls(f"many_headers({count})", (AddHeaders(extra),))

    @classmethod
    def huge_header(cls, size: int = 70_000) -> Fault:
        """A good answer with one header line of so many bytes."""
        return cls(f"huge_header({size})", (AddHeaders((("x-filler", "x" * _count("size", size)),)),))

    @classmethod
    def gzip_bomb(cls, decoded: int = 400 << 20, code: int = 200) -> Fault:
        """A small gzip body that decodes to about so many bytes (400 MiB) of white space."""
        return cls(f"gzip_bomb({decoded})", (Compress("bomb", _count("decoded", decoded), status=code),))

    @classmethod
    def bad_gzip(cls) -> Fault:
        """A body that says gzip and is not."""
        return cls("bad_gzip", (Compress("rubbish"),))

    @classmethod
    def encodings(cls, layers: int = 50) -> Fault:
        """A good body compressed so many times over, with a content encoding for each."""
        return cls(f"encodings({layers})", (Compress("layers", layers=_count("layers", layers)),))

    @classmethod
    def usage(cls, value: Any) -> Fault:
        """A good answer whose ``usage`` is this JSON value; bytes are taken as JSON text, valid or not."""
        return cls("usage", (SetUsage(value if isinstance(value, bytes) else orjson.dumps(value)),))

    # ---------------------------------------------------------------------------------------- time

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """A good answer, so many seconds later than usual."""
        return cls(f"slow({seconds})", (Delay(check_seconds("seconds", seconds)),))

    @classmethod
    def black_hole(cls) -> Fault:
        """Take the request and never answer."""
        return cls("black_hole", (Cut(0, ("hang",)),))

    @classmethod
    def stall(
        cls, after: int | str = "headers", seconds: float | None = None, part: str = "response"
    ) -> Fault:
        """Fall silent after so many bytes (or ``"headers"``), for ever or for some seconds."""
        offset, in_body = _after(after, part)
        tail: tuple[Piece, ...] = ("hang",) if seconds is None else (check_seconds("seconds", seconds),)
        return cls(f"stall({after})", (Cut(offset, tail, in_body, resume=seconds is not None),))

    @classmethod
    def drip(
        cls, size: int = 1, interval: float = 1.0, part: Literal["headers", "body", "all"] = "body"
    ) -> Fault:
        """Send ``size`` bytes every ``interval`` seconds, of the headers, the body or all."""
        if part not in ("headers", "body", "all"):
            raise ValueError(f"part: {part!r}; use 'headers', 'body' or 'all'")
        if _count("size", size) == 0:
            raise ValueError("size: 0; use 1 or more")
        return cls(f"drip({part})", (Drip(part, size, check_seconds("interval", interval)),))

    # ---------------------------------------------------------------------------------- connections

    @classmethod
    def _end(cls, how: str, after: int | str, part: str) -> Fault:
        if after == "connect":
            return cls(f"{how}(connect)", (Cut(0, (how,), connect=True),))
        offset, in_body = _after(after, part)
        return cls(f"{how}({after})", (Cut(offset, (how,), in_body),))

    @classmethod
    def reset(cls, after: int | str = "request", part: str = "response") -> Fault:
        """Reset the connection (RST) at "connect", "request", after "headers" or so many bytes."""
        return cls._end("reset", after, part)

    @classmethod
    def close(cls, after: int | str = "request", part: str = "response") -> Fault:
        """Close the connection (FIN) at "connect", "request", after "headers" or so many bytes."""
        return cls._end("close", after, part)

    @classmethod
    def cut_headers(cls, after: int = 27) -> Fault:
        """Close the connection inside the header block, so many bytes into the response."""
        return cls(f"cut_headers({after})", (Cut(_count("after", after), ("close",)),))

    # -------------------------------------------------------------------------------------- framing

    @classmethod
    def framing(cls, name: str, after: int = 0) -> Fault:
        """A good answer framed in another way: a name of ``FRAMINGS``."""
        if name not in FRAMINGS:
            raise ValueError(f"framing: {name!r} is unknown; use one of {', '.join(FRAMINGS)}")
        return cls(f"framing({name})", (Frame(name, _count("after", after)),))

    @classmethod
    def truncated(cls, missing: int = 97) -> Fault:
        """Declare a Content-Length that is so many bytes too large, then close."""
        return cls(f"truncated({missing})", (Frame("truncated", _count("missing", missing)),))

    @classmethod
    def cut_chunk(cls, after: int = 0) -> Fault:
        """Chunked encoding that closes inside the chunk after ``after`` whole ones."""
        return cls(f"cut_chunk({after})", (Frame("cut-chunk", _count("after", after)),))

    @classmethod
    def cut_unframed(cls, after: int = 20) -> Fault:
        """A body that only the close delimits, closed after so many of its bytes: nobody can tell."""
        return cls(
            f"cut_unframed({after})", (Frame("close"), Cut(_count("after", after), ("close",), in_body=True))
        )

    @classmethod
    def duplicate_length(cls) -> Fault:
        """Two Content-Length headers that differ."""
        return cls.framing("duplicate-length")

    @classmethod
    def length_and_chunked(cls) -> Fault:
        """Content-Length beside Transfer-Encoding: chunked."""
        return cls.framing("length-and-chunked")

    @classmethod
    def negative_length(cls) -> Fault:
        """Content-Length: -1, then the body, then close."""
        return cls.framing("negative-length")

    @classmethod
    def http10(cls) -> Fault:
        """A good HTTP/1.0 answer without keep-alive."""
        return cls.framing("http10")

    @classmethod
    def interim(cls, *codes: int) -> Fault:
        """A good answer after interim ones: 100 (Continue) and 103 (Early Hints) unless others are named."""
        words = {100: "Continue", 102: "Processing", 103: "Early Hints"}
        lines = "".join(
            f"HTTP/1.1 {code} {words.get(code, 'Interim')}\r\n"
            + ("link: </x>; rel=preload\r\n\r\n" if code == 103 else "\r\n")
            for code in codes or (100, 103)
        )
        return cls("interim", (Prelude(lines.encode()),))

    @classmethod
    def raw(cls, *pieces: RawPiece, then: Literal["keep", "close", "reset", "hang"] = "close") -> Fault:
        """Send exactly these pieces: bytes (a send each), seconds to wait, ``Repeat``, or an ending."""
        if then != "keep" and then not in ENDINGS:
            raise ValueError(f"then: {then!r}; use 'keep', 'close', 'reset' or 'hang'")
        checked = check_pieces(pieces)
        tail = () if then == "keep" else (then,)
        return cls("raw", (Raw(checked + tail, then == "keep"),))

    # -------------------------------------------------------------------------------------- streams

    @classmethod
    def events(cls, *events: RawPiece) -> Fault:
        """An event stream with exactly these pieces as its body, whatever was asked for."""
        return cls("events", (AsStream(check_pieces(events)),))

    @classmethod
    def stream_error(cls, after: int = 0, code: str = "server_error") -> Fault:
        """An error event after so many events (0: as the first), and nothing more."""
        _code("stream_error", code)
        return cls(f"stream_error({after})", (ErrorEvent(_count("after", after), code),))

    @classmethod
    def stream_cut(cls, after: int, how: Literal["end", "close", "reset"] = "end") -> Fault:
        """No more after so many events: a proper end of the body, or the connection closed or reset."""
        if how not in ("end", "close", "reset"):
            raise ValueError(f"how: {how!r}; use 'end', 'close' or 'reset'")
        tail = () if how == "end" else (how,)
        return cls(f"stream_cut({after}, {how})", (Insert(_count("after", after), tail, resume=False),))

    @classmethod
    def stream_stall(cls, after: int, seconds: float | None = None) -> Fault:
        """Silence after so many events, for ever or for some seconds."""
        tail: tuple[RawPiece, ...] = ("hang",) if seconds is None else (check_seconds("seconds", seconds),)
        return cls(f"stream_stall({after})", (Insert(_count("after", after), tail),))

    @classmethod
    def pings(
        cls, interval: float, times: int | None = None, after: int = 0, data: bytes = b": ping\n\n"
    ) -> Fault:
        """Only pings after so many events: for ever, or so many and then the rest of the stream."""
        if times is not None:
            _count("times", times)
        pings = Repeat(data, times, check_seconds("interval", interval))
        return cls("pings", (Insert(_count("after", after), (pings,)),))

    @classmethod
    def no_done(cls) -> Fault:
        """Leave out the stream's end mark, such as ``data: [DONE]``."""
        return cls("no_done", (WithoutEnd(),))

    @classmethod
    def after_done(cls, *events: bytes | str | Mapping[str, Any]) -> Fault:
        """More events after the end mark; one of content and a second end mark unless others are given."""
        return cls("after_done", (AfterEnd(tuple(_data(event) for event in events)),))

    @classmethod
    def insert_event(cls, event: bytes | str | Mapping[str, Any], after: int = 0) -> Fault:
        """One event more after so many events: a mapping as JSON, text and bytes as its data."""
        return cls("insert_event", (Insert(_count("after", after), (_data(event),)),))

    @classmethod
    def malformed_event(cls, after: int = 0) -> Fault:
        """An event whose data is broken JSON, after so many events."""
        return cls("malformed_event", (BrokenEvent(_count("after", after)),))

    @classmethod
    def long_line(cls, size: int, after: int = 0) -> Fault:
        """One line of so many bytes with no end, after so many events, made while it is sent."""
        times, rest = divmod(_count("size", size), SEND_SIZE)
        line = (b"data: ", Repeat(b"x" * SEND_SIZE, times), b"x" * rest)
        return cls(f"long_line({size})", (Insert(_count("after", after), line, resume=False),))

    @classmethod
    def bom(cls, after: int = 0) -> Fault:
        """A byte order mark before the first event, or later."""
        return cls("bom", (Insert(_count("after", after), (b"\xef\xbb\xbf",)),))

    @classmethod
    def crlf(cls) -> Fault:
        """Lines of the stream end in CR LF."""
        return cls("crlf", (Rewrite(b"\r\n", b"\n"), Rewrite(b"\n", b"\r\n")))

    @classmethod
    def invalid_utf8(cls, after: int = 1) -> Fault:
        """A content event with bytes that are no UTF-8, after so many events."""
        return cls("invalid_utf8", (BrokenEvent(_count("after", after), b"\xff\xfe\xc3"),))
