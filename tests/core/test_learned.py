"""The learned score against its twin and vectors; hostile payloads; the fit; the counts of traffic."""

from __future__ import annotations

import math
import random
import struct
import threading
from array import array
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twin import learned as twin

from fastroute import _core

PRIOR_SIZE, OWN_SIZE, GUARD_SIZE = _core.LEARNED_SIZES


def payload(seed: int = 1) -> bytes:
    """A prior of drawn weights."""
    draw = random.Random(seed)
    head = [0.01, 0.02, 0.1, 0.8, 0.3, 0.05, 0.0, 1.5]
    floats = head + [draw.uniform(-1, 1) for _ in range(32)] + [draw.uniform(0, 2) for _ in range(32)]
    floats += [draw.uniform(0.2, 2) for _ in range(32)]
    return struct.pack("<104f", *floats) + bytes(draw.getrandbits(8) for _ in range(65536))


def own_weights(seed: int = 2) -> bytes:
    draw = random.Random(seed)
    floats = [1e-6, *(draw.uniform(-0.1, 0.1) for _ in range(32))]
    return struct.pack("<33f", *floats) + bytes(draw.getrandbits(8) for _ in range(65536))


def guard(known: bytes = b"\xff" * 16384) -> bytes:
    inverse = [float(row == column) for row in range(32) for column in range(32)]
    return struct.pack("<1056f", *([0.0] * 32), *inverse) + known


PRIOR, OWN = payload(), own_weights()
MODELS = [_core.LearnedModel(PRIOR), _core.LearnedModel(PRIOR, OWN)]
TWINS = [twin.Model(PRIOR), twin.Model(PRIOR, OWN)]

TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=" \n\t.,?()aAbj1é€😀\ud800`\\$_:;{[\"'=-x\x00\x7f", max_size=300),
    st.lists(
        st.sampled_from(["word ", "Über ", "1234567", "3.14", "\n\n", "A. ", "(b) ", "```", "...", "😀"])
    ).map("".join),
)


def ask(*parts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]


def hashes_of(text: bytes) -> list[int]:
    found = array("I")
    found.frombytes(_core.learned_parts(text)[0])
    return list(found)


def counts_of(text: bytes) -> list[float]:
    found = array("f")
    found.frombytes(_core.learned_parts(text)[1])
    return list(found)


@pytest.mark.parametrize(
    ("text", "tokens", "pairs", "sizes"),
    [
        ("What is 2+2?", [18764, 23101, 7380, 9135], [21539, 18573, 18142], (6, 11)),
        (
            "Which is true?\nA. one\nB. two\nAnswer:",
            [15947, 23101, 13086, 3137],
            [5376, 29024, 26684],
            (15, 27),
        ),
        (
            "Über-Größe: naïve\n\n```python\nprint(1)\n```",
            [14047, 13120, 26320, 8531],
            [21572, 1687, 31663],
            (15, 28),
        ),
        ("", [], [], (0, 0)),
    ],
)
def test_the_vectors_of_version_1(
    text: str, tokens: list[int], pairs: list[int], sizes: tuple[int, int]
) -> None:
    found = [each >> 17 for each in hashes_of(text.encode())]
    assert len(twin.tokens(text.encode())) == sizes[0]
    assert len(found) == sizes[1]
    assert found[:7:2] == tokens
    assert found[1:7:2] == pairs
    if not text:
        assert counts_of(b"") == [0.0] * 32


@given(st.lists(TEXTS, max_size=4), st.integers(0, 3))
@example(["a" * 1536], 0)
@example(["a" * 1537], 0)
@example(["é" * 1000], 1)
@example(["", "", "x" * 3000, ""], 0)
def test_the_scored_bytes_are_the_two_ends_of_the_last_user_message(parts: list[str], longer: int) -> None:
    parts = [part * (1, 7, 60, 400)[longer] for part in parts]
    earlier = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "no"}]
    later = [{"role": "tool", "content": "no"}, {"role": "system", "content": "no"}]
    assert _core.learned_bytes([*earlier, *ask(*parts), *later]) == twin.scored(parts)
    if len(parts) == 1:
        assert _core.learned_bytes([{"role": "user", "content": parts[0]}]) == twin.scored(parts)


@given(TEXTS, st.sampled_from([1, 9, 100]))
@settings(max_examples=300)
def test_features_and_score_are_the_twins(text: str, times: int) -> None:
    scored = twin.scored([text * times])
    assert hashes_of(scored) == twin.hashes(scored)
    assert counts_of(scored) == pytest.approx(twin.counts(scored), rel=1e-6, abs=1e-6)
    for model, reference in zip(MODELS, TWINS):
        assert model.score(scored) == pytest.approx(reference.score(scored), rel=1e-5, abs=1e-5)


def test_the_same_text_has_the_same_bits_in_every_width_and_thread() -> None:
    text = "Prove that there are infinitely many primes. " * 20
    wide = ask(text, "€"), ask(text, "😀")
    assert _core.learned_bytes(ask(text)) == _core.learned_bytes(wide[0])[: len(text)]
    expected = MODELS[1].score(_core.learned_bytes(ask(text)))
    found: list[float] = []

    def score() -> None:
        found.extend(MODELS[1].score(_core.learned_bytes(ask(text))) for _ in range(200))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {expected}
    assert len(found) == 800


def test_what_moved_the_score_is_in_the_text() -> None:
    text = "Über-Größe: explain the proof\n\nof 12345 primes?"
    moves = MODELS[0].moved(_core.learned_bytes(ask(text)), 5)
    assert len(moves) == 5
    assert all(words in text for words, _ in moves)
    strengths = [abs(by) for _, by in moves]
    assert strengths == sorted(strengths, reverse=True)
    assert MODELS[0].moved(b"") == []


@pytest.mark.parametrize("size", [0, 1, PRIOR_SIZE - 1, PRIOR_SIZE + 1])
def test_a_prior_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"prior: must have {PRIOR_SIZE} bytes"):
        _core.LearnedModel(bytes(size))


@pytest.mark.parametrize("place", range(104))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(place: int, value: float) -> None:
    damaged = bytearray(PRIOR)
    struct.pack_into("<f", damaged, 4 * place, value)
    with pytest.raises(ValueError, match="not all numbers are finite"):
        _core.LearnedModel(bytes(damaged))


def test_a_text_that_is_too_long_is_refused_and_nothing_is_read_beyond() -> None:
    for use in (MODELS[0].score, MODELS[0].moved, _core.learned_parts, _core.LearnedRows(MODELS[0]).add):
        with pytest.raises(ValueError, match="at most 1537 bytes"):
            use(b"a" * 1538)
    for byte in (b"a", b".", b"\n", b"1", b"\xff", b"\x00"):
        assert math.isfinite(MODELS[1].score(byte * 1537))
    assert len(hashes_of(bytes(range(33, 48)) * 102)) <= 2 * 1537


def test_the_guard_counts_what_it_does_not_know() -> None:
    text = b"What is 2+2?"
    assert _core.LearnedModel(PRIOR, None, guard()).unknown(text)[0] == 0
    share, distance = _core.LearnedModel(PRIOR, None, guard(bytes(16384))).unknown(text)
    assert share == 1
    assert distance == pytest.approx(math.sqrt(sum(count**2 for count in twin.counts(text))), rel=1e-5)
    known = bytearray(16384)
    for each in hashes_of(text)[:4]:
        known[each >> 15 >> 3] |= 1 << (each >> 15 & 7)
    assert _core.LearnedModel(PRIOR, OWN, guard(bytes(known))).unknown(text)[0] == pytest.approx(7 / 11)
    with pytest.raises(ValueError, match="no guard"):
        MODELS[0].unknown(text)


def test_the_fit_is_the_posterior_mean() -> None:
    """Held to the normal equations, solved by elimination in the space of the rows."""
    draw = random.Random(5)
    words = ["prove", "sum", "list", "poem", "integral", "name", "code", "why"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 6))).encode() for _ in range(40)]
    targets = [draw.choice([-1.0, 0.0, 1.0]) for _ in texts]
    keep = [draw.random() < 0.8 for _ in texts]
    rows = _core.LearnedRows(MODELS[0])
    for text in texts:
        rows.add(text)
    own, fitted = rows.fit(array("d", targets), bytes(keep))
    scores = rows.scores

    def standard(text: bytes) -> list[float]:
        values = zip(twin.counts(text), TWINS[0].mean, TWINS[0].sd)
        return [max(-3, min(3, (value - mean) / sd)) / math.sqrt(32) for value, mean, sd in values]

    sets = [{h >> 17 for h in twin.hashes(text)} for text in texts]
    structure = [standard(text) for text in texts]

    def product(a: int, b: int) -> float:
        shared = len(sets[a] & sets[b]) / math.sqrt(len(sets[a]) * len(sets[b]))
        return 0.009 * shared + 0.003 * sum(x * y for x, y in zip(structure[a], structure[b]))

    chosen = [i for i, kept in enumerate(keep) if kept]
    rest = {i: targets[i] - 0.06 * scores[i] for i in chosen}
    mean = sum(rest.values()) / len(rest)
    matrix = [[product(a, b) + 0.2 * (a == b) for b in chosen] + [rest[a] - mean] for a in chosen]
    solution = solved(matrix)
    gains = array("d")
    gains.frombytes(fitted)
    for i in range(len(texts)):
        expected = 0.06 * scores[i] + sum(v * product(i, b) for v, b in zip(solution, chosen))
        assert gains[i] == pytest.approx(expected, abs=1e-6)
        calibrated = _core.LearnedModel(PRIOR, own).score(texts[i])
        assert calibrated == pytest.approx(expected, abs=1e-4)  # the weights are stored in 16 bits


def solved(matrix: list[list[float]]) -> list[float]:
    """Gauss' elimination."""
    n = len(matrix)
    for i in range(n):
        pivot = max(range(i, n), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for row in range(n):
            if row != i:
                factor = matrix[row][i] / matrix[i][i]
                matrix[row] = [x - factor * y for x, y in zip(matrix[row], matrix[i])]
    return [matrix[i][n] / matrix[i][i] for i in range(n)]


def test_the_fit_refuses_what_does_not_fit_and_bears_nothing_to_fit() -> None:
    rows = _core.LearnedRows(MODELS[0])
    own, gains = rows.fit(array("d"), b"")
    assert gains == b""
    assert _core.LearnedModel(PRIOR, own).calibrated
    rows.add(b"one")
    for target, keep in ((array("d"), b"\x01"), (array("d", [1.0]), b"")):
        with pytest.raises(ValueError, match="one value for each row"):
            rows.fit(target, keep)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            rows.fit(array("d", [value]), b"\x01")
    rows.fit(array("d", [1.0]), b"\x00")


RULES: dict[str, Any] = {"low": -4.0, "high": 4.0}


def rules(name: str = "traffic", model: _core.LearnedModel = MODELS[0], **options: Any) -> _core.LearnedRules:
    traffic = _core.LearnedTraffic(_core.Segment(cells=64), name)
    return _core.LearnedRules(model, traffic, **{**RULES, "threshold": 0.0, **options})


@pytest.mark.parametrize(
    ("messages", "params", "ground"),
    [
        (ask("hello there"), {}, "score"),
        ([], {}, "no-text"),
        (ask(""), {}, "no-text"),
        (ask(" \t "), {}, "no-text"),
        ([{"role": "system", "content": "x"}], {}, "no-text"),
        ([{"role": "user", "content": None}], {}, "no-text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}], {}, "media"),
        (
            [*ask("x"), {"role": "user", "content": [{"type": "file"}, {"type": "text", "text": "t"}]}],
            {},
            "media",
        ),
        (ask("hello"), {"tools": [{}]}, "tools"),
        (ask("hello") * 4, {}, "turns"),
        (ask("word " * 10_000), {}, "long"),
    ],
)
def test_what_cannot_be_scored_goes_to_strong(
    messages: list[dict[str, Any]], params: dict[str, Any], ground: str
) -> None:
    for unfamiliar, level in (("strong", "strong"), ("unfamiliar", "unfamiliar")):
        scan = rules(threshold=1e9, most_turns=3, unfamiliar=unfamiliar).read(messages, params)
        assert _core.LEARNED_GROUNDS[scan.ground] == ground
        assert scan.level == ("weak" if ground == "score" else level)
        assert scan.confidence == 1.0


def test_unfamiliar_words_and_structure_go_to_strong() -> None:
    model = _core.LearnedModel(PRIOR, None, guard(bytes(16384)))
    found = rules(model=model, threshold=1e9, most_words=0.5).read(ask("hello"), {})
    assert _core.LEARNED_GROUNDS[found.ground] == "words"
    model = _core.LearnedModel(PRIOR, None, guard())
    found = rules(model=model, threshold=1e9, most_structure=0.1).read(ask("hello"), {})
    assert _core.LEARNED_GROUNDS[found.ground] == "structure"


def test_the_threshold_decides_and_without_one_all_go_to_strong() -> None:
    decide = rules(threshold=1e9)
    score = decide.read(ask("hello there"), {}).score
    assert score == pytest.approx(TWINS[0].score(b"hello there"), abs=1e-5)
    decide.threshold = score
    assert decide.read(ask("hello there"), {}).level == "strong"
    decide.threshold = math.nextafter(score, 1e9)
    assert decide.read(ask("hello there"), {}).level == "weak"
    decide.threshold = math.nan
    warm = decide.read(ask("hello there"), {})
    assert (warm.level, _core.LEARNED_GROUNDS[warm.ground]) == ("strong", "warm-up")
    calls, strong, unfamiliar, bins = decide.traffic.figures()
    assert (calls, strong, unfamiliar, sum(bins)) == (4, 2, 0, 4)


def test_the_place_of_a_share_in_the_traffic() -> None:
    decide = rules(low=-1.0, high=1.0)
    draw = random.Random(3)
    scores = []
    for _ in range(1000):
        text = " ".join(
            draw.choices(["sum", "prove", "list", "a", "the", "why", "code"], k=draw.randint(1, 30))
        )
        scores.append(decide.read(ask(text), {}).score)
    assert decide.traffic.place(1.0) is not None
    low, high = min(scores), max(scores)
    decide = rules(low=low, high=high + 1e-3)
    for _ in range(2):
        for score in scores:
            decide.threshold = score  # the counts do not depend on it
    draw = random.Random(3)
    for _ in range(1000):
        text = " ".join(
            draw.choices(["sum", "prove", "list", "a", "the", "why", "code"], k=draw.randint(1, 30))
        )
        decide.read(ask(text), {})
    for share in (0.1, 0.3, 0.5, 0.9):
        place = decide.traffic.place(share)
        assert place is not None
        threshold = low + place * (high + 1e-3 - low)
        assert sum(score >= threshold for score in scores) / 1000 == pytest.approx(share, abs=0.02)
    assert rules().traffic.place(0.5) is None
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share must be 0 to 1"):
            decide.traffic.place(wrong)


def test_the_counts_of_traffic_are_halved_and_shared_by_name() -> None:
    segment = _core.Segment(cells=64)
    here, there = (_core.LearnedTraffic(segment, "one") for _ in range(2))
    decide = _core.LearnedRules(MODELS[0], here, **RULES, threshold=-1e9)
    for _ in range(2048):
        decide.read(ask("hello"), {})
    assert there.figures()[:3] == (2048, 2048, 0)
    decide.read(ask("hello"), {})
    assert there.figures()[:3] == (1025, 1025, 0)
    assert sum(there.figures()[3]) == 1025


def test_threads_lose_no_count() -> None:
    decide = rules(threshold=-1e9)
    threads = [
        threading.Thread(target=lambda: [decide.read(ask("hello"), {}) for _ in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decide.traffic.figures()[:3] == (1600, 1600, 0)
