"""What PyInstaller needs to know of this package; it asks by the entry point ``pyinstaller40``.

Each file ``hook-NAME.py`` is run by PyInstaller when a program imports the module NAME.
"""

from __future__ import annotations

import os


def hook_dirs() -> list[str]:
    """The directory of the hooks."""
    return [os.path.dirname(__file__)]
