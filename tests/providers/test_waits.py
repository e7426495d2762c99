"""How long providers ask to wait, as they have been seen to say it; and what says nothing of it.

``waits.jsonl`` has one answer a line: ``provider`` and ``year`` say where it is from, ``status``, ``headers``
and ``body`` are the answer, in the wire format ``format`` (OpenAI's without one), ``now`` is this machine's
clock, and ``wait`` the seconds that must be read from it. To add a way of saying it, add a line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors
from fastroute.providers import error_reader, limit_headers, waits

WAITS = [
    json.loads(line)
    for line in Path(__file__).with_name("waits.jsonl").read_text(encoding="utf-8").splitlines()
]


def named(answer: dict[str, Any]) -> str:
    return f"{answer['provider']}-{answer['status']}-{WAITS.index(answer) + 1}"


def read(answer: dict[str, Any]) -> errors.APIError:
    body = json.dumps(answer["body"]).encode()
    return error_reader.from_response(answer["status"], answer.get("headers", {}), body, now=answer["now"])


@pytest.mark.parametrize("answer", WAITS, ids=named)
def test_a_recorded_refusal_asks_to_wait_so_long(answer: dict[str, Any]) -> None:
    got = read(answer).retry_after
    assert got == (None if answer["wait"] is None else pytest.approx(answer["wait"], abs=1e-6))


@pytest.mark.parametrize(
    "answer",
    [answer for answer in WAITS if "headers" not in answer and answer["status"] == 429],
    ids=named,
)
def test_a_refusal_in_a_stream_asks_for_the_same(answer: dict[str, Any]) -> None:
    found = error_reader.error_object(answer["body"])
    got = error_reader.from_error(found, 429, now=answer["now"]).retry_after
    assert got == (None if answer["wait"] is None else pytest.approx(answer["wait"], abs=1e-6))


def holds(value: Any, path: tuple[str, ...]) -> bool:
    return next(iter(waits.at_path(value, path)), None) is not None


def test_every_line_of_the_tables_has_a_recorded_answer() -> None:
    said = [answer for answer in WAITS if answer["wait"] is not None]
    names = {name.lower() for answer in said for name in answer.get("headers", {})}
    for name, _ in limit_headers.WAITS:
        assert name in names, name
    errors_said = [error_reader.error_object(answer["body"]) for answer in said]
    for path, _ in waits.FIELDS:
        assert any(holds(error, path) for error in errors_said), path
    for path in waits.HEADERS:
        assert any(holds(error, path) for error in errors_said), path
    texts = " ".join(str(answer["body"]) for answer in said)
    for pattern in (*waits.BEFORE_SPANS, *waits.BEFORE_MOMENTS):
        assert re.search(pattern, texts, re.IGNORECASE), pattern
    for unit, _ in waits.UNITS:
        assert re.search(rf"[0-9] ?(?:{unit})", texts, re.IGNORECASE), unit


@given(st.text(), st.dictionaries(st.text(max_size=12), st.one_of(st.text(), st.integers(), st.floats())))
def test_no_error_gives_a_time_below_zero_or_raises(text: str, fields: dict[str, Any]) -> None:
    said = f"please try again in {text}"
    for error in ({**fields, "metadata": {"headers": fields}}, {"details": [fields], "retry_after": text}):
        wait = waits.wait_in_error(error, said, 1e9)
        assert wait is None or wait > 0


def test_a_long_text_is_read_quickly() -> None:
    """Patterns that go through a text more than once would make a refusal as slow as it is long."""
    assert waits.wait_in_text("try again in " + "1 " * 20_000, 0.0) is None
    assert waits.wait_in_text("1h" * 20_000, 0.0) is None
    assert waits.wait_in_text("try again in " + "9" * 20_000 + "s", 0.0) is None
