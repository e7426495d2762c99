"""The Flask extension, in applications that real servers serve."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from loopback import nothing_left, threads
from needs import need
from ports import free_port

import fastroute
from fastroute.config import load
from fastroute.state import segment_file
from fastroute.testing import Fault, Provider

flask = need("flask")

from flask_views import HELLO, MODEL, add_views  # noqa: E402

from fastroute.integrations.flask import FastRoute, FlaskClient  # noqa: E402


@pytest.fixture
def provider() -> Iterator[Provider]:
    with nothing_left(), Provider(models=[MODEL]) as provider:
        yield provider


@pytest.fixture
def config(provider: Provider, tmp_path: Path) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": str(tmp_path / "ledger.db"), "state": "memory"},
        "cache": {"enabled": False},
        "providers": {"a": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "a", "model": MODEL}],
    }


@pytest.fixture
def make(config: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """An application factory; its clients are closed in the end."""
    apps = []

    def create(extension: FastRoute | None = None, **settings: Any) -> Any:
        app = flask.Flask(f"app{len(apps)}")
        app.config["FASTROUTE_CONFIG"] = config
        app.config.update(settings)
        extension = extension or FastRoute()
        extension.init_app(app)
        apps.append(app)
        add_views(app, extension)
        return app

    yield create
    for app in apps:
        app.extensions["fastroute"].close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tags_of(app: Any) -> list[dict[str, str]]:
    ledger = app.extensions["fastroute"].ledger
    ledger.flush()
    return [dict(entry.tags) for entry in ledger.entries(None)][::-1]


# --------------------------------------------------------------------------------------------------- calls


def test_calls_of_a_request_carry_its_tags(make: Callable[..., Any]) -> None:
    app = make(FastRoute(user=lambda: flask.request.headers.get("x-user")))
    with served(app) as url:
        assert requests.get(url + "/ask", headers={"x-user": "u-1"}).json()["text"] == "Say hello"
        assert requests.get(url + "/stream").text == "Say hello"
        assert requests.get(url + "/part", headers={"x-user": "u-2"}).text == "Say hello"
        assert requests.get(url + "/tagged", headers={"x-user": "u-3"}).text == "Say hello"
    assert tags_of(app) == [
        {"endpoint": "ask", "user": "u-1"},
        {"endpoint": "stream"},
        {"endpoint": "part.inside", "blueprint": "part", "user": "u-2"},
        {"endpoint": "tagged", "user": "call", "team": "x"},
    ]


def test_submitted_calls_carry_the_tags_of_the_request_that_submitted_them(make: Callable[..., Any]) -> None:
    asked: list[int] = []

    def user() -> int:
        asked.append(threading.get_ident())
        return 7

    app = make(FastRoute(user=user))
    with served(app) as url:
        assert requests.get(url + "/submit").text == "Say helloSay hello"
    assert tags_of(app) == [{"endpoint": "submit", "user": "7"}] * 2
    assert len(set(asked)) == 1, "whose call it is was asked in the pool's threads, after the request perhaps"


def test_streams_of_many_requests_at_once_keep_their_tags_apart(make: Callable[..., Any]) -> None:
    app = make(FastRoute(user=lambda: flask.request.args["user"]))
    with served(app) as url:
        users = [f"u{place}" for place in range(12)]
        asking = [
            threading.Thread(target=requests.get, args=(f"{url}/stream",), kwargs={"params": {"user": user}})
            for user in users
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert sorted(tags["user"] for tags in tags_of(app)) == sorted(users)


def test_a_caller_who_leaves_a_stream_ends_the_call(make: Callable[..., Any], provider: Provider) -> None:
    app = make()
    provider.script(Fault.stream_stall(after=3, seconds=30))
    with app.test_client() as browser, app.app_context():
        response = browser.get("/stream", buffered=False)
        next(response.response)
        response.close()
    provider.wait_until(lambda known: known.in_flight == 0, 5)
    (entry,) = app.extensions["fastroute"].ledger.entries(None)
    assert entry.outcome == "client_cancelled"


def test_outside_of_a_request_there_are_no_tags(make: Callable[..., Any]) -> None:
    routes = FastRoute(user=lambda: "nobody")
    app = make(routes)
    with app.app_context():
        routes.client.chat.completions.create(model=MODEL, messages=HELLO)
    assert tags_of(app) == [{}]


def test_what_the_user_callback_raises_the_call_raises(make: Callable[..., Any]) -> None:
    routes = FastRoute(user=lambda: 1 / 0)
    app = make(routes)
    with app.test_request_context("/ask"), pytest.raises(ZeroDivisionError):
        routes.client.chat.completions.create(model=MODEL, messages=HELLO)
    assert tags_of(app) == []


@pytest.mark.parametrize("tags", ["x", ["a"], {"a": 1}])
def test_wrong_tags_are_refused_as_ever(make: Callable[..., Any], tags: Any) -> None:
    routes = FastRoute()
    app = make(routes)
    with app.test_request_context("/ask"), pytest.raises(fastroute.BadRequestError, match=r"route\.tags"):
        routes.client.chat.completions.create(model=MODEL, messages=HELLO, route={"tags": tags})


# -------------------------------------------------------------------------------------------------- set-up


def test_the_client_is_under_extensions(make: Callable[..., Any]) -> None:
    routes = FastRoute()
    app = make(routes)
    with app.app_context():
        assert routes.client is app.extensions["fastroute"]
        assert isinstance(routes.client, FlaskClient)


def test_one_extension_serves_several_applications(make: Callable[..., Any], tmp_path: Path) -> None:
    routes = FastRoute()
    one = make(routes)
    two = make(routes, FASTROUTE_LEDGER=str(tmp_path / "two.db"))
    with one.app_context(), two.test_request_context("/ask"):
        routes.client.chat.completions.create(model=MODEL, messages=HELLO)
        assert routes.client is two.extensions["fastroute"]
    assert (len(tags_of(one)), len(tags_of(two))) == (0, 1)


def test_applications_may_share_a_client(config: dict[str, Any]) -> None:
    routes = FastRoute()
    with fastroute.Client(config) as client:
        for name in ("one", "two"):
            app = flask.Flask(name)
            routes.init_app(app, client=client)
            add_views(app, routes)
            assert app.test_client().get("/ask").json["text"] == "Say hello"
            del app
        gc.collect()
        assert client.chat.completions.create(model=MODEL, messages=HELLO).text == "Say hello"


def test_mistakes_are_told(make: Callable[..., Any]) -> None:
    routes = FastRoute()
    with pytest.raises(RuntimeError, match="no current Flask application"):
        routes.client  # noqa: B018
    with flask.Flask("bare").app_context(), pytest.raises(RuntimeError, match=r"init_app"):
        routes.client  # noqa: B018
    app = make(routes)
    with pytest.raises(RuntimeError, match="already set up"):
        routes.init_app(app)


@pytest.mark.parametrize("how", ["path", "mapping", "Config"])
def test_the_configuration_in_each_form(
    make: Callable[..., Any], config: dict[str, Any], tmp_path: Path, provider: Provider, how: str
) -> None:
    source: Any = config
    if how == "path":
        source = tmp_path / "fastroute.toml"
        source.write_text(
            f'[fastroute]\nledger = ""\nstate = "memory"\n[providers.a]\nbase_url = "{provider.base_url}"\n'
            f'[[endpoints]]\nprovider = "a"\nmodel = "{MODEL}"\n'
        )
    elif how == "Config":
        from fastroute.config import load

        source = load(config)
    app = make(FASTROUTE_CONFIG=source)
    assert app.test_client().get("/ask").json["text"] == "Say hello"


def test_other_keys_go_over_it_and_the_environment_over_both(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make(
        FASTROUTE_TIMEOUT=12,
        FASTROUTE_POLICY__STRATEGY="least-busy",
        FASTROUTE_POLICY__MAX_ATTEMPTS="2",
        FASTROUTE_CACHE__ENABLED=True,
        FASTROUTE_TIERS={"cheap": [MODEL]},
        FASTROUTE_MODELS={MODEL: {"input_price": 0.5, "output_price": 1}},
    )
    config = app.extensions["fastroute"].config
    assert (config.timeout, config.policy.strategy, config.policy.max_attempts) == (12, "least-busy", 2)
    assert config.cache.enabled is True
    assert config.tiers == {"cheap": (MODEL,)}
    assert config.models[MODEL].input_price == 0.5
    monkeypatch.setenv("FASTROUTE_POLICY__STRATEGY", "ordered")
    over = make(FASTROUTE_POLICY__STRATEGY="least-busy")
    assert over.extensions["fastroute"].config.policy.strategy == "ordered"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"FASTROUTE_POLICY__STRATGEY": "ordered"}, "stratgey"),
        ({"FASTROUTE_POLCY__STRATEGY": "ordered"}, "FASTROUTE_POLCY__STRATEGY"),
        ({"FASTROUTE_TIMEOUT": -1}, "timeout"),
        ({"FASTROUTE_TIMEOUT": object()}, "FASTROUTE_TIMEOUT: must be text, a number"),
        ({"FASTROUTE_CONFIG": {"providers": {"a": {"base_url": "ftp://x"}}}}, "base_url"),
        ({"FASTROUTE_CONFIG": "/nowhere/fastroute.toml"}, "/nowhere"),
    ],
)
def test_a_wrong_configuration_stops_the_start(
    make: Callable[..., Any], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(fastroute.ConfigError, match=says):
        make(**settings)


def test_an_application_that_is_gone_leaves_nothing(config: dict[str, Any]) -> None:
    before = threads()
    for _ in range(3):
        app = flask.Flask("short-lived")
        app.config["FASTROUTE_CONFIG"] = config
        routes = FastRoute(app)
        add_views(app, routes)
        assert app.test_client().get("/ask").json["text"] == "Say hello"
        gone = weakref.ref(app)
        del app
        gc.collect()
        assert gone() is None
    assert threads() <= before


def test_the_command_says_what_is_configured(
    make: Callable[..., Any], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make(FASTROUTE_TIERS={"cheap": [MODEL]})
    result = app.test_cli_runner().invoke(args=["fastroute", "check"])
    assert result.exit_code == 0
    assert f"ok: models {MODEL}" in result.output
    assert f"tier cheap: {MODEL}" in result.output


# ------------------------------------------------------------------------------------------------ processes

APP = """
import os, sys
sys.path.insert(0, {tests!r})
from flask import Flask
from fastroute.integrations.flask import FastRoute
from flask_views import add_views

routes = FastRoute()

def create_app():
    app = Flask("served")
    app.config["FASTROUTE_CONFIG"] = {config!r}
    routes.init_app(app)
    add_views(app, routes)
    app.get("/version")(lambda: "{version}")
    return app
"""


@contextmanager
def running(command: list[str], folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "server.log"
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=out,
            stderr=out,
            env=environ,
            start_new_session=True,
        )
        try:
            eventually(lambda: requests.get(url + "/version").ok, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
    assert b"Traceback" not in log.read_bytes(), log.read_text()


def eventually(holds: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if holds():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def write_app(folder: Path, config: dict[str, Any], version: str = "one") -> None:
    text = APP.format(tests=str(Path(__file__).parent.parent), config=config, version=version)
    (folder / "served.py").write_text(text)


@pytest.mark.parametrize("preload", [False, True], ids=["each", "preload"])
def test_128_workers_that_were_forked_before_or_after(
    provider: Provider, config: dict[str, Any], tmp_path: Path, preload: bool
) -> None:
    need("gunicorn")
    write_app(tmp_path, config)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        "-m",
        "gunicorn",
        "served:create_app()",
        "-w",
        "2",
        "--threads",
        "4",
        "-b",
        f"127.0.0.1:{port}",
    ]
    with running([*command, *(["--preload"] if preload else [])], tmp_path, url):
        pids: set[int] = set()
        calls = 0

        def both() -> bool:
            nonlocal calls
            calls += 1
            pids.add(requests.get(url + "/ask").json()["pid"])
            return len(pids) == 2 and calls >= 20

        eventually(both, tmp_path / "server.log")
        assert requests.get(url + "/stream").text == "Say hello"
    assert provider.received == calls + 1
    ledger = fastroute.Client(config)
    with ledger:
        assert len(list(ledger.ledger.entries(None))) == calls + 1, "a worker lost what it had written"


def test_flask_run_reloads(provider: Provider, config: dict[str, Any], tmp_path: Path) -> None:
    write_app(tmp_path, config)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "flask", "--app", "served", "run", "--reload", "-p", str(port)]
    with running(command, tmp_path, url) as process:
        assert requests.get(url + "/ask").json()["text"] == "Say hello"
        later = time.time() + 5
        write_app(tmp_path, config, "two")
        os.utime(tmp_path / "served.py", (later, later))
        eventually(lambda: requests.get(url + "/version").text == "two", tmp_path / "server.log")
        assert requests.get(url + "/ask").json()["text"] == "Say hello"
        log = (tmp_path / "server.log").read_text()
        assert len(re.findall("Restarting with stat", log)) >= 1
        os.killpg(process.pid, signal.SIGTERM)


# ------------------------------------------------------------------------------- where an application counts


def unsaid(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without a word about the state."""
    settings = {name: value for name, value in config["fastroute"].items() if name != "state"}
    return {**config, "fastroute": settings}


def memory_folder() -> set[str]:
    folder = f"/dev/shm/fastroute-{os.geteuid()}"
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_tested_application_counts_by_itself_and_leaves_nothing(
    when: str, make: Callable[..., Any], config: dict[str, Any]
) -> None:
    """Flask's own fixture sets TESTING on what create_app has returned."""
    before = memory_folder()
    app = make(FASTROUTE_CONFIG=unsaid(config), **({"TESTING": True} if when == "before" else {}))
    seen: list[Any] = []
    client = app.extensions["fastroute"]
    client.on(seen.append)  # an application may do so while it is made
    patient = client.with_options(timeout=20)
    app.config.update(TESTING=True)
    assert app.test_client().get("/ask").text
    assert client.stats()["state"]["kind"] == "memory"
    assert patient.runtime is client.runtime
    assert seen
    client.close()
    # Other tests may use the folder at this time; a file of this application would be of its ledger.
    other = load(unsaid(config))
    path = os.path.basename(segment_file.machine_path(other))
    assert not any(name.startswith(path) for name in memory_folder() - before)


def test_another_application_counts_on_the_whole_machine(config: dict[str, Any]) -> None:
    app = flask.Flask("app")
    app.config["FASTROUTE_CONFIG"] = unsaid(config)
    add_views(app, FastRoute(app))
    assert app.test_client().get("/ask").text
    client = app.extensions["fastroute"]
    state = client.stats()["state"]
    try:
        assert state["kind"] == "machine"
        app.config.update(TESTING=True)  # too late
        assert client.stats()["state"] == state
    finally:
        client.close()
        os.unlink(state["path"])
        os.unlink(state["path"] + ".lock")


def test_one_start_however_many_threads_begin(make: Callable[..., Any], config: dict[str, Any]) -> None:
    app = make(FASTROUTE_CONFIG=unsaid(config), TESTING=True)
    client = app.extensions["fastroute"]
    gate = threading.Barrier(8)
    found: list[Any] = []

    def begin() -> None:
        gate.wait()
        found.append(client.runtime)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(runtime is found[0] for runtime in found)


def test_what_is_wrong_shows_when_the_application_is_made(config: dict[str, Any], tmp_path: Path) -> None:
    app = flask.Flask("app")
    broken = {**unsaid(config), "policy": {"strategy": "fastest"}}
    app.config["FASTROUTE_CONFIG"] = broken
    with pytest.raises(fastroute.ConfigError, match="strategy"):
        FastRoute(app)
    nowhere = {**config, "fastroute": {"ledger": str(tmp_path / "none" / "x.db")}}
    app.config["FASTROUTE_CONFIG"] = nowhere
    with pytest.raises(fastroute.ConfigError, match="ledger"):
        FastRoute(app)


def test_an_application_that_is_never_used_can_be_closed(
    make: Callable[..., Any], config: dict[str, Any]
) -> None:
    client = make(FASTROUTE_CONFIG=unsaid(config)).extensions["fastroute"]
    client.close()
    with pytest.raises(fastroute.Error, match="closed"):
        client.stats()
