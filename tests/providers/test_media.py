"""What is found in a request besides text, and how many tokens it may take: tables of documented examples."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute.providers.media import Media, audio_seconds, image_size, media_of, pdf_pages
from fastroute.providers.media_tokens import family_of, most_tokens


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(60)


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(20)
    return b"\xff\xd8" + before + frame


def segment(size: int) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", size + 2) + bytes(size)


def webp(form: bytes, body: bytes) -> bytes:
    return b"RIFF\x00\x00\x00\x00WEBP" + form + struct.pack("<I", len(body)) + body + bytes(40)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(60)


def wav(seconds: float, *, rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1) -> bytes:
    data = bytes(int(seconds * rate * channels * bits // 8))
    head = struct.pack(
        "<HHIIHH", form, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits
    )
    return b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + head + b"data\x00\x00\x00\x00" + data


def pdf(kids: bytes, pages: int = 0, tail: bytes = b"trailer <<>>") -> bytes:
    page = b"".join(b"%d 0 obj <</Type /Page>> endobj\n" % number for number in range(10, 10 + pages))
    return b"%PDF-1.4\n2 0 obj <</Type /Pages " + kids + b">> endobj\n" + page + tail


def image(data: bytes, **changes: Any) -> Media:
    return Media(kind="image", place="x", type="image/png", data=b64(data), **changes)


# ---------------------------------------------------------------------------------------------- what is found

PDF_URL = "data:application/pdf;base64," + b64(pdf(b"/Kids [3 0 R]"))
PNG_URL = "data:image/png;base64," + b64(png(8, 8))

PARTS: list[tuple[Any, list[tuple[str, str, bool]]]] = [
    # the part, and for each Media its kind, type and whether its data is there
    ("text", []),
    (7, []),
    ({"type": "text", "text": "hi"}, []),
    ({"type": "refusal", "refusal": "no"}, []),
    ({"type": "thinking", "thinking": "hm"}, []),
    ({"type": "image_url", "image_url": {"url": PNG_URL}}, [("image", "image/png", True)]),
    ({"type": "image_url", "image_url": PNG_URL}, [("image", "image/png", True)]),
    ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, [("image", "", False)]),
    ({"type": "image_url"}, [("image", "", False)]),
    ({"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}, [("image", "", False)]),
    ({"type": "input_image", "file_id": "f-1"}, [("image", "", False)]),
    ({"type": "file", "file": {"file_data": PDF_URL}}, [("file", "application/pdf", True)]),
    ({"type": "file", "file": {"file_id": "f-1"}}, [("file", "", False)]),
    ({"type": "file", "file": {"file_data": PNG_URL}}, [("image", "image/png", True)]),
    ({"type": "input_file", "file_url": "https://x/y.pdf"}, [("file", "", False)]),
    (
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        [("audio", "audio/wav", True)],
    ),
    ({"type": "input_audio", "input_audio": None}, [("audio", "", False)]),
    ({"type": "audio_url", "audio_url": {"url": "https://x/y.mp3"}}, [("audio", "", False)]),
    ({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, [("video", "", False)]),
    ({"type": "video", "video": ["https://x/1.jpg"]}, [("video", "", False)]),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        [("image", "image/png", True)],
    ),
    ({"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}, [("image", "", False)]),
    ({"type": "image"}, [("image", "", False)]),
    (
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
        [("file", "application/pdf", True)],
    ),
    ({"type": "document", "source": {"type": "file", "file_id": "f-1"}}, [("file", "", False)]),
    ({"type": "document", "source": {"type": "text", "data": "all of it"}}, [("file", "text/plain", True)]),
    (
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url"}}]},
        },
        [("file", "text/plain", True), ("image", "", False)],
    ),
    (
        {"type": "tool_result", "content": [{"type": "text", "text": "x"}, {"type": "image"}]},
        [("image", "", False)],
    ),
    ({"type": "tool_result", "content": "text"}, []),
    ({"type": "search_result", "content": [{"type": "text", "text": "x"}]}, []),
    ({"text": "Gemini's"}, []),
    ({"functionCall": {"name": "f"}}, []),
    ({"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}, [("file", "application/pdf", True)]),
    ({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, [("image", "image/png", True)]),
    ({"inline_data": {"mime_type": "audio/mp3", "data": "AAAA"}}, [("audio", "audio/mp3", True)]),
    ({"fileData": {"mimeType": "video/mp4", "fileUri": "https://x/y"}}, [("video", "video/mp4", False)]),
    ({"fileData": {"fileUri": "https://x/y"}}, [("file", "", False)]),
    (
        {"functionResponse": {"name": "f", "parts": [{"inlineData": {"mimeType": "image/png"}}]}},
        [("image", "image/png", False)],
    ),
    ({"text": "x", "inlineData": {"mimeType": "image/png", "data": "AA"}}, [("image", "image/png", True)]),
    ({"type": "hologram", "hologram": {}}, [("unknown", "", False)]),
    ({"type": 7}, [("unknown", "", False)]),
    ({"surprise": True}, [("unknown", "", False)]),
]


@pytest.mark.parametrize(("part", "found"), PARTS, ids=lambda value: str(value)[:60])
def test_every_part_of_every_format_is_found(part: Any, found: list[tuple[str, str, bool]]) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [part]}]
    media = media_of(messages)
    assert [(each.kind, each.type, each.data is not None) for each in media] == found
    assert all(each.place.startswith("messages[1].content[0]") for each in media)


def test_content_nested_without_end_is_unknown() -> None:
    part: dict[str, Any] = {"type": "text", "text": "x"}
    for _ in range(100):
        part = {"type": "tool_result", "content": [part]}
    (found,) = media_of([{"role": "user", "content": [part]}])
    assert found.kind == "unknown"


def test_no_content_is_shown() -> None:
    (found,) = media_of([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG_URL}}]}])
    assert "iVBOR" not in repr(found)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(PNG_URL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "image_url", "url", "file", "file_data", "source", "data", "content", "inlineData"]
            ),
            inner | st.sampled_from(["image_url", "file", "document", "tool_result", "input_audio"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(anything, max_size=4))
def test_nothing_breaks_it(parts: list[Any]) -> None:
    for media in media_of([{"role": "user", "content": parts}]):
        for name in ("gpt-4o", "claude-opus-4-5", "gemini-2.5-flash", "gemini-3-pro", "other"):
            bound = most_tokens(media, family_of("openai", name))
            assert bound is None or bound >= 0


# ------------------------------------------------------------------------------------------- what headers say

SIZES: list[tuple[str, bytes, tuple[int, int] | None]] = [
    ("png", png(1920, 1080), (1920, 1080)),
    ("png without width", png(0, 1080), None),
    ("png, vast", png(2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1)),
    ("png, cut off", png(8, 8)[:18], None),
    ("jpeg", jpeg(640, 480), (640, 480)),
    ("jpeg after its metadata", jpeg(640, 480, segment(60_000) + segment(60_000)), (640, 480)),
    ("jpeg whose metadata never ends", jpeg(640, 480, segment(65_000) * 5), None),
    ("jpeg, segments of no length", b"\xff\xd8" + b"\xff\xe1\x00\x00" * 50_000, None),
    ("jpeg without a frame", b"\xff\xd8\xff\xda" + bytes(100), None),
    ("jpeg whose height comes later", jpeg(640, 0), None),
    ("gif: a frame may be larger than its screen", gif(1, 1), None),
    ("webp", webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 320, 200)), (320, 200)),
    ("webp, lossless", webp(b"VP8L", b"\x2f" + (319 | 199 << 14).to_bytes(4, "little")), (320, 200)),
    (
        "webp, extended",
        webp(b"VP8X", bytes(4) + (319).to_bytes(3, "little") + (199).to_bytes(3, "little")),
        (320, 200),
    ),
    ("webp of another kind", webp(b"XXXX", bytes(20)), None),
    ("nothing", b"", None),
    ("text", b"hello" * 20, None),
]


@pytest.mark.parametrize(("data", "size"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_the_size_of_an_image_by_its_header(data: bytes, size: tuple[int, int] | None) -> None:
    assert image_size(image(data)) == size


def test_base64_with_line_breaks_is_read() -> None:
    text = b64(png(1920, 1080))
    broken = "\n".join(text[at : at + 4] for at in range(0, len(text), 4))
    assert image_size(Media(kind="image", place="x", data=broken)) == (1920, 1080)


@pytest.mark.parametrize("data", ["%%%%", "ü" * 40, "iVBO", "=" * 80])
def test_what_is_no_base64_has_no_size(data: str) -> None:
    assert image_size(Media(kind="image", place="x", data=data)) is None


@given(st.binary(max_size=80))
def test_no_header_breaks_it(data: bytes) -> None:
    for start in (b"", png(8, 8)[:16], jpeg(8, 8)[:4], webp(b"VP8X", b"")[:20], wav(0.01)[:20]):
        image_size(image(start + data))
        audio_seconds(image(start + data))
        pdf_pages(image(b"%PDF-" + start + data))


HIDDEN = b"5 0 obj <</Type /ObjStm /N 1 /First 5>> stream\n" + zlib.compress(b"x") + b"\nendstream"
PAGES: list[tuple[str, bytes, int | None]] = [
    ("three pages", pdf(b"/Kids [10 0 R 11 0 R 12 0 R] /Count 3", 3), 3),
    ("a count that lies", pdf(b"/Kids [10 0 R 11 0 R] /Count 1", 2), 2),
    ("more pages than the tree has", pdf(b"/Kids [10 0 R]", 4), 4),
    ("one page many times", pdf(b"/Kids [10 0 R 10 0 R 10 0 R]", 1), None),
    ("the list elsewhere", pdf(b"/Kids 9 0 R", 1), None),
    ("a comment in the list", pdf(b"/Kids [10 0 R %]\n 11 0 R]", 2), None),
    ("objects in a stream", pdf(b"/Kids [10 0 R]", 1, HIDDEN + b" trailer <<>>"), None),
    ("the same, its name in disguise", pdf(b"/Kids [10 0 R]", 1, b"/Type /O#62jStm trailer <<>>"), None),
    ("a list in disguise", pdf(b"/Kids [10 0 R] /#4bids [11 0 R]", 2), 2),
    ("without a trailer", pdf(b"/Kids [10 0 R]", 1, b"startxref 7"), None),
    ("no pdf", b"hello" * 100, None),
    ("lists without an end", pdf(b"/Kids [" * 1_000_000), None),
    ("blanks without an end", pdf(b"/Kids [1" + b" " * 5_000_000 + b"1" + b" " * 5_000_000 + b"]"), None),
    ("many lists", pdf(b"/Kids [1 0 R]" * 500_000), None),
]


@pytest.mark.parametrize(("data", "pages"), [row[1:] for row in PAGES], ids=[row[0] for row in PAGES])
def test_the_most_pages_of_a_pdf(data: bytes, pages: int | None) -> None:
    assert pdf_pages(Media(kind="file", place="x", type="application/pdf", data=b64(data))) == pages


SOUNDS: list[tuple[str, bytes, float | None]] = [
    ("wav, 16 kHz", wav(10), 10),
    ("wav, 44.1 kHz stereo", wav(2, rate=44_100, channels=2), 2),
    ("wav, one sample a second", wav(100, rate=1, bits=8), 100),
    ("wav, compressed inside", wav(10, form=2), None),
    ("wav, an impossible rate", wav(0.0001, rate=4_000_000), None),
    ("mp3: 8 kbit/s at worst", b"\xff\xfb\x90\x00" + bytes(9_996), 10),
    ("mp3 of a free bit rate", b"\xff\xfb\x00\x00" + bytes(9_996), None),
    ("aac", b"\xff\xf1\x50\x80" + bytes(9_996), None),
    ("ogg", b"OggS" + bytes(9_996), None),
    ("a tag before it", b"ID3\x04" + bytes(9_996), None),
]


@pytest.mark.parametrize(("data", "seconds"), [row[1:] for row in SOUNDS], ids=[row[0] for row in SOUNDS])
def test_the_most_seconds_of_a_sound(data: bytes, seconds: float | None) -> None:
    found = audio_seconds(Media(kind="audio", place="x", data=b64(data)))
    assert (
        found == seconds
        if seconds is None
        else found == pytest.approx(seconds, rel=0.01, abs=0.5 if seconds < 60 else 45)
    )


# ---------------------------------------------------------------------------------------- documented examples

IMAGES: list[tuple[str, str, tuple[int, int] | None, str, int, int]] = [
    # model, source of the figure, size, detail, tokens that are counted, and the most that the bound may be
    ("gpt-4o", "guide", (1024, 1024), "high", 765, 765),
    ("gpt-4o", "guide", (2048, 4096), "high", 1105, 1105),
    ("gpt-4o", "guide", (4096, 8192), "low", 85, 85),
    ("gpt-4.1", "guide", (1024, 1024), "auto", 765, 765),
    ("gpt-4o", "unknown size", None, "auto", 1445, 1445),
    ("gpt-4o-mini", "guide", (1024, 1024), "high", 25501, 25501),
    ("gpt-4o-mini", "guide", (512, 512), "low", 2833, 2833),
    ("gpt-5", "guide", (1024, 1024), "high", 630, 630),
    ("gpt-5", "guide", None, "low", 70, 70),
    ("o3", "guide", (1024, 1024), "high", 675, 675),
    ("o4-mini", "guide", (1024, 1024), "high", 1762, 1762),
    ("gpt-4.1-mini", "guide", (1024, 1024), "auto", 1659, 1659),
    ("gpt-4.1-mini", "guide", (1800, 2400), "auto", 2353, 2353),
    ("gpt-4.1-nano", "guide", (1024, 1024), "auto", 2520, 2520),
    ("gpt-5-mini", "unknown size", None, "high", 2489, 2489),
    ("gpt-5-nano", "guide", (1800, 2400), "high", 3572, 3572),
    ("gpt-5.4", "measured", (1920, 1080), "high", 2448, 2448),
    ("gpt-5.4", "measured", (4032, 3024), "high", 2942, 3000),
    ("gpt-5.4", "measured", (4032, 3024), "auto", 11868, 12000),
    ("gpt-6.1-sol", "measured", (4032, 3024), "auto", 14364, 14364),
    ("gpt-6.1-sol", "measured", (4032, 3024), "high", 2942, 3000),
    ("gpt-6.1-sol", "unknown size", None, "auto", 36000, 36000),
    ("gpt-6.1-sol", "measured", (512, 512), "low", 308, 308),
    ("claude-sonnet-4.5", "guide", (200, 200), "auto", 54, 64),
    ("claude-sonnet-4.5", "guide", (1000, 1000), "auto", 1334, 1334),
    ("claude-sonnet-4.5", "guide", (1092, 1092), "auto", 1590, 1590),
    ("claude-sonnet-4.5", "guide", (8000, 8000), "auto", 1568, 1600),
    ("claude-haiku-4.5", "unknown size", None, "auto", 1600, 1600),
    ("claude-opus-4-7", "guide", None, "auto", 4784, 4784),
    ("claude-opus-5.5", "measured", (1920, 1080), "auto", 2691, 2765),
    ("claude-opus-5.5", "thin", (28, 2800), "auto", 100, 105),
    ("gemini-2.5-flash", "guide", (384, 384), "auto", 258, 258),
    ("gemini-2.5-flash", "guide", (960, 540), "auto", 1548, 1548),
    ("gemini-2.5-flash", "unknown size", None, "auto", 6192, 6192),
    ("gemini-2.5-flash", "widest", (3072, 385), "auto", 6192, 6192),
    ("gemini-3.1-pro-preview", "guide", (4032, 3024), "auto", 1120, 1120),
    ("llama-4-maverick", "guide of Together", (561, 561), "auto", 6404, 6404),
    ("qwen3-vl", "unknown size", None, "auto", 16384, 16384),
]  # fmt: skip


@pytest.mark.parametrize(("model", "source", "size", "detail", "counted", "most"), IMAGES)
def test_images_by_each_familys_rule(
    model: str, source: str, size: tuple[int, int] | None, detail: str, counted: int, most: int
) -> None:
    data = None if size is None else b64(png(*size))
    part = Media(kind="image", place="x", data=data, detail=detail)
    found = most_tokens(part, family_of("openai", model))
    assert found is not None
    assert counted <= found <= most


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([row[0] for row in IMAGES]))
def test_an_image_of_unknown_size_is_never_cheaper(width: int, height: int, model: str) -> None:
    family = family_of("openai", model)
    known = most_tokens(image(png(width, height)), family)
    unknown = most_tokens(Media(kind="image", place="x"), family)
    assert known is not None
    assert unknown is not None
    assert 0 < known <= unknown


THREE_PAGES = Media(
    kind="file", place="x", type="application/pdf", data=b64(pdf(b"/Kids [10 0 R 11 0 R 12 0 R]", 3))
)
OTHERS: list[tuple[str, Media, str, bool, int | None]] = [
    ("a page is 258 tokens", THREE_PAGES, "gemini-2.5-pro", False, 774),
    ("a page is 560 tokens", THREE_PAGES, "gemini-3.1-pro-preview", False, 1680),
    ("at a resolution asked for", THREE_PAGES, "gemini-3.1-pro-preview", True, 6720),
    ("its text is charged too", THREE_PAGES, "claude-sonnet-4.5", False, None),
    ("its text is charged too", THREE_PAGES, "gpt-5", False, None),
    ("unknown family", THREE_PAGES, "m", False, None),
    ("pages unknown: a thousand at most", Media(kind="file", place="x", type="application/pdf"),
     "gemini-2.5-pro", False, 258_000),
    ("a file of unknown type", Media(kind="file", place="x"), "gemini-2.5-pro", False, None),
    ("text in a file: a token a byte at most", Media(kind="file", place="x", type="text/plain", data="QUJD"),
     "m", False, 3),
    ("32 tokens a second", Media(kind="audio", place="x", data=b64(wav(10))), "gemini-2.5-pro", False, 321),
    ("nine and a half hours at most", Media(kind="audio", place="x"), "gemini-2.5-pro", False, 1_094_400),
    ("a token for a tenth of a second", Media(kind="audio", place="x", data=b64(wav(10))),
     "gpt-4o-audio-preview", False, 101),
    ("of unknown length", Media(kind="audio", place="x"), "gpt-4o-audio-preview", False, None),
    ("unknown family", Media(kind="audio", place="x", data=b64(wav(10))), "m", False, None),
    ("a film of unknown length", Media(kind="video", place="x"), "gemini-2.5-pro", False, None),
    ("263 tokens a second, and a little", Media(kind="video", place="x", seconds=10), "gemini-2.5-pro",
     False, 3000),
    ("five frames a second", Media(kind="video", place="x", seconds=10, rate=5), "gemini-2.5-pro",
     False, 15_000),
    ("an unknown block", Media(kind="unknown", place="x"), "gemini-2.5-pro", False, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("media", "model", "finest", "most"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS]
)
def test_files_sound_and_video(media: Media, model: str, finest: bool, most: int | None) -> None:
    assert most_tokens(media, family_of("openai", model), finest=finest) == most


@pytest.mark.parametrize(
    ("metadata", "seconds", "rate"),
    [
        ({"startOffset": "40s", "endOffset": "80s"}, 40, 1),
        ({"endOffset": "80.5s", "fps": 5}, 80.5, 5),
        ({"startOffset": "40s"}, None, 1),
        ({"endOffset": "80s", "fps": 0.1}, 80, 1),
        ({"endOffset": "80s", "fps": float("inf")}, None, 1),
        ({"endOffset": "-80s"}, None, 1),
        ({"endOffset": 80}, None, 1),
        (None, None, 1),
    ],
)
def test_the_clip_of_a_video(metadata: Any, seconds: float | None, rate: float) -> None:
    part = {"fileData": {"mimeType": "video/mp4", "fileUri": "x"}, "videoMetadata": metadata}
    (found,) = media_of([{"role": "user", "content": [part]}])
    assert (found.seconds, found.rate) == (seconds, rate)


@pytest.mark.parametrize(
    ("format", "names", "family"),
    [
        ("openai", ("anthropic/claude-sonnet-4.5",), "Anthropic"),
        ("openai", ("google/gemini-2.5-flash",), "Gemini"),
        ("azure", ("our-deployment", "gpt-4.1"), "OpenAI"),
        ("anthropic", ("fast",), "Anthropic"),
        ("gemini", ("tunedModels/ours",), "Gemini"),
        ("openai", ("m",), "unknown"),
        ("openai", ("protocol3",), "unknown"),
    ],
)
def test_the_family_of_a_model(format: str, names: tuple[str, ...], family: str) -> None:
    assert family_of(format, *names).name == family
