"""Faults of a provider as frozen values: a name and the changes to a good answer.

Faults are combined with ``|``; their changes are applied in order. The changes are in `changes.py`. The
provider's script decides which request gets a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastroute import json_codec

from .changes import (
    AddHeaders,
    AfterEnd,
    AsStream,
    BrokenEvent,
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
    ReplyChange,
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
        raise ValueError(f"part: must be 'response' or 'body', not {part!r}")
    if after == "request":
        return 0, False
    if after == "headers":
        return 0, True
    return _count("after", after), part == "body"


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: must be an integer, 0 or more, not {value!r}")
    return value


def _data(event: bytes | str | Mapping[str, Any]) -> bytes:
    """One event: a mapping as JSON data, text and bytes as the data itself."""
    data = json_codec.dumps(event) if isinstance(event, Mapping) else event
    return b"data: " + (data.encode() if isinstance(data, str) else data) + b"\n\n"


HeaderSource = Mapping[str, str] | Iterable[tuple[str, str]]


def _pairs(headers: HeaderSource | None) -> Headers:
    """Header lines from a mapping or from pairs; pairs may repeat a name."""
    pairs = tuple((headers.items() if isinstance(headers, Mapping) else headers) or ())
    for name, value in pairs:
        try:
            f"{name}: {value}".encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"headers: {name!r} must be Latin-1; use raw() for other bytes") from None
    return pairs


def _code(fault: str, code: str) -> str:
    if code not in ERRORS:
        raise ValueError(f"{fault}: unknown code {code!r}; use one of {', '.join(sorted(ERRORS))}")
    return code


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of one request; created by the class methods and combined with ``|``.

    A fault happens at the time of the answer, after the provider's latency. In stream faults ``after`` counts
    events, the first of which has the role; plain answers are not changed by them.

    Attributes:
        name: a description for logs.
        changes: the changes to the answer, in order.
    """

    name: str
    changes: tuple[ReplyChange, ...]

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
        """Answer with a status (200 to 999), by default with the format's own error body."""
        if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code <= 999:
            raise ValueError(f"status: must be an integer from 200 to 999, not {code!r}")
        if isinstance(body, Mapping):
            data: bytes | None = json_codec.dumps(body)
        else:
            data = body.encode() if isinstance(body, str) else body
        return cls(f"status({code})", (Replace(code, _pairs(headers), data),))

    @classmethod
    def error(cls, code: str, headers: HeaderSource | None = None) -> Fault:
        """Answer with a known error, such as ``context_length_exceeded`` or ``insufficient_quota``."""
        _code("error", code)
        return cls(f"error({code})", (Replace(0, _pairs(headers), None, code),))

    @classmethod
    def error_in_200(cls, code: str = "server_error") -> Fault:
        """Answer 200 with an error object as its body."""
        _code("error_in_200", code)
        return cls(f"error_in_200({code})", (Replace(200, (), None, code),))

    @classmethod
    def redirect(cls, code: int, location: str) -> Fault:
        """Answer with a redirect to another address."""
        return cls(f"redirect({code})", (Replace(code, _pairs({"location": location}), b""),))

    @classmethod
    def html(cls, body: str = "<!doctype html><title>Sign in</title>", code: int = 200) -> Fault:
        """Answer with a web page, as captive portals and broken proxies do."""
        return cls("html", (Replace(code, (), body.encode(), content_type="text/html; charset=utf-8"),))

    @classmethod
    def huge_body(cls, size: int = 1 << 30, code: int = 500) -> Fault:
        """Answer with a body of ``size`` bytes (1 GiB), generated while it is sent."""
        return cls(f"huge_body({size})", (LongBody(code, _count("size", size)),))

    @classmethod
    def headers(cls, headers: HeaderSource) -> Fault:
        """A good answer with headers added or replaced."""
        return cls("headers", (AddHeaders(_pairs(headers)),))

    @classmethod
    def many_headers(cls, count: int = 200) -> Fault:
        """A good answer with ``count`` additional headers."""
        extra = tuple((f"x-filler-{turn}", "x") for turn in range(_count("count", count)))
        return cls(f"many_headers({count})", (AddHeaders(extra),))

    @classmethod
    def huge_header(cls, size: int = 70_000) -> Fault:
        """A good answer with one header value of ``size`` bytes."""
        return cls(f"huge_header({size})", (AddHeaders((("x-filler", "x" * _count("size", size)),)),))

    @classmethod
    def gzip_bomb(cls, decoded: int = 400 << 20, code: int = 200) -> Fault:
        """A small gzip body that decodes to about ``decoded`` bytes (400 MiB) of white space."""
        return cls(f"gzip_bomb({decoded})", (Compress("bomb", _count("decoded", decoded), status=code),))

    @classmethod
    def bad_gzip(cls) -> Fault:
        """A body that is declared as gzip but is not."""
        return cls("bad_gzip", (Compress("rubbish"),))

    @classmethod
    def encodings(cls, layers: int = 50) -> Fault:
        """A good body that is compressed ``layers`` times, with a content encoding for each."""
        return cls(f"encodings({layers})", (Compress("layers", layers=_count("layers", layers)),))

    @classmethod
    def usage(cls, value: Any) -> Fault:
        """A good answer with this JSON value as ``usage``; bytes are sent as JSON text, valid or not."""
        return cls("usage", (SetUsage(value if isinstance(value, bytes) else json_codec.dumps(value)),))

    # ---------------------------------------------------------------------------------------- time

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """A good answer, ``seconds`` later than usual."""
        return cls(f"slow({seconds})", (Delay(check_seconds("seconds", seconds)),))

    @classmethod
    def black_hole(cls) -> Fault:
        """Accept the request and never answer."""
        return cls("black_hole", (Cut(0, ("hang",)),))

    @classmethod
    def stall(
        cls, after: int | str = "headers", seconds: float | None = None, part: str = "response"
    ) -> Fault:
        """Stop sending after a number of bytes (or ``"headers"``), forever or for some seconds."""
        offset, in_body = _after(after, part)
        tail: tuple[Piece, ...] = ("hang",) if seconds is None else (check_seconds("seconds", seconds),)
        return cls(f"stall({after})", (Cut(offset, tail, in_body, resume=seconds is not None),))

    @classmethod
    def drip(
        cls, size: int = 1, interval: float = 1.0, part: Literal["headers", "body", "all"] = "body"
    ) -> Fault:
        """Send ``size`` bytes every ``interval`` seconds, of the headers, the body or both."""
        if part not in ("headers", "body", "all"):
            raise ValueError(f"part: must be 'headers', 'body' or 'all', not {part!r}")
        if _count("size", size) == 0:
            raise ValueError("size: must be 1 or more, not 0")
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
        """Reset the connection (RST) at "connect", at "request", after "headers", or after some bytes."""
        return cls._end("reset", after, part)

    @classmethod
    def close(cls, after: int | str = "request", part: str = "response") -> Fault:
        """Close the connection (FIN) at "connect", at "request", after "headers", or after some bytes."""
        return cls._end("close", after, part)

    @classmethod
    def cut_headers(cls, after: int = 27) -> Fault:
        """Close the connection inside the header block, after ``after`` bytes of the response."""
        return cls(f"cut_headers({after})", (Cut(_count("after", after), ("close",)),))

    # -------------------------------------------------------------------------------------- framing

    @classmethod
    def framing(cls, name: str, after: int = 0) -> Fault:
        """A good answer with another framing, a name of ``FRAMINGS``."""
        if name not in FRAMINGS:
            raise ValueError(f"framing: unknown framing {name!r}; use one of {', '.join(FRAMINGS)}")
        return cls(f"framing({name})", (Frame(name, _count("after", after)),))

    @classmethod
    def truncated(cls, missing: int = 97) -> Fault:
        """Declare a Content-Length that is ``missing`` bytes too large, then close."""
        return cls(f"truncated({missing})", (Frame("truncated", _count("missing", missing)),))

    @classmethod
    def cut_chunk(cls, after: int = 0) -> Fault:
        """Chunked encoding that closes inside the chunk after ``after`` complete ones."""
        return cls(f"cut_chunk({after})", (Frame("cut-chunk", _count("after", after)),))

    @classmethod
    def cut_unframed(cls, after: int = 20) -> Fault:
        """A body without a length, closed after ``after`` of its bytes; a client cannot detect that."""
        return cls(
            f"cut_unframed({after})", (Frame("close"), Cut(_count("after", after), ("close",), in_body=True))
        )

    @classmethod
    def duplicate_length(cls) -> Fault:
        """Two different Content-Length headers."""
        return cls.framing("duplicate-length")

    @classmethod
    def length_and_chunked(cls) -> Fault:
        """Both Content-Length and Transfer-Encoding: chunked."""
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
        """A good answer after interim ones, by default 100 (Continue) and 103 (Early Hints)."""
        words = {100: "Continue", 102: "Processing", 103: "Early Hints"}
        lines = "".join(
            f"HTTP/1.1 {code} {words.get(code, 'Interim')}\r\n"
            + ("link: </x>; rel=preload\r\n\r\n" if code == 103 else "\r\n")
            for code in codes or (100, 103)
        )
        return cls("interim", (Prelude(lines.encode()),))

    @classmethod
    def raw(cls, *pieces: RawPiece, then: Literal["keep", "close", "reset", "hang"] = "close") -> Fault:
        """Send exactly these pieces: bytes (one send each), seconds to wait, ``Repeat``, or an ending."""
        if then != "keep" and then not in ENDINGS:
            raise ValueError(f"then: must be 'keep', 'close', 'reset' or 'hang', not {then!r}")
        checked = check_pieces(pieces)
        tail = () if then == "keep" else (then,)
        return cls("raw", (Raw(checked + tail, then == "keep"),))

    # -------------------------------------------------------------------------------------- streams

    @classmethod
    def events(cls, *events: RawPiece) -> Fault:
        """An event stream with exactly these pieces as its body, whatever was requested."""
        return cls("events", (AsStream(check_pieces(events)),))

    @classmethod
    def stream_error(cls, after: int = 0, code: str = "server_error") -> Fault:
        """An error event after ``after`` events (0: as the first), and nothing more."""
        _code("stream_error", code)
        return cls(f"stream_error({after})", (ErrorEvent(_count("after", after), code),))

    @classmethod
    def stream_cut(cls, after: int, how: Literal["end", "close", "reset"] = "end") -> Fault:
        """Nothing after ``after`` events: the body ends properly, or the connection is closed or reset."""
        if how not in ("end", "close", "reset"):
            raise ValueError(f"how: must be 'end', 'close' or 'reset', not {how!r}")
        tail = () if how == "end" else (how,)
        return cls(f"stream_cut({after}, {how})", (Insert(_count("after", after), tail, resume=False),))

    @classmethod
    def stream_stall(cls, after: int, seconds: float | None = None) -> Fault:
        """Stop sending after ``after`` events, forever or for some seconds."""
        tail: tuple[RawPiece, ...] = ("hang",) if seconds is None else (check_seconds("seconds", seconds),)
        return cls(f"stream_stall({after})", (Insert(_count("after", after), tail),))

    @classmethod
    def pings(
        cls, interval: float, times: int | None = None, after: int = 0, data: bytes = b": ping\n\n"
    ) -> Fault:
        """Only pings after ``after`` events: forever, or ``times`` pings and then the rest of the stream."""
        if times is not None:
            _count("times", times)
        pings = Repeat(data, times, check_seconds("interval", interval))
        return cls("pings", (Insert(_count("after", after), (pings,)),))

    @classmethod
    def no_done(cls) -> Fault:
        """A stream without its end mark, such as ``data: [DONE]``."""
        return cls("no_done", (WithoutEnd(),))

    @classmethod
    def after_done(cls, *events: bytes | str | Mapping[str, Any]) -> Fault:
        """More events after the end mark; by default one of content and a second end mark."""
        return cls("after_done", (AfterEnd(tuple(_data(event) for event in events)),))

    @classmethod
    def insert_event(cls, event: bytes | str | Mapping[str, Any], after: int = 0) -> Fault:
        """One additional event after ``after`` events: a mapping as JSON, text and bytes as its data."""
        return cls("insert_event", (Insert(_count("after", after), (_data(event),)),))

    @classmethod
    def malformed_event(cls, after: int = 0) -> Fault:
        """An event with invalid JSON after ``after`` events."""
        return cls("malformed_event", (BrokenEvent(_count("after", after)),))

    @classmethod
    def long_line(cls, size: int, after: int = 0) -> Fault:
        """One line of ``size`` bytes without its end after ``after`` events, generated while it is sent."""
        times, rest = divmod(_count("size", size), SEND_SIZE)
        line = (b"data: ", Repeat(b"x" * SEND_SIZE, times), b"x" * rest)
        return cls(f"long_line({size})", (Insert(_count("after", after), line, resume=False),))

    @classmethod
    def bom(cls, after: int = 0) -> Fault:
        """A byte order mark before the first event, or after ``after`` events."""
        return cls("bom", (Insert(_count("after", after), (b"\xef\xbb\xbf",)),))

    @classmethod
    def crlf(cls) -> Fault:
        """A stream with lines that end in CR LF."""
        return cls("crlf", (Rewrite(b"\r\n", b"\n"), Rewrite(b"\n", b"\r\n")))

    @classmethod
    def invalid_utf8(cls, after: int = 1) -> Fault:
        """A content event with bytes that are not UTF-8 after ``after`` events."""
        return cls("invalid_utf8", (BrokenEvent(_count("after", after), b"\xff\xfe\xc3"),))
