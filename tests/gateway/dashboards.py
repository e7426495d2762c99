"""A gateway that serves its page to a browser, and the parts of that page which tests look at."""

from __future__ import annotations

import threading
from typing import Any

from browser import Page
from gateways import Served
from needs import need

BOARD = "!document.querySelector('#board').hidden"
NUDGE = "window.dispatchEvent(new Event('online'))"  # so that it looks at once


class Web:
    """A gateway on waitress, which can go away and come back at the same address."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._port = 0
        self.begin()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/admin"

    def begin(self) -> None:
        server = need("waitress.server")
        app: Any = self.served.app
        self._sockets: dict[int, Any] = {}
        self._server = server.create_server(
            app, map=self._sockets, host="127.0.0.1", port=self._port, threads=4
        )
        self._port = self._server.effective_port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        loop = need("waitress.wasyncore").loop
        while not self._over.is_set():
            loop(0.02, map=self._sockets, count=1)
        self._server.task_dispatcher.shutdown()
        for at in list(self._sockets.values()):
            at.close()

    def end(self) -> None:
        """May be called again."""
        self._over.set()
        self._thread.join()


def enter(page: Page, key: str) -> None:
    page.until("document.activeElement.id === 'key'")
    page.write(key)
    page.press("Enter")


def tile(name: str) -> str:
    """Script for the figure under a title."""
    return (
        f"[...document.querySelectorAll('#tiles dt')].find((at) => at.innerText.startsWith('{name}'))"
        ".nextSibling.innerText"
    )
