"""Files of the learned router: the prior that is shipped, and what ``fastroute calibrate`` writes.

A file is eight bytes of magic, the lengths of header and payload (little-endian uint32), the SHA-256 of
both, a header in JSON and the payload: arrays of fixed sizes, as `fastroute._core.LearnedModel` takes
them. Nothing in it is executed. A file that differs from that in any byte is rejected.

A calibrated file holds no text, but the words of its prompts can be guessed at from the weights, so it is as
confidential as the prompts are. It is written for its owner only.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from fastroute import _core
from fastroute.config.reader import read_table
from fastroute.config.validators import flag, integer, number, one_of, sequence_of, text
from fastroute.errors import ConfigError
from fastroute.platform.files import replacing, write

MAGIC = b"FRLEARN\x01"
_LENGTHS = struct.Struct("<II")
_BEGIN = len(MAGIC) + _LENGTHS.size + 32
_LARGEST_HEADER = 64 * 1024
_LARGEST_FILE = 1024 * 1024
_PRIOR_SIZE, _OWN_SIZE, _GUARD_SIZE = _core.LEARNED_SIZES

_share = number(least=0, most=1)
_score = number(least=-1e9, most=1e9)


@frozen(kw_only=True)
class ForecastRow:
    """What is forecast if a share of the calls goes to the strong model.

    Attributes:
        share: 0..1, of the calls to strong.
        quality, against_strong, lift: mean outcome, its difference from all calls to strong, and from the
            same share drawn by a coin; each with the ends of its 90 % interval.
        cost: dollars a thousand calls, about, with the ends; empty if the prices or tokens are unknown.
    """

    share: float = field(validator=_share)
    quality: tuple[float, ...] = field(validator=sequence_of(_score, least=3, most=3, unique=False))
    against_strong: tuple[float, ...] = field(validator=sequence_of(_score, least=3, most=3, unique=False))
    lift: tuple[float, ...] = field(validator=sequence_of(_score, least=3, most=3, unique=False))
    cost: tuple[float, ...] = field(default=(), validator=sequence_of(_score, most=3, unique=False))


@frozen(kw_only=True)
class RouterHeader:
    """The header of a file.

    Attributes:
        kind: ``prior`` or ``router``.
        features: the version of the features.
        prior: the SHA-256 of the prior's payload, in hexadecimal.
        prompts, labels: how many prompts and labels it was made from.
        weak, strong: the models.
        share: of the calls that are to go to strong.
        threshold: the score from which on they do.
        quantiles: the scores of the calibration's prompts at 0, 1, …, 100 %.
        own, guard: whether the payload has weights of its own, and a guard.
        most_words, most_structure, most_turns: the guard's limits, see `fastroute._core.LearnedRules`.
        accepted: whether the forecast showed that it is better than a coin.
        reason: why, or why not.
        forced: whether it was written though it was not accepted.
        forecast: a row for each share that was forecast.
        scope: which messages of role user are scored: ``last``, the last one.
        date: ``YYYY-MM-DD``.
        fastroute: the version that wrote it.
        heads: one; more are not written by this version.
    """

    kind: str = field(validator=one_of("kind", ("prior", "router")))
    features: int = field(validator=integer(least=1, most=1_000_000))
    prior: str = field(validator=text())
    prompts: int = field(default=0, validator=integer(least=0, most=1_000_000_000))
    labels: int = field(default=0, validator=integer(least=0, most=1_000_000_000))
    weak: str = field(default="", validator=text(empty=True))
    strong: str = field(default="", validator=text(empty=True))
    share: float = field(default=0.0, validator=_share)
    threshold: float = field(default=0.0, validator=_score)
    quantiles: tuple[float, ...] = field(default=(), validator=sequence_of(_score, most=101, unique=False))
    own: bool = field(default=False, validator=flag)
    guard: bool = field(default=False, validator=flag)
    most_words: float = field(default=1.0, validator=_share)
    most_structure: float = field(default=1e9, validator=number(least=0, most=1e9))
    most_turns: int = field(default=0, validator=integer(least=0, most=1_000_000))
    accepted: bool = field(default=False, validator=flag)
    reason: str = field(default="", validator=text(empty=True))
    forced: bool = field(default=False, validator=flag)
    forecast: tuple[ForecastRow, ...] = ()
    scope: str = field(default="last", validator=one_of("scope", ("last",)))
    date: str = field(default="", validator=text(empty=True))
    fastroute: str = field(default="", validator=text(empty=True))
    heads: int = field(default=1, validator=integer(least=1, most=1))


@frozen(kw_only=True)
class RouterFile:
    """A file that was read, or is to be written.

    Attributes:
        header: what it says of itself.
        own: the user's weights, None if it has none.
        guard: what the calibration's prompts had, None if it has none.
    """

    header: RouterHeader
    own: bytes | None = None
    guard: bytes | None = None

    def model(self) -> _core.LearnedModel:
        """The model of this file over the shipped prior.

        Raises:
            ConfigError: its numbers are not usable.
        """
        try:
            return _core.LearnedModel(prior(), self.own, self.guard)
        except ValueError as error:
            raise ConfigError(f"router file: {error}; make it anew with fastroute calibrate") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, readable by its owner only; an older one is replaced at once.

        Raises:
            OSError: it cannot be written.
        """
        payload = (self.own or b"") + (self.guard or b"")
        _write(Path(path), attrs.asdict(self.header), payload)


def read_router(path: str | os.PathLike[str]) -> RouterFile:
    """Reads a calibrated file.

    Raises:
        ConfigError: it cannot be read, is damaged, or belongs to another prior or other features.
    """
    raw, payload = _read(_content(path), str(path))
    header = _header(raw, str(path))
    if header.kind != "router":
        raise ConfigError(f"{path}: is a prior; use a file that fastroute calibrate wrote")
    if header.features != _core.LEARNED_VERSION or header.prior != prior_digest():
        raise ConfigError(
            f"{path}: was made by fastroute {header.fastroute or 'of another version'}, whose prior or "
            "features differ from this version's; make it anew: fastroute calibrate LABELS -o FILE"
        )
    own_size, guard_size = header.own * _OWN_SIZE, header.guard * _GUARD_SIZE
    if len(payload) != own_size + guard_size:
        raise ConfigError(f"{path}: has a payload of another size than its header says; make it anew")
    file = RouterFile(
        header=header,
        own=payload[:own_size] if header.own else None,
        guard=payload[own_size:] if header.guard else None,
    )
    file.model()
    return file


@lru_cache(maxsize=1)
def prior() -> bytes:
    """The payload of the shipped prior, read once."""
    name = f"prior-{_core.LEARNED_VERSION}.frl"
    raw, payload = _read((files("fastroute") / "data" / name).read_bytes(), name)
    header = _header(raw, name)
    assert (header.kind, header.features, len(payload)) == ("prior", _core.LEARNED_VERSION, _PRIOR_SIZE)
    assert header.prior == hashlib.sha256(payload).hexdigest()
    return payload


def prior_digest() -> str:
    """The SHA-256 of the shipped prior's payload, in hexadecimal."""
    return hashlib.sha256(prior()).hexdigest()


def write_prior(path: Path, payload: bytes, *, prompts: int) -> None:
    """Writes a prior; the same payload gives the same bytes."""
    digest = hashlib.sha256(payload).hexdigest()
    _write(
        path,
        {"kind": "prior", "features": _core.LEARNED_VERSION, "prior": digest, "prompts": prompts},
        payload,
    )


def _write(path: Path, header: Mapping[str, Any], payload: bytes) -> None:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(text + payload).digest()
    content = MAGIC + _LENGTHS.pack(len(text), len(payload)) + digest + text + payload
    with replacing(str(path), f"{path}.new") as fd:
        write(fd, content)


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: cannot be read, because it does not exist; use a file that fastroute calibrate wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path contains a NUL character"
        raise ConfigError(f"{path}: cannot be read ({reason}); use a readable file") from None


def _read(content: bytes, where: str) -> tuple[Any, bytes]:
    """Header and payload, if the file is whole."""
    if len(content) > _LARGEST_FILE:
        raise ConfigError(
            f"{where}: must be at most {_LARGEST_FILE >> 20} MiB; use a file that fastroute calibrate wrote"
        )
    if content[: len(MAGIC)] != MAGIC:
        raise ConfigError(f"{where}: is not a router file; use a file that fastroute calibrate wrote")
    damaged = ConfigError(f"{where}: is damaged; copy it again, or make it anew with fastroute calibrate")
    if len(content) < _BEGIN:
        raise damaged
    header_size, payload_size = _LENGTHS.unpack_from(content, len(MAGIC))
    if header_size > _LARGEST_HEADER or len(content) != _BEGIN + header_size + payload_size:
        raise damaged
    if hashlib.sha256(content[_BEGIN:]).digest() != content[_BEGIN - 32 : _BEGIN]:
        raise damaged
    try:
        raw = json.loads(content[_BEGIN : _BEGIN + header_size], parse_constant=_not_finite)
    except (ValueError, RecursionError):
        raise damaged from None
    return raw, content[_BEGIN + header_size :]


def _not_finite(name: str) -> float:
    raise ValueError(name)


def _header(raw: Any, where: str) -> RouterHeader:
    problems: list[str] = []
    header = read_table(RouterHeader, raw, "", problems)
    if header is None:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return header
