"""`chat.completions.stream` and `with_raw_response`, held to the OpenAI SDK over the same bytes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from client_setups import Start
from loopback import MODEL, Loopback
from needs import need

import fastroute
from fastroute.testing import Fault

openai = need("openai")
pydantic = need("pydantic")

HELLO: list[Any] = [{"role": "user", "content": "Which city?"}]


class Town(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    name: str
    people: int


@pytest.fixture
def loop(start: Start) -> Loopback:
    return start(1)


@pytest.fixture
def sdk(loop: Loopback) -> Iterator[Any]:
    with openai.OpenAI(base_url=loop.provider().base_url, api_key="local", max_retries=0) as made:
        yield made


def events(*deltas: dict[str, Any], reason: str = "stop") -> Fault:
    pieces = [({"role": "assistant"}, None), *((delta, None) for delta in deltas), ({}, reason)]
    sent = []
    for delta, finish in pieces:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        sent.append(f"data: {json.dumps(chunk)}\n\n".encode())
    return Fault.events(*sent, b"data: [DONE]\n\n")


def call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    first = {"id": f"call_{index}", "type": "function"} if name else {}
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": index, **first, "function": function}]}


TOOLS = [openai.pydantic_function_tool(Town, name="town"), openai.pydantic_function_tool(Town, name="other")]
STREAMS: dict[str, tuple[Fault, dict[str, Any]]] = {
    "text": (events({"content": ""}, {"content": "Ro"}, {"content": "me"}), {}),
    "a model": (
        events({"content": '{"name": "Ro'}, {"content": 'me", "people"'}, {"content": ": 12}"}),
        {"response_format": Town},
    ),
    "a refusal": (events({"refusal": "I "}, {"refusal": "cannot"}), {"response_format": Town}),
    "tools": (
        events(
            {"content": "Let me look"},
            call(0, "town", ""),
            call(0, None, '{"name": "Rome",'),
            call(0, None, '"people": 12}'),
            call(1, "other", '{"name": "Oslo", "people": 1}'),
            reason="tool_calls",
        ),
        {"tools": TOOLS},
    ),
    "tools that are not known": (events(call(0, "weather", "{}"), reason="tool_calls"), {}),
}
FIELDS = ("delta", "content", "refusal", "name", "index", "arguments", "arguments_delta", "parsed_arguments")


def seen(events: Any) -> list[Any]:
    found = []
    for event in events:
        shown = {name: getattr(event, name) for name in FIELDS if hasattr(event, name)}
        if event.type != "chunk":
            shown["parsed"] = getattr(event, "parsed", None)
            shown["snapshot"] = getattr(event, "snapshot", None)
        found.append((event.type, shown))
    return found


@pytest.mark.parametrize(("sent", "params"), STREAMS.values(), ids=STREAMS.keys())
def test_the_events_are_the_sdks(loop: Loopback, sdk: Any, sent: Fault, params: dict[str, Any]) -> None:
    loop.provider().script(sent, repeat=True)
    with sdk.chat.completions.stream(model=MODEL, messages=HELLO, **params) as stream:
        theirs, their_end = seen(stream), stream.get_final_completion()
    with loop.client.chat.completions.stream(model=MODEL, messages=HELLO, **params) as mine:
        ours, our_end = seen(mine), mine.get_final_completion()
    assert ours == theirs
    assert our_end.choices[0].message.parsed == their_end.choices[0].message.parsed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic's, about the SDK's own type of `parsed`
        message = their_end.choices[0].message.model_dump(exclude_none=True)
    said = our_end.choices[0].message.model_dump(exclude_none=True)
    for each in message.get("tool_calls", ()):
        each.pop("index", None)  # the SDK keeps the one of the fragments
    assert said == message
    assert mine.stream.route.cost is not None
    first, second = (json.loads(request.body) for request in loop.provider().requests)
    second.pop("stream_options")  # the usage, for the ledger
    assert first == second


def test_a_snapshot_grows_with_the_chunks(loop: Loopback) -> None:
    loop.provider().script(events({"content": "Ro"}, {"content": "me"}))
    with loop.client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        texts = [event.snapshot.text for event in stream if event.type == "chunk"]
        assert stream.current_completion_snapshot.text == "Rome"
    assert texts[-1] == "Rome"


def test_until_done_reads_to_the_end_and_leaving_early_closes(loop: Loopback) -> None:
    with loop.client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        assert stream.until_done().get_final_completion().text == "Which city?"
    with loop.client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        next(iter(stream))
    assert [attempt.outcome for attempt in loop.attempts] == ["ok", "client_cancelled"]
    unused = loop.client.chat.completions.stream(model=MODEL, messages=HELLO)
    with pytest.raises(fastroute.Error, match="has not begun; write `with"):
        next(unused)
    assert len(loop.attempts) == 2


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (events({"content": '{"name": "Ro'}, reason="length"), fastroute.ValidationError),
        (events({"content": '{"name": "Rome"}'}), fastroute.ValidationError),
        (events({"content": '{"name": "Ro'}, reason="content_filter"), fastroute.ContentFilterError),
    ],
)
def test_a_stream_that_does_not_fit_its_model_is_an_error(
    loop: Loopback, sent: Fault, kind: type[fastroute.Error]
) -> None:
    loop.provider().script(sent)
    stream = loop.client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Town)
    with stream, pytest.raises(kind):
        stream.until_done()


# ------------------------------------------------------------------------------------------- raw responses


def test_a_raw_response_has_the_headers(loop: Loopback, sdk: Any) -> None:
    loop.provider().script(Fault.headers({"X-Trace": "abc"}), repeat=True)
    theirs = sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    ours = loop.client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert ours.headers["x-trace"] == ours.headers["X-Trace"] == theirs.headers["x-trace"] == "abc"
    assert ours.status_code == theirs.status_code == 200
    assert ours.request_id == ours.headers["x-request-id"]
    assert ours.parse().text == theirs.parse().choices[0].message.content
    assert ours.retries_taken == 0


def test_a_raw_stream_has_the_headers_at_once(loop: Loopback) -> None:
    raw = loop.client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    with raw.parse() as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Which city?"


def test_a_raw_response_is_of_the_attempt_that_answered(start: Start) -> None:
    loop = start(2, cache={"enabled": True})
    loop.provider("a").script(Fault.status(503), repeat=True)
    loop.provider("b").script(Fault.headers({"x-trace": "b"}), repeat=True)
    for _ in "12":  # the cache has no headers, so it is not used
        raw = loop.client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
        assert raw.headers["x-trace"] == "b"
        assert raw.parse().route.provider == "b"
    assert raw.retries_taken <= 1


def test_a_raw_answer_can_be_parsed_as_a_model(loop: Loopback) -> None:
    raw = loop.client.chat.completions.with_raw_response
    choice = {"index": 0, "message": {"content": '{"name": "Rome", "people": 12}'}, "finish_reason": "stop"}
    loop.provider().script(Fault.status(200, json.dumps({"id": "1", "choices": [choice]})))
    reply = raw.parse(model=MODEL, messages=HELLO, response_format=Town)
    assert reply.parse().choices[0].message.parsed == Town(name="Rome", people=12)
    with pytest.raises(fastroute.BadRequestError, match="stream: is not supported by parse"):
        raw.parse(model=MODEL, messages=HELLO, stream=True)
