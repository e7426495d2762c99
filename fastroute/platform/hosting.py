"""The server that runs this process: whether it gives a call the time that it may take.

Owns what the package knows of gunicorn and uWSGI, which it never imports. Both may kill a worker that is busy
with one request for too long. What is lost by that comes back (see docs/processes.md), but for the answer;
so it is said as soon as it can be seen.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

from attrs import frozen

log = logging.getLogger("fastroute")


@frozen
class Killer:
    """Who kills a worker, after how many seconds, and by which setting."""

    server: str
    seconds: float
    setting: str


def check(timeout: float) -> None:
    """Warns if a call may take longer than the server lets a worker be busy.

    Args:
        timeout: seconds a call may take.
    """
    killer = _uwsgi() or _gunicorn()
    if killer is not None and killer.seconds <= timeout:
        log.warning(
            "%s kills a worker that is busy for %g s (%s), in the middle of a call that may take %g s "
            "([fastroute] timeout): the one must be above the other",
            killer.server,
            killer.seconds,
            killer.setting,
            timeout,
        )


def _uwsgi() -> Killer | None:
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", None)
    try:
        seconds = float(options["harakiri"] if "harakiri" in options else options[b"harakiri"])
    except (TypeError, KeyError, ValueError):
        return None
    return Killer("uWSGI", seconds, "harakiri") if seconds > 0 else None


def _gunicorn() -> Killer | None:
    """By the settings of the worker that runs this code, or of the master that loads it beforehand."""
    if "gunicorn.config" not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("gunicorn."):
            settings = getattr(frame.f_locals.get("self"), "cfg", None)
            seconds = getattr(settings, "timeout", None)
            # Workers of other kinds answer the master while they wait for a call.
            if seconds is not None and getattr(settings, "worker_class_str", "") == "sync":
                return Killer("gunicorn", seconds, "--timeout") if seconds > 0 else None
        frame = frame.f_back
    return None
