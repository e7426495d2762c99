"""The head of a request: its address, and a format's own and the configured headers, all fit to be sent.

Shared by all formats. Which path and which headers a format has is its own business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from fastroute import errors

from .base import Target


def joined_url(base_url: str, path: str) -> str:
    """``base_url`` with a path behind its own; a query in the base URL is kept behind it."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path, fragment=""))


def usual_headers(stream: bool) -> dict[str, str]:
    """What every format sends beside its key."""
    own = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if stream else "application/json",
        "User-Agent": "fastroute",
    }
    if stream:
        # A compressed stream arrives in lumps: the compressor holds tokens back.
        own["Accept-Encoding"] = "identity"
    return own


_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# These frame the message; a configured one could only contradict what is sent.
_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "host", "content-encoding", "te", "upgrade"}
)


def checked_headers(target: Target, own: Mapping[str, str]) -> dict[str, str]:
    """A format's own headers with the configured ones over them, all fit to be sent.

    Raises:
        ConfigError: naming the header, never its value.
    """
    place = f"providers.{target.provider}"
    merged = {name.lower(): (name, value, f"{place}: the API key") for name, value in own.items()}
    for name, value in target.headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise errors.ConfigError(f"{place}.headers: a name in it cannot be the name of an HTTP header")
        if name.lower() in _FRAMING:
            raise errors.ConfigError(f"{place}.headers.{name}: the transport sets it; leave it out")
        merged[name.lower()] = (name, value, f"{place}.headers.{name}")
    for _, value, origin in merged.values():
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value) or value != value.strip(" \t"):
            raise errors.ConfigError(
                f"{origin}: cannot be sent in an HTTP header; it must be Latin-1 text without line breaks, "
                "control characters or blanks at its ends"
            )
    return {name: value for name, value, _ in merged.values()}
