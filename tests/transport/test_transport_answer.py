"""The head of an answer: how it frames the body, and malformed heads."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from fastroute.transport.answer import StrictResponse


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(server.getsockname())
    theirs, _ = server.accept()
    with server, ours, theirs:
        yield ours, theirs


def answer(ends: tuple[socket.socket, socket.socket], head: bytes, method: str = "POST") -> StrictResponse:
    ours, theirs = ends
    theirs.sendall(head)
    theirs.shutdown(socket.SHUT_WR)
    found = StrictResponse(ours, method=method)
    try:
        found.begin()
    except BaseException:
        found.close()
        raise
    return found


def test_the_fields_of_a_head(ends: tuple[socket.socket, socket.socket]) -> None:
    head = (
        b"HTTP/1.1 100 Continue\r\nx-skipped: yes\r\n\r\n"
        b"HTTP/1.1 200 Very well\r\nContent-Length: 2\r\nX-Two:  a \r\nempty:\r\nx-two: b\r\n"
        b"Folded: one\r\n\ttwo\r\nna\xefve: \xe9\r\nno-cr: 1\n\r\n{}rest"
    )
    with answer(ends, head) as found:
        assert (found.status, found.reason, found.version) == (200, "Very well", 11)
        assert found.fields == {
            "content-length": "2",
            "x-two": "a, b",
            "empty": "",
            "folded": "one two",
            "naïve": "é",
            "no-cr": "1",
        }
        assert found.msg.get_all("X-Two") == ["a", "b"]
        assert found.read() == b"{}"


@pytest.mark.parametrize(
    ("head", "chunked", "length", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", False, 5, False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: Close\r\n\r\n", False, 5, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n", False, 5, False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", False, None, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", False, None, True),
        (b"HTTP/1.1 200\r\n\r\n", False, None, True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", True, None, False),
        (b"HTTP/1.1 204 None\r\n\r\n", False, 0, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", False, 5, True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n", False, 5, False),
    ],
)
def test_how_the_body_ends(
    ends: tuple[socket.socket, socket.socket], head: bytes, chunked: bool, length: int | None, closes: bool
) -> None:
    with answer(ends, head) as found:
        assert (found.chunked, found.length, found.will_close) == (chunked, length, closes)


def test_an_answer_to_head_has_no_body(ends: tuple[socket.socket, socket.socket]) -> None:
    with answer(ends, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "HEAD") as found:
        assert found.read() == b""


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", "cut off"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "cut off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5", "cut off"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\na name: x\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\n first: x\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\nname: a\rcontent-length: 5\r\n\r\n", "is malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n", "more than 100"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n", "more than 65536"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "HTTP/2.0"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 20"),
    ],
)
def test_what_is_no_head(ends: tuple[socket.socket, socket.socket], head: bytes, words: str) -> None:
    with pytest.raises(http.client.HTTPException, match=words):
        answer(ends, head)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def pieces(found: StrictResponse) -> list[bytes]:
    read: list[bytes] = []
    while piece := found.read1():
        read.append(piece)
    return read


def test_all_chunks_that_have_arrived_come_together(ends: tuple[socket.socket, socket.socket]) -> None:
    body = b"3\r\none\r\n5;name=value\r\n\r\ntwo\r\n00\r\nx-trailer: 1\r\n\r\n"
    with answer(ends, CHUNKED + body) as found:
        assert pieces(found) == [b"one\r\ntwo"]
        assert found.isclosed()


def test_chunks_may_be_cut_anywhere(ends: tuple[socket.socket, socket.socket]) -> None:
    body = b"3\r\none\r\nA\r\n0123456789\r\n0\r\n\r\n"
    for cut in range(len(body) + 1):
        found = StrictResponse(ends[0], method="POST")
        ends[1].sendall(CHUNKED + body[:cut])
        found.begin()
        first = found.read1() if cut > 3 else b""
        ends[1].sendall(body[cut:])
        assert first + b"".join(pieces(found)) == b"one0123456789", cut
        assert found.isclosed()


def test_trailers_may_lack_their_end(ends: tuple[socket.socket, socket.socket]) -> None:
    with answer(ends, CHUNKED + b"1\r\na\r\n0\r\n") as found:
        assert pieces(found) == [b"a"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"3\r\non",
        b"3\r\none",
        b"3\r\none\r\n",
        b"3\r\none\r\n0",
        b"2\r\none\r\n0\r\n\r\n",
        b"-1\r\none\r\n0\r\n\r\n",
        b"0x3\r\none\r\n0\r\n\r\n",
        b"1_0\r\none\r\n0\r\n\r\n",
        b"\r\none\r\n0\r\n\r\n",
        b"three\r\none\r\n0\r\n\r\n",
    ],
)
def test_a_body_in_chunks_that_is_none(ends: tuple[socket.socket, socket.socket], body: bytes) -> None:
    with answer(ends, CHUNKED + body) as found, pytest.raises(http.client.IncompleteRead):
        pieces(found)


def test_the_size_of_a_chunk_has_no_end(ends: tuple[socket.socket, socket.socket]) -> None:
    with answer(ends, CHUNKED + b"1" * 70_000) as found, pytest.raises(http.client.LineTooLong):
        pieces(found)
