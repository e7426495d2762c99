"""What importing costs, each time in a fresh interpreter, with the byte code that installing leaves."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fastroute

from .side_by_side import MissingError, Trial

_CODE = """
import os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import time
begun = time.perf_counter()
try:
    {statement}
except ImportError:
    print("missing")
    raise SystemExit
took = time.perf_counter() - begun
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[1])
print(took * 1e3, pages * os.sysconf("SC_PAGESIZE") / 2**20)
"""

_STATEMENTS = {
    "no-op": "pass",
    "requests": "import requests",
    "fastroute": "import fastroute",
    "fastroute, with its client": "import fastroute; fastroute.Client",
    "openai": "import openai; openai.OpenAI",
    "litellm": "import litellm; litellm.completion",
}


def _fresh(statement: str) -> Callable[[float], list[float]]:
    def run(_: float) -> list[float]:
        # A source tree may have none, as where PYTHONDONTWRITEBYTECODE is set.
        compileall.compile_dir(str(Path(fastroute.__file__).parent), quiet=2)
        command = [sys.executable, "-W", "ignore", "-c", _CODE.format(statement=statement)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        if out == ["missing"]:
            raise MissingError(f"{statement}: not installed")
        return [float(figure) for figure in out]

    return run


TRIALS = (
    Trial(
        "Import, in a fresh interpreter",
        ("ms", "MiB resident"),
        {name: _fresh(statement) for name, statement in _STATEMENTS.items()},
        seconds=0.0,
        rounds=7,
        base="requests",
        ratio="ms",
    ),
)
