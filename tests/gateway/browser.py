"""A real browser without a window, told what to do over a pair of pipes in Chromium's own protocol.

Owns no more of the protocol than the tests of a page need: opening it, running a piece of script in it, keys,
the size, the colour scheme, a picture. Each page has its own session storage.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

_PATIENCE = 60.0  # seconds for any one answer; a loaded machine takes long to begin
_LOOK_AGAIN = 0.05
# The protocol is spoken on descriptors 3 and 4, which a shell gives it without a fork hook of Python's.
_START = 'exec "$0" "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--force-color-profile=srgb",
    "about:blank",
)


class PageError(Exception):
    """A piece of script threw."""


class Browser:
    """Chromium; use it with ``with``.

    Thread safety: none, one thread uses it.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._ids = itertools.count(1)
        self._unread = b""
        self._messages: deque[dict[str, Any]] = deque()
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        theirs_in, self._commands = os.pipe()
        self._answers, theirs_out = os.pipe()
        environment = {**os.environ, "COMMANDS": str(theirs_in), "ANSWERS": str(theirs_out)}
        self._process = subprocess.Popen(
            ["bash", "-c", _START, self._program, *_OPTIONS, f"--user-data-dir={self._folder}"],
            pass_fds=(theirs_in, theirs_out),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)  # it ends when nobody speaks to it any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its answer; what else comes meanwhile is in ``events``."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        until = time.monotonic() + _PATIENCE
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self, until: float) -> dict[str, Any]:
        while not self._messages:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser has ended" if ready else "the browser does not answer")
            *whole, self._unread = (self._unread + data).split(b"\0")
            self._messages.extend(map(json.loads, whole))
        return self._messages.popleft()

    def page(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """A page in a profile of its own."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.ask(f"{domain}.enable")
        page.resize(width, height)
        page.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        page.ask("Page.navigate", url=url)
        page.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")
        return page


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **params)

    def run(self, script: str) -> Any:
        """The value of an expression, once it is there.

        Raises:
            PageError: it threw.
        """
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Looks until an expression is true; its value."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                found = self.run(script)
            except (PageError, RuntimeError):  # the page is about to become another
                found = None
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"never true: {script}\n{self.text()[:2000]}")
            time.sleep(_LOOK_AGAIN)

    def text(self) -> str:
        """What can be read on the page."""
        return str(self.run("document.body.innerText"))

    def press(self, key: str) -> None:
        """A key such as ``Tab`` or ``Enter``."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **common, **more)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Text into whatever has the focus."""
        self.ask("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def complaints(self) -> list[str]:
        """What the browser's console says is wrong: errors, and what the content policy held back."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of all of the page."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def close(self) -> None:
        self._browser.ask("Target.disposeBrowserContext", browserContextId=self._context)
