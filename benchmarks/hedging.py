"""The effect of hedging on the slowest calls.

Two local providers answer after some 300 ms (lognormally distributed), and two calls in a hundred after five
seconds, like a provider that has lost a request. The same calls are made with and without hedging. Most of
the time is waiting for the providers, so the machine's load has little effect.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from attrs import frozen

import fastroute
from fastroute.figures import percentile
from fastroute.testing import Provider

from .side_by_side import Trial, WrongAnswerError
from .workers import in_threads

MODEL = "benchmark-model"
ANSWER = "done"
SHARE = 0.02  # the share of calls that are answered after
STUCK = 5.0  # seconds


@frozen
class Outcome:
    """The results with one configuration.

    Attributes:
        latencies: seconds.
        requests: the number of requests that were sent to the providers.
        won, lost: the numbers of hedges that answered first, and of those that did not.
    """

    latencies: tuple[float, ...]
    requests: int
    won: int
    lost: int


def _latency(share: float, stuck: float) -> Callable[[random.Random], float]:
    return lambda rng: stuck if rng.random() < share else rng.lognormvariate(-1.2, 0.3)


def run(
    enabled: bool,
    calls: int,
    *,
    threads: int = 32,
    stuck: float = STUCK,
    warm: int = 200,
    seed: int = 1,
    answer: str = ANSWER,
) -> Outcome:
    """Makes the calls, after ``warm`` others from which the client learns its latencies.

    Args:
        stuck: seconds until the slow calls are answered.
    """
    with ExitStack() as stack:
        providers = [
            stack.enter_context(Provider(answer=answer, latency=_latency(SHARE, stuck), seed=seed + place))
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
        requests = sum(provider.received for provider in providers) - before
        outcomes = Counter(attempt.outcome for route in routes for attempt in route.attempts)
        hedged = [route.attempts for route in routes if len(route.attempts) > 1]
        first = Counter(min(attempts, key=lambda each: each.time).outcome for attempts in hedged)
        won = first["hedge_lost"]
        lost = outcomes["hedge_lost"] - won
        if outcomes["ok"] != calls or requests < calls or (not enabled and (hedged or requests > calls)):
            raise WrongAnswerError(f"{calls} calls took {requests} requests, which ended {dict(outcomes)}")
        return Outcome(tuple(route.latency for route in routes), requests, won, lost)


def _ask(client: fastroute.Client, calls: int, threads: int) -> list[fastroute.Route]:
    def ask(turn: int) -> fastroute.Route:
        messages = [{"role": "user", "content": f"Question {turn}"}]
        reply = client.chat.completions.create(model=MODEL, messages=messages)
        if reply.text != ANSWER or reply.route is None:
            raise WrongAnswerError(f"question {turn} was answered {reply!r:.300}")
        return reply.route

    return in_threads(threads, ask, range(calls))


CALLS = 4000
_FULL = 50.0  # seconds that all calls take


def _tail(enabled: bool) -> Callable[[float], list[float]]:
    def measure(seconds: float) -> list[float]:
        # A short run has fewer calls, and no call is longer than the run.
        part = min(1.0, seconds / _FULL)
        calls = max(60, int(CALLS * part))
        found = run(enabled, calls, stuck=STUCK * part, warm=min(200, calls))
        percentiles = [percentile(found.latencies, percent) for percent in (50, 95, 99, 99.9)]
        return [*percentiles, found.requests / calls, found.won + found.lost, found.won]

    return measure


TRIALS = (
    Trial(
        "The slowest calls, with and without hedging",
        ("p50, s", "p95, s", "p99, s", "p99.9, s", "requests per call", "hedges", "hedges that won"),
        {"without hedging": _tail(False), "with hedging": _tail(True)},
        seconds=_FULL,
        rounds=1,
        note=f"{CALLS:,} calls from 32 threads to two providers that answer in 0.3 s at the median, "
        "lognormally with sigma 0.3, and to two calls in a hundred after 5 s; default settings except "
        "`min_samples = 50`",
    ),
)
