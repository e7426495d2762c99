"""The head of an answer, taken whole or refused; and of a body in chunks, all that has arrived.

The standard library takes the end of the input for the end of the head, so that the first bytes of an answer
pass for a good one without a body; of a head with a broken line it keeps what came before that; of the
answers that may come before the real one it passes over none but 100. It also hands the lines to its parser
of mails, which takes longer than everything else about a small answer. While a body is coming it gives out
one chunk at a time, however many are there. Whole bodies are its business.
"""

from __future__ import annotations

import http.client
import re
from typing import Any

from . import request_timer

_LONGEST_LINE = 65536
_MOST_FIELDS = 100
_MOST_INTERIM = 100  # answers such as 100 and 103 before the real one
_PIECE = 16384  # bytes that are read at once of a body in chunks
_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")
_NAME = re.compile(r"[!-9;-~\x80-\xff]+")


class StrictResponse(http.client.HTTPResponse):
    """An answer whose head is whole.

    Attributes:
        fields: its headers; names in lower case, the values of one that came twice joined by a comma.
    """

    fields: dict[str, str]
    _rest = b""  # what was read of a body in chunks and waits for more
    _in_trailer = False

    def begin(self) -> None:
        head: Any = self  # typeshed knows neither what begins an answer nor what that sets
        if head.headers is not None:  # known already
            return
        timer = getattr(request_timer.current, "timer", None)
        # Looked for before a line is read: a reset in the middle of one would take its beginning along.
        if timer is not None and self.fp.peek(1):
            timer.heard = True
        version, status, reason = head._read_status()
        for _ in range(_MOST_INTERIM):
            if status < 100 or status >= 200 or status == 101:  # 101 would be the last word in HTTP
                break
            self._read_fields()
            version, status, reason = head._read_status()
        fields = self._read_fields()
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        head.version = 10 if version == "HTTP/1.0" else 11
        head.code = self.status = status
        self.reason = reason.strip()
        message = http.client.HTTPMessage()  # for requests, which looks for cookies in it
        first: dict[str, str] = {}
        merged: dict[str, str] = {}
        for name, value in fields:
            message.set_raw(name, value)
            name = name.lower()
            merged[name] = f"{merged[name]}, {value}" if name in merged else value
            first.setdefault(name, value)
        self.headers = self.msg = message
        self.fields = merged
        self._frame(first)

    def _read_fields(self) -> list[tuple[str, str]]:
        """The lines up to the empty one, each a name and a value."""
        readline = self.fp.readline
        found: list[tuple[str, str]] = []
        while True:
            line = readline(_LONGEST_LINE + 1)
            if line == b"\r\n" or line == b"\n":
                return found
            if len(line) > _LONGEST_LINE:
                raise http.client.LineTooLong("header line")
            if not line.endswith(b"\n"):
                raise http.client.HTTPException("the headers were cut off")
            if len(found) == _MOST_FIELDS:
                raise http.client.HTTPException(f"got more than {_MOST_FIELDS} headers")
            text = line.decode("latin-1").removesuffix("\n").removesuffix("\r")
            if text[0] in " \t" and found:  # the old way to go on in another line
                name, value = found.pop()
                found.append((name, f"{value} {text.strip(_BLANKS)}"))
                continue
            name, colon, value = text.partition(":")
            if not colon or "\r" in text or not _NAME.fullmatch(name):
                raise http.client.HTTPException("a line among the headers is none")
            found.append((name, value.strip(_BLANKS)))

    def _frame(self, fields: dict[str, str]) -> None:
        """How the body ends, and whether the connection can serve on after it."""
        status: int = self.status
        chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        length: int | None = None
        given = fields.get("content-length", "")
        if not chunked and given.isdigit() and given.isascii():
            length = int(given)
        head: Any = self
        if status in (204, 304) or status < 200 or head._method == "HEAD":
            length = 0
        kept = fields.get("connection", "").lower()
        if head.version == 11:
            closes = "close" in kept
        else:
            closes = "keep-alive" not in kept and not fields.get("keep-alive")
        head.chunked = chunked
        head.chunk_left = None
        head.length = length
        head.will_close = closes or status < 200 or (not chunked and length is None)

    def read1(self, n: int = -1) -> bytes:
        """What is there of the body, after one system call if possible; empty at its end.

        A body that was begun with this must be ended with it.
        """
        head: Any = self
        if self.fp is None or not head.chunked:
            return super().read1(n)
        found: list[bytes] = []
        while not found:
            raw: bytes = self.fp.read1(n if 0 < n < _PIECE else _PIECE)
            if not raw and not self._in_trailer:
                raise http.client.IncompleteRead(b"")
            if not raw or self._take(raw, found):
                head._close_conn()
                break
        return b"".join(found)

    def _take(self, raw: bytes, found: list[bytes]) -> bool:
        """Adds the data of all chunks in it; whether the body has ended."""
        head: Any = self
        data = self._rest + raw if self._rest else raw
        left: int | None = head.chunk_left  # bytes of the chunk to come; 0: its line end; None: a line
        at, end = 0, len(data)
        while at < end:
            if left:
                piece = data[at : at + left]
                found.append(piece)
                at += len(piece)
                left -= len(piece)
                continue
            stop = data.find(b"\n", at)
            if stop < 0:
                if end - at > _LONGEST_LINE:
                    raise http.client.LineTooLong("chunk size")
                break
            line = data[at:stop].rstrip(b"\r")
            at = stop + 1
            if self._in_trailer:
                if not line:
                    return True
            elif left is not None:
                left = None
                if line:
                    raise http.client.IncompleteRead(b"")  # more than its size said
            else:
                left = _size(line)
                if not left:
                    left, self._in_trailer = None, True
        self._rest, head.chunk_left = data[at:], left
        return False


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not _SIZE.fullmatch(digits):  # int() takes more: a sign, a prefix, underscores
        raise http.client.IncompleteRead(b"")
    return int(digits, 16)


_BLANKS = " \t"
