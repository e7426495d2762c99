"""Networks of companies: proxies with a password, certificates of the environment, hints in errors."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from certificates import certificate
from click.testing import CliRunner
from loopback import nothing_left
from ports import free_port

import fastroute
from fastroute.cli.group import cli
from fastroute.testing import Provider
from fastroute.transport.network import Network, network_to

VARIABLES = [f"{stem}_proxy" for stem in ("http", "https", "all", "no")] + [
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
]
ANSWER = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Peer:
    """A server on loopback: each connection is handed to a function, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._serve = serve
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._handle, args=(connection,)))
                self._threads[-1].start()

    def _handle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def head_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            break
        data += more
    return data


Start = Callable[[Callable[[socket.socket], None]], Peer]


@pytest.fixture
def peer() -> Iterator[Start]:
    made: list[Peer] = []

    def start(serve: Callable[[socket.socket], None]) -> Peer:
        made.append(Peer(serve))
        return made[-1]

    with nothing_left():
        yield start
        for each in made:
            each.close()


def refuse(connection: socket.socket) -> None:
    head_of(connection)
    fields = b"Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n" + fields)


def forward(connection: socket.socket) -> None:
    """A proxy for plain requests and tunnels."""
    head = head_of(connection)
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    if method == "CONNECT":
        host, _, port = target.rpartition(":")
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        head = b""
    else:
        host, _, port = target.split("/")[2].partition(":")
        head = head.replace(target.encode(), b"/" + target.split("/", 3)[3].encode(), 1)
    with socket.create_connection((host, int(port))) as far:
        far.sendall(head)
        back = threading.Thread(target=pump, args=(far, connection))
        back.start()
        pump(connection, far)
        back.join()


def pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


def secure(key: Path, cert: Path) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            head, _, body = head_of(wrapped).partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            while len(body) < length:  # closing before the whole request is read would reset the connection
                body += wrapped.recv(65536)
            fields = b"content-type: application/json\r\nconnection: close\r\n"
            end = b"content-length: %d\r\n\r\n" % len(ANSWER)
            wrapped.sendall(b"HTTP/1.1 200 OK\r\n" + fields + end + ANSWER)

    return serve


def ask(base_url: str, session: requests.Session | None = None, **provider: Any) -> str:
    tables = {
        "fastroute": {"ledger": "", "connect_timeout": 5},
        "providers": {"a": {"base_url": base_url, **provider}},
        "endpoints": [{"provider": "a", "model": "m"}],
        "policy": {"max_attempts": 1},
    }
    with fastroute.Client(tables, session=session) as client:
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
        return reply.choices[0].message.content or ""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("own_session", [False, True])
def test_a_proxy_that_wants_a_password_is_named_with_its_words(
    peer: Start, scheme: str, own_session: bool
) -> None:
    proxy = f"http://user:secret@127.0.0.1:{peer(refuse).port}"
    session = requests.Session() if own_session else None
    if session is not None:
        session.trust_env = False
    with pytest.raises(fastroute.APIConnectionError) as failed:
        ask(f"{scheme}://127.0.0.1:9/v1", session, proxy=proxy)
    message = str(failed.value)
    assert f"the proxy 127.0.0.1:{proxy.rpartition(':')[2]} refused the request: 407" in message
    assert "put the user's name and password into the proxy's URL" in message
    assert "secret" not in message


def test_a_proxys_words_are_cleaned_and_short(peer: Start) -> None:
    def refuse_at_length(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 403 \x1b[31mno\x07" + b"o" * 2000 + b"\r\n\r\n")

    with pytest.raises(fastroute.APIConnectionError, match=r"refused the request: 403 \?\[31mno") as failed:
        ask("https://127.0.0.1:9/v1", proxy=f"http://127.0.0.1:{peer(refuse_at_length).port}")
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_environments_proxy_is_used_if_the_setting_says_so(
    peer: Start, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    seen = []

    def proxy(connection: socket.socket) -> None:
        seen.append(1)
        forward(connection)

    monkeypatch.setenv(variable, f"http://127.0.0.1:{peer(proxy).port}")
    with Provider() as provider:
        assert ask(provider.base_url) == "hello"
        assert not seen
        assert ask(provider.base_url, proxy="environment") == "hello"
        assert seen
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        del seen[:]
        assert ask(provider.base_url, proxy="environment") == "hello"
        assert not seen


def test_a_proxy_that_is_set_and_not_used_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example.com:3128")
    address = f"https://127.0.0.1:{free_port()}/v1"
    with pytest.raises(fastroute.APIConnectionError) as failed:
        ask(address)
    message = str(failed.value)
    assert "HTTPS_PROXY is set, but proxies of the environment are not used" in message
    assert 'set proxy = "environment"' in message
    assert "secret" not in message
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(fastroute.APIConnectionError) as failed:
        ask(address)
    assert "HTTPS_PROXY" not in str(failed.value)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "ca_bundle"])
@pytest.mark.parametrize("own_session", [False, True])
def test_certificates_of_the_environment_and_the_setting_are_trusted(
    peer: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, own_session: bool
) -> None:
    key, cert = certificate(tmp_path)
    base_url = f"https://127.0.0.1:{peer(secure(key, cert)).port}/v1"

    def session() -> requests.Session | None:
        return requests.Session() if own_session else None

    with pytest.raises(fastroute.TLSError) as failed:
        ask(base_url, session())
    assert "the TLS handshake with 127.0.0.1 failed" in str(failed.value)
    assert "set ca_bundle to a file with its certificate" in str(failed.value)
    options = {"ca_bundle": str(cert)} if variable == "ca_bundle" else {}
    if not options:
        monkeypatch.setenv(variable, str(cert))
    assert ask(base_url, session(), **options) == "hello"


def test_a_directory_of_certificates_is_trusted(
    peer: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import subprocess

    key, cert = certificate(tmp_path)
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "one.pem").write_bytes(cert.read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert ask(f"https://127.0.0.1:{peer(secure(key, cert)).port}/v1") == "hello"


@pytest.mark.parametrize("own_session", [False, True])
def test_certificates_that_do_not_exist_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_session: bool
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    session = requests.Session() if own_session else None
    with pytest.raises(fastroute.TLSError, match=r"SSL_CERT_FILE: .*none\.pem does not exist; name a file"):
        ask(f"https://127.0.0.1:{free_port()}/v1", session)


def test_a_refused_certificate_says_what_is_trusted_now(
    peer: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    key, cert = certificate(tmp_path)
    _, other = certificate(tmp_path / "other")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    with pytest.raises(fastroute.TLSError, match=r"\(now: .*other/cert\.pem, from REQUESTS_CA_BUNDLE\)"):
        ask(f"https://127.0.0.1:{peer(secure(key, cert)).port}/v1")


def test_the_order_of_the_sources() -> None:
    environ = {"SSL_CERT_FILE": "c", "CURL_CA_BUNDLE": "b", "REQUESTS_CA_BUNDLE": "a"}
    assert network_to("https://x/v1", None, None, environ).ca_source == "REQUESTS_CA_BUNDLE"
    assert network_to("https://x/v1", None, "mine", environ) == Network(
        ca_bundle="mine", ca_source="ca_bundle"
    )
    assert network_to("https://x/v1", None, None, {}) == Network()


def test_check_reports_proxies_and_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "fastroute.toml"
    file.write_text(
        """
[fastroute]
ledger = ""
[providers.near]
base_url = "https://near.example.com/v1"
proxy = "environment"
[providers.far]
base_url = "https://far.example.com/v1"
[[endpoints]]
provider = "near"
model = "m"
[[endpoints]]
provider = "far"
model = "m"
"""
    )
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example.com:3128")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    said = CliRunner().invoke(cli, ["check", str(file)], env=dict(os.environ))
    assert "proxy: proxy.example.com:3128, from HTTPS_PROXY (near)" in said.output
    assert "HTTPS_PROXY is set, but not used" in said.output
    assert f"certificates: {bundle}, from SSL_CERT_FILE (near, far)" in said.output
    assert "secret" not in said.output
    assert said.exit_code == 0
    bundle.unlink()
    said = CliRunner().invoke(cli, ["check", str(file)], env=dict(os.environ))
    assert f"SSL_CERT_FILE: {bundle} does not exist" in said.output
    assert said.exit_code == 1
