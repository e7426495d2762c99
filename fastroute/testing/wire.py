"""Turns a `Reply` (status, headers, body) into a sequence of *pieces*, with valid and invalid framings.

A piece is ``bytes`` to send, a number of seconds to wait (0 ends a segment), or a word that ends the
answer: ``"reset"`` (RST), ``"close"`` (FIN) or ``"hang"`` (send nothing until the peer closes).
"""

from __future__ import annotations

import http
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

Headers = tuple[tuple[str, str], ...]

ENDINGS = ("reset", "close", "hang")
SEND_SIZE = 65536

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same bytes many times, generated while they are sent.

    Attributes:
        data: the bytes to repeat.
        times: number of repetitions; None for endless ones.
        interval: seconds between two repetitions; None for no pause.
    """

    data: bytes
    times: int | None = None
    interval: float | None = None

    def __iter__(self) -> Iterator[bytes | float]:
        rounds: Iterable[int] = itertools.count() if self.times is None else range(self.times)
        for turn in rounds:
            if turn and self.interval is not None:
                yield self.interval
            yield self.data


Piece = bytes | float | str
RawPiece = bytes | float | str | Repeat


def check_pieces(pieces: Iterable[object]) -> tuple[RawPiece, ...]:
    """The pieces as a tuple.

    Raises:
        TypeError: if one is not bytes, seconds, a `Repeat` or an ending.
        ValueError: if a pause is negative or an ending is unknown.
    """
    checked: list[RawPiece] = []
    for place, piece in enumerate(pieces):
        if isinstance(piece, (bytes, Repeat)):
            checked.append(piece)
        elif isinstance(piece, (bytearray, memoryview)):
            checked.append(bytes(piece))
        elif isinstance(piece, (int, float)) and not isinstance(piece, bool):
            if not 0 <= piece < float("inf"):
                raise ValueError(
                    f"piece {place}: a pause must be 0 or more seconds, not {piece!r}; or use 'hang'"
                )
            checked.append(float(piece))
        elif isinstance(piece, str):
            if piece not in ENDINGS:
                raise ValueError(f"piece {place}: unknown ending {piece!r}; use one of {', '.join(ENDINGS)}")
            checked.append(piece)
        else:
            raise TypeError(
                f"piece {place}: must be bytes, seconds, Repeat(...) or an ending, not {type(piece).__name__}"
            )
    return tuple(checked)


def unroll(pieces: Iterable[RawPiece]) -> Iterator[Piece]:
    """The pieces with every `Repeat` expanded, lazily."""
    for piece in pieces:
        if isinstance(piece, Repeat):
            yield from piece
        else:
            yield piece


def take(pieces: Iterable[Piece], limit: int, tail: Iterable[Piece], *, resume: bool) -> Iterator[Piece]:
    """The first ``limit`` bytes, then ``tail``, then the rest if ``resume``.

    An answer shorter than the limit gets the tail at its end.
    """
    left = limit
    source = iter(pieces)
    rest = b""
    if left > 0:
        for piece in source:
            if isinstance(piece, bytes):
                if len(piece) > left:
                    yield piece[:left]
                    rest = piece[left:]
                    break
                left -= len(piece)
            yield piece
            if left <= 0:
                break
    yield from tail
    if resume:
        if rest:
            yield rest
        yield from source


# ------------------------------------------------------------------------------------------------ reply


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer before it is framed.

    Attributes:
        status: any three-digit number.
        headers: names and values, in order; the framing adds its own.
        body: all of it, or its pieces; pieces are sent chunked unless ``length`` is known.
        length: bytes in ``body`` if that is an iterable of known size.
        framing: a name in `FRAMINGS`, or "" for the correct one.
        framing_after: the number that some framings need; see `FRAMINGS`.
        prelude: bytes before the status line, such as interim answers.
        work: seconds of generation before the answer, in addition to the latency.
    """

    status: int
    headers: Headers
    body: bytes | Iterable[Piece]
    length: int | None = None
    framing: str = ""
    framing_after: int = 0
    prelude: bytes = b""
    work: float = 0.0

    def with_headers(self, extra: Iterable[tuple[str, str]]) -> Reply:
        """A copy with headers added; those of the same name are replaced."""
        extra = tuple(extra)
        names = {name.lower() for name, _ in extra}
        kept = tuple(pair for pair in self.headers if pair[0].lower() not in names)
        return replace(self, headers=kept + extra)

    @property
    def pieces(self) -> Iterable[Piece]:
        return (self.body,) if isinstance(self.body, bytes) else self.body

    @property
    def size(self) -> int | None:
        """Bytes in the body, if known."""
        return len(self.body) if isinstance(self.body, bytes) else self.length


class Wire(NamedTuple):
    """A framed answer.

    Attributes:
        pieces: the pieces in the order of sending.
        head_length: bytes up to the end of the header block, including the prelude.
        keep: whether the connection is kept for another request.
    """

    pieces: Iterable[Piece]
    head_length: int
    keep: bool


def head_bytes(reply: Reply, extra: str, version: str = "HTTP/1.1") -> bytes:
    """The prelude, the status line and the header block with ``extra`` lines (each ending in CRLF)."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in reply.headers])
    reason = _REASONS.get(reply.status, "Unknown")
    return reply.prelude + f"{version} {reply.status} {reason}\r\n{lines}{extra}\r\n".encode("latin-1")


# ---------------------------------------------------------------------------------------------- framing


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunked(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        if not isinstance(piece, bytes):
            yield piece
        elif piece:
            yield _chunk(piece)
    yield b"0\r\n\r\n"


def _cut_chunk(pieces: Iterable[Piece], after: int) -> Iterator[Piece]:
    whole = 0
    for piece in pieces:
        if isinstance(piece, bytes) and piece:
            if whole == after:
                yield b"%x\r\n%b" % (len(piece), piece[: max(1, len(piece) // 2)])
                break
            whole += 1
            yield _chunk(piece)
        else:
            yield piece
    yield "close"


def _joined(reply: Reply) -> bytes:
    """All bytes of the body, for framings that declare the length of a stream."""
    return b"".join(piece for piece in reply.pieces if isinstance(piece, bytes))


def _length_lines(reply: Reply, body: bytes) -> tuple[str, list[Piece], bool]:
    size = len(body)
    if reply.framing == "truncated":
        return f"content-length: {size + reply.framing_after}\r\n", [body, "close"], False
    if reply.framing == "duplicate-length":
        return f"content-length: {size}\r\ncontent-length: {size + 7}\r\n", [body, "close"], False
    if reply.framing == "negative-length":
        return "content-length: -1\r\n", [body, "close"], False
    return f"content-length: {size}\r\ntransfer-encoding: chunked\r\n", list(_chunked([body])), True


# The framings of a reply: valid ones, and the errors that servers and proxies make.
FRAMINGS = (
    "chunked",  # valid, even if the length is known
    "close",  # valid: the end of the connection ends the body
    "http10",  # valid: an HTTP/1.0 answer without keep-alive
    "truncated",  # declares framing_after more bytes than it sends
    "cut-chunk",  # closes inside the chunk after framing_after complete ones
    "duplicate-length",  # two different Content-Length headers
    "length-and-chunked",  # both Content-Length and Transfer-Encoding
    "negative-length",  # Content-Length: -1
)


def frame(reply: Reply, *, keep: bool = True, http10: bool = False) -> Wire:
    """The reply as pieces.

    Args:
        keep: whether the request allows the connection to stay open.
        http10: whether the client uses HTTP/1.0, which has no chunks.
    """
    framing = reply.framing
    size = reply.size
    if http10 and (framing == "chunked" or (not framing and size is None)):
        framing = "close"
    version = "HTTP/1.0" if framing == "http10" else "HTTP/1.1"
    pieces: Iterable[Piece] = reply.pieces
    if reply.status in (204, 304) or reply.status < 200:
        lines, pieces = "", ()
    elif framing in ("close", "http10"):
        lines, pieces, keep = "", itertools.chain(pieces, ("close",)), False
    elif framing == "cut-chunk":
        lines, pieces, keep = "transfer-encoding: chunked\r\n", _cut_chunk(pieces, reply.framing_after), False
    elif framing in ("truncated", "duplicate-length", "negative-length", "length-and-chunked"):
        lines, pieces, stays = _length_lines(reply, _joined(reply))
        keep = keep and stays
    elif framing == "chunked" or size is None:
        lines, pieces = "transfer-encoding: chunked\r\n", _chunked(pieces)
    else:
        lines = f"content-length: {size}\r\n"
    if not keep:
        lines += "connection: close\r\n"
    head = head_bytes(reply, lines, version)
    return Wire(itertools.chain((head,), pieces), len(head), keep)


def encode(reply: Reply, *, keep: bool) -> bytes:
    """A correct reply with a plain body as one piece; a fast path."""
    body = reply.body
    assert isinstance(body, bytes)
    closing = "" if keep else "connection: close\r\n"
    return head_bytes(reply, f"content-length: {len(body)}\r\n{closing}") + body
