"""The count of a JSON document's values, keys and nesting, one byte at a time."""

from __future__ import annotations

from typing import NamedTuple

BLANKS = b" \t\n\r"


class Counted(NamedTuple):
    """What is in a document; of one that is not JSON, the most that a parser could read of it."""

    depth: int
    values: int
    keys: int
    key_length: int


def count(data: bytes) -> Counted:
    deepest = depth = keys = longest = length = 0
    values = most = 1
    before = 0  # the last byte that is not blank
    text: bytes | None = None  # of the string that has begun
    escaped = False
    for byte in data:
        if text is not None:
            if escaped or byte not in b'"\\':
                escaped = False
                text += bytes([byte])
            elif byte == ord("\\"):
                escaped = True
                text += b"\\"
            else:
                length, text = len(text), None
                before = byte
            continue
        if byte in BLANKS:
            continue
        if byte == ord('"'):
            text = b""
        elif byte == ord(","):
            values += 1
            most = max(most, values)
        elif byte == ord(":"):
            keys += 1
            longest = max(longest, length)
        elif byte in b"[{":
            most = max(most, values)
            values += 1
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
            if before in b"[{":
                values -= 1
        before = byte
    return Counted(deepest, max(most, values), keys, longest)
