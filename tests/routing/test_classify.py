"""The four built-in rule sets against a plain reading of their formulas, and the checking of rule sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute.config.rules import Condition, Group, Rule, RuleSet, load_builtin
from fastroute.errors import ConfigError
from fastroute.routing.classifier import Classifier

Messages = Sequence[Mapping[str, Any]]
CLASSIFIERS = {name: Classifier(rule_set) for name, rule_set in load_builtin().items()}


def say(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


# --------------------------------------------------------------------------------- the formulas, read plainly

THINKING = [
    "analyze",
    "compare",
    "evaluate",
    "design",
    "explain",
    "derive",
    "synthesize",
    "architect",
    "optimize",
]
STRUCTURAL = ["json", "schema", "csv", "extract", "parse", "format", "return"]
REASONING = [
    "refactor",
    "architect",
    "debug",
    "race.condition",
    "optimize",
    "security",
    "trade.off",
    "compare",
]
ROUTINE = ["test", "docstring", "translate", "boilerplate", "lint", "format", "comment", "rename"]
UP = ["analyze", "compare", "evaluate", "synthesize", "complex", "detailed", "comprehensive", "thorough"]
DOWN = ["simple", "quick", "brief", "summarize", "list", "what is", "define", "translate"]


def contained(words: Sequence[str], texts: Sequence[str]) -> int:
    return sum(any(re.search(re.escape(word), text, re.IGNORECASE) for text in texts) for word in words)


def bounded(words: Sequence[str], texts: Sequence[str]) -> bool:
    return any(re.search(rf"\b({'|'.join(words)})\b", text, re.IGNORECASE) for text in texts)


def five_level(messages: Messages, params: Mapping[str, Any]) -> tuple[str, float | None, float]:
    texts = [message["content"] for message in messages]
    average = sum(map(len, texts)) / len(texts) if texts else 0
    k = contained(THINKING, texts)
    if average < 50 and k == 0:
        return "trivial", None, 1.0
    if average < 200 and k <= 1:
        return "simple", None, 1.0
    if average < 1000 and k <= 3:
        return "moderate", None, 1.0
    if average < 5000 and k <= 5:
        return "complex", None, 1.0
    return "expert", None, 1.0


def task_tier(messages: Messages, params: Mapping[str, Any]) -> tuple[str, float | None, float]:
    texts = [message["content"] for message in messages if message["role"] == "user"]
    structural, reasoning, routine = (bounded(words, texts) for words in (STRUCTURAL, REASONING, ROUTINE))
    if structural and not reasoning:
        return "structured", None, 0.85
    if reasoning or sum(len(text.split()) for text in texts) > 600:
        return "complex", None, 0.90
    return ("bulk", None, 0.80) if routine else ("standard", None, 0.65)


def ten_point(messages: Messages, params: Mapping[str, Any]) -> tuple[str, float | None, float]:
    texts = [message["content"] for message in messages if message["role"] == "user"]
    score = min(10, max(1, 5 + contained(UP, texts) - contained(DOWN, texts)))
    level = (
        "premium" if score >= 8 else "standard" if score >= 5 else "budget" if score >= 3 else "ultra-budget"
    )
    return level, score, 1.0


def three_level(messages: Messages, params: Mapping[str, Any]) -> tuple[str, float | None, float]:
    chars = sum(len(message["content"]) for message in messages)
    turns = sum(message["role"] == "user" for message in messages)
    calls = len(params.get("tools") or ()) + len(params.get("functions") or ())
    wanted = params.get("max_tokens") or params.get("max_completion_tokens") or 0
    if chars > 5000 or calls or (turns > 3 and wanted > 4000):
        return "high", None, 1.0
    return ("medium" if chars > 500 or wanted > 1000 else "low"), None, 1.0


ORACLES: dict[str, Callable[..., tuple[str, float | None, float]]] = {
    "five-level": five_level,
    "task-tier": task_tier,
    "ten-point": ten_point,
    "three-level": three_level,
}

WORDS = st.sampled_from(
    [
        *THINKING,
        *STRUCTURAL,
        *REASONING,
        *ROUTINE,
        *UP,
        *DOWN,
        "race condition",
        "trade-off",
        "testing",
        "the",
        "of",
    ]
)
CASED = st.builds(lambda word, how: how(word), WORDS, st.sampled_from([str.lower, str.upper, str.title]))
PROSE = st.lists(CASED, max_size=12).map(" ".join)
PADDED = st.builds(
    lambda text, size, pad: text + pad * max(0, (size - len(text)) // len(pad)),
    PROSE,
    st.sampled_from([0, 0, 0, 49, 50, 51, 199, 200, 201, 500, 501, 999, 1000, 1300, 4999, 5000, 5001]),
    st.sampled_from(["x", " ", "a ", "é"]),
)
MESSAGES = st.lists(
    st.builds(say, PADDED, st.sampled_from(["user", "user", "system", "assistant"])), max_size=6
)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.sampled_from([None, 0, 1, 1000, 1001, 4000, 4001]),
        "max_completion_tokens": st.sampled_from([None, 1000, 1001, 4001]),
        "tools": st.sampled_from([None, [], [{"type": "function"}]]),
        "functions": st.sampled_from([None, [], [{"name": "f"}]]),
        "temperature": st.just(0),
    },
).filter(lambda params: params.get("max_tokens") != 0 or not params.get("max_completion_tokens"))


@pytest.mark.parametrize("name", ORACLES)
@given(messages=MESSAGES, params=PARAMS)
@settings(max_examples=250, deadline=None)
def test_a_builtin_follows_its_formula(name: str, messages: Messages, params: Mapping[str, Any]) -> None:
    found, scan = CLASSIFIERS[name].classify(messages, params)
    assert (found.level, found.score, found.confidence) == ORACLES[name](messages, params)
    assert scan.level == found.level
    assert found.classifier == name
    assert found.reason


PROMPTS = [
    # prompt, five-level, task-tier, ten-point, three-level
    ("Hi", "trivial", "standard", "standard", "low"),
    ("What is the capital of France?", "trivial", "standard", "budget", "low"),
    ("Translate to German: good morning", "trivial", "bulk", "budget", "low"),
    ("Return the fields below as JSON.", "trivial", "structured", "standard", "low"),
    ("Explain how a hash table works.", "simple", "standard", "standard", "low"),
    ("Compare TCP and UDP.", "simple", "complex", "standard", "low"),
    ("Refactor this function and return the diff.", "trivial", "complex", "standard", "low"),
    ("Rename the variables; lint the file.", "trivial", "bulk", "standard", "low"),
    ("Give a quick, brief, simple list. Define nothing.", "trivial", "standard", "ultra-budget", "low"),
    (
        "Analyze, compare and evaluate both designs in a detailed, thorough way.",
        "complex",
        "complex",
        "premium",
        "low",
    ),
    ("Find the race condition. " + "code " * 120, "moderate", "complex", "standard", "medium"),
    ("word " * 601, "complex", "complex", "standard", "medium"),
    ("x" * 5001, "expert", "standard", "standard", "high"),
    ("Protest against jsonic reformatting", "trivial", "standard", "standard", "low"),
]


@pytest.mark.parametrize(("prompt", "five", "task", "ten", "three"), PROMPTS)
def test_prompts_whose_level_a_person_can_tell(
    prompt: str, five: str, task: str, ten: str, three: str
) -> None:
    found = [classifier.scan([say(prompt)], {}).level for classifier in CLASSIFIERS.values()]
    assert found == [five, task, ten, three]


def test_the_words_that_did_it_are_named() -> None:
    found, _ = CLASSIFIERS["ten-point"].classify([say("A DETAILED list, please")], {})
    assert found.matches == {"demanding": ("detailed",), "plain": ("list",)}
    assert (found.score, found.reason) == (5.0, "score >= 5 (score is 5)")
    found, _ = CLASSIFIERS["five-level"].classify([say("x" * 6000)], {})
    assert found.reason.startswith("no rule holds (average is 6000, group.thinking is 0)")
    found, _ = CLASSIFIERS["five-level"].classify([say("x"), say("yy")], {})
    assert found.reason == "average < 50 and group.thinking == 0 (average is 1.5, group.thinking is 0)"


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": "4001"},
        {"max_tokens": float("nan")},
        {"max_tokens": -(10**30)},
        {"max_completion_tokens": []},
        {"tools": 3, "functions": None},
    ],
)
def test_odd_parameters_count_as_unknown(params: Mapping[str, Any]) -> None:
    assert CLASSIFIERS["three-level"].scan([say("x")], params).level == "low"


def test_huge_parameters_do_not_overflow() -> None:
    assert CLASSIFIERS["three-level"].scan([say("x")] * 4, {"max_tokens": 10**30}).level == "high"
    assert CLASSIFIERS["three-level"].scan([say("x")], {"max_tokens": 1001.5}).level == "medium"


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(
    "text",
    ["", " \n\t ", "\ud800\udfff", "\x00" * 9, "😀" * 99, "שלום עולם", "\u200b" * 40, "QUJD" * 50],
    ids=["empty", "white", "surrogates", "nul", "emoji", "rtl", "zero-width", "base64"],
)
def test_odd_texts_get_a_level(name: str, text: str) -> None:
    found, _ = CLASSIFIERS[name].classify([say(text)], {})
    assert (found.level, found.score, found.confidence) == ORACLES[name]([say(text)], {})


def test_a_request_without_messages_gets_a_level() -> None:
    assert [c.scan([], {}).level for c in CLASSIFIERS.values()] == ["trivial", "standard", "standard", "low"]


def test_a_very_long_text_is_classified_by_its_ends() -> None:
    found, scan = CLASSIFIERS["task-tier"].classify([say("word " * 2_000_000)], {})
    assert (found.level, scan.truncated, scan.chars) == ("complex", True, 10_000_000)
    assert found.reason.endswith("only the ends of a very long text were examined")


# ------------------------------------------------------------------------------------------ rule sets as data


def test_the_builtins_are_as_documented() -> None:
    sets = load_builtin()
    assert sets is load_builtin()
    assert {name: rule_set.levels for name, rule_set in sets.items()} == {
        "five-level": ("trivial", "simple", "moderate", "complex", "expert"),
        "task-tier": ("structured", "bulk", "standard", "complex"),
        "ten-point": ("ultra-budget", "budget", "standard", "premium"),
        "three-level": ("low", "medium", "high"),
    }
    assert all(tier == level for level, tier in sets["ten-point"].tiers.items())
    assert sets["task-tier"].unsure == "standard"
    with pytest.raises(TypeError):
        sets["mine"] = sets["five-level"]  # type: ignore[index]


def test_a_classifier_is_found_by_name() -> None:
    classifier = Classifier.named("task-tier")
    assert (classifier.name, classifier.levels[0], repr(classifier)) == (
        "task-tier",
        "structured",
        "Classifier('task-tier')",
    )
    with pytest.raises(ConfigError, match=r"no classifier 'best', must be one of five-level"):
        Classifier.named("best")


GOOD: dict[str, Any] = {
    "scope": "user",
    "levels": ["low", "high"],
    "rules": [{"level": "high", "confidence": 0.5, "when": ["group.hard>0", " score  >=  -1.5 "]}],
    "otherwise": {"level": "low"},
    "score": {"base": 1, "low": -2, "high": 2},
    "tiers": {"low": "budget"},
    "unsure": "low",
    "groups": {"hard": {"mode": "word", "weight": -1.5, "patterns": ["prove.it"]}},
}


def test_a_table_becomes_a_rule_set() -> None:
    made = RuleSet.from_mapping("mine", GOOD)
    assert made.groups == {"hard": Group(("prove.it",), "word", -1.5)}
    assert made.rules == (
        Rule("high", (Condition("group.hard", ">", 0.0), Condition("score", ">=", -1.5)), 0.5),
    )
    assert (made.scope, made.unsure, made.tiers, made.otherwise) == (
        "user",
        "low",
        {"low": "budget"},
        Rule("low"),
    )
    found, _ = Classifier(made).classify([say("prove it"), say("prove-it", "system")], {})
    assert (found.level, found.score, found.confidence) == ("high", -0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"colour": 1}, "classifiers.mine.colour: unknown key"),
        ({"levels": []}, "classifiers.mine.levels: must not be empty"),
        (
            {"levels": ["low", "high", "low"]},
            "classifiers.mine.levels: must not have an entry twice",
        ),
        ({"levels": ["low", 3]}, "classifiers.mine.levels[1]: must be a string, not 3"),
        ({"scope": "system"}, "classifiers.mine.scope: unknown scope 'system'; use one of user, all"),
        (
            {"otherwise": {"level": "mid"}},
            "classifiers.mine.otherwise.level: unknown level 'mid'; use one of low, high",
        ),
        (
            {"otherwise": {"level": "low", "confidence": 2}},
            "classifiers.mine.otherwise.confidence: must be a number from 0 to 1, not 2",
        ),
        (
            {"otherwise": {"level": "low", "when": ["chars > 1"]}},
            "classifiers.mine.otherwise.when: has no effect",
        ),
        ({"rules": {}}, "classifiers.mine.rules: must be a list of tables, not a table"),
        ({"rules": ["x"]}, "classifiers.mine.rules[0]: must be a table, not 'x'"),
        (
            {"rules": [{"level": "high", "when": ["chars"]}]},
            "classifiers.mine.rules[0].when[0]: must be a comparison like 'average < 50', not 'chars'",
        ),
        (
            {"rules": [{"level": "high", "when": ["chars > nan"]}]},
            "classifiers.mine.rules[0].when[0]: must be a comparison like 'average < 50', not 'chars > nan'",
        ),
        (
            {"rules": [{"level": "high", "when": ["chars != 1"]}]},
            "classifiers.mine.rules[0].when[0]: must be a comparison like 'average < 50', not 'chars != 1'",
        ),
        (
            {"rules": [{"level": "high", "when": ["size > 1"]}]},
            "classifiers.mine.rules[0].when[0]: unknown feature 'size'",
        ),
        (
            {"rules": [{"level": "high", "confidence": True}]},
            "classifiers.mine.rules[0].confidence: must be a number from 0 to 1, not true",
        ),
        ({"score": {"base": float("nan")}}, "classifiers.mine.score.base: must be a number from"),
        ({"score": {"low": 3, "high": 1}}, "classifiers.mine.score.low: must be at most high (1), not 3"),
        ({"tiers": {"mid": "budget"}}, "classifiers.mine.tiers.mid: unknown level"),
        ({"unsure": "mid"}, "classifiers.mine.unsure: unknown level"),
        ({"groups": {"hard": {"patterns": []}}}, "classifiers.mine.groups.hard.patterns: must not be empty"),
        (
            {"groups": {"hard": {"patterns": ["a", "A"]}}},
            "classifiers.mine.groups: group 'hard': pattern 'A' stands",
        ),
        ({"groups": {"hard": {"patterns": ["é"]}}}, "classifiers.mine.groups.hard.patterns[0]: 'é'"),
        (
            {"groups": {"hard": {"patterns": ["a"], "mode": "glob"}}},
            "classifiers.mine.groups.hard.mode: unknown mode 'glob'; use one of",
        ),
        (
            {"groups": {"h.d": {"patterns": ["a"]}}},
            'classifiers.mine.groups."h.d": invalid name; use letters',
        ),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_place(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.from_mapping("mine", GOOD | change)
    assert any(line.startswith(problem) for line in caught.value.problems), caught.value.problems


def test_a_weight_without_a_score_is_refused() -> None:
    table = {key: value for key, value in GOOD.items() if key != "score"}
    with pytest.raises(ConfigError) as caught:
        RuleSet.from_mapping("mine", table)
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "classifiers.mine.groups.hard.weight",
        "classifiers.mine.rules[0].when[1]",
    ]


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet.from_mapping("mine", {"levels": [], "rules": 1, "otherwise": {}, "scope": 1, "more": 1})
    assert len(caught.value.problems) == 5
