"""Tools that a test needs and a developer may lack: in CI their absence is a failure, elsewhere a skip."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from typing import Any

import pytest


def need(what: str, *, load: bool = True) -> Any:
    """The module of that name, or else the path of the program of that name.

    Without ``load`` a module is not imported here, because it changes the process.
    """
    try:
        if load:
            return importlib.import_module(what)
        if importlib.util.find_spec(what) is not None:
            return None
    except ModuleNotFoundError as error:
        if error.name != what.partition(".")[0]:
            raise  # it is there, but broken
    # A virtual environment that is used without being activated keeps its programs beside its interpreter.
    # Debian has servers in /usr/sbin, which is not in every user's PATH.
    folders = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    path = shutil.which(what, path=os.pathsep.join(folders))
    if path is not None:
        return path
    missing = f"needs {what}: pip install -e '.[test]', or the program of that name"
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing, allow_module_level=True)
