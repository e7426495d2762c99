"""Reads a request's body within limits of size and time, after checking its type and encoding."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from .responses import GatewayError

SECONDS = 30.0  # to receive a body, if the server does not buffer it

_PIECE = 16 * 1024
_JSON = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}")


def read(environ: Mapping[str, Any], most: int) -> bytes:
    """The body's bytes.

    Raises:
        GatewayError: with 400, 408, 411, 413 or 415.
    """
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity"):
        raise GatewayError(415, "the body must not be compressed; leave Content-Encoding out", "bad_encoding")
    if not _JSON.fullmatch(environ.get("CONTENT_TYPE", "").strip()):
        raise GatewayError(415, "the body must be application/json in UTF-8", "bad_content_type")
    stream: BinaryIO = environ["wsgi.input"]
    given = environ.get("CONTENT_LENGTH") or ""
    if environ.get("wsgi.input_terminated") and not given:
        # A chunked body, whose end the server detects.
        body = _pieces(stream, most + 1, _PIECE)
        if len(body) > most:
            raise GatewayError(413, f"the body must be at most {most} bytes", "body_too_large")
        return body
    if environ.get("HTTP_TRANSFER_ENCODING") or not given:
        raise GatewayError(411, "Content-Length is missing", "length_needed")
    if not _LENGTH.fullmatch(given):
        raise GatewayError(400, "Content-Length must be a number", "bad_length")
    length = int(given)
    if length > most:
        raise GatewayError(413, f"the body must be at most {most} bytes", "body_too_large")
    body = _pieces(stream, length, max(_PIECE, length // 8))
    if len(body) < length:
        raise GatewayError(400, "the body is shorter than its Content-Length", "bad_length")
    return body


def _pieces(stream: BinaryIO, most: int, piece_size: int) -> bytes:
    """Reads at most ``most`` bytes in pieces, and checks the time after each."""
    ends = time.monotonic() + SECONDS
    pieces: list[bytes] = []
    left = most
    while left:
        try:
            piece = stream.read(min(piece_size, left))
        except Exception as error:  # each server has its own type for bad chunks and closed connections
            raise GatewayError(400, "the body is incomplete or has invalid chunks", "bad_body") from error
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
        if time.monotonic() > ends:
            raise GatewayError(408, f"the body must arrive within {SECONDS:g} seconds", "body_too_slow")
    return b"".join(pieces)


__all__ = ["SECONDS", "read"]
