"""What a forked child does before it goes on, whoever forked it.

Owns the list of those actions and that each is done once a child. `os.fork` runs them by itself. A server
that forks below Python (uWSGI) runs no hooks of Python's; so whatever a program may call first looks whether
this process is a new one, which the core hears of at a lower level, and makes good for it: before any lock is
taken, since one that another thread held at the fork stays locked for ever in the child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from fastroute import _core

_actions: list[Callable[[], None]] = []
_done = _core.fork_count()
_locks: dict[int, threading.Lock] = {}


def in_child(action: Callable[[], None]) -> None:
    """Has ``action`` done in every child, after those that were given before."""
    _actions.append(action)


def ensure() -> None:
    """Does what is to be done, if this process is a child in which it has not been. Costs next to nothing."""
    if _core.fork_count() != _done:
        _catch_up()


def _catch_up() -> None:
    count = _core.fork_count()
    # The child's first calls may come together. No thread of a parent can hold this lock: its count is
    # another.
    with _locks.setdefault(count, threading.Lock()):
        if _done != count:
            _act()


def _act() -> None:
    global _done
    for action in _actions:
        action()
    _done = _core.fork_count()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_act)
