"""What Sentry's SDK sends of an error: no prompt in fastroute's frames, set up as docs/hosting.md says."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from needs import need

from fastroute.testing import Fault, Provider

PAGE = Path(__file__).parents[2] / "docs" / "hosting.md"
(AS_DOCUMENTED,) = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8").partition("## Sentry")[2], re.DOTALL
)
SET_UPS = {
    "as documented": AS_DOCUMENTED,
    "no local variables": "import os, sentry_sdk\n"
    "sentry_sdk.init(dsn=os.environ['SENTRY_DSN'], include_local_variables=False)\n",
    "unset": "import os, sentry_sdk\nsentry_sdk.init(dsn=os.environ['SENTRY_DSN'])\n",
}
PROGRAM = """
import json, os
import fastroute
from caller import ask
client = fastroute.Client(json.loads(os.environ["TABLES"]))
for more in ({}, {"timeout": 0.2}, {"temperature": "hot"}):
    try:
        ask(client, **more)
    except fastroute.Error as error:
        sentry_sdk.capture_exception(error)
sentry_sdk.flush()
"""
# In a file of its own, because the SDK sends the lines around each frame too.
CALLER = """
def ask(client, **more):
    return client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "".join(map(chr, range(945, 970))) * 100}], **more
    )
"""
PROMPT = "".join(map(chr, range(945, 970)))


@contextmanager
def sentry() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes events: its DSN, and what arrived."""
    events: list[dict[str, Any]] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            events.extend(each for each in map(json.loads, body.splitlines()) if "exception" in each)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://key@127.0.0.1:{server.server_port}/1", events
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", SET_UPS)
def test_no_prompt_is_sent_in_the_packages_frames(way: str, tmp_path: Path) -> None:
    need("sentry_sdk", load=False)
    (tmp_path / "caller.py").write_text(CALLER)
    with Provider(models=["m"], latency=1.0) as provider, sentry() as (dsn, events):
        provider.script(Fault.status(400))
        tables = {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": provider.base_url, "models": ["m"]}},
        }
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SET_UPS[way] + PROGRAM],
            env={
                **os.environ,
                "SENTRY_DSN": dsn,
                "TABLES": json.dumps(tables),
                "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert len(events) == 3
    frames = [
        frame
        for event in events
        for error in event["exception"]["values"]
        for frame in error["stacktrace"]["frames"]
    ]
    shown = {
        frame["module"] for frame in frames if PROMPT in json.dumps(frame.get("vars"), ensure_ascii=False)
    }
    assert {frame["module"] for frame in frames} >= {"caller", "fastroute.client"}
    if way == "unset":
        # What the page says of the default: or else the advice is no longer needed.
        assert "fastroute.client" in shown
    else:
        assert shown == set()
    requests = [frame["vars"]["request"] for frame in frames if "request" in frame.get("vars", ())]
    assert all(PROMPT not in str(request) for request in requests)
