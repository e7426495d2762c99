"""What providers have been seen to answer, held to the class and the blame that each answer must get.

``refusals.jsonl`` has one recorded answer a line: ``provider`` and ``year`` say where it is from; ``status``,
``headers`` and ``body`` are the answer, in the wire format ``format`` (OpenAI's without one); ``error`` and
``blame`` are what it must be read as, and ``respell`` the other spelling that it asks for. To add a wording,
add a line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai_answers import TARGET

from fastroute import errors, types
from fastroute.providers import get, sse
from fastroute.providers.wordings import SPELLINGS, WORDINGS

REFUSALS = [
    json.loads(line)
    for line in Path(__file__).with_name("refusals.jsonl").read_text(encoding="utf-8").splitlines()
]
REQUEST = types.Request("gpt", [{"role": "user", "content": "hello"}], {}, False)


def named(refusal: dict[str, Any]) -> str:
    return f"{refusal['provider']}-{refusal['status']}-{REFUSALS.index(refusal) + 1}"


def read(refusal: dict[str, Any]) -> errors.APIError:
    format = get(refusal.get("format", "openai"))
    body = refusal["body"]
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    if refusal["status"] != 200:
        return format.decode_error(refusal["status"], refusal.get("headers", {}), raw, TARGET)
    with pytest.raises(errors.APIError) as caught:
        format.decode(raw, REQUEST, TARGET)
    return caught.value


@pytest.mark.parametrize("refusal", REFUSALS, ids=named)
def test_a_recorded_refusal_is_what_it_says(refusal: dict[str, Any]) -> None:
    error = read(refusal)
    assert (type(error).__name__, error.blame.value) == (refusal["error"], refusal["blame"]), error
    assert getattr(error, "respell", {}) == refusal.get("respell", {})


@pytest.mark.parametrize(
    "refusal",
    [
        refusal
        for refusal in REFUSALS
        if refusal["error"] == "ContextLengthExceeded" and "error" in refusal["body"]
    ],
    ids=named,
)
def test_a_prompt_that_is_too_long_is_recognised_in_a_stream_too(refusal: dict[str, Any]) -> None:
    format = get(refusal.get("format", "openai"))
    with pytest.raises(errors.ContextLengthExceeded):
        format.stream(REQUEST, TARGET).feed(
            sse.ServerSentEvent("error", json.dumps(refusal["body"], ensure_ascii=False))
        )


def test_every_line_of_the_tables_has_a_recorded_answer() -> None:
    said = [(read(refusal), refusal) for refusal in REFUSALS]
    changes = {change for _, refusal in said for change in refusal.get("respell", {}).items()}
    for spelling in SPELLINGS:
        assert any(
            change == spelling.change and spelling.value in (None, value) for change, value in changes
        ), spelling.about
    for wording in WORDINGS:
        kinds = {
            refusal["provider"]
            for error, refusal in said
            if error.blame is wording.blame
            and (wording.error is None or type(error) is wording.error)
            and error.status_code in wording.statuses
        }
        assert kinds, wording.about
