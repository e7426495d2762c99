"""The bounds of a JSON document, held to the parser and to the twin."""

from __future__ import annotations

import json
import threading
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twin.json_bounds import Counted, count

from fastroute._core import JSONBoundsError, json_check, json_keys

ANY = 2**62
MESSAGES = ("nested more than", "values", "keys", "a key of more than")


def refused(data: bytes | str, most: list[int]) -> str:
    """Why a document is refused; empty if it is not."""
    try:
        json_check(data, *most)
    except JSONBoundsError as error:
        return str(error)
    return ""


def held_to(data: bytes, counted: Counted) -> None:
    """The document passes with bounds of exactly what is in it, and with none of them one lower."""
    assert json_check(data, *counted) == (counted.values, counted.keys)
    for place, (most, message) in enumerate(zip(counted, MESSAGES)):
        if most:
            lower = [ANY] * 4
            lower[place] = most - 1
            assert message in refused(data, lower)


def in_value(value: Any) -> Counted:
    """What is in a parsed document; the lengths of keys are those of their text without escapes."""
    if isinstance(value, dict):
        parts = [in_value(part) for part in value.values()]
        own = len(value)
        longest = max((len(key.encode("utf-8", "surrogatepass")) for key in value), default=0)
    elif isinstance(value, list):
        parts, own, longest = [in_value(part) for part in value], 0, 0
    else:
        return Counted(0, 1, 0, 0)
    return Counted(
        1 + max((part.depth for part in parts), default=0),
        1 + sum(part.values for part in parts),
        own + sum(part.keys for part in parts),
        max([longest, *(part.key_length for part in parts)]),
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)
LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 3}, {"separators": (",", ":")}, {"ensure_ascii": False}]


@given(VALUES, st.sampled_from(LAYOUTS))
def test_of_a_valid_document_the_counts_are_exact(value: Any, layout: dict[str, Any]) -> None:
    text = json.dumps(value, **layout)
    data = text.encode("utf-8", "surrogatepass")
    depth, values, keys, _ = in_value(value)
    found = count(data)
    assert (found.depth, found.values, found.keys) == (depth, values, keys)
    held_to(data, found)
    assert json_check(text, *found) == (values, json_keys(value)) == (values, keys)


@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b" ", b"1", b"\0"])))
@example([b'"', b"\\", b"\\", b'"', b",", b'"', b"\\", b'"'])
@example([b"[", b" ", b"]", b",", b"]", b"]"])
def test_it_counts_as_the_twin_does_whatever_the_bytes(parts: list[bytes]) -> None:
    data = b"".join(parts)
    held_to(data, count(data))


@given(st.binary(max_size=300))
def test_it_counts_as_the_twin_does_in_any_bytes(data: bytes) -> None:
    held_to(data, count(data))


@given(VALUES, st.data())
def test_no_more_is_read_of_a_broken_document_than_was_counted(value: Any, data: st.DataObject) -> None:
    whole = json.dumps(value)
    cut = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(
        st.sampled_from(["", "]", "}", ",", '"'])
    )
    made = [0]

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made[0] += len(pairs)
        return dict(pairs)

    try:
        json.loads(cut, object_pairs_hook=note)
    except ValueError:
        pass
    assert made[0] <= count(cut.encode()).keys
    held_to(cut.encode(), count(cut.encode()))


@pytest.mark.parametrize("size", [0, 1, 100, (1 << 20) + 1], ids=str)
def test_text_of_any_length_is_passed_over(size: int) -> None:
    data = orjson.dumps({"url": "x" * size})
    held_to(data, Counted(1, 2, 1, 3))


@pytest.mark.parametrize("text", ['{"é": 1}', '{"\u20ac": [1]}', '{"\U0001f600": 1}', '{"\ud83d": 1}'])
def test_a_str_is_counted_as_its_bytes_are(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert json_check(text, *count(data)) == json_check(data, *count(data))
    assert "a key of more than" in refused(text, [ANY, ANY, ANY, count(data).key_length - 1])


@pytest.mark.parametrize("data", [None, 5, bytearray(b"[]"), memoryview(b"[]")])
def test_other_types_are_an_error(data: Any) -> None:
    with pytest.raises(TypeError, match="bytes or str"):
        json_check(data, 1, 1, 1, 1)


@pytest.mark.parametrize(
    "data",
    [b"[" + b"[]," * 200_000 + b"[]]", b"[" + b"{}," * 200_000, b'{"a":' * 200_000, b"[" * 200_000],
    ids=["lists", "objects", "keys", "deep"],
)
def test_a_document_over_a_bound_makes_no_objects(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert refused(data, [64, 100_000, 100_000, 100])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10_000


def test_repeated_keys_are_fewer_when_parsed() -> None:
    data = b'{"a": [{"b": 1, "b": 2}], "a": 3, "c": {"c": {}}}'
    assert json_check(data, ANY, ANY, ANY, ANY)[1] == 6
    assert json_keys(orjson.loads(data)) == 3
    value: Any = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(ValueError, match="nested"):
        json_keys(value)


def test_many_threads_check_one_large_document() -> None:
    data = b"[" + (b'{"k": "' + b"x" * (1 << 20) + b'"},') * 3 + b"1]"
    found: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(json_check(data, ANY, ANY, ANY, ANY))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(8, 3)] * 8
