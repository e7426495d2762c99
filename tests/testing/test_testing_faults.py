"""The local provider's faults, each seen by plain sockets, http.client or requests."""

from __future__ import annotations

import gzip
import http.client
import json
import pathlib
import re
import socket
import struct
import time
import zlib
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_http import (
    HELLO,
    STREAM,
    answer,
    ask,
    connect,
    events,
    exchange,
    read_all,
    request_bytes,
    stream,
    text_of,
)

from fastroute.testing import ERRORS, FRAMINGS, Fault, Provider, Repeat
from fastroute.testing.wire import take

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs" / "testing.md"


# -------------------------------------------------------------------------------------- faults: whole answers


@pytest.mark.parametrize("code", [204, 299, 400, 401, 403, 404, 409, 413, 429, 500, 503, 529, 999])
def test_any_status(provider: Provider, code: int) -> None:
    provider.script(Fault.status(code, headers={"x-should-retry": "false"}))
    status, headers, body = ask(provider)
    assert status == code
    assert headers["x-should-retry"] == "false"
    assert "x-request-id" in headers
    if code == 204:
        assert body == b""
    else:
        assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "expected"), [(b"\xff", b"\xff"), ("text", b"text"), ({"a": 1}, b'{"a":1}'), (b"", b"")]
)
def test_a_status_with_a_body_of_ones_own(provider: Provider, body: Any, expected: bytes) -> None:
    provider.script(Fault.status(500, body))
    assert ask(provider)[2] == expected


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_well_known_errors(provider: Provider, code: str) -> None:
    provider.script(Fault.error(code), Fault.error_in_200(code), Fault.stream_error(1, code))
    status, _, body = ask(provider)
    assert status == ERRORS[code][0]
    assert json.loads(body)["error"]["code"] == code
    assert json.loads(body)["error"]["type"] == ERRORS[code][1]
    status, _, body = ask(provider)
    assert (status, json.loads(body)["error"]["code"]) == (200, code)
    chunks = stream(provider)
    assert [set(chunk) & {"choices", "error"} for chunk in chunks] == [{"choices"}, {"error"}]
    assert chunks[1]["error"]["code"] == code


def test_redirect_and_html(provider: Provider) -> None:
    provider.script(Fault.redirect(307, "http://127.0.0.1:1/elsewhere"), Fault.html())
    status, headers, _ = ask(provider)
    assert (status, headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")
    status, headers, body = ask(provider)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")


def test_a_huge_body_is_made_while_it_is_sent(provider: Provider) -> None:
    provider.script(Fault.huge_body(1 << 40), Fault.huge_body(200_001))
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        head = sock.recv(300)
        assert head.startswith(b"HTTP/1.1 500")
        assert b"content-length: 1099511627776\r\n" in head
    assert len(ask(provider)[2]) == 200_001


def test_headers_many_long_and_other(provider: Provider) -> None:
    provider.script(
        Fault.headers({"Content-Type": "text/plain"}), Fault.many_headers(150), Fault.huge_header(70_000)
    )
    assert ask(provider)[1]["content-type"] == "text/plain"
    assert exchange(provider)[0].count(b"\r\nx-filler-") == 150
    with pytest.raises(http.client.LineTooLong):
        ask(provider)


def test_encodings(provider: Provider) -> None:
    provider.script(Fault.gzip_bomb(5_000_000), Fault.bad_gzip(), Fault.encodings(3))
    _, headers, body = ask(provider)
    assert headers["content-encoding"] == "gzip"
    assert len(body) < 10_000
    assert gzip.decompress(body) == b" " * (4 << 20)
    body = ask(provider)[2]
    with pytest.raises(zlib.error):
        zlib.decompress(body, 31)
    _, headers, body = ask(provider)
    assert headers["content-encoding"] == "gzip, gzip, gzip"
    for _ in range(3):
        body = gzip.decompress(body)
    assert json.loads(body)["object"] == "chat.completion"


@pytest.mark.parametrize("value", [None, {"prompt_tokens": -5}, "x", b"1e999", []])
def test_usage_of_any_value(provider: Provider, value: Any) -> None:
    provider.script(Fault.usage(value), Fault.usage(value))
    expected = json.loads(value) if isinstance(value, bytes) else value
    assert answer(provider)["usage"] == expected
    chunks = stream(provider, stream_options={"include_usage": True})
    assert chunks[-2]["usage"] == expected
    assert chunks[-2]["choices"] == []


# ------------------------------------------------------------------------- faults: time, connections, framing


def test_a_black_hole_never_answers(provider: Provider) -> None:
    provider.script(Fault.black_hole())
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        provider.wait_until(lambda p: p.in_flight == 1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize("after", ["connect", "request"])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_connections_ended_before_any_answer(provider: Provider, how: str, after: str) -> None:
    fault: Fault = getattr(Fault, how)(after)
    provider.script(fault)
    try:
        with connect(provider) as sock:
            if after == "request":
                sock.sendall(request_bytes())
            assert read_all(sock) == (b"", how)
    except ConnectionResetError:
        # The reset may be there before connect() has looked whether it succeeded.
        assert (how, after) == ("reset", "connect")
    assert ask(provider)[0] == 200


@pytest.mark.parametrize("after", [1, 9, 40, "headers"])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_connections_ended_after_some_bytes(provider: Provider, how: str, after: int | str) -> None:
    fault: Fault = getattr(Fault, how)(after)
    provider.script(fault)
    data, ended = exchange(provider)
    assert ended == how
    assert len(data) == after if isinstance(after, int) else data.endswith(b"\r\n\r\n")


def test_offsets_may_be_counted_in_the_body(provider: Provider) -> None:
    provider.script(Fault.close(5, part="body"))
    head, _, body = exchange(provider)[0].partition(b"\r\n\r\n")
    assert body == b'{"id"'
    assert b"content-length: 4" in head


def test_eof_inside_the_header_block(provider: Provider) -> None:
    provider.script(Fault.cut_headers(27))
    assert exchange(provider) == (b"HTTP/1.1 200 OK\r\nx-request-", "close")


def test_a_stall_may_end_or_not(provider: Provider) -> None:
    provider.script(Fault.stall(10, seconds=0.01), Fault.stall("headers"))
    assert json.loads(exchange(provider)[0].partition(b"\r\n\r\n")[2])["object"] == "chat.completion"
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += sock.recv(1000)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize("part", ["headers", "body", "all"])
@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["plain", "stream"])
def test_a_drip_changes_no_byte(provider: Provider, part: Any, body: Any) -> None:
    provider.script(Fault.drip(100, 0.0, part))
    data, _ = exchange(provider, body)
    plain, _ = exchange(provider, body)
    assert len(data) == len(plain)
    assert data.split(b"\r\n")[0] == plain.split(b"\r\n")[0]


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_drip_lasts_as_long_as_its_part(provider: Provider, part: Any) -> None:
    provider.script(
        Fault.status(500, b"0123456789", {"x-a": "b"}) | Fault.drip(1 if part == "body" else 20, 0.001, part)
    )
    start = time.monotonic()
    data, _ = exchange(provider)
    head, _, body = data.partition(b"\r\n\r\n")
    portions = 10 if part == "body" else (len(head) + 4) // 20
    assert body == b"0123456789"
    assert time.monotonic() - start >= portions * 0.001


def test_framings_that_lie(provider: Provider) -> None:
    def reply(fault: Fault, body: Any = HELLO) -> tuple[bytes, bytes]:
        provider.script(fault)
        data, how = exchange(provider, body, extra="")
        assert how == "close"
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, rest

    head, body = reply(Fault.truncated(97))
    assert int(re.search(rb"content-length: (\d+)", head)[1]) == len(body) + 97  # type: ignore[index]
    head, body = reply(Fault.duplicate_length())
    assert len(set(re.findall(rb"content-length: (\d+)", head))) == 2
    head, body = reply(Fault.negative_length())
    assert b"content-length: -1" in head
    json.loads(body)
    head, body = reply(Fault.http10())
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"content-length" not in head
    json.loads(body)
    head, body = reply(Fault.cut_unframed(20))
    assert len(body) == 20
    assert b"content-length" not in head
    assert b"chunked" not in head
    head, body = reply(Fault.cut_chunk(2), STREAM)
    assert b"transfer-encoding: chunked" in head
    assert body.count(b"data: ") == 3
    assert not body.endswith(b"0\r\n\r\n")
    provider.script(Fault.cut_chunk())
    with pytest.raises(http.client.IncompleteRead):
        ask(provider)


def test_length_beside_chunks_keeps_the_connection(provider: Provider) -> None:
    provider.script(Fault.length_and_chunked())
    data, _ = exchange(provider)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert b"transfer-encoding: chunked" in head
    assert body.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_every_framing_can_be_named(provider: Provider, framing: str) -> None:
    for body in (HELLO, STREAM):
        provider.script(Fault.framing(framing))
        assert exchange(provider, body)[0].startswith(b"HTTP/1.")


def test_interim_answers_come_first(provider: Provider) -> None:
    provider.script(Fault.interim())
    data, _ = exchange(provider)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"100", b"103", b"200"]


def test_raw_bytes_go_out_as_they_are(provider: Provider) -> None:
    provider.script(
        Fault.raw(b"abc", 0.001, Repeat(b"x", 3), then="reset"),
        Fault.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", then="keep"),
    )
    assert exchange(provider) == (b"abcxxx", "reset")
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        assert sock.recv(1000).endswith(b"content-length: 0\r\n\r\n")
        sock.sendall(request_bytes(extra="connection: close\r\n"))
        assert read_all(sock)[0].startswith(b"HTTP/1.1 200")


def test_faults_join(provider: Provider) -> None:
    fault = Fault.status(500, b"0123456789") | Fault.close(3, part="body")
    assert fault.name == "status(500) | close(3)"
    assert fault == Fault.status(500, b"0123456789") | Fault.close(3, part="body")
    provider.script(fault)
    data, _ = exchange(provider)
    assert data.startswith(b"HTTP/1.1 500")
    assert data.endswith(b"\r\n\r\n012")


@given(st.lists(st.binary(max_size=6), max_size=6), st.integers(0, 40), st.booleans())
def test_take_is_a_prefix_and_loses_nothing(pieces: list[bytes], limit: int, resume: bool) -> None:
    whole = b"".join(pieces)
    out = list(take(pieces, limit, ("reset",), resume=resume))
    before = b"".join(piece for piece in out[: out.index("reset")] if isinstance(piece, bytes))
    after = b"".join(piece for piece in out[out.index("reset") + 1 :] if isinstance(piece, bytes))
    assert before == whole[:limit]
    assert after == (whole[limit:] if resume else b"")


# ---------------------------------------------------------------------------------------- faults: streams


def test_streams_cut_after_some_events(provider: Provider) -> None:
    hows: tuple[Literal["end", "close", "reset"], ...] = ("end", "close", "reset")
    for how in hows:
        provider.script(Fault.stream_cut(2, how))
        data, ended = exchange(provider, STREAM)
        assert data.count(b"data: ") == 2
        assert ended == ("reset" if how == "reset" else "close")
        assert data.endswith(b"0\r\n\r\n") == (how == "end")


def test_an_error_as_the_first_event(provider: Provider) -> None:
    provider.script(Fault.stream_error())
    (event,) = stream(provider)
    assert event["error"]["code"] == "server_error"


def test_a_stream_may_lack_done_or_go_on_after_it(provider: Provider) -> None:
    provider.script(Fault.no_done(), Fault.after_done(), Fault.after_done("[DONE]"))
    assert stream(provider)[-1]["choices"][0]["finish_reason"] == "stop"
    chunks = stream(provider)
    assert [chunks[-3], chunks[-1]] == [b"[DONE]", b"[DONE]"]
    assert chunks[-2]["choices"][0]["delta"]["content"] == "late"
    assert stream(provider)[-2:] == [b"[DONE]", b"[DONE]"]


def test_events_malformed_inserted_and_not_utf8(provider: Provider) -> None:
    provider.script(Fault.malformed_event(2), Fault.insert_event({"x": 1}, 1), Fault.invalid_utf8())
    chunks = stream(provider)
    assert isinstance(chunks[2], bytes)
    assert text_of(chunks) == "hello world"
    assert stream(provider)[1] == {"x": 1}
    with pytest.raises(UnicodeDecodeError):
        ask(provider, STREAM)[2].decode()


def test_pings_only_for_a_while_or_for_ever(provider: Provider) -> None:
    provider.script(Fault.pings(0.001, 3, after=1), Fault.pings(0.001))
    body = ask(provider, STREAM)[2]
    assert body.count(b": ping\n\n") == 3
    assert text_of(events(body)) == "hello world"
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        data = b""
        while data.count(b": ping\n\n") < 5:
            data += sock.recv(1000)
        assert b"data:" not in data


def test_a_stall_between_events_that_ends(provider: Provider) -> None:
    provider.script(Fault.stream_stall(2, 0.01))
    start = time.monotonic()
    assert text_of(stream(provider)) == "hello world"
    assert time.monotonic() - start >= 0.01


def test_one_long_line(provider: Provider) -> None:
    provider.script(Fault.long_line(300_000, after=1))
    body = ask(provider, STREAM)[2]
    assert body.count(b"x") >= 300_000
    assert len(max(body.split(b"\n"), key=len)) == 300_000 + len(b"data: ")


def test_marks_and_line_ends(provider: Provider) -> None:
    provider.script(Fault.bom(), Fault.crlf())
    assert ask(provider, STREAM)[2].startswith(b"\xef\xbb\xbfdata: {")
    body = ask(provider, STREAM)[2]
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert text_of(events(body)) == "hello world"


def test_events_of_ones_own(provider: Provider) -> None:
    provider.script(Fault.events(b"data: 1\n", 0.001, b"\n", b"data: [DONE]"))
    status, headers, body = ask(provider, STREAM)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert body == b"data: 1\n\ndata: [DONE]"


def test_stream_faults_leave_plain_answers_alone(provider: Provider) -> None:
    provider.script(Fault.stream_cut(0), Fault.stream_error(), Fault.crlf())
    assert [ask(provider)[0] for _ in range(3)] == [200] * 3


def test_every_fault_is_frozen_documented_and_works_in_a_stream_and_a_plain_answer(
    provider: Provider,
) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "status": (500,),
        "error": ("slow_down",),
        "redirect": (302, "/x"),
        "headers": ({"x-a": "b"},),
        "usage": (None,),
        "slow": (0.001,),
        "drip": (1000, 0.0),
        "stall": (3, 0.001),
        "huge_body": (100_000,),
        "gzip_bomb": (1 << 20,),
        "framing": ("close",),
        "raw": (b"x",),
        "events": (b"data: 1\n\n",),
        "stream_cut": (1,),
        "stream_stall": (1, 0.001),
        "pings": (0.0, 2),
        "insert_event": ("x",),
        "long_line": (1000,),
        "black_hole": (),
    }
    docs = DOCS.read_text()
    names = [name for name, value in vars(Fault).items() if isinstance(value, classmethod) and name[0] != "_"]
    assert len(names) > 35
    for name in names:
        make = getattr(Fault, name)
        assert make.__doc__, name
        assert f"`{name}(" in docs, name
        if name == "black_hole":
            continue
        fault = make(*arguments.get(name, ()))
        assert hash(fault) == hash(make(*arguments.get(name, ())))
        for body in (HELLO, STREAM):
            provider.script(fault)
            exchange(provider, body)
            assert provider.requests[-1].fault == fault.name
    with pytest.raises(AttributeError):
        Fault.reset().name = "x"  # type: ignore[misc]


def test_faults_and_scripts_are_checked_at_once(provider: Provider) -> None:
    bad: list[Any] = [
        lambda: Fault.status(99),
        lambda: Fault.error("unheard_of"),
        lambda: Fault.raw(1j),  # type: ignore[arg-type]
        lambda: Fault.raw("explode"),
        lambda: Fault.raw(-1.0),
        lambda: Fault.raw(b"", then="?"),  # type: ignore[arg-type]
        lambda: Fault.drip(0),
        lambda: Fault.drip(1, 1, "feet"),  # type: ignore[arg-type]
        lambda: Fault.reset(-1),
        lambda: Fault.reset("later"),
        lambda: Fault.stall(1, part="soul"),
        lambda: Fault.framing("?"),
        lambda: Fault.stream_cut(1, "?"),  # type: ignore[arg-type]
        lambda: provider.script(503),  # type: ignore[arg-type]
        lambda: provider.script(lambda request: None, repeat=True),
        lambda: provider.configure(models=["x"]),
        lambda: provider.configure(fail_rate=2),
    ]
    for make in bad:
        with pytest.raises((TypeError, ValueError)):
            make()
    assert ask(provider)[0] == 200


def test_reset_is_what_the_name_says() -> None:
    # The tests above trust ConnectionResetError; this one checks that a FIN would not raise it.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for linger, how in ((struct.pack("ii", 0, 0), "close"), (struct.pack("ii", 1, 0), "reset")):
            with socket.create_connection(listener.getsockname()) as client:
                server, _ = listener.accept()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                server.close()
                assert read_all(client)[1] == how


@pytest.mark.parametrize("after", [100_000, 3_000_000])
def test_a_reset_comes_after_exactly_so_many_bytes_of_a_large_answer(provider: Provider, after: int) -> None:
    provider.script(Fault.huge_body(1 << 30) | Fault.reset(after))
    data, how = exchange(provider)
    assert (len(data), how) == (after, "reset")


def test_a_header_may_come_twice_and_must_be_latin1(provider: Provider) -> None:
    provider.script(
        Fault.status(429, headers=[("retry-after", "1"), ("retry-after", "2"), ("x-odd", "\xff")])
    )
    data, _ = exchange(provider)
    assert re.findall(rb"retry-after: (\d)", data) == [b"1", b"2"]
    assert b"x-odd: \xff\r\n" in data
    with pytest.raises(ValueError, match="Latin-1"):
        Fault.headers({"x": "\u20ac"})
