"""gevent and eventlet: checks that they patched before the package was imported, and runs C calls apart.

The package never imports either. It uses the threads, locks, queues and sockets of the standard library,
which their patches turn into greenlet versions. Patched after the import, the package would have both
kinds: locks and thread-local values made at import belong to the one real thread, all its greenlets would
share them, and one call's deadline would close the connection of another. Under eventlet the first
call would wait for ever. So that is an error.
"""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from fastroute.errors import Error

_Result = TypeVar("_Result")

# The parts that the package uses, as each library calls them, and what it must be told.
_PARTS = {
    "gevent": ("socket", "ssl", "threading", "queue", "time", "select"),
    "eventlet": ("socket", "thread", "time", "select"),
}
_CURES = {
    "gevent": "gevent.monkey.patch_all() must come first, before any other import (under gunicorn -k gevent: "
    "without --preload, or with the patch at the top of gunicorn.conf.py; under uWSGI: "
    "at the top of the application instead of --gevent-monkey-patch)",
    "eventlet": "eventlet.monkey_patch() must come first, before any other import",
}


def _patched() -> frozenset[tuple[str, str]]:
    """The patched parts, each with the library that did it."""
    found = set()
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None:
        found |= {("gevent", part) for part in _PARTS["gevent"] if monkey.is_module_patched(part)}
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None:
        found |= {("eventlet", part) for part in _PARTS["eventlet"] if patcher.is_monkey_patched(part)}
    return frozenset(found)


# Patching replaces this function, so one comparison tells a call that it was replaced since the import: a
# server may fork a process that has a client and patch the child afterwards.
GET_IDENT = threading.get_ident
_at_import = _patched()


def check() -> None:
    """Checks that neither gevent nor eventlet has patched the standard library since the import.

    Raises:
        Error: one has patched more of it.
    """
    late = sorted(_patched() - _at_import)
    if late:
        library = late[0][0]
        parts = ", ".join(part for by, part in late if by == library)
        raise Error(f"{library} patched {parts} after fastroute was imported; {_CURES[library]}")


def system_poll() -> Any:
    """The system's `select.poll`, which gevent and eventlet replace or remove; None where there is none."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original("select", "poll")
    patcher: Any = sys.modules.get("eventlet.patcher")
    return getattr(select if patcher is None else patcher.original("select"), "poll", None)


def apart(function: Callable[..., _Result], *values: Any) -> _Result:
    """Calls a function that blocks in C code, which cannot be patched, without blocking other greenlets.

    If gevent or eventlet has patched threading, it runs in a thread of that library's pool; otherwise it is a
    plain call.
    """
    result: _Result
    if ("gevent", "threading") in _at_import:
        gevent: Any = sys.modules["gevent"]
        result = gevent.get_hub().threadpool.apply(function, values)
    elif ("eventlet", "thread") in _at_import:
        result = import_module("eventlet.tpool").execute(function, *values)
    else:
        result = function(*values)
    return result
