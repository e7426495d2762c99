"""One suite over both implementations: `core` is the native module or its twin, whichever the id says."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
import twin
from rows import Make, Row, ranking

from fastroute import _core

_CORES = {"native": _core, "twin": twin}
if "libasan" in os.environ.get("LD_PRELOAD", ""):
    del _CORES["twin"]  # there is nothing in it for a sanitizer to find


@pytest.fixture(params=_CORES.values(), ids=_CORES.keys())
def core(request: pytest.FixtureRequest) -> ModuleType:
    """The module under test."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def segment(core: Any) -> Any:
    return core.Segment(256)


@pytest.fixture
def make(core: Any) -> Make:
    """Endpoints e0, e1, ... with one ranking over them; what is not given is unlimited and alike."""
    segment = core.Segment(4096)

    def make(count: int, *, endpoint: list[Row] | None = None, **columns: list[Any]) -> Any:
        endpoints = [
            core.Endpoint(segment, f"e{i}", **(endpoint[i] if endpoint else {})) for i in range(count)
        ]
        return ranking(core, endpoints, **columns)

    return make
