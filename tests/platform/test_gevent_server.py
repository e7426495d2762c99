"""gunicorn with gevent's workers: two hundred requests at once, and apps loaded before the patches."""

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

from needs import need

from fastroute.ledger import Ledger
from fastroute.testing import Provider, Received

APP = """
import json, os
from urllib.parse import parse_qs
import fastroute

client = fastroute.Client(json.loads(os.environ["TABLES"]))

def application(environ, start):
    text = parse_qs(environ["QUERY_STRING"])["text"][0]
    messages = [{"role": "user", "content": text}]
    try:
        if text.endswith("7"):
            with client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
                answer = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        else:
            answer = client.chat.completions.create(model="m", messages=messages).choices[0].message.content
    except fastroute.Error as error:
        answer = str(error)
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), answer]).encode()]
"""
CALLS = 200


@contextmanager
def serving(folder: Path, provider: Provider, *words: str) -> Iterator[int]:
    """The application under gunicorn with two gevent workers; its port."""
    need("gunicorn")
    need("gevent")
    (folder / "app.py").write_text(APP)
    tables = {
        "fastroute": {"ledger": str(folder / "ledger.db"), "state": str(folder / "state")},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1, "output_price": 1, "max_output_tokens": 100}},
        "budgets": [{"name": "all", "limit": 1000, "window": "total"}],
    }
    with (
        socket.create_server(("127.0.0.1", 0), backlog=CALLS * 2) as listener,
        open(folder / "log", "w") as log,
    ):
        fd = listener.fileno()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--worker-class", "gevent"),
                *("--workers", "2", "--graceful-timeout", "10", "--no-control-socket", *words, "app"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "TABLES": json.dumps(tables),
                "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            },
            pass_fds=[fd],
            stdout=log,
            stderr=log,
        )
        try:
            yield listener.getsockname()[1]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
                raise


def get(port: int, text: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", f"/?text={text}", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_of_two_hundred_requests_at_once_none_is_lost(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        # The first hundred are answered once all of them are waiting, in two processes with one thread each.
        asked: list[Received] = []

        def hold(received: Received) -> None:
            asked.append(received)
            if len(asked) == 1:
                provider.pause()
            if len(asked) == 100:
                provider.resume()

        provider.script(hold)
        with serving(tmp_path, provider) as port, ThreadPoolExecutor(CALLS) as pool:
            answers = list(pool.map(lambda number: get(port, f"call-{number}"), range(CALLS)))
        assert [answer for _, (_, answer) in answers] == [f"call-{number}" for number in range(CALLS)]
        assert {status for status, _ in answers} == {200}
        assert provider.received == CALLS
        assert provider.peak_in_flight >= 100
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert [entry.outcome for entry in ledger.entries(None)] == ["ok"] * CALLS


def test_an_application_loaded_before_the_patches_says_what_is_wrong(tmp_path: Path) -> None:
    with (
        Provider(models=["m"]) as provider,
        serving(tmp_path, provider, "--preload", "--graceful-timeout", "1") as port,
    ):
        _, (_, answer) = get(port, "call")
        assert "after fastroute was imported" in answer
        assert provider.received == 0


def test_patches_in_the_servers_configuration_allow_loading_before_the_fork(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("from gevent import monkey\n\nmonkey.patch_all()\n")
    with (
        Provider(models=["m"]) as provider,
        serving(tmp_path, provider, "--preload", "-c", "early.py") as port,
    ):
        assert [get(port, f"call-{number}")[1][1] for number in range(5)] == [f"call-{n}" for n in range(5)]
