"""Nothing is sent before the first call: not at import, not when clients and servers are made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib, os, pkgutil, sys

asked = []

def hear(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        asked.append((event, arguments))

sys.addaudithook(hear)

import fastroute

for found in pkgutil.walk_packages(fastroute.__path__, "fastroute."):
    if not found.name.endswith("__main__") and "hook-" not in found.name:
        importlib.import_module(found.name)
assert not asked, ("import", asked)

client = fastroute.Client()
client.plan(messages=[{"role": "user", "content": "hello"}])
client.stats()
assert not asked, ("client", asked)

from flask import Flask

import fastroute.gateway
from fastroute.integrations.flask import FastRoute

FastRoute(Flask("app"))
fastroute.gateway.create_app(client=client)
assert not asked, ("servers", asked)

from fastroute.testing import Provider

with Provider() as provider:
    providers = {"a": {"base_url": provider.base_url}}
    tables = {"providers": providers, "endpoints": [{"provider": "a", "model": "m"}]}
    with fastroute.Client(tables) as other:
        other.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
assert asked, "the hook hears nothing"
client.close()
print("quiet")
"""


def test_import_and_start_send_nothing(tmp_path: Path) -> None:
    environ = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none", "HOME": str(tmp_path)}
    environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.stdout == "quiet\n", ended.stderr
