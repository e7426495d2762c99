"""A provider's checked `Settings`, and the requests that it `Received`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastroute import json_codec

from .answer_source import AnswerSource
from .faults import Fault
from .formats import FORMATS
from .latency import Latency, check_seconds
from .openai_format import StreamStyle


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a provider; those in `CHANGEABLE` can be changed while it runs."""

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
    strict: bool = True
    seed: int = 0
    log_size: int = 10_000

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: unknown format {self.format!r}; use one of {', '.join(FORMATS)}")
        if not isinstance(self.strict, bool):
            raise TypeError(f"strict: must be True or False, not {type(self.strict).__name__}")
        if not self.strict and self.format not in ("openai", "azure"):
            raise ValueError(
                f"strict: cannot be False in the format {self.format!r}; use it with openai or azure"
            )
        for name, texts in (("models", self.models), ("api_keys", self.api_keys)):
            if not all(isinstance(text, str) and text for text in texts):
                raise TypeError(f"{name}: must be non-empty strings")
        if not callable(self.latency):
            check_seconds("latency", self.latency)
        rate = self.tokens_per_second
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0
        ):
            raise ValueError(
                f"tokens_per_second: must be a number above 0, or None for no delay, not {rate!r}"
            )
        for name in ("requests_per_minute", "tokens_per_minute", "cached_tokens", "reasoning_tokens"):
            value = getattr(self, name)
            if value is None and name.endswith("minute"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}: must be an integer, 0 or more, not {value!r}")
        if isinstance(self.fail_rate, bool) or not 0 <= self.fail_rate <= 1:
            raise ValueError(f"fail_rate: must be from 0 to 1, not {self.fail_rate!r}")
        if not self.fail_with or not all(isinstance(fault, Fault) for fault in self.fail_with):
            raise TypeError("fail_with: must be one or more of Fault")
        source = self.answer
        if isinstance(source, bool) or not (
            source is None or isinstance(source, (str, int)) or hasattr(source, "content") or callable(source)
        ):
            raise TypeError(
                "answer: must be None (echo), a text, a number of tokens, an Answer or a function, not "
                f"{type(source).__name__}"
            )
        if isinstance(source, int) and source < 0:
            raise ValueError(f"answer: must be 0 or more tokens, not {source!r}")
        if isinstance(self.log_size, bool) or not isinstance(self.log_size, int) or self.log_size < 1:
            raise ValueError(f"log_size: must be an integer, 1 or more, not {self.log_size!r}")


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
        method, path: as sent, with the query.
        headers: values by lower-case name; the last one of a repeated name.
        body: the bytes of the body, decoded from chunks.
        time: ``time.monotonic()`` when it was complete; the same clock for all processes of this machine.
        connection: number of its connection, from 1 in the order of acceptance.
        fault: name of the fault that it got, None for a good answer.
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
        """The body as JSON.

        Raises:
            ValueError: if it is not JSON.
        """
        return json_codec.loads(self.body)

    def __repr__(self) -> str:
        # Without headers and body, which contain the key and the prompt.
        return (
            f"Received({self.method} {self.path}, {len(self.body)} bytes, connection {self.connection}, "
            f"fault {self.fault})"
        )
