"""Plain sockets and http.client for the tests of the local provider; nothing of fastroute is in it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from typing import Any, Protocol


class HasPort(Protocol):
    @property
    def port(self) -> int: ...


HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello world"}]}
STREAM = {**HELLO, "stream": True}


def request_bytes(body: Any = HELLO, *, path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{extra}content-length: {len(data)}\r\n\r\n".encode() + data


def connect(provider: HasPort) -> socket.socket:
    return socket.create_connection(("127.0.0.1", provider.port), timeout=5)


def read_all(sock: socket.socket) -> tuple[bytes, str]:
    """Everything until the end, and how it ended: ``close`` or ``reset``."""
    data = b""
    try:
        while part := sock.recv(1 << 20):
            data += part
    except ConnectionResetError:
        return data, "reset"
    return data, "close"


def exchange(
    provider: HasPort, body: Any = HELLO, *, extra: str = "connection: close\r\n"
) -> tuple[bytes, str]:
    with connect(provider) as sock:
        sock.sendall(request_bytes(body, extra=extra))
        return read_all(sock)


def ask(provider: HasPort, body: Any = HELLO, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=5)
    with contextlib.closing(connection):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, headers)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def answer(provider: HasPort, body: Any = HELLO) -> Any:
    return json.loads(ask(provider, body)[2])


def events(data: bytes) -> list[Any]:
    """The data of a stream's events, JSON read where it is JSON."""
    found = []
    for block in re.split(rb"\r?\n\r?\n", data):
        lines = [line[5:].strip() for line in re.split(rb"\r?\n", block) if line.startswith(b"data:")]
        if lines:
            text = b"\n".join(lines)
            try:
                found.append(json.loads(text))
            except ValueError:
                found.append(text)
    return found


def stream(provider: HasPort, **params: Any) -> list[Any]:
    return events(ask(provider, {**STREAM, **params})[2])


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk["choices"]
        if choice["index"] == index
    )
