"""Warns if the server that runs this process (gunicorn or uWSGI) kills workers before a call times out.

Both may kill a worker that is busy with one request for too long. Limits and budgets recover from that (see
docs/processes.md), but the answer is lost. The package imports neither server.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from attrs import frozen

from .notices import notice


@frozen
class Killer:
    """A server that kills busy workers, after how many seconds, and by which setting."""

    server: str
    seconds: float
    setting: str


def check(timeout: float) -> None:
    """Logs a warning if a call may take longer than the server allows a worker to be busy.

    Args:
        timeout: seconds a call may take.
    """
    killer = _uwsgi() or _gunicorn()
    if killer is not None and killer.seconds <= timeout:
        notice(
            f"{killer.server} kills a worker that is busy for {killer.seconds:g} s ({killer.setting}), but "
            f"a call may take {timeout:g} s ([fastroute] timeout); set {killer.setting} above that"
        )


def _uwsgi() -> Killer | None:
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", None)
    try:
        seconds = float(options["harakiri"] if "harakiri" in options else options[b"harakiri"])
    except (TypeError, KeyError, ValueError):
        return None
    return Killer("uWSGI", seconds, "harakiri") if seconds > 0 else None


def _gunicorn() -> Killer | None:
    """Reads the settings of the worker that runs this code, or of the master that preloads it."""
    if "gunicorn.config" not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("gunicorn."):
            settings = getattr(frame.f_locals.get("self"), "cfg", None)
            seconds = getattr(settings, "timeout", None)
            # Workers of other kinds send heartbeats to the master during a call.
            if seconds is not None and getattr(settings, "worker_class_str", "") == "sync":
                return Killer("gunicorn", seconds, "--timeout") if seconds > 0 else None
        frame = frame.f_back
    return None
