"""The scan of a prompt for all groups of the largest built-in rule set, beside regular-expression libraries.

Every row searches the same text for the same patterns of three groups. The peers are given the patterns as
one set, or one alternation a group, whichever they are fast with; they answer which groups match and count no
words, while fastroute also counts words, characters and structure and decides the level. ``re`` with words
adds ``len(text.split())``. The no-op row is a method of a compiled class that does nothing.

Run: ``pytest benchmarks/test_scan.py``. Peers that are not installed are left out.
"""

from __future__ import annotations

import random
import re
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from fastroute.config.rules import load_builtin
from fastroute.routing.classifier import Classifier

RULE_SET = load_builtin()["task-tier"]
PROSE = (
    "Please have a look at the service below. It answers slowly when many people use it at once, and I would "
    "like to know where the time goes. The tests pass, but the page takes 3 seconds. What would you change "
    "first?\n\n"
    "def load(path):\n    with open(path) as file:\n        return [line.strip() for line in file]\n\n"
    "Write a short answer for someone who knows Python, in a friendly tone, with an example of the output. "
)
NEAR = [
    "jso",
    "schem",
    "csvs",
    "extrac",
    "pars",
    "forma",
    "retur",
    "refacto",
    "debu",
    "optimiz",
    "tests",
    "commen",
]


def prose(size: int) -> str:
    words = PROSE.split(" ")
    random.Random(1).shuffle(words)
    text = PROSE + " ".join(words) + " "
    return (text * (size // len(text) + 1))[:size]


def near_matches(size: int) -> str:
    return " ".join(random.Random(2).choices(NEAR, k=size // 4))[:size]


def matches(size: int) -> str:
    words = [word.replace(".", " ") for group in RULE_SET.groups for word in group.patterns]
    return " ".join(random.Random(3).choices([*words, *NEAR], k=size // 4))[:size]


TEXTS = {
    "500B": prose(500),
    "50KB": prose(50_000),
    "50KB-wide": prose(49_999) + "\u2019",
    "50KB-near": near_matches(50_000),
    "50KB-matches": matches(50_000),
    "10MB": "x" * 10_000_000,
}
ALTERNATIONS = [rf"\b(?:{'|'.join(group.patterns)})\b" for group in RULE_SET.groups]


def fastroute_scan(portable: bool) -> Callable[[str], Any]:
    classifier = Classifier(RULE_SET, portable=portable)

    def run(text: str) -> Callable[[], Any]:
        messages = [{"role": "user", "content": text}]
        params: dict[str, Any] = {}
        return lambda: classifier.scan(messages, params)

    return run


def plain_re(words: bool) -> Callable[[str], Any]:
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in ALTERNATIONS]

    def run(text: str) -> Callable[[], Any]:
        if words:
            return lambda: ([pattern.search(text) for pattern in patterns], len(text.split()))
        return lambda: [pattern.search(text) for pattern in patterns]

    return run


def re2_set() -> Callable[[str], Any]:
    re2 = pytest.importorskip("re2")
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    patterns = re2.Set.SearchSet(options)
    for pattern in ALTERNATIONS:
        patterns.Add(pattern)
    patterns.Compile()

    def run(text: str) -> Callable[[], Any]:
        data = text.encode()
        return lambda: patterns.Match(data)

    return run


def hyperscan_set() -> Callable[[str], Any]:
    hyperscan = pytest.importorskip("hyperscan")
    database = hyperscan.Database()
    database.compile(
        expressions=[pattern.encode() for pattern in ALTERNATIONS],
        ids=list(range(len(ALTERNATIONS))),
        flags=[hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH] * len(ALTERNATIONS),
    )
    scratch = hyperscan.Scratch(database)

    def run(text: str) -> Callable[[], Any]:
        data = text.encode()
        found: list[int] = []

        def on_match(number: int, start: int, end: int, flags: int, context: object) -> None:
            found.append(number)

        return lambda: database.scan(data, match_event_handler=on_match, scratch=scratch)

    return run


def nothing() -> Callable[[str], Any]:
    return lambda text: [].copy


CONTESTANTS: dict[str, Callable[[], Callable[[str], Any]]] = {
    "no-op": nothing,
    "fastroute": lambda: fastroute_scan(portable=False),
    "fastroute-portable": lambda: fastroute_scan(portable=True),
    "re": lambda: plain_re(words=False),
    "re-with-words": lambda: plain_re(words=True),
    "re2-set": re2_set,
    "hyperscan": hyperscan_set,
}


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("text", TEXTS)
def test_scan(benchmark: Any, text: str, contestant: str) -> None:
    if text == "10MB" and not contestant.startswith(("fastroute", "no-op")):
        pytest.skip("the peers have no bound on what they examine")
    benchmark.group = f"scan of {text}"
    call = CONTESTANTS[contestant]()(TEXTS[text])
    timer = timeit.Timer(call)
    once = min(timer.repeat(3, 1))
    # Enough calls a round that reading the clock does not count, few enough for other rounds to be quiet.
    benchmark.pedantic(call, rounds=40, iterations=max(1, int(0.002 / once)), warmup_rounds=1)


def test_compiling_a_rule_set(benchmark: Any) -> None:
    benchmark.group = "compile the largest rule set"
    benchmark(lambda: Classifier(RULE_SET))
