"""Trains the prior of the learned router: which prompts need the stronger of two models.

    python -m tools.train_prior outcomes.jsonl.gz fastroute/data/prior-1.frl

The input has one object a line: ``dataset``, ``group``, ``prompt`` and ``scores`` (model to 0..1). Needs
numpy and scikit-learn, which the package itself does not. The same input gives the same bytes.
`docs/learned.md` tells what was measured; NOTICE names the sources of the data.

`train` and `calibrate` are what a check of orderings calls: ``train(rows)(prompts)`` are scores.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import Ridge

from fastroute import _core

BUCKETS = 1 << 15
COUNTS = 32
SMALLEST, LARGEST = 0.06, 0.45
"""A pair is two models whose means differ by so much: less is noise, more leaves no choice."""

NAMED_PAIRS = {
    "llmrouter_mix": [
        ("llama-3.1-8b-instruct", "llama-3.1-nemotron-51b-instruct"),
        ("llama-3.1-8b-instruct", "llama-3.3-nemotron-super-49b-v1"),
        ("qwen2.5-7b-instruct", "llama-3.3-nemotron-super-49b-v1"),
        ("mistral-7b-instruct-v0.3", "llama-3.3-nemotron-super-49b-v1"),
        ("gemma-2-9b-it", "llama-3.3-nemotron-super-49b-v1"),
    ]
}
"""Weak and strong, where a larger model is not a better one."""

Rows = Sequence[Mapping[str, Any]]


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file of outcomes."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------- features


def text_of(prompt: str) -> bytes:
    """The bytes of a prompt that are scored."""
    return _core.learned_bytes([{"role": "user", "content": prompt}])


def features(prompts: Sequence[str]) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Words and pairs as rows of length 1, and the counts as they are."""
    places, starts, counts = [], [0], np.empty((len(prompts), COUNTS), np.float32)
    for row, prompt in enumerate(prompts):
        hashes, found = _core.learned_parts(text_of(prompt))
        buckets = np.frombuffer(hashes, np.uint32) >> 17
        places.append(buckets)
        starts.append(starts[-1] + len(buckets))
        counts[row] = np.frombuffer(found, np.float32)
    sizes = np.diff(starts)
    values = np.repeat(1.0 / np.sqrt(np.maximum(sizes, 1)), sizes)
    shape = (len(prompts), BUCKETS)
    return sparse.csr_matrix((values, np.concatenate(places) if places else [], starts), shape), counts


# ----------------------------------------------------------------------------------------------- targets


def targets(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row what the stronger model gains, how often the weaker fail, and the difficulty."""
    gain, fails = np.zeros(len(rows)), np.zeros(len(rows))
    of_dataset: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        of_dataset[row["dataset"]].append(index)
    for dataset, indexes in of_dataset.items():
        models = sorted({model for index in indexes for model in rows[index]["scores"]})
        table = np.array(
            [[rows[index]["scores"].get(model, np.nan) for model in models] for index in indexes]
        )
        means = np.nanmean(table, 0)
        table = np.where(np.isnan(table), means, table)
        place = {model: column for column, model in enumerate(models)}
        named = NAMED_PAIRS.get(dataset)
        if named is not None:
            pairs = [
                (place[weak], place[strong]) for weak, strong in named if weak in place and strong in place
            ]
        else:
            pairs = [
                (weak, strong)
                for weak in range(len(models))
                for strong in range(len(models))
                if SMALLEST <= means[strong] - means[weak] <= LARGEST
            ]
        weaker = sorted({weak for weak, _ in pairs})
        if pairs:
            gain[indexes] = np.mean([table[:, strong] - table[:, weak] for weak, strong in pairs], 0)
            fails[indexes] = 1 - table[:, weaker].mean(1)
    return gain, fails, difficulties(rows)


def difficulties(rows: Rows, steps: int = 40) -> np.ndarray:
    """The difficulty b of each row, with P(right) = 1 / (1 + exp(b - ability)), as G. Rasch's model has it.

    Priors: b is normal around its dataset's mean with variance 2, abilities around 0 with variance 25.
    Alternating Newton steps, each at most 1 long.
    """
    models = sorted({model for row in rows for model in row["scores"]})
    place = {model: column for column, model in enumerate(models)}
    row_of, model_of, score = [], [], []
    for index, row in enumerate(rows):
        for model in sorted(row["scores"]):
            row_of.append(index)
            model_of.append(place[model])
            score.append(row["scores"][model])
    r, m, y = np.array(row_of), np.array(model_of), np.array(score, float)
    names = sorted({row["dataset"] for row in rows})
    dataset = np.array([names.index(row["dataset"]) for row in rows])
    size = np.bincount(dataset, minlength=len(names))
    b, ability = np.zeros(len(rows)), np.zeros(len(models))
    for _ in range(steps):
        mean = (np.bincount(dataset, b, len(names)) / size)[dataset]
        p = 1 / (1 + np.exp(b[r] - ability[m]))
        slope = np.bincount(r, p - y, len(rows)) - (b - mean) / 2
        curve = np.bincount(r, p * (1 - p), len(rows)) + 1 / 2
        b += np.clip(slope / curve, -1, 1)
        p = 1 / (1 + np.exp(b[r] - ability[m]))
        slope = np.bincount(m, y - p, len(models)) - ability / 25
        curve = np.bincount(m, p * (1 - p), len(models)) + 1 / 25
        ability += np.clip(slope / curve, -1, 1)
    return b


# ------------------------------------------------------------------------------------------------- training


def hump(b: np.ndarray) -> np.ndarray:
    """What a typical strong model has over a weak one at a difficulty."""
    q = 1 / math.sqrt(1 + math.pi * 1.3 / 8)
    return 1 / (1 + np.exp(-(1.8 - b) * q)) - 1 / (1 + np.exp(-(0.3 - b) * q))


class Prior:
    """The trained weights in float64, and the same in the file's form."""

    def __init__(self, rows: Rows) -> None:
        words, counts = features([row["prompt"] for row in rows])
        gain, fails, b = targets(rows)
        size: dict[str, int] = defaultdict(int)
        for row in rows:
            size[row["dataset"]] += 1
        weight = np.array([1 / math.sqrt(size[row["dataset"]]) for row in rows])
        weight *= len(rows) / weight.sum()
        self.mean = counts.mean(0, dtype=np.float64)
        self.sd = counts.std(0, dtype=np.float64)
        self.sd[self.sd < 1e-6] = 1.0
        structure = self.structure(counts)

        self.gain, self.gain_base = np.zeros(BUCKETS), 0.0
        self.weight = np.zeros(COUNTS)
        for target, alpha, with_counts in ((fails, 8, False), (gain, 16, False), (gain, 16, True)):
            x = sparse.hstack([words, sparse.csr_matrix(structure)], "csr") if with_counts else words
            coefficients, base = ridge(x, target, weight, alpha)
            of_words, of_counts = coefficients[:BUCKETS], coefficients[BUCKETS:]
            value = words @ of_words + (structure @ of_counts if with_counts else 0.0) + base
            sd = value.std()
            self.gain += of_words / sd
            self.gain_base += (base - value.mean()) / sd
            if with_counts:
                self.weight = of_counts / sd
        self.difficulty, self.difficulty_base = ridge(words, b, weight, 4)
        humps = hump(words @ self.difficulty + self.difficulty_base)
        self.hump_mean, self.hump_sd = humps.mean(), humps.std()
        scores = self.of(words, counts)
        self.score_mean, self.score_sd = scores.mean(), scores.std()

    def structure(self, counts: np.ndarray) -> np.ndarray:
        """The counts standardised, clipped and scaled."""
        return np.clip((counts - self.mean) / self.sd, -3, 3) / math.sqrt(COUNTS)

    def of(self, words: sparse.csr_matrix, counts: np.ndarray) -> np.ndarray:
        """The scores."""
        linear = words @ self.gain + self.structure(counts) @ self.weight + self.gain_base
        humps = hump(words @ self.difficulty + self.difficulty_base)
        return linear + (humps - self.hump_mean) / self.hump_sd

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        return self.of(*features(prompts))

    def payload(self) -> bytes:
        """As `fastroute._core.LearnedModel` takes it."""
        scales = [np.abs(table).max() / 127 for table in (self.gain, self.difficulty)]
        table = np.empty((BUCKETS, 2), np.int8)
        for column, (values, scale) in enumerate(zip((self.gain, self.difficulty), scales, strict=True)):
            table[:, column] = np.rint(values / scale)
        head = [*scales, self.gain_base, self.difficulty_base]
        head += [self.hump_mean, self.hump_sd, self.score_mean, self.score_sd]
        floats = [*head, *self.weight, *self.mean, *self.sd]
        return struct.pack(f"<{len(floats)}f", *floats) + table.tobytes()


def ridge(x: Any, target: np.ndarray, weight: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """Coefficients and intercept."""
    model = Ridge(alpha, solver="sparse_cg", tol=1e-7, max_iter=5000).fit(x, target, sample_weight=weight)
    return model.coef_, float(model.intercept_)


# ----------------------------------------------------------------------------------- for a check of orderings


class Model:
    """The prior or a calibration of it, in the file's form and scored by the core."""

    def __init__(self, prior: bytes, own: bytes | None = None) -> None:
        self.prior = prior
        self.model = _core.LearnedModel(prior, own)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        return np.array([self.model.score(text_of(prompt)) for prompt in prompts])


def train(rows: Rows) -> Callable[[Sequence[str]], np.ndarray]:
    """The prior of these rows."""
    return Model(Prior(rows).payload())


def calibrate(
    state: Model, labels: Sequence[tuple[str, float, float]]
) -> Callable[[Sequence[str]], np.ndarray]:
    """The prior with weights fitted to labels: ``(prompt, weak, strong)`` each."""
    rows = _core.LearnedRows(state.model)
    for prompt, _, _ in labels:
        rows.add(text_of(prompt))
    gains = np.array([strong - weak for _, weak, strong in labels], np.float64)
    own, _ = rows.fit(gains, np.ones(len(labels), np.uint8))
    return Model(state.prior, own)


def main(source: str, to: str) -> None:
    """Trains on the whole file and writes the prior."""
    from fastroute.routing.router_file import write_prior

    rows = read(source)
    write_prior(Path(to), Prior(rows).payload(), prompts=len(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
