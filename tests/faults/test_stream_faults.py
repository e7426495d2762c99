"""Cases 38 to 59: what can happen to a streamed answer, in every wire format.

The numbers are the catalogue's. What is a format's alone is in a file of its own.
"""

from __future__ import annotations

import gc
import gzip
import json
import threading
import zlib
from collections.abc import Callable
from functools import partial

import pytest
from loopback import MODEL, Loopback, within
from spoken import ALL, BY_FORMAT, OpenAI, Spoken, framed, streamed

import fastroute
from fastroute import events
from fastroute.testing import Answer, Fault, Provider, Received, Repeat, StreamStyle

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"
LIMITS = {"tpm": 1, "token_burst": 100_000}
PATIENT = {"failures": 255, "min_calls": 10_000}


def text_of(stream: fastroute.Stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.fixture(params=ALL, ids=lambda spoken: spoken.format)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    made: Spoken = request.param
    return made


@pytest.fixture
def start(start: Start, spoken: Spoken) -> Start:
    """As everywhere, with providers of the format that the test runs with."""
    return partial(start, format=spoken.format)


def only(format: str) -> pytest.MarkDecorator:
    """For a test of what one format alone has."""
    return pytest.mark.parametrize("spoken", [BY_FORMAT[format]], ids=[format])


# ---------------------------------------------------------------------------------------- the bytes


def test_038_the_split_of_the_bytes_does_not_matter(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(
        spoken.begin(),
        spoken.text("naïve 😀 "),
        spoken.text("end\u2028"),
        spoken.finish(7, 3),
        spoken.end(),
        ascii_only=False,
    )
    for place in range(1, len(body), 17):
        loop.provider().script(streamed(body[:place], 0.0005, body[place:]))
        stream = loop.stream()
        assert text_of(stream) == "naïve 😀 end\u2028"
        assert stream.usage is not None
        assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (7, 3)
    loop.provider().script(streamed(*[bytes([byte]) for byte in body]))
    assert text_of(loop.stream()) == "naïve 😀 end\u2028"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_039_any_line_ending(start: Start, spoken: Spoken, end: str) -> None:
    loop = start(1)
    parts = (spoken.begin(), spoken.text("a"), spoken.text("b"), spoken.finish(), spoken.end())
    loop.provider().script(streamed(framed(*parts, end=end)))
    assert text_of(loop.stream()) == "ab"


def test_040_a_byte_order_mark(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish(), spoken.end())
    loop.provider().script(Fault.bom(), streamed(b"\xef", b"\xbb", b"\xbf" + body))
    assert text_of(loop.stream(LONG)) == LONG
    assert text_of(loop.stream()) == "x"


def test_041_fields_with_and_without_blanks_and_data_in_several_lines(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(spoken.begin(), spoken.text("a")).replace(b"data: ", b"data:") + b"data\n\n"
    body += framed(spoken.text("b"), indent=1)
    body += framed(spoken.finish(), spoken.end()).replace(b"data: ", b"data:  ")
    loop.provider().script(streamed(body))
    assert text_of(loop.stream()) == "ab"


def test_042_pings_alone_are_no_progress(start: Start) -> None:
    loop = start(2, policy={"ping_timeout": 0.2})
    loop.provider("a").script(Fault.pings(0.02), Fault.pings(0.02, after=3), Fault.pings(0.02, 5))
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["APITimeoutError", None]
    with within(0.2), pytest.raises(fastroute.StreamStalled) as caught:
        text_of(loop.stream(LONG))
    assert caught.value.partial_text == LONG[:8]
    assert text_of(loop.stream(LONG)) == LONG  # a few pings harm nothing


def test_043_strange_characters_split_nothing(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    strange = "a\u2028b\u0085c\x00d\u200b"
    body = framed(spoken.begin(), spoken.text(strange), spoken.finish(), spoken.end(), ascii_only=False)
    loop.provider().script(streamed(body), Fault.invalid_utf8(1))
    assert text_of(loop.stream()) == strange
    assert "\ufffd" in text_of(loop.stream("x"))


def test_044_halves_of_a_character(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    halves = (spoken.text("\ud83d"), spoken.text("\ude00"))
    loop.provider().script(streamed(framed(spoken.begin(), *halves, spoken.finish(), spoken.end())))
    stream = loop.stream()
    assert text_of(stream) == "\ud83d\ude00"
    assert stream.completion().to_dict()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.long_line(8 << 20), id="one-line"),
        pytest.param(Fault.events(Repeat((b"data: " + b"x" * 1000 + b"\n") * 64, 128)), id="many-lines"),
    ],
)
def test_045_an_event_without_end_is_given_up(start: Start, fault: Fault) -> None:
    loop = start(2)
    loop.provider("a").script(fault)
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.route.attempts[0].error == "UpstreamProtocolError"
    loop.provider("a").wait_until(lambda provider: provider.open_connections == 0)


# ------------------------------------------------------------------------- before the first content: silence

BEFORE = [
    pytest.param(Fault.status(503), "InternalServerError", id="023-status"),
    pytest.param(Fault.malformed_event(0), "UpstreamProtocolError", id="046-first-event-broken"),
    pytest.param(Fault.malformed_event(1), "UpstreamProtocolError", id="046-broken-after-the-role"),
    pytest.param(Fault.stream_error(0), "InternalServerError", id="047-error-first"),
    pytest.param(Fault.stream_error(1), "InternalServerError", id="047-error-after-the-role"),
    pytest.param(Fault.stream_error(0, "rate_limit_exceeded"), "RateLimitError", id="047-throttled"),
    pytest.param(Fault.error_in_200("overloaded"), "InternalServerError", id="017-error-in-200"),
    pytest.param(Fault.html(), "UpstreamProtocolError", id="016-html"),
    pytest.param(Fault.stream_cut(0), "UpstreamProtocolError", id="050-nothing"),
    pytest.param(Fault.stream_cut(1), "UpstreamTruncated", id="050-only-the-role"),
    pytest.param(Fault.stream_cut(1, "reset"), "APIConnectionError", id="050-reset-after-the-role"),
    pytest.param(Fault.cut_headers(27), "UpstreamProtocolError", id="006-cut-in-headers"),
    pytest.param(Fault.stream_stall(1), "APITimeoutError", id="058-stall-after-the-role"),
    pytest.param(Fault.black_hole(), "APITimeoutError", id="004-black-hole"),
    pytest.param(Fault.drip(1, 0.05, "headers"), "APITimeoutError", id="005-headers-drip"),
    pytest.param(Fault.stall("headers"), "APITimeoutError", id="004-silent-after-the-headers"),
    pytest.param(Fault.reset("headers"), "APIConnectionError", id="009-reset-after-the-headers"),
]


@pytest.mark.parametrize(("fault", "error"), BEFORE)
def test_the_caller_sees_only_the_winner(start: Start, fault: Fault, error: str) -> None:
    loop = start(2, providers={"a": {"timeout": 0.4}}, policy={"idle_timeout": 0.3})
    loop.provider("a").script(fault)
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.route.endpoint == f"b/{MODEL}"
    failed, answered = stream.route.attempts
    assert issubclass(getattr(fastroute, str(failed.error)), getattr(fastroute, error))
    assert answered.outcome == "ok"
    assert answered.ttft is not None


# ---------------------------------------------------------------------------- after it: an error, no failover

AFTER = [
    pytest.param(Fault.malformed_event(3), "StreamTruncated", id="046-half-an-event"),
    pytest.param(Fault.insert_event("{nonsense}", 3), "StreamInterrupted", id="046-broken-event"),
    pytest.param(Fault.stream_error(3), "StreamInterrupted", id="048-error-event"),
    pytest.param(Fault.stream_cut(3), "StreamTruncated", id="050-orderly-end"),
    pytest.param(Fault.stream_cut(3, "close"), "StreamTruncated", id="050-closed"),
    pytest.param(Fault.stream_cut(3, "reset"), "StreamInterrupted", id="050-reset"),
    pytest.param(Fault.stream_stall(3), "StreamStalled", id="058-silence"),
]


@pytest.mark.parametrize(("fault", "error"), AFTER)
def test_what_was_handed_out_is_not_taken_back(start: Start, fault: Fault, error: str) -> None:
    loop = start(2, providers={"all": LIMITS}, policy={"idle_timeout": 0.25})
    loop.provider("a").script(fault)
    before = loop.endpoint("a")["available_tokens"]
    stream = loop.stream(LONG, max_tokens=1000)
    got: list[str] = []
    with within(0.3), pytest.raises(fastroute.StreamInterrupted) as caught:  # noqa: PT012
        for piece in stream:
            got += [choice.delta.content or "" for choice in piece.choices]
    assert type(caught.value).__name__ == error
    assert "".join(got) == LONG[:8]
    assert caught.value.partial_text == LONG[:8]
    assert caught.value.usage is not None
    assert caught.value.usage.source == "estimated"
    assert caught.value.usage.completion_tokens > 0
    assert loop.provider("b").received == 0
    (attempt,) = caught.value.attempts
    assert (attempt.outcome, attempt.maybe_billed, attempt.usage_source) == ("failed", True, "estimated")
    assert attempt.cost_nano
    assert before - loop.endpoint("a")["available_tokens"] >= 1000
    assert loop.endpoint("a")["failed"] == 1
    with pytest.raises(StopIteration):
        next(stream)
    assert [event.error for event in loop.of(events.CallFinished)] == [error]


def test_048_the_deadline_of_the_call_is_its_own_error(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3))
    with within(0.4), pytest.raises(fastroute.DeadlineExceeded):
        text_of(loop.stream(LONG, timeout=0.4))


def test_048_truncated_and_stalled_streams_open_the_breaker(start: Start) -> None:
    loop = start(1, policy={"idle_timeout": 0.1, "breaker": {"failures": 3}})
    loop.provider().script(Fault.stream_cut(3), Fault.stream_cut(3, "reset"), Fault.stream_stall(3))
    for _ in range(3):
        with pytest.raises(fastroute.StreamInterrupted):
            text_of(loop.stream(LONG))
    assert loop.endpoint()["state"] == "open"


# --------------------------------------------------------------------------------------------- the end


@only("openai")
def test_037_a_stream_without_a_choice(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.events(b"data: [DONE]\n\n"))
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert [attempt.error for attempt in stream.route.attempts] == ["EmptyResponse", None]


@only("openai")
def test_049_a_missing_done_is_forgiven(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.no_done())
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.usage is not None
    assert stream.usage.source == "provider"
    assert stream.completion().choices[0].finish_reason == "stop"


def test_050_the_end_mark_alone_makes_no_answer_whole(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("some"), spoken.end())))
    with pytest.raises(fastroute.StreamTruncated):
        text_of(loop.stream(LONG))


def test_051_what_comes_after_done_is_ignored_and_reaches_nobody(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.after_done())
    assert text_of(loop.stream(LONG)) == LONG
    assert loop.ask("next").text == "next"


def test_052_an_end_mark_without_its_blank_line(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish(), spoken.end())
    loop.provider().script(streamed(body[:-1]), streamed(body[:-2]))
    assert text_of(loop.stream()) == "x"
    assert text_of(loop.stream()) == "x"


@only("openai")
@pytest.mark.parametrize("left", range(len(b"data: [DONE]")))
def test_052_a_cut_in_the_end_mark_after_the_last_word_changes_nothing(
    start: Start, spoken: Spoken, left: int
) -> None:
    loop = start(1)
    mark = framed(spoken.end())
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish())
    loop.provider().script(streamed(body + mark[:left]))
    assert text_of(loop.stream()) == "x"
    loop.provider().script(streamed(framed(spoken.begin(), spoken.text("x")) + mark[:left]))
    with pytest.raises(fastroute.StreamTruncated):
        text_of(loop.stream())


@pytest.mark.parametrize("end", ["reset", "hang"])
def test_049_how_the_connection_ends_after_the_last_word_changes_nothing(
    start: Start, spoken: Spoken, end: str
) -> None:
    loop = start(1, policy={"idle_timeout": 0.2})
    body = framed(spoken.begin(), spoken.text("x"), spoken.finish())
    if spoken.format == "anthropic":
        body += framed(spoken.end())  # which belongs to the last word there
    loop.provider().script(streamed(body, end))
    stream = loop.stream()
    assert text_of(stream) == "x"
    assert loop.endpoint()["failed"] == 0
    assert [attempt.outcome for attempt in loop.attempts] == ["ok"]


def test_053_usage_is_the_last_and_shown_only_to_who_asked(start: Start, spoken: Spoken) -> None:
    style = StreamStyle(usage_in_every_chunk=True)
    plain = Provider(answer=LONG, format=spoken.format)
    loop = start({"a": plain, "b": Provider(answer=LONG, format=spoken.format, style=style)})
    for name in ("a", "b"):
        if name == "b":
            loop.provider("a").kill()
        unasked = loop.stream("question")
        chunks = list(unasked)
        assert all(piece.usage is None and piece.choices for piece in chunks)
        assert all("usage" not in piece.to_dict() for piece in chunks)
        assert unasked.usage is not None
        assert unasked.usage.source == "provider"
        assert unasked.usage.completion_tokens == -(-len(LONG) // 4)
        asked = loop.stream("question", stream_options={"include_usage": True})
        *_, last = list(asked)
        assert last.usage == asked.usage == unasked.usage


def test_053_a_settled_stream_costs_what_it_used(start: Start) -> None:
    loop = start(1, providers={"a": LIMITS})
    before = loop.endpoint()["available_tokens"]
    stream = loop.stream(LONG, max_tokens=5000)
    assert before - loop.endpoint()["available_tokens"] > 5000  # reserved while it runs
    text_of(stream)
    assert stream.usage is not None
    assert before - loop.endpoint()["available_tokens"] == stream.usage.total_tokens
    (row,) = loop.attempts
    assert (row.prompt_tokens, row.completion_tokens) == (
        stream.usage.prompt_tokens,
        stream.usage.completion_tokens,
    )
    assert row.stream
    assert row.ttft is not None
    assert stream.route.cost_nano == row.cost_nano == row.prompt_tokens * 1000 + row.completion_tokens * 2000


def refuse_stream_options(request: Received) -> Fault | None:
    if "stream_options" not in request.json:
        return None
    error = {
        "message": "Unknown parameter: 'stream_options'.",
        "type": "invalid_request_error",
        "param": "stream_options",
    }
    return Fault.status(400, {"error": error})


@only("openai")
@pytest.mark.parametrize("attempts", [1, 3])
def test_054_a_provider_that_knows_no_stream_options(start: Start, attempts: int) -> None:
    loop = start(1, policy={"max_attempts": attempts})
    loop.provider().script(refuse_stream_options)
    if attempts == 1:
        with pytest.raises(fastroute.BadRequestError):
            loop.stream(LONG)  # but it is remembered
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.usage is not None
    assert stream.usage.source == "estimated"
    assert stream.usage.completion_tokens > 0
    assert text_of(loop.stream("again")) == "again"
    assert ["stream_options" in request.json for request in loop.provider().requests] == [True, False, False]
    assert loop.endpoint()["failed"] == 0


@only("openai")
def test_054_many_threads_find_it_out_at_once(start: Start) -> None:
    loop = start(1)
    loop.provider().script(refuse_stream_options)
    loop.provider().latency = 0.05  # all are under way before the first is refused
    found: list[str] = []
    workers = [threading.Thread(target=lambda: found.append(text_of(loop.stream(LONG)))) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [LONG] * 6


def test_057_tool_calls_are_put_together_by_index(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(
        spoken.begin(),
        spoken.call(0, "call_a", "first"),
        spoken.call(1, "call_b", "second"),
        spoken.arguments(1, '{"b": "'),
        spoken.arguments(0, '{"a": "\\'),
        spoken.arguments(1, 'y"}'),
        spoken.arguments(0, 'n"}'),
        spoken.finish_calls(),
        spoken.end(),
    )
    loop.provider().script(streamed(body))
    stream = loop.stream()
    list(stream)
    assert stream.completion().choices[0].finish_reason == "tool_calls"
    calls = stream.completion().choices[0].message.tool_calls
    assert calls is not None
    assert [(found.id, found.function.name, json.loads(found.function.arguments)) for found in calls] == [
        ("call_a", "first", {"a": "\n"}),
        ("call_b", "second", {"b": "y"}),
    ]


@only("openai")
def test_057_two_calls_on_one_index_are_a_broken_stream(start: Start) -> None:
    loop = start(1)
    spoken = OpenAI()
    first = framed(spoken.call(0, "call_a", "f"))
    second = framed(spoken.call(0, "call_b", "f"), spoken.finish_calls())
    loop.provider().script(streamed(first, "hang"), streamed(first, second), streamed(first + second))
    with loop.stream() as stream:
        assert next(stream).choices[0].delta.tool_calls
    for _ in range(2):  # what came before is handed out, however the network has cut the stream
        stream = loop.stream()
        assert next(stream).choices[0].delta.tool_calls
        with pytest.raises(fastroute.StreamInterrupted, match="share the index 0"):
            list(stream)


# ------------------------------------------------------------------------------------- who leaves early


def leave_by_close(stream: fastroute.Stream) -> None:
    next(stream)
    stream.close()


def leave_by_with(stream: fastroute.Stream) -> None:
    with stream:
        next(stream)


def leave_by_raising(stream: fastroute.Stream) -> None:
    with pytest.raises(KeyError), stream:  # noqa: PT012
        for _ in stream:
            raise KeyError


def leave_by_dropping(stream: fastroute.Stream) -> None:
    next(stream)


def leave_in_another_thread(stream: fastroute.Stream) -> None:
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "leave",
    [leave_by_close, leave_by_with, leave_by_raising, leave_by_dropping, leave_in_another_thread],
    ids=lambda leave: leave.__name__,
)
def test_059_who_leaves_early_gives_everything_back(
    start: Start, leave: Callable[[fastroute.Stream], None]
) -> None:
    loop = start(1, providers={"a": LIMITS})
    loop.provider().script(Fault.stream_stall(3))
    before = loop.endpoint()["available_tokens"]
    stream = loop.stream(LONG, max_tokens=1000)
    assert loop.endpoint()["in_flight"] == 1
    with within(1.0):
        leave(stream)
        del stream
        gc.collect()
        loop.provider().wait_until(lambda provider: provider.abandoned == 1)
    assert loop.endpoint()["in_flight"] == 0
    (attempt,) = loop.attempts
    assert (attempt.outcome, attempt.error, attempt.usage_source) == ("client_cancelled", None, "estimated")
    assert attempt.cost_nano
    assert before - loop.endpoint()["available_tokens"] >= 1000  # the provider may charge for all of it
    assert (loop.endpoint()["failed"], loop.endpoint()["succeeded"]) == (0, 0)
    assert [event.error for event in loop.of(events.CallFinished)] == ["client_cancelled"]


def test_059_a_close_from_another_thread_wakes_the_reader(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3))
    stream = loop.stream(LONG)
    reading = threading.Event()

    def close() -> None:
        reading.wait()
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    with within(1.0), pytest.raises(fastroute.StreamInterrupted):  # noqa: PT012
        for piece in stream:
            if piece.choices[0].delta.content == LONG[4:8]:
                reading.set()
    closer.join()
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]


def test_059_a_closed_stream_gives_nothing_more(start: Start) -> None:
    loop = start(1)
    stream = loop.stream(LONG)
    next(stream)
    stream.close()
    assert list(stream) == []
    stream.close()
    assert len(loop.attempts) == 1


def test_064_a_stream_compressed_against_our_word_is_still_read_as_it_comes(
    start: Start, spoken: Spoken
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n\r\n"
    begun = framed(spoken.begin(), spoken.text("said"))
    rest = framed(spoken.finish(), spoken.end())
    pack = zlib.compressobj(wbits=31)
    flushed = pack.compress(begun) + pack.flush(zlib.Z_SYNC_FLUSH)
    loop = start(1)
    loop.provider().script(
        Fault.raw(head, flushed, then="hang"),
        Fault.raw(head, gzip.compress(begun + rest)),
        Fault.raw(head, flushed),
    )
    with loop.stream() as stream:
        assert stream.text == "said"  # although more is to come, or never will
    assert loop.provider().requests[0].headers["accept-encoding"] == "identity"
    assert text_of(loop.stream()) == "said"
    with pytest.raises(fastroute.StreamInterrupted):
        text_of(loop.stream())


def test_a_finished_stream_leaves_its_connection_for_the_next(start: Start, spoken: Spoken) -> None:
    loop = start({"a": Provider(answer=Answer(content=LONG), format=spoken.format)})
    for _ in range(5):
        assert text_of(loop.stream()) == LONG
    assert loop.provider().connections == 1
