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
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.http10(), Fault.http10())
    assert [loop.ask(text).text for text in ("one", "two", "three")] == ["one", "two", "three"]
    assert [request.connection for request in loop.provider().requests] == [1, 2, 3]
    assert list(loop.stream()) != []
    loop.provider().script(Fault.http10())
    assert [chunk.choices[0].delta.content for chunk in loop.stream("a")][1] == "a"


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
    # Nothing of them gets into the books or a log: an id of such bytes is none.
    assert [attempt.request_id for attempt in loop.attempts] == [None, None]


def test_033_interim_answers_are_passed_over(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.interim(100, 103), Fault.interim(*[103] * 99))
    for question in ("first", "second"):
        assert loop.ask(question).text == question
    assert len(loop.attempts) == loop.provider().received == 2


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
        pytest.param({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 99}, id="036-other-sum"),
        pytest.param({"prompt_tokens": 7}, id="036-half"),
        pytest.param({"prompt_tokens": -5, "completion_tokens": 3}, id="036-negative"),
        pytest.param({"prompt_tokens": "7", "completion_tokens": 3}, id="036-string"),
        pytest.param(b'{"prompt_tokens": 1e999, "completion_tokens": 1}', id="035-infinite"),
        pytest.param(b'{"prompt_tokens": NaN, "completion_tokens": 1}', id="035-nan"),
        pytest.param(b'{"prompt_tokens": -Infinity, "completion_tokens": 1}', id="035-infinity"),
        pytest.param(b'{"prompt_tokens": ' + b"9" * 5000 + b', "completion_tokens": 1}', id="035-long-int"),
        pytest.param({"prompt_tokens": (1 << 53) + 1, "completion_tokens": 1}, id="035-just-too-large"),
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
        assert isinstance(usage, bytes)  # no JSON
    else:
        assert reply.usage is not None
        assert reply.usage.source == "estimated"
        assert 0 < reply.usage.total_tokens < 1000
    (attempt,) = loop.attempts
    assert attempt.usage_source == "estimated"
    assert min(attempt.prompt_tokens, attempt.completion_tokens) > 0
    assert attempt.cost_nano == attempt.prompt_tokens * 1000 + attempt.completion_tokens * 2000
    assert before - loop.endpoint()["available_tokens"] >= attempt.prompt_tokens + attempt.completion_tokens


def test_036_an_answer_that_says_nothing_of_usage(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    choice = {"index": 0, "message": {"role": "assistant", "content": "six characters"}}
    loop.provider().script(Fault.status(200, {"choices": [{**choice, "finish_reason": "stop"}]}))
    reply = loop.ask()
    assert reply.usage is not None
    assert (reply.usage.source, reply.usage.completion_tokens) == ("estimated", 5)


def test_035_of_equal_keys_the_last_counts(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    usage = b'{"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens": 5}'
    body = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": ' + usage + b"}"
    loop.provider().script(Fault.status(200, body))
    reply = loop.ask()
    assert reply.usage is not None
    assert (reply.text, reply.usage.prompt_tokens) == ("a", 5)


@pytest.mark.parametrize("choices", [b"[]", b"null"])
def test_037_an_answer_without_choices_is_not_kept(start: Start, choices: bytes) -> None:
    loop = start(1, policy={"max_attempts": 1}, cache={"enabled": True})
    loop.provider().script(Fault.status(200, b'{"choices": ' + choices + b"}"))
    with pytest.raises(fastroute.EmptyResponse):
        loop.ask()
    reply = loop.ask()
    assert reply.route is not None
    assert (reply.text, reply.route.cached) == ("Say hello", False)
    assert loop.provider().received == 2


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
