"""Warnings about how a program was started, which its user should see even without logging set up."""

from __future__ import annotations

import logging
import sys
import warnings

log = logging.getLogger("fastroute")


def notice(text: str) -> None:
    """Logs a warning; if the program has not set up logging, shows it as a Python warning instead.

    The package's logger has a `NullHandler`, as libraries should, so that nothing is printed behind a
    program's back. A provider that is left out, or a ledger that records nothing, must not go unnoticed.
    """
    if _is_set_up():
        log.warning("%s", text)
    else:
        warnings.warn(text, UserWarning, stacklevel=_program())


def _program() -> int:
    """The level of the first caller outside the package, for `warnings.warn` in `notice`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        # Frames of an import lie between the package and the program. `warnings.warn` does not count those of
        # the frozen part.
        name = frame.f_code.co_filename
        if not ("importlib" in name and "_bootstrap" in name):
            if frame.f_globals.get("__name__", "").partition(".")[0] not in ("fastroute", "importlib"):
                break
            level += 1
        frame = frame.f_back
    return level


def _is_set_up() -> bool:
    logger: logging.Logger | None = log
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
