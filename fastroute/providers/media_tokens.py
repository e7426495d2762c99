"""How many tokens content that is not text takes at most, by the rules that each family of models documents.

The rules are data, a line for each family; `most_tokens` applies them. A bound is never below what the
provider counts. Where the provider documents no limit (the text of a PDF, a video of unknown length), the
result is None, and the model's context window is the bound.

Sources, read in November 2026: OpenAI's guide to images and vision (tiles and patches, ``detail``),
Anthropic's guides to vision and PDF support, Google's guides to tokens, media resolution and documents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from attrs import frozen

from .media import Media, audio_seconds, image_size, pdf_pages

Size = tuple[int, int] | None
"""Width and height in pixels; None if unknown."""


# ---------------------------------------------------------------------------------------------- image rules


@frozen
class Tiles:
    """OpenAI's tiles of 512 × 512.

    The image is fitted into 2048 × 2048 and its short side is brought to 768. Each tile that it covers costs
    ``tile`` tokens, beside the ``base``. With ``detail: low`` it costs the base alone.
    """

    base: int
    tile: int

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        if detail == "low":
            return self.base
        return self.base + self.tile * (_MOST_TILES if size is None else self._tiles(*size))

    @staticmethod
    def _tiles(width: int, height: int) -> int:
        fit = min(1.0, 2048 / max(width, height))
        fit *= 768 / (min(width, height) * fit)
        # Rounded before it is rounded up, or 768.0000001 / 512 would be a tile more.
        tiles = math.ceil(round(width * fit / 512, 6)) * math.ceil(round(height * fit / 512, 6))
        return min(tiles, _MOST_TILES)  # a small image is not enlarged; the guide leaves that open


_MOST_TILES = 8  # of 768 × 2048


@frozen
class Patches:
    """OpenAI's patches of 32 × 32: at most so many for a ``detail``, times the model's multiplier."""

    multiplier: float
    high: int = 1536
    original: int = 0  # 0: the model has no such detail

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        if detail == "low":
            return math.ceil(_LOW_PATCHES * self.multiplier)
        most = self.high if detail == "high" or not self.original else self.original
        patches = most if size is None else min(self._patches(*size, most), most)
        return math.ceil(round(patches * self.multiplier, 6))

    @staticmethod
    def _patches(width: int, height: int, most: int) -> int:
        patches = math.ceil(width / 32) * math.ceil(height / 32)
        if patches <= most:
            return patches
        shrink = math.sqrt(32 * 32 * most / (width * height))
        across, down = width * shrink / 32, height * shrink / 32
        if across < 1 or down < 1:
            return most  # thinner than a patch
        shrink *= min(math.floor(across) / across, math.floor(down) / down)
        return math.ceil(int(width * shrink) / 32) * math.ceil(int(height * shrink) / 32)


_LOW_PATCHES = 256  # of 512 × 512


@frozen
class Area:
    """Anthropic's width × height / 750, at most ``most``.

    Measured answers count patches of 28 × 28, which is more for small and thin images, so the larger counts.
    """

    most: int

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        if size is None:
            return self.most
        width, height = size
        patches = math.ceil(width / 28) * math.ceil(height / 28)
        return min(max(math.ceil(width * height / 750), patches), self.most)


@frozen
class Crops:
    """Gemini's crops before version 3: 258 tokens for an image of up to 384 × 384, else for each crop.

    A crop is as wide as the short side divided by 1.5, between 256 and 768. Images are reduced to 3072.
    """

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        return _CROP * (_MOST_CROPS if size is None or finest else self._crops(*size))

    @staticmethod
    def _crops(width: int, height: int) -> int:
        if width <= 384 and height <= 384:
            return 1
        fit = min(1.0, 3072 / max(width, height))
        width, height = math.ceil(width * fit), math.ceil(height * fit)
        crop = min(max(int(min(width, height) / 1.5), 256), 768)
        return min(math.ceil(width / crop) * math.ceil(height / crop), _MOST_CROPS)


_CROP = 258
_MOST_CROPS = 24  # of 3072 × 384


@frozen
class PerImage:
    """The same for an image of any size: ``most``, or ``finest`` where the request sets a resolution."""

    most: int
    finest: int

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        return self.finest if finest else self.most


@frozen
class AnyRule:
    """For models whose rule is unknown: patches of 14 × 14, the smallest in use.

    It is at least what four tiles of 560 × 560 cost (Llama), to which small images may be enlarged, and at
    most what any known model takes for an image (Qwen).
    """

    least: int = 6404
    most: int = 16_384

    def __call__(self, size: Size, detail: str, finest: bool) -> int:
        if size is None:
            return self.most
        width, height = size
        return min(max(math.ceil(width / 14) * math.ceil(height / 14), self.least), self.most)


ImageRule = Callable[[Size, str, bool], int]
"""Size, OpenAI's ``detail``, and whether the request asks for a resolution → tokens at most."""

OPENAI_IMAGES: tuple[tuple[str, ImageRule], ...] = (
    (r"gpt-(?:[6-9]|\d\d)", Patches(1.2, high=2500, original=30_000)),
    (r"gpt-5\.[4-9].*mini", Patches(1.62, high=2500, original=10_000)),
    (r"gpt-5\.[4-9].*nano", Patches(2.46, high=2500, original=10_000)),
    (r"gpt-5\.[4-9]", Patches(1.2, high=2500, original=10_000)),
    (r"gpt-5.*mini|gpt-4[.-]1-mini", Patches(1.62)),
    (r"gpt-5.*nano|gpt-4[.-]1-nano", Patches(2.46)),
    (r"o4-mini", Patches(1.72)),
    (r"gpt-5[.-][23]", Patches(1.2)),
    (r"gpt-5", Tiles(70, 140)),
    (r"gpt-4o-mini", Tiles(2833, 5667)),
    (r"gpt-4|chatgpt", Tiles(85, 170)),
    (r"computer-use", Tiles(65, 129)),
    (r"o[13]", Tiles(75, 150)),
)
"""OpenAI's models, the first pattern that is found in the name; others are taken for the dearest of these."""
_OPENAI_REST: ImageRule = Patches(2.46, original=30_000)


_OPENAI: tuple[tuple[str, ImageRule], ...] = (*OPENAI_IMAGES, (r"gpt-|o\d", _OPENAI_REST))


# ------------------------------------------------------------------------------------------------- families


@frozen(kw_only=True)
class Family:
    """Models of one maker, by which content is counted the same way.

    Attributes:
        name: for messages.
        pattern: found in the names of its models.
        image: tokens of an image.
        page, finest_page: tokens of a PDF's page, and at the highest resolution that may be asked for; None
            where its text is charged too, so that nothing bounds it.
        most_pages: of a file.
        audio: tokens for a second of audio; None: unknown.
        most_audio: seconds of audio in a request.
        frame: tokens for a frame of video with its sound; None: unknown.
    """

    name: str
    pattern: re.Pattern[str]
    image: ImageRule
    page: int | None = None
    finest_page: int | None = None
    most_pages: int | None = None
    audio: int | None = None
    most_audio: float | None = None
    frame: int | None = None


_HOURS = 3600.0
# A frame a second with 258 tokens, and 32 for a second of sound, rounded up as Google's guide has it.
_GEMINI_FRAME = 300

FAMILIES: tuple[Family, ...] = (
    Family(
        name="Anthropic",
        pattern=re.compile(r"claude-(?:[a-z]+-)?(?:4[.-](?:[7-9]|\d\d)|[5-9]|\d\d)(?!\d)"),
        image=Area(4784),
    ),
    Family(name="Anthropic", pattern=re.compile(r"claude"), image=Area(1600)),
    Family(
        name="Gemini",
        pattern=re.compile(r"gemini-(?:1|2)(?!\d)"),
        image=Crops(),
        page=258,
        most_pages=1000,
        audio=32,
        most_audio=9.5 * _HOURS,
        frame=_GEMINI_FRAME,
    ),
    Family(
        name="Gemini",
        pattern=re.compile(r"gemini"),
        image=PerImage(1120, 2240),
        page=560,
        finest_page=2240,
        most_pages=1000,
        audio=32,
        most_audio=9.5 * _HOURS,
        frame=_GEMINI_FRAME,
    ),
    *(
        Family(
            name="OpenAI",
            pattern=re.compile(rf"(?<![a-z]){pattern}"),
            image=rule,
            audio=10,  # a token for a tenth of a second
        )
        for pattern, rule in _OPENAI
    ),
)
"""The first whose pattern is found in a model's name is the model's."""

OTHERS = Family(name="unknown", pattern=re.compile(""), image=AnyRule())
_OF_FORMAT: Mapping[str, Family] = {
    "anthropic": next(family for family in FAMILIES if family.name == "Anthropic"),
    "gemini": next(family for family in FAMILIES if family.pattern.pattern == "gemini"),
}


def family_of(format: str, *names: str) -> Family:
    """The family of a model, by its names and else by the wire format that its endpoint speaks."""
    for name in names:
        lowered = name.lower()
        for family in FAMILIES:
            if family.pattern.search(lowered):
                return family
    return _OF_FORMAT.get(format, OTHERS)


def most_tokens(media: Media, family: Family, *, finest: bool = False) -> int | None:
    """Tokens that a part takes at most; None if only the model's context window bounds it.

    Args:
        media: the part.
        family: the model's.
        finest: whether the request sets a resolution of its media (Gemini's ``mediaResolution``).
    """
    if media.kind == "image":
        return family.image(image_size(media), media.detail, finest)
    if media.kind == "audio":
        return _seconds_at(family.audio, audio_seconds(media), family.most_audio)
    if media.kind == "video":
        seconds = None if media.seconds is None else media.seconds * media.rate
        return None if finest else _seconds_at(family.frame, seconds, None)
    if media.kind != "file":
        return None
    if media.type.startswith("text/") and media.size is not None:
        return media.size  # no token is shorter than a byte
    per_page, most_pages = family.finest_page if finest else family.page, family.most_pages
    if media.type != "application/pdf" or per_page is None or most_pages is None:
        return None
    pages = pdf_pages(media)
    return per_page * (most_pages if pages is None else min(pages, most_pages))


def _seconds_at(rate: int | None, seconds: float | None, most: float | None) -> int | None:
    if seconds is None or (most is not None and seconds > most):
        seconds = most
    return None if rate is None or seconds is None else math.ceil(rate * seconds)


__all__ = ["FAMILIES", "OTHERS", "Family", "family_of", "most_tokens"]
