"""One local provider for most tests of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastroute.testing import Provider


@pytest.fixture(scope="module")
def shared() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(shared: Provider) -> Iterator[Provider]:
    """One server for most tests, as new for each."""
    shared.clear_script()
    shared.clear_requests()
    yield shared
    shared.clear_script()
