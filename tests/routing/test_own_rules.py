"""A user's own rule sets: patterns held to `re`, the configuration's tables, and the command to try them."""

from __future__ import annotations

import copy
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastroute
from fastroute._core import SCAN_FEATURES, Rules, check_pattern
from fastroute.cli.group import cli
from fastroute.config import check, load
from fastroute.config.rules import RuleSet
from fastroute.routing.classifier import Classifier
from fastroute.testing import Provider


def rules_of(*patterns: str, mode: str = "pattern", portable: bool = False) -> Rules:
    return Rules(
        groups=[("g", patterns, mode, 0.0)],
        scope="all",
        levels=("one",),
        rules=(),
        default=("one", 1.0),
        portable=portable,
    )


def found(rules: Rules, *texts: str) -> tuple[str, ...]:
    matches: tuple[str, ...] = rules.scan([{"role": "user", "content": text} for text in texts]).matches.get(
        "g", ()
    )
    return matches


def is_usable(pattern: str) -> bool:
    try:
        check_pattern(pattern, "pattern")
    except ValueError:
        return False
    return True


def searched(pattern: str, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # for what may come to mean something in a class
        return re.search(pattern, text, re.IGNORECASE) is not None


# ------------------------------------------------------------------------------------- against the oracle

ATOMS = st.one_of(
    st.sampled_from(["a", "b", "k", "S", "i", "1", "_", " ", r"\.", r"\n", "-", "'"]),
    st.sampled_from([".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S"]),
    st.sampled_from(
        ["[ab]", "[^ab]", "[a-k]", "[^a-z ]", r"[\d_]", r"[^\s]", r"[^\W1]", "[]a]", "[^]k]", "[a-]", "[S-b]"]
    ),
)
ASSERTIONS = st.sampled_from(["^", "$", r"\b", r"\B"])
REPEATS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{,2}", "*?", "+?", "{0,2}?"])


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds(lambda part, repeat: f"(?:{part}){repeat}", inner, REPEATS),
    )


PATTERNS = st.recursive(
    st.one_of(ATOMS, ATOMS, ATOMS, ASSERTIONS, st.builds("{}{}".format, ATOMS, REPEATS)),
    joined,
    max_leaves=10,
)
LETTERS = "abkKsSi1_ .\n-'" + "\u0130\u0131\u017f\u212a\u0307éÊ²\x80\xa0٣日’\u2003😀𝟗\ud800"
TEXTS = st.text(LETTERS, max_size=24)


@pytest.mark.parametrize("wide", ["", "’", "😀"], ids=["latin1", "ucs2", "ucs4"])
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=4, unique=True), texts=st.lists(TEXTS, max_size=6))
@settings(max_examples=400, deadline=None)
def test_random_patterns_equal_re(wide: str, patterns: list[str], texts: list[str]) -> None:
    usable = [pattern for pattern in patterns if is_usable(pattern)]
    assume(usable)
    rules = rules_of(*usable)
    for text in texts:
        text += wide
        assert found(rules, text) == tuple(p for p in usable if searched(p, text)), text


def test_every_character_is_what_re_takes_it_for() -> None:
    """Classes and case of every code point, in one text of a thousand at a time."""
    patterns = [r"<\d>", r"<\w>", r"<\s>", "<i>", "<[j-s]>", "<[^a-z]>", r"<\b", "<.>"]
    rules = {pattern: rules_of(pattern) for pattern in patterns}
    codes = [*range(0x3100), *range(0xFF00, 0xFFFF), *range(0x1D7C0, 0x1D800), 0x1F600, 0xD800, 0x10FFFF]
    for pattern, own in rules.items():
        expression = re.compile(pattern, re.IGNORECASE)
        for code in codes:
            text = f"<{chr(code)}>"
            assert bool(found(own, text)) == bool(expression.search(text)), (pattern, hex(code))


LONG = (
    r"\bx\d+y\b",
    "p.*q",
    r"^s(?:.|\n)*t$",
    "[a-k]{3}z",
    "p.{0,60}w",
    r"[pq](?:x\d|.){2,30}y",
    r"~{700}",
    r"a(?:bc)*d",
    r"\bw\B.",
)


@pytest.mark.parametrize("filler", ["~", "é", "日", "😀", " "])
@given(
    before=st.integers(0, 4300),
    middle=st.lists(
        st.sampled_from(["x1", "2y", "p", "q", "s", "t", "\n", "abc", "bcd", "kkkz", " ", "w", "~"]),
        max_size=9,
    ).map("".join),
    between=st.integers(0, 4300),
    after=st.sampled_from(["", "y", "q", "t", "d", "w", "t\n"]),
)
@settings(max_examples=60, deadline=None)
def test_no_boundary_between_streams_or_spans_hides_anything(
    filler: str, before: int, middle: str, between: int, after: str
) -> None:
    text = filler * before + middle + filler * between + after
    for candidate in (text, "s" + text):
        want = tuple(p for p in LONG if re.search(p, candidate, re.IGNORECASE))
        assert found(LONG_RULES, candidate) == want


LONG_RULES = rules_of(*LONG)


def test_a_pattern_ends_at_a_place_of_every_kind() -> None:
    """One match, moved through two spans, so that every seam lies within it once."""
    rules = rules_of(r"\bab+c\b", "x[^xy]{40}y")
    for length in (300, 5000):
        for place in range(0, length, 1 if length == 300 else 7):
            filler = "." * place
            assert found(rules, f"{filler}abbbc{'.' * (length - place)}") == (r"\bab+c\b",)
            assert found(rules, f"{filler}x{'.' * 40}y{'.' * (length - place)}") == ("x[^xy]{40}y",)
            assert found(rules, f"{filler}x{'.' * 39}y{'.' * (length - place)}") == ()


def test_nothing_is_found_across_texts_and_an_end_is_a_texts_own() -> None:
    rules = rules_of("a.?b", "^b", "a$", r"(?:.|\n)*never")
    assert found(rules, "a", "b") == ("^b", "a$")
    assert found(rules, "xa!", "xb") == ()
    assert found(rules, "", "a\n") == ("a$",)
    assert found(rules, "a\n\n") == ()


def test_a_cut_is_not_an_end_of_the_text() -> None:
    rules = rules_of("^b", "a$")
    text = "x" * 8191 + "a" + "." * (1 << 20) + "b" + "x" * 8191
    assert found(rules, text) == ()
    assert found(rules, "b" + text + "a") == ("^b", "a$")


def test_the_modes_count_together() -> None:
    rules = Rules(
        groups=[
            ("w", ("cat", "dog"), "word", 1.0),
            ("p", (r"c\w+s", "dogs?"), "pattern", 2.0),
            ("s", ("og",), "substring", 4.0),
        ],
        scope="all",
        levels=("one",),
        rules=(),
        default=("one", 1.0),
    )
    scan = rules.scan([{"role": "user", "content": "cats and a dog"}])
    assert scan.matches == {"w": ("dog",), "p": (r"c\w+s", "dogs?"), "s": ("og",)}
    assert (scan.counts, scan.total, scan.score) == ((1, 2, 1), 4, 9.0)
    long = rules.scan([{"role": "user", "content": "." * 9000 + "cats and a dog" + "." * 9000}])
    assert long.matches == scan.matches


def test_case_is_ignored_but_not_after_a_backslash() -> None:
    assert found(rules_of(r"a\s", r"A\S"), "a ") == (r"a\s",)
    with pytest.raises(ValueError, match="twice"):
        rules_of("a", "a")


# ----------------------------------------------------------------------------------------- linear, or refused


MATCHING = {
    "^(a+)+$": "aaa",
    "(a|aa)+b": "aaab",
    "(a*)*b": "b",
    "(?:a|a)*c": "aac",
    "a.*a.*a.*x": "aaax",
    "([a-z]+)*[0-9]": "a1",
}


@pytest.mark.parametrize("pattern", MATCHING)
def test_what_makes_others_slow_is_linear(pattern: str) -> None:
    """With backtracking these take longer than anybody would wait, so that it ends is the test."""
    rules = rules_of(pattern)
    text = "a" * 100_000 + "!"
    assert found(rules, text) == ()
    assert found(rules, MATCHING[pattern]) == (pattern,)


def test_many_open_patterns_share_a_few_automata() -> None:
    """In one automaton, what each has seen so far would multiply."""
    patterns = [f"{letter}oo.*{letter}ar" for letter in "bcdfghjklmnp"]
    rules = rules_of(*patterns)
    assert found(rules, "coo boo nar car moo mar") == ("coo.*car", "moo.*mar")
    with pytest.raises(ValueError, match="too many and too open-ended"):
        rules_of(*[f"{a}(?:.|\\n)*{b}(?:.|\\n){{9}}z" for a in "bcdfgh" for b in "jklmnpqr"])


REFUSED = {
    "(a|b)*a(a|b){20}": "more than 4096 states",
    ".{0,500}x.{500}": "more than 4096 states",
    "x.{30}y": "more than 4096 states",
    "((a{100}){100}){100}": "more than 2000 steps",
    "(?:){1000}{2}": "at character 10: a repeat of a repeat",
    "((a|b){1,30}){1,30}((a|b){1,30}){1,30}x": "more than 2000 steps",
    r"(a)\1": "at character 3: a back-reference",
    "x(?=a)": "at character 1: looking around",
    "x(?!a)": "at character 1: looking around",
    "(?<=a)x": "at character 0: looking around",
    "(?<!a)x": "at character 0: looking around",
    "(?i)a": "at character 0: only",
    "(?P<n>a)": "at character 0: only",
    "a*+b": "at character 2: possessive",
    "a**": "at character 2: a repeat of a repeat",
    "*a": "at character 0: there is nothing before it",
    "a|+b": "at character 2: there is nothing before it",
    "^*a": "at character 1: an assertion",
    "a{3,1}": "at character 1: the upper bound",
    "a{1001}": "at character 1: it repeats more than 1000",
    "a{99999999999}": "at character 1: it repeats more than 1000",
    "a{x}": "at character 1: this is no repeat",
    "a{": "at character 1: this is no repeat",
    "a}": r"at character 1: the character itself is \\}",
    "(a": "at character 0: this group",
    "a)": "at character 1: this \\) closes nothing",
    "[a": "at character 0: this class",
    "[z-a]": "at character 1: this is no range",
    r"[\w-z]": "at character 1: this is no range",
    "[[:alpha:]]": "at character 1: a class within",
    r"[\b]": "at character 1: a word boundary",
    r"\q": "at character 0: unknown escape",
    r"a\Z": "at character 1: unknown escape",
    "a\\": "at character 1: nothing follows",
    "aé": "at character 1: it is outside ASCII",
    "a\nb": "at character 1: a line feed",
    "a*": "without reading",
    r"\b": "without reading",
    "^$": "without reading",
    "a|": "without reading",
    "": "1 to 1000 characters",
    "a" * 1001: "1 to 1000 characters",
    "(" * 51 + "a" + ")" * 51: "at character 50: groups go more than 50 deep",
}


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:24] or "empty")
def test_what_is_no_usable_pattern_is_refused_with_its_place(pattern: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[pattern]):
        check_pattern(pattern, "pattern")
    with pytest.raises(ValueError, match=REFUSED[pattern]):
        rules_of(pattern)


@given(st.text(r"ab\()[]{}^$|?*+.,-:!=<0129dwsbBZ", max_size=14))
@settings(max_examples=400, deadline=None)
def test_no_text_does_worse_than_be_refused(pattern: str) -> None:
    try:
        rules = rules_of(pattern)
    except ValueError:
        return
    for text in ("ab", "aab012", "a-b.{}", "\n"):
        assert bool(found(rules, text)) == searched(pattern, text), text


# ------------------------------------------------------------------------------------------- configuration

PAGE = Path(__file__).parent.parent.parent / "docs" / "classifiers.md"
OWN = {
    "levels": ["easy", "hard"],
    "rules": [{"level": "hard", "when": ["group.proof > 0"]}],
    "otherwise": {"level": "easy"},
    "groups": {"proof": {"mode": "pattern", "patterns": [r"\bprov(?:e|ing)\b"]}},
}


def tables(base_url: str, **own: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "providers": {"local": {"base_url": base_url}},
        "endpoints": [{"provider": "local", "model": model} for model in ("small", "middle", "large")],
        "tiers": {"budget": ["small"], "standard": ["middle"], "premium": ["large"]},
        "policy": {"classifier": "own", "classes": {"hard": "premium"}},
        "classifiers": {"own": OWN},
    } | own


def problems_of(**own: Any) -> tuple[str, ...]:
    return check(tables("http://127.0.0.1:1/v1", **own), environ={}).problems


def test_a_configured_classifier_routes_calls() -> None:
    with Provider(models=["small", "middle", "large"]) as provider:
        configured = tables(provider.base_url)
        with fastroute.Client(configured) as client:
            for text, model, level in (
                ("Prove that there is no such set.", "large", "hard"),
                ("How are you?", "small", "easy"),
            ):
                reply = client.chat.completions.create(messages=[{"role": "user", "content": text}])
                assert reply.route.model == model
                assert reply.route.classification.level == level
                assert reply.route.classification.classifier == "own"
            plan = client.plan(messages=[{"role": "user", "content": "proving"}])
            assert plan.classification.matches == {"proof": (r"\bprov(?:e|ing)\b",)}


class OnceUnreadable(Mapping[str, Any]):
    """A message whose content fails at the second read, the classifier's; the first is the client's check."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self.reads = 0

    def __getitem__(self, key: str) -> Any:
        self.reads += key == "content"
        if self.reads == 2:
            self.reads += 1
            raise ValueError(key)
        return self.message[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.message)

    def __len__(self) -> int:
        return len(self.message)


def test_what_it_cannot_read_or_is_unsure_of_goes_to_the_default_tier() -> None:
    rules = OWN | {"otherwise": {"level": "easy", "confidence": 0.5}}
    configured = tables("http://127.0.0.1:1/v1", classifiers={"own": rules})
    with fastroute.Client(configured) as client:
        unsure = client.plan(messages=[{"role": "user", "content": "How are you?"}])
        assert (unsure.tier, unsure.classification.confidence) == ("standard", 0.5)
        sure = client.plan(messages=[{"role": "user", "content": "Prove it."}])
        assert sure.tier == "premium"
        broken = client.plan(messages=[OnceUnreadable({"role": "user", "content": "Prove it."})])
        assert (broken.tier, broken.classification.level) == ("standard", "unknown")


def test_every_problem_of_a_rule_set_comes_with_all_others_of_the_file() -> None:
    broken = OWN | {
        "groups": {
            "proof": {"mode": "pattern", "patterns": ["fine", r"(a)\1", "(?=b)", "(a|b)*a(a|b){20}"]},
            "words": {"patterns": ["é"]},
        }
    }
    found = problems_of(classifiers={"own": broken, "other": {"levels": ["x"]}}, cache={"ttl": -1})
    paths = [problem.partition(": ")[0] for problem in found]
    assert paths == [
        "cache.ttl",
        "classifiers.other.otherwise",
        *[f"classifiers.own.groups.proof.patterns[{place}]" for place in (1, 2, 3)],
        "classifiers.own.groups.words.patterns[0]",
    ]
    assert "'(a)\\\\1' cannot be used: at character 3: a back-reference" in found[2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"classifiers": 1}, "classifiers: must be a table of tables, not 1"),
        ({"classifiers": {"own": 1}}, "classifiers.own: must be a table"),
        ({"classifiers": {"own": OWN, "a b": OWN}}, 'classifiers."a b": invalid name'),
        ({"classifiers": {"own": OWN, "ten-point": OWN}}, "classifiers.ten-point: is the name of a built-in"),
        ({"classifiers": {"own": OWN | {"tiers": {"hard": "premium"}}}}, "classifiers.own.tiers: has no"),
        ({"classifiers": {"own": OWN | {"unsure": "hard"}}}, "classifiers.own.unsure: has no effect"),
        (
            {"classifiers": {"own": OWN | {"groups": {"g": {"patterns": ["a"] * 257}}}}},
            "classifiers.own.groups: must have at most 256 patterns together, not 257",
        ),
        (
            {"policy": {"classifier": "won"}},
            "policy.classifier: unknown classifier 'won' (did you mean own?); use one",
        ),
        (
            {"policy": {"classifier": "own", "classes": {"hrad": "premium"}}},
            "policy.classes.hrad: unknown level 'hrad' (did you mean hard?); use one of easy, hard",
        ),
        (
            {"policy": {"classes": {"hard": "premium"}}},
            "policy.classes.hard: unknown level 'hard'; use one of trivial",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], problem: str) -> None:
    assert problem in "\n".join(problems_of(**change))


def test_a_broken_rule_set_brings_no_problems_of_what_refers_to_it() -> None:
    found = problems_of(classifiers={"own": OWN | {"scope": "both"}})
    assert [problem.partition(": ")[0] for problem in found] == ["classifiers.own.scope"]


def test_levels_can_be_named_by_the_environment() -> None:
    found = load(
        tables("http://127.0.0.1:1/v1"),
        environ={"FASTROUTE_POLICY__CLASSES__EASY": "standard", "FASTROUTE_CLASSIFIERS__OWN__SCOPE": "user"},
    )
    assert found.policy.classes["easy"] == "standard"
    assert found.classifiers["own"].scope == "user"
    assert copy.deepcopy(pickle.loads(pickle.dumps(found))) == found


# ------------------------------------------------------------------------------------------------- trying


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments])


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTROUTE_CONFIG", raising=False)
    texts = ["Prove it", "How are you?", "proving\nis\x1b[2J hard", "ok"]
    lines = [json.dumps({"id": 1, "messages": [{"role": "user", "content": text}]}) for text in texts]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join([*lines, "", '{"messages": [{"role": "user"}]}']) + "\n", encoding="utf-8")
    (tmp_path / "own.toml").write_text(
        """
        [providers.local]
        base_url = "http://127.0.0.1:1/v1"
        [[endpoints]]
        provider = "local"
        model = "small"
        [policy]
        classifier = "own"
        [classifiers.own]
        levels = ["easy", "hard"]
        rules = [{ level = "hard", when = ["group.proof > 0"] }]
        otherwise = { level = "easy" }
        [classifiers.own.groups.proof]
        mode = "pattern"
        patterns = ['\\bprov(?:e|ing)\\b']
        """,
        encoding="utf-8",
    )
    return file


def test_a_file_of_prompts_is_counted_by_level(prompts: Path) -> None:
    result = explain("--file", str(prompts), "--classifier", "own", "--config", "own.toml")
    assert result.exit_code == 0, result.output
    assert re.search(r"^easy +3 +60.0%$", result.stdout, re.MULTILINE)
    assert re.search(r"^hard +2 +40.0%$", result.stdout, re.MULTILINE)
    assert "line 1: Prove it" in result.stdout
    assert "\x1b" not in result.stdout
    assert "time per prompt" in result.stdout
    told = json.loads(explain("--file", str(prompts), "--config", "own.toml", "--json").stdout)
    assert (told["classifier"], told["prompts"], told["levels"]["hard"]["share"]) == ("own", 5, 0.4)
    assert [example["line"] for example in told["levels"]["easy"]["examples"]] == [2, 4, 6]
    assert told["levels"]["hard"]["examples"][1]["matches"] == {"proof": [r"\bprov(?:e|ing)\b"]}
    assert 0 < told["median_s"] <= told["p99_s"]


def test_a_classifier_can_be_tried_on_one_prompt_and_without_a_configuration(prompts: Path) -> None:
    told = json.loads(explain("--classifier", "own", "--config", "own.toml", "--json", "Prove it").stdout)
    assert (told["class"]["level"], told["candidates"]) == ("hard", None)
    assert "class     structured" in explain("--classifier", "task-tier", "Parse this JSON").stdout
    told = json.loads(explain("--file", str(prompts), "--classifier", "three-level", "--json").stdout)
    assert told["levels"]["low"]["prompts"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either a PROMPT or --file"),
        (("--file", "prompts.jsonl", "hello"), "either a PROMPT or --file"),
        (("--file", "prompts.jsonl", "--model", "x"), "need a PROMPT"),
        (("--classifier", "own", "hello"), "unknown classifier 'own'; use one of five-level"),
        (("--classifier", "own", "--config", "own.toml", "--model", "small", "x"), "leave out --model"),
        (("--file", "own.toml"), "line 2: is not JSON"),
    ],
)
def test_what_the_command_cannot_do_is_said(prompts: Path, arguments: tuple[str, ...], said: str) -> None:
    result = explain(*arguments)
    assert result.exit_code != 0
    assert said in result.stderr


@pytest.mark.parametrize("text", ["[]", "{}", '{"messages": [1]}', '{"messages": "x"}'])
def test_a_line_without_messages_is_refused_with_its_number(prompts: Path, text: str) -> None:
    prompts.write_text('{"messages": []}\n' + text, encoding="utf-8")
    result = explain("--file", str(prompts))
    assert result.exit_code == 1
    assert "line 2: has no list of messages" in result.stderr
    prompts.write_text("\n", encoding="utf-8")
    assert "has no prompts" in explain("--file", str(prompts)).stderr


# --------------------------------------------------------------------------------------------------- page


def test_the_examples_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/classifiers.md", "exec"), {})


def test_the_configuration_of_the_page_is_one() -> None:
    tomllib = pytest.importorskip("tomllib")
    example = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    written = tomllib.loads(example.group(1))
    assert problems_of(**written) == ()
    rules = RuleSet.from_mapping("support", written["classifiers"]["support"])
    for text, level in (
        ("I want to terminate the agreement today", "legal"),
        ("See clause 12", "legal"),
        ("Refund the invoice, or my lawyer will call!", "legal"),
        ("How do I log in?", "small"),
        ("Where is my invoice?", "usual"),
    ):
        assert Classifier(rules).classify([{"role": "user", "content": text}], {})[0].level == level, text


def test_the_page_names_every_feature() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for feature in SCAN_FEATURES:
        assert f"`{feature}`" in text, feature
