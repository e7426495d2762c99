"""gevent: whether its patches came in time, and what is done about waits that they cannot reach.

Owns what the package knows of gevent, which it never imports. Threads, locks, queues and sockets are the
standard library's everywhere else; patched before they are imported from it, they are greenlets'.

Patched later they are a mixture that fails in ways nobody would connect with the patching: locks and
thread-local values made at import belong to the one real thread, so all its greenlets would share them, and
one call's deadline would shut the connection of another. That is refused as soon as it can be seen.
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
    """Checks that what was imported is still what the standard library has.

    Raises:
        Error: gevent has patched more since.
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
    """Calls a function that waits inside C, where no patch reaches, without stopping other greenlets.

    Under gevent's patches it runs in a thread of gevent's pool; without them it is a plain call.
    """
    if "threading" not in _at_import:
        return function(*values)
    gevent: Any = sys.modules["gevent"]
    result: _Result = gevent.get_hub().threadpool.apply(function, values)
    return result
