"""Counts the machine instructions of the core's calls under callgrind: a busy machine cannot move them.

``python -m benchmarks.count_instructions`` (needs valgrind). Each call runs a few ten thousand times in one
process and three times as often in another; the difference is the call's own, as the interpreter's start
cancels out. The row ``no-op`` is the loop.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

FEW = 20_000

_SETUP = """
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

CALLS = {
    "no-op": "None",
    "clock": "clock()",
    "Bucket.acquire, granted": "acquire()",
    "Bucket.acquire, refused": "refuse()",
    "Breaker.allow + record": "record(allow(), OK)",
    "Endpoint.admit + finish": "finish(admit(700), OK, 0.5, -100)",
    "Ranking.pick of 10": "pick(LATENCY, 7)",
    "Choice.rank of 10, all filters on": "rank(100, 256, 15)",
    "Choice.admit of 10, all filters on, + finish": (
        "endpoints[(found := enter(100, 256, 15)).chosen].finish(found.take(), OK, 0.5)"
    ),
}


def instructions(statement: str, times: int) -> int:
    """Instructions that a process executes which evaluates the statement so many times."""
    code = f"{_SETUP}\ndef run():\n    for _ in range({times}):\n        {statement}\nrun()\n"
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", code]
    # A fixed hash seed: the start of the interpreter must not differ between the two processes.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if found is None:
        raise SystemExit(f"valgrind said nothing that is understood here:\n{run.stderr}")
    return int(found.group(1))


def main() -> None:
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed")
    print("| call | instructions |\n|---|---:|")
    for name, statement in CALLS.items():
        each = (instructions(statement, 3 * FEW) - instructions(statement, FEW)) / (2 * FEW)
        print(f"| {name} | {each:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
