"""The local provider: what it reads, by plain sockets."""

from __future__ import annotations

import contextlib
import json
import re
import socket

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from raw_http import HELLO, STREAM, connect, read_all, request_bytes

from fastroute.testing import Fault, Provider
from fastroute.testing.http_connection import BadRequest, parse_head, read_chunks


def test_pipelined_requests_are_answered_in_order(provider: Provider) -> None:
    bodies = [{**HELLO, "messages": [{"role": "user", "content": str(turn)}]} for turn in range(3)]
    provider.script(None, Fault.slow(0.01), None)
    with connect(provider) as sock:
        sock.sendall(b"".join(request_bytes(body) for body in bodies[:2]))
        sock.sendall(request_bytes(bodies[2], extra="connection: close\r\n"))
        data, how = read_all(sock)
    assert how == "close"
    assert re.findall(rb'"content":"(\d)"', data) == [b"0", b"1", b"2"]


def test_a_request_may_arrive_byte_by_byte(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_bytes(extra="connection: close\r\n"):
            sock.sendall(bytes([byte]))
        data, _ = read_all(sock)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")


def test_chunked_requests_and_expectations(provider: Provider) -> None:
    data = json.dumps(HELLO).encode()
    url = provider.base_url + "/chat/completions"
    assert requests.post(url, data=iter([data[:5], data[5:]]), timeout=5).status_code == 200
    assert provider.requests[-1].body == data
    with connect(provider) as sock:
        whole = request_bytes(extra="expect: 100-continue\r\nconnection: close\r\n")
        head, body = whole.split(b"\r\n\r\n", 1)
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock)[0].startswith(b"HTTP/1.1 200")


def test_http_10_clients_get_no_chunks_and_no_keep_alive(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data, how = read_all(sock)
    assert how == "close"
    assert b"transfer-encoding" not in data
    assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nname : x\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_request_gets_a_400_and_a_close(provider: Provider, data: bytes) -> None:
    with connect(provider) as sock:
        sock.sendall(data)
        reply, _ = read_all(sock)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_request_error" in reply


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        parse_head(data)
    with contextlib.suppress(BadRequest):
        read_chunks(data, 0)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(0, 400))
def test_chunks_are_read_only_when_complete(parts: list[bytes], cut: int) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert read_chunks(data + b"next", 0) == (b"".join(parts), len(data))
    if cut < len(data):
        assert read_chunks(data[:cut], 0) is None


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 0\r\ncontent-length: 2",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Authorization: Bearer a\r\nAuthorization: Bearer b",
    ],
)
def test_what_two_servers_could_read_differently_is_no_request(lines: str) -> None:
    with pytest.raises(BadRequest):
        parse_head(f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n{lines}".encode())
