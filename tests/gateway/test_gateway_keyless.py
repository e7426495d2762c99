"""A gateway serves nobody without a key unless that is asked for, whatever stands before it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from gateways import CHAT, HELLO, configuration
from needs import need
from ports import free_port
from reverse_proxy import await_port, in_front_of
from werkzeug.test import Client as WsgiClient

from fastroute import Client, ConfigError
from fastroute.gateway import create_app
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.testing import Provider

ROOT = Path(__file__).parent.parent.parent
KEY = re.compile(r"^(fr-[a-z2-7]{12}-[A-Za-z0-9_-]{43})$", re.MULTILINE)


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A local provider, its configuration in the working directory, and no keys."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("FASTROUTE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Provider() as found:
        (tmp_path / "fastroute.toml").write_text(
            '[fastroute]\nledger = "ledger.db"\nstate = "memory"\n'
            f'[providers.local]\nbase_url = "{found.base_url}"\nmodels = ["gpt-4.1-mini"]\n'
        )
        yield found


def asked(address: str, key: str | None = None, **headers: str) -> requests.Response:
    sent = {**headers, **({} if key is None else {"Authorization": f"Bearer {key}"})}
    return requests.post(f"{address}{CHAT}", json=HELLO, headers=sent, timeout=20)


@contextlib.contextmanager
def started(*command: str, environ: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, which is ended with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def here(app: Any) -> Iterator[str]:
    """``HOST:PORT`` of an app that a thread of this process serves."""
    server = need("waitress.server").create_server(app, map={}, host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"127.0.0.1:{server.effective_port}"
    finally:
        server.close()
        server.task_dispatcher.shutdown()
        thread.join()


# -------------------------------------------------------------------------------------- behind the real nginx


def test_the_first_start_makes_a_key_and_shows_it_once(provider: Provider, tmp_path: Path) -> None:
    port = free_port()
    command = ("fastroute", "serve", "--port", str(port))
    with started(*command) as first:
        await_port(port, first)
        with in_front_of(f"127.0.0.1:{port}", tmp_path / "nginx") as address:
            assert asked(address).status_code == 401
            assert asked(f"http://127.0.0.1:{port}").status_code == 401
            assert not provider.requests
            first.terminate()
            said, beside = first.communicate(timeout=30)
    (key,) = KEY.findall(said)
    assert key not in beside
    with started(*command) as second:
        await_port(port, second)
        with in_front_of(f"127.0.0.1:{port}", tmp_path / "again") as address:
            assert asked(address).status_code == 401
            assert asked(address, key).status_code == 200
        second.terminate()
        assert "fr-" not in "".join(second.communicate(timeout=30))
    assert (tmp_path / "fastroute-keys.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", ["127.0.0.1:{port}", "unix:{folder}/gunicorn.sock"])
def test_an_app_without_keys_refuses_what_nginx_sends(place: str, provider: Provider, tmp_path: Path) -> None:
    need("gunicorn")
    port = free_port()
    upstream = place.format(port=port, folder=tmp_path)
    command = ("gunicorn", "--bind", upstream, "--bind", f"127.0.0.1:{free_port()}", "--no-control-socket")
    with started(*command, "fastroute.gateway:create_app()") as server:
        assert server.stderr is not None
        said = ""
        while "no keys" not in said:
            line = server.stderr.readline()
            assert line, said
            said += line
        spelled = f"http://{upstream}:" if upstream.startswith("unix:") else upstream
        with in_front_of(spelled.removeprefix("http://"), tmp_path / "nginx") as address:
            refused = asked(address)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "no_keys")
            assert asked(address, "any").status_code == 401
            assert not provider.requests
            # A key made later is found without a restart.
            key = KeyFile("fastroute-keys.db").create(Caller("late"))
            while asked(address, key).json().get("error", {}).get("code") == "no_keys":
                pass
            assert asked(address, key).status_code == 200
            assert asked(address).status_code == 401


def test_only_the_process_itself_needs_no_key_and_nginx_is_not_it(provider: Provider, tmp_path: Path) -> None:
    """However the other side calls itself: what a request says about its origin does not count."""
    with Client("fastroute.toml") as client, here(create_app(client=client)) as served:
        assert asked(f"http://{served}").status_code == 200
        with in_front_of(served, tmp_path / "nginx") as address:
            for headers in ({}, {"Host": "localhost"}, {"X-Forwarded-For": "127.0.0.1"}):
                assert asked(address, **headers).status_code == 401
        other = f"import urllib.request as r\nr.urlopen('http://{served}/v1/models')"
        ended = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "HTTP Error 401" in ended.stderr
    assert len(provider.requests) == 1


@pytest.mark.parametrize("by", ["option", "configuration", "environment"])
def test_keyless_serves_everyone_and_warns_at_every_start(
    by: str, provider: Provider, tmp_path: Path
) -> None:
    port = free_port()
    if by == "configuration":
        with open("fastroute.toml", "a") as file:
            file.write("[gateway]\nkeyless = true\n")
    environ = {"FASTROUTE_GATEWAY__KEYLESS": "true"} if by == "environment" else {}
    options = ["--keyless"] if by == "option" else []
    for start in range(2 if by == "option" else 1):
        with started("fastroute", "serve", "--port", str(port), *options, environ=environ) as server:
            await_port(port, server)
            with in_front_of(f"127.0.0.1:{port}", tmp_path / f"nginx{start}") as address:
                assert asked(address).status_code == 200
            server.terminate()
            said = "".join(server.communicate(timeout=30))
        assert "keyless" in said
        assert "reach the proxy" in said
        assert "figures" not in said  # they need a key
        assert "fr-" not in said
    assert not os.path.exists("fastroute-keys.db")


# ----------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost"},
        {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "x"},
        {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "1", "SERVER_PORT": "80"},
        {"REMOTE_ADDR": "::1", "REMOTE_PORT": "1", "SERVER_PORT": "80"},
        {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "1", "SERVER_PORT": "80"},
        {"REMOTE_ADDR": "", "REMOTE_PORT": "", "SERVER_PORT": ""},
    ],
    ids=str,
)
def test_what_a_request_says_makes_it_nobodys_own(provider: Provider, environ: dict[str, str]) -> None:
    with Client("fastroute.toml") as client:
        web = WsgiClient(create_app(client=client))
        assert web.get("/v1/models", environ_overrides=environ).status_code == 401
        open_to_all = WsgiClient(create_app(client=client, keyless=True))
        assert open_to_all.get("/v1/models", environ_overrides=environ).status_code == 200
        figures = open_to_all.get("/admin/stats.json", environ_overrides=environ)
        assert (figures.status_code, "unset keyless" in figures.text) == (403, True)


def test_where_no_key_can_be_made_the_server_says_what_to_do(provider: Provider) -> None:
    os.symlink("nowhere", "fastroute-keys.db.pepper")
    with started("fastroute", "serve", "--port", str(free_port())) as server:
        _, beside = server.communicate(timeout=30)
        assert server.returncode == 1
    assert "there are no keys, and none can be made" in beside
    assert "--keys FILE" in beside
    assert "Traceback" not in beside


def test_keyless_beside_keys_is_refused(provider: Provider, tmp_path: Path) -> None:
    KeyFile("fastroute-keys.db").create(Caller("web"))
    config = configuration(provider.base_url, tmp_path, gateway={"keyless": True})
    for start in (
        lambda: create_app("fastroute.toml", keyless=True),
        lambda: create_app(config),
        lambda: create_app(config, keys="fastroute-keys.db"),
    ):
        with pytest.raises(ConfigError, match=r"gateway\.keyless.*fastroute-keys\.db"):
            start()


def test_a_reload_can_end_a_keyless_time_but_not_begin_one_beside_keys(
    provider: Provider, tmp_path: Path
) -> None:
    def tables(keyless: bool) -> dict[str, Any]:
        return configuration(provider.base_url, tmp_path, gateway={"keyless": keyless})

    with Client(tables(True)) as client:
        web = WsgiClient(create_app(client=client))
        assert web.get("/v1/models").status_code == 200
        client.reload(tables(False))
        assert web.get("/v1/models").status_code == 401
    KeyFile("fastroute-keys.db").create(Caller("web"))
    with Client(tables(False)) as client:
        web = WsgiClient(create_app(client=client))
        client.reload(tables(True))
        assert web.get("/v1/models").status_code == 401
