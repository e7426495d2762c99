"""Wire formats: translate requests from OpenAI's shape to a provider's, and answers back.

`base` defines what a format is and keeps the registry. Each format has its own module, imported when it is
first used. Nothing in this package does I/O: `transport/` sends the bytes.
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
]
