"""Many calls, and many clients that are made and closed or made and dropped: nothing may grow.

    python -m tests.soak.lives --calls 200000 --clients 10000

All in one process, in front of a provider in another one. The calls are plain, streamed and submitted, some
are refused by the provider and some streams are dropped half read; every prompt differs, so the cache turns
over. Half of the clients are closed, the others are dropped. Between rounds it looks at the resident memory,
the threads, the open descriptors, the mappings of shared memory and the objects that the garbage collector
knows. The first tenth of the rounds is warm-up; after that no thread, descriptor or mapping may come to stay,
and memory and objects must not grow beyond a bound.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS)]

from loopback import open_files  # noqa: E402

import fastroute  # noqa: E402
from fastroute import Client  # noqa: E402
from fastroute.testing import Provider  # noqa: E402

THREADS = 8
ROUNDS = 20
SLACK = (2, THREADS + 2, 1)
"""Threads, descriptors and mappings that later rounds may have more, once: if more calls run at once than
ever before, each needs a connection of its own."""
PATIENCE = 10.0  # seconds in which what ends by itself has ended


class Figures(NamedTuple):
    """What the process has.

    Attributes:
        memory: resident, KiB.
        objects: known to the garbage collector.
    """

    memory: int
    objects: int
    threads: int
    descriptors: int
    shared: int


def figures() -> Figures:
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return Figures(
        memory=pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        objects=len(gc.get_objects()),
        threads=threading.active_count(),
        descriptors=len(open_files()),
        shared=_shared(),
    )


def _shared() -> int:
    """Mappings of shared memory, and files of ours in the folder of shared memory."""
    with open("/proc/self/maps") as file:
        mapped = sum(line.split()[1].endswith("s") for line in file)
    return mapped + sum("fastroute" in name for name in os.listdir("/dev/shm"))


def configuration(provider: Provider, ledger: Path) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": str(ledger), "timeout": 20.0, "workers": 1},
        "cache": {"enabled": True, "max_entries": 100},
        "providers": {"local": {"base_url": provider.base_url, "rpm": 100_000_000, "burst": 1_000_000}},
        "endpoints": [{"provider": "local", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
        "budgets": [{"name": "all", "limit": 1_000_000.0, "window": "total"}],
        "policy": {"breaker": {"failures": 255, "min_calls": 10_000}, "backoff_base": 0.001},
    }


def ask(client: Client, number: int) -> None:
    """One call; its kind follows from its number."""
    create = client.chat.completions.create
    call: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": f"call {number}"}]}
    kind = number % 20
    if kind == 0:
        with create(**call, stream=True) as stream:
            for _ in stream:
                pass
    elif kind == 1:
        next(create(**call, stream=True))  # dropped half read
    elif kind == 2:
        client.submit(**call).result()
    elif kind == 3:
        try:
            create(**call, temperature=-99.0)
        except fastroute.BadRequestError:
            pass
    else:
        create(**call)


def many_calls(client: Client, first: int, count: int) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda number: ask(client, number), range(first, first + count)):
            pass


def many_clients(make: Callable[[], Client], count: int) -> None:
    for number in range(count):
        client = make()
        ask(client, 4)
        if number % 2:
            client.close()
        del client


def settled(wanted: Figures | None) -> Figures:
    """The figures, once no more threads, descriptors and mappings are there than wanted, or after a while."""
    end = time.monotonic() + PATIENCE
    while True:
        found = figures()
        more = wanted is not None and any(
            now > before + slack for now, before, slack in zip(found[2:], wanted[2:], SLACK)
        )
        if not more or time.monotonic() > end:
            return found
        time.sleep(0.05)


def run(
    calls: int, clients: int, folder: Path, report: Callable[[str, Figures], object], rounds: int = ROUNDS
) -> list[str]:
    """Makes the calls and the clients; returns what has grown."""
    grown: list[str] = []
    with Provider(process=True, answer="one two three four", log_size=100) as provider:
        with Client(configuration(provider, folder / "calls.db")) as client:
            each = calls // rounds
            grown += _rounds("calls", rounds, each, report, lambda at: many_calls(client, at * each, each))
        # A ledger of their own: each client's budget begins with the sum of what is in it.
        tables = configuration(provider, folder / "clients.db")
        each = clients // rounds
        grown += _rounds(
            "clients", rounds, each, report, lambda at: many_clients(lambda: Client(tables), each)
        )
    return grown


def _rounds(
    what: str, rounds: int, each: int, report: Callable[[str, Figures], object], work: Callable[[int], None]
) -> list[str]:
    first: Figures | None = None
    found: list[Figures] = []
    for at in range(rounds):
        work(at)
        found.append(settled(first))
        report(f"{(at + 1) * each:,} {what}", found[-1])
        if at >= max(rounds // 10 - 1, 0) and first is None:
            first = found[-1]
    assert first is not None
    grown = []
    for name, slack in zip(("threads", "descriptors", "shared"), SLACK):
        before, after = getattr(first, name), max(getattr(each, name) for each in found[-3:])
        if after > before + slack:
            grown.append(f"{what}: {name} from {before} to {after}")
    last = Figures(*map(min, zip(*found[-3:])))  # the least of the last rounds: what is there for good
    if last.memory > first.memory * 1.05 + 4096:
        grown.append(f"{what}: memory from {first.memory:,} to {last.memory:,} KiB")
    if last.objects > first.objects * 1.02 + 2000:
        grown.append(f"{what}: objects from {first.objects:,} to {last.objects:,}")
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=10_000)
    options = parser.parse_args()
    started = time.monotonic()

    def report(what: str, found: Figures) -> None:
        took = time.monotonic() - started
        names = ("memory", "objects", "threads", "descriptors", "shared")
        shown = "  ".join(f"{name} {value:,}" for name, value in zip(names, found))
        print(f"{took:6.0f} s  {what:>16}  {shown}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        grown = run(options.calls, options.clients, Path(folder), report)
    for line in grown:
        print(line)
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
