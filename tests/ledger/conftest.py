"""Ledgers over both databases, and what the tests of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from entries import Opens
from postgres_server import PostgresServer, running

from fastroute.ledger import Ledger


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with running() as started:
        yield started


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader waits for what is under way as long as a loaded machine needs."""
    monkeypatch.setattr("fastroute.ledger.FLUSH_SECONDS", 30.0)
    monkeypatch.setattr("fastroute.ledger.FLUSH_SECONDS_IN_TROUBLE", 30.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["sqlite", "postgres"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Opens]:
    """``new()`` is a place for a ledger that nobody else has."""
    count = 0

    def make() -> Opens:
        nonlocal count
        count += 1
        if request.param == "sqlite":
            return Opens(tmp_path / f"ledger{count}.db")
        url = request.getfixturevalue("server").new_schema()
        return Opens(url, journal=tmp_path / f"ledger{count}.db.journal")

    return make


@pytest.fixture
def opens(new: Callable[[], Opens]) -> Opens:
    return new()


@pytest.fixture
def ledger(opens: Opens) -> Iterator[Ledger]:
    with opens() as opened:
        yield opened
