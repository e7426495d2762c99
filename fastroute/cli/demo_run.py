"""Runs the demo: four local providers, a configuration for them, and the calls.

All figures come from the client, its events and its ledger. `demo_view.py` and `demo.py` show them.

Each model is served by three providers, so that no call is lost when one is killed::

                           aurora      borealis    cumulus     dune
                           killed      flaky
    gpt-4.1-nano                       x           x           x       trivial
    gemini-2.5-flash       x           x           x                   simple
    gpt-4.1                x                       x           x       moderate
    claude-sonnet-4.5                  x           x           x       complex, expert
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from fastroute import events
from fastroute.client import Client
from fastroute.errors import Error
from fastroute.figures import percentile
from fastroute.testing import Fault, Lognormal, Provider
from fastroute.types import NANO, Completion

if TYPE_CHECKING:
    from fastroute.ledger.report import Report
    from fastroute.types import TokenPrices

TIERS = {
    "ultra-budget": "gpt-4.1-nano",
    "budget": "gemini-2.5-flash",
    "standard": "gpt-4.1",
    "premium": "claude-sonnet-4.5",
}
CLASSES = {
    "trivial": "ultra-budget",
    "simple": "budget",
    "moderate": "standard",
    "complex": "premium",
    "expert": "premium",
}
PREMIUM = TIERS["premium"]
ANSWER_TOKENS = 200  # max_tokens of each call; the providers repeat the prompt up to this length

KILL_AT, RESTART_AT = 0.35, 0.55  # as shares of all calls


@frozen
class Part:
    """One provider of the demo.

    Attributes:
        tiers: the tiers whose models it serves.
        latency: median seconds until the answer starts.
        pace: tokens per second after that.
        fail_rate: share of requests that fail.
    """

    name: str
    tiers: tuple[str, ...]
    latency: float
    pace: float
    fail_rate: float = 0.0


PARTS = (
    Part("aurora", ("budget", "standard"), 0.12, 900),
    Part("borealis", ("ultra-budget", "budget", "premium"), 0.14, 1200, 0.13),
    Part("cumulus", ("ultra-budget", "budget", "standard", "premium"), 0.25, 800),
    Part("dune", ("ultra-budget", "standard", "premium"), 0.32, 600),
)
KILLED = "aurora"
FAULTS = (
    Fault.status(500),
    Fault.status(503),
    Fault.reset(),
    Fault.error("rate_limit_exceeded", headers={"retry-after-ms": "250"}),
)


# ------------------------------------------------------------------------------------------------ figures


@frozen(kw_only=True)
class Result:
    """The results; times in milliseconds and seconds, money in nano-dollars."""

    calls: int
    ok: int
    failed: int
    attempts: int
    failed_attempts: int
    failovers: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cost_nano: int
    premium_cost_nano: int
    premium_model: str
    by_class: Mapping[str, int]
    by_model: Mapping[str, int]
    breakers_opened: int
    breakers_closed: int
    still_open: Sequence[str]
    wall_s: float
    errors: Mapping[str, int] = field(factory=dict)

    def figures(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        names = (
            "calls",
            "ok",
            "failed",
            "failovers",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "cost_usd",
            "premium_cost_usd",
            "by_class",
            "by_model",
            "breakers_opened",
            "wall_s",
        )
        money = {"cost_usd": self.cost_nano / NANO, "premium_cost_usd": self.premium_cost_nano / NANO}
        return {name: money[name] if name in money else getattr(self, name) for name in names}


class Board:
    """Counts what has happened so far.

    Attributes:
        happenings: the latest lines of text, newest last.

    Thread safety: every method briefly takes the one lock; attributes may be read at any time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._news: deque[str] = deque(maxlen=100)
        self.happenings: deque[str] = deque(maxlen=8)
        self.ok = 0
        self.failed = 0
        self.failovers = 0
        self.opened = 0
        self.closed = 0
        self.cost_nano = 0
        self.premium_nano = 0
        self.latencies: list[float] = []
        self.by_class: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        self.by_endpoint: Counter[str] = Counter()
        self.failures_of: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    @property
    def done(self) -> int:
        return self.ok + self.failed

    def begin(self) -> None:
        """Starts the clock of `say` and `news`."""
        self._begun = time.monotonic()

    def answered(self, completion: Completion, premium_nano: int) -> None:
        route = completion.route
        assert route is not None
        assert route.latency is not None
        with self._lock:
            self.ok += 1
            self.latencies.append(route.latency)
            self.by_class[route.classification.level if route.classification else "unknown"] += 1
            self.by_model[route.model] += 1
            self.cost_nano += route.cost_nano or 0
            self.premium_nano += premium_nano

    def lost(self, error: Exception, level: str) -> None:
        with self._lock:
            self.failed += 1
            self.by_class[level] += 1
            self.errors[type(error).__name__] += 1

    def heard(self, event: events.Event) -> None:
        """Counts one of the client's events; runs in the threads of the calls."""
        with self._lock:
            if isinstance(event, events.AttemptFinished):
                attempt = event.attempt
                self.by_endpoint[attempt.endpoint] += 1
                if attempt.outcome == "failed":
                    self.failures_of[attempt.endpoint] += 1
            elif isinstance(event, events.FailedOver):
                self.failovers += 1
            elif isinstance(event, events.BreakerChanged):
                if event.state == "open":
                    self.opened += 1
                elif event.state == "closed":
                    self.closed += 1
                self._say(f"breaker of {event.endpoint}: {event.state}")

    def say(self, text: str) -> None:
        with self._lock:
            self._say(text)

    def _say(self, text: str) -> None:
        line = f"{time.monotonic() - self._begun:6.2f} s  {text}"
        self._news.append(line)
        self.happenings.append(line)

    def news(self) -> list[str]:
        """The lines since the last call of this method."""
        with self._lock:
            lines = list(self._news)
            self._news.clear()
        return lines

    def percentiles(self) -> tuple[float, float, float]:
        """p50, p95 and p99 of the calls answered so far, in seconds; 0 before the first."""
        with self._lock:
            latencies = list(self.latencies)
        if not latencies:
            return 0.0, 0.0, 0.0
        return percentile(latencies, 50), percentile(latencies, 95), percentile(latencies, 99)


# -------------------------------------------------------------------------------------------------- the run


class Demo:
    """One run. As a context manager it leaves no process, thread or file behind, however it ends.

    Attributes:
        total: number of calls.
        board: counts of what has happened so far.
        down: whether the provider that gets killed is down now.

    Args:
        prompts: the messages of each call.
        ledger: path of the ledger.
        threads: number of threads that make calls.
        seed: seed of the providers' times and faults.
        speed: factor by which everything is faster than usual.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[Mapping[str, Any]]],
        ledger: str,
        *,
        threads: int = 16,
        seed: int = 1,
        speed: float = 1,
    ) -> None:
        self.total = len(prompts)
        self.board = Board()
        self._prompts = prompts
        self._ledger = ledger
        self._seed = seed
        self._speed = speed
        self._next = 0
        self._claiming = threading.Lock()
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._providers: dict[str, Provider] = {}
        self._client: Client | None = None
        self._began = 0.0
        self._ended = 0.0
        self.down = False
        self._threads = [
            threading.Thread(target=self._calls, name=f"demo-{number}") for number in range(threads)
        ]
        self._director = threading.Thread(target=self._direct, name="demo-director")

    def __enter__(self) -> Demo:
        try:
            for place, part in enumerate(PARTS):
                self._providers[part.name] = self._provider(part, self._seed + place)
            with ThreadPoolExecutor() as pool:  # starting a process takes a while: start all at once
                list(pool.map(Provider.start, self._providers.values()))
            self._client = Client(self.configuration())
            self._client.on(self.board.heard)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def _provider(self, part: Part, seed: int) -> Provider:
        return Provider(
            models=[TIERS[tier] for tier in part.tiers],
            latency=Lognormal(part.latency / self._speed, 0.35),
            tokens_per_second=part.pace * self._speed,
            fail_rate=part.fail_rate,
            fail_with=FAULTS,
            seed=seed,
            process=True,
        )

    def configuration(self) -> dict[str, Any]:
        """The configuration that a user would write for these providers, with shorter waits."""
        speed = self._speed
        return {
            "fastroute": {"ledger": self._ledger, "timeout": 60.0},
            "cache": {"enabled": False},
            "providers": {
                name: {"base_url": provider.base_url} for name, provider in self._providers.items()
            },
            "endpoints": [
                {"provider": part.name, "model": TIERS[tier]} for part in PARTS for tier in part.tiers
            ],
            "tiers": {tier: [model] for tier, model in TIERS.items()},
            "policy": {
                "classes": CLASSES,
                "max_attempts": 6,
                "backoff_base": 0.1 / speed,
                "backoff_cap": 0.5 / speed,
                "breaker": {"failures": 3, "open": 0.4 / speed, "max_open": 0.8 / speed, "ramp": 1.0 / speed},
            },
        }

    # ------------------------------------------------------------------------------------------- the calls

    def start(self) -> None:
        """Starts the calls; `wait` waits for their end."""
        self._began = time.monotonic()
        self.board.begin()
        for thread in (self._director, *self._threads):
            thread.start()

    def elapsed(self) -> float:
        """Seconds since the first call."""
        return (self._ended or time.monotonic()) - self._began

    def wait(self, timeout: float) -> bool:
        """Waits at most ``timeout`` seconds for the end of all calls; returns whether they have ended."""
        with self._progress:
            return self._progress.wait_for(lambda: self._ended > 0, timeout)

    def _calls(self) -> None:
        """Makes one call after another in one thread, until there are no more prompts."""
        client = self.client
        create = client.chat.completions.create
        prices = self._prices(PREMIUM)
        while not self._stop.is_set():
            with self._claiming:
                place = self._next
                self._next += 1
            if place >= self.total:
                break
            messages = self._prompts[place]
            try:
                completion = create(model="auto", messages=messages, max_tokens=ANSWER_TOKENS)
            except Exception as error:  # a bug in fastroute is a lost call too, and must not block the rest
                if self._stop.is_set():
                    break
                self.board.lost(error, self._level(messages))
            else:
                usage = completion.usage
                self.board.answered(completion, prices.cost(usage) if usage is not None else 0)
            with self._progress:
                if self.board.done == self.total:
                    self._ended = time.monotonic()
                self._progress.notify_all()

    def _level(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The class of a lost call."""
        try:
            return self.client.plan(model="auto", messages=messages).classification.level
        except Error:
            return "unknown"

    def _direct(self) -> None:
        """Kills the main provider of the standard tier and restarts it."""
        provider = self._providers[KILLED]
        if self._reached(KILL_AT):
            self.down = True
            self.board.say(f"{KILLED} is killed: its connections are reset and its port is closed")
            provider.kill()
        if self._reached(RESTART_AT):
            provider.restart()
            self.down = False
            self.board.say(f"{KILLED} is back")

    def _reached(self, share: float) -> bool:
        """Waits until this share of the calls is done; returns False if the demo is stopped before."""
        with self._progress:
            self._progress.wait_for(lambda: self._stop.is_set() or self.board.done >= share * self.total)
        return not self._stop.is_set()

    def _close(self) -> None:
        """Stops everything; running calls end because their providers are stopped."""
        self._stop.set()
        with self._progress:
            self._progress.notify_all()
        if self._director.ident is not None:
            self._director.join()
        for provider in self._providers.values():
            provider.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._client is not None:
            self._client.close()

    # --------------------------------------------------------------------------------------------- results

    def _prices(self, name: str) -> TokenPrices:
        from fastroute.config import catalog_of

        prices = catalog_of(self.client.config).model(name).prices
        assert prices is not None
        return prices

    def breakers(self) -> dict[str, str]:
        """The state of every endpoint's breaker."""
        return {name: figures["state"] for name, figures in self.client.stats()["endpoints"].items()}

    def result(self) -> Result:
        """The results, with money from the ledger; call it after all calls have ended."""
        board = self.board
        ledger = self.client.ledger
        totals = ledger.totals()
        (alone,) = ledger.savings(self._prices, [PREMIUM])
        p50, p95, p99 = board.percentiles()
        return Result(
            calls=self.total,
            ok=board.ok,
            failed=board.failed,
            attempts=totals.attempts,
            failed_attempts=totals.failures,
            failovers=board.failovers,
            p50_ms=round(p50 * 1e3, 3),
            p95_ms=round(p95 * 1e3, 3),
            p99_ms=round(p99 * 1e3, 3),
            cost_nano=totals.cost_nano,
            premium_cost_nano=alone.alone_nano,
            premium_model=PREMIUM,
            by_class={level: board.by_class[level] for level in CLASSES if level in board.by_class}
            | {level: count for level, count in board.by_class.items() if level not in CLASSES},
            by_model={model: board.by_model[model] for model in TIERS.values() if model in board.by_model}
            | {model: count for model, count in board.by_model.items() if model not in TIERS.values()},
            breakers_opened=board.opened,
            breakers_closed=board.closed,
            still_open=[name for name, state in self.breakers().items() if state != "closed"],
            wall_s=round(self.elapsed(), 3),
            errors=dict(board.errors),
        )

    def spent(self) -> Report:
        """The ledger's report by model."""
        from fastroute.ledger.report import report

        return report(self.client.ledger, by=("model",))


__all__ = ["KILLED", "PARTS", "PREMIUM", "TIERS", "Board", "Demo", "Part", "Result"]
