"""The page of charts: what is drawn is what the ledger holds, and the page stands alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import date, datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fastroute.cli.group import cli
from fastroute.ledger import Ledger, NullLedger, Totals
from fastroute.ledger.days import Breakdown, Comparison, Day, Days
from fastroute.ledger.plot import days, scale_of, to_html
from fastroute.types import NANO, Attempt, TokenPrices

START = datetime(2026, 3, 30, 12, tzinfo=timezone.utc)
DAY = 86_400


def attempt(number: int, day: int, model: str = "gpt-4.1", cost: int | None = NANO, **rest: Any) -> Attempt:
    return Attempt(
        id=str(number),
        call_id=str(number),
        time=START.timestamp() + day * DAY,
        endpoint=f"p/{model}",
        provider="p",
        model=model,
        cost_nano=cost,
        **{"latency": 1.5, **rest},
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "spent.db") as opened:
        yield opened


class _Page(HTMLParser):
    """The tags of a page, in order, each closed that must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def charts(page: str) -> dict[str, ET.Element]:
    """Each chart's SVG by its heading."""
    found = re.findall(r"(?s)<figcaption>(.*?)</figcaption>.*?(<svg .*?</svg>)", page)
    return {title: ET.fromstring(svg) for title, svg in found}


def bars(path: ET.Element) -> list[tuple[float, float, float]]:
    """Place, foot and top of each bar of a path."""
    numbers = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)h", path.get("d", ""))
    return [(float(left), float(low), float(high)) for left, low, high in numbers]


def test_days_are_whole_and_gaps_are_days_too(ledger: Ledger) -> None:
    ledger.append(attempt(1, 0))
    ledger.append(attempt(2, 0, "deepseek-v3.2", cost=2 * NANO))
    ledger.append(attempt(3, 3, cost=None))
    found = days(ledger)
    assert [day.day for day in found.days] == [
        date(2026, 3, 30),
        date(2026, 3, 31),
        date(2026, 4, 1),
        date(2026, 4, 2),
    ]
    assert found.days[0].costs == {"gpt-4.1": NANO, "deepseek-v3.2": 2 * NANO}
    assert found.days[1] == Day(date(2026, 3, 31), Totals(), {})
    assert found.days[3].costs == {}
    assert found.models == ("deepseek-v3.2", "gpt-4.1")
    assert found.totals.unknown_cost == 1
    assert "not in the cost: 1." in to_html(found)


def test_only_the_entries_asked_for_count(ledger: Ledger) -> None:
    ledger.append(attempt(1, 0, tags={"team": "a"}))
    ledger.append(attempt(2, 1, tags={"team": "b"}))
    assert [day.day.day for day in days(ledger, tags={"team": "b"}).days] == [31]
    assert [day.day.day for day in days(ledger, until=START.timestamp() + 1).days] == [30]
    with pytest.raises(ValueError, match="time zone"):
        days(ledger, since=datetime(2026, 1, 1))


def test_an_entry_of_a_wrong_clock_does_not_make_a_century_of_days(ledger: Ledger) -> None:
    ledger.append(attempt(1, -20_000))
    ledger.append(attempt(2, 0))
    assert len(days(ledger).days) == 2


def test_bars_stand_on_each_other_to_the_days_cost() -> None:
    found = Days(
        (
            Day(date(2026, 3, 30), Totals(cost_nano=3 * NANO), {"a": 2 * NANO, "b": NANO}),
            Day(date(2026, 3, 31), Totals(), {}),
            Day(date(2026, 4, 1), Totals(cost_nano=4 * NANO), {"b": 4 * NANO}),
        ),
        Totals(cost_nano=7 * NANO),
        ("b", "a"),
    )
    page = to_html(found)
    drawn = charts(page)
    b, a = (bars(path) for path in drawn["Cost per day"] if path.get("class", "").startswith("bar"))
    # The axis ends at 4 dollars, so a dollar is a quarter of the height of 100; 0 is the top.
    assert [(low, high) for _, low, high in b] == [(100, 75), (100, 0)]
    assert [(low, high) for _, low, high in a] == [(75, 25)]
    assert b[0][0] == a[0][0]
    assert b[1][0] - b[0][0] == 20
    line = next(path for path in drawn["Cumulative cost"] if path.get("class", "").startswith("line"))
    assert line.get("d") == "M5 62.5h0L15 62.5L25 12.5"
    strips = [title.text for title in drawn["Cost per day"].iter("title")]
    assert strips == [
        "30 Mar 2026\n$3.00\nb: $1.00\na: $2.00",
        "31 Mar 2026\n$0",
        "1 Apr 2026\n$4.00\nb: $4.00",
    ]


def test_the_cost_is_broken_down_by_class_and_whatever_is_asked_for(ledger: Ledger) -> None:
    ledger.append(attempt(1, 0, level="simple", cost=NANO, tags={"team": "a"}))
    ledger.append(attempt(2, 0, level="expert", cost=3 * NANO))
    ledger.append(attempt(3, 1, level="simple", cost=NANO, tags={"team": "b"}))
    found = days(ledger, by=("level", "model", "tag:team", "day"))
    assert found.breakdowns == (
        Breakdown("level", ("expert", "simple"), ({"simple": NANO, "expert": 3 * NANO}, {"simple": NANO})),
        Breakdown("tag:team", ("(no team)", "a", "b"), ({"a": NANO, "(no team)": 3 * NANO}, {"b": NANO})),
    )
    drawn = charts(to_html(found))
    expert, simple = (
        bars(path) for path in drawn["Cost per day by class"] if path.get("class", "").startswith("bar")
    )
    assert [(low, high) for _, low, high in expert] == [(100, 25)]
    assert [(low, high) for _, low, high in simple] == [(25, 0), (100, 75)]
    (first, second) = [title.text for title in drawn["Cost per day by team"].iter("title")]
    assert first == "30 Mar 2026\n$4.00\n(no team): $3.00\na: $1.00"
    assert second == "31 Mar 2026\n$1.00\nb: $1.00"
    with pytest.raises(ValueError, match="cannot group by 'colour'"):
        days(ledger, by=("colour",))


def test_what_one_model_alone_would_have_cost_is_drawn_beside_what_was_paid(ledger: Ledger) -> None:
    ledger.append(attempt(1, 0, cost=NANO, prompt_tokens=1_000_000))
    ledger.append(attempt(2, 2, cost=NANO, prompt_tokens=500_000, cache_write_tokens=500_000))
    ledger.append(attempt(3, 2, cost=None, prompt_tokens=500_000))
    ledger.append(attempt(4, 2, cost=5 * NANO, outcome="failed"))
    prices = {"dear": TokenPrices(4 * NANO, 0, cache_write=8 * NANO), "free": TokenPrices(0, 0)}
    found = days(ledger, against=["dear", "free"], prices=prices.__getitem__)
    assert found.comparisons == (
        Comparison("dear", (NANO, 0, NANO), (4 * NANO, 0, 4 * NANO)),
        Comparison("free", (NANO, 0, NANO), (0, 0, 0)),
    )
    page = to_html(found)
    paid, dear, free = (
        path.get("d")
        for path in charts(page)["Cumulative cost, and with one model alone"]
        if path.get("class", "").startswith("line")
    )
    assert paid == "M5 87.5h0L15 87.5L25 75"  # the axis ends at 8 dollars
    assert dear == "M5 50h0L15 50L25 0"
    assert free == "M5 100h0L15 100L25 100"
    last = list(charts(page)["Cumulative cost, and with one model alone"].iter("title"))[-1].text
    assert last == (
        "1 Apr 2026\nas routed: $2.00\ndear alone: $8.00, saved $6.00\nfree alone: $0, $2.00 less"
    )
    assert "<dt>saved</dt><dd>$6.00</dd><dd>75 % less than dear alone ($8.00)</dd>" in page
    assert "<dt>paid more</dt><dd>$2.00</dd><dd>free alone ($0)</dd>" in page
    assert "<th scope=col>dear alone USD</th>" in page
    with pytest.raises(ValueError, match="prices: required"):
        days(ledger, against=["dear"])


def test_latency_breaks_where_nothing_answered() -> None:
    ok = Totals(calls=1, attempts=2, failures=1, latency_mean=1.0, latency_p50=1.0, latency_p95=2.0)
    failed = Totals(calls=1, attempts=1, failures=1)
    found = Days(
        tuple(Day(date(2026, 1, number + 1), sums, {}) for number, sums in enumerate([ok, ok, failed, ok])),
        Totals(calls=4, attempts=7, failures=4, latency_p50=1.0, latency_p95=2.0),
        (),
    )
    drawn = charts(to_html(found))
    p50, p95 = (path.get("d") for path in drawn["Latency"] if "line" in path.get("class", ""))
    assert p50 == "M5 50h0L15 50M35 50h0"
    assert p95 == "M5 0h0L15 0M35 0h0"
    titles = [title.text or "" for title in drawn["Latency"].iter("title")]
    assert titles[0].endswith("p50 1 s, p95 2 s")
    assert titles[2].endswith("no successful attempts")
    share = [title.text or "" for title in drawn["Attempts that failed or were cancelled"].iter("title")]
    assert share[2].endswith("1 of 1: 100 %")


def test_the_dearest_models_have_colours_of_their_own() -> None:
    models = tuple(f"m{number}" for number in range(9))
    found = Days(
        (Day(date(2026, 1, 1), Totals(), {name: (9 - place) * NANO for place, name in enumerate(models)}),),
        Totals(),
        models,
    )
    page = to_html(found)
    legend = re.findall(r'<i class="c\d"></i>([^<]*)</li>', page)[:7]
    assert legend == ["m0", "m1", "m2", "m3", "m4", "m5", "other models"]
    assert "other models: $6.00" in page
    exactly = Days(found.days, found.totals, models[:7])
    assert re.findall(r'<i class="c\d"></i>([^<]*)</li>', to_html(exactly))[:7] == list(models[:7])


def test_names_from_elsewhere_stay_text() -> None:
    name = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
    found = Days((Day(date(2026, 1, 1), Totals(), {name: NANO}),), Totals(), (name,))
    page = to_html(found, title=name)
    parsed = _Page(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert any("<script>alert(1)</script>\"'&" in text for text in parsed.text)
    assert charts(page)


def test_the_page_loads_nothing_and_runs_nothing(ledger: Ledger) -> None:
    for number in range(20):
        ledger.append(attempt(number, number // 3, outcome="failed" if number % 5 == 0 else "ok"))
    page = to_html(days(ledger), made=START)
    parsed = _Page(page)
    assert not {"script", "link", "img", "iframe", "object", "a"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not {"src", "href", "style-src"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "Created 2026-03-30 12:00 UTC" in page
    assert len(charts(page)) == 5  # and none by class, since no entry has one
    assert page.count("<tr>") == 1 + 7


def test_an_empty_ledger_says_so() -> None:
    page = to_html(days(NullLedger()))
    assert "has no entries" in page
    assert charts(page) == {}
    _Page(page)


@given(st.lists(st.none() | st.floats(0, 1e12, allow_subnormal=False), max_size=5))
def test_an_axis_holds_its_values_in_a_few_round_steps(values: list[float | None]) -> None:
    known = [value for value in values if value is not None and value > 1e-9]
    scale = scale_of(known)
    most = max(known, default=0.0)
    assert scale.top >= most * (1 - 1e-9)
    assert 2 <= len(scale.ticks) <= 6
    assert f"{scale.step:.0e}"[0] in "125"
    assert not known or scale.top < most * 2.1


def test_the_command_draws_beside_its_report(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger.append(attempt(1, 0))
    ledger.append(attempt(2, 1, tags={"team": "b"}))
    ledger.flush()
    asked = ["report", "--ledger", ledger.path, "--format", "csv", "--against", "gpt-4.1"]
    asked += ["--plot", "cost.html"]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("model,calls")
    assert "cost.html" in result.stderr
    assert "30 Mar 2026" in (tmp_path / "cost.html").read_text(encoding="utf-8")
    assert CliRunner().invoke(cli, [*asked, "--tag", "team=b"]).exit_code == 0
    assert "30 Mar 2026" not in (tmp_path / "cost.html").read_text(encoding="utf-8")
    refused = CliRunner().invoke(cli, [*asked[:-1], "nowhere/cost.html"])
    assert refused.exit_code == 1
    assert "nowhere/cost.html cannot be written" in refused.stderr
