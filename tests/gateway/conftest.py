"""A gateway in front of a local provider, and its page in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page
from dashboards import BOARD, Web, enter
from gateways import Clock, Served, configuration
from needs import need
from werkzeug.test import Client as WsgiClient

from fastroute import Client
from fastroute.gateway.app import Gateway
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.testing import Provider


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve(Caller(...), answer=..., **tables)``: a gateway with that caller's key and an admin's.

    ``strict=False`` for a provider that takes more than OpenAI.
    """
    with ExitStack() as stack:

        def begin(
            caller: Caller | None = None, answer: Any = None, *, strict: bool = True, **tables: Any
        ) -> Served:
            provider = stack.enter_context(Provider(answer=answer, strict=strict))
            keys = KeyFile(tmp_path / "keys.db")
            token = keys.create(caller or Caller("web"))
            admin = keys.create(Caller("boss", admin=True))
            clock = Clock()
            client = Client(configuration(provider.base_url, tmp_path, **tables))
            app = Gateway(client, keys, clock=clock)
            stack.callback(app.close)
            return Served(app, WsgiClient(app), provider, keys, token, admin, clock)

        yield begin


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(need("chromium"), tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def dashboard(serve: Callable[..., Served], browser: Browser) -> Iterator[Callable[..., tuple[Web, Page]]]:
    """``dashboard(...)``: a gateway as of `serve`, and its page, which has been given the admin key."""
    with ExitStack() as stack:

        def begin(caller: Caller | None = None, *, key: bool = True, look: Any = None, **tables: Any) -> Any:
            web = Web(serve(caller, **tables))
            stack.callback(web.end)
            page = browser.page(web.url, **(look or {}))
            stack.callback(page.close)
            if key:
                enter(page, web.served.admin)
                page.until(BOARD)
            return web, page

        yield begin
