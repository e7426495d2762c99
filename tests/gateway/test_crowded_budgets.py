"""A caller that sends any number of tag values fills its own share of the state, and nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from gateways import CHAT, HELLO, configuration
from werkzeug.serving import make_server

from fastroute import Client, _core
from fastroute.gateway.app import Gateway
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.testing import Provider

BUDGETS = [{"name": "user", "limit": 1.0, "window": "day", "per": "tag:user"}]
VALUES = 16_000


class Live:
    """A gateway behind a real socket, and its parts."""

    def __init__(self, app: Gateway, address: str, tokens: dict[str, str]) -> None:
        self.app = app
        self.address = address
        self.tokens = tokens

    def post(self, key: str, user: str) -> requests.Response:
        return requests.post(
            self.address + CHAT,
            json={**HELLO, "max_tokens": 50, "route": {"tags": {"user": user}}},
            headers={"Authorization": f"Bearer {self.tokens[key]}"},
            timeout=20,
        )

    def get(self, path: str, key: str | None = None) -> requests.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {self.tokens[key]}"}
        return requests.get(self.address + path, headers=headers, timeout=20)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    @contextmanager
    def begun(**fastroute: Any) -> Iterator[Live]:
        with Provider() as provider:
            keys = KeyFile(tmp_path / "keys.db")
            tokens = {
                name: keys.create(Caller(name, allowed_tags={"user": None}))
                for name in ("stranger", "friend")
            }
            tokens["boss"] = keys.create(Caller("boss", admin=True))
            tables = configuration(provider.base_url, tmp_path, budgets=BUDGETS)
            tables["fastroute"].update(fastroute)
            app = Gateway(Client(tables), keys)
            server = make_server("127.0.0.1", 0, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield Live(app, f"http://127.0.0.1:{server.server_port}", tokens)
            finally:
                server.shutdown()
                thread.join()
                app.close()

    return begun


def fill(app: Gateway, key: str, values: range) -> int:
    """As many users' reservations, as calls of a key make them; how many were admitted."""
    budgets = app.client.runtime.generation.budgets
    admitted = 0
    for number in values:
        tags = {"user": f"{key}{number}", "key": key}
        try:
            reservation = budgets.reserve(1000, tags, 60)
        except Exception:
            continue
        admitted += 1
        reservation.sent()
        reservation.settle(1000, recorded=bool(app.client.ledger.path))
    return admitted


def test_sixteen_thousand_values_leave_room_for_everybody(live: Any) -> None:
    """With a ledger: all are counted by themselves, and the state stays as small as it was."""
    with live() as gateway:
        for number in range(20):
            assert gateway.post("stranger", f"u{number}").status_code == 200
        state = gateway.app.client.stats()["state"]
        assert fill(gateway.app, "stranger", range(300)) == 300
        after = gateway.app.client.stats()["state"]
        assert after["cells_used"] - state["cells_used"] <= 300
        assert gateway.post("friend", "f").status_code == 200
        assert gateway.get("/health/ready").json()["budgets"] == "ok"
        # Whoever returns has what it spent before.
        [status] = gateway.app.client.budgets({"user": "u3", "key": "stranger"})
        assert status.spent_nano > 0


def test_without_a_ledger_a_full_table_is_shown_and_the_next_day_heals_it(
    live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """No counter can be given away, so the stranger's new values share one limit. Others go on."""
    with live(ledger="") as gateway:
        app = gateway.app
        admitted = fill(app, "stranger", range(VALUES))
        cells = app.client.stats()["state"]["cells"]
        # Three quarters of the table, and for the rest one budget of $1 for all together.
        assert cells // 4 < admitted
        others = [row for row in app.client.stats()["budgets"] if row.others]
        assert [row.value for row in others] == ["others of stranger"]
        assert others[0].spent_nano <= others[0].limit_nano
        assert app.client.stats()["state"]["cells_used"] < cells * 0.6
        for number in range(10):
            assert gateway.post("friend", f"f{number}").status_code == 200
        assert not [row for row in app.client.stats()["budgets"] if row.value == "others of friend"]
        # It is said where somebody looks.
        ready = gateway.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["budgets"] == "degraded"
        text = gateway.get("/metrics").text
        [line] = [
            line for line in text.splitlines() if line.startswith("fastroute_budget_calls_crowded_total")
        ]
        assert float(line.split()[-1]) > 0
        page = gateway.get("/admin/stats.json", "boss").json()
        assert "no room for new values of user" in page["crowded"]
        assert [row["value"] for row in page["budgets"] if row["others"]] == ["others of stranger"]
        assert caplog.text.count("there is no room to count another value of user") == 1
        # No restart is needed: when the day has ended, its cells are free.
        segment = app.client.runtime.generation.state.segment
        later = _core.clock() + 3 * 86_400 * 10**9
        for number in range(500):
            assert (
                _core.claim_counter(segment, f"x{number}", 9, later + 10**15, now=later, group="s")
                is not None
            )
