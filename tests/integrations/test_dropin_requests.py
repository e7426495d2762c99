"""Code written for requests, run unchanged with a routing adapter mounted."""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import urllib3
from loopback import MODEL, Loopback, within

import fastroute
from fastroute.integrations.requests import RoutingAdapter
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]
OPENAI = "https://api.openai.com/v1"
URL = OPENAI + "/chat/completions"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]}


@pytest.fixture
def mounted(start: Start) -> Iterator[Callable[..., tuple[requests.Session, Loopback]]]:
    sessions = []

    def mount(*arguments: Any, **tables: Any) -> tuple[requests.Session, Loopback]:
        loop = start(*arguments, **tables)
        session = requests.Session()
        session.headers["Authorization"] = "Bearer sk-of-the-session"
        session.mount("https://api.openai.com/", RoutingAdapter(loop.client))
        sessions.append(session)
        return session, loop

    yield mount
    for session in sessions:
        session.close()


Mounted = Callable[..., tuple[requests.Session, Loopback]]


def test_a_post_gets_an_ordinary_response(mounted: Mounted) -> None:
    session, loop = mounted()
    heard: list[requests.Response] = []
    response = session.post(URL, json=ASK, hooks={"response": lambda got, **_: heard.append(got)})
    assert heard == [response]
    response.raise_for_status()
    assert (response.status_code, response.reason, response.ok) == (200, "OK", True)
    assert response.url == URL
    assert response.request.url == URL
    assert response.json()["choices"][0]["message"]["content"] == "Say hello"
    assert response.headers["Content-Type"] == "application/json"
    assert int(response.headers["Content-Length"]) == len(response.content)
    assert response.headers["x-fastroute-endpoint"] == f"a/{MODEL}"
    assert response.elapsed.total_seconds() > 0
    assert response.history == []
    assert len(loop.attempts) == 1


def test_the_sessions_key_goes_nowhere(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-of-the-client")
    session, loop = mounted(1, providers={"a": {"api_key_env": "SOME_KEY"}})
    session.headers["Cookie"] = "secret=1"
    session.post(URL, json=ASK, auth=("user", "password")).raise_for_status()
    (request,) = loop.provider().requests
    assert request.headers["authorization"] == "Bearer sk-of-the-client"
    assert "sk-of-the-session" not in str(request.headers)
    assert "cookie" not in request.headers


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ASK),
        json.dumps(ASK).encode(),
        bytearray(json.dumps(ASK).encode()),
        io.BytesIO(json.dumps(ASK).encode()),
        io.StringIO(json.dumps(ASK)),
        iter([json.dumps(ASK)[:9].encode(), json.dumps(ASK)[9:].encode()]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_body_of_any_kind(mounted: Mounted, data: Any) -> None:
    session, _ = mounted()
    response = session.post(URL, data=data)
    assert response.json()["choices"][0]["message"]["content"] == "Say hello"


def test_numbers_reach_the_provider_as_they_were_sent(mounted: Mounted) -> None:
    session, loop = mounted({"a": Provider(strict=False)})
    session.post(URL, json={**ASK, "seed": 2**70, "temperature": 0}).raise_for_status()
    (request,) = loop.provider().requests
    assert request.json["seed"] == 2**70
    assert request.json["temperature"] == 0
    refused = session.post(URL, data=json.dumps({**ASK, "temperature": float("nan")}))
    assert refused.status_code == 400
    assert loop.provider().received == 1


def test_a_stream_by_lines(mounted: Mounted) -> None:
    session, loop = mounted(1, answer="one two three")
    with session.post(URL, json={**ASK, "stream": True}, stream=True) as response:
        response.raise_for_status()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines(decode_unicode=True) if line]
    assert lines[-1] == "data: [DONE]"
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "one two three"
    assert [attempt.outcome for attempt in loop.attempts] == ["ok"]


@pytest.mark.parametrize("size", [None, 1, 7, 100_000])
def test_a_stream_by_bytes(mounted: Mounted, size: int | None) -> None:
    session, _ = mounted()
    response = session.post(URL, json={**ASK, "stream": True}, stream=True)
    pieces = list(response.iter_content(size))
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert size is None or max(map(len, pieces)) <= size
    whole = session.post(URL, json={**ASK, "stream": True})
    assert whole.content.endswith(b"data: [DONE]\n\n")
    assert len(whole.content) == len(b"".join(pieces))


def test_a_stream_as_a_file(mounted: Mounted) -> None:
    session, _ = mounted()
    response = session.post(URL, json={**ASK, "stream": True}, stream=True)
    text = b""
    while piece := response.raw.read(50):
        text += piece
    assert text.endswith(b"data: [DONE]\n\n")
    with session.post(URL, json={**ASK, "stream": True}, stream=True) as response:
        assert list(response.raw)[-2:] == [b"data: [DONE]\n", b"\n"]


def test_events_are_there_when_they_have_come(mounted: Mounted) -> None:
    """And not only when as many bytes are there as the caller would take."""
    session, loop = mounted(1, answer="one two three")
    loop.provider().script(Fault.stream_stall(after=3, seconds=30))
    with session.post(URL, json={**ASK, "stream": True}, stream=True) as response, within(5):
        lines = response.iter_lines(chunk_size=100_000)
        seen = b""
        while b"one" not in seen:
            seen = next(lines)
        assert loop.provider().in_flight == 1


def test_59_closing_early_ends_the_call(mounted: Mounted) -> None:
    session, loop = mounted(1, answer="one two three")
    loop.provider().script(Fault.stream_stall(after=3, seconds=30))
    with session.post(URL, json={**ASK, "stream": True}, stream=True) as response:
        next(response.iter_lines())
    loop.provider().wait_until(lambda provider: provider.in_flight == 0, 5)
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]
    response.close()


def test_a_stream_that_breaks_is_never_a_short_answer(mounted: Mounted) -> None:
    session, loop = mounted(1, answer="one two three four")
    loop.provider().script(Fault.stream_cut(after=3))
    response = session.post(URL, json={**ASK, "stream": True}, stream=True)
    seen = []
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="broke off"):
        seen += response.iter_lines()
    loop.provider().script(Fault.stream_cut(after=3))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.post(URL, json={**ASK, "stream": True})


def test_a_streams_time_is_up(mounted: Mounted) -> None:
    session, loop = mounted(1, answer="one two three four")
    loop.provider().script(Fault.stream_stall(after=3, seconds=30))
    with pytest.raises(requests.ConnectionError, match="deadline"), within(0.3):
        session.post(URL, json={**ASK, "stream": True}, timeout=0.3)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.error("rate_limit_exceeded", {"retry-after": "120"}), 429, "rate_limit_exceeded"),
        (Fault.status(401), 401, None),
        (Fault.status(400), 400, None),
        (Fault.status(500), 500, None),
        (Fault.html(), 502, "upstream_unavailable"),
    ],
    ids=["429", "401", "400", "500", "html"],
)
def test_errors_are_answers_in_openais_format(
    mounted: Mounted, fault: Fault, status: int, code: str | None
) -> None:
    session, loop = mounted()
    loop.provider().script(fault, repeat=True)
    response = session.post(URL, json=ASK)
    assert response.status_code == status
    told = response.json()["error"]
    assert told["message"]
    assert code is None or told["code"] == code
    with pytest.raises(requests.HTTPError, match=str(status)):
        response.raise_for_status()
    if status == 429:
        assert response.headers["retry-after"] == "120"


def test_what_fastroute_refuses_is_an_answer_too(mounted: Mounted) -> None:
    session, loop = mounted()
    unknown = session.post(URL, json={**ASK, "model": "no-such-model"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert session.post(URL).status_code == 400
    assert (
        session.post(URL, json={**ASK, "route": {"tear": "x"}})
        .json()["error"]["message"]
        .startswith("route.tear")
    )
    dear = session.post(URL, json=ASK, headers={"x-fastroute-route": '{"max_cost": 0}'})
    assert dear.status_code in (429, 503)
    assert loop.provider().received == 0


def test_routing_words_and_tags_reach_the_ledger(mounted: Mounted) -> None:
    session, loop = mounted()
    session.post(URL, json={**ASK, "route": {"tags": {"team": "a"}}})
    session.post(URL, json=ASK, headers={"x-fastroute-route": '{"tags": {"team": "b"}}'})
    assert [attempt.tags for attempt in loop.attempts] == [{"team": "a"}, {"team": "b"}]
    assert all("route" not in request.json for request in loop.provider().requests)


def test_no_answer_at_all_is_an_exception(mounted: Mounted) -> None:
    session, loop = mounted()
    loop.provider().kill()
    with pytest.raises(requests.ConnectionError) as caught:
        session.post(URL, json=ASK)
    assert caught.value.request is not None
    assert isinstance(caught.value.__cause__, fastroute.APIConnectionError)


@pytest.mark.parametrize("timeout", [0.2, (3.05, 0.2), urllib3.Timeout(total=0.2), urllib3.Timeout(read=0.2)])
def test_a_time_out_is_the_calls(mounted: Mounted, timeout: Any) -> None:
    session, loop = mounted()
    loop.provider().script(Fault.black_hole(), repeat=True)
    with pytest.raises(requests.Timeout), within(0.2):
        session.post(URL, json=ASK, timeout=timeout)
    assert isinstance(loop.attempts[0].latency, float)


@pytest.mark.parametrize("timeout", [0, -1, "5", (1, 2, 3), float("inf"), float("nan"), True])
def test_a_time_out_that_is_none_is_refused(mounted: Mounted, timeout: Any) -> None:
    session, loop = mounted()
    with pytest.raises(ValueError, match="timeout"):
        session.post(URL, json=ASK, timeout=timeout)
    assert loop.provider().received == 0


@pytest.mark.parametrize("timeout", [None, (5, None), urllib3.Timeout()])
def test_no_time_out_is_the_clients(mounted: Mounted, timeout: Any) -> None:
    session, _ = mounted()
    assert session.post(URL, json=ASK, timeout=timeout).status_code == 200


def test_all_else_goes_where_it_always_went(start: Start) -> None:
    loop = start(1)
    with Provider(models=["elsewhere"]) as other, requests.Session() as session:
        session.mount(other.base_url, RoutingAdapter(loop.client, pool_maxsize=3, max_retries=1))
        assert session.get(other.base_url + "/models").json()["data"][0]["id"] == "elsewhere"
        session.get(other.base_url + "/chat/completions")
        session.post(other.base_url + "/chat/completions/3")
        assert other.received == 3
        assert loop.provider().received == 0
        session.post(other.base_url + "/chat/completions", json=ASK).raise_for_status()
        assert other.received == 3
        assert loop.provider().received == 1


def test_many_threads_share_a_session(mounted: Mounted) -> None:
    session, loop = mounted()
    texts = [f"number {place}" for place in range(24)]
    got: dict[str, str] = {}

    def ask(text: str, stream: bool) -> None:
        body = {**ASK, "messages": [{"role": "user", "content": text}], "stream": stream}
        got[text] = session.post(URL, json=body).text

    threads = [threading.Thread(target=ask, args=(text, place % 2 == 1)) for place, text in enumerate(texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, text in enumerate(texts):
        assert text in got[text] if place % 2 == 0 else got[text].endswith("data: [DONE]\n\n")
    assert len(loop.attempts) == len(texts)


def test_an_adapter_is_not_pickled(mounted: Mounted) -> None:
    session, _ = mounted()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(session.get_adapter(URL))
