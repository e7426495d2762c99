"""The learned score: its time against a reference in C, and a plan by it against a plan by a rule set.

    python -m benchmarks.learned PROMPTS.jsonl [--reference FOLDER]

PROMPTS has an object with ``messages`` a line. FOLDER has the reference ``score.c``, which is compiled here
and scores the same texts with the same weights. Without it, or a C compiler, there is no such comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastroute import _core
from fastroute.config import catalog_of, load
from fastroute.events import Hooks
from fastroute.routing.learned import classifier_of
from fastroute.routing.planner import Planner
from fastroute.routing.router_file import prior
from fastroute.state.endpoints import State
from fastroute.types import Request

_ROUNDS = 9
_MOST_PLANS = 2000


def read_messages(path: Path) -> list[list[dict[str, Any]]]:
    """The messages of each line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def seconds_each(work: Callable[[Any], object], items: list[Any], rounds: int = _ROUNDS) -> float:
    """Seconds for an item, in the quickest of the rounds."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        for item in items:
            work(item)
        best = min(best, time.perf_counter() - begun)
    return best / len(items)


def overhead(items: list[Any]) -> float:
    """Seconds for a turn of the loop and the call of a function in C that does nothing."""
    return seconds_each(id, items)


def reference(folder: Path, texts: Iterable[bytes], into: Path) -> float | None:
    """Seconds for a text of 450 to 550 bytes in the reference; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = into / "score"
    subprocess.run(
        [compiler, "-O2", "-o", program, folder / "score.c", "-lm"], check=True, capture_output=True
    )
    payload = prior()
    head = struct.unpack_from("<8f", payload)
    numbers, table = payload[32 : 32 + 384], payload[-65536:]
    (into / "weights").write_bytes(table[::2] + table[1::2] + numbers + struct.pack("<6f", *head[:6]))
    (into / "texts").write_bytes(b"".join(text + b"\0" for text in texts))
    printed = subprocess.run(
        [program, into / "weights", into / "texts"], check=True, capture_output=True, text=True
    ).stdout
    return float(printed.rpartition(": ")[2].split()[0]) / 1e6


def planner_of(classifier: str) -> Planner:
    """A planner over two tiers."""
    classes = {"weak": "budget", "strong": "premium"} if classifier == "learned" else {}
    config = load(
        {
            "fastroute": {"ledger": ""},
            "providers": {"one": {"base_url": "http://127.0.0.1:1/v1", "models": ["small", "large"]}},
            "models": {name: {"input_price": 1, "output_price": 2} for name in ("small", "large")},
            "tiers": {"budget": ["small"], "premium": ["large"]},
            "policy": {"classifier": classifier, "classes": classes},
            "learned": {"share": 0.4},
        },
        environ={},
    )
    catalog = catalog_of(config)
    state = State(config, catalog)
    return Planner(config, catalog, state, classifier_of(config, state.segment, Hooks()))


def plan_seconds(messages: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds for a plan of each classifier, in turns, so that both have the same machine."""
    requests = [Request("auto", each, {}) for each in messages]
    planners = {name: planner_of(name) for name in ("five-level", "learned")}
    best = dict.fromkeys(planners, float("inf"))
    for _, (name, planner) in itertools.product(range(_ROUNDS), planners.items()):
        best[name] = min(best[name], seconds_each(planner.plan, requests, rounds=1))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--reference", type=Path, help="folder with score.c and feat.h")
    options = parser.parse_args()
    messages = read_messages(options.prompts)
    model = _core.LearnedModel(prior())
    texts = [_core.learned_bytes(each) for each in messages]
    usual = [text for text in texts if 450 <= len(text) <= 550 and b"\0" not in text]
    ours = seconds_each(model.score, usual) - overhead(usual)
    print(f"score of {len(usual)} texts of 450 to 550 bytes: {ours * 1e6:.2f} µs")
    if options.reference is not None:
        with tempfile.TemporaryDirectory() as folder:
            theirs = reference(options.reference, usual, Path(folder))
        if theirs is not None:
            print(f"the reference in C: {theirs * 1e6:.2f} µs, ratio {ours / theirs:.2f}")
    sizes = {
        size: [{"role": "user", "content": "Explain it to me. " * (size // 18)}] for size in (1600, 10**7)
    }
    took = {}
    for size, message in sizes.items():
        took[size] = seconds_each(_core.learned_bytes, [message] * 200) + seconds_each(
            model.score, [_core.learned_bytes(message)] * 200
        )
    print(f"text of 10 MB: {took[10**7] * 1e6:.2f} µs, of 1.6 kB: {took[1600] * 1e6:.2f} µs")
    plans = plan_seconds(messages[:_MOST_PLANS])
    print(
        f"plan of {min(len(messages), _MOST_PLANS)} prompts: five-level {plans['five-level'] * 1e6:.2f} µs, "
        f"learned {plans['learned'] * 1e6:.2f} µs, {1e6 * (plans['learned'] - plans['five-level']):+.2f} µs"
    )


if __name__ == "__main__":
    main()
