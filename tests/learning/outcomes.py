"""Made-up prompts of two kinds, one of which only the strong model can do, and their labels."""

from __future__ import annotations

import random

from fastroute.learning import Label

WEAK, STRONG = "gpt-4.1-nano", "gpt-4.1"
_EASY = "add the number {a} to {b} and then subtract {c} from the sum of both"
_HARD = "prove that every {d} of order {a} has a {e} subgroup, and discuss why {f} fails for {b}"
_WORDS = ("group", "ring", "field", "lattice", "normal", "cyclic", "simple", "finite", "induction", "duality")


def prompts(count: int, seed: int = 0) -> list[tuple[str, bool]]:
    """Different prompts, each with whether it is hard; half of them are."""
    draw = random.Random(seed)
    found: dict[str, bool] = {}
    while len(found) < count:
        hard = len(found) % 2 == 1
        figures = dict(zip("abc", draw.sample(range(10_000), 3))) | dict(zip("def", draw.sample(_WORDS, 3)))
        found[(_HARD if hard else _EASY).format(**figures)] = hard
    return list(found.items())


def label(text: str, weak: float, strong: float) -> Label:
    tokens = {WEAK: [20, 100], STRONG: [20, 300]}
    return Label([{"role": "user", "content": text}], {WEAK: weak, STRONG: strong}, tokens)


def labels(count: int, *, seed: int = 0, shuffled: bool = False) -> list[Label]:
    """Labels: weak is right on easy prompts, strong on nine of ten; or the same outcomes in random order."""
    draw = random.Random(seed + 1)
    texts = prompts(count, seed)
    scores = [(float(not hard), float(draw.random() < 0.9)) for _, hard in texts]
    if shuffled:
        draw.shuffle(scores)
    return [label(text, *pair) for (text, _), pair in zip(texts, scores)]
