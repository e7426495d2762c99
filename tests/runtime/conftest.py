"""A client over a configuration file that tests write anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import SLACK, nothing_left
from served import Serve, Served

from fastroute.testing import Provider


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a provider and a client whose file can be written anew; nothing may be left open."""
    made: list[Served] = []
    with nothing_left():

        def begin(provider: Provider | None = None, /, **keys: str) -> Served:
            served = Served(tmp_path / f"{len(made)}.toml", (provider or Provider()).start(), **keys)
            made.append(served)
            return served

        yield begin
        for served in made:
            served.client.close()
            served.provider.wait_until(lambda known: known.open_connections == 0, SLACK)
            served.provider.stop()
