"""Without orjson the package reads and writes the same JSON, and refuses the same."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastroute.json_codec import standard

TOP = Path(__file__).parent
WITHOUT = "import sys; sys.modules['orjson'] = None; "

DOCUMENTS = [
    *("", " ", "{", '{"a":', "[1,", '"abc', "tru", "[1 2]", "1 2", "01", "-", "1.", "1e", "[1,]", '{"a":1,}'),
    *('{"a" 1}', "{1:2}", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"\\x"', '"\\u12"'),
    *('"a\nb"', '"\\ud800"', '"\\udc00"', '"\\ud83d\\u0041"', '"\\ud83d\\ude00"', '{"\\ud800":1}'),
    *("-0", "-0.0", "1E5", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("-9223372036854775808", "-9223372036854775809", "1" * 25, '{"a":1,"a":2}', "[]", " {} ", "\ufeff1"),
    "[" * 2000 + "]" * 2000,
]
BYTES = [document.encode("utf-8", "surrogatepass") for document in DOCUMENTS]
BYTES += [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc3\xa9"', b"\xff", b'["\x00"]']


class Color(Enum):
    RED = "red"


def outcome(call: Any, *arguments: Any) -> Any:
    """What a call returns, or the kind of its error."""
    try:
        return repr(call(*arguments))
    except json.JSONDecodeError:
        return json.JSONDecodeError
    except TypeError:
        return TypeError


@pytest.mark.parametrize("document", BYTES, ids=lambda document: repr(document[:24]))
def test_documents_are_read_alike(document: bytes) -> None:
    assert outcome(standard.loads, document) == outcome(orjson.loads, document)
    try:
        text = document.decode()
    except UnicodeDecodeError:
        return
    assert outcome(standard.loads, text) == outcome(orjson.loads, text)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (b"[1,", "unexpected end of data"),
        (b'"\\ud800"', "surrogate"),
        (b"\xef\xbb\xbf1", "BOM"),
        (b'"\xff"', "UTF-8"),
    ],
)
def test_the_words_that_jsontext_looks_for_are_there(document: bytes, word: str) -> None:
    for loads in (orjson.loads, standard.loads):
        with pytest.raises(json.JSONDecodeError) as caught:
            loads(document)
        assert word in caught.value.msg


VALUES: list[Any] = [
    *(math.nan, math.inf, 2**64, 2**64 - 1, -(2**63), -(2**63) - 1, {1: 2}, (1, 2), Color.RED, UUID(int=1)),
    *(object(), b"x", {1.5}, "\ud800", {"\ud800": 1}, ["é", "\u2028", '"\\\n\x01\x7f']),
    *({"b": [1, {"a": []}], "a": {}}, True, None, {"a": {"b": [1, {"c": None}]}}, [[]] * 3),
]
OPTIONS = [0, standard.OPT_SORT_KEYS, standard.OPT_INDENT_2, standard.OPT_NON_STR_KEYS]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value).partition(" at 0x")[0][:24])
@pytest.mark.parametrize("option", OPTIONS)
def test_values_are_written_alike(value: Any, option: int) -> None:
    for default in (None, list):
        wanted = outcome(orjson.dumps, value, default, option)
        assert outcome(standard.dumps, value, default, option) == wanted


def test_a_list_that_is_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    for dumps in (orjson.dumps, standard.dumps):
        with pytest.raises(TypeError):
            dumps(value)


def test_the_options_are_the_same_bits() -> None:
    names = [name for name in standard.__all__ if name.startswith("OPT_")]
    assert [getattr(standard, name) for name in names] == [getattr(orjson, name) for name in names]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
@example(1e16)
def test_whatever_is_written_is_read_alike(value: Any) -> None:
    written = orjson.dumps(value)
    assert repr(standard.loads(written)) == repr(orjson.loads(written))
    assert repr(orjson.loads(standard.dumps(value))) == repr(orjson.loads(written))


@given(st.binary() | st.text(alphabet='[]{}",:0123456789.eE+-truefalsn\\u \n').map(str.encode))
def test_any_bytes_are_read_alike(document: bytes) -> None:
    assert outcome(standard.loads, document) == outcome(orjson.loads, document)


def test_the_package_works_without_orjson() -> None:
    """Tests of answers, of the cache and of the client pass in a process that cannot import it."""
    tests = ["providers/test_providers_openai.py", "calls/test_cache.py", "client/test_client.py"]
    code = WITHOUT + (
        "import pytest, fastroute.json_codec as codec; assert codec.dumps.__module__.endswith('standard'); "
        f"files = {[str(TOP / each) for each in tests]!r}; "
        "sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *files]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=TOP.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
