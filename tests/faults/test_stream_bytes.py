"""Cases 27, 38 to 45 and 64: the bytes of a stream, however they are cut, spelt, compressed or endless."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial

import pytest
from loopback import MODEL, Loopback
from spoken import ALL, Spoken, framed, streamed

import fastroute
from fastroute import events, types
from fastroute.integrations import wire_openai
from fastroute.providers import Target, get, sse
from fastroute.testing import Fault, Provider, Repeat

Start = Callable[..., Loopback]

LONG = "the first words and many more of them"


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


def test_038_every_split_gives_the_same_chunks(spoken: Spoken) -> None:
    format, wanted = get(spoken.format), types.Request("m", [], {}, True)
    target = Target(endpoint="a/m", provider="a", model="m", upstream="up", base_url="http://127.0.0.1/v1")
    body = framed(
        spoken.begin(),
        spoken.text("naïve 😀 "),
        spoken.text("end\u2028"),
        spoken.finish(7, 3),
        spoken.end(),
        ascii_only=False,
    )

    def read(*pieces: bytes) -> tuple[list[object], types.Usage | None, str]:
        source, decoder = sse.Decoder(), format.stream(wanted, target)
        found = [event for piece in pieces for event in source.feed(piece)] + source.end()
        # Without their time: where the format tells none it is that of the reading.
        chunks: list[object] = [chunk.choices for event in found for chunk in decoder.feed(event)]
        decoder.end()
        return chunks, decoder.usage, decoder.text

    whole = read(body)
    assert whole[1:] == (types.Usage(7, 3), "naïve 😀 end\u2028")
    for place in range(1, len(body)):
        assert read(body[:place], body[place:]) == whole, place


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


def test_a_stream_that_is_labelled_as_json_is_read_as_it_comes(start: Start) -> None:
    loop = start(1, policy={"idle_timeout": 0.2})
    as_json = Fault.headers({"content-type": "application/json"})
    loop.provider().script(as_json | Fault.stream_stall(after=3))
    chunks: list[fastroute.Chunk] = []
    with pytest.raises(fastroute.StreamStalled):
        chunks.extend(loop.stream("one two three four five six"))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("one")


def test_041_fields_with_and_without_blanks_and_data_in_several_lines(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    body = framed(spoken.begin(), spoken.text("a")).replace(b"data: ", b"data:") + b"data\n\n"
    body += framed(spoken.text("b"), indent=1)
    body += framed(spoken.finish(), spoken.end()).replace(b"data: ", b"data:  ")
    loop.provider().script(streamed(body))
    assert text_of(loop.stream()) == "ab"


def test_043_strange_characters_split_nothing(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    strange = "a\u2028b\u0085c\x00d\u200b"
    body = framed(spoken.begin(), spoken.text(strange), spoken.finish(), spoken.end(), ascii_only=False)
    loop.provider().script(streamed(body), Fault.invalid_utf8(1))
    assert text_of(loop.stream()) == strange
    assert loop.of(events.StreamForgiven) == []
    assert "\ufffd" in text_of(loop.stream("x"))
    assert [(event.endpoint, event.kind) for event in loop.of(events.StreamForgiven)] == [
        (f"a/{MODEL}", "invalid_utf8")
    ]
    assert loop.endpoint()["streams_forgiven"] == {"missing_done": 0, "invalid_utf8": 1}


def test_044_halves_of_a_character(start: Start, spoken: Spoken) -> None:
    loop = start(1)
    halves = (spoken.text("\ud83d"), spoken.text("\ude00"))
    body = framed(spoken.begin(), *halves, spoken.finish(), spoken.end())
    loop.provider().script(streamed(body), streamed(body))
    stream = loop.stream()
    assert text_of(stream) == "\ud83d\ude00"
    whole = stream.completion()
    assert whole.to_dict()["choices"][0]["message"]["content"]
    # And others can be sent it, in one piece and in halves.
    assert b'"\\ud83d\\ude00"' in wire_openai.answer_bytes(whole)
    written = list(wire_openai.events(loop.stream()))
    assert [half in b"".join(written) for half in (b'"\\ud83d"', b'"\\ude00"')] == [True, True]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.long_line(8 << 20), id="one-line"),
        pytest.param(Fault.events(Repeat((b"data: " + b"x" * 1000 + b"\n") * 64, 128)), id="many-lines"),
    ],
)
def test_045_an_event_without_end_is_given_up(start: Start, fault: Fault) -> None:
    loop = start(2, fastroute={"max_response_bytes": 5 << 20})
    loop.provider("a").script(fault)
    stream = loop.stream(LONG)
    assert text_of(stream) == LONG
    assert stream.route.attempts[0].error == "UpstreamProtocolError"
    assert (loop.provider("a").received, loop.endpoint("a")["failed"]) == (1, 1)
    loop.provider("a").wait_until(lambda provider: provider.open_connections == 0)


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


@pytest.mark.parametrize("spoken", ALL[:1], ids=["openai"])
def test_027_a_compressed_stream_is_never_there_all_at_once(start: Start) -> None:
    """40 KB that are 40 MB, and come in one piece."""
    pack = zlib.compressobj(9, wbits=31)
    line = b": " + b"x" * ((1 << 20) - 4) + b"\n\n"
    body = b"".join([*(pack.compress(line) for _ in range(40)), pack.flush()])
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    loop = start(
        {"a": Provider(process=True)}, fastroute={"max_response_bytes": 1 << 20}, policy={"max_attempts": 1}
    )
    loop.ask()
    loop.provider().script(Fault.raw(head + body))
    tracemalloc.start()
    try:
        with pytest.raises(fastroute.UpstreamProtocolError, match="larger than 2097152 bytes"):
            loop.stream()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
