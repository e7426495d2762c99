"""The gateway under real servers: nothing lost under load, nothing smuggled, nothing left running."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from endless import Endless
from gateways import CHAT, HELLO
from server_processes import Running, request, serving

from fastroute.testing import Answer, Provider

CALLS, CLIENTS = 1000, 32

# ----------------------------------------------------------------------------- load, and clients that go away


@pytest.mark.parametrize("server", ["waitress", "gunicorn-sync", "gunicorn-gthread", "gunicorn-gevent"])
def test_nothing_is_lost_and_nothing_is_left_running(server: str, tmp_path: Path) -> None:
    with (
        Provider(process=True, log_size=CALLS * 2) as provider,
        serving(server, tmp_path, provider) as running,
    ):
        _a_thousand_calls_are_all_answered(running)
        provider.configure(answer=Answer("word " * 2000), tokens_per_second=200)
        _a_client_that_goes_away_ends_the_upstreams_work(running)
        provider.configure(latency=60.0)
        _a_client_that_leaves_a_plain_call_ends_it_as_well(running)
    entries = running.ledger()
    assert len(entries) == CALLS + 2
    assert [entry.outcome for entry in entries if entry.outcome != "ok"] == ["client_cancelled"] * 2


def _a_thousand_calls_are_all_answered(running: Running) -> None:
    numbers = iter(range(CALLS))
    taking = threading.Lock()
    answers: list[str] = []
    failures: list[Any] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        with contextlib.closing(connection):
            while True:
                with taking:
                    number = next(numbers, None)
                if number is None:
                    return
                streamed = number % 10 == 0
                messages = [{"role": "user", "content": f"call-{number}"}]
                body = json.dumps({"model": "auto", "messages": messages, "stream": streamed})
                connection.request("POST", CHAT, body, running.headers())
                response = connection.getresponse()
                text = response.read().decode()
                if response.status != 200 or (streamed and not text.endswith("data: [DONE]\n\n")):
                    failures.append((number, response.status, text[:200]))
                elif streamed:
                    parts = [
                        json.loads(part[6:]) for part in text.split("\n\n")[:-2] if part.startswith("data:")
                    ]
                    pieces = [part["choices"][0]["delta"].get("content") or "" for part in parts]
                    answers.append("".join(pieces))
                else:
                    answers.append(json.loads(text)["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(answers) == sorted(f"call-{number}" for number in range(CALLS))  # each its own
    assert len(running.provider.requests) == CALLS


def _a_client_that_goes_away_ends_the_upstreams_work(running: Running) -> None:
    with running.connect() as client:
        body = json.dumps({**HELLO, "stream": True})
        client.sendall(request(running, f"Content-Length: {len(body)}", body))
        seen = b""
        while b"data: " not in seen:
            seen += client.recv(65_536)
    running.provider.wait_until(lambda known: known.abandoned == 1, 10)


def _a_client_that_leaves_a_plain_call_ends_it_as_well(running: Running) -> None:
    with running.connect() as client:
        body = json.dumps(HELLO)
        client.sendall(request(running, f"Content-Length: {len(body)}", body))
        running.provider.wait_until(lambda known: known.in_flight == 1, 10)
    running.provider.wait_until(lambda known: known.abandoned == 2, 10)


@pytest.mark.parametrize(("server", "tells"), [("uwsgi", True), ("wsgiref", False)])
def test_a_plain_call_whose_caller_leaves(server: str, tells: bool, tmp_path: Path) -> None:
    """It ends where the server lets it be known (see also the test above), and elsewhere has its answer."""
    with (
        Provider(latency=60.0 if tells else 1.0) as provider,
        serving(server, tmp_path, provider) as running,
    ):
        with running.connect() as client:
            body = json.dumps(HELLO)
            client.sendall(request(running, f"Content-Length: {len(body)}", body))
            provider.wait_until(lambda known: known.in_flight == 1, 10)
        provider.wait_until(lambda known: known.in_flight == 0, 10)
        assert provider.abandoned == tells
        provider.configure(latency=0.0)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", CHAT, json.dumps(HELLO), running.headers())
            assert connection.getresponse().status == 200
    later, first = running.ledger()
    assert (first.outcome, later.outcome) == ("client_cancelled" if tells else "ok", "ok")


@pytest.mark.parametrize("server", ["waitress", "gunicorn-gthread"])
def test_061_a_client_that_reads_slowly_holds_its_stream_up(server: str, tmp_path: Path) -> None:
    """And its slowness is not taken for silence of the provider's."""
    with Endless() as provider, serving(server, tmp_path, provider, idle_timeout=0.5) as running:
        client = running.connect()
        with contextlib.closing(client):
            body = json.dumps({**HELLO, "stream": True})
            client.sendall(request(running, f"Content-Length: {len(body)}", body))
            assert client.recv(1024).startswith(b"HTTP/1.1 200")
            provider.wait_until(lambda known: known.held_up == 1)
            held = provider.sent
            assert held < provider.MOST / 4  # what kernels and the server's buffer of 1 MiB take
            while provider.sent < held + (4 << 20):
                assert client.recv(1 << 20), "the stream has ended"
        provider.wait_until(lambda known: known.left == 1)
    (entry,) = running.ledger()
    assert entry.outcome == "client_cancelled"


def test_what_is_running_ends_well_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with Provider(latency=1.0) as provider, serving("waitress", tmp_path, provider) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", CHAT, json.dumps(HELLO), running.headers())
            provider.wait_until(lambda known: len(known.requests) == 1)
            running.process.send_signal(signal.SIGTERM)
            response = connection.getresponse()
            assert response.status == 200
            assert json.loads(response.read())["choices"][0]["message"]["content"] == "hello there"
        assert running.process.wait(15) == 0
        with pytest.raises(OSError):
            running.connect()
    assert [entry.outcome for entry in running.ledger()] == ["ok"]


# ---------------------------------------------------------------------------------- smuggled requests (164)

BODY = json.dumps(HELLO)
SMUGGLED = json.dumps({**HELLO, "messages": [{"role": "user", "content": "SMUGGLED"}]})
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n"


def hidden(running: Running) -> str:
    return request(running, f"Content-Length: {len(SMUGGLED)}", SMUGGLED).decode()


def corpus(running: Running) -> dict[str, bytes]:
    """Requests whose length can be read in two ways, with another request where the two disagree."""
    inner = hidden(running)
    both = f"Content-Length: {len(BODY)}\r\nTransfer-Encoding: chunked"
    te = "Transfer-Encoding"
    return {
        "CL.TE": request(running, both, f"0\r\n\r\n{inner}"),
        "TE.CL": request(
            running, f"Content-Length: 4\r\n{te}: chunked", f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
        ),
        "two lengths": request(running, f"{LENGTH}\r\nContent-Length: 0", BODY + inner),
        "two lengths, the shorter first": request(running, f"Content-Length: 0\r\n{LENGTH}", BODY + inner),
        "lengths in a list": request(running, f"Content-Length: {len(BODY)}, 0", BODY + inner),
        "a length with a sign": request(running, f"Content-Length: +{len(BODY)}", BODY),
        "a negative length": request(running, "Content-Length: -1", BODY),
        "a length in hex": request(running, f"Content-Length: {len(BODY):#x}", BODY),
        "a length with an underscore": request(running, "Content-Length: 1_0", BODY),
        "a length of other digits": request(running, "Content-Length: \xb2\xb3", BODY),
        "a huge length": request(running, f"Content-Length: {'9' * 400}", BODY),
        "a blank before the colon": request(running, f"Content-Length : {len(BODY)}", BODY + inner),
        "a folded header": request(running, f"X: y\r\n Content-Length: 0\r\n{LENGTH}", BODY),
        "a line feed alone": request(running, f"X: y\nContent-Length: 0\r\n{LENGTH}", BODY + inner),
        "a carriage return alone": request(running, f"X: y\rContent-Length: 0\r\n{LENGTH}", BODY),
        "a NUL": request(running, f"X: a\0b\r\n{LENGTH}", BODY),
        "chunked, then identity": request(running, f"{te}: chunked, identity", CHUNKED + inner),
        "identity, then chunked": request(running, f"{te}: identity, chunked", CHUNKED),
        "chunked twice": request(running, f"{te}: chunked\r\n{te}: chunked", CHUNKED),
        "an unknown coding": request(running, f"{te}: xchunked\r\n{LENGTH}", BODY + inner),
        "a coding after a tab": request(running, f"{te}:\tchunked\r\n{LENGTH}", f"0\r\n\r\n{inner}"),
        "a coding after \\x0b": request(running, f"{te}: \x0bchunked\r\n{LENGTH}", f"0\r\n\r\n{inner}"),
        "a coding with an underscore": request(
            running, f"Transfer_Encoding: chunked\r\n{LENGTH}", f"0\r\n\r\n{inner}"
        ),
        "a chunk size in decimal and more": request(
            running, f"{te}: chunked", f"1e+1\r\n{BODY}\r\n0\r\n\r\n"
        ),
        "a negative chunk": request(running, f"{te}: chunked", f"-1\r\n{BODY}\r\n0\r\n\r\n"),
        "a chunk size with 0x": request(running, f"{te}: chunked", f"0x{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n"),
        "a chunk without its end": request(running, f"{te}: chunked", f"{len(BODY):x}\r\n{BODY}XX0\r\n\r\n"),
        "chunks without a last one": request(running, f"{te}: chunked", f"{len(BODY):x}\r\n{BODY}\r\n"),
        "a length that lies": request(running, f"Content-Length: {len(BODY) + 50}", BODY),
        "a request in a header": request(running, f"X: y\r\n\r\n{inner}", ""),
        "HTTP/0.9": f"POST {CHAT}\r\n\r\n{BODY}".encode(),
        "HTTP/9.9": request(running, LENGTH, BODY).replace(b"HTTP/1.1", b"HTTP/9.9"),
        "a blank in the path": request(running, LENGTH, BODY, path=f"{CHAT} HTTP/1.1 x"),
    }


# There is only one way to read this one: two requests, one after the other.
PIPELINED = {"a request in a header"}


@pytest.mark.parametrize("server", ["waitress", "gunicorn-gthread", "wsgiref"])
def test_a_request_is_one_request_or_none(server: str, tmp_path: Path) -> None:
    with Provider() as provider, serving(server, tmp_path, provider) as running:
        for name, payload in corpus(running).items():
            before = len(provider.requests)
            with running.connect() as client:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)
                answer = b""
                with contextlib.suppress(OSError):
                    while part := client.recv(65_536):
                        answer += part
            accepted = len(re.findall(rb"HTTP/1\.[01] 200 ", answer))
            new = provider.requests[before:]
            assert len(new) == accepted, name
            assert accepted <= 1, (name, answer[:300])
            assert b" 500 " not in answer, name
            assert name in PIPELINED or not any(b"SMUGGLED" in received.body for received in new), name
        good = running.connect()
        with good:
            good.sendall(request(running, f"{LENGTH}\r\nConnection: close", BODY))
            assert b" 200 " in good.recv(65_536)
