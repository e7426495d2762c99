"""Calibration: what is accepted, what is refused and with which advice, and what the file contains."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from outcomes import STRONG, WEAK, label, labels, prompts

from fastroute import _core
from fastroute.learning import Label, LabelError, LabelSet, by_share, calibrate, forecast_pairs
from fastroute.learning.calibration import quantiles_of, threshold_of
from fastroute.learning.familiar import guard_of, inverted
from fastroute.routing.router_file import read_router


def test_a_router_that_helps_is_accepted_and_works(tmp_path: Path) -> None:
    found = calibrate(labels(300), weak=WEAK, strong=STRONG, share=0.4)
    assert found.accepted, found.reason
    assert found.forecast is not None
    assert found.forecast.lift_low > 0.1
    assert found.forecast.quality > found.forecast.weak[0]
    assert [row.share for row in found.forecast.rows] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert found.forecast.cost == pytest.approx(0.4 * 2.44 + 0.6 * 0.042, rel=0.01)
    found.save(tmp_path / "router.frl")
    file = read_router(tmp_path / "router.frl")
    assert file == found.file
    header, model = file.header, file.model()
    assert (header.accepted, header.forced, header.own, header.guard) == (True, False, True, True)
    assert (header.labels, header.prompts, header.weak, header.strong) == (300, 300, WEAK, STRONG)
    assert len(header.quantiles) == 101
    fresh = [
        (_core.learned_bytes([{"role": "user", "content": text}]), hard) for text, hard in prompts(200, 7)
    ]
    strong = [model.score(text) >= header.threshold for text, _ in fresh]
    assert sum(strong) / 200 == pytest.approx(0.4, abs=0.1)
    assert sum(went and hard for went, (_, hard) in zip(strong, fresh)) > 0.9 * sum(strong)


def test_the_order_of_the_labels_does_not_matter() -> None:
    given = labels(200)
    one = calibrate(given, weak=WEAK, strong=STRONG, share=0.3)
    random.Random(3).shuffle(given)
    assert calibrate(iter(given), weak=WEAK, strong=STRONG, share=0.3).file == one.file


def test_shuffled_outcomes_are_refused() -> None:
    """A few of a hundred are accepted by chance; these are twenty."""
    accepted = [
        calibrate(labels(150, seed=seed, shuffled=True), weak=WEAK, strong=STRONG, share=0.3).accepted
        for seed in range(20)
    ]
    assert sum(accepted) <= 3


def scored(count: int, weak: float, strong: float) -> list[Label]:
    return [label(text, weak, strong) for text, _ in prompts(count)]


REFUSED = {
    "few labels": (labels(60), "only 60 different prompts", "Label 240 more"),
    "one class": (scored(150, 1, 1), "the same score on all 150 prompts", f"Use {WEAK} for all calls"),
    "alike": (
        scored(140, 1, 1) + [label(text, 0, 1) for text, _ in prompts(10, 9)][:4],
        "differ on 4 of 144 prompts",
        f"too alike here: use {WEAK} for all calls, or label about 940",
    ),
    "few differ": (
        scored(100, 1, 1) + [label(text, 0, 1) for text, _ in prompts(20, 9)],
        "differ on 20 of 120 prompts",
        "Label about 60 more",
    ),
    "the wrong way round": (
        scored(100, 1, 1) + [label(text, 1, 0) for text, _ in prompts(40, 9)],
        f"{STRONG} is no better than {WEAK}",
        "exchange the two models",
    ),
    "a coin": (labels(150, shuffled=True), "is", "Label"),
    "many and a coin": (labels(1000, seed=2, shuffled=True), "includes none at all", "hardly help"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_found_and_what_to_do(name: str, tmp_path: Path) -> None:
    given, said, advice = REFUSED[name]
    found = calibrate(given, weak=WEAK, strong=STRONG, share=0.3)
    assert not found.accepted
    assert said in found.reason
    assert advice in found.reason
    path = tmp_path / "router.frl"
    with pytest.raises(LabelError, match="was not written, because"):
        found.save(path)
    assert not path.exists()
    found.save(path, force=True)
    header = read_router(path).header
    assert (header.accepted, header.forced, header.reason) == (False, True, found.reason)


@pytest.mark.parametrize("count", [1, 2, 4, 25])
def test_very_few_labels_are_refused_like_others(count: int) -> None:
    found = calibrate(labels(count), weak=WEAK, strong=STRONG, share=0.3)
    assert found.reason.startswith(f"only {count} different prompts")
    assert f"Label {300 - count} more" in found.reason


def test_fewer_than_100_labels_give_no_weights_of_their_own() -> None:
    assert calibrate(labels(99), weak=WEAK, strong=STRONG).file.own is None
    assert calibrate(labels(100), weak=WEAK, strong=STRONG).file.own is not None


def test_keep_and_cost_choose_the_share() -> None:
    given = LabelSet(labels(600))
    kept = calibrate(given, weak=WEAK, strong=STRONG, keep=0.95)
    assert kept.accepted
    assert kept.forecast is not None
    assert 0.3 < kept.forecast.share < 0.7
    cheap = calibrate(given, weak=WEAK, strong=STRONG, cost=0.5).forecast
    assert cheap is not None
    assert cheap.cost is not None
    assert 0.45 < cheap.cost <= 0.5
    none = calibrate(given, weak=WEAK, strong=STRONG, cost=0.01)
    assert not none.accepted
    assert "to the weak model alone" in none.reason


def test_keep_that_no_share_is_sure_of_is_refused() -> None:
    given = [label(text, float(n % 3 > 0), 1.0) for n, (text, _) in enumerate(prompts(120))]
    random.Random(1).shuffle(given)
    found = calibrate(given, weak=WEAK, strong=STRONG, keep=0.999)
    assert not found.accepted
    assert "no share of calls below all of them is sure to keep 100%" in found.reason


def test_arguments_that_make_no_sense() -> None:
    given = labels(20)
    for wrong in ({"share": 0.3, "keep": 0.9}, {"share": 0.0}, {"keep": 1.5}, {"cost": -1.0}):
        with pytest.raises(ValueError, match=r"share|keep|cost"):
            calibrate(given, weak=WEAK, strong=STRONG, **wrong)
    with pytest.raises(ValueError, match="two models"):
        calibrate(given, weak=WEAK, strong=WEAK)
    with pytest.raises(LabelError, match=r"other has no scores; the models with scores are gpt-4.1 \(20\)"):
        calibrate(given, weak=WEAK, strong="other")
    with pytest.raises(LabelError, match="cost: is unknown"):
        calibrate(given, weak=WEAK, strong=STRONG, cost=1.0, prices={})
    with pytest.raises(LabelError, match="models with scores are none"):
        calibrate([], weak=WEAK, strong=STRONG)


def test_what_was_left_out_is_said() -> None:
    more = [Label([]), Label([{"role": "user", "content": "x"}], {WEAK: 1.0})]
    found = calibrate([*labels(120), *more], weak=WEAK, strong=STRONG)
    assert found.left_out == (
        "1 labels have no user message with text",
        "1 prompts lack a score of one of the models",
    )


def test_traffic_sets_the_threshold_and_calls_count_as_often_as_they_are_made() -> None:
    calls = [Label([{"role": "user", "content": text}]) for text, hard in prompts(400, 5) if hard]
    found = calibrate(labels(200), weak=WEAK, strong=STRONG, share=0.3, traffic=calls)
    model, threshold = found.file.model(), found.file.header.threshold
    went = [model.score(_core.learned_bytes(each.messages)) >= threshold for each in calls]
    assert sum(went) / len(calls) == pytest.approx(0.3, abs=0.02)
    assert found.file.header.prompts == 400
    assert threshold_of([(0.5, 90), (0.1, 10)], 0.9) == pytest.approx(0.3)


def test_without_labels_the_quality_is_unknown(tmp_path: Path) -> None:
    traffic = [Label([{"role": "user", "content": text}]) for text, _ in prompts(100)]
    found = by_share(traffic, share=0.25)
    assert found.forecast is None
    assert found.reason == "there were no labels, so the quality is unknown"
    found.save(tmp_path / "router.frl")
    header = read_router(tmp_path / "router.frl").header
    assert (header.accepted, header.forced, header.own, header.labels) == (False, True, False, 0)
    with pytest.raises(LabelError, match="has no prompt"):
        by_share([], share=0.25)


def test_every_pair_is_forecast() -> None:
    given = [
        Label(each.messages, {**each.scores, "other": float(number % 2)})
        for number, each in enumerate(labels(120))
    ]
    pairs = forecast_pairs(given, share=0.4)
    assert {frozenset((pair.weak, pair.strong)) for pair in pairs} == {
        frozenset((WEAK, STRONG)),
        frozenset((WEAK, "other")),
        frozenset((STRONG, "other")),
    }
    assert [pair.forecast.lift for pair in pairs] == sorted((p.forecast.lift for p in pairs), reverse=True)
    alone = calibrate(given, weak=WEAK, strong=STRONG, share=0.4)
    (same,) = (pair for pair in pairs if (pair.weak, pair.strong) == (WEAK, STRONG))
    assert same.forecast == alone.forecast
    with pytest.raises(LabelError, match="no two models"):
        forecast_pairs([Label([{"role": "user", "content": "x"}], {WEAK: 1.0})])


# ------------------------------------------------------------------------------------------ parts


def test_the_threshold_is_between_two_scores() -> None:
    scores = [(float(n), 1) for n in range(10)]
    assert [threshold_of(scores, share) for share in (0.0, 0.1, 0.3, 1.0)] == [10.0, 8.5, 6.5, -0.5]
    assert threshold_of([(1.0, 1)] * 5, 0.3) == 2.0  # none rather than all five
    assert quantiles_of(scores)[::25] == (0.0, 2.0, 4.0, 7.0, 9.0)
    assert quantiles_of([(1.0, 1)]) == (1.0,) * 101


def test_an_inverse() -> None:
    draw = random.Random(5)
    half = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(8)]
    matrix = [[sum(a * b for a, b in zip(one, other)) for other in half] for one in half]
    inverse = inverted(matrix)
    for i in range(8):
        for j in range(8):
            product = sum(matrix[i][k] * inverse[k][j] for k in range(8))
            assert product == pytest.approx(float(i == j), abs=1e-6)


def test_the_guard_knows_its_own_traffic_and_not_another() -> None:
    texts = [_core.learned_bytes([{"role": "user", "content": text}]) for text, _ in prompts(400)]
    guard = guard_of(texts, [1] * 399 + [9])
    assert guard is not None
    assert guard.most_turns == 1
    found = calibrate(labels(400), weak=WEAK, strong=STRONG)
    model, header = found.file.model(), found.file.header

    def flagged(text: str) -> bool:
        words, structure = model.unknown(_core.learned_bytes([{"role": "user", "content": text}]))
        return words > header.most_words or structure > header.most_structure

    assert sum(flagged(text) for text, _ in prompts(400, 11)) <= 20
    for strange in ("Schreibe mir ein Gedicht über den Herbst", "def f(x):\n    return x\n\n```", "0x" * 700):
        assert flagged(strange)
    assert guard_of(texts[:5], [1] * 5) is None


def test_numpy_is_not_needed() -> None:
    code = (
        "import sys\nsys.modules['numpy'] = None\nsys.path.insert(0, sys.argv[1])\n"
        "from outcomes import labels\nfrom fastroute.learning import calibrate\n"
        "print(calibrate(labels(120), weak='gpt-4.1-nano', strong='gpt-4.1').accepted)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
