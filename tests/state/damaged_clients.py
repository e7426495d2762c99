"""Clients that open a damaged state file: each call is answered, and a hard budget knows what was spent."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from damage import CELLS_AT, Found

from fastroute import Client, errors
from fastroute.testing import Provider

ASK: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 100,
    "route": {"cache": False},
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of each damage."""
    log = logging.getLogger("fastroute")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def tables(path: Path, base_url: str) -> dict[str, Any]:
    return {
        "fastroute": {"state": str(path), "ledger": f"{path}.db"},
        "providers": {"p": {"base_url": base_url, "rpm": 6000, "tpm": 6_000_000}},
        "endpoints": [{"provider": "p", "model": "m", "max_in_flight": 4}],
        "models": {"m": {"input_price": 1.0, "output_price": 2.0}},
        "budgets": [{"name": "all", "limit": 100, "window": "total", "hard": True}],
    }


def opened(path: Path, dice: random.Random, times: int) -> Found:
    """Opens files that were damaged in one byte of a cell in use, so many times."""
    found = Found()
    with quiet(), Provider() as provider:
        config = tables(path, provider.base_url)
        with Client(config) as client:
            client.chat.completions.create(**ASK)
            cost = client.ledger.spent()
        sound = path.read_bytes()
        places = [at for at in range(CELLS_AT, len(sound), 64) if any(sound[at : at + 8])]
        for _ in range(times):
            at, value = (
                dice.choice([0, 64, *places]) + dice.randrange(64),
                dice.choice((0, 255, dice.randrange(256))),
            )
            path.write_bytes(sound[:at] + bytes([value]) + sound[at + 1 :])
            found.damages += 1
            what = f"byte {at % 64} of the cell at {at - at % 64} to {value}"
            try:
                with Client(config) as client:
                    client.chat.completions.create(**ASK)
                    (budget,) = client.budgets()
                    # That of the first call and of this one; the ledger also has those before.
                    if budget.spent_nano is None or budget.spent_nano < 2 * cost:
                        found.problems.append(f"{what}: the budget has {budget.spent_nano} of {2 * cost}")
            except errors.RateLimitError as refusal:
                # The arrival time in the damaged cell, moved by less than is impossible.
                found.delayed += 1
                if not 0 < (refusal.retry_after or 0) < 3 * 3600:
                    found.problems.append(f"{what}: {refusal!r}")
            except Exception as problem:
                found.problems.append(f"{what}: {problem!r}")
    return found
