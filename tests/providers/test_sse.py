"""The event-stream decoder: the grammar, its independence of how the bytes were cut, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors
from fastroute.providers.sse import Decoder, ServerSentEvent


def decode(*pieces: bytes, **limits: int) -> list[ServerSentEvent]:
    decoder = Decoder(**limits)
    events: list[ServerSentEvent] = []
    for piece in pieces:
        events += decoder.feed(piece)
    return events + decoder.end()


def data_of(*pieces: bytes) -> list[str]:
    return [event.data for event in decode(*pieces)]


FIXTURES = {
    "openai": (
        b'data: {"a":1}\n\ndata: {"b":"\xf0\x9f\x98\x80"}\n\ndata: [DONE]\n\n',
        ['{"a":1}', '{"b":"\U0001f600"}', "[DONE]"],
    ),
    "crlf": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", ["1", "2"]),
    "cr": (b"data: 1\r\rdata: 2\r\r", ["1", "2"]),
    "mixed": (b"data: 1\r\n\ndata: 2\n\rdata: 3\r\r\n", ["1", "2", "3"]),
    "two lines, CRLF": (b"data: 1\r\ndata: 2\r\n\r\n", ["1\n2"]),
    "two lines, CR": (b"data: 1\rdata: 2\r\r", ["1\n2"]),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", ["1"]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", ["2"]),
    "later byte order mark": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\ndata: 3\n\n", ["1", "3"]),
    "blanks": (b"data:x\n\ndata: x\n\ndata:  x\n\ndata\n\n", ["x", "x", " x", ""]),
    "joined": (b"data: 1\ndata: 2\n\n", ["1\n2"]),
    "comments": (b": hello\n\ndata: 1\n: in between\n\n:\n\n", ["1"]),
    "pings": (b"event: ping\n\ndata: 1\n\nevent: ping\n\n", ["1"]),
    "no split at odd characters": (
        "data: a\u2028b\u0085c\x00d\x0be\n\n".encode(),
        ["a\u2028b\u0085c\x00d\x0be"],
    ),
    "not UTF-8": (b"data: a\xffb\xf0\x9f\n\ndata: 2\n\n", ["a\ufffdb\ufffd", "2"]),
    "unknown fields": (b"retry: 10\nfoo: bar\ndatax: 1\n data: 2\ndata: 3\n\n", ["3"]),
    "no blank line at the end": (b"data: 1\n\ndata: [DONE]\n", ["1", "[DONE]"]),
    "no line end at the end": (b"data: 1\n\ndata: [DONE]", ["1", "[DONE]"]),
    "CR at the end": (b"data: 1\r", ["1"]),
    "bare JSON": (b'data: 1\n\n{"a":1}\n{"b":2}\ndata: 2\n\n', ["1", '{"a":1}', '{"b":2}', "2"]),
    "bare JSON in lines": (b'{\n "a":\r\n 1}\ndata: 2\n\n', ['{\n "a":\n 1}', "2"]),
    "bare JSON in a list": (b'[{\n "a": 1\n}]\n\n', ['[{\n "a": 1\n}]']),
    "bare JSON before a comment": (b'{\n"a":1}\n: x\n\ndata: 2\n\n', ['{\n"a":1}', "2"]),
    "bare JSON at the end": (b'data: 1\n{"a":1}', ["1", '{"a":1}']),
    "nothing": (b"", []),
    "only a mark": (b"\xef\xbb\xbf", []),
    "half a mark": (b"\xef\xbb", []),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_every_split_point_gives_the_same_events(name: str) -> None:
    stream, expected = FIXTURES[name]
    assert data_of(stream) == expected
    whole = decode(stream)
    for cut in range(len(stream) + 1):
        assert decode(stream[:cut], stream[cut:]) == whole, cut
    assert decode(*[stream[place : place + 1] for place in range(len(stream))]) == whole


_LINES = st.sampled_from(
    [
        b"data: x",
        b"data:",
        b"data",
        b":",
        b": c",
        b"event: e",
        b"id: 7",
        b"id",
        b"\xef\xbb\xbf",
        b"\xff",
        b"a:b",
        b"{",
        b"}",
        b'{"a": 1}',
        b"[{",
        b"",
    ]
)


@given(st.lists(st.tuples(_LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=12), st.data())
def test_any_stream_cut_anywhere_gives_the_same_events(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)])]
    assert decode(*pieces) == decode(stream)


@given(st.lists(st.text().filter(lambda text: "\n" not in text and "\r" not in text), min_size=1))
def test_what_is_written_by_the_grammar_is_read_back(texts: list[str]) -> None:
    stream = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    assert data_of(stream) == texts


@given(st.binary(max_size=200))
def test_no_bytes_raise(stream: bytes) -> None:
    decode(stream)


def test_types_and_ids() -> None:
    stream = (
        b"event: start\nid: 1\ndata: a\n\ndata: b\n\nid: \x00\ndata: c\n\nid\ndata: d\n\nevent:\ndata: e\n\n"
    )
    assert decode(stream) == [
        ServerSentEvent("start", "a", "1"),
        ServerSentEvent("message", "b", "1"),
        ServerSentEvent("message", "c", "1"),
        ServerSentEvent("message", "d", ""),
        ServerSentEvent("message", "e", ""),
    ]


def test_a_type_does_not_outlive_its_event() -> None:
    assert decode(b"event: ping\n\ndata: 1\n\n") == [ServerSentEvent("message", "1", "")]


def test_signs_of_life_yield_nothing() -> None:
    assert Decoder().feed(b": keep-alive\n\n: keep-alive\n\nevent: ping\n\n") == []


def test_replaced_bytes_raise_a_flag() -> None:
    decoder = Decoder()
    decoder.feed("data: \U0001f600\n\n".encode())
    assert not decoder.replaced
    assert decoder.feed(b"data: \x80\n\n")[0].data == "\ufffd"
    assert decoder.replaced


def test_a_character_cut_in_four_is_joined() -> None:
    smile = "\U0001f600".encode()
    decoder = Decoder()
    pieces = [b"data: ", *[smile[place : place + 1] for place in range(4)], b"\n\n"]
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert events == [ServerSentEvent("message", "\U0001f600", "")]
    assert not decoder.replaced


# --------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("piece_size", [1, 7, 1000])
def test_a_line_without_end_is_refused(piece_size: int) -> None:
    with pytest.raises(errors.UpstreamProtocolError, match=r"a line .* limit of 100 bytes"):
        decode(*[b"x" * piece_size] * 1000, max_line=100)


def test_a_line_at_the_limit_passes_and_one_more_byte_does_not() -> None:
    assert len(decode(b"data: " + b"x" * 94 + b"\n\n", max_line=100)) == 1
    with pytest.raises(errors.UpstreamProtocolError):
        decode(b"data: " + b"x" * 95 + b"\n\n", max_line=100)


def test_an_event_of_too_many_lines_is_refused() -> None:
    with pytest.raises(errors.UpstreamProtocolError, match=r"an event .* limit of 1000 bytes"):
        decode(*[b"data\n"] * 1000, max_event=1000)


def test_many_events_are_not_one_event() -> None:
    assert len(decode(b"data: 123456789\n\n" * 500, max_event=100)) == 500


def test_events_before_the_fault_are_not_lost() -> None:
    decoder = Decoder(max_line=50)
    assert [event.data for event in decoder.feed(b"data: 1\n\n" + b"x" * 60)] == ["1"]
    with pytest.raises(errors.UpstreamProtocolError):
        decoder.feed(b"data: 2\n\n")
    with pytest.raises(errors.UpstreamProtocolError):
        decoder.end()


def test_a_long_line_in_many_pieces_is_not_scanned_again() -> None:
    class Counted(bytes):
        scanned = 0

        def rfind(self, *arguments: Any) -> int:
            Counted.scanned += len(self)
            return super().rfind(*arguments)

    decoder = Decoder()
    decoder.feed(b"data: begins")
    for _ in range(200):
        decoder.feed(Counted(b"x" * 1000))
    assert Counted.scanned == 200_000
    assert len(decoder.feed(b"\n\n")[0].data) == 200_006


@pytest.mark.parametrize("limits", [{"max_line": 0}, {"max_event": -1}])
def test_limits_must_be_sizes(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Decoder(**limits)
