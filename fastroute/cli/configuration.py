"""The configuration as the commands find it.

Owns the difference between "there is none", which some commands can live with, and "there is a broken one",
which is always an error. Reading it is `fastroute.config`'s.
"""

from __future__ import annotations

import os

from attrs import frozen

from fastroute.config import Config, load
from fastroute.errors import ConfigError
from fastroute.providers import names


@frozen
class Found:
    """What was found.

    Attributes:
        config: the configuration; None if there is none anywhere.
        missing: if there is none, what to do to have one.
    """

    config: Config | None
    missing: str = ""


def find(path: str | None) -> Found:
    """The configuration at ``path``, or the one that is used without one.

    Raises:
        ConfigError: the file that is named, or that lies here, cannot be used.
    """
    try:
        return Found(load(path, formats=names()))
    except ConfigError as error:
        if path or os.environ.get("FASTROUTE_CONFIG") or os.path.exists("fastroute.toml"):
            raise
        return Found(None, str(error))


__all__ = ["Found", "find"]
