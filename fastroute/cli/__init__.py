"""The command line, ``fastroute``.

The commands need click and rich, the extra ``cli``; without them `main` prints how to install them. The list
of commands is in `group.py`. Each command is a file of its own that is imported when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit status.

    Args:
        arguments: the arguments after the program's name; by default those of the process.

    Raises:
        SystemExit: always. 0: success; 1: the command failed; 2: wrong usage; 130: interrupted.
    """
    if find_spec("click") is None or find_spec("rich") is None:
        print("the command line needs click and rich: pip install 'fastroute[cli]'", file=sys.stderr)
        raise SystemExit(2)
    from .group import cli

    try:
        cli.main(None if arguments is None else list(arguments), prog_name="fastroute")
    except OSError as error:
        raise SystemExit(_unwritten(error)) from None
    except SystemExit:
        # What is still buffered is written here, where an error can be told in a sentence.
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            raise SystemExit(_unwritten(error)) from None
        raise


def _unwritten(error: OSError) -> int:
    """Reports an error of the output, and returns the exit status.

    A reader that has gone, such as ``head``, is no error. The interpreter would flush standard output again
    at its end and print a traceback, so that leads to the null device.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        where = f"{error.filename}: " if error.filename else ""
        with suppress(OSError):
            print(f"Error: {where}{error.strerror or error}", file=sys.stderr, flush=True)
    return 1


__all__ = ["main"]
