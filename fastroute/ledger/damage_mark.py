"""The mark beside a ledger that entries may be missing, because a file of it was damaged.

While it exists, sums since an earlier time are unknown. It has that time and the name of the damaged file.
"""

from __future__ import annotations

import math
import os

from fastroute import json_codec
from fastroute.platform import files

_LATEST = 1e11  # seconds since the epoch, the year 5138


def leave_mark(path: str, when: float, where: str) -> None:
    """Writes a mark that entries before a time may be missing; one that says as much or more stays.

    Args:
        when: seconds since the epoch.
        where: the damaged file.

    Raises:
        OSError: it cannot be written. Then the damaged file must not be set aside.
    """
    known = read_mark(path)
    if known is not None and known >= when:
        return
    with files.replacing(path, f"{path}.{os.getpid()}") as fd:
        files.write(fd, json_codec.dumps({"until": when, "file": where}))


def read_mark(path: str) -> float | None:
    """The time before which entries may be missing: infinity for a damaged mark, None without one."""
    try:
        # Not `open`, which would wait for the other end of a pipe. A link may point to nothing or anywhere.
        with files.closing(files.open_file(path, os.O_RDONLY, private=False)) as fd:
            text = os.read(fd, 4096)
    except FileNotFoundError:
        return None
    except OSError:
        return math.inf
    try:
        until = json_codec.loads(text)["until"]
    except (ValueError, TypeError, KeyError, IndexError):
        return math.inf
    return float(until) if type(until) in (int, float) and 0 < until < _LATEST else math.inf
