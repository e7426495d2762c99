"""A WSGI application with a client, and the servers with processes of their own that run it in tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ports import free_port

from fastroute.testing import Provider

APP = """
import json, os
from urllib.parse import parse_qs
import fastroute

client = fastroute.Client(os.environ["CONFIGURATION"])
made_by = os.getpid()

def application(environ, start):
    text = parse_qs(environ["QUERY_STRING"])["text"][0]
    answer = {"pid": os.getpid(), "preloaded": made_by != os.getpid()}
    try:
        if text != "stats":
            reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
            answer["text"] = reply.choices[0].message.content
        status = "200 OK"
    except fastroute.RateLimitError:
        status = "429 Too Many Requests"
    stats = client.stats()
    answer["state"] = stats["state"]
    answer["in_flight"] = stats["endpoints"]["p/m"]["in_flight"]
    start(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""


def configure(folder: Path, provider: Provider, state: str, settings: str = "") -> dict[str, str]:
    """Writes the application, ``app.py``, and its configuration; the environment to run it in.

    Args:
        state: as configured; "" for none, which leaves it to the host.
    """
    (folder / "app.py").write_text(APP)
    (folder / "fastroute.toml").write_text(
        f'[fastroute]\nledger = "{folder}/ledger.db"\n'
        + (f'state = "{state}"\n' if state else "")
        + f'[providers.p]\nbase_url = "{provider.base_url}"\n{settings}\n'
        '[[endpoints]]\nprovider = "p"\nmodel = "m"\n'
        "[cache]\nenabled = false\n[policy]\nqueue_timeout = 0.2\n"
    )
    places = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "CONFIGURATION": str(folder / "fastroute.toml"), "PYTHONPATH": places}


def get(port: int, question: str, path: str = "/", timeout: float = 20.0) -> tuple[int, dict[str, Any]]:
    """Status and answer of the application; status 0 if its worker was killed or did not answer in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", f"{path}?text={question}", headers={"Connection": "close"})
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if text.startswith("{") else {}
    except (http.client.HTTPException, OSError):
        return 0, {}
    finally:
        connection.close()


class Server:
    """A server of that application with workers of its own, on a socket that listens from the start.

    Its number takes the place of ``FD`` in the words. A server that opens its own has ``PORT`` there.
    """

    def __init__(self, folder: Path, provider: Provider, state: str, settings: str, words: list[str]) -> None:
        environ = configure(folder, provider, state, settings)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self.listener.getsockname()[1]
        if any("PORT" in word for word in words):
            self.port = free_port()
            words = [word.replace("PORT", str(self.port)) for word in words]
        fd = self.listener.fileno()
        self.log = folder / "log"
        self.state: str | None = None
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *[word.replace("FD", str(fd)) for word in words]],
                cwd=folder,
                env=environ,
                pass_fds=[fd],
                stdout=log,
                stderr=log,
            )

    def get(self, question: str, path: str = "/") -> tuple[int, dict[str, Any]]:
        status, body = get(self.port, question, path)
        if body:
            self.state = body["state"]["path"]
        return status, body

    def until_two_answer(self) -> None:
        """Workers come up one by one; a test of sharing needs more than the first."""
        seen: set[int] = set()
        while len(seen) < 2:
            with ThreadPoolExecutor(8) as pool:
                seen |= {body["pid"] for _, body in pool.map(self.get, ["stats"] * 8) if body}

    def many(self, count: int, threads: int = 8) -> list[tuple[int, dict[str, Any]]]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.get, (f"call-{number}" for number in range(count))))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.close()
        if self.state is not None:
            os.unlink(self.state)
            os.unlink(f"{self.state}.lock")


GUNICORN = ["-m", "gunicorn", "-b", "fd://FD", "--worker-tmp-dir", "/dev/shm", "app:application"]
UWSGI_WORDS = "--http-socket fd://FD --master --enable-threads --die-on-term --need-app --wsgi-file app.py"
UWSGI = [
    "-c",
    "import sys, os; os.execv(sys.argv[1], sys.argv[1:])",
    str(Path(sys.executable).parent / "uwsgi"),
    *UWSGI_WORDS.split(),
]


@contextmanager
def serving(
    folder: Path, words: list[str], state: str, settings: str = "", **provider: Any
) -> Iterator[tuple[Server, Provider]]:
    with Provider(**provider) as upstream:
        server = Server(folder, upstream, state, settings, words)
        try:
            yield server, upstream
        except BaseException:
            print(server.log.read_text())
            raise
        finally:
            server.stop()
