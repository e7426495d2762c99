"""Splits bytes into server-sent events, incrementally, with a limit on their size.

It follows the WHATWG event-stream grammar with three deliberate differences. An event at the very end of the
input counts even without its blank line, since some providers close the connection right after
``data: [DONE]``. Lines of bare JSON, from one that begins with ``{`` (or ``[{``) up to the next event or
blank line, are an event too, since some servers write an error that way. Bytes that are not UTF-8 become
U+FFFD one by one and set a flag. No I/O, no clock.
"""

from __future__ import annotations

from typing import NamedTuple

from fastroute import errors

BOM = b"\xef\xbb\xbf"
_JSON = (b"{", b"[{")  # how a bare object begins, and Google's error in a list
_ENDS_BARE = (b"data", b"event:", b"id:", b"retry:", b":", *_JSON)


class ServerSentEvent(NamedTuple):
    """One event.

    Attributes:
        event: its type, ``message`` unless the stream named another.
        data: its data lines, joined by line feeds.
        id: the last event id in the stream so far, empty if none.
    """

    event: str = "message"
    data: str = ""
    id: str = ""


class Decoder:
    """Splits a byte stream into events, however the stream was cut into pieces.

    The cost is linear in the bytes fed: a line that arrives in many pieces is joined once, when its end
    arrives. Not thread-safe: use it for one stream, in one thread at a time.

    Args:
        max_line: the most bytes of a line without its line end.
        max_event: the most bytes of all data lines of one event.

    Pictures come as one line of many megabytes, so both should be as large as an answer may be.

    Attributes:
        replaced: whether bytes that are not UTF-8 have been replaced by U+FFFD.
    """

    __slots__ = (
        "_after_cr",
        "_bare",
        "_data",
        "_event",
        "_event_size",
        "_fragments",
        "_fragments_size",
        "_id",
        "_late_error",
        "_max_event",
        "_max_line",
        "_named",
        "_start",
        "replaced",
    )

    def __init__(self, max_line: int = 32 << 20, max_event: int = 32 << 20) -> None:
        if max_line < 1 or max_event < 1:
            raise ValueError("max_line and max_event: must be sizes in bytes, at least 1")
        self.replaced = False
        self._max_line = max_line
        self._max_event = max_event
        # The first bytes, while they may be part of a byte order mark; None after that.
        self._start: bytes | None = b""
        # The last byte fed was a CR, so an LF that comes next belongs to it.
        self._after_cr = False
        # A line whose end has not arrived yet.
        self._fragments: list[bytes] = []
        self._fragments_size = 0
        # The event that is arriving.
        self._data: list[bytes] = []
        self._event_size = 0
        self._event = "message"
        self._named = False
        # The data are lines of bare JSON, without their field's name.
        self._bare = False
        self._id = ""
        self._late_error: errors.UpstreamProtocolError | None = None

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete.

        Raises:
            UpstreamProtocolError: if a line or an event exceeds its limit. Events completed before it are
                still returned; the error is then raised by the next call.
        """
        if self._late_error is not None:
            raise self._late_error
        if self._start is not None:
            data = self._start + data
            if len(data) < 3 and BOM.startswith(data):
                self._start = data
                return []
            self._start = None
            if data.startswith(BOM):
                data = data[3:]
        if not data:
            return []
        if self._after_cr:
            self._after_cr = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1] == 0x0D
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = data.rfind(b"\n")
        if cut < 0:
            self._keep(data)
            return self._checked([])
        block = data[:cut]
        if self._fragments:
            self._fragments.append(block)
            block = b"".join(self._fragments)
            self._fragments = []
            self._fragments_size = 0
        events = self._lines(block)
        if cut + 1 < len(data):
            self._keep(data[cut + 1 :])
        return self._checked(events)

    def end(self) -> list[ServerSentEvent]:
        """The event that the end of the input completes, if any; see the module's docstring."""
        if self._late_error is not None:
            raise self._late_error
        events: list[ServerSentEvent] = []
        if self._start:
            self._fragments.append(self._start)
        self._start = None
        if self._fragments:
            events = self._lines(b"".join(self._fragments))
            self._fragments = []
            self._fragments_size = 0
        self._dispatch(events)
        return self._checked(events)

    def _keep(self, data: bytes) -> None:
        if data:
            self._fragments.append(data)
            self._fragments_size += len(data)
            if self._fragments_size > self._max_line:
                self._refuse("a line", self._max_line)

    def _refuse(self, what: str, limit: int) -> None:
        self._fragments = []
        self._data = []
        self._late_error = errors.UpstreamProtocolError(
            f"{what} of the event stream exceeds the limit of {limit} bytes (max_response_bytes)",
            maybe_billed=True,
        )

    def _checked(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        if self._late_error is not None and not events:
            raise self._late_error
        return events

    def _lines(self, block: bytes) -> list[ServerSentEvent]:
        """Handles complete lines, joined by LF. Every byte of every stream passes through this loop."""
        events: list[ServerSentEvent] = []
        for line in block.split(b"\n"):
            if not line:
                if self._data or self._named:
                    self._dispatch(events)
                continue
            if len(line) > self._max_line:
                self._refuse("a line", self._max_line)
                break
            if self._bare and line.startswith(_ENDS_BARE):
                self._dispatch(events)
            if line.startswith(b"data:"):
                value = line[6:] if line.startswith(b" ", 5) else line[5:]
            elif line == b"data":
                value = b""
            elif self._bare:
                value = line
            elif line.startswith(_JSON):
                if self._data:
                    self._dispatch(events)
                value = line
                self._bare = True
            else:
                self._other(line)
                continue
            self._data.append(value)
            self._event_size += len(line) + 1
            if self._event_size > self._max_event:
                self._refuse("an event", self._max_event)
                break
            if self._bare and value.startswith(_JSON) and value.endswith((b"}", b"}]")):
                self._dispatch(events)  # JSON on one line: nothing of it is to come
        return events

    def _other(self, line: bytes) -> None:
        """Handles a comment, or a field that is not ``data``."""
        name, _, value = line.partition(b":")
        if not name:
            return
        if value.startswith(b" "):
            value = value[1:]
        if name == b"event":
            self._event = self._text(value) or "message"
            self._named = True
        elif name == b"id" and b"\0" not in value:
            self._id = self._text(value)

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        if self._data:
            data = self._data
            text = self._text(data[0] if len(data) == 1 else b"\n".join(data))
            events.append(ServerSentEvent(self._event, text, self._id))
            self._data = []
            self._event_size = 0
            self._bare = False
        if self._named:
            self._event = "message"
            self._named = False

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.replaced = True
            return data.decode("utf-8", "replace")
