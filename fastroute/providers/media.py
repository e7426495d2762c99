"""Finds what a request contains besides text: images, files, audio and video, in the shapes of all formats.

Reads only where the content is and what its header says. How many tokens it may take is in `media_tokens.py`.
Everything here is the caller's and may be hostile: headers are read within bounds, and what cannot be read is
unknown, never small.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from struct import unpack_from
from typing import Any, Literal

from attrs import field, frozen

Kind = Literal["image", "file", "audio", "video", "unknown"]

USUAL_TOKENS: Mapping[Kind, int] = {
    "image": 1000,
    "file": 4000,
    "audio": 1000,
    "video": 10_000,
    "unknown": 0,
}
"""What a part usually takes, for estimates. Too few are settled later; too many would rule out models."""

_MOST_NESTED = 8  # levels of content within content that are looked into; deeper ones are unknown


@frozen(kw_only=True)
class Media:
    """One part of a request's content that is not text.

    Attributes:
        kind: what it is; ``unknown`` for a part that no format is known to have.
        place: where it is in the request, for messages.
        type: its media type, such as ``application/pdf``; empty if unknown.
        data: its content as Base64; None if it is elsewhere, at an address or uploaded before.
        detail: OpenAI's ``detail`` of an image.
        seconds: how much of a video is read, where the request says so; None: all of it.
        rate: frames per second of a video that are read.
    """

    kind: Kind
    place: str
    type: str = ""
    data: str | None = field(default=None, repr=False)
    detail: str = "auto"
    seconds: float | None = None
    rate: float = 1.0

    @property
    def size(self) -> int | None:
        """Bytes of the content, rounded up; None if it is elsewhere."""
        return None if self.data is None else len(self.data) * 3 // 4


def media_of(messages: Sequence[Any]) -> tuple[Media, ...]:
    """Every part of the messages that is not text, in order."""
    found: list[Media] = []
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            _read_parts(content, f"messages[{place}].content", found, 0)
    return tuple(found)


# ------------------------------------------------------------------------------------------------- the parts

# Parts that are text, whatever else they have; their bytes are counted with the body's.
_TEXT = frozenset(
    {
        *("text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning"),
        *("tool_use", "server_tool_use", "mcp_tool_use", "function_call", "tool_call", "cache_point"),
    }
)
# Parts with content of their own, and the field that has it.
_NESTED = {
    "tool_result": "content",
    "search_result": "content",
    "web_search_tool_result": "content",
    "web_fetch_tool_result": "content",
    "mcp_tool_result": "content",
}
# Gemini's parts have no type; these are text, or data that the model wrote.
_GEMINI_TEXT = frozenset({"text", "functionCall", "executableCode", "codeExecutionResult", "thought"})


def _read_parts(parts: Sequence[Any], path: str, found: list[Media], depth: int) -> None:
    for place, part in enumerate(parts):
        if isinstance(part, Mapping):
            found.extend(_read_part(part, f"{path}[{place}]", depth))


def _read_part(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    kind = part.get("type")
    if kind is None:
        yield from _gemini(part, path, depth)
        return
    if not isinstance(kind, str):
        yield Media(kind="unknown", place=path)
        return
    if kind in _TEXT:
        return
    if kind in _NESTED:
        yield from _nested(part.get(_NESTED[kind]), path, depth)
        return
    read = _READERS.get(kind)
    if read is None:
        yield Media(kind="unknown", place=path)
        return
    yield from read(part, path, depth)


def _nested(content: Any, path: str, depth: int) -> Iterator[Media]:
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, (list, tuple)):
        return  # text, or nothing
    if depth >= _MOST_NESTED:
        yield Media(kind="unknown", place=path)
        return
    inner: list[Media] = []
    _read_parts(content, path, inner, depth + 1)
    yield from inner


def _image_url(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    given = part.get("image_url")
    described = given if isinstance(given, Mapping) else part
    url = described.get("url") if isinstance(given, Mapping) else given
    detail = described.get("detail")
    yield _at(url, "image", path, detail=detail if isinstance(detail, str) else "auto")


def _file(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    file = part.get("file")
    described = file if isinstance(file, Mapping) else part
    yield _at(described.get("file_data"), "file", path)


def _video_url(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    given = part.get(str(part["type"]))
    yield _at(given.get("url") if isinstance(given, Mapping) else given, "video", path)


def _input_audio(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    audio = part.get("input_audio")
    described = audio if isinstance(audio, Mapping) else {}
    data, named = described.get("data"), described.get("format")
    if isinstance(data, str) and data[:5].lower() == "data:":
        yield _at(data, "audio", path)
        return
    yield Media(
        kind="audio",
        place=path,
        type=f"audio/{named}".lower() if isinstance(named, str) else "",
        data=data if isinstance(data, str) else None,
    )


def _audio_url(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    given = part.get("audio_url")
    yield _at(given.get("url") if isinstance(given, Mapping) else given, "audio", path)


def _anthropic(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    """An ``image`` or ``document`` block with its source."""
    kind: Kind = "image" if part["type"] == "image" else "file"
    source = part.get("source")
    if not isinstance(source, Mapping):
        yield Media(kind=kind, place=path)
        return
    form, data, named = source.get("type"), source.get("data"), source.get("media_type")
    if form == "text":
        yield Media(kind=kind, place=path, type="text/plain", data="")  # its text is counted with the body's
    elif form == "content":
        yield Media(kind=kind, place=path, type="text/plain", data="")
        yield from _nested(source.get("content"), f"{path}.source", depth)
    else:
        yield Media(
            kind=kind,
            place=path,
            type=named.lower() if isinstance(named, str) else "",
            data=data if form == "base64" and isinstance(data, str) else None,
        )


_READERS = {
    "image_url": _image_url,
    "input_image": _image_url,
    "file": _file,
    "input_file": _file,
    "input_audio": _input_audio,
    "audio_url": _audio_url,
    "video_url": _video_url,
    "input_video": _video_url,
    "video": _video_url,
    "image": _anthropic,
    "document": _anthropic,
}


def _gemini(part: Mapping[str, Any], path: str, depth: int) -> Iterator[Media]:
    known = False
    for name in ("inlineData", "inline_data", "fileData", "file_data"):
        described = part.get(name)
        if not isinstance(described, Mapping):
            continue
        known = True
        named = described.get("mimeType", described.get("mime_type"))
        data = described.get("data")
        type = named.lower() if isinstance(named, str) else ""
        seconds, rate = _clip(part.get("videoMetadata", part.get("video_metadata")))
        yield Media(
            kind=_kind_of(type, "file"),
            place=path,
            type=type,
            data=data if isinstance(data, str) else None,
            seconds=seconds,
            rate=rate,
        )
    response = part.get("functionResponse")
    if isinstance(response, Mapping):
        known = True
        yield from _nested(response.get("parts"), path, depth)
    if not known and _GEMINI_TEXT.isdisjoint(part):
        yield Media(kind="unknown", place=path)


def _clip(metadata: Any) -> tuple[float | None, float]:
    """Seconds and frames per second that Gemini's ``videoMetadata`` limits a video to."""
    if not isinstance(metadata, Mapping):
        return None, 1.0
    ends = []
    for name in ("startOffset", "endOffset"):
        text = metadata.get(name, "0s" if name == "startOffset" else None)
        matched = re.fullmatch(r"(\d{1,7}(?:\.\d{1,9})?)s", text) if isinstance(text, str) else None
        ends.append(float(matched[1]) if matched else None)
    start, end = ends
    rate = metadata.get("fps", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1000:
        return None, 1.0
    return (max(end - start, 0.0) if start is not None and end is not None else None), max(float(rate), 1.0)


def _at(url: Any, kind: Kind, path: str, *, detail: str = "auto") -> Media:
    """Content at an address; the content itself where that is a data: URL."""
    type, data = "", None
    if isinstance(url, str) and url[:5].lower() == "data:":
        head, comma, _ = url[:200].partition(",")
        type = head[5:].partition(";")[0].strip().lower()
        if comma and head.lower().endswith(";base64"):
            data = url[len(head) + 1 :]
    return Media(kind=_kind_of(type, kind), place=path, type=type, data=data, detail=detail)


def _kind_of(type: str, otherwise: Kind) -> Kind:
    """The kind by the media type, where that says it."""
    family = type.partition("/")[0]
    if family == "image":
        return "image"
    if family == "audio":
        return "audio"
    if family == "video":
        return "video"
    return "file" if type == "application/pdf" else otherwise


# -------------------------------------------------------------------------------------------------- headers

_HEADER = 64  # bytes, enough for all but JPEG
_MOST_JPEG = 1 << 18  # bytes of a JPEG in which its frame header is looked for


def image_size(media: Media) -> tuple[int, int] | None:
    """Width and height in pixels that an image's header states; None if they are unknown.

    Only headers that bind every decoder count. The screen size of a GIF does not: a frame may be larger.
    """
    if media.data is None:
        return None
    head = _decoded(media.data, _HEADER)
    size = None
    if len(head) < 30:
        return None  # cut off, or no image
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
        size = unpack_from(">II", head, 16)
    elif head.startswith(b"\xff\xd8"):
        size = _jpeg_size(_decoded(media.data, _MOST_JPEG))
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        size = _webp_size(head)
    return (size[0], size[1]) if size is not None and size[0] > 0 and size[1] > 0 else None


def _jpeg_size(data: bytes) -> tuple[int, ...] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in (0x01, *range(0xD0, 0xD8)):  # without a length
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = unpack_from(">HH", data, at + 5)
            return width, height
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + max(2, unpack_from(">H", data, at + 2)[0])
    return None


def _webp_size(head: bytes) -> tuple[int, ...] | None:
    form = head[12:16]
    if form == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if form == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if form == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


_LEAST_MP3 = 1000  # bytes a second at 8 kbit/s, the lowest bit rate that MPEG audio has
_HIGHEST_RATE = 768_000  # samples a second


def audio_seconds(media: Media) -> float | None:
    """Seconds that audio cannot exceed: of uncompressed WAV by its header, of MP3 at the lowest bit rate.

    None for all others: silence takes next to nothing in them, so no bit rate is the lowest.
    """
    size = media.size
    head = b"" if media.data is None else _decoded(media.data, 44)
    if size is None or len(head) < 36:
        return None
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        form, channels, rate, _, _, bits = unpack_from("<HHIIHH", head, 20)
        if form != 1 or not channels or not 0 < rate <= _HIGHEST_RATE or bits not in (8, 16, 24, 32):
            return None
        return float(size / (rate * channels * (bits // 8)))
    # A frame of MPEG audio: eleven set bits, a layer (AAC has none), a bit rate that is neither free nor bad.
    is_frame = head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 and head[2] >> 4 not in (0, 15)
    return size / _LEAST_MP3 if is_frame else None


def _name(text: str) -> str:
    """The pattern of a PDF name, each of whose characters may be written as ``#`` and two digits."""
    letters = (f"(?:{letter}|#{ord(letter):02x}|#{ord(letter):02X})" for letter in text)
    return "/" + "".join(letters) + r"(?![^\s/<>\[\]()%])"


_KIDS = rf"{_name('Kids')}\s*(\[[^\]%]*\]|)".encode()
_REFERENCE = rb"(\d{1,10})\s+\d{1,5}\s+R\b"
_PAGE = _name("Page").encode()
# Objects within compressed streams, and the tables that lead to them.
_HIDDEN = "|".join(map(_name, ("ObjStm", "XRef", "XRefStm"))).encode()
_MOST_PDF = 64 << 20  # bytes


def pdf_pages(media: Media) -> int | None:
    """A number of pages that a PDF cannot exceed; None if it cannot be known by looking at its objects.

    Every page is referred to by a node of the page tree. Where no object is referred to twice, and no object
    is hidden in a compressed stream, there are no more pages than references.
    """
    if media.data is None or len(media.data) > 2 * _MOST_PDF:
        return None
    data = _decoded(media.data, len(media.data))
    if b"%PDF-" not in data[:1024] or b"trailer" not in data or re.search(_HIDDEN, data):
        return None
    references: list[bytes] = []
    # One after the other: a list without an end is looked through once, and ends the search.
    for found in re.finditer(_KIDS, data):
        if not found[1]:
            return None  # the list is an object of its own, has a comment, or no end
        references += re.findall(_REFERENCE, found[1])
    if not references or len(set(references)) != len(references):
        return None
    return max(len(references), len(re.findall(_PAGE, data)))


def _decoded(data: str, size: int) -> bytes:
    """The first bytes of Base64 text; none where it is not valid."""
    wanted = size * 4 // 3 + 4
    text = data[:wanted]
    if any(blank in text for blank in "\r\n\t "):
        text = "".join(data[: 2 * wanted].split())[:wanted]
    try:
        return a2b_base64(text[: len(text) // 4 * 4])[:size]
    except (Base64Error, ValueError):
        return b""


__all__ = ["USUAL_TOKENS", "Kind", "Media", "audio_seconds", "image_size", "media_of", "pdf_pages"]
