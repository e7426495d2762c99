"""Code under gevent's patches, in a process of its own, since patches cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PRELUDE = """
from gevent import monkey; monkey.patch_all()
import json, os, signal, subprocess, sys
import gevent
import fastroute

with open("tables.json") as file:
    client = fastroute.Client(json.load(file))

def ask(text="hello"):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
"""


def run(folder: Path, tables: dict[str, Any], code: str, *arguments: str) -> Any:
    """What the last line of output of code under gevent's patches says, in a process of its own."""
    (folder / "tables.json").write_text(json.dumps(tables))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("FASTROUTE")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
