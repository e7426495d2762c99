"""Reloads in notebooks: of a module with a client by IPython's autoreload, and of the package itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from needs import need

from fastroute.testing import Provider

WORK = """
import json, os
import fastroute
client = fastroute.Client(json.loads(os.environ["TABLES"]))
def ask():
    messages = [{"role": "user", "content": "version VERSION"}]
    return client.chat.completions.create(model="m", messages=messages).text
"""
AUTORELOAD = """
import gc, json, os, threading
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "autoreload")
shell.run_line_magic("autoreload", "2")
def cell(code):
    assert shell.run_cell(code).success
    return shell.user_ns.get("answer")
text = open("work.py").read()
answers = [cell("import work; answer = work.ask()")]
for version in range(3):
    with open("work.py", "w") as file:
        file.write(text.replace("VERSION", str(version)))
    os.utime("work.py", (2**31 + version,) * 2)  # newer than any version before
    answers.append(cell("answer = work.ask()"))
gc.collect()
cell("work.client.close()")
for thread in threading.enumerate():
    if thread.name.startswith("fastroute-ledger"):
        thread.join(20)
left = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("fastroute"))
print(json.dumps([answers, left]))
"""
RELOAD = """
import importlib, json, os
import fastroute
import fastroute.platform.forks as forks
client = fastroute.Client(json.loads(os.environ["TABLES"]))
def ask():
    messages = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model="m", messages=messages).text
kinds = fastroute.Client, fastroute.Error
answers = [ask()]
importlib.reload(fastroute)
answers.append(ask())
actions = list(forks.actions)
try:
    importlib.reload(forks)
except ImportError as error:
    answers.append(str(error))
same = kinds == (fastroute.Client, fastroute.Error) and forks.actions == actions != []
client.close()
print(json.dumps([answers, same]))
"""


def run(provider: Provider, folder: Path, code: str) -> Any:
    tables = {
        "fastroute": {"ledger": str(folder / "ledger.db")},
        "providers": {"p": {"base_url": provider.base_url, "models": ["m"]}},
        "cache": {"enabled": False},
    }
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "TABLES": json.dumps(tables), "IPYTHONDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_autoreload_of_a_module_with_a_client(tmp_path: Path) -> None:
    """Each reload makes a client; those before end their threads."""
    need("IPython", load=False)
    (tmp_path / "work.py").write_text(WORK)
    with Provider() as provider:
        answers, left = run(provider, tmp_path, AUTORELOAD)
    assert answers == ["version VERSION", "version 0", "version 1", "version 2"]
    assert left == ["fastroute-timer"]


def test_a_reload_of_the_package(tmp_path: Path) -> None:
    with Provider() as provider:
        answers, same = run(provider, tmp_path, RELOAD)
    refused = (
        "fastroute cannot be reloaded in a running process; restart the process (in a notebook: the kernel)"
    )
    assert answers == ["hello", "hello", refused]
    assert same
