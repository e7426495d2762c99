"""What is asked before a body is read, and what is left when a request has ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from gateways import CHAT, HELLO, Served, admit, error_of
from werkzeug.test import create_environ, run_wsgi_app
from werkzeug.wrappers import Response

from fastroute.gateway.keys import Caller
from fastroute.gateway.load import Load, Place
from fastroute.testing import Answer, Fault

Serve = Callable[..., Served]

FREE = {"models": {"gpt-4.1": {"input_price": 0, "output_price": 0}}}


class Unread(io.RawIOBase):
    """A body that must not be read."""

    def read(self, size: int = -1) -> NoReturn:
        raise AssertionError("the body was read")


def ask(served: Served, body: Any, **environ: Any) -> Any:
    """The response of the app itself: a test client would change the environment."""
    found = create_environ(CHAT, method="POST", headers={"Authorization": f"Bearer {served.token}"})
    found |= {"CONTENT_TYPE": "application/json", "wsgi.input": body, **environ}
    return Response(*run_wsgi_app(served.app, found, buffered=True))


def unread(served: Served, size: int = 1000) -> Any:
    return ask(served, Unread(), CONTENT_LENGTH=str(size))


def at_its_requests(serve: Serve) -> Served:
    served = serve(Caller("web", rpm=1))
    assert served.post().status_code == 200
    return served


def at_its_tokens(serve: Serve) -> Served:
    caller = Caller("web", tpm=600)
    served = serve(caller)
    admit(served.app.limits, caller, 1).settle(700_000)
    return served


def spend(served: Served, caller: Caller) -> None:
    """Spends the caller's budget of ten thousand nano-dollars, so that nothing at all fits."""
    budgets = served.app.budgets.of(caller)
    assert budgets is not None
    budgets.reserve(10_000, {"key": "web"}, 60.0).settle(10_000)


def at_its_budget(serve: Serve) -> Served:
    caller = Caller("web", budgets={"total": 0.000_01})
    served = serve(caller)
    spend(served, caller)
    return served


def with_a_call_under_way(serve: Serve, **settings: Any) -> Served:
    served = serve(Caller("web", max_in_flight=1), **settings)
    served.app.load.enter("web", None, None)
    return served


def busy(serve: Serve) -> Served:
    served = serve(gateway={"max_in_flight": 1})
    served.app.load.enter("another", None, None)
    return served


def full(serve: Serve) -> Served:
    served = serve(gateway={"max_body_bytes": 2000, "max_bytes_under_way": 2000})
    served.app.load.enter("another", None, None).add(1500, 2000)
    return served


LIMITS: dict[str, tuple[Callable[[Serve], Served], int, str]] = {
    "requests": (at_its_requests, 429, "rate_limit_exceeded"),
    "tokens": (at_its_tokens, 429, "rate_limit_exceeded"),
    "budget": (at_its_budget, 429, "budget_exceeded"),
    "calls of the key": (with_a_call_under_way, 429, "too_many_calls_at_once"),
    "calls of all": (busy, 503, "too_many_calls"),
    "bytes of all": (full, 503, "too_many_bytes"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_asked_before_the_body_is_read(serve: Serve, limit: str) -> None:
    make, status, code = LIMITS[limit]
    served = make(serve)
    sent = len(served.provider.requests)
    response = unread(served)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    if limit != "budget":  # one without an end
        assert int(response.headers["Retry-After"]) >= 1
        assert "x-should-retry" not in response.headers
    assert len(served.provider.requests) == sent
    refused = served.app.refusals.totals()
    assert sum(refused.values()) == 1


def test_a_budget_that_is_used_up_does_not_exclude_a_model_that_costs_nothing(serve: Serve) -> None:
    caller = Caller("web", budgets={"total": 0.000_01})
    served = serve(caller, **FREE)
    spend(served, caller)
    assert served.post({**HELLO, "model": "gpt-4.1"}).status_code == 200
    assert served.post({**HELLO, "model": "gpt-4.1-mini"}).status_code == 429


@pytest.mark.parametrize("body", [b"{", b"{}", {**HELLO, "model": "unknown"}], ids=repr)
def test_a_request_counts_when_it_arrives_whatever_becomes_of_it(serve: Serve, body: Any) -> None:
    served = serve(Caller("web", rpm=1))
    response = served.post(body)
    assert response.status_code in (400, 404)
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert served.post().status_code == 429


def test_tokens_that_were_not_used_are_given_back(serve: Serve) -> None:
    served = serve(Caller("web", tpm=1000))
    for body in (b"{", b"{}", {**HELLO, "model": "unknown"}, {**HELLO, "max_tokens": 5000}):
        response = served.post(body)
        assert response.status_code in (400, 404, 413)
        assert response.headers["x-ratelimit-remaining-tokens"] == "1000"


def test_a_keys_body_may_be_smaller_than_the_gateways(serve: Serve) -> None:
    served = serve(Caller("web", max_body_bytes=500))
    assert served.post().status_code == 200
    assert unread(served, 501).status_code == 413
    assert served.post({**HELLO, "messages": [{"role": "user", "content": "x" * 500}]}).status_code == 413


def test_bodies_are_counted_as_they_arrive_and_not_as_they_are_announced(serve: Serve) -> None:
    served = serve(gateway={"max_body_bytes": 2000, "max_bytes_under_way": 2000})
    load = served.app.load
    place = load.enter("another", None, None)
    place.check(2000, 2000)  # has announced as many and sent none
    assert served.post().status_code == 200
    place.add(1990, 2000)
    chunked = ask(served, io.BytesIO(b" " * 1000), **{"wsgi.input_terminated": True})
    assert (chunked.status_code, error_of(chunked)["code"]) == (503, "too_many_bytes")
    place.leave()
    place.leave()
    assert load.figures == (0, 0)


ENDINGS: dict[str, tuple[Any, Any]] = {
    "an answer": (HELLO, None),
    "not JSON": (b"{", None),
    "an unknown model": ({**HELLO, "model": "unknown"}, None),
    "a failure": (HELLO, Fault.status(400)),
    "a stream": ({**HELLO, "stream": True}, None),
    "a stream that breaks": ({**HELLO, "stream": True}, Fault.reset(400, part="body")),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_under_way_when_a_request_has_ended(serve: Serve, ending: str) -> None:
    body, fault = ENDINGS[ending]
    served = serve(Caller("web", max_in_flight=1), policy={"max_attempts": 1})
    for _ in range(2):
        if fault is not None:
            served.provider.script(fault)
        assert served.post(body).status_code != 429
        assert served.app.load.figures == (0, 0)


def test_a_stream_is_under_way_until_it_is_closed(serve: Serve) -> None:
    served = serve(Caller("web", max_in_flight=1), Answer("word " * 100))
    stream = served.post({**HELLO, "stream": True}, buffered=False)
    assert served.app.load.figures[0] == 1
    response = served.post()
    assert (response.status_code, error_of(response)["code"]) == (429, "too_many_calls_at_once")
    stream.close()
    assert served.app.load.figures == (0, 0)
    assert served.post().status_code == 200


def test_a_server_that_refuses_the_head_of_a_response_holds_nothing(serve: Serve) -> None:
    served = serve()

    def refuse(status: str, headers: Any, _: Any = None) -> NoReturn:
        raise OSError("the client is gone")

    body = b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'
    environ = create_environ(CHAT, method="POST", headers={"Authorization": f"Bearer {served.token}"})
    environ |= {
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    with pytest.raises(OSError, match="gone"):
        served.app(environ, refuse)
    assert served.app.load.figures == (0, 0)


class _EndsAnother(str):
    """A key at whose look-up another call ends, as a garbage collection may end one at any time."""

    other: Place

    def __hash__(self) -> int:
        self.other.leave()
        return super().__hash__()


def test_a_call_may_end_while_another_is_counted() -> None:
    load = Load()
    other = load.enter("a", None, 10)
    other.add(5, 100)
    key = _EndsAnother("a")
    key.other = other
    place = load.enter(key, None, 10)
    assert load.figures == (1, 0)
    place.leave()
    place.leave()
    assert load.figures == (0, 0)
