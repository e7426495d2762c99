"""What a forked child does before anything else, and a lock under which this process does not fork.

`os.fork` runs the actions by itself. A server that forks below Python (uWSGI) runs none of Python's hooks,
so every entry point calls `ensure`, which compares the core's count of forks (kept by the C
library's hooks) with the count at the last run. It does so before it takes any lock: one that another thread
held at the fork is never released in the child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from fastroute import _core

if "actions" in globals():
    # The other modules registered their actions once, and a forked child without them would use its parent's
    # connections. Raised before anything of the module has changed.
    raise ImportError(
        "fastroute cannot be reloaded in a running process; restart the process (in a notebook: the kernel)"
    )

actions: list[Callable[[], None]] = []
"""What a forked child runs, in this order."""
handled = _core.fork_count()  # the count at the last run of the actions
_locks: dict[int, threading.Lock] = {}
mutex = threading.RLock()
"""`os.fork` waits for this lock; see `blocked`."""


def in_child(action: Callable[[], None]) -> None:
    """Runs ``action`` in every child, after those that were registered before it."""
    actions.append(action)


def ensure() -> None:
    """Runs the actions if this process is a child in which they have not run; cheap otherwise."""
    if _core.fork_count() != handled:
        _catch_up()


def blocked() -> threading.RLock:
    """The lock to hold while a file or socket is opened and registered for the children to close.

    `os.fork` waits for it, so no child gets a descriptor that is open but not registered. A fork that runs no
    hooks does not wait: that child keeps such a descriptor open until it ends.
    """
    return mutex


def _catch_up() -> None:
    count = _core.fork_count()
    # Several threads of the child may arrive here at once. The parent's threads cannot hold this lock,
    # because their count differs.
    with _locks.setdefault(count, threading.Lock()):
        if handled != count:
            _act()


def _act() -> None:
    global handled, mutex
    mutex = threading.RLock()  # the thread that held the other one is not in the child
    for action in actions:
        action()
    handled = _core.fork_count()


os.register_at_fork(
    before=lambda: mutex.acquire(),
    after_in_parent=lambda: mutex.release(),
    after_in_child=_act,
)
