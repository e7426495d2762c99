"""Sends documents of very many tiny values to the gateway and as answers, and measures what they cost.

    python -m tests.soak.tiny_values
    python -m tests.soak.tiny_values --mib 10

Each document is read in a process of its own. Its memory may grow by a few times the document's bytes, which
are received, joined and passed on, and by objects only if the document has no more values than are allowed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "gateway")]

from gateways import CHAT, HELLO, configuration  # noqa: E402
from werkzeug.test import create_environ, run_wsgi_app  # noqa: E402

import fastroute  # noqa: E402
from fastroute.gateway.app import Gateway  # noqa: E402
from fastroute.gateway.keys import Caller, KeyFile  # noqa: E402
from fastroute.testing import Fault, Provider  # noqa: E402

SHAPES = {"lists": b"[],", "objects": b"{},", "keys": b'{"":0},', "numbers": b"1.5,", "texts": b'"\xc3\xa9",'}
DOORS = ("body", "answer", "event")
ALLOWED = {"body": 250_000, "answer": 2_000_000, "event": 2_000_000}
# How much a process may grow.
TIMES = 5  # the size of the document
BYTES = 128  # for each value of a document that is allowed


def document(door: str, shape: str, size: int) -> bytes:
    piece = SHAPES[shape]
    values = b"[" + piece * (size // len(piece)) + b"0]"
    if door == "body":
        return b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + values + b"}"
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: "
    if door == "answer":
        return head + b'application/json\r\n\r\n{"choices": ' + values + b"}"
    return head + b'text/event-stream\r\n\r\ndata: {"choices": ' + values + b"}\n\n"


def measure(door: str, shape: str, size: int) -> dict[str, Any]:
    """What one document costs this process, after a first call."""
    sent = document(door, shape, size)
    with tempfile.TemporaryDirectory() as folder, Provider(process=True, strict=False) as provider:
        keys = KeyFile(Path(folder) / "keys.db")
        token = keys.create(Caller("web"))
        tables = configuration(provider.base_url, Path(folder), policy={"max_attempts": 1})
        with fastroute.Client(tables) as client:
            app = Gateway(client, keys)

            def ask(body: bytes) -> str:
                environ = create_environ(CHAT, method="POST", headers={"Authorization": f"Bearer {token}"})
                environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
                environ["wsgi.input"] = io.BytesIO(body)
                _, status, _ = run_wsgi_app(app, environ, buffered=True)
                return status

            body = json.dumps({**HELLO, "stream": door == "event"}).encode()
            assert ask(body) == "200 OK"
            if door != "body":
                provider.script(Fault.raw(sent))
            before = resource.getrusage(resource.RUSAGE_SELF)
            began = time.process_time()
            status = ask(sent if door == "body" else body)
            seconds = time.process_time() - began
            after = resource.getrusage(resource.RUSAGE_SELF)
    grown = (after.ru_maxrss - before.ru_maxrss) * 1024
    return {"status": status, "cpu_s": round(seconds, 3), "grown_mb": round(grown / 1e6, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=9, help="size of each document; default 9")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = asked.mib << 20
    if asked.one:
        print(json.dumps(measure(*asked.one, size)))
        return 0
    failed = 0
    for door in DOORS:
        for shape in SHAPES:
            command = [sys.executable, "-m", "tests.soak.tiny_values", "--mib", str(asked.mib)]
            run = subprocess.run([*command, "--one", door, shape], capture_output=True, check=True)
            found = json.loads(run.stdout)
            values = size // len(SHAPES[shape])
            most = TIMES * size + (BYTES * values if values < ALLOWED[door] else 0)
            good = found["status"] != "200 OK" and found["grown_mb"] * 1e6 < most
            failed += not good
            print(f"{door:7}{shape:9}{found}{'' if good else '  FAILED'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
