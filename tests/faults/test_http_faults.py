"""Cases 1 to 37: what an upstream can do to a plain HTTP answer. The numbers are the catalogue's."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import MODEL, Loopback, nothing_left, within
from raw_server import RawServer, Say

import fastroute
from fastroute import events
from fastroute.testing import Answer, Fault, Provider

Start = Callable[..., Loopback]

LIMITS = {"tpm": 1, "token_burst": 100_000}
"""A bucket of tokens that refills too slowly for any to come back while a test runs."""


# --------------------------------------------------------------------- one failed attempt, another endpoint

# case: what the first endpoint does, the error of the attempt, whether it may be charged for
FAILS_OVER = [
    pytest.param(Fault.reset("connect"), "APIConnectionError", None, id="001-reset-on-connect"),
    pytest.param(Fault.black_hole(), "APITimeoutError", True, id="004-black-hole"),
    pytest.param(Fault.drip(9, 0.1, "headers"), "APITimeoutError", True, id="005-headers-drip"),
    pytest.param(Fault.cut_headers(27), "UpstreamProtocolError", True, id="006-eof-in-a-header"),
    pytest.param(Fault.cut_headers(12), None, True, id="006-eof-in-the-status-line"),
    pytest.param(Fault.drip(1, 0.1, "body"), "APITimeoutError", True, id="007-body-drips"),
    pytest.param(Fault.truncated(97), "UpstreamTruncated", True, id="008-content-length-too-large"),
    pytest.param(Fault.cut_chunk(0), "UpstreamTruncated", True, id="009-cut-in-the-first-chunk"),
    pytest.param(Fault.cut_chunk(1), "UpstreamTruncated", True, id="009-cut-in-a-later-chunk"),
    pytest.param(Fault.cut_unframed(60), "UpstreamTruncated", True, id="010-close-delimited-cut"),
    pytest.param(Fault.duplicate_length(), "UpstreamProtocolError", True, id="011-two-content-lengths"),
    pytest.param(Fault.length_and_chunked(), "UpstreamProtocolError", True, id="012-length-and-chunked"),
    pytest.param(Fault.many_headers(200), "UpstreamProtocolError", True, id="014-200-headers"),
    pytest.param(Fault.huge_header(70_000), "UpstreamProtocolError", True, id="014-70-KB-header"),
    pytest.param(Fault.status(999), "UpstreamProtocolError", True, id="015-status-999"),
    pytest.param(Fault.status(299), "UpstreamProtocolError", True, id="015-status-299"),
    pytest.param(Fault.status(204, b""), "EmptyResponse", True, id="015-status-204"),
    pytest.param(Fault.status(200, b""), "EmptyResponse", True, id="015-empty-200"),
    pytest.param(Fault.html(), "UpstreamProtocolError", True, id="016-html"),
    pytest.param(Fault.error_in_200("server_error"), "InternalServerError", False, id="017-error-in-200"),
    pytest.param(Fault.error_in_200("slow_down"), "RateLimitError", False, id="017-throttled-in-200"),
    *(
        pytest.param(Fault.status(status), None, False, id=f"023-status-{status}")
        for status in (408, 425, 500, 502, 503, 504, 529)
    ),
    pytest.param(
        Fault.status(409, headers={"x-should-retry": "true"}), "ConflictError", False, id="023-409-retried"
    ),
    pytest.param(
        Fault.status(400, headers={"x-should-retry": "true"}), "BadRequestError", False, id="024-400-retried"
    ),
    pytest.param(
        Fault.status(500, headers={"x-should-retry": "false"}),
        "InternalServerError",
        False,
        id="024-500-not-retried-there",
    ),
    pytest.param(Fault.huge_body(1 << 30), "InternalServerError", False, id="026-1-GB-error-body"),
    pytest.param(Fault.gzip_bomb(100 << 20), "UpstreamProtocolError", True, id="027-gzip-bomb"),
    pytest.param(Fault.gzip_bomb(100 << 20, 500), "InternalServerError", False, id="027-gzip-bomb-error"),
    pytest.param(Fault.encodings(50), "UpstreamProtocolError", True, id="028-50-encodings"),
    pytest.param(Fault.bad_gzip(), "UpstreamProtocolError", True, id="029-bad-gzip"),
    pytest.param(Fault.status(200, b"[" * 5000), "UpstreamProtocolError", True, id="035-deep-json"),
    pytest.param(Fault.status(200, b"[" * 5000 + b"]" * 5000), None, True, id="035-deep-whole-json"),
    pytest.param(Fault.status(200, b'{"choices": []}'), "EmptyResponse", True, id="037-no-choices"),
    pytest.param(Fault.status(200, b'{"choices": null}'), "EmptyResponse", True, id="037-null-choices"),
]


@pytest.mark.parametrize(("fault", "error", "billed"), FAILS_OVER)
def test_the_next_endpoint_answers(
    start: Start, fault: Fault, error: str | None, billed: bool | None
) -> None:
    quick = {"timeout": 0.3} if error == "APITimeoutError" else {}
    loop = start(2, providers={"all": LIMITS, "a": quick})
    loop.provider("a").script(fault)
    before = loop.endpoint("a")["available_tokens"]
    reply = loop.ask(max_tokens=1000)
    assert reply.text == "Say hello"
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    failed, answered = reply.route.attempts
    assert (failed.endpoint, failed.outcome) == (f"a/{MODEL}", "failed")
    if error is not None:
        assert issubclass(getattr(fastroute, str(failed.error)), getattr(fastroute, error))
    assert (answered.endpoint, answered.outcome, answered.usage_source) == (f"b/{MODEL}", "ok", "provider")
    if billed is not None:  # else it depends on whether the reset was met while sending or after
        assert failed.maybe_billed is billed
    kept = before - loop.endpoint("a")["available_tokens"]
    if failed.maybe_billed:
        assert kept >= 1000  # the provider may have worked for it: nothing is given back
        assert failed.usage_source == "estimated"
        assert failed.cost_nano
    else:
        assert kept == 0
        assert (failed.usage_source, failed.cost_nano, failed.prompt_tokens) == ("none", 0, 0)
    assert [event.to_endpoint for event in loop.of(events.FailedOver)] == [f"b/{MODEL}"]
    # Whatever was on that connection, the next answer is the right one.
    assert loop.ask("And now?").text == "And now?"


def test_001_refused_connection_costs_nothing(start: Start) -> None:
    loop = start(2, providers={"all": LIMITS})
    loop.provider("a").kill()
    before = loop.endpoint("a")["available_tokens"]
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.error for attempt in reply.route.attempts] == ["APIConnectionError", None]
    assert not reply.route.attempts[0].maybe_billed
    assert loop.endpoint("a")["available_tokens"] == before
    assert loop.endpoint("a")["failed"] == 1
    assert reply.route.cost_nano == reply.route.attempts[1].cost_nano


def test_001_refused_everywhere_is_a_connection_error(start: Start) -> None:
    loop = start(2)
    for provider in loop.providers.values():
        provider.kill()
    with pytest.raises(fastroute.APIConnectionError) as caught:
        loop.ask()
    assert len(caught.value.attempts) == 3  # both, and one of them again
    assert {attempt.cost_nano for attempt in caught.value.attempts} == {0}
    for provider in loop.providers.values():
        provider.restart()


def test_001_failures_open_the_breaker_and_a_recovered_endpoint_comes_back(start: Start) -> None:
    loop = start(
        2, policy={"breaker": {"failures": 3, "open": 0.001, "max_open": 0.001, "probes_to_close": 1}}
    )
    loop.provider("a").script(*[Fault.status(503)] * 3)
    for _ in range(3):
        loop.ask()
    assert [event.state for event in loop.of(events.BreakerChanged)] == ["open"]
    for _ in range(1000):
        reply = loop.ask()
        assert reply.route is not None
        if reply.route.endpoint == f"a/{MODEL}":
            break
    loop.ask()
    assert [event.state for event in loop.of(events.BreakerChanged)] == ["open", "closed"]


def test_002_a_name_that_does_not_resolve_fails_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = start(2, providers={"a": {"base_url": "http://nowhere.invalid/v1", "allow_http": True}})
    resolve = socket.getaddrinfo

    def refuse(host: str, *rest: Any, **more: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.error for attempt in reply.route.attempts] == ["APIConnectionError", None]
    assert reply.route.attempts[0].usage_source == "none"


def test_003_a_refused_handshake_blocks_the_endpoint_and_nothing_is_sent(start: Start) -> None:
    heard = []

    def answer_in_clear(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_in_clear, args=(listener,))
        server.start()
        port = listener.getsockname()[1]
        loop = start(2, providers={"a": {"base_url": f"https://127.0.0.1:{port}/v1"}})
        reply = loop.ask("a secret")
        server.join()
    assert reply.route is not None
    assert [attempt.error for attempt in reply.route.attempts] == ["TLSError", None]
    assert not reply.route.attempts[0].maybe_billed
    assert 290 < loop.endpoint("a")["blocked_s"] <= 300
    assert b"a secret" not in heard[0]


def test_004_a_second_silent_endpoint_is_the_last(start: Start) -> None:
    loop = start(3, providers={"all": {"timeout": 0.2}}, policy={"max_attempts": 10})
    for provider in loop.providers.values():
        provider.script(Fault.black_hole(), repeat=True)
    with within(0.4), pytest.raises(fastroute.APITimeoutError) as caught:
        loop.ask()
    assert len(caught.value.attempts) == 2
    assert all(attempt.maybe_billed for attempt in caught.value.attempts)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.black_hole(), id="004"),
        pytest.param(Fault.drip(1, 0.05, "headers"), id="005"),
        pytest.param(Fault.drip(1, 0.05, "body"), id="007"),
        pytest.param(Fault.stall("headers"), id="007-silent-body"),
    ],
)
def test_the_callers_deadline_holds(start: Start, fault: Fault) -> None:
    loop = start(1)
    loop.provider().script(fault)
    with within(0.3), pytest.raises(fastroute.DeadlineExceeded) as caught:
        loop.ask(timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert len(caught.value.attempts) == 1
    # So short a deadline is no fault of the endpoint.
    assert loop.endpoint()["failed"] == 0
    loop.provider().wait_until(lambda provider: provider.in_flight == 0)


def test_013_a_negative_length_is_read_to_the_close(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.negative_length())
    assert loop.ask().text == "Say hello"


def test_016_the_page_is_not_quoted_at_length_nor_with_the_key(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("CANARY_KEY", key)
    loop = start(1, providers={"a": {"api_key_env": "CANARY_KEY"}}, policy={"max_attempts": 1})
    page = f"<html>{key}{'x' * 5000}</html>"
    for fault in (Fault.html(page), Fault.status(200, page), Fault.html(page, 502)):
        loop.provider().script(fault)
        with pytest.raises(fastroute.APIError) as caught:
            loop.ask()
        assert len(str(caught.value)) < 800
        assert key not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_018_a_redirect_is_never_followed(start: Start, code: int) -> None:
    loop = start(2)
    elsewhere = loop.provider("b")
    loop.provider("a").script(Fault.redirect(code, elsewhere.base_url + "/chat/completions"))
    with pytest.raises(fastroute.APIStatusError, match="redirect") as caught:
        loop.ask()
    assert caught.value.status_code == code
    assert elsewhere.connections == 0


@pytest.mark.parametrize("status", [401, 403])
def test_019_a_refused_key_blocks_the_endpoint_and_not_the_breaker(start: Start, status: int) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(status), repeat=True)
    for _ in range(8):
        reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    assert loop.provider("a").received == 1
    figures = loop.endpoint("a")
    assert 290 < figures["blocked_s"] <= 300
    assert (figures["state"], figures["failed"]) == ("closed", 0)
    (blocked,) = loop.of(events.EndpointBlocked)
    assert (blocked.endpoint, blocked.seconds) == (f"a/{MODEL}", 300)


def test_019_a_refused_key_everywhere_is_the_callers_to_know(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-much-too-old")
    loop = start(1, providers={"a": {"api_key_env": "THE_KEY"}})
    loop.provider().script(Fault.error("invalid_api_key"))
    with pytest.raises(fastroute.AuthenticationError) as caught:
        loop.ask()
    assert caught.value.status_code == 401
    assert caught.value.endpoint == f"a/{MODEL}"
    assert str(caught.value).startswith(f"a/{MODEL}: 401")
    assert str(caught.value).endswith("(the key comes from the environment variable THE_KEY)")
    assert "much-too-old" not in repr(caught.value) + str(caught.value) + caplog.text
    assert f"a/{MODEL} is left out for 300 s: the key was refused" in caplog.messages
    with pytest.raises(fastroute.NoEndpointError, match=r"blocked for .* s \(key refused\)") as later:
        loop.ask()
    assert later.value.retry_after is not None
    assert loop.provider().received == 1


def test_020_an_unknown_model_is_fatal_unless_told_otherwise(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error("model_not_found"))
    with pytest.raises(fastroute.NotFoundError):
        loop.ask()
    assert loop.provider("b").received == 0
    assert loop.endpoint("a")["failed"] == 0
    lenient = start(2, policy={"fallback_on_404": True})
    lenient.provider("a").script(Fault.error("model_not_found"))
    assert lenient.ask().text == "Say hello"


def test_021_too_long_a_prompt_goes_only_to_a_larger_window(start: Start) -> None:
    loop = start(
        2,
        models={
            MODEL: {"context_window": 8192, "fallbacks": ["other-model", "wide-model"]},
            "other-model": {"context_window": 8000},
            "wide-model": {"context_window": 100_000},
        },
        more_endpoints=[
            {"provider": "b", "model": "other-model"},
            {"provider": "b", "model": "wide-model"},
        ],
    )
    loop.provider("a").script(Fault.error("context_length_exceeded"))
    reply = loop.ask()
    assert reply.route is not None
    assert reply.route.endpoint == "b/wide-model"
    assert len(loop.provider("b").requests) == 1


def test_021_without_a_larger_window_it_is_fatal(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error("context_length_exceeded"))
    with pytest.raises(fastroute.ContextLengthExceeded) as caught:
        loop.ask()
    assert caught.value.status_code == 400
    assert loop.provider("b").received == 0  # the same model would only say the same


def test_022_a_content_filter_is_fatal_and_no_failure(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error("content_filter"))
    with pytest.raises(fastroute.ContentFilterError):
        loop.ask()
    assert loop.provider("b").received == 0
    assert loop.endpoint("a")["failed"] == 0


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_023_what_the_caller_did_is_not_tried_again(start: Start, status: int) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(status))
    with pytest.raises(fastroute.APIStatusError) as caught:
        loop.ask()
    assert caught.value.status_code == status
    assert len(caught.value.attempts) == 1
    assert loop.provider("b").received == 0
    assert loop.endpoint("a")["state"] == "closed"


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 529])
def test_023_a_single_endpoint_is_asked_again(start: Start, status: int) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(status), Fault.status(status))
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.status_code for attempt in reply.route.attempts] == [status, status, 200]
    assert reply.route.waited > 0


def test_024_should_retry_false_is_not_asked_again(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(500, headers={"x-should-retry": "false"}))
    with pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert len(caught.value.attempts) == 1
    assert loop.endpoint()["failed"] == 1  # the breaker goes by the status


def test_025_a_body_too_large_is_sent_once(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(413))
    with pytest.raises(fastroute.RequestTooLargeError):
        loop.ask("x" * 2_000_000)
    assert loop.provider("b").received == 0


def test_026_an_endless_error_body_is_not_read(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.huge_body(1 << 40))
    with within(1.0), pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert len(str(caught.value)) < 1000
    loop.provider().wait_until(lambda provider: provider.abandoned == 1)


def test_027_a_bomb_costs_no_more_memory_than_the_cap(start: Start) -> None:
    loop = start(
        {"a": Provider(process=True)}, fastroute={"max_response_bytes": 1 << 20}, policy={"max_attempts": 1}
    )
    loop.ask()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for fault in (Fault.gzip_bomb(400 << 20), Fault.gzip_bomb(400 << 20, 500)):
        loop.provider().script(fault)
        with pytest.raises(fastroute.APIError):
            loop.ask()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024  # KiB; 400 MiB if it were unpacked


def test_027_the_cap_is_a_setting_and_says_so(start: Start) -> None:
    loop = start(1, fastroute={"max_response_bytes": 1000}, policy={"max_attempts": 1})
    with pytest.raises(fastroute.UpstreamProtocolError, match="max_response_bytes"):
        loop.ask("x" * 5000)
    assert loop.ask("x").text == "x"


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


def test_006_an_end_within_the_head_is_no_empty_answer(tmp_path: Path) -> None:
    settings = {
        "fastroute": {"ledger": str(tmp_path / "ledger.db")},
        "endpoints": [{"provider": "p", "model": "m"}],
        "policy": {"max_attempts": 1},
    }
    with nothing_left(), RawServer() as server:
        server.say = Say(b"HTTP/1.1 200 OK\r\nContent-Ty", "cut")
        with fastroute.Client({**settings, "providers": {"p": {"base_url": server.base_url}}}) as client:
            with pytest.raises(fastroute.APIConnectionError) as caught:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            (row,) = client.ledger.entries()
            assert (row.outcome, row.error) == ("failed", type(caught.value).__name__)
            assert client.stats()["endpoints"]["p/m"]["failed"] == 1


def test_102_a_pause_longer_than_the_deadline_is_not_begun(start: Callable[..., Loopback]) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(503, headers={"retry-after": "4"}), repeat=True)
    with pytest.raises(
        fastroute.InternalServerError
    ):  # not DeadlineExceeded, which it would be after a sleep
        loop.ask(timeout=1.0)
    assert len(loop.attempts) == 1
    loop.check()
