"""Bytes to server-sent events, incrementally.

Owns the WHATWG event-stream grammar and the limits that keep a hostile stream small; what the events mean
is `providers/`, reading them off a socket is `transport.py`. Pure: no I/O, no clock.

Differences from the grammar, both on purpose: an event at the very end of the input counts even if its
blank line is missing (a provider that hangs up right after ``data: [DONE]`` has said all it wanted), and
bytes that are not UTF-8 become U+FFFD one by one and raise a flag rather than pass silently.
"""

from __future__ import annotations

from typing import NamedTuple

from fastroute import errors

_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event.

    Attributes:
        event: its type, ``message`` unless the stream named another.
        data: its data lines, joined by line feeds.
        id: the last event id the stream has given, empty if none.
    """

    event: str = "message"
    data: str = ""
    id: str = ""


class Decoder:
    """Splits a byte stream into events, whatever way the stream was cut into pieces.

    The cost is linear in the bytes fed: a line that arrives in many pieces is joined once, when its end
    has come. Belongs to one stream and one thread at a time.

    Args:
        max_line: bytes a line may have without its end.
        max_event: bytes that the data lines of one event may have in all.

    Attributes:
        replaced: whether bytes that are not UTF-8 have been replaced by U+FFFD.
    """

    __slots__ = (
        "_after_cr",
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

    def __init__(self, max_line: int = 1 << 20, max_event: int = 4 << 20) -> None:
        if max_line < 1 or max_event < 1:
            raise ValueError("max_line and max_event are sizes in bytes, at least 1")
        self.replaced = False
        self._max_line = max_line
        self._max_event = max_event
        # The bytes that may still turn out to be a byte order mark; None once that is settled.
        self._start: bytes | None = b""
        # The last byte fed was a CR, so an LF that comes next belongs to it.
        self._after_cr = False
        # A line whose end has not come yet.
        self._fragments: list[bytes] = []
        self._fragments_size = 0
        # The event being put together.
        self._data: list[bytes] = []
        self._event_size = 0
        self._event = "message"
        self._named = False
        self._id = ""
        self._late_error: errors.UpstreamProtocolError | None = None

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete.

        Raises:
            UpstreamProtocolError: if a line or an event is over its limit. Events completed before it are
                still returned first; the error then comes with the next call.
        """
        if self._late_error is not None:
            raise self._late_error
        if self._start is not None:
            data = self._start + data
            if len(data) < 3 and _BOM.startswith(data):
                self._start = data
                return []
            self._start = None
            if data.startswith(_BOM):
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
        """The event that the end of the input completes, if any: see the module's notes on leniency."""
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
            f"{what} of the event stream is over {limit} bytes", maybe_billed=True
        )

    def _checked(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        if self._late_error is not None and not events:
            raise self._late_error
        return events

    def _lines(self, block: bytes) -> list[ServerSentEvent]:
        """Takes whole lines, joined by LF; the loop that every byte of every stream goes through."""
        events: list[ServerSentEvent] = []
        for line in block.split(b"\n"):
            if not line:
                if self._data or self._named:
                    self._dispatch(events)
                continue
            if len(line) > self._max_line:
                self._refuse("a line", self._max_line)
                break
            if line.startswith(b"data:"):
                value = line[6:] if line.startswith(b" ", 5) else line[5:]
            elif line == b"data":
                value = b""
            else:
                self._other(line)
                continue
            self._data.append(value)
            self._event_size += len(line) + 1
            if self._event_size > self._max_event:
                self._refuse("an event", self._max_event)
                break
        return events

    def _other(self, line: bytes) -> None:
        """A comment, or a field that is not ``data``."""
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
        if self._named:
            self._event = "message"
            self._named = False

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.replaced = True
            return data.decode("utf-8", "replace")
