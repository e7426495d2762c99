"""The text scan held to `re`, `str.split` and `str.count`, for all kernels, widths and block boundaries."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute._core import Rules, Scan

STRUCTURAL = ("json", "schema", "csv", "extract", "parse", "format", "return")
REASONING = ("refactor", "race.condition", "trade.off", "compare", "task", "kiss")
PHRASES = ("what is", "list", "is a list", "thorough", "isk")
ODD = ("-x", "x-", ".", "a.b", "_", "0", "..k", "@")
LITERAL = ("a", "aaaa", "aaab", "?", "`", ".", "a.b", " ", "skis")
GROUPS = (
    ("structural", STRUCTURAL, "word", 0.0),
    ("reasoning", REASONING, "word", 0.0),
    ("phrases", PHRASES, "substring", 0.0),
    ("odd", ODD, "word", 0.0),
    ("literal", LITERAL, "substring", 0.0),
)
BLOCK = 63 * 64  # bytes between two sums in the kernels
KERNELS = [pytest.param(False, id="best"), pytest.param(True, id="portable")]

Make = Callable[..., Rules]


def make(groups: Sequence[tuple[str, Sequence[str], str, float]] = GROUPS, **options: Any) -> Rules:
    options = {"scope": "all", "levels": ("one",), "rules": (), "default": ("one", 1.0)} | options
    return Rules(groups=groups, **options)


RULES = {portable: make(portable=portable) for portable in (False, True)}
WORDS_ONLY = {portable: make(GROUPS[:2], portable=portable) for portable in (False, True)}


def user(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def expression(pattern: str, mode: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{guard(pattern)})\b" if mode == "word" else re.escape(pattern), re.IGNORECASE)


def guard(pattern: str) -> str:
    return "".join(char if char == "." else re.escape(char) for char in pattern)


EXPRESSIONS = {
    (pattern, mode): expression(pattern, mode) for _, texts, mode, _ in GROUPS for pattern in texts
}


def expected(groups: Any, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = {
        name: tuple(
            pattern for pattern in patterns if any(EXPRESSIONS[pattern, mode].search(text) for text in texts)
        )
        for name, patterns, mode, _ in groups
    }
    return {name: patterns for name, patterns in found.items() if patterns}


def check(rules: Rules, texts: Sequence[str], groups: Any = GROUPS) -> None:
    scan = rules.scan(user(*texts))
    assert scan.matches == expected(groups, texts)
    assert scan.words == sum(len(text.split()) for text in texts)
    assert scan.chars == scan.scope_chars == sum(map(len, texts))
    assert scan.utf8 == sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    assert scan.structure == {
        "code_fences": sum(text.count("```") for text in texts),
        "digits": sum(char in "0123456789" for text in texts for char in text),
        "question_marks": sum(text.count("?") for text in texts),
        "newlines": sum(text.count("\n") for text in texts),
    }
    assert not scan.truncated


# ------------------------------------------------------------------------------------- against the oracle

CORNERS = "\u0130\u0131\u017f\u212a\u0307\u0301ßµÿİı"  # case, combining marks
SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u2028\u2029\u3000\u200b\ufeff\x00"
OTHERS = "éØªº½²٣日本あ𝒳𐄂😀\ud800\udfff«¿×÷-_.,'’@[`{/:0129?"
FRAGMENTS = st.one_of(
    st.sampled_from([*STRUCTURAL, *REASONING, *PHRASES, *ODD, *LITERAL]),
    st.sampled_from(
        ["race condition", "race\ncondition", "traDe\u2019off", "trade😀off", "```", "``", "JSON", "TasK"]
    ),
    st.sampled_from(
        ["ta\u017f\u212a", "l\u0130\u017ft", "ta\u017fks", "ki\u017fs", "k\u0131ss", "jso", "ompare", "aaa"]
    ),
    st.sampled_from([*CORNERS, *SPACES, *OTHERS]),
    st.characters(),
)
TEXTS = st.lists(FRAGMENTS, max_size=24).map("".join)


@pytest.mark.parametrize("portable", KERNELS)
@given(texts=st.lists(TEXTS, max_size=4))
@settings(max_examples=400, deadline=None)
def test_equals_re_on_texts_full_of_corners(portable: bool, texts: list[str]) -> None:
    check(RULES[portable], texts)
    check(WORDS_ONLY[portable], texts, GROUPS[:2])


@pytest.mark.parametrize("portable", KERNELS)
@pytest.mark.parametrize(
    "filler", ["~", "é", "日", "😀", " "], ids=["ascii", "latin1", "ucs2", "ucs4", "space"]
)
@given(
    before=st.one_of(
        st.integers(0, 140),
        *[st.integers(BLOCK * k - 40, BLOCK * k + 80) for k in (1, 2)],
        st.integers(960, 1040),
    ),
    text=TEXTS,
    after=st.integers(0, 140),
)
@settings(max_examples=60, deadline=None)
def test_no_boundary_between_blocks_streams_or_vectors_hides_anything(
    portable: bool, filler: str, before: int, text: str, after: int
) -> None:
    check(RULES[portable], [filler * before + text + filler * after])
    check(RULES[portable], [filler * before, text, filler * after])


@pytest.mark.parametrize("portable", KERNELS)
@pytest.mark.parametrize("wide", ["", "\u2019", "😀"], ids=["latin1", "ucs2", "ucs4"])
@pytest.mark.parametrize("length", [63, 64, 65, 500, BLOCK + 64])
def test_a_word_is_found_at_every_place_of_a_text(portable: bool, wide: str, length: int) -> None:
    rules = WORDS_ONLY[portable]
    for place in range(length) if length < 600 else range(length - 200, length):
        text = "." * place + "compare" + "." * (length - place) + wide
        assert rules.scan(user(text)).matches == {"reasoning": ("compare",)}, place
        assert rules.scan(user(text.replace("compare", "comparex"))).matches == {}, place


@pytest.mark.parametrize("portable", KERNELS)
@pytest.mark.parametrize("mode", ["word", "substring"])
@given(
    patterns=st.lists(st.text("abk.-? ", min_size=1, max_size=6), min_size=1, max_size=12, unique=True),
    texts=st.lists(st.text("abkAK\u212a.-? \n", max_size=90), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_any_patterns_equal_re(portable: bool, mode: str, patterns: list[str], texts: list[str]) -> None:
    """Patterns that overlap, contain and end one another."""
    scan = make([("g", patterns, mode, 1.0)], portable=portable).scan(user(*texts))
    found = [p for p in patterns if any(expression(p, mode).search(text) for text in texts)]
    assert scan.matches.get("g", ()) == tuple(found)
    assert scan.counts == (len(found),)


@pytest.mark.parametrize("portable", KERNELS)
def test_all_of_the_64_patterns_are_told_apart(portable: bool) -> None:
    patterns = [f"{chr(97 + k % 26)}{k:02}{'xy' * (k % 5)}z" for k in range(64)]
    rules = make([("g", patterns, "word", 0.0)], portable=portable)
    for pattern in patterns:
        assert rules.scan(user(f"... {pattern.upper()} ...")).matches == {"g": (pattern,)}
    assert rules.scan(user(" ".join(patterns))).counts == (64,)


@pytest.mark.parametrize("portable", KERNELS)
def test_a_long_text_full_of_near_matches_hides_no_match(portable: bool) -> None:
    near = "compar formax jsonn retur " * 3000
    check(WORDS_ONLY[portable], [near + "schema" + near], GROUPS[:2])
    check(RULES[portable], ["aaa" * 30_000 + "b" + "is a lis" * 5000 + "t"])


def test_every_character_counts_as_python_has_it() -> None:
    """Word boundaries, white space and case of every code point, one by one."""
    rules = make([("g", ("k", "i", "s"), "word", 0.0)])
    known = [expression(char, "word") for char in "kis"]
    for start in range(0, sys.maxunicode + 1, 0x400):
        # One text for 1024 code points: wrong in one shows as a difference in the number of words.
        text = "".join(f"a{chr(code)}a " for code in range(start, start + 0x400))
        assert rules.scan(user(text)).words == len(text.split()), hex(start)
    interesting = [
        char for char in map(chr, range(0x3000)) if not char.isascii() or not char.isalnum()
    ] + list("日あ𝒳𐄂😀\ud800\udfff\U0010ffff")
    for char in interesting:
        text = f"{char}k {char}"
        scan = rules.scan(user(text))
        found = tuple(name for name, known_one in zip("kis", known, strict=True) if known_one.search(text))
        assert scan.matches.get("g", ()) == found, hex(ord(char))


# ---------------------------------------------------------------------------------------------- long texts


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, "😀" * 3_000_000, "é " * 2_000_000], ids=["ascii", "emoji", "latin1"]
)
def test_of_a_huge_text_only_the_ends_are_examined(text: str) -> None:
    scan = RULES[False].scan(user("json " + text + " schema"))
    assert scan.truncated
    assert scan.chars == len(text) + 12
    assert scan.utf8 == len(text.encode()) + 12
    assert scan.matches["structural"] == ("json", "schema")
    assert 0 < scan.words <= 16384


def test_what_is_examined_has_an_exact_bound() -> None:
    rules = WORDS_ONLY[False]
    whole = 1 << 20
    middle = "x " * 8192 + "json" + " y" * (whole // 2 - 8194)
    assert len(middle) == whole
    scan = rules.scan(user(middle))
    assert (scan.truncated, scan.matches) == (False, {"structural": ("json",)})
    scan = rules.scan(user(middle + " "))
    assert (scan.truncated, scan.matches, scan.words) == (True, {}, 8192)
    scan = rules.scan(user(middle, "y" * 8192 + "json" + "y" * 8188, " json "))
    assert (scan.truncated, scan.words) == (False, len(middle.split()) + 2)  # none of these is long
    scan = rules.scan(user("x " * (whole // 2), "y" * 8193 + " json " + "y" * 8193))
    assert (scan.truncated, scan.matches) == (True, {})


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("message", "chars", "images"),
    [
        ({}, 0, 0),
        ({"role": "user"}, 0, 0),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, 0, 0),
        ({"role": "tool", "tool_call_id": "1", "content": "json"}, 4, 0),
        ({"role": "developer", "content": "json"}, 4, 0),
        ({"role": 7, "content": 7}, 0, 0),
        ({"role": "user", "content": {"type": "text", "text": "json"}}, 0, 0),
        ({"role": "user", "content": []}, 0, 0),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {}}],
            },
            2,
            1,
        ),
        ({"role": "user", "content": ({"type": "input_text", "text": "ab"}, {"type": "input_image"})}, 2, 1),
        (
            {
                "role": "user",
                "content": [
                    None,
                    1,
                    "abc",
                    {},
                    {"type": None},
                    {"type": "text"},
                    {"type": "text", "text": 1},
                ],
            },
            3,
            0,
        ),
        ({"role": "user", "content": [{"type": "input_audio"}, {"type": "file"}, ["text"]]}, 0, 0),
        (MappingProxyType({"role": "user", "content": "abc"}), 3, 0),
        (
            MappingProxyType({"role": "user", "content": [MappingProxyType({"type": "text", "text": "é"})]}),
            1,
            0,
        ),
    ],
)
def test_messages_of_every_shape(message: Mapping[str, Any], chars: int, images: int) -> None:
    scan = RULES[False].scan([message, {"role": "user", "content": "x"}])
    assert (scan.chars, scan.images, scan.messages) == (chars + 1, images, 2)
    assert scan.turns == 1 + (message.get("role") == "user")
    assert scan.average == (chars + 1) / 2


def test_nothing_at_all() -> None:
    scan = RULES[False].scan([])
    assert (scan.level, scan.average, scan.words, scan.matches, scan.messages) == ("one", 0.0, 0, {}, 0)
    assert RULES[False].scan(user("")).words == 0
    assert RULES[False].scan(iter(user("a b"))).words == 2


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ("json", "not str"),
        ({"role": "user"}, "not dict"),
        ([{"role": "user"}, "x"], r"messages\[1\]"),
        ([None], r"messages\[0\] must be a mapping, not NoneType"),
        ([["role", "user"]], r"messages\[0\]"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(messages: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        RULES[False].scan(messages)


def test_the_scope_of_user_leaves_the_others_out() -> None:
    rules = make(GROUPS[:1], scope="user")
    messages = [
        {"role": "system", "content": "json é ? 1 ```\n"},
        {"role": "user", "content": "schema 2"},
        {"role": "assistant", "content": [{"type": "text", "text": "csv"}]},
        {"role": "user", "content": [{"type": "text", "text": "parse"}]},
    ]
    scan = rules.scan(messages)
    assert scan.matches == {"structural": ("schema", "parse")}
    assert (scan.words, scan.scope_chars, scan.chars, scan.utf8) == (3, 13, 31, 32)
    assert scan.structure == {"code_fences": 0, "digits": 1, "question_marks": 0, "newlines": 0}
    assert (scan.messages, scan.turns) == (4, 2)


def test_nothing_runs_on_from_one_text_into_the_next() -> None:
    parts = [
        {"type": "text", "text": "``"},
        {"type": "text", "text": "`js"},
        {"type": "text", "text": "on race"},
    ]
    scan = RULES[False].scan([{"role": "user", "content": parts}, *user("condition wh", "at is")])
    assert scan.structure["code_fences"] == 0
    assert scan.structure["newlines"] == 0
    assert "structural" not in scan.matches
    assert "reasoning" not in scan.matches
    assert "what is" not in scan.matches.get("phrases", ())


# --------------------------------------------------------------------------------------- score and rules


def judge(conditions: Sequence[tuple[str, str, float]], messages: Any, **call: int) -> Scan:
    rules = make(
        [("a", ("one", "two", "three"), "word", 2.0), ("b", ("two", "four"), "substring", -0.5)],
        levels=("yes", "no"),
        base=1.0,
        low=0.0,
        high=5.5,
        rules=[("yes", 0.25, conditions)],
        default=("no", 0.5),
    )
    return rules.scan(messages, **call)


FEATURES = {
    "average": 9.0,
    "chars": 18.0,
    "utf8": 19.0,
    "scope_chars": 18.0,
    "words": 4.0,
    "score": 4.5,
    "max_tokens": 70.0,
    "tools": 3.0,
    "turns": 2.0,
    "messages": 2.0,
    "images": 0.0,
    "total": 3.0,
    "code_fences": 1.0,
    "digits": 2.0,
    "question_marks": 1.0,
    "newlines": 1.0,
    "group.a": 2.0,
    "group.b": 1.0,
}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_compares_every_way(feature: str) -> None:
    messages = user("oné two? one\n", "```12")
    value = FEATURES[feature]
    truth = {"<": (0, 0, 1), "<=": (0, 1, 1), ">": (1, 0, 0), ">=": (1, 1, 0), "==": (0, 1, 0)}
    for operator, answers in truth.items():
        for bound, answer in zip((value - 0.5, value, value + 0.5), answers, strict=True):
            scan = judge([(feature, operator, bound)], messages, max_tokens=70, tools=3)
            assert scan.feature(feature) == value
            assert (scan.level, scan.rule) == (("yes", 0) if answer else ("no", -1)), (operator, bound)
            assert scan.confidence == (0.25 if answer else 0.5)


def test_the_first_rule_of_which_all_conditions_hold_decides() -> None:
    rules = make(
        levels=("a", "b", "c"),
        rules=[
            ("c", 1, [("chars", ">", 1), ("chars", "<", 3)]),
            ("b", 1, [("chars", ">", 1)]),
            ("c", 1, []),
        ],
        default=("a", 1),
    )
    picked = [
        (scan.level, scan.level_index, scan.rule) for scan in (rules.scan(user("x" * n)) for n in (1, 2, 3))
    ]
    assert picked == [("c", 2, 2), ("c", 2, 0), ("b", 1, 1)]


def test_the_score_is_held_to_its_bounds_and_counts_each_pattern_once() -> None:
    assert judge([], user("one two three one")).score == 5.5
    assert judge([], user("four fourfour")).score == 0.5
    assert judge([], user("two")).score == 2.5
    both = make([("a", ("two", "x"), "word", 1.0), ("b", ("TWO",), "word", 1.0)]).scan(user("two"))
    assert (both.total, both.counts, both.matches) == (1, (1, 1), {"a": ("two",), "b": ("TWO",)})


def test_a_scan_is_closed_and_final() -> None:
    scan = RULES[False].scan(user("x"))
    with pytest.raises(AttributeError):
        scan.chars = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Scan()
    with pytest.raises(KeyError):
        scan.feature("group.nothing")
    assert "x" not in repr(RULES[False].scan(user("xxxxxxxx"))).replace("examined", "")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scope": "both"}, "scope"),
        ({"levels": ()}, "levels"),
        ({"levels": ("one", "one")}, "levels"),
        ({"default": ("two", 1.0)}, "default: unknown level 'two'"),
        ({"default": ("one", 1.5)}, "confidence"),
        ({"low": 2.0, "high": 1.0}, "low"),
        ({"base": float("nan")}, "finite"),
        ({"rules": [("one", 1.0, [("avg", "<", 1)])]}, "rule 0: unknown feature 'avg'"),
        ({"rules": [("one", 1.0, []), ("one", 1.0, [("chars", "!=", 1)])]}, "rule 1: unknown operator"),
        ({"rules": [("one", 1.0, [("chars", "<", float("inf"))])]}, "finite"),
        ({"groups": [("g", (), "word", 0.0)]}, "group 'g': patterns"),
        ({"groups": [("g", "json", "word", 0.0)]}, "group 'g': patterns"),
        ({"groups": [("g", ("",), "word", 0.0)]}, "1 to 256"),
        ({"groups": [("g", ("x" * 257,), "word", 0.0)]}, "1 to 256"),
        ({"groups": [("g", ("é",), "word", 0.0)]}, "outside ASCII"),
        ({"groups": [("g", ("a\nb",), "word", 0.0)]}, "line feed"),
        ({"groups": [("g", ("a", "A"), "word", 0.0)]}, "twice"),
        ({"groups": [("g", ("a",), "regex", 0.0)]}, "mode 'regex'"),
        ({"groups": [("g", ("a",), "word", float("inf"))]}, "weight"),
        ({"groups": [("g", ("a",), "word", 0.0)] * 2}, "two groups"),
        ({"groups": [("g", [f"w{k}" for k in range(65)], "word", 0.0)]}, "more than 64"),
        ({"groups": [(f"g{k}", ("a",), "word", 0.0) for k in range(17)]}, "more than 16"),
        ({"groups": [("g", ["." * 12 + "ab" + "." * 60], "word", 0.0)]}, "too many wildcards"),
    ],
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"groups": GROUPS} | change
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_many_threads_scan_with_one_object() -> None:
    texts = ["json " * n + "日" * n for n in range(1, 60)]
    want = [RULES[False].scan(user(text)).words for text in texts]
    wrong: list[str] = []

    def work() -> None:
        for text, words in zip(texts, want, strict=True):
            scan = RULES[False].scan(user(text))
            if scan.words != words or scan.matches["structural"] != ("json",):
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
