"""The wire formats: what OpenAI's shape becomes on the wire of a provider, and back.

`base` says what a format is and keeps the registry; each format has a module of its own, imported when it
is first asked for. Nothing in this package does I/O: `transport.py` sends the bytes.
"""

from __future__ import annotations

from .base import (
    Format,
    Key,
    StreamDecoder,
    Target,
    check_content_type,
    get,
    names,
    register,
    rejects_stream_options,
)

__all__ = [
    "Format",
    "Key",
    "StreamDecoder",
    "Target",
    "check_content_type",
    "get",
    "names",
    "register",
    "rejects_stream_options",
]
