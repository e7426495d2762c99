"""Router files for tests, calibrated on given prompts without labels."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastroute import _core
from fastroute.routing.router_file import RouterFile, RouterHeader, prior, prior_digest

_WORDS = (
    *("explain", "why", "the", "sum", "of", "odd", "numbers", "is", "even", "prove", "it", "for", "all"),
    *("primes", "compare", "what", "function", "returns", "write", "short", "poem", "about", "river"),
    *("summarise", "this", "text", "list", "three", "cities", "translate", "sentence", "table", "code"),
)


def _prompt(number: int) -> str:
    chosen = random.Random(number).choices(_WORDS, k=6 + number % 17)
    return f"{' '.join(chosen).capitalize()}{'?' if number % 3 else '.'}"


# Prompts of a kind, in 101 forms, so that each percent of the scores is one of them.
PROMPTS = [_prompt(number) for number in range(101)]


def router_file(prompts: Sequence[str] = PROMPTS, **header: Any) -> RouterFile:
    """A file whose guard knows the words of these prompts; its threshold sends half of them to strong."""
    texts = [_core.learned_bytes([{"role": "user", "content": prompt}]) for prompt in prompts]
    model = _core.LearnedModel(prior())
    scores = sorted(model.score(text) for text in texts)
    known = bytearray(16384)
    for text in texts:
        for number in array("I", _core.learned_parts(text)[0]):
            known[(number >> 15) // 8] |= 1 << (number >> 15) % 8
    guard = struct.pack("<1056f", *([0.0] * 1056)) + bytes(known)
    quantiles = tuple(scores[round(at * (len(scores) - 1) / 100)] for at in range(101))
    usual: dict[str, Any] = {
        "kind": "router",
        "features": _core.LEARNED_VERSION,
        "prior": prior_digest(),
        "weak": "test-model",
        "strong": "big",
        "share": 0.5,
        "threshold": quantiles[50],
        "quantiles": quantiles,
        "guard": True,
        "most_words": 0.25,
        "accepted": True,
    }
    return RouterFile(header=RouterHeader(**{**usual, **header}), guard=guard)


def write_router(path: Path, prompts: Sequence[str] = PROMPTS, **header: Any) -> Path:
    """Writes such a file, in place of an older one at once."""
    router_file(prompts, **header).save(path)
    return path
