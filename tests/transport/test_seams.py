"""Tools that answer or trace requests see those of the library, in calls, streams and sessions."""

from __future__ import annotations

import functools
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from loopback import nothing_left
from needs import need
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

import fastroute
from fastroute.integrations.requests import RoutingAdapter
from fastroute.testing import Fault, Provider

BASE = "https://api.example.com/v1"
URL = f"{BASE}/chat/completions"
QUESTION = [{"role": "user", "content": "hello"}]
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "mocked"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def chunk(content: str, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


STREAM = chunk("mo", None) + chunk("cked", "stop") + b"data: [DONE]\n\n"

Connect = Callable[..., fastroute.Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients = []

    def make(base_url: str = BASE, **options: Any) -> fastroute.Client:
        tables = {
            "fastroute": {"ledger": ""},
            "cache": {"enabled": False},
            "providers": {"a": {"base_url": base_url}},
            "endpoints": [{"provider": "a", "model": "m"}],
        }
        clients.append(fastroute.Client(tables, **options))
        return clients[-1]

    with nothing_left():
        yield make
        for client in clients:
            client.close()


def plain(client: fastroute.Client) -> str | None:
    return client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content


def streamed(client: fastroute.Client) -> str:
    with client.chat.completions.create(model="m", messages=QUESTION, stream=True) as stream:
        return "".join(each.choices[0].delta.content or "" for each in stream if each.choices)


@pytest.mark.parametrize("own_session", [False, True])
def test_responses_answers(connect: Connect, own_session: bool) -> None:
    responses = need("responses")
    client = connect(session=requests.Session()) if own_session else connect()
    with responses.RequestsMock() as mock:
        mock.add("POST", URL, json=ANSWER)
        assert plain(client) == "mocked"
        mock.replace("POST", URL, body=STREAM, content_type="text/event-stream")
        assert streamed(client) == "mocked"
        assert [json.loads(call.request.body)["messages"] for call in mock.calls] == [QUESTION] * 2


@pytest.mark.parametrize("own_session", [False, True])
def test_requests_mock_answers(connect: Connect, own_session: bool) -> None:
    requests_mock = need("requests_mock")
    client = connect(session=requests.Session()) if own_session else connect()
    with requests_mock.Mocker() as mock:
        mock.post(URL, json=ANSWER)
        assert plain(client) == "mocked"
        mock.post(URL, content=STREAM, headers={"content-type": "text/event-stream"})
        assert streamed(client) == "mocked"
        mock.post(URL, status_code=401, json={"error": {"message": "no", "code": "invalid_api_key"}})
        with pytest.raises(fastroute.AuthenticationError):
            plain(client)
        assert mock.call_count == 3


def test_responses_answers_the_drop_in_for_requests(connect: Connect) -> None:
    responses = need("responses")
    with requests.Session() as session, responses.RequestsMock() as mock:
        session.mount("https://old.example.com/", RoutingAdapter(connect()))
        mock.add("POST", URL, json=ANSWER)
        words = {"model": "m", "messages": QUESTION}
        answer = session.post("https://old.example.com/v1/chat/completions", json=words).json()
        assert answer["choices"][0]["message"]["content"] == "mocked"


def test_vcrpy_records_and_replays(connect: Connect, tmp_path: Path) -> None:
    vcr = need("vcr")
    tape = str(tmp_path / "tape.yaml")
    with Provider() as provider:
        client = connect(provider.base_url)
        assert plain(client) == "hello"  # leaves a kept connection, which the tape must see nothing of
        with vcr.use_cassette(tape, record_mode="once"):
            assert (plain(client), streamed(client)) == ("hello", "hello")
        assert len(provider.requests) == 3
    with vcr.use_cassette(tape, record_mode="none") as cassette:
        assert (plain(client), streamed(client)) == ("hello", "hello")
        assert cassette.play_count == 2


def test_after_the_tool_the_own_connections_serve_again(connect: Connect) -> None:
    responses = need("responses")
    with Provider() as provider:
        client = connect(provider.base_url)
        assert plain(client) == "hello"
        with responses.RequestsMock() as mock:
            mock.add("POST", f"{provider.base_url}/chat/completions", json=ANSWER)
            assert plain(client) == "mocked"
        assert plain(client) == "hello"
        assert len(provider.requests) == 2


PLACES = [
    (HTTPAdapter, "send"),
    (requests.Session, "send"),
    (HTTPConnectionPool, "urlopen"),
    (http.client.HTTPConnection, "putrequest"),
    (http.client.HTTPConnection, "getresponse"),
]


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=lambda each: getattr(each, "__name__", each))
def test_a_tracer_sees_each_request_and_the_deadline_holds(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    seen: list[str] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def traced(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return original(*args, **kwargs)

    with Provider() as provider:
        client = connect(provider.base_url)
        assert plain(client) == "hello"
        monkeypatch.setattr(owner, name, traced)
        assert (plain(client), streamed(client)) == ("hello", "hello")
        assert len(seen) == 2
        assert provider.connections == 2  # the client's own, and one that both traced calls used
        provider.script(Fault.stall())
        with pytest.raises(fastroute.DeadlineExceeded):
            client.chat.completions.create(model="m", messages=QUESTION, timeout=0.3)
        monkeypatch.undo()
        assert plain(client) == "hello"
        assert len(seen) == 3
