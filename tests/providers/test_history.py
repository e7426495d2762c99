"""Messages of earlier answers, fitted to the endpoint that they are sent to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from openai_answers import TARGET

from fastroute import types
from fastroute.providers import get, history

OPENAI = get("openai")
ALL = frozenset({"reasoning_content", "thinking_blocks", "refusal", "extra_content", "name", "index"})


def sent(message: Any, refused: frozenset[str] = ALL, call_ids: str = "") -> Any:
    """What becomes of the message in a request's body."""
    target = evolve(TARGET, refused_fields=refused, call_ids=call_ids)
    request = types.Request("gpt", [{"role": "user", "content": "hello"}, message], {}, False)
    body = json.loads(OPENAI.encode(request, target))
    assert body["messages"][0] == {"role": "user", "content": "hello"}
    return body["messages"][1]


# ---------------------------------------------------------------------------------------------- fields

THOUGHT = {"role": "assistant", "content": "42", "reasoning_content": "six times seven"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FITTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a field": (THOUGHT, {"role": "assistant", "content": "42"}),
    "nothing": ({"role": "assistant", "content": "42"}, {"role": "assistant", "content": "42"}),
    "nothing but thoughts": (
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "content": ""},
    ),
    "a refusal": (
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": "No."},
    ),
    "a field of a call": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, "extra_content": {"x": 1}, "index": 0}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ),
    "a name that is there stays": (
        {"role": "user", "content": "x", "name": "ann"},
        {"role": "user", "content": "x", "name": "ann"},
    ),
    "an empty list beside calls": (
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ),
    "an empty list alone": ({"role": "assistant", "content": []}, {"role": "assistant", "content": ""}),
    "an empty result": (
        {"role": "tool", "tool_call_id": "call_1", "content": []},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ),
    "what an answer's text has beside it": (
        {"role": "assistant", "content": [{"type": "text", "text": "42", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "text", "text": "42"}]},
    ),
    "an empty list of a user": ({"role": "user", "content": []}, {"role": "user", "content": []}),
    "a name that is null": ({"role": "user", "content": "x", "name": None}, {"role": "user", "content": "x"}),
}


@pytest.mark.parametrize("name", FITTED)
def test_refused_fields_are_not_sent(name: str) -> None:
    given, wanted = FITTED[name]
    before = json.dumps(given)
    assert sent(given) == wanted
    assert json.dumps(given) == before, "the program's own message was changed"


def test_reasoning_in_the_content_is_left_out_where_it_is_refused() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "six times seven"}]}
    said = {"type": "text", "text": "42"}
    both = {"role": "assistant", "content": [thought, said]}
    openai, _ = history.known("https://api.openai.com/v1")
    mistral, _ = history.known("https://api.mistral.ai/v1")
    assert sent(both, openai) == {"role": "assistant", "content": [said]}
    assert sent({**both, "content": [thought]}, openai) == {"role": "assistant", "content": ""}
    assert sent(both, mistral) == both  # its own models put it there
    assert sent(both, history.known("https://example.com/v1")[0]) == both


def test_what_is_not_refused_is_sent_as_it_is() -> None:
    assert sent(THOUGHT, history.OWN_FIELDS) == THOUGHT
    assert sent({**THOUGHT, "content_blocks": [], "content_parts": [{}]}, history.OWN_FIELDS) == THOUGHT


def test_a_message_of_an_answer_is_fitted_too() -> None:
    assert sent(types.Message("assistant", "42", raw=THOUGHT)) == {"role": "assistant", "content": "42"}


@pytest.mark.parametrize(
    ("base_url", "refuses", "takes", "call_ids"),
    [
        ("https://api.openai.com/v1", "reasoning_content", "refusal", "short"),
        ("https://eu-west.openai.azure.com/openai/v1", "reasoning_content", "refusal", "short"),
        ("https://api.mistral.ai/v1", "refusal", "name", "nine"),
        ("https://api.groq.com/openai/v1", "reasoning_content", "reasoning", ""),
        ("https://api.cerebras.ai/v1", "reasoning_content", "reasoning", ""),
        ("https://api.deepseek.com/v1", "content_blocks", "reasoning_content", ""),
        ("http://127.0.0.1:8000/v1", "content_parts", "reasoning_content", ""),
        ("http://[", "content_parts", "reasoning_content", ""),
    ],
)
def test_what_some_hosts_refuse_is_known(base_url: str, refuses: str, takes: str, call_ids: str) -> None:
    refused, form = history.known(base_url)
    assert (refuses in refused, takes in refused, form) == (True, False, call_ids)


@pytest.mark.parametrize(
    "text",
    [
        "Unknown parameter: 'reasoning_effort'.",
        "body.max_completion_tokens: Extra inputs are not permitted",
        "messages.1.content.0.text: must not be empty",
        "Invalid value for 'messages[0].content'",
        "the messages are too long",
        "",
    ],
)
def test_other_refusals_name_no_field(text: str) -> None:
    assert history.refused_fields(text) == []


def test_the_fields_of_one_refusal_are_bounded() -> None:
    text = "; ".join(
        f"messages.1.assistant.field_{number}: Extra inputs are not permitted" for number in range(99)
    )
    assert len(history.refused_fields(text)) == 8


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    history.refused_fields("messages[1]." + text)


# ---------------------------------------------------------------------------------------------- call ids


@given(st.text(min_size=1))
def test_ids_fit_and_stay_the_same(identity: str) -> None:
    nine, short = history.call_id(identity, "nine"), history.call_id(identity, "short")
    assert len(nine) == 9
    assert nine.isascii()
    assert nine.isalnum()
    assert len(short) <= 40
    assert (history.call_id(nine, "nine"), history.call_id(short, "short")) == (nine, short)
    assert (history.call_id(identity, "nine"), history.call_id(identity, "")) == (nine, identity)


def test_ids_stay_apart() -> None:
    many = [f"call_{number}" for number in range(2000)] + ["x" * length for length in range(41, 400)]
    for form in ("nine", "short"):
        assert len({history.call_id(identity, form) for identity in many}) == len(many)


def test_a_call_and_its_result_have_one_id() -> None:
    call = sent({"role": "assistant", "content": None, "tool_calls": [CALL]}, call_ids="nine")
    result = sent({"role": "tool", "tool_call_id": "call_1", "content": "x"}, call_ids="nine")
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == history.call_id("call_1", "nine")
    fits = {"role": "tool", "tool_call_id": "D681PevKs", "content": "x"}
    assert sent(fits, call_ids="nine") == fits
