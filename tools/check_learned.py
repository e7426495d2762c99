"""Measures what `docs/learned.md` says of calibration, on a file of outcomes.

    python -m tools.check_learned outcomes.jsonl.gz

The file is that of `tools.train_prior`. For each half of the subjects a prior is trained on the other
one, so no prior has seen what it is checked on. Needs numpy and scikit-learn for the training;
calibration itself runs without. Takes some minutes.

Prints: how often the intervals that are announced as 90 % contain what the router does on the rest of its
pool (the rest's own error added); how many calibrations on shuffled labels are accepted; by how much the
share of calls misses its target; how much of one kind of task is unfamiliar after calibrating on another;
and the time of one calibration in a new process without numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from fastroute import _core
from fastroute.learning import Label, calibrate
from fastroute.learning.calibration import threshold_of
from fastroute.learning.familiar import guard_of
from fastroute.learning.forecast import Forecaster, interval, ranks
from fastroute.routing.router_file import prior

from .train_prior import Model, read, text_of, train

POOLS = {
    "A": (("routellm_mmlu", "routellm_gsm8k"), "mixtral-8x7b-instruct", "gpt-4-1106-preview"),
    "B": (
        ("mmlu_pro", "zeroeval_gsm", "zeroeval_math_l5"),
        "llama-3.1-8b-instruct",
        "llama-3.1-70b-instruct",
    ),
    "C": (("zeroeval_gsm", "zeroeval_math_l5"), "claude-3-haiku", "claude-3.5-sonnet"),
    "D": (("zeroeval_gsm", "zeroeval_math_l5"), "gpt-4o-mini", "o1-mini"),
}
SHARES = (0.2, 0.4, 0.6)
Row = Mapping[str, Any]
Outcome = tuple[bytes, float, float]


def half(row: Row) -> bool:
    """The half of a row: a subject as a whole, but single questions where a dataset has one subject."""
    name = row["group"] if "mmlu" in row["dataset"] else re.sub(r"[^a-z0-9]", "", row["prompt"].lower())[:80]
    return hashlib.sha1(name.encode()).digest()[0] < 128


def pool(rows: Sequence[Row], name: str) -> list[Outcome]:
    """Text, weak and strong score of a pool's rows."""
    datasets, weak, strong = POOLS[name]
    return [
        (text_of(row["prompt"]), float(row["scores"][weak]), float(row["scores"][strong]))
        for row in rows
        if row["dataset"] in datasets and weak in row["scores"] and strong in row["scores"]
    ]


def coverage(model: Model, rows: Sequence[Outcome], draws: int, seed: int) -> dict[str, list[bool]]:
    """For each draw of 300 labels and each share: whether the intervals contain what the rest shows."""
    held: dict[str, list[bool]] = {"quality": [], "against_strong": [], "lift": []}
    for draw in range(draws):
        order = list(rows)
        random.Random(seed + draw).shuffle(order)
        labels, rest = order[:300], order[300:]
        fitted = _core.LearnedRows(model.model)
        for text, _, _ in labels:
            fitted.add(text)
        gains = array("d", (strong - weak for _, weak, strong in labels))
        weak, strong = [row[1] for row in labels], [row[2] for row in labels]

        def fit(
            keep: bytearray, fitted: _core.LearnedRows = fitted, gains: array[float] = gains
        ) -> Sequence[float]:
            return memoryview(fitted.fit(gains, keep)[1]).cast("d")

        forecaster = Forecaster(weak, strong, ranks(len(labels), fit))
        own, _ = fitted.fit(gains, b"\x01" * len(labels))
        router = _core.LearnedModel(model.prior, own)
        ordered = sorted(rest, key=lambda row: -router.score(row[0]))
        for share in SHARES:
            cut = round(share * len(ordered))
            routed = [(w, s, place < cut) for place, (_, w, s) in enumerate(ordered)]
            shown = {
                "quality": interval([s if up else w for w, s, up in routed]),
                "against_strong": interval([0.0 if up else w - s for w, s, up in routed]),
                "lift": interval([(s - w) * (up - share) for w, s, up in routed]),
            }
            said = forecaster.row(share)
            for name, (mean, low, _) in shown.items():
                figure = getattr(said, name)
                room = math.hypot(figure[0] - figure[1], (mean - low))
                held[name].append(abs(figure[0] - mean) <= room)
    return held


def accepted_by_chance(rows: Sequence[Outcome], draws: int) -> float:
    """The part of calibrations on 300 shuffled labels that is accepted."""
    accepted = 0
    for draw in range(draws):
        chance = random.Random(draw)
        some = chance.sample(list(rows), 300)
        outcomes = [row[1:] for row in some]
        chance.shuffle(outcomes)
        labels = [
            Label([{"role": "user", "content": text.decode("utf-8", "replace")}], {"weak": w, "strong": s})
            for (text, _, _), (w, s) in zip(some, outcomes, strict=True)
        ]
        accepted += calibrate(labels, weak="weak", strong="strong", share=SHARES[draw % 3]).accepted
    return accepted / draws


def misses(model: Model, rows: Sequence[Outcome], draws: int) -> list[float]:
    """By how much the share of the rest misses that of 1,000 prompts by which the threshold was set."""
    scores = [model.model.score(text) for text, _, _ in rows]
    found = []
    for draw in range(draws):
        random.Random(draw).shuffle(scores)
        share = SHARES[draw % 3]
        threshold = threshold_of([(score, 1) for score in scores[:1000]], share)
        rest = scores[1000:]
        found.append(sum(score >= threshold for score in rest) / len(rest) - share)
    return found


def flagged(rows: Sequence[Row]) -> None:
    """Prints how much of each dataset is unfamiliar to a guard made of 800 prompts of one."""
    texts: dict[str, list[bytes]] = {}
    for row in rows:
        texts.setdefault(row["dataset"], []).append(text_of(row["prompt"]))
    for name, own in texts.items():
        random.Random(1).shuffle(own)
        known, fresh = own[:800], own[800:1800]
        guard = guard_of(known, [1] * len(known))
        assert guard is not None
        model = _core.LearnedModel(prior(), None, guard.guard)
        shares = {}
        for other, all_ in texts.items():
            seen = [model.unknown(text) for text in (fresh if other == name else all_[:1000])]
            over = sum(words > guard.most_words or far > guard.most_structure for words, far in seen)
            shares[other] = round(over / len(seen), 3) if seen else None
        print(f"unfamiliar to 800 prompts of {name}: {shares}", flush=True)


def seconds(rows: Sequence[Outcome]) -> tuple[float, float]:
    """Wall and processor time of a calibration of 1,000 labels in a new process that cannot import numpy."""
    some = random.Random(1).sample(list(rows), 1000)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/labels.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for text, weak, strong in some:
                scores = {"weak": weak, "strong": strong}
                file.write(json.dumps({"prompt": text.decode("utf-8", "replace"), "scores": scores}) + "\n")
        code = (
            "import sys; sys.modules['numpy'] = None\nfrom fastroute.cli import main\n"
            f"main(['calibrate', {path!r}, '--weak', 'weak', '--strong', 'strong', '-o', "
            f"{folder + '/r.frl'!r}])"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
        assert done.returncode in (0, 3)
        took, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(source: str) -> None:
    """Prints the figures."""
    rows = read(source)
    halves = {side: [row for row in rows if half(row) == side] for side in (True, False)}
    held: dict[str, list[bool]] = {}
    missed: dict[str, list[float]] = {}
    for side in (True, False):
        model = train(halves[not side])
        assert isinstance(model, Model)
        for name in POOLS:
            here = pool(halves[side], name)
            if len(here) >= 450:
                for figure, values in coverage(model, here, 20, 1000 * side).items():
                    held.setdefault(f"{figure}, pool {name}", []).extend(values)
                    held.setdefault(figure, []).extend(values)
            if len(here) >= 1600:
                missed.setdefault(name, []).extend(misses(model, here, 50))
            print(f"half {int(side)}, pool {name}: {len(here)} prompts", flush=True)
    for figure, values in held.items():
        print(f"90 % intervals of {figure} hold in {sum(values) / len(values):.3f} of {len(values)}")
    for name, values in missed.items():
        print(f"share misses its target by {statistics.pstdev(values):.4f} (1 sd), pool {name}")
    together = [value for values in missed.values() for value in values]
    print(f"share misses its target by {statistics.pstdev(together):.4f} (1 sd) of {len(together)}")
    for name in POOLS:
        rate = accepted_by_chance(pool(rows, name), 200)
        print(f"shuffled labels accepted: {rate:.3f} of 200, pool {name}", flush=True)
    flagged(rows)
    took, busy = seconds(pool(rows, "A"))
    print(f"1,000 labels in a new process: {took:.2f} s, of them {busy:.2f} s of the processor")


if __name__ == "__main__":
    main(*sys.argv[1:])
