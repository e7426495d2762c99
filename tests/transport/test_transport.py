"""Connections: shared, kept, used through a caller's session, and never reused after a failure."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from loopback import MODEL, Loopback, within
from requests.adapters import HTTPAdapter

import fastroute
from fastroute import errors
from fastroute.testing import Fault, Provider
from fastroute.transport import Transport
from fastroute.transport.request_timer import RequestTimer

Start = Callable[..., Loopback]


class Recording(HTTPAdapter):
    """An adapter of the caller's that sees what is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, Any]] = []
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.seen.append((request.url, request.body))
        request.headers["x-mark"] = "mine"
        return super().send(request, *args, **kwargs)


def test_a_callers_session_is_sent_through(start: Start) -> None:
    adapter = Recording()
    with requests.Session() as session:
        session.mount("http://", adapter)
        loop = start(1, session=session)
        assert loop.ask().text == "Say hello"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in loop.stream()) == "Say hello"
        assert [request.headers["x-mark"] for request in loop.provider().requests] == ["mine", "mine"]
        assert {url for url, _ in adapter.seen} == {loop.provider().base_url + "/chat/completions"}
        loop.client.close()
        assert (
            session.get(loop.provider().base_url + "/models").status_code == 200
        )  # it is still the caller's


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(503), fastroute.InternalServerError),
        (Fault.truncated(), fastroute.UpstreamTruncated),
        (Fault.bad_gzip(), fastroute.UpstreamProtocolError),
        (Fault.length_and_chunked(), fastroute.UpstreamProtocolError),
        (Fault.black_hole(), fastroute.APITimeoutError),
        (Fault.drip(1, 0.05), fastroute.APITimeoutError),
        (Fault.drip(1, 0.05, part="headers"), fastroute.APITimeoutError),
        (Fault.redirect(302, "http://127.0.0.1:1/"), fastroute.APIStatusError),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_faults_through_a_callers_session_mean_the_same(
    start: Start, fault: Fault, kind: type[errors.Error]
) -> None:
    with requests.Session() as session:
        loop = start(1, session=session, policy={"max_attempts": 1}, providers={"a": {"timeout": 0.3}})
        loop.ask()
        loop.provider().script(fault)
        with within(0.3), pytest.raises(kind):
            loop.ask()
        assert loop.ask("next").text == "next"
        read_to_its_end = kind in (fastroute.InternalServerError, fastroute.APIStatusError)
        read_to_its_end = read_to_its_end or fault.name == "bad_gzip"
        assert [request.connection for request in loop.provider().requests] == [1, 1, 2 - read_to_its_end]


@pytest.mark.parametrize("end", [Fault.close, Fault.reset], ids=["close", "reset"])
def test_030_a_callers_session_sends_again_as_well(start: Start, end: Callable[..., Fault]) -> None:
    with requests.Session() as session:
        loop = start(1, session=session, policy={"max_attempts": 1})
        loop.ask()
        loop.provider().script(end("request"), end("request"), end("request"))
        with pytest.raises(fastroute.APIConnectionError):
            loop.ask()
        assert [request.connection for request in loop.provider().requests] == [1, 1, 2]
        with pytest.raises(fastroute.APIConnectionError):
            loop.ask()  # on a fresh one, and so not again
        assert [request.connection for request in loop.provider().requests] == [1, 1, 2, 3]
        assert loop.ask("next").text == "next"


def test_connections_are_kept(start: Start) -> None:
    loop = start(1)
    for number in range(5):
        loop.ask(f"{number}")
    assert loop.provider().connections == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault.truncated(),
        Fault.cut_chunk(0),
        Fault.duplicate_length(),
        Fault.length_and_chunked(),
        Fault.many_headers(200),
        Fault.interim(101),
        Fault.gzip_bomb(100 << 20),
        Fault.drip(1, 0.05),
        Fault.slow(0.3),  # later than it is waited for
        Fault.stall("headers", 0.3),
        Fault.huge_body(1 << 20),  # of an error, of which not all is read
    ],
    ids=lambda fault: fault.name,
)
def test_034_a_connection_is_not_used_again_after_trouble(start: Start, fault: Fault) -> None:
    loop = start(1, policy={"max_attempts": 1}, providers={"a": {"timeout": 0.2}})
    loop.ask()
    loop.provider().script(fault)
    with pytest.raises(fastroute.APIError):
        loop.ask()
    assert loop.ask("next").text == "next"
    assert [request.connection for request in loop.provider().requests] == [1, 1, 2]


def test_034_nor_after_a_stream_that_was_left(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(3, 0.1))
    with loop.stream("a long answer to be left early") as stream:
        next(stream)
    assert loop.ask("next").text == "next"
    assert [request.connection for request in loop.provider().requests] == [1, 2]


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "after-a-while"])
def test_034_an_answer_that_nobody_asked_for_is_nobodys(start: Start, late: bool) -> None:
    """A second answer behind the first, as from a proxy that has lost count."""
    loop = start(1, policy={"max_attempts": 1})
    body = json.dumps({"choices": [{"message": {"content": "of another"}, "finish_reason": "stop"}]}).encode()
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    whole += body
    sent = (whole, 0.05, whole) if late else (whole + whole,)
    loop.provider().script(Fault.raw(*sent, then="keep"))
    assert loop.ask().text == "of another"  # which is the answer to this one
    loop.provider().wait_until(lambda provider: provider.in_flight == 0)
    assert loop.ask("my own").text == "my own"


@pytest.mark.parametrize(
    "end", [Fault.close("request"), Fault.reset("request")], ids=lambda fault: fault.name
)
def test_030_a_kept_connection_that_ends_is_replaced_once(start: Start, end: Fault) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.ask()
    loop.provider().script(end)
    reply = loop.ask("again")
    assert reply.text == "again"
    assert reply.route is not None
    assert [attempt.maybe_billed for attempt in reply.route.attempts] == [
        True
    ]  # the first may have been read
    assert [attempt.maybe_billed for attempt in loop.attempts] == [False, True]
    assert loop.endpoint()["failed"] == 0
    assert [request.connection for request in loop.provider().requests] == [1, 1, 2]
    loop.provider().script(end, end)
    with pytest.raises(fastroute.APIConnectionError):
        loop.ask()
    assert [request.connection for request in loop.provider().requests] == [
        1,
        1,
        2,
        2,
        3,
    ]  # and no third time


def test_030_it_goes_out_again_on_a_fresh_connection_and_no_other_kept_one(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().latency = 0.1
    workers = [threading.Thread(target=loop.ask) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    loop.provider().script(Fault.close("request"))
    assert loop.ask("again").text == "again"
    assert sorted(request.connection for request in loop.provider().requests[:2]) == [1, 2]
    assert loop.provider().requests[-1].connection == 3


def test_030_sending_again_is_not_charged_to_the_retry_budget(start: Start) -> None:
    loop = start(1)
    loop.ask()
    (endpoint,) = loop.client.runtime.generation.state.endpoints
    while endpoint.core.withdraw():
        pass
    loop.provider().script(Fault.close("request"))
    assert loop.ask("again").text == "again"
    assert loop.provider().received == 3
    assert len(loop.attempts) == 2


@pytest.mark.parametrize("end", [Fault.close, Fault.reset], ids=["close", "reset"])
@pytest.mark.parametrize("after", [1, 12, "headers"])
def test_030_after_a_byte_of_an_answer_nothing_is_sent_again(
    start: Start, end: Callable[..., Fault], after: int | str
) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.ask()
    loop.provider().script(end(after))
    with pytest.raises(fastroute.APIConnectionError):
        loop.ask()
    assert [request.connection for request in loop.provider().requests] == [1, 1]
    assert loop.attempts[1].maybe_billed


def test_030_a_fresh_connection_that_ends_is_a_failure(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.provider().script(Fault.close("request"))
    with pytest.raises(fastroute.APIConnectionError):
        loop.ask()
    assert loop.provider().received == 1
    assert loop.attempts[0].maybe_billed


def test_a_restarted_provider_is_reached_again(start: Start) -> None:
    loop = start(1, policy={"max_attempts": 1})
    loop.ask()
    loop.provider().restart()
    assert loop.ask("again").text == "again"


def test_a_spent_deadline_sends_nothing() -> None:
    with Provider() as provider:
        transport = Transport()
        prepared = transport.prepare(provider.base_url + "/models", {}, "GET")
        with pytest.raises(errors.APITimeoutError):
            transport.send(prepared, None, RequestTimer(time.monotonic()), read_timeout=1.0)
        exchange = transport.send(prepared, None, RequestTimer(time.monotonic() + 5), read_timeout=1.0)
        assert exchange.status == 200
        assert exchange.body()
        exchange.close()
        transport.close()
        with pytest.raises(errors.APIConnectionError, match="closed"):
            transport.send(prepared, None, RequestTimer(time.monotonic() + 5), read_timeout=1.0)
        assert provider.received == 1


def test_the_model_that_answers_is_the_one_asked(start: Start) -> None:
    loop = start(1)
    assert loop.ask().model == MODEL


def test_what_goes_out_is_made_once_and_again_where_it_differs(start: Start) -> None:
    loop = start(1)
    loop.ask("one")
    loop.ask("two, which is longer")
    list(loop.stream())  # other headers over the same connection
    loop.ask("three")
    seen = loop.provider().requests
    assert {request.connection for request in seen} == {1}
    assert [request.headers["accept"] for request in seen] == [
        "application/json",
        "application/json",
        "text/event-stream",
        "application/json",
    ]
    said = [json.loads(request.body)["messages"][0]["content"] for request in seen]
    assert [said[0], said[1], said[3]] == ["one", "two, which is longer", "three"]


def test_a_request_tells_one_length_and_that_is_its_bodys() -> None:
    """Two lengths are two requests to whoever goes by the other one."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as sent:
                while (line := sent.readline()) not in (b"\r\n", b""):
                    heads.append(line)

        thread = threading.Thread(target=answer)
        thread.start()
        tables = {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "policy": {"max_attempts": 1},
        }
        with fastroute.Client(tables) as client, pytest.raises(fastroute.Error):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        thread.join()
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    lengths = [line for line in heads if line.lower().startswith((b"content-length", b"transfer-encoding"))]
    assert lengths == [b"Content-Length: %d\r\n" % len(body)]
