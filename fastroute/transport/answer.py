"""Reads the head of an HTTP answer strictly, and a chunked body as fast as it arrives.

`http.client` treats the end of the input as the end of the head, so that the first bytes of an answer count
as a good one without a body. If a header line is malformed it drops that line and the rest. Of the interim
answers it skips only 100. It also parses headers with the email package, which takes longer than everything
else in a small answer, and it returns one chunk of a body per read, however many have arrived. Bodies with a
length are still read by `http.client`.
"""

from __future__ import annotations

import http.client
import re
from typing import Any

from . import request_timer

_LONGEST_LINE = 65536
_MOST_FIELDS = 100
_MOST_INTERIM = 100  # answers such as 100 and 103 before the final one
_PIECE = 16384  # bytes of one read of a chunked body
_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")
_NAME = re.compile(r"[!-9;-~\x80-\xff]+")


class StrictResponse(http.client.HTTPResponse):
    """An answer with a complete head, or an exception.

    Attributes:
        fields: its headers, with names in lower case; the values of a repeated header joined by a comma.
    """

    fields: dict[str, str]
    _rest = b""  # bytes of a chunked body that cannot be used before more arrive
    _in_trailer = False

    def begin(self) -> None:
        head: Any = self  # typeshed has neither `_read_status` nor the attributes that `begin` sets
        if head.headers is not None:  # read before
            return
        timer = getattr(request_timer.current, "timer", None)
        # Peek before a line is read: after a reset in the middle of a line its first bytes would be lost,
        # and the request would look safe to resend.
        if timer is not None and self.fp.peek(1):
            timer.heard = True
        version, status, reason = head._read_status()
        for _ in range(_MOST_INTERIM):
            if status < 100 or status >= 200 or status == 101:  # 101 is final: HTTP ends with it
                break
            self._read_fields()
            version, status, reason = head._read_status()
        fields = self._read_fields()
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        head.version = 10 if version == "HTTP/1.0" else 11
        head.code = self.status = status
        self.reason = reason.strip()
        message = http.client.HTTPMessage()  # requests reads cookies from it
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
        """The header lines up to the empty one, each as a name and a value."""
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
            if text[0] in " \t" and found:  # obsolete line folding (RFC 9112, 5.2)
                name, value = found.pop()
                found.append((name, f"{value} {text.strip(_BLANKS)}"))
                continue
            name, colon, value = text.partition(":")
            if not colon or "\r" in text or not _NAME.fullmatch(name):
                raise http.client.HTTPException("a header line is malformed")
            found.append((name, value.strip(_BLANKS)))

    def _frame(self, fields: dict[str, str]) -> None:
        """Sets how the body ends, and whether the connection can be reused after it."""
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
        """The bytes of the body that are available, if possible after one system call; empty at its end.

        Do not mix it with `read` in one body.
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
        """Adds the data of all chunks in ``raw`` to ``found``; returns whether the body has ended."""
        head: Any = self
        data = self._rest + raw if self._rest else raw
        left: int | None = head.chunk_left  # bytes left in the chunk; 0: its line end is next; None: a size
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
                    raise http.client.IncompleteRead(b"")  # the chunk is longer than its size
            else:
                left = _size(line)
                if not left:
                    left, self._in_trailer = None, True
        self._rest, head.chunk_left = data[at:], left
        return False


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not _SIZE.fullmatch(digits):  # int() accepts more: a sign, a prefix, underscores
        raise http.client.IncompleteRead(b"")
    return int(digits, 16)


_BLANKS = " \t"
