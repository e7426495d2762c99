"""Validation rules and what they say; rates and drift against a plain reading of the definition."""

from __future__ import annotations

import contextlib
import json
import random
import re
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from children import ended, forked
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import ConfigError, config
from fastroute.config import QualityConfig
from fastroute.errors import BadRequestError
from fastroute.events import DriftDetected, Event, Hooks
from fastroute.quality import Rates, Validator, feedback, read_json, with_feedback
from fastroute.types import Choice, Completion, FunctionCall, Message, ToolCall

SECRET = "zanzibar"  # stands in answers; must stand in no reason
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "age": {"type": "integer", "minimum": 0},
        "role": {"enum": ["admin", "guest"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def answer(*texts: str | None, finish: str = "stop", **message: Any) -> Completion:
    choices = tuple(
        Choice(index, Message(content=text, **message), finish) for index, text in enumerate(texts)
    )
    return Completion(id="id", created=0, model="m", choices=choices)


# ------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        ' \n{"name": "Ada", "age": 36}\n ',
        '```json\n{"name": "Ada", "age": 36}\n```',
        '```\n{"name": "Ada", "age": 36, "born": "1815-12-10"}\n```\n',
        '```JSON \r\n{"name": "Ada", "age": 36}\r\n```',
    ],
)
def test_an_answer_that_fits_the_schema_is_good(text: str) -> None:
    assert Validator(PERSON).judge(answer(text)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty, not JSON"),
        (" \n", "it is empty, not JSON"),
        (SECRET, "it is not JSON: Expecting value at line 1, column 1"),
        (f'Here: {{"name": "{SECRET}"}}', "it is not JSON: Expecting value at line 1, column 1"),
        (f'{{"name": "{SECRET}", "age": 1}} Enjoy!', "it is not JSON: Extra data at line 1, column 32"),
        ('```json\n```json\n{"name": "Ada", "age": 1}\n```\n```', "it is not JSON"),
        ('```json\n{"name": "Ada", "age": 1}\n```\nand\n```json\n{}\n```', "it is not JSON"),
        ('```python\n{"name": "Ada", "age": 1}\n```', "it is not JSON"),
        (f'{{"name": "{SECRET}", "age": NaN}}', "it is not JSON: NaN is not a JSON number"),
        ('{"name": "Ada", "age": -Infinity}', "it is not JSON: -Infinity is not a JSON number"),
        ('{"name": "Ada", "age": 1e999}', "its JSON has a number that is too large"),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", "its JSON has a number of too many digits"),
        ("[" * 200_000, "it is JSON nested more than 128 deep"),
        ('{"name": "Ada", "age": 1, "age": 2}', "its JSON has an object with the same key twice"),
        (f'["{SECRET}"]', "the JSON must be of type object"),
        ("{}", "the JSON must have name, age"),
        (f'{{"name": "Ada", "age": "{SECRET}"}}', "$.age must be of type integer"),
        ('{"name": "Ada", "age": true}', "$.age must be of type integer"),
        ('{"name": "A", "age": -1}', "$.name must satisfy minLength: 2; $.age must satisfy minimum: 0"),
        (f'{{"name": "Ada", "age": 1, "role": "{SECRET}"}}', '$.role must be one of ["admin","guest"]'),
        ('{"name": "Ada", "age": 1, "tags": ["x", 2]}', "$.tags[1] must be of type string"),
        (f'{{"name": "Ada", "age": 1, "born": "{SECRET}"}}', '$.born must satisfy format: "date"'),
        (
            f'{{"name": "Ada", "age": 1, "{SECRET}": 1}}',
            "the JSON must have no other properties than the schema names",
        ),
    ],
)
def test_a_bad_answer_is_told_apart_without_being_quoted(text: str, reason: str) -> None:
    said = Validator(PERSON).judge(answer(text))
    assert said is not None
    assert said.startswith(reason)
    assert SECRET not in said


def test_a_name_that_the_answer_made_up_is_not_shown() -> None:
    rule = {"additionalProperties": {"type": "object", "properties": {"kind": {"type": "string"}}}}
    assert (
        Validator(rule).judge(answer(f'{{"{SECRET}": {{"kind": 1}}}}')) == "$.*.kind must be of type string"
    )


def test_at_most_three_problems_are_listed() -> None:
    said = Validator({"items": {"type": "string"}}).judge(answer(str(list(range(100_000)))))
    assert said is not None
    assert said.count("must be of type string") == 3


def test_alternatives_say_how_many_there_are() -> None:
    rule = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert Validator(rule).judge(answer("1")) == "the JSON must match at least one of 2 alternatives"
    assert (
        Validator({"oneOf": [{}, {}]}).judge(answer("1"))
        == "the JSON must match exactly one of 2 alternatives"
    )


def test_an_answer_nested_deeper_than_the_schema_can_follow_is_bad() -> None:
    rule = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    validator = Validator(rule)
    assert validator.judge(answer("[[[]]]")) is None
    assert validator.judge(answer("[" * 900 + "]" * 900)) == "it is JSON nested more than 128 deep"


def test_a_long_expectation_is_cut() -> None:
    said = Validator({"enum": ["x" * 5000]}).judge(answer("1"))
    assert said is not None
    assert len(said) < 350


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ({"type": "objekt"}, "route.validate.type: must be one of array, boolean, integer"),
        (
            {"properties": {"age": {"type": "int"}}},
            "route.validate.properties.age.type: must be one of",
        ),
        (
            {"properties": {"a": {"minLength": -1}}},
            "route.validate.properties.a.minLength: must satisfy minimum: 0, not -1",
        ),
        ({"pattern": "("}, "route.validate.pattern: must satisfy format"),
        ({"required": "name"}, "route.validate.required: must be of type array, not 'name'"),
        (
            {"anyOf": [{"type": "string"}, {"enum": 3}]},
            "route.validate.anyOf[1].enum: must be of type array, not 3",
        ),
        ({"$ref": "#/$defs/none"}, "\"$ref\" '#/$defs/none' was not found"),
        ({"$ref": "#none"}, "\"$ref\" '#none' was not found"),
        ({"items": {"$ref": "https://schemas.example.com/x.json"}}, "was not found"),
        (
            {"$ref": "#/own/x", "own": {"x": {"$ref": "https://schemas.example.com/x"}}},
            "\"$ref\" 'https://schemas.example.com/x' was not found",
        ),
        ({"$ref": "#/own/x", "own": {"x": {"type": "int"}}}, '"#/own/x".type: must be one of array'),
        ({"$ref": "#/title", "title": "x"}, "\"$ref\" '#/title' is not a schema"),
        ({"$ref": "#"}, "is circular"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
            "is circular",
        ),
        ({"$schema": "https://example.com/draft-99"}, '"$schema": '),
        ({1: 2}, "must contain JSON values only"),
        ({"default": object()}, "must contain JSON values only"),
    ],
)
def test_a_wrong_schema_is_refused_at_once_with_its_place(rule: Any, place: str) -> None:
    for make in (Validator, Validator.of):
        with pytest.raises(BadRequestError) as caught:
            make(rule)
        assert place in str(caught.value)
        assert str(caught.value).startswith("route.validate")


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"y": {}},
            "$ref": "#/definitions/y",
        },
        {"$id": "https://a.example/b", "$defs": {"q": {"$id": "c", "$anchor": "z"}}, "$ref": "c#z"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_references_inside_and_to_published_drafts_are_followed(rule: dict[str, Any]) -> None:
    assert Validator(rule).judge(answer('{"type": "object"}')) is None


def test_a_schema_is_compiled_once_and_kept_apart_from_the_callers_mapping() -> None:
    rule: dict[str, Any] = {"type": "object"}
    validator = Validator.of(rule)
    assert Validator.of({"type": "object"}) is validator
    assert Validator.of(validator) is validator
    direct = Validator(rule)
    rule["type"] = "array"
    assert validator.judge(answer("{}")) is None
    assert direct.judge(answer("{}")) is None
    assert Validator.of(rule).judge(answer("{}")) is not None


def test_without_jsonschema_the_command_that_mends_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setitem(sys.modules, "jsonschema.validators", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastroute\[validate\]'"):
        Validator({"type": "object"})
    assert Validator("x").judge(answer("x")) is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["{}", "```json\n{}\n```", "```\n{}\n```", "  {}  "]))
def test_any_json_reads_as_itself_bare_or_fenced(value: Any, frame: str) -> None:
    assert read_json(frame.replace("{}", json.dumps(value))) == value


@given(st.text())
def test_reading_any_text_raises_nothing_but_value_errors(text: str) -> None:
    with contextlib.suppress(ValueError):
        read_json(text)


# ------------------------------------------------------------------------------------ patterns and callables


def test_a_pattern_is_searched_for() -> None:
    validator = Validator(r"(?m)^total: \d+$")
    assert validator.judge(answer("sum\ntotal: 12\n")) is None
    assert validator.judge(answer(SECRET)) == r"it does not match the pattern (?m)^total: \d+$"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "(a",
            "route.validate: invalid regular expression at character 0: missing ), unterminated subpattern",
        ),
        ("a{1}{2}{3}*+?", "invalid regular expression"),
        ("", "empty pattern"),
        (5, "or a callable, not int"),
        (None, "or a callable, not NoneType"),
        (b"x", "or a callable, not bytes"),
        (dict, "or a callable, not a class"),
    ],
)
def test_what_is_no_rule_is_refused_at_once(rule: Any, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        Validator(rule)
    assert message in str(caught.value)


def test_a_coroutine_function_is_refused() -> None:
    async def later(completion: Completion) -> bool:
        return True

    class Later:
        async def __call__(self, completion: Completion) -> bool:
            return True

    for rule in (later, Later()):
        with pytest.raises(BadRequestError, match="coroutine"):
            Validator(rule)


def _raises(completion: Completion) -> bool:
    raise KeyError(completion.text)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (lambda reply: None, None),
        (lambda reply: True, None),
        (lambda reply: False, "the validator returned False"),
        (lambda reply: "too  short\nby far", "too short by far"),
        (lambda reply: "", "the validator gave no reason"),
        (lambda reply: "x" * 10_000, "x" * 299 + "…"),
        (lambda reply: 1, "the validator returned a value of type int, not None, a bool or a reason"),
        (_raises, "the validator raised KeyError"),
    ],
)
def test_what_a_callable_says(rule: Callable[[Completion], object], reason: str | None) -> None:
    assert Validator(rule).judge(answer(SECRET)) == reason


def test_a_callable_is_given_the_completion_and_may_be_interrupted() -> None:
    seen: list[Completion] = []
    reply = answer("x")
    assert Validator(seen.append).judge(reply) is None
    assert seen == [reply]

    def interrupted(reply: Completion) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Validator(interrupted).judge(reply)


def test_every_choice_is_judged() -> None:
    validator = Validator("yes")
    assert validator.judge(answer("yes", "yes!")) is None
    assert (validator.judge(answer("yes", "no")) or "").startswith("choice 1: ")
    assert (
        validator.judge(Completion(id="id", created=0, model="m", choices=())) == "the answer has no choices"
    )


def test_tool_calls_refusals_and_cut_answers() -> None:
    call = ToolCall("1", function=FunctionCall("f", "{}"))
    validator = Validator({"type": "object"})
    assert validator.judge(answer(None, tool_calls=(call,))) is None
    assert validator.judge(answer("[]", tool_calls=(call,))) is not None
    assert validator.judge(answer(None, refusal=SECRET)) == "the model refused to answer"
    assert validator.judge(answer(None)) == "it is empty, not JSON"
    cut = validator.judge(answer('{"a": ', finish="length"))
    assert cut is not None
    assert cut.endswith("(it was cut off at the token limit)")


def test_feedback_follows_the_answer_that_failed() -> None:
    asked = [{"role": "user", "content": "An object, please"}]
    sent = with_feedback(asked, answer("[]"), "the JSON must be of type object")
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == "[]"
    assert sent[2] == feedback("the JSON must be of type object")
    assert "the JSON must be of type object" in sent[2]["content"]
    assert len(asked) == 1


def test_a_validator_shows_no_rule() -> None:
    assert repr(Validator(SECRET)) == "Validator(pattern)"


# ------------------------------------------------------------------------------------------- configuration


def test_the_table_is_read_and_checked() -> None:
    base = {
        "providers": {"local": {"base_url": "http://localhost:1/v1"}},
        "endpoints": [{"provider": "local", "model": "m"}],
    }
    read = config.load({**base, "quality": {"drift": 0.1, "window": 20, "min_samples": 10}}, environ={})
    assert read.quality == QualityConfig(drift=0.1, window=20, min_samples=10)
    assert config.load(base, environ={}).quality == QualityConfig(drift=0.05, window=500, min_samples=None)
    assert config.load(base, environ={"FASTROUTE_QUALITY__DRIFT": "0.2"}).quality.drift == 0.2
    for table, path in (
        ({"drift": 0}, "quality.drift"),
        ({"drift": "5 %"}, "quality.drift"),
        ({"window": 5}, "quality.window"),
        ({"window": 40, "min_samples": 41}, "quality.min_samples"),
        ({"threshold": 1}, "quality.threshold"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load({**base, "quality": table}, environ={})
        assert [problem.split(":")[0] for problem in caught.value.problems] == [path]


# ---------------------------------------------------------------------------------------------------- drift


class _Reading:
    """The definition, read out of a plain list: slow, and plainly right."""

    def __init__(self, drift: float, window: int, least: int) -> None:
        self.drift, self.window, self.least = Fraction(str(drift)), window, least
        self.results: list[int] = []
        self.said = 0

    def rates(self) -> tuple[list[int], list[int]]:
        return self.results[-self.window :], self.results[-11 * self.window : -self.window]

    def record(self, good: bool) -> tuple[Fraction, Fraction] | None:
        self.results.append(int(good))
        recent, baseline = self.rates()
        if len(recent) < self.least or len(baseline) < self.least:
            return None
        rate, usual = Fraction(sum(recent), len(recent)), Fraction(sum(baseline), len(baseline))
        if abs(rate - usual) <= self.drift / 2:
            self.said = 0
        direction = 1 if rate - usual > self.drift else -1 if usual - rate > self.drift else 0
        if direction and direction != self.said:
            self.said = direction
            return rate, usual
        return None


def listening(**settings: Any) -> tuple[Rates, list[DriftDetected]]:
    hooks = Hooks()
    heard: list[DriftDetected] = []
    hooks.add(heard.append)
    return Rates(QualityConfig(**settings), hooks), heard


runs = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 1, 2, 3, 7])), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(runs, st.sampled_from([0.05, 0.1, 0.3]), st.sampled_from([10, 13, 20]), st.integers(1, 10))
def test_rates_and_events_are_those_of_a_plain_reading(
    runs: list[tuple[int, int]], drift: float, window: int, least: int
) -> None:
    rates, heard = listening(drift=drift, window=window, min_samples=least)
    plain = _Reading(drift, window, least)
    expected = []
    number = 0
    for length, every in runs:
        for _ in range(length):
            number += 1
            good = every == 1 or (every > 1 and number % every != 0)
            rates.record("m", None, good)
            moved = plain.record(good)
            if moved is not None:
                expected.append(moved)
    assert [(event.rate, event.baseline) for event in heard] == [(float(a), float(b)) for a, b in expected]
    (rate,) = rates.snapshot()
    recent, baseline = plain.rates()
    assert (rate.samples, rate.baseline_samples) == (len(recent), len(baseline))
    assert rate.rate == sum(recent) / len(recent)
    assert rate.baseline == (sum(baseline) / len(baseline) if baseline else None)
    assert rate.drifting == bool(plain.said)


def test_a_fall_is_said_once_and_a_recovery_once() -> None:
    rates, heard = listening(window=100)
    for _ in range(1000):
        rates.record("m", "premium", True)
    assert heard == []
    for number in range(200):
        rates.record("m", "premium", number % 5 != 0)
    assert heard == [
        DriftDetected(
            model="m",
            tier="premium",
            measure="success",
            rate=0.94,
            baseline=1.0,
            samples=100,
            baseline_samples=926,
        )
    ]
    assert heard[0].rate < heard[0].baseline - 0.05
    assert rates.snapshot()[0].drifting
    for _ in range(1200):
        rates.record("m", "premium", True)
    assert not rates.snapshot()[0].drifting


def test_exactly_five_points_is_not_more_than_five_points() -> None:
    rates, heard = listening(window=100)
    for _ in range(1000):
        rates.record("m", None, True)
    for number in range(100):
        rates.record("m", None, number >= 5)
    assert rates.snapshot()[0].rate == 0.95
    assert heard == []
    rates, heard = listening(window=100)
    for _ in range(1000):
        rates.record("m", None, True)
    for _ in range(6):
        rates.record("m", None, False)
    assert [(event.rate, event.baseline) for event in heard] == [(0.94, 1.0)]


def test_with_the_usual_settings_chance_alone_is_no_drift() -> None:
    """Draws of an unchanging rate of 90 %; with a window of 100, as it once was, ten of these are heard."""
    drawn = random.Random(1)
    results = [drawn.random() < 0.9 for _ in range(6000)]
    for window, alarms in ((500, 0), (100, 10)):
        rates, heard = listening(window=window)
        for good in results:
            rates.record("m", None, good)
        assert (len(heard) >= alarms) if alarms else (heard == [])
    usual, heard = listening()
    assert usual.window == usual.min_samples == 500
    for good in results:
        usual.record("m", None, good)
    for _ in range(400):
        usual.record("m", None, drawn.random() < 0.8)  # and a fall of ten points is one
    assert [event.rate < event.baseline for event in heard] == [True]


def test_nothing_is_said_before_there_is_enough_to_go_by() -> None:
    rates, heard = listening(window=100, min_samples=50)
    for _ in range(100):
        rates.record("m", None, True)
    for _ in range(49):
        rates.record("m", None, False)
    assert heard == []
    rates.record("m", None, False)
    assert len(heard) == 1


def test_a_new_level_becomes_the_baseline() -> None:
    rates, heard = listening(window=10, min_samples=10)
    for good in [True] * 110 + [False] * 110:
        rates.record("m", None, good)
    (rate,) = rates.snapshot()
    assert (rate.baseline, rate.drifting) == (0.0, False)
    assert len(heard) == 1


def test_models_tiers_and_measures_are_apart() -> None:
    rates, heard = listening(window=10, min_samples=5)
    for number in range(40):
        rates.record("a", "premium", True, valid=number < 20)
        rates.record("a", "budget", True)
        rates.record("b", "premium", False, valid=None)
    assert [(event.model, event.tier, event.measure) for event in heard] == [("a", "premium", "validation")]
    found = {(rate.model, rate.tier, rate.measure): rate.rate for rate in rates.snapshot()}
    assert found == {
        ("a", "premium", "success"): 1.0,
        ("a", "premium", "validation"): 0.0,
        ("a", "budget", "success"): 1.0,
        ("b", "premium", "success"): 0.0,
    }


def test_a_hook_may_use_the_rates_it_hears_of() -> None:
    hooks = Hooks()
    rates = Rates(QualityConfig(window=10, min_samples=5), hooks)
    seen: list[int] = []

    def look(event: Event) -> None:
        # From another thread, so that a lock held across hooks would show whatever its kind.
        thread = threading.Thread(target=lambda: seen.append(len(rates.snapshot())))
        thread.start()
        thread.join(10)

    hooks.add(look)
    for number in range(30):
        rates.record("m", None, number < 20)
    assert seen == [1]


def test_threads_lose_no_result() -> None:
    rates, _ = listening(window=4000, min_samples=4000)

    def work() -> None:
        for number in range(1000):
            rates.record("m", None, number % 4 != 0, valid=number % 2 == 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(rate.rate, rate.samples) for rate in rates.snapshot()] == [(0.75, 4000), (0.5, 4000)]


def test_a_forked_child_counts_on_though_the_lock_was_held() -> None:
    rates, _ = listening(window=10, min_samples=10)
    for number in range(150):
        rates.record("m", None, number % 3 != 0)
    before = rates.snapshot()
    rates.series["m", None, "success"].good += 5  # as a thread that was half-way through would leave it

    def look() -> None:
        rates.after_fork()
        assert rates.snapshot() == before

    with rates.lock:
        child = forked(look)
    assert ended(child) == 0


def test_the_examples_of_the_page_run() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "quality.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    assert len(blocks) == 7
    exec(compile("\n".join(blocks), "docs/quality.md", "exec"), {})
