"""Forks of a process whose threads have ended."""

from __future__ import annotations

import os
import sys
import time

_TASKS = "/proc/self/task"


def fork() -> int:
    """As os.fork, once threads that were joined have left the system too; for that it waits a second at most.

    They give memory back to their very end, and the address sanitizer's allocator does not prepare for a
    fork: a lock of its that one of them holds stays taken in the child for ever. A thread that still runs,
    as the one with which a worker of pytest-xdist listens, has a Python frame; one that was joined has none.
    """
    end = time.monotonic() + 1
    while os.path.isdir(_TASKS) and len(os.listdir(_TASKS)) > len(sys._current_frames()):
        if time.monotonic() > end:
            break
        os.sched_yield()
    return os.fork()
