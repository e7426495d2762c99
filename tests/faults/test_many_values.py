"""Answers of very many tiny values: refused before an object is made of them, wherever they come."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from loopback import Loopback
from spoken import ALL, Spoken, framed, streamed

import fastroute
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]

MOST = 100_000
TINY = b'{"choices": [' + b"[]," * MOST + b"[]]}"  # would be 8 MB of lists


def whole(body: bytes) -> Fault:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return Fault.raw(head.encode(), body)


def as_event(spoken: Spoken) -> Fault:
    return streamed(framed(spoken.begin()) + b"data: " + TINY + b"\n\n")


WAYS: dict[str, tuple[Callable[[Spoken], Fault], bool]] = {
    "an answer": (lambda spoken: whole(TINY), False),
    "a document in place of a stream": (lambda spoken: whole(TINY), True),
    "an event": (as_event, True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spoken", ALL, ids=lambda spoken: spoken.format)
def test_an_answer_of_too_many_values_is_refused(start: Start, spoken: Spoken, way: str) -> None:
    loop = start(
        {"a": Provider(process=True)},
        format=spoken.format,
        fastroute={"max_response_values": MOST},
        policy={"max_attempts": 1},
    )
    fault, stream = WAYS[way]
    loop.provider().script(fault(spoken))
    tracemalloc.start()
    try:
        with pytest.raises(fastroute.UpstreamProtocolError, match="max_response_values") as caught:
            list(loop.stream()) if stream else loop.ask()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "more than 100000 values" in str(caught.value)
    assert caught.value.maybe_billed
    assert most < 6 << 20  # its bytes, some times over


def test_many_events_of_many_values_are_refused_together(start: Start) -> None:
    spoken = ALL[0]
    loop = start(1, fastroute={"max_response_values": 10_000}, policy={"max_attempts": 1})
    piece = spoken.chunk(reasoning_details=[[]] * 5000)
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("a"), [piece] * 20)))
    stream = loop.stream()
    with pytest.raises(fastroute.StreamInterrupted, match="8 times max_response_values"):
        list(stream)


def test_log_probabilities_of_an_honest_answer_pass(start: Start) -> None:
    token: dict[str, Any] = {"token": " the", "logprob": -0.12345678, "bytes": [32, 116, 104, 101]}
    loop = start(1)
    loop.provider().script(
        whole(
            orjson.dumps(
                {
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "length",
                            "message": {"role": "assistant", "content": "the"},
                            "logprobs": {"content": [{**token, "top_logprobs": [token] * 20}] * 4096},
                        }
                    ]
                }
            )
        )
    )
    (choice,) = loop.ask().choices
    assert len(choice.to_dict()["logprobs"]["content"]) == 4096
