"""What a provider is told, and what it remembers of each request.

Owns the checked `Settings` and the frozen `Received`; acting on them is the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .answer_source import AnswerSource
from .faults import Fault
from .formats import FORMATS
from .latency import Latency, check_seconds
from .openai_format import StreamStyle


@dataclass(frozen=True, slots=True)
class Settings:
    """What a provider is told at its start; those in `CHANGEABLE` can be changed while it runs."""

    models: tuple[str, ...] = ()
    format: str = "openai"
    answer: AnswerSource = None
    latency: Latency = 0.0
    tokens_per_second: float | None = None
    api_keys: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    style: StreamStyle = field(default_factory=StreamStyle)
    fail_rate: float = 0.0
    fail_with: tuple[Fault, ...] = (Fault.status(500), Fault.status(503), Fault.reset())
    seed: int = 0
    log_size: int = 10_000

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: {self.format!r} is unknown; use one of {', '.join(FORMATS)}")
        for name, texts in (("models", self.models), ("api_keys", self.api_keys)):
            if not all(isinstance(text, str) and text for text in texts):
                raise TypeError(f"{name}: use strings that are not empty")
        if not callable(self.latency):
            check_seconds("latency", self.latency)
        rate = self.tokens_per_second
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0
        ):
            raise ValueError(f"tokens_per_second: {rate!r}; use a number above 0, or None for no pace")
        for name in ("requests_per_minute", "tokens_per_minute", "cached_tokens", "reasoning_tokens"):
            value = getattr(self, name)
            if value is None and name.endswith("minute"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}: {value!r}; use a whole number, 0 or more")
        if isinstance(self.fail_rate, bool) or not 0 <= self.fail_rate <= 1:
            raise ValueError(f"fail_rate: {self.fail_rate!r}; use a share from 0 to 1")
        if not self.fail_with or not all(isinstance(fault, Fault) for fault in self.fail_with):
            raise TypeError("fail_with: use one Fault or more")
        source = self.answer
        if isinstance(source, bool) or not (
            source is None or isinstance(source, (str, int)) or hasattr(source, "content") or callable(source)
        ):
            raise TypeError(
                f"answer: {type(source).__name__}; use None (echo), a text, a number of tokens, an Answer "
                "or a function"
            )
        if isinstance(source, int) and source < 0:
            raise ValueError(f"answer: {source!r} tokens; use 0 or more")
        if isinstance(self.log_size, bool) or not isinstance(self.log_size, int) or self.log_size < 1:
            raise ValueError(f"log_size: {self.log_size!r}; use a whole number, 1 or more")


CHANGEABLE = (
    "answer",
    "latency",
    "tokens_per_second",
    "cached_tokens",
    "reasoning_tokens",
    "style",
    "fail_rate",
    "fail_with",
)


class Received:
    """One request as a provider received it. Frozen; compares by identity.

    Attributes:
        method, path: as sent, the query included.
        headers: by lower-case name; of several of one name the last.
        body: its bytes, decoded from chunks.
        time: seconds of ``time.monotonic()`` when it was complete; one clock for all on this machine.
        connection: number of the connection it came on, from 1 in the order they were accepted.
        fault: name of the fault that it met, None for a good answer.
    """

    __slots__ = ("body", "connection", "fault", "headers", "method", "path", "time")

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    time: float
    connection: int
    fault: str | None

    def __init__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        time: float,
        connection: int,
        fault: str | None = None,
    ) -> None:
        for name, value in zip(Received.__slots__, (body, connection, fault, headers, method, path, time)):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a received request cannot be changed")

    @property
    def json(self) -> Any:
        """The body read as JSON.

        Raises:
            ValueError: if it is none.
        """
        return orjson.loads(self.body)

    def __repr__(self) -> str:
        # Neither key nor prompt: neither headers nor body.
        return (
            f"Received({self.method} {self.path}, {len(self.body)} bytes, connection {self.connection}, "
            f"fault {self.fault})"
        )
