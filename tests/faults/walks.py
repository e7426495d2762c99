"""The walk over every byte of an answer: what is sent, what must come of it, and the books after each step.

It has the answers and the expected results; `raw_server.py` is the server. The tests run a part of it,
`tests/soak/walk.py` runs all of it.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples
from raw_server import Ending, RawServer, Say
from spoken import BY_FORMAT, framed

import fastroute
from fastroute import Client, events

TEXT = "Guten Tag"
PLAIN: dict[str, Any] = {
    "openai": {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": 3},
    },
    "gemini": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": TEXT}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3},
    },
}
STALL = 0.05  # seconds that a silent answer is waited for
PATIENT = 8.0  # seconds that any other is
LATE = 3.0  # seconds that a loaded machine may be late


@dataclass(frozen=True)
class Variant:
    """One way to put an answer on the wire."""

    format: str = "openai"
    stream: bool = False
    framing: str = "length"  # length, chunked, close
    compressed: bool = False
    terse: bool = False  # headers without blanks, in capitals
    reused: bool = False  # on a connection that has served a request before

    def __str__(self) -> str:
        words = [self.format, "stream" if self.stream else "plain", self.framing]
        words += [word for word in ("compressed", "terse", "reused") if getattr(self, word)]
        return "-".join(words)

    def body(self) -> bytes:
        if not self.stream:
            body = json.dumps(PLAIN[self.format], separators=(",", ":")).encode()
        else:
            spoken = BY_FORMAT[self.format]
            half = len(TEXT) // 2
            body = framed(
                spoken.begin(),
                spoken.text(TEXT[:half]),
                spoken.text(TEXT[half:]),
                spoken.finish(),
                spoken.end(),
            )
        return gzip.compress(body, mtime=0) if self.compressed else body

    def answer(self) -> bytes:
        body = self.body()
        fields = {"content-type": "text/event-stream" if self.stream else "application/json"}
        if self.compressed:
            fields["content-encoding"] = "gzip"
        if self.framing == "length":
            fields["content-length"] = str(len(body))
        elif self.framing == "chunked":
            fields["transfer-encoding"] = "chunked"
            size = max(len(body) // 3, 1)
            parts = [body[start : start + size] for start in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = "HTTP/1.1 200 OK\r\n"
        for name, value in fields.items():
            head += f"{name.upper()}:{value}\r\n" if self.terse else f"{name}: {value}\r\n"
        return f"{head}\r\n".encode() + body


@dataclass
class Outcome:
    """What came of one step."""

    text: str | None
    error: fastroute.Error | None
    partial: bool
    seconds: float


class Walk:
    """A client before a server of bare sockets, and the steps of its walks."""

    def __init__(
        self,
        server: RawServer,
        ledger: Path,
        format: str,
        patience: float,
        session: Any = None,
        trusted: Path | None = None,
    ) -> None:
        self.server = server
        self.asked = 0
        self._patience = patience
        self.attempts: list[fastroute.Attempt] = []
        self.client = Client(
            {
                "fastroute": {"ledger": str(ledger), "timeout": 20.0, "connect_timeout": patience},
                "cache": {"enabled": False},
                "providers": {
                    "a": {
                        "base_url": server.base_url,
                        "format": format,
                        "timeout": patience,
                        "tpm": 1_000_000_000,
                        **({} if trusted is None else {"ca_bundle": str(trusted)}),
                    }
                },
                "endpoints": [{"provider": "a", "model": "m"}],
                "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
                "budgets": [{"name": "all", "limit": 1000.0, "window": "total"}],
                "policy": {
                    "max_attempts": 1,
                    "idle_timeout": patience,
                    "ping_timeout": patience,
                    "breaker": {"failures": 255, "min_calls": 10_000},
                },
            },
            session=session,
        )
        self.client.on(lambda event: self.attempts.append(event.attempt), events.AttemptFinished)

    def step(self, variant: Variant, size: int, ending: Ending) -> Outcome:
        """One call whose answer ends after so many bytes, as it ends."""
        answer = variant.answer()
        if variant.reused:
            self.good(Variant(variant.format))
        self.server.say = Say(answer[:size], ending)
        return self.ask(variant)

    def good(self, variant: Variant) -> None:
        """A call whose answer is whole, and is taken for that."""
        self.server.say = Say(variant.answer(), "cut" if variant.framing == "close" else "keep")
        # A loaded machine may be slower than a walk with short time-outs has patience for.
        for _ in range(1 if self._patience == PATIENT else 20):
            found = self.ask(variant)
            if found.text == TEXT:
                return
        raise AssertionError(f"{variant}: {found}")

    def ask(self, variant: Variant) -> Outcome:
        self.asked += 1
        start = time.monotonic()
        text: str | None = None
        error: fastroute.Error | None = None
        partial = False
        messages = [{"role": "user", "content": f"Good day {self.asked}"}]
        try:
            if variant.stream:
                text = ""
                with self.client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
                    for chunk in stream:
                        for choice in chunk.choices:
                            text += choice.delta.content or ""
                            partial = True
            else:
                text = self.client.chat.completions.create(model="m", messages=messages).text
        except fastroute.Error as caught:
            error = caught
            if text:
                assert TEXT.startswith(text)
            text = None
        return Outcome(text, error, partial, time.monotonic() - start)

    def judge(self, variant: Variant, size: int, ending: Ending, found: Outcome) -> None:
        """Raises an AssertionError unless that is what this end after so many bytes must come to."""
        answer = variant.answer()
        where = f"{variant}, {ending} after {size} of {len(answer)}: {answer[max(size - 30, 0) : size]!r}"
        assert found.seconds < (3 * STALL if ending == "stall" else 0.0) + LATE, where
        said = f"{where}: {found.text!r} {type(found.error).__name__}: {found.error}"
        if found.error is None:
            assert found.text == TEXT, said
            assert size >= self._enough(variant, ending), said
            return
        if ending != "stall":
            assert size < len(answer) or self._unending(variant, ending), said
        expected = self._expected(variant, size, ending, found.partial)
        assert isinstance(found.error, expected), said
        assert "Guten" not in str(found.error), said

    def _unending(self, variant: Variant, ending: Ending) -> bool:
        """Whether all the bytes do not say that they are all."""
        return variant.framing == "close" and not variant.stream and ending != "cut"

    def _enough(self, variant: Variant, ending: Ending) -> int:
        """Bytes without which there can be no good answer."""
        answer = variant.answer()
        if not variant.stream:
            if variant.framing == "close":
                # The checksum behind the compressed text adds nothing to JSON that is whole.
                return len(answer) - (10 if variant.compressed else 0)
            # The trailer behind the last chunk says nothing that is missed.
            return len(answer) - (4 if variant.framing == "chunked" else 0)
        if variant.compressed:
            return len(answer) // 2
        # A stream is whole once every choice has said why it ended.
        marks = {"openai": b'"stop"', "anthropic": b"end_turn", "gemini": b"STOP"}
        return answer.index(marks[variant.format])

    def _expected(
        self, variant: Variant, size: int, ending: Ending, partial: bool
    ) -> type[Exception] | tuple[type[Exception], ...]:
        answer = variant.answer()
        head = answer.index(b"\r\n\r\n") + 4
        if partial:
            return {
                "cut": fastroute.StreamTruncated,
                "reset": fastroute.StreamInterrupted,
                "stall": fastroute.StreamStalled,
            }[ending]
        if ending == "stall":
            return fastroute.APITimeoutError
        if ending == "reset":
            # The reset may overtake what was sent before it.
            return fastroute.APIConnectionError
        if size == 0:
            return fastroute.APIConnectionError
        if size < head:
            return fastroute.UpstreamProtocolError
        if variant.framing == "close" and (size == head or variant.compressed):
            return (fastroute.EmptyResponse, fastroute.UpstreamTruncated)
        return fastroute.UpstreamProtocolError if variant.compressed else fastroute.UpstreamTruncated

    def idle(self) -> None:
        """Raises an AssertionError unless all connections but one that is kept are closed."""
        end = time.monotonic() + LATE
        while self.server.open_connections > 1 and time.monotonic() < end:
            time.sleep(0.005)
        assert self.server.open_connections <= 1

    def books(self) -> None:
        """Nothing is held, and each call was one attempt."""
        stats = self.client.stats()
        assert stats["endpoints"]["a/m"]["in_flight"] == 0
        assert stats["queued"] == 0
        assert len(self.attempts) == self.asked
        assert [status.reserved_nano for status in self.client.runtime.generation.budgets.snapshot()] == [0]


@contextmanager
def walking(
    folder: Path,
    format: str,
    patience: float = PATIENT,
    session: Any = None,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[Walk]:
    """A walk, and at its end nothing is left of it: no thread, file descriptor or connection.

    With ``certificate``, the files of a key and its certificate, it goes over TLS.
    """
    trusted = certificate[1] if certificate else None
    with RawServer(4, certificate) as server:
        walk = Walk(server, folder / f"{format}-{patience}.db", format, patience, session, trusted)
        try:
            yield walk
            ledger = walk.client.ledger
            ledger.flush()
            rows = sorted(row.id for row in ledger.entries(None))
            assert rows == sorted(attempt.id for attempt in walk.attempts)
        finally:
            walk.client.close()


def run(walk: Walk, variant: Variant, ending: Ending, every: int = 1) -> int:
    """Lets the answer end after each, or one in so many, of its bytes; returns how often that was."""
    count = 0
    asked: dict[int, bytes] = {}
    begin = samples.first(every, f"{variant} {ending}")
    for size in range(begin, len(variant.answer()) + 1, every):
        walk.judge(variant, size, ending, walk.step(variant, size, ending))
        asked[size] = b'"Good day %d"' % walk.asked
        count += 1
        if count % 16 == 0:  # and whatever was before it, a good answer is a good answer
            walk.good(variant)
        walk.books()
    walk.idle()
    for size, question in asked.items():
        # Only a kept connection that ended before a byte of the answer lets a request go out again.
        sent = sum(question in request for request in walk.server.requests)
        # One whose answer stalls may be given up before it has arrived.
        assert (ending != "stall") <= sent <= 1 + (size == 0), (
            f"{variant}, {ending} after {size}: sent {sent} times"
        )
    return count
