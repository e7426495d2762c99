"""Configurations that several files of the client's tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopback import MODEL, OTHER, Loopback

Start = Callable[..., Loopback]

TIERS = {"cheap": [MODEL], "dear": [OTHER]}
BOTH: dict[str, Any] = {
    "more_endpoints": [{"provider": "a", "model": OTHER}],
    "models": {
        MODEL: {"input_price": 1.0, "output_price": 2.0, "quality": 0.5},
        OTHER: {"input_price": 10.0, "output_price": 20.0, "quality": 0.9},
    },
    "tiers": TIERS,
}
