"""Gateways under real servers, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from gateways import CHAT, configuration
from needs import need

from fastroute.gateway.keys import Caller, KeyFile
from fastroute.ledger import Ledger
from fastroute.testing import Provider

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


def command_of(server: str, listening: int, workers: int, threads: int) -> list[str]:
    if server == "wsgiref":
        return [sys.executable, "-c", WSGIREF, str(listening)]
    if server == "uwsgi":
        words = ["--http-socket", f"fd://{listening}", "--wsgi-file", "app.py", "--master"]
        words += ["--threads", str(threads), "--single-interpreter", "--die-on-term", "--disable-logging"]
        return [need("uwsgi"), *words]
    worker = server.removeprefix("gunicorn-")
    return [
        *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listening}", "--worker-class", worker),
        *("--workers", str(workers), "--timeout", "60", "--graceful-timeout", "5"),
        *("--log-level", "warning"),
        *(["--threads", str(threads)] if worker == "gthread" else []),
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
def serving(
    server: str,
    folder: Path,
    provider: Any,
    *,
    gateway: Mapping[str, Any] | None = None,
    caller: Caller | None = None,
    workers: int = 2,
    threads: int = 16,
    options: Sequence[str] = (),
    **policy: Any,
) -> Iterator[Running]:
    need("waitress" if server == "waitress" else server.partition("-")[0])
    if server == "gunicorn-gevent":
        need("gevent")
    tables = configuration(provider.base_url, folder, providers={"local": {"base_url": provider.base_url}})
    tables["policy"] |= {"queue_timeout": 10.0, **policy}
    tables["gateway"] = dict(gateway or {})
    (folder / "fastroute.json.toml").write_text(
        "".join(f"{key} = {toml(part)}\n" for key, part in tables.items())
    )
    if server == "uwsgi":
        (folder / "app.py").write_text(
            "from fastroute.gateway import create_app\n"
            "application = create_app('fastroute.json.toml', keys='keys.db')\n"
        )
    token = KeyFile(folder / "keys.db").create(caller or Caller("web"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")}
    if server == "waitress":
        command = [sys.executable, "-m", "fastroute.cli", "serve", "-p", "0", "-c", "fastroute.json.toml"]
        process = subprocess.Popen(
            [*command, "--keys", "keys.db", "--threads", str(threads)],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
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
                command_of(server, listening.fileno(), workers, threads),
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


def request(running: Running, framing: str, body: str = "", path: str = CHAT) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", framing]
    lines += [f"{name}: {value}" for name, value in running.headers().items()]
    return "\r\n".join([*lines, "", body]).encode("latin-1")
