"""Builds a request's address and headers: a format's own headers with the configured ones over them, checked.

Shared by all formats; each format adds its own path and key header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from fastroute import errors

from .base import Target


def joined_url(base_url: str, path: str) -> str:
    """``base_url`` with ``path`` appended to its path; a query in the base URL is kept."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path, fragment=""))


def usual_headers(stream: bool) -> dict[str, str]:
    """The headers that every format sends besides its key."""
    own = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if stream else "application/json",
        "User-Agent": "fastroute",
    }
    if stream:
        # A compressor buffers tokens, so a compressed stream arrives in bursts.
        own["Accept-Encoding"] = "identity"
    return own


_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# The transport writes these itself. A configured one could contradict the body that is sent.
_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "host", "content-encoding", "te", "upgrade"}
)


def checked_headers(target: Target, own: Mapping[str, str]) -> dict[str, str]:
    """A format's own headers with the configured ones over them, all checked.

    Raises:
        ConfigError: if a name or value cannot be sent; the message names the header, never its value.
    """
    place = f"providers.{target.provider}"
    merged = {name.lower(): (name, value, f"{place}: the API key") for name, value in own.items()}
    for name, value in target.headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise errors.ConfigError(
                f"{place}.headers: a name is not a valid HTTP header name; use letters, digits and -"
            )
        if name.lower() in _FRAMING:
            raise errors.ConfigError(f"{place}.headers.{name}: is set by the transport; leave it out")
        merged[name.lower()] = (name, value, f"{place}.headers.{name}")
    for _, value, origin in merged.values():
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value) or value != value.strip(" \t"):
            raise errors.ConfigError(
                f"{origin}: cannot be sent in an HTTP header; must be Latin-1 text without line breaks, "
                "control characters, or spaces at either end"
            )
    return {name: value for name, value, _ in merged.values()}
