"""The same calls have the same percentiles in ledger, page, metrics and demonstration."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from browser import Page
from dashboards import NUDGE, tile
from gateways import Served
from postgres_server import PostgresServer, running

from fastroute.cli.demo_run import Board
from fastroute.figures import dollars, duration
from fastroute.ledger.plot import days, to_html
from fastroute.ledger.report import report, to_json, to_table
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


# ------------------------------------------------------------------------------------------------ the texts


def rows(page: Page, table: str) -> list[list[str]]:
    """The texts of a table's cells."""
    found = f"[...document.querySelectorAll('#{table} tbody tr')]"
    cells: list[list[str]] = page.run(f"{found}.map((row) => [...row.cells].map((at) => at.innerText))")
    return cells


def test_page_and_reports_write_the_same_texts(dashboard: Any) -> None:
    web, page = dashboard()
    served = web.served
    calls(served)
    page.run(NUDGE)
    page.until(f"{tile('Calls')} === '{CALLS}'")
    shown = served.get("/admin/stats.json", token=served.admin).json
    totals = served.app.client.ledger.totals()
    cost, p50, p95 = dollars(totals.cost_nano), duration(totals.latency_p50), duration(totals.latency_p95)

    assert page.run(tile("Median")) == p50
    assert page.run(tile("Spent")) == cost
    (model,) = rows(page, "models")
    assert (model[2], *model[5:7]) == (cost, p50, p95)
    (endpoint,) = (row for row in rows(page, "endpoints") if row[0] == f"local/{MODEL}")
    (live,) = (at for at in shown["endpoints"] if at["name"] == f"local/{MODEL}")
    assert endpoint[-3:] == [duration(live[name]) for name in ("p50_s", "p95_s", "p99_s")]
    for row, entry in zip(rows(page, "recent"), shown["recent"]):
        assert row[-3:-1] == [dollars(entry["cost_nano"]), duration(entry["latency_s"])]

    columns = to_table(report(served.app.client.ledger)).splitlines()[-1].split("  ")
    assert [text.strip() for text in columns[-3:]] == [cost, p50, p95]
    drawn = to_html(days(served.app.client.ledger))
    for text in (cost, f"p50 {p50}, p95 {p95}"):
        assert text in drawn


AMOUNTS = [0, 1, -1, 10**10 - 1, 10**10, 9_999_500_000, 9_999_499_999, 12_345_000_000, 10**15, -(10**12)]
TIMES = [
    0,
    4e-10,
    5e-10,
    1e-9,
    0.0009995,
    0.9994,
    0.9995,
    1.125,
    119.4,
    119.5,
    7199.0,
    7200.0,
    1e5,
    172_800.0,
    1e9,
]


def test_the_page_writes_amounts_and_durations_as_the_package_does(dashboard: Any) -> None:
    _, page = dashboard(key=False)
    rng = random.Random(1)
    amounts = AMOUNTS + [sign * round(10 ** rng.uniform(0, 15)) for sign in (1, -1) for _ in range(2000)]
    times = TIMES + [10 ** rng.uniform(-10, 9) for _ in range(4000)]
    times += [round(time, digits) for digits in range(10) for time in times[:400]]  # halves among them
    page.run("import('./admin/figures.js').then((found) => { window.figures = found; })")
    assert page.run(f"{json.dumps(amounts)}.map(figures.dollars)") == [dollars(nano) for nano in amounts]
    assert page.run(f"{json.dumps(times)}.map(figures.duration)") == [duration(time) for time in times]
    assert page.run("figures.duration(null)") == "–"
