"""The same calls have the same percentiles in ledger, page, metrics and demonstration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from gateways import Served
from postgres_server import PostgresServer, running

from fastroute.cli.demo_run import Board
from fastroute.ledger.report import report, to_json
from fastroute.types import Completion

Serve = Callable[..., Served]
MODEL = "gpt-4.1"
CALLS = 20  # half and 95 % of which are whole numbers: where definitions differ
MICROSECOND = 1e-6  # what a ledger's percentiles are rounded to


def expected(samples: Sequence[float], percent: int) -> Any:
    """The least sample that so many do not exceed, to the microsecond."""
    found = min(
        sample
        for sample in samples
        if sum(each <= sample for each in samples) * 100 >= percent * len(samples)
    )
    return pytest.approx(found, abs=MICROSECOND)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def served(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Served:
    """A gateway with a ledger in either database."""
    ledger = {"ledger": str(tmp_path / "ledger.db")}
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_schema()
        ledger = {"ledger": url, "ledger_journal": str(tmp_path / "journal")}
    return serve(fastroute=ledger)


def calls(served: Served) -> list[Completion]:
    """Makes calls that take between 1 and 20 ms, in no order; their answers, once the ledger has them."""
    client = served.app.client
    replies = []
    for number in range(CALLS):
        served.provider.latency = 0.001 * (1 + 7 * number % CALLS)
        messages = [{"role": "user", "content": f"question {number}"}]
        replies.append(client.chat.completions.create(model=MODEL, messages=messages))
    client.ledger.flush()
    return replies


def test_ledger_page_and_metrics_agree(served: Served) -> None:
    calls(served)
    ledger = served.app.client.ledger
    entries = list(ledger.entries(None))
    latencies = [entry.latency for entry in entries]
    assert len(set(latencies)) == CALLS
    p50, p95, p99 = (expected(latencies, percent) for percent in (50, 95, 99))

    told = orjson.loads(to_json(report(ledger)))
    for sums in (told["totals"], told["groups"][0]):
        assert (sums["latency_p50"], sums["latency_p95"]) == (p50, p95)

    shown = served.get("/admin/stats.json", token=served.admin).json
    for sums in (*shown["totals"].values(), *shown["models"]):
        assert (sums["p50_s"], sums["p95_s"]) == (p50, p95)
    (endpoint,) = (at for at in shown["endpoints"] if at["name"] == f"local/{MODEL}")
    assert (endpoint["p50_s"], endpoint["p95_s"], endpoint["p99_s"]) == (p50, p95, p99)
    for minute in shown["latency"]:  # the calls may fall into two of them
        within = [entry.latency for entry in entries if minute["time"] <= entry.time < minute["time"] + 60]
        for percent in (50, 95, 99):
            assert minute[f"p{percent}_s"] == (expected(within, percent) if within else None)

    metrics = served.web.get("/metrics").text
    for name, figure in (("p50", p50), ("p95", p95), ("p99", p99)):
        line = rf'^fastroute_latency_{name}_seconds{{endpoint="local/{MODEL}",model="{MODEL}"}} (\S+)$'
        assert [float(text) for text in re.findall(line, metrics, re.MULTILINE)] == [figure]


def test_the_demonstration_agrees(serve: Serve) -> None:
    board = Board()
    replies = calls(serve())
    for reply in replies:
        board.answered(reply, 0)
    latencies = [reply.route.latency for reply in replies]
    assert board.percentiles() == tuple(expected(latencies, percent) for percent in (50, 95, 99))
