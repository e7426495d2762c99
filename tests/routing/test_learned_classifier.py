"""The learned classifier: where its threshold comes from, what is unfamiliar, and what it says of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
from config_tables import only_problem, problems_of, tables
from router_files import PROMPTS, write_router
from samples import seed

from fastroute import _core, events
from fastroute.config import LearnedConfig, check
from fastroute.errors import ConfigError
from fastroute.routing import learned
from fastroute.routing.learned import LearnedClassifier

LEARNED = {"policy": {"classifier": "learned"}}


def ask(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def make(
    segment: _core.Segment | None = None, hooks: events.Hooks | None = None, **config: Any
) -> LearnedClassifier:
    return LearnedClassifier(
        LearnedConfig(**config), segment or _core.Segment(cells=1024), hooks or events.Hooks()
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(write_router(tmp_path / "router.frl"))


# ------------------------------------------------------------------------------------------ configuration


def test_without_a_file_the_share_is_required() -> None:
    problem = only_problem(**LEARNED)
    assert problem.startswith("learned.share: is required without learned.file")
    assert problems_of(**LEARNED, learned={"share": 0.4}) == []
    assert problems_of(**LEARNED, learned={"file": "router.frl"}) == []
    assert problems_of(learned={"hold": True}) == []


@pytest.mark.parametrize(
    ("learned", "path"),
    [
        ({"share": 1.5}, "learned.share"),
        ({"share": "half"}, "learned.share"),
        ({"file": 3}, "learned.file"),
        ({"share": 0.4, "hold": 1}, "learned.hold"),
        ({"share": 0.4, "unfamiliar": "weak"}, "learned.unfamiliar"),
        ({"share": 0.4, "thresold": 1}, "learned.thresold"),
    ],
)
def test_each_key_is_checked(learned: dict[str, Any], path: str) -> None:
    assert only_problem(**LEARNED, learned=learned).startswith(f"{path}: ")


def test_its_levels_are_those_of_the_classes() -> None:
    models = {"tiers": {"budget": ["my-llama"], "premium": ["gpt-4.1"]}, "learned": {"share": 0.4}}
    classes = {"weak": "budget", "strong": "premium"}
    assert problems_of(**models, policy={"classifier": "learned", "classes": classes}) == []
    problem = only_problem(**models, policy={"classifier": "learned", "classes": {"expert": "premium"}})
    assert problem.startswith("policy.classes.expert: unknown level 'expert'; use one of weak, strong")


def test_its_names_are_taken() -> None:
    own = {"levels": ["a"], "otherwise": {"level": "a"}}
    assert "is the name of a built-in classifier" in only_problem(classifiers={"learned": own})
    tiers = {"unfamiliar": ["my-llama"], "premium": ["gpt-4.1"]}
    assert problems_of(tiers=tiers) == []
    problem = only_problem(tiers=tiers, learned={"unfamiliar": "default"})
    assert problem.startswith("tiers.unfamiliar: ")


def test_the_file_is_beside_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "fastroute.toml"
    path.write_text(
        '[providers.one]\nbase_url = "https://one.example.com/v1"\nmodels = ["gpt-4.1"]\n'
        '[learned]\nfile = "router.frl"\n'
    )
    config = check(path, environ={}).config
    assert config is not None
    assert config.learned.file == str(tmp_path / "router.frl")


def test_a_share_comes_from_the_environment() -> None:
    findings = check(tables(**LEARNED), environ={"FASTROUTE_LEARNED__SHARE": "0.25"})
    assert findings.config is not None
    assert findings.config.learned.share == 0.25


# --------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"accepted": False, "reason": "lift 0.00 to 0.02"},
            r"was refused \(lift 0.00 to 0.02\); label more",
        ),
        ({"quantiles": (1.0, 2.0)}, "has 2 quantiles"),
        ({"quantiles": tuple(range(101, 0, -1))}, "has quantiles that fall"),
        ({"features": 99}, "make it anew"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_to_do(
    tmp_path: Path, header: dict[str, Any], said: str
) -> None:
    path = write_router(tmp_path / "router.frl", **header)
    with pytest.raises(ConfigError, match=rf"learned\.file: .*{said}"):
        make(file=str(path))


def test_a_missing_and_a_damaged_file_are_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match=r"learned\.file: .*does not exist"):
        make(file=str(tmp_path / "nothing.frl"))
    content = bytearray(Path(file).read_bytes())
    content[-1] ^= 1
    Path(file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"learned\.file: .*is damaged"):
        make(file=file)


def test_a_forced_file_says_so_in_every_explanation(tmp_path: Path) -> None:
    path = write_router(tmp_path / "router.frl", accepted=False, forced=True, reason="too few labels")
    classifier = make(file=str(path))
    for text in (PROMPTS[0], "", "Wie spät ist es?"):
        reason = classifier.classify(ask(text), {})[0].reason
        assert reason.endswith("; the file is used although it was not accepted: too few labels")


# ----------------------------------------------------------------------------------------------- threshold


def strong_share(classifier: LearnedClassifier) -> float:
    levels = [classifier.scan(ask(text), {}).level for text in PROMPTS]
    return levels.count("strong") / len(levels)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_share_moves_the_threshold_by_the_files_quantiles(file: str, share: float) -> None:
    assert strong_share(make(file=file, share=share)) == pytest.approx(share, abs=0.03)


def test_without_a_share_it_is_the_files(tmp_path: Path) -> None:
    path = write_router(tmp_path / "router.frl", share=0.3, threshold=-math.pi)
    classifier = make(file=str(path))
    assert (classifier.share, classifier.rules.threshold) == (0.3, -math.pi)


@pytest.mark.parametrize("size", [0.0, 1.5, -1.5, 1e-300, 1e9, -1e9])
@pytest.mark.parametrize("apart", [0.0, 5e-324, 1e-12])
def test_a_file_whose_scores_are_nearly_the_same_can_be_used(
    tmp_path: Path, size: float, apart: float
) -> None:
    quantiles = (size,) * 50 + (min(size + apart, 1e9),) * 51
    path = write_router(tmp_path / "router.frl", quantiles=quantiles, threshold=size)
    for share in (None, 0.0, 0.3, 1.0):
        classifier = make(file=str(path), share=share)
        assert classifier.rules.low < size < classifier.rules.high
        assert classifier.scan(ask(PROMPTS[0]), {}).level in ("weak", "strong")


def test_the_prior_has_a_threshold_after_the_warm_up_and_then_follows() -> None:
    classifier = make(share=0.4)
    for number in range(learned.WARM_UP):
        found, scan = classifier.classify(ask(PROMPTS[number % 101]), {})
        assert (found.level, classifier.figures()["threshold"]) == ("strong", None)
        assert "the first 300 calls are strong" in found.reason
        assert scan.confidence == 1.0
        classifier.look()
    assert strong_share(classifier) == pytest.approx(0.4, abs=0.08)
    found, _ = classifier.classify(ask(PROMPTS[0]), {})
    assert "for 40% of the calls to strong; the prior is not calibrated on your prompts" in found.reason


@pytest.mark.parametrize(("share", "level"), [(0.0, "weak"), (1.0, "strong")])
def test_none_or_all_of_the_calls_need_no_warm_up(share: float, level: str) -> None:
    classifier = make(share=share)
    assert {classifier.scan(ask(text), {}).level for text in PROMPTS} == {level}


def test_the_warm_up_is_shared_by_the_processes_of_a_state() -> None:
    segment = _core.Segment(cells=1024)
    first = make(segment, share=0.4)
    for number in range(learned.WARM_UP):
        first.scan(ask(PROMPTS[number % 101]), {})
        first.look()
    assert make(segment, share=0.4).rules.threshold == pytest.approx(first.rules.threshold, abs=0.01)
    assert make(segment, share=0.2).rules.threshold > first.rules.threshold


# ------------------------------------------------------------------------------------------ changed traffic


def run(classifier: LearnedClassifier, texts: list[Any], calls: int) -> None:
    for number in range(calls):
        classifier.scan(ask(texts[number % len(texts)]), {})
        classifier.look()


def test_a_drift_of_the_share_is_told_once_until_it_is_back(
    file: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooks, told = events.Hooks(), list[Any]()
    hooks.add(told.append, events.TrafficChanged)
    classifier = make(file=file, hooks=hooks)
    hard = [text for text in PROMPTS if classifier.scan(ask(text), {}).level == "strong"]
    run(classifier, hard, 1500)
    assert [(event.kind, event.expected) for event in told] == [("share", 0.5)]
    assert told[0].value > 0.6
    assert told[0].calls >= learned.ENOUGH
    assert sum("calibrate again with newer prompts" in line for line in caplog.messages) == 1
    assert "scored calls are above the threshold" in "".join(classifier.changes())
    run(classifier, PROMPTS, 6000)
    assert classifier.changes() == []
    run(classifier, hard, 3000)
    assert len(told) == 2


def test_a_held_share_does_not_drift(file: str) -> None:
    hooks, told = events.Hooks(), list[Any]()
    hooks.add(told.append, events.TrafficChanged)
    classifier = make(file=file, hold=True, hooks=hooks)
    before = classifier.rules.threshold
    hard = sorted(PROMPTS, key=lambda text: classifier.scan(ask(text), {}).score)[50:]
    run(classifier, hard, 4000)
    assert told == []
    assert classifier.rules.threshold > before
    levels = [classifier.scan(ask(text), {}).level for text in hard]
    assert levels.count("strong") / len(levels) == pytest.approx(0.5, abs=0.1)


def test_many_unfamiliar_calls_are_told(file: str) -> None:
    hooks, told = events.Hooks(), list[Any]()
    hooks.add(told.append, events.TrafficChanged)
    classifier = make(file=file, hooks=hooks)
    run(classifier, [*PROMPTS[:3], ""], 1200)
    assert "unfamiliar" in [event.kind for event in told]
    event = next(event for event in told if event.kind == "unfamiliar")
    assert event.value == pytest.approx(0.25, abs=0.01)
    assert any("are unfamiliar" in change for change in classifier.changes())


# ----------------------------------------------------------------------------------------------- unfamiliar

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
UNFAMILIAR = {
    "no-text": (ask(""), {}, "no text to score"),
    "blank": (ask(" \t\n"), {}, "no text to score"),
    "no message": ([], {}, "no text to score"),
    "system": ([{"role": "system", "content": PROMPTS[0]}], {}, "no text to score"),
    "image": (ask([IMAGE]), {}, "images or other parts"),
    "image and text": (ask([{"type": "text", "text": PROMPTS[0]}, IMAGE]), {}, "images or other parts"),
    "language": (
        ask("Welche Zahlen sind gerade, und warum ist das so? Beweise es bitte."),
        {},
        "unfamiliar words",
    ),
    "script": (ask("证明所有素数的和是奇数，并解释为什么。"), {}, "unfamiliar words"),
    "10 MB": (ask("Explain why the sum is odd. " * 400_000), {}, "less than half"),
    "random": (ask(random.Random(seed()).randbytes(400).decode("latin-1")), {}, "unfamiliar words"),
    "tools": (ask(PROMPTS[0]), {"tools": [{"type": "function"}]}, "requests with tools"),
    "turns": ([*ask(PROMPTS[0]), *ask(PROMPTS[1])] * 2, {}, "more turns"),
}


@pytest.mark.parametrize("kind", UNFAMILIAR)
@pytest.mark.parametrize("unfamiliar", ["strong", "default"])
def test_what_the_score_says_nothing_about_goes_to_strong(tmp_path: Path, kind: str, unfamiliar: str) -> None:
    messages, params, said = UNFAMILIAR[kind]
    # All calls with a score are weak.
    path = write_router(tmp_path / "router.frl", threshold=1e6, share=0.01, most_turns=3)
    classifier = make(file=str(path), unfamiliar=unfamiliar)
    assert classifier.classify(ask(PROMPTS[0]), {})[0].level == "weak"
    found, _ = classifier.classify(messages, params)
    assert found.level == ("strong" if unfamiliar == "strong" else "unfamiliar")
    assert said in found.reason
    assert found.reason.endswith(
        "so it is strong" if unfamiliar == "strong" else "so the default tier serves it"
    )
    assert classifier.figures()["unfamiliar"] == 0.5


# ---------------------------------------------------------------------------------------------- explanation


@pytest.mark.parametrize(
    "text",
    [*PROMPTS[:5], "def f():\n\treturn '\x1b[31m'\n\n# naïve – café?", "a b", "1 + 1 = 2, isn't it?" * 200],
)
def test_the_explanation_names_words_that_are_in_the_prompt(file: str, text: str) -> None:
    found, scan = make(file=file).classify(ask(text), {})
    words = [word for group in found.matches.values() for word in group]
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert 0 < len(words) <= 8
    assert all(word in plain and word.isprintable() for word in words)
    assert set(found.matches) <= {"strong", "weak"}
    assert found.score == scan.score
    assert found.classifier == "learned"


def test_the_words_are_only_looked_for_where_the_messages_are_given(file: str) -> None:
    classifier = make(file=file)
    scan = classifier.scan(ask(PROMPTS[0]), {})
    assert classifier.explain(scan).matches == {}
    assert classifier.explain(scan).score == classifier.explain(scan, ask(PROMPTS[0])).score


def test_messages_that_are_none_are_refused_as_by_a_rule_set() -> None:
    with pytest.raises(TypeError):
        make(share=0.4).scan(["text"], {})  # type: ignore[list-item]


def test_the_state_must_have_room_for_the_scores() -> None:
    segment = _core.Segment(cells=64)
    with contextlib.suppress(_core.SegmentFullError):
        for number in itertools.count():
            _core.EventCount(segment, str(number), periods=30)
    with pytest.raises(ConfigError, match="learned: the state of 64 cells has no room"):
        make(segment, share=0.4)


def test_the_counts_of_scores_are_not_taken_for_endpoints() -> None:
    segment = _core.Segment(cells=64)
    classifier = make(segment, share=0.4)
    for text in PROMPTS:
        classifier.scan(ask(text), {})
    used, figures = segment.used, classifier.rules.traffic.figures()
    segment.reap()
    assert (segment.used, classifier.rules.traffic.figures()) == (used, figures)
