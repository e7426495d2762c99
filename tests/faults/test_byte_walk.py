"""Every byte of an answer is the last one: cut, reset or silent from there, plain or streamed.

`walks.py` has the expected results. All variants, and every byte with every ending:
``python -m tests.soak.walk``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import certificate
from loopback import nothing_left
from walks import STALL, Variant, run, walking

VARIANTS = [
    Variant(),
    Variant(reused=True, terse=True),
    Variant(framing="chunked", compressed=True),
    Variant(framing="close"),
    Variant(stream=True, framing="chunked"),
    Variant(stream=True, framing="close", format="anthropic"),
    Variant(stream=True, framing="chunked", format="gemini", reused=True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_answer_that_ends_at_any_byte(tmp_path: Path, variant: Variant) -> None:
    with nothing_left():
        with walking(tmp_path, variant.format) as walk:
            run(walk, variant, "cut")
            run(walk, variant, "reset", every=3)
        with walking(tmp_path, variant.format, STALL) as hasty:
            run(hasty, variant, "stall", every=61)


@pytest.mark.parametrize("variant", [Variant(reused=True), Variant(stream=True, framing="close")], ids=str)
def test_an_answer_over_tls_that_ends_at_some_byte(tmp_path: Path, variant: Variant) -> None:
    files = certificate(tmp_path)
    with nothing_left():
        with walking(tmp_path, variant.format, certificate=files) as walk:
            run(walk, variant, "cut", every=4)
            run(walk, variant, "reset", every=7)
        with walking(tmp_path, variant.format, STALL, certificate=files) as hasty:
            run(hasty, variant, "stall", every=61)
