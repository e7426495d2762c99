"""Names that do not resolve, or not in time, and certificates that must not be trusted."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate
from loopback import MODEL, resolver_that_hangs, within

import fastroute
from fastroute import events
from fastroute.testing import Provider


class TlsServer:
    """Shakes hands with whoever trusts its certificate; counts the bytes that it was told after that."""

    def __init__(self, key: Path, cert: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.heard = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain:
                try:
                    with self._context.wrap_socket(plain, server_side=True) as secure:
                        self.heard += len(secure.recv(1 << 16))
                except OSError:
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., TlsServer]]:
    made: list[TlsServer] = []

    def start(key: Path, cert: Path) -> TlsServer:
        made.append(TlsServer(key, cert))
        return made[-1]

    yield start
    for each in made:
        each.close()


def client_of(url: str, second: Provider, **provider: Any) -> fastroute.Client:
    return fastroute.Client(
        {
            "fastroute": {"ledger": "", "connect_timeout": 0.3},
            "providers": {"a": {"base_url": url, **provider}, "b": {"base_url": second.base_url}},
            "endpoints": [{"provider": "a", "model": MODEL}, {"provider": "b", "model": MODEL}],
            "models": {MODEL: {}},
            "cache": {"enabled": False},
            "policy": {"strategy": "ordered"},
        }
    )


def ask(client: fastroute.Client) -> fastroute.Completion:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize("fault", ["self-signed", "wrong host", "expired"])
def test_003_a_certificate_that_is_not_to_be_trusted_is_told_nothing(
    serve: Callable[..., TlsServer], tmp_path: Path, fault: str
) -> None:
    key, cert = certificate(
        tmp_path,
        name="DNS:elsewhere.test" if fault == "wrong host" else "IP:127.0.0.1",
        end="20200102000000Z" if fault == "expired" else "20990101000000Z",
    )
    server = serve(key, cert)
    trusted = {} if fault == "self-signed" else {"ca_bundle": str(cert)}
    told: list[events.EndpointBlocked] = []
    with Provider() as second, client_of(server.url, second, **trusted) as client:
        client.on(told.append, events.EndpointBlocked)
        reply = ask(client)
        assert reply.route is not None
        assert [(each.provider, each.error) for each in reply.route.attempts] == [
            ("a", "TLSError"),
            ("b", None),
        ]
        assert server.heard == 0
        figures = client.stats()["endpoints"][f"a/{MODEL}"]
        assert 290 < figures["blocked_s"] <= 300
        assert (figures["in_flight"], figures["failed"]) == (0, 1)
        assert [event.endpoint for event in told] == [f"a/{MODEL}"]
        assert [each.provider for each in ask(client).route.attempts] == ["b"]  # type: ignore[union-attr]
    assert server.heard == 0


def test_003_with_no_other_endpoint_it_is_the_error_and_not_tried_again(
    serve: Callable[..., TlsServer], tmp_path: Path
) -> None:
    server = serve(*certificate(tmp_path))
    with Provider() as second, client_of(server.url, second) as client:
        second.kill()
        with pytest.raises(fastroute.TLSError) as caught:
            ask(client)
        assert [each.provider for each in caught.value.attempts].count("a") == 1
        assert client.stats()["endpoints"][f"a/{MODEL}"]["failed"] == 1
    assert server.heard == 0


def test_003_a_certificate_that_is_trusted_is_spoken_to(
    serve: Callable[..., TlsServer], tmp_path: Path
) -> None:
    key, cert = certificate(tmp_path)
    server = serve(key, cert)
    with Provider() as second, client_of(server.url, second, ca_bundle=str(cert)) as client:
        ask(client)
    assert server.heard > 0


def test_002_a_name_that_does_not_exist_fails_over() -> None:
    with Provider() as second, client_of("https://nothing.invalid/v1", second) as client:
        reply = ask(client)
        assert reply.route is not None
        first, last = reply.route.attempts
        assert (first.error, first.maybe_billed, last.provider) == ("APIConnectionError", False, "b")
        assert (first.usage_source, first.cost_nano) == ("none", 0)
        assert client.stats()["endpoints"][f"a/{MODEL}"]["failed"] == 1


def test_002_a_resolver_that_hangs_is_not_waited_for() -> None:
    with (
        resolver_that_hangs("hangs.invalid") as returns,
        Provider() as second,
        client_of("https://hangs.invalid/v1", second) as client,
    ):
        with within(1.0):
            reply = ask(client)
        assert not returns.is_set()
        assert reply.route is not None
        assert [each.provider for each in reply.route.attempts] == ["a", "b"]
        first = reply.route.attempts[0]
        assert (first.error, first.maybe_billed, first.usage_source) == ("APITimeoutError", False, "none")
        figures = client.stats()["endpoints"][f"a/{MODEL}"]
        assert (figures["in_flight"], figures["failed"]) == (0, 1)
