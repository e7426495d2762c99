"""The access log of ``fastroute serve``: one line on standard output for each request."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from fastroute import json_codec

from .text import visible

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""

_MOST_CHARS = 200  # of a path


class AccessLog:
    """A WSGI application that logs the requests to another one, each when its response has been sent.

    The query, headers and bodies are not logged: they may contain keys and prompts.

    Args:
        app: the application.
        as_json: a JSON object for each line instead of text.

    Thread safety: any number of threads may call it.
    """

    def __init__(self, app: Application, as_json: bool) -> None:
        self._app = app
        self._as_json = as_json

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        entry = _Entry(environ, self._as_json)

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            entry.begin(status, headers)
            return start_response(status, headers, *more)

        return _Counted(self._app(environ, start), entry)


class _Entry:
    """What is known of one request."""

    def __init__(self, environ: dict[str, Any], as_json: bool) -> None:
        self._environ = environ
        self._as_json = as_json
        self._began = time.monotonic()
        self._time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self.bytes = 0

    def begin(self, status: str, headers: list[tuple[str, str]]) -> None:
        self._status = int(status[:3])
        self._headers = {name.lower(): value for name, value in headers}

    def write(self) -> None:
        environ, headers = self._environ, self._headers
        path = str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")
        fields = {
            "time": self._time,
            "remote": str(environ.get("REMOTE_ADDR", "-")),
            "key": environ.get("fastroute.key") or None,
            "method": str(environ.get("REQUEST_METHOD", "-")),
            "path": path[:_MOST_CHARS],
            "status": self._status,
            "bytes": self.bytes,
            "seconds": round(time.monotonic() - self._began, 4),
            "model": headers.get("x-fastroute-model"),
            "endpoint": headers.get("x-fastroute-endpoint"),
            "request_id": headers.get("x-request-id"),
        }
        line = json_codec.dumps(fields).decode() if self._as_json else _text(fields)
        try:
            # In one write, so that lines of several threads do not mix.
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # a full disk or a reader that has gone must not fail requests


def _text(fields: Mapping[str, Any]) -> str:
    shown = {name: "-" if value is None else visible(str(value)) for name, value in fields.items()}
    return (
        '{time} {remote} {key} "{method} {path}" {status} {bytes} {seconds}s {model} {endpoint} {request_id}'
    ).format_map(shown)


class _Counted:
    """A response's body that counts its bytes, and writes the entry when the server closes it."""

    def __init__(self, body: Iterable[bytes], entry: _Entry) -> None:
        self._body = body
        self._entry = entry

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            self._entry.bytes += len(piece)
            yield piece

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._entry.write()


__all__ = ["AccessLog", "Application"]
