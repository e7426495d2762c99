"""What hedging does to the slowest calls: ``python -m benchmarks.hedging``.

Two local providers answer within some 300 ms, lognormally, and two questions in a hundred only after five
seconds, as a provider does that has lost a request. The same calls go out with and without hedging. The time
is the providers', so the load of the machine matters little.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from attrs import frozen

import fastroute
from fastroute.testing import Provider

MODEL = "benchmark-model"
STUCK = 5.0  # seconds


@frozen
class Outcome:
    """What the callers of one configuration saw.

    Attributes:
        latencies: seconds, in ascending order.
        requests: sent to the providers.
        won, lost: hedges that answered, and that were outrun.
    """

    latencies: tuple[float, ...]
    requests: int
    won: int
    lost: int

    def percentile(self, share: float) -> float:
        """The latency that so many calls took at most, seconds."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def _latency(share: float) -> Callable[[random.Random], float]:
    return lambda rng: STUCK if rng.random() < share else rng.lognormvariate(-1.2, 0.3)


def run(
    enabled: bool, calls: int, *, threads: int = 32, stuck: float = 0.02, warm: int = 200, seed: int = 1
) -> Outcome:
    """Makes so many calls from so many threads, after ``warm`` others that teach it what is slow."""
    with ExitStack() as stack:
        providers = [
            stack.enter_context(Provider(answer="done", latency=_latency(stuck), seed=seed + place))
            for place in range(2)
        ]
        client = stack.enter_context(
            fastroute.Client(
                {
                    "fastroute": {"ledger": "", "timeout": 60.0},
                    "cache": {"enabled": False},
                    "providers": {f"p{n}": {"base_url": each.base_url} for n, each in enumerate(providers)},
                    "endpoints": [{"provider": f"p{n}", "model": MODEL} for n in range(2)],
                    "models": {MODEL: {"input_price": 1.0, "output_price": 2.0}},
                    "policy": {"hedging": {"enabled": enabled, "min_samples": 50}},
                }
            )
        )
        _ask(client, warm, threads)
        before = sum(provider.received for provider in providers)
        routes = _ask(client, calls, threads)
        outcomes = Counter(attempt.outcome for route in routes for attempt in route.attempts)
        hedged = [route.attempts for route in routes if len(route.attempts) > 1]
        first = Counter(min(attempts, key=lambda each: each.time).outcome for attempts in hedged)
        assert outcomes["ok"] == calls
        return Outcome(
            tuple(sorted(route.latency for route in routes)),
            sum(provider.received for provider in providers) - before,
            first["hedge_lost"],
            outcomes["hedge_lost"] - first["hedge_lost"],
        )


def _ask(client: fastroute.Client, calls: int, threads: int) -> list[fastroute.Route]:
    turns: Iterator[int] = iter(range(calls))
    routes: list[fastroute.Route] = []

    def work() -> None:
        for turn in turns:
            messages = [{"role": "user", "content": f"Question {turn}"}]
            route = client.chat.completions.create(model=MODEL, messages=messages).route
            assert route is not None
            routes.append(route)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return routes


def main() -> None:
    print("| | p50 | p95 | p99 | p99.9 | requests a call | hedges that won |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    calls = 4000
    for enabled in (False, True):
        found = run(enabled, calls)
        times = " | ".join(f"{found.percentile(share):.2f} s" for share in (0.5, 0.95, 0.99, 0.999))
        won = f"{found.won} of {found.won + found.lost}" if enabled else ""
        name = "with" if enabled else "without"
        print(f"| {name} hedging | {times} | {found.requests / calls:.3f} | {won} |")


if __name__ == "__main__":
    main()
