"""fastroute: routes LLM calls from blocking Python.

    import fastroute

    client = fastroute.Client()
    reply = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hello"}])
    print(reply.choices[0].message.content, reply.route.model, reply.route.cost)

The names below load when they are first used, so that importing the package costs little.

PYTEST_DONT_REWRITE: pytest need not warn of a package that was imported before its plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls.parsing import ParsedCompletion
    from .calls.stream import Stream
    from .client import Client
    from .config import Config
    from .errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        BudgetExceeded,
        CallCancelled,
        ConfigError,
        ConflictError,
        ContentFilterError,
        ContextLengthExceeded,
        DeadlineExceeded,
        EmptyResponse,
        Error,
        InternalServerError,
        LedgerError,
        ModelNotFoundError,
        NoEndpointError,
        NotFoundError,
        PermissionDeniedError,
        QuotaExceededError,
        RateLimitError,
        RequestTooLargeError,
        RequestTooLargeForLimit,
        StreamInterrupted,
        StreamStalled,
        StreamTruncated,
        TLSError,
        UnprocessableEntityError,
        UpstreamProtocolError,
        UpstreamTruncated,
        ValidationError,
    )
    from .routing.plan import Plan
    from .types import Attempt, BudgetStatus, Chunk, Classification, Completion, Route, Usage

__version__ = "0.1.0"

_HOMES = {
    "client": ("Client",),
    "config": ("Config",),
    "routing.plan": ("Plan",),
    "calls.parsing": ("ParsedCompletion",),
    "calls.stream": ("Stream",),
    "types": ("Attempt", "BudgetStatus", "Chunk", "Classification", "Completion", "Route", "Usage"),
    "errors": (
        "APIConnectionError",
        "APIError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BudgetExceeded",
        "CallCancelled",
        "ConfigError",
        "ConflictError",
        "ContentFilterError",
        "ContextLengthExceeded",
        "DeadlineExceeded",
        "EmptyResponse",
        "Error",
        "InternalServerError",
        "LedgerError",
        "ModelNotFoundError",
        "NoEndpointError",
        "NotFoundError",
        "PermissionDeniedError",
        "QuotaExceededError",
        "RateLimitError",
        "RequestTooLargeError",
        "RequestTooLargeForLimit",
        "StreamInterrupted",
        "StreamStalled",
        "StreamTruncated",
        "TLSError",
        "UnprocessableEntityError",
        "UpstreamProtocolError",
        "UpstreamTruncated",
        "ValidationError",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Attempt",
    "AuthenticationError",
    "BadRequestError",
    "BudgetExceeded",
    "BudgetStatus",
    "CallCancelled",
    "Chunk",
    "Classification",
    "Client",
    "Completion",
    "Config",
    "ConfigError",
    "ConflictError",
    "ContentFilterError",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "EmptyResponse",
    "Error",
    "InternalServerError",
    "LedgerError",
    "ModelNotFoundError",
    "NoEndpointError",
    "NotFoundError",
    "ParsedCompletion",
    "PermissionDeniedError",
    "Plan",
    "QuotaExceededError",
    "RateLimitError",
    "RequestTooLargeError",
    "RequestTooLargeForLimit",
    "Route",
    "Stream",
    "StreamInterrupted",
    "StreamStalled",
    "StreamTruncated",
    "TLSError",
    "UnprocessableEntityError",
    "UpstreamProtocolError",
    "UpstreamTruncated",
    "Usage",
    "ValidationError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "_core":
        # `from fastroute import _core` asks for the attribute before it imports the module.
        from .platform.interpreters import load_core

        return load_core()
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'fastroute' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
