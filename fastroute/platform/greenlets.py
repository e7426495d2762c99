"""gevent: checks that its patches were applied before the package was imported, and runs C calls apart.

The package never imports gevent. It uses the threads, locks, queues and sockets of the standard library,
which gevent's patches turn into greenlet versions. Patched after the import, the package would have both
kinds: locks and thread-local values made at import belong to the one real thread, all its greenlets would
share them, and one call's deadline would close the connection of another. So that is an error.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from fastroute.errors import Error

_Result = TypeVar("_Result")

_PARTS = ("socket", "ssl", "threading", "queue", "time", "select")


def _patched() -> frozenset[str]:
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None:
        return frozenset()
    return frozenset(part for part in _PARTS if monkey.is_module_patched(part))


# Patching replaces this function, so one comparison tells a call that gevent has patched since the import: a
# server may fork a process that has a client and patch the child afterwards.
GET_IDENT = threading.get_ident
_at_import = _patched()


def check() -> None:
    """Checks that gevent has not patched the standard library since the import.

    Raises:
        Error: gevent has patched more of it.
    """
    late = _patched() - _at_import
    if late:
        raise Error(
            f"gevent patched {', '.join(sorted(late))} after fastroute was imported; "
            "gevent.monkey.patch_all() must come first, before any other import (under gunicorn -k gevent: "
            "without --preload, or with the patch at the top of gunicorn.conf.py; under uWSGI: "
            "at the top of the application instead of --gevent-monkey-patch)"
        )


def apart(function: Callable[..., _Result], *values: Any) -> _Result:
    """Calls a function that blocks in C code, which gevent cannot patch, without blocking other greenlets.

    If gevent has patched threading, it runs in a thread of gevent's pool; otherwise it is a plain call.
    """
    if "threading" not in _at_import:
        return function(*values)
    gevent: Any = sys.modules["gevent"]
    result: _Result = gevent.get_hub().threadpool.apply(function, values)
    return result
