"""Machine instructions counted by callgrind, which do not depend on the machine's load; needs valgrind.

Each statement runs a number of times in one process and more often in another. The difference is that of the
statement, without the start of the interpreter. The row ``no-op`` is the empty loop.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from .calls import short
from .side_by_side import MissingError, Trial
from .workers import in_threads

_CORE = """
from fastroute import _core
segment = _core.Segment(4096)
bucket = _core.Bucket(segment, "bucket", 10**9, 10**9)
empty = _core.Bucket(segment, "empty", 1, 1)
empty.acquire()
breaker = _core.Breaker(segment, "breaker")
limits = dict(rpm=10**9, request_burst=10**9, tpm=10**9, token_burst=10**9)
endpoints = [_core.Endpoint(segment, f"endpoint-{n}", **limits) for n in range(10)]
for endpoint in endpoints:
    endpoint.finish(endpoint.admit(1), _core.OK, 0.5)
endpoint = endpoints[0]
same = dict(models=0, windows=128000, max_outputs=16384, capabilities=15, input_prices=2 * 10**9,
            output_prices=8 * 10**9, qualities=0.9, latencies=1.0)
ranking = _core.Ranking(endpoints, **{name: [value] * 10 for name, value in same.items()})
clock, acquire, refuse, OK = _core.clock, bucket.acquire, empty.acquire, _core.OK
allow, record, admit, finish = breaker.allow, breaker.record, endpoint.admit, endpoint.finish
choice = ranking.choice(_core.LATENCY, 10**9, 10**9, 0.5, 60.0, True)
pick, rank, enter, LATENCY = ranking.pick, choice.rank, choice.admit, _core.LATENCY
"""

_CALL = """
from contextlib import ExitStack
from benchmarks import calls
call = calls.checked(calls.{maker}(ExitStack(), {url!r}))
for _ in range(20):
    call()
"""

# For each contender: a statement, and an expression that checks its result.
STATEMENTS = {
    "no-op": ("None", "answer is None"),
    "floor: method call, one clock read": ("clock()", "answer > 0"),
    "Bucket.acquire, granted": ("acquire()", "answer == 0"),
    "Bucket.acquire, refused": ("refuse()", "answer > 0"),
    "Breaker.allow + record": ("record(allow(), OK)", "answer == -1"),
    "Endpoint.admit + finish": ("finish(admit(700), OK, 0.5, -100)", "answer == 0"),
    "Ranking.pick of 10": ("pick(LATENCY, 7)", "0 <= answer < 10"),
    "Choice.rank of 10, all filters on": ("rank(100, 256, 15)", "len(set(answer.order)) == 10"),
    "Choice.admit of 10, all filters on, + finish": (
        "endpoints[(found := enter(100, 256, 15)).chosen].finish(found.take(), OK, 0.5)",
        "answer == 0 and not any(each.in_flight for each in endpoints)",
    ),
}


def program(statement: str, check: str, times: int, setup: str = _CORE) -> str:
    """A program that evaluates the statement ``times`` times and fails on a wrong result."""
    return f"""{setup}
def run():
    for _ in range({times}):
        {statement}
run()
answer = {statement}
assert {check}, answer
"""


def instructions(code: str) -> int:
    """The number of instructions that a new interpreter executes for a program."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", code]
    # With a fixed hash seed, the interpreter starts in the same way for all programs.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.search(r"Collected : (\d+)", ended.stderr)
    if ended.returncode or found is None:
        raise RuntimeError(f"valgrind ended with status {ended.returncode}:\n{ended.stderr}")
    return int(found.group(1))


def _counted(statement: str, check: str, times: int, setup: str = _CORE) -> list[float]:
    if shutil.which("valgrind") is None:
        raise MissingError("valgrind is not installed")
    few, many = in_threads(
        2, instructions, [program(statement, check, number, setup) for number in (times, 3 * times)]
    )
    return [(many - few) / (2 * times)]


def _core(name: str) -> Callable[[float], list[float]]:
    return lambda _: _counted(*STATEMENTS[name], 20_000)


def _call(maker: str) -> Callable[[float], list[float]]:
    def run(_: float) -> list[float]:
        with ExitStack() as stack:
            setup = _CALL.format(maker=maker, url=short.join(stack))
            return _counted("call()", "answer is None", 150, setup)

    return run


TRIALS = (
    Trial(
        "Instructions",
        ("instructions",),
        {
            **{name: _core(name) for name in STATEMENTS},
            "a whole call on loopback, all features on": _call("routed"),
            "its transport alone": _call("transport"),
        },
        seconds=0.0,
        rounds=1,
        note="under callgrind: user space, all threads of the process; independent of the machine's load",
    ),
)
