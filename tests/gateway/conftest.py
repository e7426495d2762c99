"""A gateway in front of a local provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gateways import Served, configuration
from werkzeug.test import Client

from fastroute.gateway.app import create_app
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.testing import Provider


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve(Caller(...), answer=..., **tables)``: a gateway with that caller's key and an admin's."""
    with ExitStack() as stack:

        def begin(caller: Caller | None = None, answer: Any = None, **tables: Any) -> Served:
            provider = stack.enter_context(Provider(answer=answer))
            keys = KeyFile(tmp_path / "keys.db")
            token = keys.create(caller or Caller("web"))
            admin = keys.create(Caller("boss", admin=True))
            app = create_app(configuration(provider.base_url, tmp_path, **tables), keys=keys.path)
            stack.callback(app.close)
            return Served(app, Client(app), provider, keys, token, admin)

        yield begin
