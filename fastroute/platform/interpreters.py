"""Sub-interpreters: the core works in one interpreter of a process, the first that imports it.

Cython modules keep their types and constants once for each process, so Cython refuses a second interpreter.
mod_wsgi and uWSGI give each application an interpreter of its own unless configured otherwise. This
module replaces Cython's message by one that names their settings, and warns in the first interpreter.
The package imports neither server.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from .notices import notice

_CURES = (
    "under Apache's mod_wsgi set WSGIApplicationGroup %{GLOBAL}, under uWSGI --single-interpreter; "
    "elsewhere use threads or processes instead of sub-interpreters (docs/hosting.md)"
)


def load_core() -> ModuleType:
    """Imports the core, for the attribute `fastroute._core`.

    Raises:
        ImportError: another interpreter of this process has imported it, or as usual.
    """
    try:
        core = importlib.import_module("fastroute._core")
    except ImportError as error:
        # Cython: "can only be loaded into one interpreter per process". Python from 3.12 on, for interpreters
        # with a lock of their own: "does not support loading in subinterpreters".
        if isinstance(error, ModuleNotFoundError) and error.name == "fastroute._core":
            raise ImportError(_missing(), name=error.name) from error
        if "interpreter" not in str(error):
            raise
        raise ImportError(
            "fastroute._core: another interpreter of this process may have imported it, and it works in "
            f"only one; run all applications of a process in the main interpreter: {_CURES}",
            name=error.name,
            path=error.path,
        ) from error
    warn()
    return core


def _missing() -> str:
    """Why there is no core for this interpreter."""
    if not os.path.isdir(os.path.dirname(__file__)):
        return (
            "fastroute._core: a compiled module cannot be imported from a zip archive; pack the program with "
            "shiv, pex or PyInstaller, which unpack it first, or install fastroute"
        )
    version = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"fastroute._core: is not built for {version} in {os.path.dirname(os.path.dirname(__file__))}; "
        "install fastroute for this Python, or build a source tree: python setup.py build_ext --inplace"
    )


def warn() -> None:
    """Warns if the server will run further applications of this process in other interpreters."""
    found = _mod_wsgi() or _uwsgi()
    if found is not None:
        notice(
            f"{found}, and fastroute works in only one interpreter of a process: the import fails in "
            f"all others; {_CURES}"
        )


def at_end(action: Callable[[], object]) -> None:
    """Runs ``action`` at an orderly end of this interpreter, which may be a sub-interpreter of mod_wsgi."""
    atexit.register(action)
    if _mod_wsgi() is not None:
        # It ends sub-interpreters without the functions of atexit. Releases before 4.8 tell nobody.
        subscribe = getattr(sys.modules["mod_wsgi"], "subscribe_shutdown", None)
        if subscribe is not None:
            subscribe(lambda *event, **details: action())


def _mod_wsgi() -> str | None:
    # Empty in the main interpreter, which is the group %{GLOBAL}.
    group = getattr(sys.modules.get("mod_wsgi"), "application_group", "")
    return f"mod_wsgi runs this application in the sub-interpreter {group!r}" if group else None


def _uwsgi() -> str | None:
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", None)
    if not isinstance(options, dict):
        return None
    given = {_text(name): value for name, value in options.items()}
    if "single-interpreter" in given:
        return None
    mounts = given.get("mount", "")
    # Of a repeated option uWSGI shows only the last. So if that is not the application which is imported now,
    # there is another one.
    last = _text(mounts[-1] if isinstance(mounts, list) else mounts).partition("=")[2]
    if "vhost" not in given and (not last or _is_running(last.partition(":")[0])):
        return None
    return "uWSGI runs each further application in a sub-interpreter"


def _is_running(application: str) -> bool:
    """Whether a function of this file or module has called this one."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == application or frame.f_code.co_filename == application:
            return True
        frame = frame.f_back
    return False


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
