"""Finds the folder for what belongs to a user and must survive restarts: ledgers, journals."""

from __future__ import annotations

import os
import sys


def state_folder() -> str | None:
    """The package's folder in the user's state folder, which may not exist yet; None if the user has no home.

    It is ``$XDG_STATE_HOME/fastroute``; without that variable ``~/.local/state/fastroute``, on macOS
    ``~/Library/Application Support/fastroute``. As the XDG specification demands, a relative path in the
    variable is ignored.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        places = ("Library", "Application Support") if sys.platform == "darwin" else (".local", "state")
        base = os.path.join(os.path.expanduser("~"), *places)
    return os.path.join(base, "fastroute") if os.path.isabs(base) else None
