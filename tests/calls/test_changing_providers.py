"""A conversation that goes on at another provider, which refuses what the first one's answers have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from loopback import MODEL, OTHER, Loopback

import fastroute
from fastroute.testing import Fault, Provider, Received

Start = Callable[..., Loopback]

SAYS = {"role": "user", "content": "Say hello"}
CALL = {"id": "call_of_another", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TALK = [
    SAYS,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "reasoning_content": "hm",
        "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
        "thinking_blocks": [],
    },
    {"role": "tool", "tool_call_id": "call_of_another", "content": "{}"},
]
TAKEN = {"role", "content", "tool_calls", "tool_call_id"}


def groq(unknown: list[str]) -> tuple[int, Mapping[str, Any]]:
    """It names one field at a time."""
    message = (
        "'messages.1' : for 'role:assistant' the following must be satisfied"
        f"[('messages.1' : property '{unknown[0]}' is unsupported)]"
    )
    return 400, {"error": {"message": message, "type": "invalid_request_error"}}


def mistral(unknown: list[str]) -> tuple[int, Mapping[str, Any]]:
    """It names all of them."""
    detail = [
        {
            "type": "extra_forbidden",
            "loc": ["body", "messages", 1, "assistant", name],
            "msg": "Extra inputs are not permitted",
            "input": "hm",
        }
        for name in unknown
    ]
    return 422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"}


Refusal = Callable[[list[str]], tuple[int, Mapping[str, Any]]]


def strict(refusal: Refusal) -> Callable[[Received], Fault | None]:
    def refused(received: Received) -> Fault | None:
        unknown = sorted({name for message in received.json["messages"] for name in message} - TAKEN)
        return Fault.status(*refusal(unknown)) if unknown else None

    return refused


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("refusal", "requests"), [(groq, 4), (mistral, 2)])
def test_what_an_endpoint_refuses_is_left_out_and_remembered(
    start: Start, refusal: Refusal, requests: int, stream: bool
) -> None:
    loop = start(1, answer="hello", policy={"max_attempts": 1})
    loop.provider("a").script(strict(refusal))
    asked = loop.client.chat.completions
    for number in (requests, requests + 1):  # the second call is spelled right at once
        if stream:
            with asked.create(model=MODEL, messages=TALK, stream=True) as chunks:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            text = asked.create(model=MODEL, messages=TALK).text
        assert (text, loop.provider("a").received) == ("hello", number)
    assert loop.endpoint("a")["failed"] == 0
    assert TALK[1]["reasoning_content"] == "hm"


def test_an_endpoint_that_takes_the_fields_gets_them(start: Start) -> None:
    servers = {"a": Provider(), "b": Provider(strict=False)}
    loop = start(servers, more_endpoints=[{"provider": "b", "model": OTHER}])
    loop.provider("a").script(strict(groq))
    for _ in range(2):
        loop.ask(messages=TALK)
        loop.ask(model=OTHER, messages=TALK)
        assert loop.provider("b").requests[-1].json["messages"][1] == TALK[1]


def test_a_provider_that_refuses_without_end_is_given_up(start: Start) -> None:
    fields = (f"field_{number}" for number in range(10_000))
    loop = start(1)
    loop.provider("a").script(lambda received: Fault.status(*groq([next(fields)])))
    with pytest.raises(fastroute.BadRequestError):
        loop.ask(messages=TALK)
    assert loop.provider("a").received <= 25


@pytest.mark.parametrize(
    ("wording", "form"),
    [
        ("Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9.", r"[a-zA-Z0-9]{9}"),
        (
            "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with maximum length "
            "40, but got a string with length 51 instead.",
            r".{1,40}",
        ),
    ],
    ids=["mistral", "openai"],
)
def test_call_ids_take_the_form_that_is_demanded(start: Start, wording: str, form: str) -> None:
    identity = "ws_" + "689e2d4880a0819d98acca37694989b00b15d90494fc6b87"
    talk = [
        SAYS,
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": identity}]},
        {"role": "tool", "tool_call_id": identity, "content": "{}"},
    ]

    def refused(received: Received) -> Fault | None:
        _, call, result = received.json["messages"]
        assert call["tool_calls"][0]["id"] == result["tool_call_id"]
        if re.fullmatch(form, result["tool_call_id"]):
            return None
        text = wording.format(id=result["tool_call_id"])
        return Fault.status(400, {"object": "error", "message": text, "type": "invalid_request_error"})

    loop = start(1, answer="hello", policy={"max_attempts": 1})
    loop.provider("a").script(refused)
    for number in (2, 3):
        assert loop.ask(messages=talk).text == "hello"
        assert loop.provider("a").received == number
    first, second = (each.json["messages"][2]["tool_call_id"] for each in loop.provider("a").requests[1:])
    assert first == second
