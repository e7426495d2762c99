"""The command line, ``fastroute``.

The commands need click and rich, the extra ``cli``; without them `main` prints how to install them. The list
of commands is in `group.py`. Each command is a file of its own that is imported when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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

    cli.main(None if arguments is None else list(arguments), prog_name="fastroute")


__all__ = ["main"]
