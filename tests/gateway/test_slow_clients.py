"""Clients that neither read nor send: they hold no thread for long, and never a health check."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from endless import Endless
from gateways import CHAT, HELLO
from redis_server import until
from server_processes import Running, request, serving

from fastroute.gateway.connection import Connection, WatchedBody
from fastroute.testing import Provider

SERVERS = ["waitress", "gunicorn-gthread"]


def unread_stream(running: Running, **route: Any) -> socket.socket:
    """A client that has asked for a stream and reads nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.settimeout(20)
    client.connect(("127.0.0.1", running.port))
    body = json.dumps({**HELLO, "stream": True, "route": route})
    client.sendall(request(running, f"Content-Length: {len(body)}", body))
    return client


def ask(running: Running, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    with contextlib.closing(connection):
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, running.headers())
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read(1000)


def serves_a_stream(running: Running) -> bool:
    with unread_stream(running) as client:
        return client.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("server", [*SERVERS, "gunicorn-gevent"])
def test_unread_streams_keep_no_health_check_waiting_and_end(server: str, tmp_path: Path) -> None:
    # waitress has threads for health checks, and gevent has no threads; else `max_in_flight` leaves some.
    gateway: dict[str, Any] = {"write_timeout": 4.0}
    if server == "gunicorn-gthread":
        gateway["max_in_flight"] = 2
    streams = gateway.get("max_in_flight", 3)
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(Endless())
        running = stack.enter_context(
            serving(server, tmp_path, provider, gateway=gateway, workers=1, threads=3)
        )
        clients = [stack.enter_context(unread_stream(running)) for _ in range(streams)]
        provider.wait_until(lambda known: known.held_up == streams)
        for path in ("/health", "/livez"):
            assert ask(running, path)[0] == 200
        if "max_in_flight" in gateway:
            status, headers, text = ask(running, CHAT, HELLO)
            assert (status, headers["retry-after"]) == (503, "1")
            assert "x-should-retry" not in headers
            assert json.loads(text)["error"]["code"] == "too_many_calls"
        provider.wait_until(lambda known: known.left == streams)
        for _ in clients:  # all threads are free again, once they have seen that their clients are gone
            until(lambda: serves_a_stream(running))
    assert {entry.outcome for entry in running.ledger()} == {"client_cancelled"}


@pytest.mark.parametrize("server", SERVERS)
def test_a_slow_reader_is_served_until_the_deadline_and_no_longer(server: str, tmp_path: Path) -> None:
    gateway = {"write_timeout": 1.0}
    with Endless() as provider, serving(server, tmp_path, provider, gateway=gateway, workers=1) as running:
        began = time.monotonic()
        with unread_stream(running, deadline=3.0) as client:
            # A rate of 80 KB/s: far less than a third of a socket's buffer in a write time-out.
            while not provider.left and client.recv(4096):
                select.select([], [], [], 0.05)
        provider.wait_until(lambda known: known.left == 1)
        assert time.monotonic() - began > 2.5


@pytest.mark.parametrize("server", SERVERS)
def test_a_body_that_does_not_arrive_holds_no_thread(server: str, tmp_path: Path) -> None:
    gateway = {"body_timeout": 1.0}
    with (
        Provider() as provider,
        serving(server, tmp_path, provider, gateway=gateway, workers=1, threads=1) as running,
    ):
        with running.connect() as client:
            client.sendall(request(running, "Content-Length: 1000"))
            while not select.select([client], [], [], 0.1)[0]:
                client.sendall(b" ")
            assert b" 408 " in client.recv(4096)
        with running.connect() as client:
            client.sendall(request(running, "Content-Length: 1000", "{"))
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(4096)
            assert answer == b"" or b" 400 " in answer
        assert ask(running, CHAT, HELLO)[0] == 200
        assert len(provider.requests) == 1


def test_headers_bodies_and_idle_connections_keep_no_one_out(tmp_path: Path) -> None:
    gateway = {"body_timeout": 2.0, "max_body_bytes": 1000, "max_bytes_under_way": 1500}
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(Provider())
        running = stack.enter_context(
            serving("waitress", tmp_path, provider, gateway=gateway, options=["--connections", "20"])
        )
        slow = [stack.enter_context(running.connect()) for _ in range(10)]
        for client in slow[1:]:
            client.sendall(b"GET /health HTTP/1.1\r\nx: ")
        slow[0].sendall(request(running, "Content-Length: 1000", " " * 900))
        answer = b""
        with running.connect() as second:
            # Until the bytes of the first one have arrived too, this one passes.
            while b" 503 " not in answer:
                second.sendall(request(running, "Content-Length: 950", " " * 950))
                answer = second.recv(4096)
                assert b" 503 " in answer or b" 400 " in answer
        assert b"Retry-After: 1\r\n" in answer
        # Whoever has no key has a part of the room only, and keeps no caller out of the rest.
        stranger = evolve(running, token="fr-wrong")
        with stranger.connect() as third, stranger.connect() as fourth:
            third.sendall(request(stranger, "Content-Length: 1000", " " * 900))
            answer = b""
            while b" 503 " not in answer:
                fourth.sendall(request(stranger, "Content-Length: 200", " " * 200))
                answer = fourth.recv(4096)
                assert b" 503 " in answer or b" 401 " in answer
            assert ask(running, CHAT, HELLO)[0] == 200
        for _ in range(30):
            stack.enter_context(running.connect())
        assert ask(running, "/health")[0] == 200
        for client in slow:
            assert b" 408 " in client.recv(4096)
        assert ask(running, CHAT, HELLO)[0] == 200


# ------------------------------------------------------------------------------------------ one response


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's side of a connection and the client's, with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield server, client


def write(body: WatchedBody, server: socket.socket) -> None:
    with contextlib.closing(body):
        for piece in body:
            server.sendall(piece)


def test_a_response_is_shut_if_its_client_takes_nothing() -> None:
    ended: list[bool] = []
    with pair() as (server, _):
        connection = Connection.of({"gunicorn.socket": server})
        body = WatchedBody(b"x" * (8 << 20), connection, 0.4, closed=lambda: ended.append(True))
        with pytest.raises(OSError):
            write(body, server)
        body.close()
    assert ended == [True]


def test_a_response_goes_on_while_its_client_takes_some() -> None:
    data = bytes(range(256)) * 2048
    received = bytearray()
    with pair() as (server, client):

        def read() -> None:
            while part := client.recv(32 << 10):
                received.extend(part)
                select.select([], [], [], 0.03)

        reader = threading.Thread(target=read)
        reader.start()
        write(WatchedBody(data, Connection.of({"gunicorn.socket": server}), 0.3), server)
        server.shutdown(socket.SHUT_WR)
        reader.join(20)
    assert bytes(received) == data


def test_a_response_without_a_known_connection_is_given_up_for_all_but_its_thread() -> None:
    ended = threading.Event()
    body = WatchedBody(iter([b"a", b"b"]), Connection.of({}), 0.1, closed=ended.set)
    next(body)
    assert ended.wait(10)
