"""Paths with a ``~``: they begin in the user's home, and never make a folder of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastroute
from fastroute.config import load

PLACES = {
    "fastroute.ledger": lambda config: config.ledger,
    "fastroute.ledger_journal": lambda config: config.ledger_journal,
    "providers.p.api_key_file": lambda config: config.providers["p"].api_key_file,
    "providers.p.ca_bundle": lambda config: config.providers["p"].ca_bundle,
}


def tables(key: str) -> dict[str, Any]:
    base: dict[str, Any] = {
        "fastroute": {},
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "models": ["m"]}},
    }
    table, _, name = key.rpartition(".")
    (base["fastroute"] if table == "fastroute" else base["providers"]["p"])[name] = "~/of/mine"
    return base


@pytest.mark.parametrize("key", PLACES)
def test_a_tilde_is_the_users_home(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PLACES[key](load(tables(key))) == str(tmp_path / "of" / "mine")


@pytest.mark.parametrize("key", PLACES)
def test_without_a_home_a_tilde_is_an_error(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "relative")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fastroute.ConfigError) as raised:
        fastroute.Client(tables(key))
    assert f"{key}: no home directory is known for '~/of/mine'; use an absolute path" in raised.value.problems
    assert list(tmp_path.iterdir()) == []
