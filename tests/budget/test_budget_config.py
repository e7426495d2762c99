"""Budgets: their configuration, errors and page."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from budget_clock import NANO, Clock, Make, budget

import fastroute
from fastroute import _core, errors, events
from fastroute.budget import Budgets
from fastroute.config import check
from fastroute.config.reader import parse_toml
from fastroute.providers.wordings import CHARGED

# ------------------------------------------------------------------------------------------- configuration


def problems(**keys: Any) -> list[str]:
    table = {"name": "b", "limit": 1, "window": "day", **keys}
    return problems_of([{key: value for key, value in table.items() if value is not ...}])


def problems_of(budgets: Any) -> list[str]:
    source = {
        "providers": {"p": {"base_url": "http://localhost:1/v1"}},
        "endpoints": [{"provider": "p", "model": "gpt-4.1"}],
        "budgets": budgets,
    }
    return list(check(source, environ={}).problems)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"limit": 1e9 + 1},
            "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not 1000000001.0",
        ),
        ({"limit": 2**63}, "budgets[0].limit:"),
        ({"limit": -1}, "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not -1"),
        ({"limit": math.nan}, "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not nan"),
        ({"limit": math.inf}, "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not inf"),
        ({"limit": "10"}, "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not '10'"),
        ({"limit": 1e-30}, "budgets[0].limit: must be 0 or at least 1e-09 (USD), not 1e-30"),
        ({"limit": True}, "budgets[0].limit: must be a number from 0 to 1,000,000,000 (USD), not true"),
        ({"limit": ...}, "budgets[0].limit: is missing"),
        (
            {"window": "week"},
            "budgets[0].window: unknown window 'week'; use one of request, day, month, total",
        ),
        ({"window": ...}, "budgets[0].window: is missing"),
        ({"timezone": "Europe/Berlim"}, "budgets[0].timezone: unknown time zone 'Europe/Berlim'"),
        ({"timezone": "../etc/passwd"}, "budgets[0].timezone:"),
        ({"timezone": "Europe"}, "budgets[0].timezone:"),
        ({"per": "team"}, 'budgets[0].per: must be "" or "tag:NAME", not \'team\''),
        ({"per": "tag:"}, 'budgets[0].per: must be "" or "tag:NAME", not \'tag:\''),
        (
            {"on_breach": "ignore"},
            "budgets[0].on_breach: unknown on_breach 'ignore'; use one of refuse, downgrade",
        ),
        ({"hard": 1}, "budgets[0].hard: must be true or false, not 1"),
        (
            {"alerts": [0.5, 1.5]},
            "budgets[0].alerts[1]: must be a number above 0 and at most 1 (a share, 0.5 is half), not 1.5",
        ),
        ({"alerts": [0.5, 0.5]}, "budgets[0].alerts: must not have an entry twice"),
        ({"alerts": [x / 10 for x in range(1, 10)]}, "budgets[0].alerts: must have at most 8 entries, not 9"),
        ({"limits": 1}, "budgets[0].limits: unknown key (did you mean limit?)"),
        ({"window": "total", "timezone": "Europe/Berlin"}, "budgets.b.timezone: has no effect"),
        ({"window": "request", "per": "tag:x"}, "budgets.b.per: has no effect"),
        ({"window": "request", "alerts": [0.5]}, "budgets.b.alerts: has no effect"),
        ({"window": "request", "hard": False}, "budgets.b.hard: must be true"),
    ],
)
def test_a_bad_budget_is_refused_with_its_path(keys: dict[str, Any], said: str) -> None:
    found = problems(**keys)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_names_are_unique_and_all_problems_come_at_once() -> None:
    one = {"name": "b", "limit": 1, "window": "day"}
    assert problems_of([one, one]) == ["budgets.b.name: is the name of another budget too; use a unique name"]
    assert problems_of({"b": 1}) == ["budgets: must be a list of tables, not a table; write [[budgets]]"]
    assert len(problems_of([{}, {**one, "limit": -1, "per": 3}])) == 5


def test_the_environment_goes_over_a_budget_by_its_name() -> None:
    source = {
        "providers": {"p": {"base_url": "http://localhost:1/v1"}},
        "endpoints": [{"provider": "p", "model": "gpt-4.1"}],
        "budgets": [{"name": "daily", "limit": 1, "window": "day"}],
    }
    found = check(source, environ={"FASTROUTE_BUDGETS__DAILY__LIMIT": "2.5"})
    assert found.config is not None
    assert found.config.budgets[0].limit_nano == 2_500_000_000
    assert check(source, environ={"FASTROUTE_BUDGETS__NONE__LIMIT": "2"}).problems == (
        "FASTROUTE_BUDGETS__NONE__LIMIT: unknown budget 'NONE'; use the number or name of one in the file",
    )


@pytest.mark.parametrize(
    ("limit", "nano"),
    [(0.1, 10**8), (1e9, 10**18), (0, 0), (1e-9, 1), (0.0000000019, 1), (29.99, 29_990_000_000)],
)
def test_a_limit_is_whole_nano_dollars(limit: float, nano: int) -> None:
    assert budget(limit=limit).limit_nano == nano


def test_an_error_survives_pickling(make: Make) -> None:
    import pickle

    with pytest.raises(errors.BudgetExceeded) as caught:
        make(budget(limit=1)).reserve(2 * NANO, {}, 60)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.budget, str(copy)) == ("all", str(caught.value))


def test_a_hook_that_fails_fails_no_call(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: events.Event) -> None:
        raise RuntimeError("no")

    hooks = events.Hooks()
    hooks.add(fail)
    budgets = Budgets([budget(limit=1)], _core.Segment(64), lambda since, tags: 0, hooks)
    with caplog.at_level(logging.ERROR):
        budgets.reserve(NANO, {}, 60).settle(NANO)
    assert budgets.remaining({}) == 0
    assert "a hook failed" in caplog.text


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parent.parent.parent / "docs" / "budgets.md"


def test_the_pages_configurations_are_such() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    assert [problems_of(parse_toml(example)["budgets"]) for example in examples] == [[], []]


def test_the_pages_message_is_what_a_refusal_says() -> None:
    lines = re.findall(r"^> (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    settings = {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 3, "output_price": 15, "max_output_tokens": 64_000}},
        "budgets": [{"name": "everything", "limit": 0.5, "window": "total"}],
    }
    with fastroute.Client(settings) as client, pytest.raises(fastroute.BudgetExceeded) as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": "Hello"}], model="m")
    assert str(caught.value) == " ".join(lines)


def test_the_pages_statuses_are_those_of_the_table() -> None:
    (line,) = re.findall(r"^\| an error status: (.*?), or", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(status) for status in re.findall(r"\d+", line)} == set(CHARGED)
