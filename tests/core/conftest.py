"""One suite over both implementations: `core` is the native module or its twin, whichever the id says."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import twin

from fastroute import _core


@pytest.fixture(params=[_core, twin], ids=["native", "twin"])
def core(request: pytest.FixtureRequest) -> ModuleType:
    """The module under test."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def segment(core: Any) -> Any:
    return core.Segment(256)
