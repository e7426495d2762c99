"""The gateway under real servers: nothing lost under load, nothing smuggled, nothing left running."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from gateways import CHAT, HELLO, configuration
from needs import need

from fastroute.gateway.keys import Caller, KeyFile
from fastroute.ledger import Ledger
from fastroute.testing import Answer, Provider

CALLS, CLIENTS = 1000, 32
WSGIREF = """
import socket, sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from fastroute.gateway import create_app

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    def server_bind(self):
        self.socket = socket.socket(fileno=int(sys.argv[1]))
        self.server_name, self.server_port = "localhost", self.socket.getsockname()[1]
        self.setup_environ()
    def server_activate(self):
        pass

class Handler(WSGIRequestHandler):
    def log_message(self, *_):
        pass

server = Server(("127.0.0.1", 0), Handler)
server.set_app(create_app("fastroute.json.toml", keys="keys.db"))
server.serve_forever(0.05)
"""


@frozen
class Running:
    """A server in a process of its own."""

    port: int
    token: str
    provider: Provider
    folder: Path
    process: subprocess.Popen[bytes]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def ledger(self) -> list[Any]:
        with Ledger(self.folder / "ledger.db") as ledger:
            return ledger.entries(None)


def command_of(server: str, listening: int) -> list[str]:
    if server == "wsgiref":
        return [sys.executable, "-c", WSGIREF, str(listening)]
    worker = server.removeprefix("gunicorn-")
    return [
        *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listening}", "--worker-class", worker),
        *("--workers", "2", "--timeout", "60", "--graceful-timeout", "5", "--log-level", "warning"),
        *(["--threads", "16"] if worker == "gthread" else []),
        *([] if worker == "gevent" else ["--preload"]),
        "--no-control-socket",
        "fastroute.gateway:create_app('fastroute.json.toml', keys='keys.db')",
    ]


def toml(value: Any) -> str:
    """A configuration as TOML: inline tables and arrays are JSON's, but for the colons."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@contextlib.contextmanager
def serving(server: str, folder: Path, provider: Provider, **policy: Any) -> Iterator[Running]:
    need("waitress" if server == "waitress" else server.partition("-")[0])
    if server == "gunicorn-gevent":
        need("gevent")
    tables = configuration(provider.base_url, folder, providers={"local": {"base_url": provider.base_url}})
    tables["policy"] |= {"queue_timeout": 10.0, **policy}
    (folder / "fastroute.json.toml").write_text(
        "".join(f"{key} = {toml(part)}\n" for key, part in tables.items())
    )
    token = KeyFile(folder / "keys.db").create(Caller("web"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")}
    if server == "waitress":
        command = [sys.executable, "-m", "fastroute.cli", "serve", "-p", "0", "-c", "fastroute.json.toml"]
        process = subprocess.Popen(
            [*command, "--keys", "keys.db"], cwd=folder, env=environment, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r"127\.0\.0\.1:([0-9]+)", line)
        assert found, line
        port = int(found[1])
    else:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(1024)
            port = listening.getsockname()[1]
            listening.set_inheritable(True)
            process = subprocess.Popen(
                command_of(server, listening.fileno()),
                cwd=folder,
                env=environment,
                pass_fds=[listening.fileno()],
                stderr=subprocess.PIPE,
            )
    try:
        yield Running(port, token, provider, folder, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            assert process.stderr is not None
            process.stderr.close()


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
    entries = running.ledger()
    assert len(entries) == CALLS + 1
    assert [entry.outcome for entry in entries if entry.outcome != "ok"] == ["client_cancelled"]


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


class Endless:
    """A provider whose one stream goes on for as long as somebody takes it."""

    MOST = 64 << 20

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.sent = 0
        self.held_up = threading.Event()
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        line, _ = self._listener.accept()
        with line:
            line.settimeout(1.0)
            while b"\r\n\r\n" not in line.recv(65536):
                pass
            delta = {"index": 0, "delta": {"content": "word " * 200}, "finish_reason": None}
            shape = {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [delta],
            }
            event = f"data: {json.dumps(shape)}\n\n".encode()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            with contextlib.suppress(OSError):
                line.sendall(head)
                while self.sent < self.MOST:
                    try:
                        self.sent += line.send(event)
                    except TimeoutError:
                        self.held_up.set()
            self.left.set()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(20)


@pytest.mark.parametrize("server", ["waitress", "gunicorn-gthread"])
def test_061_a_client_that_reads_slowly_holds_its_stream_up(server: str, tmp_path: Path) -> None:
    """And its slowness is not taken for silence of the provider's."""
    provider: Any = Endless()
    with contextlib.closing(provider), serving(server, tmp_path, provider, idle_timeout=0.5) as running:
        client = running.connect()
        with contextlib.closing(client):
            body = json.dumps({**HELLO, "stream": True})
            client.sendall(request(running, f"Content-Length: {len(body)}", body))
            assert client.recv(1024).startswith(b"HTTP/1.1 200")
            assert provider.held_up.wait(15)
            held = provider.sent
            assert held < provider.MOST / 4  # what kernels and the server's buffer of 1 MiB take
            while provider.sent < held + (4 << 20):
                assert client.recv(1 << 20), "the stream has ended"
        assert provider.left.wait(15)
    (entry,) = running.ledger()
    assert entry.outcome == "client_cancelled"


def request(running: Running, framing: str, body: str = "", path: str = CHAT) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", framing]
    lines += [f"{name}: {value}" for name, value in running.headers().items()]
    return "\r\n".join([*lines, "", body]).encode("latin-1")


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
