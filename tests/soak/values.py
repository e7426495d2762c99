"""A budget of each user, and very many users: memory stays flat, and whoever returns has what it spent.

    python -m tests.soak.values --values 1000000 --ledger array
    python -m tests.soak.values --values 100000

Each user makes one call of a dollar under a budget of two, through the budgets, the ledger and the shared
state of a real client, but without a request. Every tenth call is followed by one of a user who was there
before: it must be admitted if it is the second one, and refused otherwise. At the end, what is left of a
thousand users is compared with what they spent. ``--ledger array`` puts an array with a byte for each user in
the place of the ledger's file, so that only budgets and state are measured.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from fastroute import Client, errors
from fastroute.types import Attempt

NANO = 10**9


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Callers:
    """Calls of users, and how often each has been served."""

    def __init__(self, client: Client, array: bytearray | None) -> None:
        self.budgets = client.runtime.generation.budgets
        self.ledger = client.ledger
        self.array = array
        if array is not None:
            self.budgets.spent = lambda since, tags: array[int(tags["user"][5:])] * NANO
        self.again: dict[int, int] = {}
        self.calls = 0

    def call(self, user: int) -> bool:
        """One call; whether its money was there."""
        tags = {"user": f"user-{user:07d}"}
        try:
            reservation = self.budgets.reserve(NANO, tags, 600)
        except errors.BudgetExceeded:
            return False
        reservation.sent()
        self.calls += 1
        if self.array is not None:
            self.array[user] += 1
            reservation.settle(NANO)
            return True
        recorded = self.ledger.append(
            Attempt(
                id=f"{os.getpid()}-{self.calls}",
                call_id=f"{self.calls}",
                time=time.time(),
                endpoint="e",
                provider="p",
                model="m",
                outcome="ok",
                cost_nano=NANO,
                latency=0.1,
                tags=tags,
            )
        )
        reservation.settle(NANO, recorded=recorded)
        return True

    def return_of(self, user: int) -> None:
        """A call of a user who was there before."""
        known = self.again.get(user, 1)
        served = self.call(user)
        assert served == (known < 2), (user, known, served)
        self.again[user] = known + served


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--ledger", choices=("file", "array"), default="file")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "fastroute": {"ledger": f"{folder}/ledger.db", "state": f"{folder}/state"},
            "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "models": ["m"]}},
            "budgets": [{"name": "user", "limit": 2.0, "window": "total", "per": "tag:user"}],
        }
        with Client(tables) as client:
            array = bytearray(options.values) if options.ledger == "array" else None
            callers = Callers(client, array)
            began = time.monotonic()
            step = max(options.values // 10, 1)
            for number in range(options.values):
                assert callers.call(number), number
                if number % 10 == 9:
                    callers.return_of(draw.randrange(number + 1))
                if (number + 1) % step == 0:
                    state = client.stats()["state"]
                    took = time.monotonic() - began
                    print(
                        f"{number + 1:9,} values  {took:7.1f} s  {took * 1e3 / number:5.2f} ms a value  "
                        f"RSS {rss() / 2**20:6.1f} MiB  cells {state['cells_used']:6,} of {state['cells']:,}"
                    )
            for user in draw.sample(range(options.values), min(1000, options.values)):
                [status] = client.budgets({"user": f"user-{user:07d}"})
                assert status.spent_nano == callers.again.get(user, 1) * NANO, user
            crowded = client.stats()["crowded"]["user"][0]
            assert crowded == 0, crowded
            if options.ledger == "file":
                assert client.ledger.totals().cost_nano == callers.calls * NANO
    print(f"{callers.calls:,} calls, every limit exact")


if __name__ == "__main__":
    main()
