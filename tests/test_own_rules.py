"""A user's own rule sets: regular patterns held to `re`, the configuration's tables, and the command to try them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastroute._core import Rules, check_pattern


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
    usable = []
    for pattern in patterns:
        try:
            check_pattern(pattern, "pattern")
        except ValueError as error:
            assert "without reading" in str(error)
        else:
            usable.append(pattern)
    assume(usable)
    rules = rules_of(*usable)
    for text in texts:
        text += wide
        assert found(rules, text) == tuple(p for p in usable if re.search(p, text, re.IGNORECASE)), text
