"""The command line, ``fastroute``.

Owns the entry point, which needs nothing installed but fastroute itself: the commands are built on click and
rich, the extra ``cli``, and without these `main` says how to get them. The list of commands is `group.py`;
each command is a file of its own that is imported when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit status.

    Args:
        arguments: what follows the program's name; by default the process's own arguments.

    Raises:
        SystemExit: always. 0: done; 1: the command failed; 2: it was called wrongly; 130: interrupted.
    """
    if find_spec("click") is None or find_spec("rich") is None:
        print("the command line needs click and rich: pip install 'fastroute[cli]'", file=sys.stderr)
        raise SystemExit(2)
    from .group import cli

    cli.main(None if arguments is None else list(arguments), prog_name="fastroute")


__all__ = ["main"]
