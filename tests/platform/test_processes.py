"""One client and many processes: connections, and every way in which a process may start."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_processes import FORKS, ask, forked, tables
from needs import need

import fastroute
from fastroute import Client
from fastroute.testing import Provider

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


# ----------------------------------------------------------------------------------------------- connections


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for 127.0.0.1."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return key, cert


class TlsDoor:
    """Speaks TLS on one side and passes on what was said on the other."""

    def __init__(self, port: int, key: Path, cert: Path) -> None:
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, socket.create_connection(("127.0.0.1", self._target)) as inner:
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                return
            with outer:
                back = threading.Thread(target=self._copy, args=(inner, outer), daemon=True)
                back.start()
                self._copy(outer, inner)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A provider that echoes, in a process of its own: its address and what a client needs to trust it."""
    with Provider(process=True) as provider:
        if request.param == "http":
            yield {"base_url": provider.base_url}
            return
        key, cert = certificate(tmp_path)
        door = TlsDoor(int(provider.base_url.rsplit(":", 1)[1].split("/")[0]), key, cert)
        yield {"base_url": door.url, "ca_bundle": str(cert)}
        door.close()


@FORKS
def test_nobody_gets_anothers_answer(
    upstream: dict[str, Any], fork: Callable[[], int], tmp_path: Path
) -> None:
    """A client with open connections is forked; all use it at once, and every answer fits its question."""

    def talk(name: str) -> dict[str, Any]:
        ids = []
        with ThreadPoolExecutor(2) as pool:
            questions = [f"{name} {number}" for number in range(12)]
            for question, reply in zip(
                questions, pool.map(lambda text: ask(client, text), questions), strict=True
            ):
                assert reply.choices[0].message.content == question
                assert reply.route is not None
                ids += [attempt.id for attempt in reply.route.attempts]
        for number in range(4):
            text = f"{name} stream {number}"
            with client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], stream=True
            ) as stream:
                assert (
                    "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == text
                )
        assert client.submit(model="m", messages=[{"role": "user", "content": name}]).result(20)
        client.ledger.flush()
        return {"ids": ids, "random": client.runtime.generation.admission.random.random()}

    base = dict(upstream)
    with Client(tables(base.pop("base_url"), tmp_path, provider=base)) as client:
        talk("before")
        children = [forked(lambda name=name: talk(name), fork) for name in ("one", "two", "three")]  # type: ignore[misc]
        talks = [talk("parent"), *(child() for child in children)]
        ids = [name for one in talks for name in one["ids"]]
        assert len(set(ids)) == len(ids)
        assert len({name.split("-")[0] for name in ids}) == 4
        assert len({one["random"] for one in talks}) == 4
        client.ledger.flush()
        rows = [row.id for row in client.ledger.entries(None)]
        assert len(set(rows)) == len(rows) == 5 * 17
        stats = client.stats()
        assert stats["endpoints"]["p/m"]["in_flight"] == 0
        assert stats["endpoints"]["p/m"]["succeeded"] == 5 * 17
        assert stats["state"]["workers"] == 1  # the children are gone, and counted no more


@FORKS
def test_a_childs_deadlines_are_kept(fork: Callable[[], int], tmp_path: Path) -> None:
    """Each piece of the answer comes in time: only the thread that watches the clock can end it."""
    with (
        Provider(process=True, answer=2000, tokens_per_second=20) as provider,
        Client(tables(provider.base_url, tmp_path)) as client,
    ):

        def timed_out() -> str:
            try:
                ask(client, timeout=0.2)
            except fastroute.Error as error:
                return type(error).__name__
            return "answered"

        assert timed_out() == "DeadlineExceeded"  # so that it runs here before the fork
        assert forked(timed_out, fork)() == "DeadlineExceeded"


def test_a_child_of_a_child_goes_on_too(tmp_path: Path) -> None:
    with Provider(process=True) as provider, Client(tables(provider.base_url, tmp_path)) as client:

        def child() -> list[str]:
            ask(client, "child")
            grandchild = forked(lambda: ask(client, "grandchild").choices[0].message.content)
            return [ask(client, "child").choices[0].message.content or "", grandchild()]

        ask(client, "parent")
        assert forked(child)() == ["child", "grandchild"]


# ---------------------------------------------------------------------------------------------- other starts


def served(settings: dict[str, Any], text: str) -> str | None:
    with Client(settings) as client:
        return ask(client, text).choices[0].message.content


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_makes_a_client_of_the_configuration(method: Any, tmp_path: Path) -> None:
    with Provider(process=True) as provider:
        state = {"state": str(tmp_path / "state")}
        settings = tables(
            provider.base_url,
            tmp_path,
            fastroute=state,
            provider={"rpm": 1, "burst": 3},
            policy={"queue_timeout": 0.01},
        )
        with multiprocessing.get_context(method).Pool(1 if method == "spawn" else 2) as pool:
            assert pool.starmap(served, [(settings, "one"), (settings, "two")]) == ["one", "two"]
        assert served(settings, "three") == "three"
        with pytest.raises(fastroute.RateLimitError):
            served(settings, "four")


def test_a_client_is_not_pickled(tmp_path: Path) -> None:
    with Client(tables("http://127.0.0.1:1/v1", tmp_path)) as client:
        for value in (client, client.with_options(timeout=1), client.chat.completions):
            with pytest.raises(TypeError, match="pickle its config"):
                pickle.dumps(value)
        assert pickle.loads(pickle.dumps(client.config)) == client.config


def test_seeds_differ_after_a_fork(tmp_path: Path) -> None:
    """Even where the program seeded its own generator: retries of forked workers must not come in step."""
    random.seed(1)
    with Client(tables("http://127.0.0.1:1/v1", tmp_path)) as client:
        admission = client.runtime.generation.admission
        children = [forked(lambda: client.runtime.generation.admission.random.random()) for _ in range(3)]
        assert len({admission.random.random(), *(child() for child in children)}) == 4


# ------------------------------------------------------------------------------------- what doors begin with


def kind_of(client: Client) -> str:
    state = client.stats()["state"]
    if state["path"] is not None:
        os.unlink(state["path"])
    return str(state["kind"])


@pytest.mark.parametrize(
    ("said", "kind"), [({}, "machine"), ({"state": "memory"}, "memory")], ids=["unsaid", "said"]
)
def test_what_servers_load_anew_in_each_worker_counts_with_the_others(
    said: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    flask = need("flask")
    need("werkzeug")
    from fastroute.gateway import create_app
    from fastroute.integrations.flask import EXTENSION, FastRoute

    config = tables("http://127.0.0.1:9/v1", tmp_path, fastroute=said)
    with Client(config, default_state="machine") as client:
        assert kind_of(client) == kind
    with Client(config) as client:
        assert kind_of(client) == "memory"
    gateway = create_app(config, keyless=True)
    assert kind_of(gateway.client) == kind
    gateway.close()
    for testing, expected in ((False, kind), (True, "memory")):
        app = flask.Flask("app")
        app.config.update(FASTROUTE_CONFIG=config, TESTING=testing)
        FastRoute(app)
        made = app.extensions[EXTENSION]
        assert kind_of(made) == expected
        made.close()


def test_141_a_second_interpreter_is_refused_in_clear_words() -> None:
    script = """
import fastroute.client
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
try:
    print(interpreters.run_string(interpreters.create(), "import fastroute.client"))
except Exception as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for words in ("it works in only one", "WSGIApplicationGroup %{GLOBAL}", "--single-interpreter"):
        assert words in ran.stdout
