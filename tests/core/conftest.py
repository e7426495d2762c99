"""One suite over both implementations: `core` is the native module or its twin, whichever the id says."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
import twin

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
