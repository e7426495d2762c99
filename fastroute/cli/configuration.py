"""Finds the configuration for a command.

Without a configuration some commands still work; an invalid one is always an error.
"""

from __future__ import annotations

import os

from attrs import frozen

from fastroute.config import Config, load
from fastroute.errors import ConfigError
from fastroute.providers import names


@frozen
class Found:
    """The result of the search.

    Attributes:
        config: the configuration, or None.
        missing: if there is none, how to provide one.
    """

    config: Config | None
    missing: str = ""


def find(path: str | None) -> Found:
    """The configuration at ``path``, or the default one.

    Raises:
        ConfigError: if the configuration exists but is invalid.
    """
    try:
        return Found(load(path, formats=names()))
    except ConfigError as error:
        if path or os.environ.get("FASTROUTE_CONFIG") or os.path.exists("fastroute.toml"):
            raise
        return Found(None, str(error))


__all__ = ["Found", "find"]
