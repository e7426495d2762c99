"""What the tests of the gateway share: a configuration, and a gateway with what stands behind it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from attrs import field, frozen
from werkzeug.test import Client as WsgiClient
from werkzeug.test import TestResponse

from fastroute import errors
from fastroute.gateway.app import Gateway
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.gateway.limits import KeyLimits, Permit
from fastroute.testing import Provider

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}
CHAT = "/v1/chat/completions"


def configuration(base_url: str, folder: Path, **tables: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "fastroute": {"ledger": str(folder / "ledger.db"), "timeout": 20.0, "state": "memory"},
        "cache": {"enabled": False},
        "providers": {"local": {"base_url": base_url}},
        "endpoints": [{"provider": "local", "model": name} for name in ("gpt-4.1-mini", "gpt-4.1")],
        "tiers": {"budget": ["gpt-4.1-mini"], "premium": ["gpt-4.1"]},
        "policy": {"queue_timeout": 0.0, "backoff_base": 0.001, "backoff_cap": 0.002},
    }
    for table, keys in tables.items():
        found[table] = {**found.get(table, {}), **keys} if isinstance(keys, Mapping) else keys
    return found


class Clock:
    """Seconds that pass by themselves, and as many more as a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@frozen
class Served:
    """A gateway that is up: how to ask it, and what stands behind it."""

    app: Gateway
    web: WsgiClient
    provider: Provider
    keys: KeyFile
    token: str
    admin: str
    clock: Clock = field(factory=Clock)

    def post(self, body: Any = HELLO, *, token: str | None = None, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {token or self.token}", **options.pop("headers", {})}
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        options.setdefault("content_type", "application/json")
        options.setdefault("buffered", True)  # read to its end and closed, as a server does
        return self.web.post(CHAT, data=data, headers=headers, **options)

    def get(self, path: str, *, token: str | None = None) -> TestResponse:
        return self.web.get(path, headers={"Authorization": f"Bearer {token or self.token}"})


def error_of(response: Any) -> dict[str, Any]:
    """The error of an answer, in OpenAI's form with nothing beside it."""
    value = response.json
    assert set(value) == {"error"}
    assert set(value["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = value["error"]
    return error


def admit(limits: KeyLimits, caller: Caller, tokens: int) -> Permit:
    """Takes one request, and its tokens as when its body has been read."""
    permit = limits.admit(caller)
    try:
        permit.take(tokens)
    except errors.Error:
        permit.settle(0)
        raise
    return permit
