"""The plugin for pytest, in runs of its own: its fixture answers, its guard keeps tests on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TESTS = """
import socket, urllib.request
import pytest, requests
import fastroute

QUESTION = [{"role": "user", "content": "hello"}]

def client(base_url, **policy):
    return fastroute.Client({
        "fastroute": {"ledger": ""},
        "providers": {"a": {"base_url": base_url}},
        "endpoints": [{"provider": "a", "model": "m"}],
    })

def test_the_fixture_serves(fastroute_provider):
    with client(fastroute_provider.base_url) as made:
        reply = made.chat.completions.create(model="m", messages=QUESTION)
        assert reply.choices[0].message.content == "hello"
        assert len(fastroute_provider.requests) == 1

def test_a_client_is_blocked():
    with client("https://api.openai.com/v1") as made:
        made.chat.completions.create(model="m", messages=QUESTION)

def test_requests_is_blocked():
    requests.post("https://api.openai.com/v1/chat/completions", json={})

def test_an_address_is_blocked():
    socket.create_connection(("192.0.2.1", 80))

def test_a_datagram_is_blocked():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("192.0.2.1", 53))

def test_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    with socket.create_server(("localhost", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    here, there = socket.socketpair()
    here.close(), there.close()
"""
BLOCKED = 4


def run(folder: Path, *options: str, ini: str = "") -> str:
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    plugins = ["-p", "fastroute.testing.pytest_plugin", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-rf", "--tb=line", *options],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    return ended.stdout


@pytest.mark.parametrize(
    ("options", "ini"), [(["--fastroute-guard"], ""), ([], "fastroute_guard = true")], ids=["option", "ini"]
)
def test_the_guard_lets_tests_reach_this_machine_only(tmp_path: Path, options: list[str], ini: str) -> None:
    said = run(tmp_path, *options, ini=ini)
    assert f"{BLOCKED} failed, 2 passed" in said
    assert said.count("NetworkBlocked: a test was about to reach") >= BLOCKED
    assert "api.openai.com; answer it with the fixture fastroute_provider" in said


def test_without_the_guard_the_fixture_still_serves(tmp_path: Path) -> None:
    said = run(tmp_path, "-k", "fixture or machine")
    assert "2 passed" in said


def test_pytest_finds_the_plugin_by_itself() -> None:
    """Where the package is installed; a bare source tree on the path has no entry points."""
    found = {each.name: each.value for each in entry_points(group="pytest11")}
    if "fastroute" not in found and os.environ.get("CI") != "true":
        pytest.skip("needs fastroute installed: pip install -e '.[test]'")
    assert found["fastroute"] == "fastroute.testing.pytest_plugin"
