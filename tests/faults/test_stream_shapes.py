"""Streams in shapes that the event-stream grammar or the formats' documents do not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from loopback import Loopback
from spoken import ALL, OpenAI, Spoken, framed, streamed

import fastroute
from fastroute.integrations import wire_openai
from fastroute.testing import Fault

Start = Callable[..., Loopback]

SAID = OpenAI()
THROTTLED = {"error": {"message": "Rate limit reached", "type": "rate_limit_error", "code": "429"}}


def text_of(stream: fastroute.Stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def labelled(kind: str, *pieces: Any) -> Fault:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n"
    return Fault.raw(head.encode(), *pieces)


# ------------------------------------------------------------------------------------ labelled as JSON


@pytest.mark.parametrize("spoken", ALL, ids=lambda spoken: spoken.format)
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "text/plain"])
@pytest.mark.parametrize("before", [b"", b": hello\n\n", b"\n\r\n", b"\xef\xbb\xbf"], ids=repr)
def test_events_under_another_label_are_events(
    start: Start, spoken: Spoken, kind: str, before: bytes
) -> None:
    loop = start(1, format=spoken.format)
    body = before + framed(spoken.begin(), spoken.text("hello"), spoken.finish(), spoken.end())
    loop.provider().script(
        labelled(kind, body), labelled(kind, *(bytes([byte]) for byte in body[:9]), body[9:])
    )
    for _ in range(2):
        assert text_of(loop.stream()) == "hello"


def test_a_byte_order_mark_that_comes_alone_says_nothing(start: Start) -> None:
    loop = start(1)
    body = framed(SAID.begin(), SAID.text("hello"), SAID.finish(), SAID.end())
    loop.provider().script(labelled("application/json", b"\xef\xbb\xbf", 0.05, body))
    assert text_of(loop.stream()) == "hello"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (json.dumps(THROTTLED).encode(), fastroute.RateLimitError),
        (json.dumps(THROTTLED, indent=2).encode(), fastroute.RateLimitError),
        (b" \n" + json.dumps([THROTTLED]).encode(), fastroute.RateLimitError),
        (b'{"choices": [{"message": {"content": "whole"}}]}', fastroute.UpstreamProtocolError),
        (b'{"choices": [', fastroute.UpstreamTruncated),
        (b"", fastroute.EmptyResponse),
        (b"  \n ", fastroute.EmptyResponse),
        (b" " * 100_000, fastroute.EmptyResponse),
    ],
    ids=["error", "indented", "list", "answer", "cut", "nothing", "blank", "many-blanks"],
)
def test_one_json_document_in_place_of_a_stream_is_an_error(
    start: Start, body: bytes, error: type[fastroute.Error]
) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(labelled("application/json", body))
    with pytest.raises(error) as caught:
        loop.stream()
    assert type(caught.value) is error


# ---------------------------------------------------------------------------------------- bare lines

BARE = {
    "one line": json.dumps(THROTTLED).encode() + b"\n",
    "without a line end": json.dumps(THROTTLED).encode(),
    "indented": json.dumps(THROTTLED, indent=2).encode() + b"\n\n",
    "without indentation": json.dumps(THROTTLED, indent=0).encode() + b"\n",
    "under an event's name": b"event: error\n" + json.dumps(THROTTLED).encode() + b"\n\n",
    "before the end mark": json.dumps(THROTTLED).encode() + b"\ndata: [DONE]\n\n",
    "before a comment": json.dumps(THROTTLED, indent=2).encode() + b"\n: bye\n\n",
    "CRLF": json.dumps(THROTTLED).encode() + b"\r\n\r\n",
    "in a list": json.dumps([THROTTLED]).encode() + b"\n",
    "in an indented list": json.dumps([THROTTLED], indent=2).replace("[\n  {", "[{").encode() + b"\n",
}
ERRORS = {
    "openai": THROTTLED,
    "anthropic": {"type": "error", "error": {"type": "rate_limit_error", "message": "Rate limit reached"}},
    "gemini": {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Rate limit reached"}},
}


@pytest.mark.parametrize("spoken", ALL, ids=lambda spoken: spoken.format)
@pytest.mark.parametrize("listed", [False, True])
def test_an_error_of_each_format_as_a_bare_line(start: Start, spoken: Spoken, listed: bool) -> None:
    loop = start(1, format=spoken.format, policy={"max_attempts": 1})
    error: Any = ERRORS[spoken.format]
    loop.provider().script(streamed(json.dumps([error] if listed else error).encode() + b"\n"))
    with pytest.raises(fastroute.RateLimitError, match="Rate limit reached"):
        loop.stream()


@pytest.mark.parametrize("name", BARE)
def test_an_error_as_a_bare_line_keeps_its_class(start: Start, name: str) -> None:
    loop = start(1, policy={"max_attempts": 1})
    begun = framed(SAID.begin(), SAID.text("half"))
    loop.provider().script(streamed(BARE[name]), streamed(begun + BARE[name]))
    with pytest.raises(fastroute.RateLimitError, match="Rate limit reached"):
        loop.stream()
    stream = loop.stream()
    with pytest.raises(fastroute.StreamInterrupted, match="Rate limit reached") as caught:
        text_of(stream)
    assert caught.value.partial_text == "half"


def test_an_error_as_a_bare_line_is_not_waited_out(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(streamed(BARE["one line"], "hang"))
    with pytest.raises(fastroute.RateLimitError):
        loop.stream()


def test_chunks_as_bare_lines_are_chunks(start: Start) -> None:
    loop = start(1)
    lines = [data for _, data in [*SAID.begin(), *SAID.text("hello"), *SAID.finish()]]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    loop.provider().script(labelled("application/x-ndjson", body))
    assert text_of(loop.stream()) == "hello"


# ------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [1 << 20, 9 << 20])
def test_a_picture_of_megabytes_passes_in_one_event(start: Start, size: int) -> None:
    loop = start(1)
    url = "data:image/png;base64," + "A" * size
    picture = {"type": "image_url", "image_url": {"url": url}}
    body = framed(SAID.begin(), [SAID.chunk(images=[picture])], SAID.finish(), SAID.end())
    loop.provider().script(streamed(body), streamed(body))
    stream = loop.stream()
    list(stream)
    (found,) = stream.completion().choices[0].message.images
    assert found == picture
    written = b"".join(wire_openai.events(loop.stream()))
    assert url.encode() in written


def test_an_event_larger_than_an_answer_may_be_is_refused(start: Start) -> None:
    loop = start(1, fastroute={"max_response_bytes": 1 << 20}, policy={"max_attempts": 1})
    picture = {"type": "image_url", "image_url": {"url": "A" * (1 << 20)}}
    loop.provider().script(streamed(framed(SAID.begin(), [SAID.chunk(images=[picture])])))
    with pytest.raises(fastroute.UpstreamProtocolError, match="max_response_bytes"):
        loop.stream()


# ---------------------------------------------------------------------------------- usage and endings


@pytest.mark.parametrize("asked", [False, True])
def test_usage_inside_a_choice_is_charged_and_shown_once(start: Start, asked: bool) -> None:
    loop = start(1)
    counts = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    name, last = SAID.chunk("stop")
    last["choices"][0]["usage"] = counts
    loop.provider().script(streamed(framed(SAID.begin(), SAID.text("hello"), [(name, last)], SAID.end())))
    stream = loop.stream(**({"stream_options": {"include_usage": True}} if asked else {}))
    shown = [chunk.usage for chunk in stream if chunk.usage is not None]
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (1000, 500)
    assert stream.usage.source == "provider"
    assert shown == ([stream.usage] if asked else [])
    assert stream.route.cost_nano == 1000 * 1000 + 500 * 2000


def test_a_gemini_stream_that_breaks_in_its_second_round_is_not_whole(start: Start) -> None:
    loop = start(1, format="gemini")
    gemini = ALL[2]
    first = framed(gemini.begin(), gemini.text("It is "), gemini.finish())
    loop.provider().script(streamed(first, "reset"), streamed(first + framed(gemini.text("4")), "reset"))
    assert text_of(loop.stream()) == "It is "
    stream = loop.stream()
    with pytest.raises(fastroute.StreamInterrupted) as caught:
        text_of(stream)
    assert caught.value.partial_text == "It is 4"


def test_a_choice_without_a_message_is_a_filtered_one(start: Start) -> None:
    """Azure leaves the message out where its filter has taken all of it."""
    loop = start(1)
    taken = {
        "index": 0,
        "finish_reason": "content_filter",
        "content_filter_results": {"hate": {"filtered": True}},
    }
    kept = {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    shape = {"id": "c", "object": "chat.completion", "created": 1, "model": "up"}
    loop.provider().script(
        Fault.status(200, {**shape, "choices": [taken, kept]}),
        Fault.status(200, {**shape, "choices": [taken]}),
    )
    first, second = loop.ask(n=2).choices
    assert (first.message.content, first.finish_reason, second.message.content) == (
        None,
        "content_filter",
        "hello",
    )
    with pytest.raises(fastroute.ContentFilterError):
        loop.ask()
