"""The soak test of calls: calls that are cancelled, time out or are killed leave nothing behind.

    python -m tests.soak.calls --calls 1000000 --minutes 12

Several processes call a local provider from several threads each, with limits, budgets, a ledger and a state
file, until the number of calls or the time is reached. One call in a hundred is a stream that is closed after
its first chunk, one in a hundred has less time than its answer takes, and one in two hundred gets a 503
first. After every thousandth call a process is killed with SIGKILL and replaced. Every thread records each
attempt that it made, and the provider each request that it received.

Afterwards nothing may be reserved or in flight. Every recorded attempt must be in the ledger at its cost, and
every answer in the ledger must be one of the provider's, once. The budget must have spent the sum of the
ledger to the nano-dollar, except for kills: a request that was sent and not settled stays spent at its
estimate, at most one for each killed thread.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import random
import shutil
import signal
import sqlite3
import struct
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastroute
from fastroute.testing import Fault, Provider

OUTPUT = 8  # tokens of an answer, and the most that a call asks for
INPUT_PRICE, OUTPUT_PRICE = 1.0, 3.0  # USD per million tokens
SLOW = "slow"
BROKEN = "broken"


@dataclass
class Figures:
    """What a run came to; amounts in nano-dollars."""

    calls: int = 0
    kills: int = 0
    cancelled: int = 0
    timed_out: int = 0
    refused: int = 0
    seconds: float = 0.0
    processes: int = 0
    received: int = 0
    entries: int = 0
    noted: int = 0
    spent: int = 0
    in_ledger: int = 0
    interrupted: int = 0
    entered: int = 0
    workers_left: int = 0

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls in {self.seconds:.0f} s from {self.processes:,} processes, "
            f"{self.kills:,} of them killed; {self.cancelled:,} calls cancelled, {self.timed_out:,} out of "
            f"time, {self.refused:,} failed otherwise; the provider took {self.received:,} requests, the "
            f"ledger has {self.entries:,}; {self.noted:,} attempts noted by callers, 0 lost; ledger "
            f"{self.in_ledger:,} nano-dollars, budget {self.spent:,}, the difference exactly the estimates "
            f"of {self.interrupted:,} requests interrupted by kills, less {self.entered} whose entries were "
            f"made before; reserved 0, in flight 0, processes left in the state {self.workers_left}"
        )


def configuration(folder: Path, port: int, permits: int) -> dict[str, Any]:
    return {
        "fastroute": {"state": str(folder / "state"), "ledger": str(folder / "ledger.db"), "timeout": 60},
        "providers": {
            "p": {
                "base_url": f"http://127.0.0.1:{port}/v1",
                "rpm": 1_000_000,
                "tpm": 1_000_000_000,
                "max_in_flight": permits,
            }
        },
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {
            "m": {"input_price": INPUT_PRICE, "output_price": OUTPUT_PRICE, "max_output_tokens": OUTPUT}
        },
        "budgets": [
            {"name": "all", "limit": 1_000_000, "window": "total"},
            {"name": "teams", "limit": 1_000_000, "window": "total", "per": "tag:team"},
        ],
        "cache": {"enabled": False},
        # Breakers and retry budgets would keep most of the calls from being made.
        "policy": {
            "max_attempts": 2,
            "max_queue": 10_000,
            "queue_timeout": 50,
            "backoff_base": 0.001,
            "backoff_cap": 0.002,
            "breaker": {"failures": 255, "min_calls": 10_000},
        },
    }


# ------------------------------------------------------------------------------------------ the provider


def provide(folder: Path, told: int) -> None:
    """Serves until it is killed; writes the id and tokens of every request it answers in a file."""
    served = open(folder / "served", "w", buffering=1 << 16)  # noqa: SIM115
    serial = 0
    taken: set[bytes] = set()

    def look(received: Any) -> Fault | None:
        nonlocal serial
        serial += 1
        served.write(f"req_{serial:08x}\n")
        body: bytes = received.body
        if SLOW.encode() in body:
            return Fault.slow(0.4)
        if BROKEN.encode() in body and body not in taken:
            taken.add(body)  # its second attempt is answered
            return Fault.status(503)
        return None

    with Provider(models=["m"], answer=OUTPUT, log_size=1) as provider:
        provider.script(look)
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        os.write(told, struct.pack("q", provider.port))
        asked.wait()
        (folder / "received").write_text(str(provider.received))
    served.close()


# ------------------------------------------------------------------------------------------- the callers


class Counts:
    """Whole numbers that outlive the process that counts: one a slot, each written by one thread."""

    NAMES = ("calls", "cancelled", "timed_out", "refused")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._memory = mmap.mmap(-1, slots * len(self.NAMES) * 8)

    def add(self, name: str, slot: int) -> None:
        place = (self.NAMES.index(name) * self._slots + slot) * 8
        (present,) = struct.unpack_from("q", self._memory, place)
        struct.pack_into("q", self._memory, place, present + 1)

    def total(self, name: str) -> int:
        start = self.NAMES.index(name) * self._slots * 8
        return sum(struct.unpack_from(f"{self._slots}q", self._memory, start))

    def close(self) -> None:
        self._memory.close()


def call(
    client: fastroute.Client, team: str, chance: random.Random, number: int
) -> tuple[str, tuple[fastroute.Attempt, ...]]:
    """One call: what became of it, and its attempts."""
    kind = chance.random()
    word = "plain "
    timeout = None
    if 0.01 <= kind < 0.02:
        word, timeout = f"{SLOW}  ", 0.1
    elif 0.02 <= kind < 0.025:
        word = BROKEN
    # All of one length, so that all have one estimate.
    messages = [{"role": "user", "content": f"{word} {team} {os.getpid():010d} {number:010d}"}]
    route = {"tags": {"team": team}}
    create = client.chat.completions.create
    try:
        if kind < 0.01 or kind > 0.9:
            with create(model="m", messages=messages, max_tokens=OUTPUT, route=route, stream=True) as stream:
                next(stream)
                if kind >= 0.01:
                    for _ in stream:
                        pass
            return ("cancelled" if kind < 0.01 else ""), stream.route.attempts
        reply = create(model="m", messages=messages, max_tokens=OUTPUT, route=route, timeout=timeout)
        assert reply.route is not None
        return "", reply.route.attempts
    except (fastroute.DeadlineExceeded, fastroute.APITimeoutError) as error:
        return "timed_out", error.attempts
    except fastroute.Error as error:
        traceback.print_exc()
        return "refused", error.attempts


def work(
    settings: dict[str, Any], folder: Path, counts: Counts, slots: range, seed: int, last: int, until: float
) -> None:
    """One process: calls from a thread for each of its slots until there were enough or the time is over."""
    numbers = itertools.count()
    with fastroute.Client(settings) as client:

        def run(slot: int) -> None:
            chance = random.Random(f"{seed} {slot}")
            notes = os.open(folder / f"notes-{slot}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            while counts.total("calls") < last and time.monotonic() < until:
                became, attempts = call(client, f"team{slot % 3}", chance, next(numbers))
                for attempt in attempts:
                    cost = attempt.cost_nano if attempt.budget_nano is None else attempt.budget_nano
                    os.write(notes, f"{attempt.id} {cost}\n".encode())
                if became:
                    counts.add(became, slot)
                counts.add("calls", slot)
            os.close(notes)

        threads = [threading.Thread(target=run, args=(slot,)) for slot in slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def fork(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


# ------------------------------------------------------------------------------------------------ a run


def soak(
    folder: Path,
    *,
    calls: int,
    minutes: float,
    processes: int = 4,
    threads: int = 8,
    kill_every: int = 1000,
    seed: int = 0,
) -> Figures:
    """A run, and its checks.

    Raises:
        AssertionError: something was lost, left behind or does not add up.
    """
    reading, writing = os.pipe()
    provider = fork(lambda: provide(folder, writing))
    os.close(writing)
    with open(reading, "rb") as pipe:
        (port,) = struct.unpack("q", pipe.read(8))
    settings = configuration(folder, port, max(1, processes * threads * 3 // 4))
    figures = Figures()
    counts = Counts(processes * threads)
    begun = time.monotonic()
    try:
        estimate = fork_and_read(lambda: estimate_of(settings))
        figures.calls, figures.kills, figures.processes = drive(
            settings, folder, counts, calls, minutes, processes, threads, kill_every, seed
        )
        figures.cancelled = counts.total("cancelled")
        figures.timed_out = counts.total("timed_out")
        figures.refused = counts.total("refused")
        figures.seconds = time.monotonic() - begun
    finally:
        counts.close()
        os.kill(provider, signal.SIGTERM)
        os.waitpid(provider, 0)
    with fastroute.Client(settings) as client:
        check(client, folder, estimate, threads, figures)
    return figures


def drive(
    settings: dict[str, Any],
    folder: Path,
    counts: Counts,
    calls: int,
    minutes: float,
    processes: int,
    threads: int,
    kill_every: int,
    seed: int,
) -> tuple[int, int, int]:
    """Keeps the processes going and kills them; calls, kills and processes there were."""
    chance = random.Random(seed)
    until = time.monotonic() + 60 * minutes
    said = time.monotonic()
    kills = started = 0
    running: dict[int, int] = {}  # by pid: its place

    def start(place: int) -> None:
        nonlocal started
        started += 1
        number = started
        slots = range(place * threads, (place + 1) * threads)
        pid = fork(lambda: work(settings, folder, counts, slots, seed * 1_000_003 + number, calls, until))
        running[pid] = place

    for place in range(processes):
        start(place)
    while running:
        done = counts.total("calls")
        over = done >= calls or time.monotonic() >= until
        if not over and done // kill_every > kills:
            victim = chance.choice(sorted(running))
            time.sleep(chance.random() * 0.01)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            kills += 1
            start(running.pop(victim))
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                assert status == 0, f"a process ended with {status}"
        if time.monotonic() > said + 30:
            said = time.monotonic()
            print(f"{done:,} calls, {kills} kills, {until - said:.0f} s left", flush=True)
        time.sleep(0.005)
    return counts.total("calls"), kills, started


def fork_and_read(compute: Callable[[], int]) -> int:
    """A number worked out in a child: a parent with threads could not fork the others."""
    reading, writing = os.pipe()

    def tell() -> None:
        os.write(writing, struct.pack("q", compute()))

    pid = fork(tell)
    os.close(writing)
    with open(reading, "rb") as pipe:
        (value,) = struct.unpack("q", pipe.read(8))
    os.waitpid(pid, 0)
    return int(value)


def estimate_of(settings: dict[str, Any]) -> int:
    """Nano-dollars that a call reserves: read off while one waits for its answer."""
    with fastroute.Client(settings) as client:
        chance = random.Random()
        chance.random = lambda: 0.015  # type: ignore[method-assign]  # a slow one
        caller = threading.Thread(target=call, args=(client, "team0", chance, 0))
        caller.start()
        while not (reserved := client.stats()["budgets"][0].reserved_nano):
            time.sleep(0.001)
        caller.join()
        return int(reserved)


# -------------------------------------------------------------------------------------------- afterwards


def check(client: fastroute.Client, folder: Path, estimate: int, threads: int, figures: Figures) -> None:
    client.ledger.flush(60)  # brings in what killed processes left in their journals
    generation = client.runtime.generation
    generation.state.segment.reap()
    generation.budgets.sweep()
    for team in range(3):  # statuses are given of tags that this process has seen
        generation.budgets.reserve(1, {"team": f"team{team}"}, 60).settle(0)
    stats = client.stats()
    budgets = {(each.name, each.value): each for each in stats["budgets"]}
    assert all(each.reserved_nano == 0 for each in budgets.values()), "money is still reserved"
    assert stats["endpoints"]["p/m"]["in_flight"] == 0, "permits are still taken"
    assert stats["queued"] == 0
    figures.workers_left = stats["state"]["workers"]
    assert figures.workers_left == 1, "the dead still have places in the state"
    assert stats["ledger"].ok
    assert stats["ledger"].lost == stats["ledger"].rejected == 0

    served = dict.fromkeys((folder / "served").read_text().split())
    received = int((folder / "received").read_text())
    assert len(served) == received, "the provider lost count"
    notes = {}
    for path in folder.glob("notes-*"):
        for line in path.read_text().splitlines():
            attempt_id, cost = line.split()
            notes[attempt_id] = int(cost)
    figures.noted = len(notes)
    unnoted = []  # costs of entries whose callers were killed before they heard of them
    entries = total = timed_out = 0
    with closing(sqlite3.connect(f"file:{folder / 'ledger.db'}?mode=ro", uri=True)) as ledger:
        rows = ledger.execute(
            "SELECT id, request_id, outcome, prompt_tokens, completion_tokens, cost_nano, "
            "coalesce(budget_nano, cost_nano) FROM attempts"
        )
        for attempt_id, request_id, outcome, prompt, completion, cost, counted in rows:
            entries += 1
            total += counted
            timed_out += request_id is None
            told = notes.pop(attempt_id, None)
            if told is None:
                unnoted.append(counted)
            else:
                assert told == counted, f"{attempt_id} has another cost than its caller was told"
            if outcome != "ok":
                continue
            assert request_id in served, (
                f"{request_id} is in the ledger, but the provider gave no such answer"
            )
            assert completion == OUTPUT
            assert cost == round(prompt * INPUT_PRICE * 1000 + completion * OUTPUT_PRICE * 1000)
            del served[request_id]  # so that no answer is there twice
    assert not notes, f"{len(notes)} attempts that callers know of are not in the ledger"

    most = figures.kills * threads  # requests that kills can have interrupted
    figures.received, figures.entries, figures.in_ledger = received, entries, total
    assert -timed_out <= received - entries <= most, f"{received} requests, {entries} entries, {most} killed"
    assert client.ledger.spent() == client.ledger.totals().budget_nano == total
    figures.spent = budgets["all", None].spent_nano
    figures.interrupted, figures.entered = kept(figures.spent - total, estimate, unnoted)
    assert figures.interrupted <= most
    teams = sum(each.spent_nano for (name, _), each in budgets.items() if name == "teams")
    assert teams == figures.spent, f"the teams have spent {teams}, all together {figures.spent}"


def kept(over: int, estimate: int, unnoted: list[int]) -> tuple[int, int]:
    """How many estimates the budget kept, and how many of those requests have an entry as well.

    A caller that is killed after its entry is made and before its budget is settled leaves both.
    """
    sums = {0: 0}  # every sum of some of the costs, with how many it takes at the fewest
    for cost in unnoted:
        for total, count in list(sums.items()):
            sums[total + cost] = min(sums.get(total + cost, count + 1), count + 1)
    for total, count in sorted(sums.items(), key=lambda each: each[1]):
        number, rest = divmod(over + total, estimate)
        if rest == 0 and number >= count:
            return number, count
    raise AssertionError(f"the budget is {over} over the ledger, which no interrupted requests explain")


def main() -> None:
    words = argparse.ArgumentParser(description="The call soak.")
    words.add_argument("--calls", type=int, default=1_000_000)
    words.add_argument("--minutes", type=float, default=60.0)
    words.add_argument("--processes", type=int, default=4)
    words.add_argument("--threads", type=int, default=8)
    words.add_argument("--kill-every", type=int, default=1000, help="calls")
    words.add_argument("--seed", type=int, default=0)
    chosen = vars(words.parse_args())
    folder = Path(tempfile.mkdtemp(prefix="fastroute-calls-"))
    figures = soak(folder, **chosen)
    print(figures)
    shutil.rmtree(folder)  # it stays when a check fails


if __name__ == "__main__":
    main()
