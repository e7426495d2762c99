"""`client.budgets()` and `route.budgets`: what is left, of which budget, and until when."""

from __future__ import annotations

import pickle
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest

import fastroute
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
COST = 15_000  # nano-dollars of one answer


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(models=["m"], answer=Answer("hi", prompt_tokens=5, completion_tokens=5)) as each:
        yield each


def tables(provider: Provider, *budgets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": "", **more.pop("fastroute", {})},
        "cache": {"enabled": more.pop("cache", False)},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
        "budgets": list(budgets),
    }


def ask(client: fastroute.Client, **more: Any) -> fastroute.Route:
    reply = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=100, **more)
    assert isinstance(reply, fastroute.Completion)
    assert reply.route is not None
    return reply.route


BUDGETS = [
    {"name": "day", "limit": 2.0, "window": "day"},
    {"name": "month", "limit": 30.0, "window": "month", "timezone": "Asia/Tokyo"},
    {
        "name": "team",
        "limit": 0.5,
        "window": "total",
        "per": "tag:team",
        "hard": False,
        "on_breach": "downgrade",
    },
    {"name": "each", "limit": 0.1, "window": "request"},
]


def test_every_budget_is_listed_with_what_is_left(provider: Provider) -> None:
    with fastroute.Client(tables(provider, *BUDGETS)) as client:
        ask(client, route={"tags": {"team": "red"}})
        ask(client)
        found = {(each.name, each.value): each for each in client.budgets()}
        assert set(found) == {("day", None), ("month", None), ("team", "red"), ("team", "")}
        day, month, red = found["day", None], found["month", None], found["team", "red"]
        assert (day.limit_nano, day.spent_nano, day.reserved_nano) == (2 * 10**9, 2 * COST, 0)
        assert (day.limit, day.spent, day.reserved, day.left) == (2.0, 3e-5, 0.0, pytest.approx(2.0 - 3e-5))
        assert day.left_nano == 2 * 10**9 - 2 * COST
        now = datetime.now(timezone.utc)
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        assert (day.window, day.period, day.tag) == ("day", now.strftime("%Y-%m-%d"), None)
        assert day.resets_at == tomorrow.timestamp()
        assert (month.window, len(month.period)) == ("month", len("2026-11"))
        assert month.resets_at is not None
        assert datetime.fromtimestamp(month.resets_at, timezone(timedelta(hours=9))).day == 1
        assert (red.tag, red.value, red.window, red.period) == ("team", "red", "total", "total")
        assert (red.resets_at, red.hard, red.on_breach) == (None, False, "downgrade")
        assert red.spent_nano == found["team", ""].spent_nano == COST
        assert client.stats()["budgets"] == client.budgets()


def test_the_tags_of_a_call_choose(provider: Provider) -> None:
    with fastroute.Client(tables(provider, *BUDGETS)) as client:
        ask(client, route={"tags": {"team": "red"}})
        (blue,) = (each for each in client.budgets({"team": "blue"}) if each.name == "team")
        assert (blue.value, blue.spent_nano, blue.left) == ("blue", 0, 0.5)
        red = client.with_options(tags={"team": "red"})
        assert [each.spent_nano for each in red.budgets() if each.name == "team"] == [COST]
        assert [each.value for each in red.budgets({"team": "blue"}) if each.name == "team"] == ["blue"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_what_is_left_of_its_own_budgets(provider: Provider, stream: bool) -> None:
    with fastroute.Client(tables(provider, *BUDGETS)) as client:
        ask(client, route={"tags": {"team": "blue"}})
        if stream:
            with client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=100, stream=True, route={"tags": {"team": "red"}}
            ) as answer:
                list(answer)
            route = answer.route
        else:
            route = ask(client, route={"tags": {"team": "red"}})
        left = {(each.name, each.value): each.spent_nano for each in route.budgets}
        assert left == {("day", None): 2 * COST, ("month", None): 2 * COST, ("team", "red"): COST}
        ask(client)
        assert route.budgets is route.budgets  # as it was when it was first read
        copied = pickle.loads(pickle.dumps(route))
        assert copied.budgets == route.budgets


def test_an_answer_from_the_cache_says_it_too(provider: Provider) -> None:
    with fastroute.Client(tables(provider, BUDGETS[0], cache=True)) as client:
        ask(client)
        route = ask(client)
        assert route.cached
        assert [each.spent_nano for each in route.budgets] == [COST]


def test_without_budgets_there_are_none(provider: Provider) -> None:
    with fastroute.Client(tables(provider, BUDGETS[3])) as client:
        assert ask(client).budgets == ()
        assert client.budgets() == ()


def test_a_copys_own_budget_is_listed(provider: Provider) -> None:
    with fastroute.Client(tables(provider, BUDGETS[0])) as client:
        copy = client.with_options(budget=0.25)
        route = ask(copy)
        for listed in (copy.budgets(), route.budgets):
            assert [each.name for each in listed] == ["day", "with_options"]
            own = listed[-1]
            assert (own.window, own.spent_nano, own.reserved_nano, own.limit) == ("total", COST, 0, 0.25)
        assert [each.name for each in client.budgets()] == ["day"]


def test_what_is_reserved_is_shown_while_a_call_is_under_way(provider: Provider) -> None:
    with fastroute.Client(tables(provider, BUDGETS[0])) as client:
        provider.script(Fault.slow(0.5))
        running = threading.Thread(target=ask, args=(client,))
        running.start()
        provider.wait_until(lambda known: known.in_flight == 1)
        (left,) = client.budgets()
        assert left.spent_nano == 0
        assert left.reserved_nano is not None
        assert 200_000 < left.reserved_nano < 300_000
        assert left.left_nano == left.limit_nano - left.reserved_nano
        running.join(10)
        assert client.budgets()[0].spent_nano == COST


def test_what_is_unknown_is_none(provider: Provider, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with fastroute.Client(tables(provider, BUDGETS[0], fastroute={"ledger": str(path)})) as client:
        ask(client)
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute("PRAGMA user_version = 3")
        newer.execute("ALTER TABLE attempts RENAME TO gone")
    settings = tables(provider, BUDGETS[0], fastroute={"ledger": str(path)})
    with fastroute.Client(settings) as client:
        (left,) = client.budgets()
        assert (left.spent, left.reserved, left.left, left.limit) == (None, None, None, 2.0)


def test_the_record_is_frozen(provider: Provider) -> None:
    with fastroute.Client(tables(provider, BUDGETS[0])) as client:
        (left,) = client.budgets()
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            left.spent_nano = 0  # type: ignore[misc]
