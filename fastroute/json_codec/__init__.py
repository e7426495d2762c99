"""The one place that decides what reads and writes JSON: orjson, or `standard.py` where orjson is missing.

The interface is orjson's.
"""

from __future__ import annotations

try:
    from orjson import (
        OPT_INDENT_2,
        OPT_NON_STR_KEYS,
        OPT_PASSTHROUGH_DATACLASS,
        OPT_PASSTHROUGH_DATETIME,
        OPT_SORT_KEYS,
        Fragment,
        JSONDecodeError,
        JSONEncodeError,
        dumps,
        loads,
    )
except ImportError:
    from .standard import (  # type: ignore[assignment]
        OPT_INDENT_2,
        OPT_NON_STR_KEYS,
        OPT_PASSTHROUGH_DATACLASS,
        OPT_PASSTHROUGH_DATETIME,
        OPT_SORT_KEYS,
        Fragment,
        JSONDecodeError,
        JSONEncodeError,
        dumps,
        loads,
    )

__all__ = [
    "OPT_INDENT_2",
    "OPT_NON_STR_KEYS",
    "OPT_PASSTHROUGH_DATACLASS",
    "OPT_PASSTHROUGH_DATETIME",
    "OPT_SORT_KEYS",
    "Fragment",
    "JSONDecodeError",
    "JSONEncodeError",
    "dumps",
    "loads",
]
