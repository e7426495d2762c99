"""Caller keys: their file, finding them, rotating and revoking, and what they may use."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from children import ended, forked
from gateways import HELLO, Served, error_of

from fastroute import _core, errors
from fastroute.gateway.keyring import KeyFileWatch, Keyring, KeysUnavailable, Throttle
from fastroute.gateway.keys import Caller, KeyFile, budgets_of, describe
from fastroute.gateway.limits import KeyLimits
from fastroute.testing import Answer, Fault

Serve = Callable[..., Served]


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


# --------------------------------------------------------------------------------------------- the file


def test_a_key_is_never_in_the_file_and_the_files_are_private(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    token = keys.create(Caller("web"))
    secret = token.split("-", 2)[2]
    assert len(secret) == 43  # 256 bits
    for name in ("keys.db", "keys.db.pepper"):
        path = tmp_path / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert secret.encode() not in path.read_bytes()
    pepper = (tmp_path / "keys.db.pepper").read_bytes().strip()
    assert pepper not in (tmp_path / "keys.db").read_bytes()
    assert secret not in repr(keys.read())
    assert secret not in str(describe(keys.read().callers["web"], keys.read(), 0.0))


def test_what_was_created_is_read_back(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db", now=lambda: 5.0)
    caller = Caller(
        name="a.b-c",
        admin=False,
        models=("auto", "gpt-4.1"),
        rpm=10,
        tpm=2000,
        budgets={"day": 1.5, "total": 9.0},
        tags={"team": "x y"},
        allowed_tags={"user": None, "plan": ("free", "paid")},
        created=5.0,
    )
    keys.create(caller)
    assert keys.read().callers["a.b-c"] == caller


@pytest.mark.parametrize(
    "caller",
    [
        Caller(""),
        Caller("a b"),
        Caller("a" * 65),
        Caller("../x"),
        Caller("a", rpm=-1),
        Caller("a", tpm=10**10),
        Caller("a", budgets={"week": 1.0}),
        Caller("a", budgets={"day": float("nan")}),
        Caller("a", budgets={"day": -1.0}),
        Caller("a", tags={"key": "other"}),
        Caller("a", tags={"x": "a\nb"}),
        Caller("a", tags={"x": ""}),
        Caller("a", allowed_tags={"key": None}),
        Caller("a", allowed_tags={"client_request_id": None}),
        Caller("a", allowed_tags={"a b": None}),
        Caller("a", allowed_tags={"x": ()}),
        Caller("a", allowed_tags={"x": ("a\nb",)}),
        Caller("a", allowed_tags={str(number): None for number in range(17)}),
        Caller("a", allowed_tags={"*": ("x",)}),
        Caller("a", tags={"x": "y"}, allowed_tags={"x": None}),
        Caller("a", admin=True, allowed_tags={"x": None}),
        Caller("a", models=("",)),
        Caller("a", admin=True, rpm=1),
    ],
    ids=str,
)
def test_impossible_callers_are_refused_and_leave_no_file(tmp_path: Path, caller: Caller) -> None:
    with pytest.raises(errors.ConfigError):
        KeyFile(tmp_path / "keys.db").create(caller)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_used_once_even_after_it_was_revoked(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    keys.create(Caller("web"))
    with pytest.raises(errors.ConfigError, match="a key named web exists or existed"):
        keys.create(Caller("web"))
    keys.revoke("web")
    with pytest.raises(errors.ConfigError):
        keys.create(Caller("web"))
    for change in (keys.revoke, lambda name: keys.rotate(name, 0)):
        with pytest.raises(errors.ConfigError, match="already revoked"):
            change("web")
        with pytest.raises(errors.ConfigError, match="no key named"):
            change("nobody")


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    keys = KeyFile(path)
    with pytest.raises(errors.ConfigError, match="does not exist"):
        keys.read()
    keys.create(Caller("web"))
    path.chmod(0o640)
    with pytest.raises(errors.ConfigError, match="chmod 600"):
        keys.read()
    path.chmod(0o600)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with pytest.raises(errors.ConfigError, match="it is a symbolic link"):
        KeyFile(link).read()
    pepper = tmp_path / "keys.db.pepper"
    good = pepper.read_bytes()
    pepper.write_bytes(b"x" * 64)
    with pytest.raises(errors.ConfigError, match="another pepper"):
        KeyFile(path).read()
    pepper.write_bytes(b"short")
    with pytest.raises(errors.ConfigError, match="32 characters"):
        KeyFile(path).read()
    pepper.unlink()
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        KeyFile(path).read()
    pepper.write_bytes(good)
    pepper.chmod(0o600)
    KeyFile(path).read()
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database" * 100)
    other.chmod(0o600)
    with pytest.raises(errors.ConfigError, match="not a key file"):
        KeyFile(other).read()


def test_the_pepper_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PEPPER", "p" * 40)
    keys = KeyFile(tmp_path / "keys.db", pepper_env="MY_PEPPER")
    token = keys.create(Caller("web"))
    assert [path.name for path in tmp_path.iterdir()] == ["keys.db"]
    assert Keyring(keys).find(token.encode()) is not None
    monkeypatch.setenv("MY_PEPPER", "")
    with pytest.raises(errors.ConfigError, match="MY_PEPPER"):
        KeyFile(tmp_path / "keys.db", pepper_env="MY_PEPPER").read()


def test_budgets_as_text() -> None:
    assert budgets_of(["5/day", "0.5/total"]) == {"day": 5.0, "total": 0.5}
    for wrong in (["5"], ["x/day"], ["5/week"], ["-1/day"], ["1e9/day"], ["nan/day"], ["1/day", "2/day"]):
        with pytest.raises(errors.ConfigError):
            budgets_of(wrong)


# --------------------------------------------------------------------------------------------- finding


def test_two_keys_that_begin_alike_are_two_callers(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    token = keys.create(Caller("web"))
    ring = Keyring(keys)
    found = ring.find(token.encode())
    assert found is not None
    assert found.name == "web"
    last = "A" if token[-1] != "A" else "B"
    assert ring.find((token[:-1] + last).encode()) is None
    assert ring.find(token[:-1].encode()) is None
    assert ring.find((token + "A").encode()) is None


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"x",
        b"fr-",
        b"' OR 1=1--",
        b"fr-aaaaaaaaaaaa-" + b"A" * 43,
        b"a" * 1_000_000,
        b"\0" * 59,
        "ä".encode() * 30,
    ],
    ids=lambda token: str(token[:12]),
)
def test_what_is_no_key_is_nobodys(tmp_path: Path, token: bytes) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    keys.create(Caller("web"))
    assert Keyring(keys).find(token) is None


def test_rotation_overlaps_and_then_ends(tmp_path: Path) -> None:
    clock = Clock()
    keys = KeyFile(tmp_path / "keys.db", now=clock)
    old = keys.create(Caller("web", rpm=7))
    new = keys.rotate("web", 100.0)
    ring = Keyring(keys, clock=clock, now=clock)
    for token in (old, new):
        found = ring.find(token.encode())
        assert found is not None
        assert (found.name, found.rpm) == ("web", 7)
    clock.time += 100.0
    assert ring.find(old.encode()) is None
    assert ring.find(new.encode()) is not None
    newest = keys.rotate("web", 0.0)
    clock.time += 1.0
    assert ring.find(new.encode()) is None
    assert ring.find(newest.encode()) is not None


def test_a_revocation_counts_at_the_next_look(tmp_path: Path) -> None:
    clock = Clock()
    keys = KeyFile(tmp_path / "keys.db")
    token = keys.create(Caller("web")).encode()
    ring = Keyring(keys, clock=clock)
    assert ring.find(token) is not None
    keys.revoke("web")
    clock.time += 1.0  # at once after a change: within one tick of the file's clock, it is read all the same
    assert ring.find(token) is None


def test_a_file_that_cannot_be_read_is_bridged_for_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    keys = KeyFile(tmp_path / "keys.db")
    token = keys.create(Caller("web")).encode()
    ring = Keyring(keys, clock=clock)
    away = tmp_path / "away.db"
    os.rename(keys.path, away)
    clock.time += 59.0
    assert ring.find(token) is not None
    clock.time += 2.0
    with pytest.raises(KeysUnavailable):
        ring.find(token)
    os.rename(away, keys.path)
    clock.time += 1.0
    assert ring.find(token) is not None


def test_a_locked_file_is_bridged_too(tmp_path: Path) -> None:
    clock = Clock()
    keys = KeyFile(tmp_path / "keys.db")
    token = keys.create(Caller("web")).encode()
    ring = Keyring(keys, clock=clock)
    holder = sqlite3.connect(keys.path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        clock.time += 2.0
        assert ring.find(token) is not None
    finally:
        holder.close()


def test_wrong_keys_are_throttled_and_remembered_in_bounds(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    throttle = Throttle(most=3, addresses=10, clock=clock)
    assert [throttle.wrong("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert throttle.wrong("a") == pytest.approx(60.0)
    assert throttle.wrong("b") == 0.0
    clock.time += 60.0
    assert throttle.wrong("a") == 0.0
    for number in range(10_000):
        throttle.wrong(str(number))
    assert len(throttle) == 10
    assert len(caplog.records) == 2


# ----------------------------------------------------------------------------------- at the gateway (152-155)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer ' OR 1=1--",
        "Bearer \xff\xfe",
        "Bearer a\x00b",
        "Basic abc",
        "Bearer " + "x" * 1_000_000,
        "{token}",
        "Token {token}",
        "Bearer {token},Bearer {token}",
        "Bearer {token} {token}",
        "Bearer {token}x",
        "bearer  {upper}",
    ],
)
def test_every_wrong_key_gets_the_same_401_before_the_body_is_read(serve: Serve, header: str | None) -> None:
    served = serve()

    class Unread:
        def read(self, *_: Any) -> bytes:
            raise AssertionError("the body was read")

    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "CONTENT_LENGTH": "100",
        "CONTENT_TYPE": "application/json",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": Unread(),
    }
    if header is not None:
        token = served.token
        environ["HTTP_AUTHORIZATION"] = header.replace("{token}", token).replace("{upper}", token.upper())
    told: list[Any] = []
    body = b"".join(served.app(environ, lambda status, headers: told.extend((status, dict(headers)))))
    assert told[0] == "401 Unauthorized"
    assert told[1]["WWW-Authenticate"].startswith("Bearer")
    assert len(body) < 1024
    assert orjson.loads(body)["error"]["type"] == "authentication_error"
    assert body == b"".join(served.app({**environ, "HTTP_AUTHORIZATION": ""}, lambda *_: None))


def test_a_scheme_in_any_case_is_known(serve: Serve) -> None:
    served = serve()
    for scheme in ("Bearer", "bearer", "BEARER"):
        response = served.web.get("/v1/models", headers={"Authorization": f"{scheme} {served.token}"})
        assert response.status_code == 200


def test_ten_thousand_wrong_keys_hold_up_nobody_and_flood_no_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "REMOTE_ADDR": "10.0.0.1",
    }
    statuses: dict[str, int] = {}

    def note(status: str, _: Any) -> None:
        statuses[status[:3]] = statuses.get(status[:3], 0) + 1

    for number in range(10_000):
        served.app({**environ, "HTTP_AUTHORIZATION": f"Bearer fr-aaaaaaaaaaaa-{number:043d}"}, note)
    assert statuses == {"401": 60, "429": 9_940}
    assert len(caplog.records) == 1
    assert served.post(environ_base={"REMOTE_ADDR": "10.0.0.1"}).status_code == 200


def test_a_revoked_key_is_refused_while_the_gateway_runs(serve: Serve) -> None:
    served = serve()
    assert served.post().status_code == 200
    served.keys.revoke("web")
    served.clock.ahead += 1.0  # a second later
    assert served.post().status_code == 401


def test_while_keys_cannot_be_checked_calls_wait(serve: Serve) -> None:
    served = serve()
    os.unlink(served.keys.path)
    served.clock.ahead += 61.0
    response = served.post()
    assert response.status_code == 503
    assert "keys.db" not in response.text


# ------------------------------------------------------------------------------------------ limits, budgets


def test_a_keys_requests_a_minute(serve: Serve) -> None:
    served = serve(Caller("web", rpm=12))  # two at once
    assert [served.post().status_code for _ in range(3)] == [200, 200, 429]
    response = served.post()
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["Retry-After"]) <= 5
    assert "x-should-retry" not in response.headers  # nobody has tried it yet: the SDK may wait and come back
    other = served.keys.create(Caller("other", rpm=12))
    served.clock.ahead += 1.0
    assert served.post(token=other).status_code == 200


def test_a_keys_tokens_a_minute_are_settled_with_the_real_ones(serve: Serve) -> None:
    served = serve(Caller("web", tpm=1000), answer=Answer("ok"))
    # Each sets 500 and some aside and uses ten: with the estimates alone, the second would not fit.
    for _ in range(4):
        assert served.post({**HELLO, "max_tokens": 500}).status_code == 200
    assert served.post({**HELLO, "max_tokens": 500, "stream": True}).status_code == 200
    assert served.post({**HELLO, "max_tokens": 500}).status_code == 200
    response = served.post({**HELLO, "max_tokens": 5000})
    assert response.status_code == 413


def test_a_key_with_a_limit_of_nothing_makes_no_call(serve: Serve) -> None:
    response = serve(Caller("web", rpm=0)).post()
    assert response.status_code == 429


def test_a_failed_call_gives_its_tokens_back(serve: Serve) -> None:
    served = serve(Caller("web", tpm=1000))
    for _ in range(5):
        assert served.post({**HELLO, "max_tokens": 900, "model": "gpt-99"}).status_code == 404
        assert served.post({**HELLO, "max_tokens": 900, "route": {"max_cost": 0}}).status_code in (429, 503)
    assert served.post({**HELLO, "max_tokens": 900}).status_code == 200


def test_a_keys_budget_is_never_overdrawn_and_survives_a_restart(serve: Serve, tmp_path: Path) -> None:
    from gateways import configuration
    from werkzeug.test import Client

    from fastroute.gateway.app import create_app

    # A call costs up to 100 output tokens at 8 dollars a million, and some more for its prompt.
    served = serve(Caller("web", budgets={"day": 0.003}), answer=Answer("word " * 100))
    call = {**HELLO, "model": "gpt-4.1", "max_tokens": 100}
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(served.post(call).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    response = served.post(call)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (429, "budget_exceeded")
    assert "key-day" in error["message"]
    assert int(response.headers["Retry-After"]) <= 86_400
    ledger = served.app.client.ledger
    assert 0 < ledger.spent(tags={"key": "web"}) <= 3_000_000
    other = served.keys.create(Caller("other", budgets={"day": 0.003}))
    served.clock.ahead += 1.0
    assert served.post(call, token=other).status_code == 200
    again = create_app(configuration(served.provider.base_url, tmp_path), keys=served.keys.path)
    try:
        second = Served(again, Client(again), served.provider, served.keys, served.token, served.admin)
        assert second.post(call).status_code == 429
    finally:
        again.close()


def test_calls_wait_while_a_keys_money_is_only_reserved(serve: Serve) -> None:
    # Room for the worst case of one call, and for what a hundred of them cost.
    served = serve(
        Caller("web", budgets={"day": 0.0015}), answer=Answer("hi"), policy={"queue_timeout": 10.0}
    )
    served.provider.script(*[Fault.slow(0.02)] * 8)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(served.post({**HELLO, "model": "gpt-4.1", "max_tokens": 100}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_a_call_that_no_window_has_room_for_is_not_told_when_to_come_again(serve: Serve) -> None:
    served = serve(Caller("web", budgets={"day": 0.0001}))
    response = served.post({**HELLO, "model": "gpt-4.1"})
    assert response.status_code == 429
    assert "max_tokens is missing" in error_of(response)["message"]
    assert "Retry-After" not in response.headers


def test_the_budget_of_all_is_not_told_to_one(serve: Serve) -> None:
    served = serve(budgets=[{"name": "company", "limit": 0.000001, "window": "day"}])
    response = served.post()
    assert (response.status_code, error_of(response)["code"]) == (429, "budget_exceeded")
    assert "company" not in response.text


def test_a_state_without_room_for_another_key_lets_it_in_nowhere() -> None:
    segment = _core.Segment(64)
    for number in range(segment.cells - segment.used):
        _core.Bucket(segment, f"another {number}", 1, 1)
    with pytest.raises(errors.NoEndpointError, match="the key's limits cannot be counted"):
        KeyLimits(segment).admit(Caller("web", rpm=12))


def test_workers_of_one_parent_share_a_keys_limit(serve: Serve) -> None:
    served = serve(Caller("web", rpm=12))
    segment = served.app.client.runtime.generation.state.segment
    limits = KeyLimits(segment)
    caller = Caller("web", rpm=12)
    limits.admit(caller)
    assert ended(forked(lambda: KeyLimits(segment).admit(caller))) == 0
    with pytest.raises(errors.RateLimitError):
        limits.admit(caller)


# ------------------------------------------------------------------------------------------- without keys


def test_a_file_of_keys_that_is_made_later_counts(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from werkzeug.test import Client

    from fastroute.gateway.app import Gateway

    clock = Clock()
    monkeypatch.chdir(tmp_path)
    app = Gateway(serve().app.client, None, clock=clock)
    web = Client(app)
    here = {"environ_overrides": {"HTTP_HOST": "127.0.0.1:8080", "REMOTE_ADDR": "127.0.0.1"}}

    def status(path: str = "/v1/models", key: str | None = None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return web.get(path, headers=headers, **here).status_code

    assert (status(), app.has_keys) == (401, False)
    token = KeyFile("fastroute-keys.db").create(Caller("late"))
    admin = KeyFile("fastroute-keys.db").create(Caller("boss", admin=True))
    assert status(key=token) == 401  # it has looked within this second
    clock.time += 1
    assert (status(), app.has_keys) == (401, True)
    assert status(key=token) == 200
    assert status("/admin/stats.json", admin) == 200


def test_a_file_made_later_that_cannot_be_used_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later.db"
    lookout = KeyFileWatch(KeyFile(path), clock=Clock())
    path.write_text("no database")
    path.chmod(0o600)
    for _ in range(2):
        with pytest.raises(KeysUnavailable):
            lookout.look()
    assert "cannot be used" in caplog.text
    path.unlink()
    token = KeyFile(path).create(Caller("late"))
    keyring = lookout.look()
    assert keyring is not None
    assert keyring.find(token.encode()) is not None


def test_an_id_of_the_callers_does_not_make_a_cached_answer_a_miss(serve: Serve) -> None:
    served = serve(cache={"enabled": True})
    first = served.post(headers={"x-request-id": "one"})
    again = served.post(headers={"x-request-id": "two"})
    assert [reply.headers["x-fastroute-cached"] for reply in (first, again)] == ["false", "true"]
    assert served.app.client.ledger.entries()[0].tags["client_request_id"] == "one"


def test_the_command_line_makes_keys_that_work(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastroute.cli", "keys", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    made = run("create", "web", "--rpm", "5", "--budget", "5/day", "-m", "auto", "--tag", "team=blue")
    token = made.stdout.strip()
    assert made.returncode == 0, made.stderr
    found = Keyring(KeyFile(tmp_path / "fastroute-keys.db")).find(token.encode())
    assert found is not None
    assert (found.rpm, found.models, found.budgets, found.tags) == (
        5,
        ("auto",),
        {"day": 5.0},
        {"team": "blue"},
    )
    assert found.allowed_tags == {}
    changed = run(
        "tags", "web", "--allow-tag", "user", "--allow-tag", "plan=free", "--allow-tag", "plan=paid"
    )
    assert "web may set user, plan=free|paid" in changed.stderr
    found = Keyring(KeyFile(tmp_path / "fastroute-keys.db")).find(token.encode())
    assert found is not None
    assert (found.tags, found.allowed_tags) == ({"team": "blue"}, {"user": None, "plan": ("free", "paid")})
    assert run("tags", "web", "--allow-tag", "team").returncode == 1
    assert run("tags", "web", "--allow-tag", "a", "--allow-tag", "a=b").returncode == 2
    listed = run("list")
    assert "web" in listed.stdout
    assert "user, plan=free|paid" in listed.stdout
    assert token not in listed.stdout
    assert run("create", "web").returncode == 1
    assert run("revoke", "web").returncode == 0
    assert "revoked" in run("list").stdout
    assert Keyring(KeyFile(tmp_path / "fastroute-keys.db")).find(token.encode()) is None
