"""Real servers with forked workers: one limit for all, preloaded or not, recycled, killed, and uWSGI's."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from needs import need

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


class Server:
    """A server of that application with workers of its own, on a socket that listens from the start."""

    def __init__(self, folder: Path, provider: Provider, state: str, settings: str, words: list[str]) -> None:
        (folder / "app.py").write_text(APP)
        (folder / "fastroute.toml").write_text(
            f'[fastroute]\nstate = "{state}"\nledger = "{folder}/ledger.db"\n'
            f'[providers.p]\nbase_url = "{provider.base_url}"\n{settings}\n'
            '[[endpoints]]\nprovider = "p"\nmodel = "m"\n'
            "[cache]\nenabled = false\n[policy]\nqueue_timeout = 0.2\n"
        )
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self.listener.getsockname()[1]
        fd = self.listener.fileno()
        self.log = folder / "log"
        self.state: str | None = None
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *[word.replace("FD", str(fd)) for word in words]],
                cwd=folder,
                env={
                    **os.environ,
                    "CONFIGURATION": str(folder / "fastroute.toml"),
                    "PYTHONPATH": os.pathsep.join(
                        [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
                    ),
                },
                pass_fds=[fd],
                stdout=log,
                stderr=log,
            )

    def get(self, question: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", f"/?text={question}", headers={"Connection": "close"})
            response = connection.getresponse()
            text = response.read().decode()
            body: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
            if body:
                self.state = body["state"]["path"]
            return response.status, body
        except (http.client.HTTPException, OSError):
            return 0, {}  # the worker was killed
        finally:
            connection.close()

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
KILLED = "kills a worker that is busy for 30 s"
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


WAYS = {
    "gunicorn, preloaded": ([*GUNICORN, "-w", "3", "--preload"], "memory"),
    "gunicorn, each its own": ([*GUNICORN, "-w", "3"], "machine"),
    "uWSGI, preloaded": ([*UWSGI, "--processes", "3", "--harakiri", "30"], "memory"),
    "uWSGI, lazy, threads": ([*UWSGI, "--processes", "2", "--threads", "3", "--lazy-apps"], "machine"),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_workers_together_keep_the_limit_and_every_answer_is_the_right_one(
    way: str, tmp_path: Path
) -> None:
    need("gunicorn")
    need("uwsgi")
    words, state = WAYS[way]
    with serving(tmp_path, words, state, "rpm = 1\nburst = 12") as (server, upstream):
        server.until_two_answer()
        answers = server.many(20)
        assert sorted(status for status, _ in answers) == [200] * 12 + [429] * 8
        for number, (status, body) in enumerate(answers):
            if status == 200:
                assert body["text"] == f"call-{number}"
        workers = {body["pid"] for _, body in answers}
        assert {body["preloaded"] for _, body in answers} == {state == "memory"}
        assert {body["state"]["reason"] for _, body in answers} == {None}
        assert len(workers) <= max(body["state"]["workers"] for _, body in answers) <= 5
        assert len(upstream.requests) == 12
        # All but the last may kill a worker long before the 600 seconds that a call may take.
        assert (KILLED in server.log.read_text()) is (way != "uWSGI, lazy, threads")


def test_recycled_workers_go_on_where_the_others_stood(tmp_path: Path) -> None:
    need("gunicorn")
    words = [*GUNICORN, "-w", "2", "--max-requests", "5"]
    with serving(tmp_path, words, "machine", "rpm = 1\nburst = 12") as (server, upstream):
        answers = server.many(18, threads=3)
        assert len({body["pid"] for _, body in answers if body}) >= 4
        granted = sum(status == 200 for status, _ in answers)
        assert granted == len(upstream.requests) == 12
        assert server.get("stats")[1]["state"]["workers"] <= 5  # of the dead, none


def test_what_a_killed_worker_held_is_there_for_the_others(tmp_path: Path) -> None:
    """Killed in the middle of a call, with SIGKILL: its permit is free again within seconds."""
    need("gunicorn")
    words = [*GUNICORN, "-w", "2", "--threads", "4"]
    with serving(tmp_path, words, "machine", "max_in_flight = 1", latency=30.0) as (server, upstream):
        caller = threading.Thread(target=server.get, args=("slow",))
        caller.start()
        while not upstream.requests:
            time.sleep(0.01)
        status, _ = server.get("refused")
        assert status == 429
        victims = {server.get("stats")[1]["pid"] for _ in range(12)}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        caller.join()
        upstream.configure(latency=0.0)
        begun = time.monotonic()
        while server.get("after")[0] != 200:
            assert time.monotonic() - begun < 15
        assert server.get("stats")[1]["in_flight"] == 0
        assert KILLED not in server.log.read_text()  # a worker with threads is not killed for one request
