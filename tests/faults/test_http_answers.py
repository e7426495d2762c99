"""Cases 30 to 37: answers on kept connections, old and interim ones, odd JSON, usage that is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from loopback import Loopback

import fastroute
from fastroute.testing import Answer, Fault

Start = Callable[..., Loopback]

LIMITS = {"tpm": 1, "token_burst": 100_000}
"""A bucket of tokens that refills too slowly for any to come back while a test runs."""


def test_031_http_1_0_without_keep_alive_works(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.http10(), Fault.http10())
    assert [loop.ask(text).text for text in ("one", "two", "three")] == ["one", "two", "three"]


def test_032_bytes_beyond_latin_1_in_headers_do_no_harm(start: Start) -> None:
    body = json.dumps(
        {
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            ]
        }
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: \xff\xfe\xe2\x82\xac\r\n"
    head += b"x-\xc3\xa9: \x80\r\ncontent-length: %d\r\n\r\n"
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.raw(head % len(body) + body), Fault.raw(head % (len(body) + 1) + body))
    assert loop.ask().text == "hi"
    with pytest.raises(fastroute.UpstreamTruncated):  # the length after those headers counts
        loop.ask()


def test_033_interim_answers_are_passed_over(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.interim(100, 103), Fault.interim(*[103] * 99))
    for question in ("first", "second"):
        assert loop.ask(question).text == question
    assert len(loop.attempts) == 2


def test_033_answers_before_the_real_one_come_to_an_end(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.interim(*[103] * 101), Fault.interim(101))
    for _ in range(2):
        with pytest.raises(fastroute.UpstreamProtocolError):
            loop.ask()


def test_034_no_answer_ever_reaches_another_question(start: Start) -> None:
    """Late, cut and unread answers on kept connections, from several threads with questions of their own."""
    faults = [
        Fault.stall(80, 0.3),
        None,
        Fault.truncated(),
        None,
        Fault.slow(0.25),
        Fault.huge_body(1 << 20),
        None,
        Fault.status(503),
        None,
    ]
    loop = start(
        1,
        providers={"a": {"timeout": 0.2}},
        policy={"max_attempts": 1, "breaker": {"failures": 255, "min_calls": 10_000}},
    )
    loop.provider().script(*faults, repeat=True)
    wrong: list[str] = []
    answered = 0

    def ask(thread: int) -> None:
        nonlocal answered
        for turn in range(15):
            text = f"question {thread} {turn}"
            try:
                reply = loop.ask(text)
            except fastroute.APIError:
                continue
            answered += 1
            if reply.text != text:
                wrong.append(f"{text}: {reply.text}")

    workers = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert answered >= 10


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(None, id="036-null"),
        pytest.param({"prompt_tokens": -5, "completion_tokens": 3}, id="036-negative"),
        pytest.param({"prompt_tokens": "7", "completion_tokens": 3}, id="036-string"),
        pytest.param(b'{"prompt_tokens": 1e999, "completion_tokens": 1}', id="035-infinite"),
        pytest.param(b'{"prompt_tokens": NaN, "completion_tokens": 1}', id="035-nan"),
        pytest.param(b'{"prompt_tokens": ' + b"9" * 400 + b', "completion_tokens": 1}', id="035-long-int"),
        pytest.param({"prompt_tokens": 1 << 60, "completion_tokens": 1}, id="035-too-large"),
    ],
)
def test_unusable_usage_is_estimated_and_never_negative(start: Start, usage: Any) -> None:
    loop = start(1, providers={"a": LIMITS}, policy={"max_attempts": 1})
    loop.provider().script(Fault.usage(usage))
    before = loop.endpoint()["available_tokens"]
    try:
        reply = loop.ask()
    except fastroute.UpstreamProtocolError:
        assert loop.attempts[0].usage_source == "estimated"
    else:
        assert reply.usage is not None
        assert reply.usage.source == "estimated"
        assert 0 < reply.usage.total_tokens < 1000
    (attempt,) = loop.attempts
    assert attempt.cost_nano is not None
    assert attempt.cost_nano > 0
    assert loop.endpoint()["available_tokens"] < before


def test_035_lone_surrogates_come_through_and_into_the_ledger(start: Start) -> None:
    loop = start(1)
    body = (
        b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "a\\ud83d"}, '
        b'"finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'
    )
    loop.provider().script(Fault.status(200, body))
    assert loop.ask("\ud83d half a pair").text == "a\ud83d"


def test_a_part_of_an_answer_is_never_taken_for_the_whole(start: Start) -> None:
    """Every length at which the close could cut a close-delimited answer."""
    loop = start(1, policy={"max_attempts": 1, "breaker": {"failures": 255, "min_calls": 10_000}})
    provider = loop.provider()
    provider.answer = Answer(content='he said: {"x": "}"}')
    loop.ask()
    for size in range(0, 360, 7):
        provider.script(Fault.cut_unframed(size))
        try:
            reply = loop.ask()
        except fastroute.UpstreamProtocolError:
            continue
        assert reply.text == 'he said: {"x": "}"}'
