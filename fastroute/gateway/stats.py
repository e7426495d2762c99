"""The figures of the dashboard, the metrics and the health checks.

Spending and latencies come from the ledger, which all workers write, so every worker shows the same. Limits
and breakers come from the state that they share.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastroute import __version__
from fastroute.client import Client
from fastroute.figures import percentile
from fastroute.ledger import Totals
from fastroute.state.endpoints import BlockReason
from fastroute.types import Attempt, BudgetStatus

_HOUR = 3600.0
_POINTS = 60  # of the latencies over time
_MOST_ENTRIES = 20_000  # of the range that are read, newest first
_RECENT = 50
_TIMES = 9.0  # as long as a computation took, its result is reused
_NEGLIGIBLE = 0.05  # seconds; a faster computation is always repeated
_MOST_BUDGETS = 200  # a budget per tag has one entry for each value


def available(client: Client) -> tuple[int, int]:
    """How many endpoints can take a call now, and how many there are."""
    endpoints = client.stats()["endpoints"].values()
    return sum(map(_usable, endpoints)), len(endpoints)


def crowding(client: Client) -> str:
    """What is wrong with budgets that have no room for new values of their tags; empty if nothing is."""
    crowded = client.runtime.generation.budgets.crowded()
    names = ", ".join(sorted(name for name, (_, lately) in crowded.items() if lately))
    return names and f"no room for new values of {names}; they are counted together, as others"


def _usable(figures: Mapping[str, Any]) -> bool:
    """Whether an endpoint takes calls: not blocked, its breaker not open, and neither of its limits 0."""
    return (
        figures["state"] != "open"
        and not figures["blocked_s"]
        and 0 not in (figures["rpm"], figures["tpm"], figures["max_in_flight"])
    )


def latencies(client: Client) -> dict[str, float]:
    """The measured 95th percentile of each model's latencies, seconds: of its fastest endpoint."""
    found: dict[str, float] = {}
    for figures in client.stats()["endpoints"].values():
        model, p95 = figures["model"], figures["p95_s"]
        if p95 is not None:
            found[model] = min(p95, found.get(model, p95))
    return found


class StatsCollector:
    """Collects the dashboard's figures of one client, without prompts, responses and keys.

    Endpoints, budgets and the latest requests are current. Sums over many entries are slow, so all readers
    share them for nine times as long as computing them took.

    Args:
        clock: seconds that only increase.

    Thread safety: all methods. A forked child must make a new one.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._sums: dict[float, CachedStats] = {}  # by the range, of which there are few

    def collect(self, key_budgets: Sequence[dict[str, Any]], span: float = _HOUR) -> dict[str, Any]:
        """All figures as plain values.

        Args:
            key_budgets: the state of the callers' budgets.
            span: seconds up to now that sums and latencies are of; whole hours.

        Raises:
            Error: the ledger cannot be read.
        """
        live = self._client.stats()
        health = live["ledger"]
        budgets = sorted([*map(_budget, live["budgets"]), *key_budgets], key=_used, reverse=True)
        known = self._sums.get(span)
        if known is None:
            known = self._sums.setdefault(span, CachedStats(partial(self._gather_sums, span), self._clock))
        sums = known.value()
        now = time.time()
        recent = self._client.ledger.entries(_RECENT, since=now - _HOUR)
        return {
            "time": now,
            "range_s": span,
            **sums,
            "budgets": budgets[:_MOST_BUDGETS],
            "budgets_left_out": max(0, len(budgets) - _MOST_BUDGETS),
            "endpoints": [_endpoint(name, figures) for name, figures in live["endpoints"].items()],
            "recent": [_call(entry) for entry in recent],
            "state": {name: live["state"][name] for name in ("kind", "workers", "reason")},
            "queued": live["queued"],
            "crowded": crowding(self._client),
            "cache": live["cache"],
            "ledger": {
                "ok": health.ok,
                "reason": health.reason,
                "waiting": health.waiting,
                "lost": health.lost,
            },
            "version": __version__,
        }

    def _gather_sums(self, span: float) -> dict[str, Any]:
        ledger, now = self._client.ledger, time.time()
        since = now - span
        entries = ledger.entries(_MOST_ENTRIES, since=since)
        totals = _sums(ledger.totals(since=since))
        return {
            "totals": {
                "range": totals,
                "hour": totals if span == _HOUR else _sums(ledger.totals(since=now - _HOUR)),
            },
            "models": [{"model": sums.keys[0], **_sums(sums)} for sums in ledger.by("model", since=since)],
            "classes": [{"class": sums.keys[0], **_sums(sums)} for sums in ledger.by("level", since=since)],
            "latency": over_time(entries, now, span),
            "latency_complete": len(entries) < _MOST_ENTRIES,
        }


class CachedStats:
    """Reuses figures for nine times as long as computing them took, so computing uses a tenth of a thread.

    While one thread computes, others get the previous figures. Figures that are fast to compute are not kept.
    """

    def __init__(self, gather: Callable[[], dict[str, Any]], clock: Callable[[], float]) -> None:
        self._gather = gather
        self._clock = clock
        self._found: dict[str, Any] | None = None
        self._until = 0.0
        self._lock = threading.Lock()

    def value(self) -> dict[str, Any]:
        """The figures, in a dictionary that the caller may change."""
        # The first figures must be waited for; later, other threads use the previous ones.
        if self._due() and self._lock.acquire(blocking=self._found is None):
            try:
                if self._due():
                    began = self._clock()
                    self._found = self._gather()
                    ended = self._clock()
                    took = ended - began
                    self._until = ended + (_TIMES * took if took > _NEGLIGIBLE else 0.0)
            finally:
                self._lock.release()
        assert self._found is not None
        return dict(self._found)

    def _due(self) -> bool:
        return self._found is None or self._clock() >= self._until


def over_time(entries: Sequence[Attempt], now: float, span: float = _HOUR) -> list[dict[str, Any]]:
    """For each sixtieth of the last ``span`` seconds, oldest first: requests, and percentiles of successful
    latencies.
    """
    step = span / _POINTS
    first = (now - span) // step + 1
    latencies: list[list[float]] = [[] for _ in range(_POINTS)]
    failed = [0] * _POINTS
    for entry in entries:
        place = int(entry.time // step - first)
        if 0 <= place < _POINTS:
            if entry.outcome == "ok":
                latencies[place].append(entry.latency)
            elif entry.outcome != "hedge_lost":  # the call's other attempt succeeded
                failed[place] += 1
    return [
        {
            "time": (first + place) * step,
            "succeeded": len(found),
            "failed": failed[place],
            **{f"p{percent}_s": percentile(found, percent) if found else None for percent in (50, 95, 99)},
        }
        for place, found in enumerate(latencies)
    ]


def _sums(sums: Totals) -> dict[str, Any]:
    return {
        "calls": sums.calls,
        "attempts": sums.attempts,
        "failures": sums.failures,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "cost_nano": sums.cost_nano,
        "unknown_cost": sums.unknown_cost,
        "p50_s": sums.latency_p50,
        "p95_s": sums.latency_p95,
    }


def _budget(status: BudgetStatus) -> dict[str, Any]:
    return {
        "budget": status.name,
        "value": status.value,
        "window": status.period,
        "ends": status.resets_at,
        "limit_nano": status.limit_nano,
        "spent_nano": status.spent_nano,
        "reserved_nano": status.reserved_nano,
        "others": status.others,
    }


def _endpoint(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    reason = BlockReason(figures["block_reason"]) if figures["blocked_s"] else BlockReason.NONE
    words = reason.words if reason else None
    return {**figures, "name": name, "block_reason": words, "available": _usable(figures)}


def _used(budget: dict[str, Any]) -> float:
    """The used share of a budget; infinite if unknown, because then the budget rejects calls."""
    spent, limit = budget["spent_nano"], budget["limit_nano"]
    return spent / limit if limit and spent is not None else math.inf


def _call(entry: Attempt) -> dict[str, Any]:
    return {
        "time": entry.time,
        "key": entry.tags.get("key"),
        "model": entry.model,
        "endpoint": entry.endpoint,
        "tier": entry.tier,
        "class": entry.level,
        "score": entry.score,
        "outcome": entry.outcome,
        "error": entry.error,
        "status": entry.status_code,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "cost_nano": entry.cost_nano,
        "latency_s": entry.latency,
        "ttft_s": entry.ttft,
        "stream": entry.stream,
    }


# ----------------------------------------------------------------------------------------------- prometheus

_STATES = {"closed": 0, "half-open": 1, "open": 2}
_SERIES: tuple[tuple[str, str, str], ...] = (
    ("succeeded", "attempts_succeeded_total", "counter"),
    ("failed", "attempts_failed_total", "counter"),
    ("in_flight", "in_flight", "gauge"),
    ("health", "health_score", "gauge"),
    ("blocked_s", "blocked_seconds", "gauge"),
    ("p50_s", "latency_p50_seconds", "gauge"),
    ("p95_s", "latency_p95_seconds", "gauge"),
    ("p99_s", "latency_p99_seconds", "gauge"),
    ("available_requests", "requests_available", "gauge"),
    ("available_tokens", "tokens_available", "gauge"),
)
# Of the learned classifier: figures of its last calls, and their metrics.
_TRAFFIC = {
    "calls": "calls",
    "share": "strong_share",
    "expected": "strong_share_expected",
    "unfamiliar": "unfamiliar_share",
    "threshold": "threshold",
}


def prometheus(client: Client, refused: Mapping[str, int]) -> bytes:
    """The metrics in the Prometheus text format, without callers and money.

    They are the counts, breaker, limits and tolerated stream defects of every endpoint, the failures of the
    classifier, the traffic of the learned one, the refused calls, the calls that budgets counted as others,
    the cells of the state, and whether the ledger can be written.

    Args:
        refused: calls that were refused, by reason.
    """
    live = client.stats()
    endpoints = live["endpoints"]
    lines = []
    for key, name, kind in _SERIES:
        lines.append(f"# TYPE fastroute_{name} {kind}")
        lines += [
            f"fastroute_{name}{_labels(endpoint, figures)} {figures[key]}"
            for endpoint, figures in endpoints.items()
            if figures[key] is not None
        ]
    lines.append("# TYPE fastroute_breaker_state gauge")
    lines += [
        f"fastroute_breaker_state{_labels(endpoint, figures)} {_STATES[figures['state']]}"
        for endpoint, figures in endpoints.items()
    ]
    lines.append("# TYPE fastroute_streams_forgiven_total counter")
    lines += [
        f"fastroute_streams_forgiven_total{_labels(endpoint, figures, kind=kind)} {count}"
        for endpoint, figures in endpoints.items()
        for kind, count in figures["streams_forgiven"].items()
    ]
    lines.append("# TYPE fastroute_classifier_failures_total counter")
    lines += [
        f'fastroute_classifier_failures_total{{kind="{kind}"}} {count}'
        for kind, count in live["classifier"]["failed"].items()
    ]
    for key, name in _TRAFFIC.items() if live["learned"] else ():
        if (value := live["learned"][key]) is not None:
            lines += [f"# TYPE fastroute_learned_{name} gauge", f"fastroute_learned_{name} {value}"]
    lines.append("# TYPE fastroute_calls_refused_total counter")
    lines += [f'fastroute_calls_refused_total{{reason="{reason}"}} {n}' for reason, n in refused.items()]
    lines.append("# TYPE fastroute_budget_calls_crowded_total counter")
    lines += [
        f'fastroute_budget_calls_crowded_total{{budget="{_escaped(name)}"}} {total}'
        for name, (total, _) in live["crowded"].items()
    ]
    for name in ("cells", "cells_used"):
        lines += [f"# TYPE fastroute_state_{name} gauge", f"fastroute_state_{name} {live['state'][name]}"]
    health = live["ledger"]
    for name, kind, value in (
        ("ok", "gauge", int(health.ok)),
        ("entries_waiting", "gauge", health.waiting),
        ("entries_lost_total", "counter", health.lost),
        ("entries_rejected_total", "counter", health.rejected),
    ):
        lines += [f"# TYPE fastroute_ledger_{name} {kind}", f"fastroute_ledger_{name} {value}"]
    return ("\n".join(lines) + "\n").encode()


def _labels(endpoint: str, figures: dict[str, Any], **more: str) -> str:
    labels = {"endpoint": endpoint, "model": figures["model"], **more}
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


__all__ = ["StatsCollector", "available", "crowding", "latencies", "over_time", "prometheus"]
