"""Files of the learned router: what is written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import random
import stat
import struct
from pathlib import Path
from typing import Any

import attrs
import pytest
from samples import seed

from fastroute import _core
from fastroute.errors import ConfigError
from fastroute.routing import router_file
from fastroute.routing.router_file import ForecastRow, RouterFile, RouterHeader, read_router

OWN = struct.pack("<33f", 1e-6, *([0.01] * 32)) + b"\x01\x02" * 32768
GUARD = struct.pack("<1056f", *([0.5] * 1056)) + b"\xaa" * 16384


def router(**changes: Any) -> RouterFile:
    row = ForecastRow(
        share=0.3,
        quality=(0.8, 0.7, 0.9),
        against_strong=(-0.01, -0.02, 0.0),
        lift=(0.02, 0.01, 0.03),
        cost=(1.5, 1.2, 1.8),
    )
    header = RouterHeader(
        kind="router",
        features=_core.LEARNED_VERSION,
        prior=router_file.prior_digest(),
        prompts=1000,
        labels=300,
        weak="small",
        strong="large",
        share=0.3,
        threshold=0.125,
        quantiles=tuple(place / 100 for place in range(101)),
        own=True,
        guard=True,
        most_words=0.4,
        most_structure=12.5,
        most_turns=4,
        accepted=True,
        reason="better than a coin",
        forecast=(row,),
        date="2026-11-29",
        fastroute="0.1.0",
    )
    return RouterFile(header=attrs.evolve(header, **changes), own=OWN, guard=GUARD)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "router.frl"
    router().save(found)
    return found


def signed(header: Any, payload: bytes) -> bytes:
    """A file whose checksum is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    lengths = struct.pack("<II", len(text), len(payload))
    return router_file.MAGIC + lengths + hashlib.sha256(text + payload).digest() + text + payload


def test_what_is_written_is_read_again(path: Path) -> None:
    assert read_router(path) == router()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    router(share=0.5).save(path)
    assert read_router(path).header.share == 0.5
    assert [each.name for each in path.parent.iterdir()] == ["router.frl"]


def test_the_prior_is_whole_and_small() -> None:
    assert _core.LearnedModel(router_file.prior()).score(b"hello") < 10
    shipped = Path(router_file.__file__).parents[1] / "data" / "prior-1.frl"
    assert shipped.stat().st_size < 100 * 1024
    with pytest.raises(ConfigError, match="is a prior"):
        read_router(shipped)


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    short = tmp_path / "short.frl"
    for size in [*range(3000), *range(3000, len(content), 997), len(content) - 1]:
        short.write_bytes(content[:size])
        with pytest.raises(ConfigError, match=r"damaged|not a router file"):
            read_router(short)
    short.write_bytes(content + b"\0")
    with pytest.raises(ConfigError, match="damaged"):
        read_router(short)


def test_every_changed_byte_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    changed = tmp_path / "changed.frl"
    draw = random.Random(f"{seed()} router file")
    places = [*range(60), *draw.sample(range(60, len(content)), 500)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        changed.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"damaged|not a router file"):
            read_router(changed)


HEADER = attrs.asdict(router().header)
NAN = json.dumps(HEADER).replace("0.125", "NaN").encode()
HUGE = json.dumps(HEADER).replace("0.125", "1e999").encode()


@pytest.mark.parametrize(
    ("header", "payload", "message"),
    [
        (b"{", OWN + GUARD, "damaged"),
        (b"\xff", OWN + GUARD, "damaged"),
        (b"[" * 60_000, OWN + GUARD, "damaged"),
        (b"[]", OWN + GUARD, "must be a table"),
        (NAN, OWN + GUARD, "damaged"),
        (HUGE, OWN + GUARD, "threshold: must be"),
        ({**HEADER, "share": 1.5}, OWN + GUARD, "share: must be"),
        ({**HEADER, "own": 1}, OWN + GUARD, "own: must be"),
        ({**HEADER, "unheard": 1}, OWN + GUARD, "unheard: unknown key"),
        ({**HEADER, "most_turns": -1}, OWN + GUARD, "most_turns"),
        ({**HEADER, "scope": "user"}, OWN + GUARD, "scope: unknown scope 'user'"),
        ({**HEADER, "heads": 2}, OWN + GUARD, "heads"),
        ({**HEADER, "quantiles": [0.0] * 102}, OWN + GUARD, "quantiles"),
        ({**HEADER, "forecast": [{"share": 0.5}]}, OWN + GUARD, "is missing"),
        ({**HEADER, "features": 2}, OWN + GUARD, "make it anew: fastroute calibrate"),
        ({**HEADER, "prior": "0" * 64}, OWN + GUARD, "make it anew: fastroute calibrate"),
        (HEADER, OWN, "payload of another size"),
        (HEADER, OWN + GUARD + b"\0", "payload of another size"),
        ({**HEADER, "guard": False}, OWN + GUARD, "payload of another size"),
        (HEADER, struct.pack("<f", float("nan")) + OWN[4:] + GUARD, "not all numbers are finite"),
        (HEADER, OWN + struct.pack("<f", float("inf")) + GUARD[4:], "not all numbers are finite"),
    ],
)
def test_hostile_files_with_the_right_checksum_are_refused(
    tmp_path: Path, header: Any, payload: bytes, message: str
) -> None:
    hostile = tmp_path / "hostile.frl"
    hostile.write_bytes(signed(header, payload))
    with pytest.raises(ConfigError, match=message):
        read_router(hostile)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; use a file"):
        read_router(tmp_path / "none.frl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_router(tmp_path)
    large = tmp_path / "large.frl"
    large.write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most 1 MiB"):
        read_router(large)
    lengths = struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)
    large.write_bytes(router_file.MAGIC + lengths + bytes(32))
    with pytest.raises(ConfigError, match="damaged"):
        read_router(large)
