"""The time and memory of imports in a fresh interpreter, with compiled byte code."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import fastroute

from .side_by_side import MissingError, Trial, WrongAnswerError

_CODE = """
import os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import sys
import time
known = set(sys.modules)
begun = time.perf_counter()
{statement}
took = time.perf_counter() - begun
new = set(sys.modules) - known
assert {modules!r} <= new, sorted(new)
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[1])
print(took * 1e3, pages * os.sysconf("SC_PAGESIZE") / 2**20)
"""


def fresh(statement: str, modules: set[str], peer: str = "") -> Callable[[float], list[float]]:
    """Milliseconds and MiB of a statement in a new interpreter.

    Args:
        modules: modules that the statement must have imported.
        peer: a module that may be missing.
    """

    def run(_: float) -> list[float]:
        if peer and find_spec(peer) is None:
            raise MissingError(f"{peer} is not installed")
        # A source tree may have no byte code, for instance with PYTHONDONTWRITEBYTECODE.
        compileall.compile_dir(str(Path(fastroute.__file__).parent), quiet=2)
        code = _CODE.format(statement=statement, modules=modules)
        ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        if ended.returncode:
            raise WrongAnswerError(f"{statement!r} ended with:\n{ended.stderr}")
        return [float(figure) for figure in ended.stdout.split()]

    return run


TRIALS = (
    Trial(
        "Import, in a fresh interpreter",
        ("ms", "MiB resident"),
        {
            "no-op": fresh("pass", set()),
            "requests": fresh("import requests", {"requests", "urllib3"}),
            "fastroute": fresh("import fastroute", {"fastroute"}),
            "fastroute, with its client": fresh(
                "import fastroute; fastroute.Client", {"fastroute.client", "requests"}
            ),
            "openai": fresh("import openai; openai.OpenAI", {"openai.types.chat", "pydantic"}, "openai"),
            "litellm": fresh("import litellm; litellm.completion", {"litellm.main"}, "litellm"),
        },
        seconds=0.0,
        rounds=7,
        base="requests",
        ratio="ms",
    ),
)
