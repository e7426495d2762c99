"""Cases 3, 4, 30 and 34 over TLS, where a connection is open before there is a request to be sent over it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from certificates import certificate
from loopback import MODEL, nothing_left, within
from raw_server import Ending, RawServer, Say

import fastroute

BODY = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()
GOOD = Say(
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class Asked:
    """A client in front of one server that speaks TLS."""

    def __init__(self, server: RawServer, client: fastroute.Client) -> None:
        self.server = server
        self.client = client

    def ask(self, text: str = "x") -> fastroute.Completion:
        return self.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])

    @property
    def blocked(self) -> float:
        found: float = self.client.stats()["endpoints"][f"a/{MODEL}"]["blocked_s"]
        return found


@contextmanager
def asked(folder: Path, session: requests.Session | None = None) -> Iterator[Asked]:
    key, cert = certificate(folder)
    if session is not None:
        session.verify = str(cert)
    with nothing_left(), RawServer(certificate=(key, cert)) as server:
        tables = {
            "fastroute": {"ledger": ""},
            "providers": {"a": {"base_url": server.base_url, "ca_bundle": str(cert), "timeout": 5.0}},
            "endpoints": [{"provider": "a", "model": MODEL}],
            "models": {MODEL: {}},
            "cache": {"enabled": False},
            "policy": {"max_attempts": 1},
        }
        with fastroute.Client(tables, session=session) as client:
            yield Asked(server, client)
            assert client.stats()["endpoints"][f"a/{MODEL}"]["in_flight"] == 0
        if session is not None:
            session.close()


@pytest.fixture(params=[False, True], ids=["own", "session"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Asked]:
    session = requests.Session() if request.param else None
    with asked(tmp_path, session) as found:
        yield found


ENDINGS = pytest.mark.parametrize("ending", ["cut", "reset"])


@ENDINGS
def test_030_a_fresh_connection_that_ends_is_a_failure(tls: Asked, ending: Ending) -> None:
    tls.server.say = Say(b"", ending)
    with pytest.raises(fastroute.APIConnectionError) as caught:
        tls.ask()
    assert caught.value.maybe_billed
    assert (len(tls.server.requests), tls.server.connections) == (1, 1)


@ENDINGS
def test_030_a_kept_one_that_ends_is_replaced_once(tls: Asked, ending: Ending) -> None:
    tls.server.plan = [GOOD, Say(b"", ending), GOOD]
    assert [tls.ask().text for _ in range(2)] == ["hi", "hi"]
    assert (len(tls.server.requests), tls.server.connections) == (3, 2)
    tls.server.say = Say(b"", ending)
    with pytest.raises(fastroute.APIConnectionError):
        tls.ask()
    assert (len(tls.server.requests), tls.server.connections) == (5, 3)


@ENDINGS
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_003_an_end_while_the_request_is_written_is_no_refused_certificate(
    tls: Asked, ending: Ending, kept: bool
) -> None:
    tls.server.say = GOOD
    if kept:
        tls.ask()
    tls.server.say, tls.server.patience = Say(b"", ending), False
    with pytest.raises(fastroute.APIConnectionError) as caught:
        tls.ask("x" * 8_000_000)  # more than any buffer takes
    assert not isinstance(caught.value, fastroute.TLSError)
    assert tls.blocked == 0
    assert tls.server.connections == (2 if kept else 1)
    tls.server.say, tls.server.patience = GOOD, True
    assert tls.ask().text == "hi"


@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
def test_004_a_handshake_that_is_never_answered_costs_nothing(own: bool) -> None:
    tables: dict[str, Any] = {
        "fastroute": {"ledger": "", "connect_timeout": 0.2},
        "endpoints": [{"provider": "a", "model": MODEL}],
        "models": {MODEL: {}},
        "policy": {"max_attempts": 1},
    }
    with nothing_left(), socket.create_server(("127.0.0.1", 0)) as silent, requests.Session() as session:
        tables["providers"] = {"a": {"base_url": f"https://127.0.0.1:{silent.getsockname()[1]}/v1"}}
        with fastroute.Client(tables, session=None if own else session) as client:
            with within(0.2), pytest.raises(fastroute.APITimeoutError) as caught:
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
            figures = client.stats()["endpoints"][f"a/{MODEL}"]
    (attempt,) = caught.value.attempts
    assert (attempt.maybe_billed, attempt.usage_source, attempt.cost_nano) == (False, "none", 0)
    assert (figures["failed"], figures["blocked_s"], figures["in_flight"]) == (1, 0, 0)


def test_034_a_cut_answer_ends_its_connection(tls: Asked) -> None:
    tls.server.plan = [GOOD, Say(GOOD.data[:-5], "cut"), GOOD]
    tls.ask()
    with pytest.raises(fastroute.UpstreamTruncated):
        tls.ask()
    assert tls.ask().text == "hi"
    assert (len(tls.server.requests), tls.server.connections) == (3, 2)
