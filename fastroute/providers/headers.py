"""Builds a request's address and headers: a format's own headers with the configured ones over them.

Shared by all formats; each format adds its own path and key header. Configured headers are checked when the
configuration is read (`config/validators.py`), keys when they are read (`config/secrets.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from .base import Target


def joined_url(base_url: str, path: str) -> str:
    """``base_url`` with ``path`` appended to its path; a query in the base URL is kept."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path, fragment=""))


def with_query(url: str, query: Mapping[str, Sequence[str]]) -> str:
    """An address with further parameters in its query; they replace those of the same name."""
    parts = urlsplit(url)
    kept = [
        (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in query
    ]
    return urlunsplit(parts._replace(query=urlencode([*kept, *query.items()], doseq=True)))


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


def with_configured(own: Mapping[str, str], target: Target) -> dict[str, str]:
    """A format's own headers with the configured ones over them; names are compared ignoring case."""
    merged = {name.lower(): (name, value) for name, value in own.items()}
    merged |= {name.lower(): (name, value) for name, value in target.headers.items()}
    return dict(merged.values())
