"""A client over a configuration file that tests write anew."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastroute import Client, events
from fastroute.testing import Provider

MESSAGES = [{"role": "user", "content": "Say hello"}]
POLICY = (
    'strategy = "ordered"\nbackoff_base = 0.001\nbackoff_cap = 0.002\ntimeout_base = 20\nqueue_timeout = 20'
)


def text(
    url: str,
    *,
    top: str = "",
    provider: str = "",
    endpoint: str = "",
    model: str = "test-model",
    policy: str = "",
    tables: str = "",
) -> str:
    return f"""
[fastroute]
ledger = ""
timeout = 20
default_model = "{model}"
{top}
[cache]
enabled = false
[providers.a]
base_url = "{url}"
{provider}
[[endpoints]]
provider = "a"
model = "{model}"
{endpoint}
[models."{model}"]
input_price = 1
output_price = 2
[policy]
{POLICY}
{policy}
{tables}
"""


class Served:
    """A provider, a file, and a client made from it."""

    def __init__(self, path: Path, provider: Provider, /, **keys: str) -> None:
        self.path = path
        self.provider = provider
        self.write(**keys)
        self.client = Client(path)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client.on(self.events.put, events.ConfigReloaded)
        self.client.on(self.events.put, events.ConfigRefused)

    def write(self, **keys: str) -> None:
        self.put(text(self.provider.base_url, **keys))

    def put(self, content: str) -> None:
        """As a careful editor would: another file by the same name, from one moment to the next."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(content, encoding="utf-8")
        fresh.replace(self.path)

    def ask(self, **params: Any) -> Any:
        return self.client.chat.completions.create(messages=MESSAGES, **params)

    def event(self) -> Any:
        return self.events.get(timeout=10)


Serve = Callable[..., Served]


def in_threads(count: int, work: Callable[[], object]) -> tuple[list[threading.Thread], list[BaseException]]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, failed
