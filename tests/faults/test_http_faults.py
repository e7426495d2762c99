"""Cases 1 to 29 and 37: what an upstream can do to a plain HTTP answer. The numbers are the catalogue's."""

from __future__ import annotations

import resource
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import MODEL, Loopback, counted, nothing_left, within
from raw_server import RawServer, Say

import fastroute
from fastroute import events
from fastroute.providers.wordings import CHARGED
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]

LIMITS = {"tpm": 1, "token_burst": 100_000}
"""A bucket of tokens that refills too slowly for any to come back while a test runs."""
BOOKS = [{"name": "books", "limit": 1000.0, "window": "total"}]


# --------------------------------------------------------------------- one failed attempt, another endpoint

# case: what the first endpoint does, the error of the attempt, whether it may be charged for
FAILS_OVER = [
    pytest.param(Fault.reset("connect"), "APIConnectionError", None, id="001-reset-on-connect"),
    pytest.param(Fault.black_hole(), "APITimeoutError", True, id="004-black-hole"),
    pytest.param(Fault.drip(9, 0.1, "headers"), "APITimeoutError", True, id="005-headers-drip"),
    pytest.param(Fault.cut_headers(27), "UpstreamProtocolError", True, id="006-eof-in-a-header"),
    pytest.param(Fault.cut_headers(12), "UpstreamProtocolError", True, id="006-eof-in-the-status-line"),
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
        pytest.param(Fault.status(status), "APIStatusError", status in CHARGED, id=f"023-status-{status}")
        for status in (408, 425)
    ),
    *(
        pytest.param(
            Fault.status(status), "InternalServerError", status in CHARGED, id=f"023-status-{status}"
        )
        for status in (500, 502, 503, 504, 520, 524, 529)
    ),
    pytest.param(Fault.status(409), "ConflictError", False, id="023-status-409"),
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
    pytest.param(
        Fault.status(200, b"[" * 5000 + b"]" * 5000), "UpstreamProtocolError", True, id="035-deep-whole-json"
    ),
    pytest.param(Fault.status(200, b'{"choices": []}'), "EmptyResponse", True, id="037-no-choices"),
    pytest.param(Fault.status(200, b'{"choices": null}'), "EmptyResponse", True, id="037-null-choices"),
]


BLAMELESS = {"APIStatusError", "BadRequestError", "ConflictError", "EmptyResponse", "RateLimitError"}
"""Errors of the table above that the breaker does not count."""


@pytest.mark.parametrize(("fault", "error", "billed"), FAILS_OVER)
def test_the_next_endpoint_answers(start: Start, fault: Fault, error: str, billed: bool | None) -> None:
    quick = {"timeout": 0.3} if error == "APITimeoutError" else {}
    loop = start(2, providers={"all": LIMITS, "a": quick}, budgets=BOOKS, fastroute={"connect_timeout": 0.3})
    loop.provider("a").script(fault)
    before = loop.endpoint("a")["available_tokens"]
    with within(0.3 if quick else 1.0):
        reply = loop.ask(max_tokens=1000)
    assert reply.text == "Say hello"
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    assert reply.route.waited == 0
    failed, answered = reply.route.attempts
    assert (failed.endpoint, failed.outcome, failed.error) == (f"a/{MODEL}", "failed", error)
    assert (answered.endpoint, answered.outcome, answered.usage_source) == (f"b/{MODEL}", "ok", "provider")
    assert loop.endpoint("a")["failed"] == (error not in BLAMELESS)
    seen = 0 if fault.on_connect else 1
    loop.provider("a").wait_until(
        lambda provider: provider.received >= seen
    )  # it may be slower than the clock
    assert loop.provider("a").received == seen  # and not again in secret
    if billed is not None:  # else it depends on whether the reset was met while sending or after
        assert failed.maybe_billed is billed
    kept = before - loop.endpoint("a")["available_tokens"]
    if failed.maybe_billed:
        # The provider may have worked for it: no tokens are given back, and the money is for all of them.
        assert kept >= 1000
        assert (failed.usage_source, failed.completion_tokens) == ("estimated", 1000)
        assert failed.cost_nano == failed.prompt_tokens * 1000 + 1000 * 2000
        assert failed.estimated
        assert (failed.budget_nano or 0) > failed.cost_nano  # the prompt may have more tokens than estimated
    else:
        assert kept == 0
        assert (failed.usage_source, failed.cost_nano, failed.prompt_tokens) == ("none", 0, 0)
        assert failed.budget_nano is None
    (book,) = loop.client.stats()["budgets"]
    assert (book.reserved_nano, book.spent_nano) == (0, counted(reply.route.attempts))
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
    assert reply.route.waited == 0
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
    assert loop.endpoint("a")["failed"] == 1


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
    for name in "ab":
        loop.provider(name).wait_until(lambda provider: provider.received > 0)
    assert [provider.received for provider in loop.providers.values()] == [1, 1, 0]
    assert [loop.endpoint(name)["failed"] for name in "abc"] == [1, 1, 0]


@pytest.mark.parametrize("empty", [Fault.status(204, b""), Fault.status(200, b"")], ids=["204", "200"])
def test_015_an_endpoint_that_answers_with_nothing_is_asked_once_more(start: Start, empty: Fault) -> None:
    loop = start(3, policy={"max_attempts": 10})
    for provider in loop.providers.values():
        provider.script(empty, repeat=True)
    with pytest.raises(fastroute.EmptyResponse) as caught:
        loop.ask()
    assert [attempt.provider for attempt in caught.value.attempts] == [*"abcabc"]
    assert [loop.endpoint(name)["state"] for name in "abc"] == ["closed"] * 3
    assert all(loop.endpoint(name)["success_rate"] < 0.9 for name in "abc")


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
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.negative_length(), Fault.negative_length() | Fault.close(60, "body"))
    assert loop.ask().text == "Say hello"
    with pytest.raises(fastroute.UpstreamTruncated):  # the close ends it, and what has come is looked at
        loop.ask()
    assert [request.connection for request in loop.provider().requests] == [1, 2]


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
        said = f"{caught.value} {caught.value!r}"
        assert len(str(caught.value)) < 400
        assert str(caught.value).count("x") <= 200
        assert key not in said
        assert "canary" not in said


@pytest.mark.parametrize(
    ("code", "kind", "blocked"),
    [
        ("invalid_api_key", fastroute.AuthenticationError, 300),
        ("insufficient_quota", fastroute.QuotaExceededError, 900),
        ("context_length_exceeded", fastroute.ContextLengthExceeded, 0),
        ("model_not_found", fastroute.NotFoundError, 300),
    ],
)
def test_017_an_error_in_a_good_answer_is_what_it_says(
    start: Start, code: str, kind: type[fastroute.Error], blocked: float
) -> None:
    loop = start(1)
    loop.provider().script(Fault.error_in_200(code))
    with pytest.raises(kind) as caught:
        loop.ask()
    assert type(caught.value) is kind
    assert loop.provider().received == 1
    assert loop.endpoint()["failed"] == 0
    assert blocked - 10 < loop.endpoint()["blocked_s"] <= blocked


@pytest.mark.parametrize("ask", [Loopback.ask, Loopback.stream], ids=["plain", "streamed"])
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_018_a_redirect_is_never_followed(start: Start, code: int, ask: Callable[[Loopback], object]) -> None:
    loop = start(2)
    elsewhere = loop.provider("b")
    loop.provider("a").script(Fault.redirect(code, elsewhere.base_url + "/chat/completions"))
    with pytest.raises(fastroute.APIStatusError, match="redirect") as caught:
        ask(loop)
    assert caught.value.status_code == code
    assert elsewhere.connections == 0
    assert (loop.provider("a").received, loop.endpoint("a")["failed"]) == (1, 0)


@pytest.mark.parametrize(
    "refusal",
    [
        Fault.status(401),
        Fault.status(403, {"error": {"message": "API key was reported as leaked.", "code": 403}}),
    ],
    ids=["401", "403"],
)
def test_019_a_refused_key_blocks_the_endpoint_and_not_the_breaker(start: Start, refusal: Fault) -> None:
    loop = start(2)
    loop.provider("a").script(refusal, repeat=True)
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
    assert f"a/{MODEL} is left out for 5 min: the key was refused" in caplog.messages
    with pytest.raises(fastroute.NoEndpointError, match=r"blocked for [\d.]+ min \(key refused\)") as later:
        loop.ask()
    assert later.value.retry_after is not None
    assert loop.provider().received == 1


def test_020_a_model_that_a_provider_does_not_serve_is_asked_for_elsewhere(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error("model_not_found"), repeat=True)
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.error for attempt in reply.route.attempts] == ["NotFoundError", None]
    figures = loop.endpoint("a")
    assert 290 < figures["blocked_s"] <= 300
    assert (figures["state"], figures["failed"]) == ("closed", 0)
    loop.ask("again")
    assert loop.provider("a").received == 1
    loop.provider("b").script(Fault.error("model_not_found"))
    with pytest.raises(fastroute.NotFoundError) as caught:
        loop.ask()
    assert caught.value.endpoint == f"b/{MODEL}"
    with pytest.raises(fastroute.NotFoundError, match="model not served") as later:
        loop.ask()
    assert later.value.retry_after is not None
    assert later.value.attempts == ()


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
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 1)
    assert loop.endpoint("a")["failed"] == 0


def test_021_without_a_larger_window_it_is_fatal(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.error("context_length_exceeded"))
    with pytest.raises(fastroute.ContextLengthExceeded) as caught:
        loop.ask()
    assert caught.value.status_code == 400
    # The same model would only say the same.
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)


@pytest.mark.parametrize("status", [400, 403])
def test_022_a_content_filter_is_fatal_and_no_failure(start: Start, status: int) -> None:
    loop = start(2)
    filtered = {"error": {"code": "content_filter", "message": "The response was filtered", "status": status}}
    loop.provider("a").script(Fault.status(status, filtered))
    with pytest.raises(fastroute.ContentFilterError) as caught:
        loop.ask()
    assert caught.value.status_code == status
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)
    assert (loop.endpoint("a")["failed"], loop.endpoint("a")["blocked_s"]) == (0, 0)  # 403 as it is


@pytest.mark.parametrize("status", [400, 422])
def test_023_what_the_caller_did_is_not_tried_again(start: Start, status: int) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(status))
    with pytest.raises(fastroute.APIStatusError) as caught:
        loop.ask()
    assert caught.value.status_code == status
    assert len(caught.value.attempts) == 1
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)
    assert (loop.endpoint("a")["state"], loop.endpoint("a")["failed"]) == ("closed", 0)


@pytest.mark.parametrize("status", [408, 409, 425, 498, 500, 502, 503, 504, 529])
def test_023_a_single_endpoint_is_asked_again(start: Start, status: int) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(status), Fault.status(status))
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.status_code for attempt in reply.route.attempts] == [status, status, 200]
    assert loop.provider().received == 3
    assert reply.route.waited > 0


@pytest.mark.parametrize("status", [400, 409])
def test_024_should_retry_true_is_asked_again_and_no_failure(start: Start, status: int) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(status, headers={"x-should-retry": "true"}))
    reply = loop.ask()
    assert reply.route is not None
    assert [attempt.status_code for attempt in reply.route.attempts] == [status, 200]
    assert loop.endpoint()["failed"] == 0  # the breaker goes by the status


def test_024_should_retry_false_is_not_asked_again(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(500, headers={"x-should-retry": "false"}))
    with pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert len(caught.value.attempts) == loop.provider().received == 1
    assert loop.endpoint()["failed"] == 1  # the breaker goes by the status


def test_025_a_body_too_large_for_one_endpoint_is_sent_to_one_other(start: Start) -> None:
    loop = start(3, policy={"max_attempts": 5})
    loop.provider("a").script(Fault.status(413))
    reply = loop.ask("x" * 2_000_000)
    assert reply.route is not None
    assert [attempt.provider for attempt in reply.route.attempts] == ["a", "b"]
    assert loop.endpoint("a")["success_rate"] < 1 == loop.endpoint("b")["success_rate"]
    assert loop.endpoint("a")["failed"] == 0


@pytest.mark.parametrize("second", [413, 503])
def test_025_a_large_body_is_uploaded_twice_at_most(start: Start, second: int) -> None:
    loop = start(3, policy={"max_attempts": 5})
    loop.provider("a").script(Fault.status(413))
    loop.provider("b").script(Fault.status(second))
    with pytest.raises(fastroute.RequestTooLargeError):
        loop.ask("x" * 2_000_000)
    assert [provider.received for provider in loop.providers.values()] == [1, 1, 0]


def test_025_after_other_failures_too(start: Start) -> None:
    loop = start(3, policy={"max_attempts": 5})
    loop.provider("a").script(Fault.status(503))
    loop.provider("b").script(Fault.status(413))
    with pytest.raises(fastroute.InternalServerError):
        loop.ask("x" * 2_000_000)
    assert [provider.received for provider in loop.providers.values()] == [1, 1, 0]


def test_026_an_endless_error_body_is_not_read(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.huge_body(1 << 40))
    with within(1.0), pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert len(str(caught.value)) < 1000
    loop.provider().wait_until(lambda provider: provider.abandoned == 1)


@pytest.mark.parametrize("framing", [b"content-length: 1073741824", b"transfer-encoding: chunked"])
def test_026_64_kib_of_an_error_are_enough(start: Start, framing: bytes) -> None:
    """What comes after them never comes, and is not waited for."""
    loop = start(1, policy={"max_attempts": 1})
    head = b"HTTP/1.1 500 No\r\ncontent-type: text/plain\r\n" + framing + b"\r\n\r\n"
    begun = b"10000\r\n" if b"chunked" in framing else b""
    loop.provider().script(Fault.raw(head + begun + b"x" * 65536, then="hang"))
    with within(0.5), pytest.raises(fastroute.InternalServerError) as caught:
        loop.ask()
    assert caught.value.status_code == 500
    loop.provider().wait_until(lambda provider: provider.open_connections == 0)


def test_027_a_bomb_costs_no_more_memory_than_the_cap(start: Start) -> None:
    loop = start(
        {"a": Provider(process=True)}, fastroute={"max_response_bytes": 1 << 20}, policy={"max_attempts": 1}
    )
    loop.ask()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()  # the other says nothing where an earlier test has had more
    try:
        for fault in (Fault.gzip_bomb(400 << 20), Fault.gzip_bomb(400 << 20, 500)):
            loop.provider().script(fault)
            with pytest.raises(fastroute.APIError):
                loop.ask()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert peak < 3 << 20  # 400 MiB if it were unpacked
    assert grown < 8 * 1024  # KiB, some of them the tracing's own


def test_027_the_cap_is_a_setting_and_says_so(start: Start) -> None:
    loop = start(1, fastroute={"max_response_bytes": 1000}, policy={"max_attempts": 1})
    with pytest.raises(fastroute.UpstreamProtocolError, match="max_response_bytes"):
        loop.ask("x" * 5000)
    assert loop.ask("x").text == "x"


def test_006_an_end_within_the_head_is_no_empty_answer(tmp_path: Path) -> None:
    settings = {
        "fastroute": {"ledger": str(tmp_path / "ledger.db")},
        "endpoints": [{"provider": "p", "model": "m"}],
        "policy": {"max_attempts": 1},
    }
    with nothing_left(), RawServer() as server:
        server.say = Say(b"HTTP/1.1 200 OK\r\nContent-Ty", "cut")
        with fastroute.Client({**settings, "providers": {"p": {"base_url": server.base_url}}}) as client:
            with pytest.raises(fastroute.UpstreamProtocolError) as caught:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            assert caught.value.maybe_billed
            assert len(server.requests) == 1
            (row,) = client.ledger.entries()
            assert (row.outcome, row.error) == ("failed", "UpstreamProtocolError")
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
