"""The server or job queue that runs this process: recognized, and warned of where it kills workers early.

Such hosts run one program in several processes, which should count their limits together: `prefork_host`.
gunicorn and uWSGI may kill a worker that is busy with one request for too long. Limits and budgets recover
from that (see docs/processes.md), but the answer is lost: `check`. The package imports none of them; what a
host has imported shows it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
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


def prefork_host() -> str | None:
    """The name of the host that runs this program in several processes, or None."""
    return next((name for name, runs_here in HOSTS.items() if runs_here()), None)


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
    for frame in _frames():
        if str(frame.f_globals.get("__name__")).startswith("gunicorn."):
            settings = getattr(frame.f_locals.get("self"), "cfg", None)
            seconds = getattr(settings, "timeout", None)
            # Workers of other kinds send heartbeats to the master during a call.
            if seconds is not None and getattr(settings, "worker_class_str", "") == "sync":
                return Killer("gunicorn", seconds, "--timeout") if seconds > 0 else None
    return None


# --------------------------------------------------------------------------------------------- recognition


def _has(module: str, attribute: str) -> bool:
    """Whether a module with this attribute is loaded; one of that name without it is something else."""
    return getattr(sys.modules.get(module), attribute, None) is not None


def _in_passenger() -> bool:
    # Its loader is the program that runs, and imports the application.
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.basename(program or "") == "wsgi-loader.py"


def _in_rq() -> bool:
    # Every program that enqueues a job imports the worker's module too, so that it is loaded says nothing.
    return "rq.worker" in sys.modules and any(
        str(frame.f_globals.get("__name__")).startswith("rq.worker") for frame in _frames()
    )


def _in_multiprocessing() -> bool:
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None:
        return False
    # A child that was not forked imports the main module before it knows its parent; it inherits meanwhile.
    return module.parent_process() is not None or hasattr(module.current_process(), "_inheriting")


def _frames() -> Iterator[FrameType]:
    """The calls that this thread is in, from the inside out."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


# The hosts that run one program in several processes, and how each is recognized.
# gunicorn's arbiter and Celery's worker are loaded by their commands only. mod_wsgi and uWSGI add a module of
# their own to the interpreter; packages of these names lack what the server adds.
HOSTS: Mapping[str, Callable[[], bool]] = {
    "gunicorn": lambda: _has("gunicorn.arbiter", "Arbiter"),
    "uWSGI": lambda: _has("uwsgi", "opt"),
    "mod_wsgi": lambda: _has("mod_wsgi", "process_group"),
    "Passenger": _in_passenger,
    "Celery": lambda: _has("celery.apps.worker", "Worker"),
    "RQ": _in_rq,
    "multiprocessing": _in_multiprocessing,
}
