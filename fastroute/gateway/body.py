"""Reads a request's body within limits of size and time, after checking its type and encoding.

What has arrived of all bodies together is limited too. Bytes count once they are here: what a caller merely
announces must not keep others out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from attrs import frozen

from .connection import Connection
from .load import Place
from .responses import GatewayError

_PIECE = 16 * 1024
_JSON = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}")


@frozen
class BodyRoom:
    """How much of a body may be read.

    Attributes:
        most: bytes of this body.
        most_of_all: bytes of all bodies under way in this process.
        seconds: to receive it, if the server does not buffer it.
    """

    most: int
    most_of_all: int
    seconds: float


def read(environ: Mapping[str, Any], room: BodyRoom, place: Place) -> bytes:
    """The body's bytes, which stay counted until the place is left.

    Raises:
        GatewayError: with 400, 408, 411, 413, 415 or 503.
    """
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity"):
        raise GatewayError(415, "the body must not be compressed; leave Content-Encoding out", "bad_encoding")
    if not _JSON.fullmatch(environ.get("CONTENT_TYPE", "").strip()):
        raise GatewayError(415, "the body must be application/json in UTF-8", "bad_content_type")
    given = environ.get("CONTENT_LENGTH") or ""
    if environ.get("wsgi.input_terminated") and not given:
        # A chunked body, whose end the server detects.
        body = _received(environ, room.most + 1, _PIECE, room, place)
        if len(body) > room.most:
            raise _too_large(room)
        return body
    if environ.get("HTTP_TRANSFER_ENCODING") or not given:
        raise GatewayError(411, "Content-Length is missing", "length_needed")
    if not _LENGTH.fullmatch(given):
        raise GatewayError(400, "Content-Length must be a number", "bad_length")
    length = int(given)
    if length > room.most:
        raise _too_large(room)
    place.check(length, room.most_of_all)
    body = _received(environ, length, max(_PIECE, length // 8), room, place)
    if len(body) < length:
        raise GatewayError(400, "the body is shorter than its Content-Length", "bad_length")
    return body


def _too_large(room: BodyRoom) -> GatewayError:
    return GatewayError(413, f"the body must be at most {room.most} bytes", "body_too_large")


def _received(environ: Mapping[str, Any], most: int, piece_size: int, room: BodyRoom, place: Place) -> bytes:
    """Reads at most ``most`` bytes in pieces, and checks the time after each."""
    stream: BinaryIO = environ["wsgi.input"]
    ends = time.monotonic() + room.seconds
    pieces: list[bytes] = []
    left = most
    # A read may wait for a caller that sends a byte now and then, so its end is not left to the reader alone.
    with Connection.of(environ).reading_until(ends) as limit:
        while left:
            try:
                piece = stream.read(min(piece_size, left))
            except Exception as error:  # each server has its own type for bad chunks and closed connections
                if limit.passed:
                    raise _too_slow(room) from None
                raise GatewayError(400, "the body is incomplete or has invalid chunks", "bad_body") from error
            if limit.passed or time.monotonic() > ends:
                raise _too_slow(room)
            if not piece:
                break
            place.add(len(piece), room.most_of_all)
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def _too_slow(room: BodyRoom) -> GatewayError:
    return GatewayError(408, f"the body must arrive within {room.seconds:g} seconds", "body_too_slow")


__all__ = ["BodyRoom", "read"]
