"""A key file that is damaged, and one that nobody has looked at for a while."""

from __future__ import annotations

import logging
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from gateways import HELLO, Clock, Served
from soak.stored import keys as damage_keys

from fastroute import errors
from fastroute.gateway.keyring import Keyring, KeysUnavailable
from fastroute.gateway.keys import Caller, KeyFile

Serve = Callable[..., Served]
VICTIM = Caller("victim", rpm=60, budgets={"day": 5.0}, tags={"team": "blue"}, models=("auto", "gpt-4.1"))


def overwrite(path: str, statement: str, *values: Any) -> None:
    """Changes a row as damage does: whatever the table's types and constraints are."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        kept = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        database.execute("PRAGMA writable_schema = ON")
        for name, text in kept:
            loose = text.replace(" STRICT", "").replace(" NOT NULL", "")
            for kind in (" TEXT", " INTEGER", " REAL", " BLOB"):
                loose = loose.replace(kind, "")
            database.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (loose, name))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement, values)
        database.execute("PRAGMA writable_schema = ON")
        for name, text in kept:
            database.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (text, name))


CALLERS = [
    ("admin", 7),
    ("admin", "yes"),
    ("models", "[1]"),
    ("models", "{"),
    ("models", '"auto"'),
    ("models", b"\xff\xfe"),
    ("models", "[" * 100_000),
    ("models", '[""]'),
    ("rpm", None),
    ("rpm", 61),
    ("models", None),
    ("tags", "{}"),
    ("rpm", -1),
    ("rpm", 2**62),
    ("rpm", 1.5),
    ("rpm", "60"),
    ("tpm", -(2**63)),
    ("tpm", b"\0" * 8),
    ("budgets", None),
    ("budgets", "[]"),
    ("budgets", '{"day": -5}'),
    ("budgets", '{"day": NaN}'),
    ("budgets", '{"day": 1e400}'),
    ("budgets", '{"day": true}'),
    ("budgets", '{"day": "5"}'),
    ("budgets", '{"week": 5}'),
    ("budgets", 5),
    ("tags", '{"key": "boss"}'),
    ("tags", '{"team": 1}'),
    ("tags", None),
    ("created", "yesterday"),
    ("created", float("inf")),
    ("created", -1.0),
    ("revoked", b""),
    ("revoked", float("-inf")),
]
SECRETS = [
    ("digest", None),
    ("digest", b""),
    ("digest", b"x" * 31),
    ("digest", "x" * 32),
    ("digest", 0),
    ("caller", None),
    ("caller", 5),
    ("caller", "a b\n"),
    ("caller", "nobody"),
    ("public", "short"),
    ("public", "A" * 12),
    ("public", None),
    ("created", "x"),
    ("expires", float("inf")),
    ("expires", "never"),
    ("expires", -5),
]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("callers", *case) for case in CALLERS] + [("secrets", *case) for case in SECRETS],
    ids=lambda value: str(value)[:20],
)
def test_a_damaged_row_costs_its_own_key_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str, column: str, value: Any
) -> None:
    clock = Clock()
    file = KeyFile(tmp_path / "keys.db")
    before, victim, after = (file.create(caller).encode() for caller in (Caller("a"), VICTIM, Caller("z")))
    keyring = Keyring(file, clock=clock)
    statement = "UPDATE callers SET X = ? WHERE name = 'victim'"
    if table == "secrets":
        statement = "UPDATE secrets SET X = ? WHERE caller = 'victim'"
    overwrite(file.path, statement.replace("X", column), value)
    for _ in range(3):
        clock.ahead += 1.0
        for token, name in ((before, "a"), (after, "z")):
            found = keyring.find(token)
            assert found is not None
            assert found.name == name
        if table == "callers" or value == "nobody":
            with pytest.raises(KeysUnavailable, match="settings of this key are damaged"):
                keyring.find(victim)
        else:
            assert keyring.find(victim) is None
    assert len(caplog.records) == 1
    assert "keys.db" in caplog.text
    assert "fastroute keys create" in caplog.text
    problems = file.read().problems
    assert problems
    assert not any(victim.decode() in problem for problem in problems)


def test_a_row_of_a_release_without_check_values_is_intact(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.db")
    token = file.create(VICTIM).encode()
    overwrite(file.path, "UPDATE callers SET budgets = ?", '{"day":5.0}')
    found = Keyring(file).find(token)
    assert found is not None
    assert found.budgets == VICTIM.budgets
    file.allow_tags("victim", {"user": None})
    with closing(sqlite3.connect(file.path)) as database:
        assert "check" in database.execute("SELECT budgets FROM callers").fetchone()[0]
    assert file.read().problems == ()


@pytest.mark.parametrize("value", [None, b"", b"x" * 40, 5, "text"], ids=str)
def test_a_damaged_proof_of_the_pepper_is_not_a_wrong_pepper(tmp_path: Path, value: Any) -> None:
    file = KeyFile(tmp_path / "keys.db")
    token = file.create(VICTIM).encode()
    with closing(sqlite3.connect(file.path)) as database:
        proof = database.execute("SELECT proof FROM pepper").fetchone()[0]
    overwrite(file.path, "UPDATE pepper SET proof = ?", bytes([proof[0] ^ 1, *proof[1:]]))
    assert Keyring(file).find(token) is not None
    assert "proof" in file.read().problems[0]
    overwrite(file.path, "UPDATE pepper SET proof = ?", value)
    with pytest.raises(errors.ConfigError, match="pepper"):
        file.read()


def test_any_byte_of_a_callers_row_costs_that_key_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeyFile(tmp_path / "keys.db")
    others = [Caller(f"other-{number}", rpm=number + 1) for number in range(4)]
    tokens = [file.create(caller).encode() for caller in others]
    victim = file.create(VICTIM).encode()
    good = Path(file.path).read_bytes()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    caplog.set_level(logging.CRITICAL, "fastroute")
    chance = random.Random(seed)
    begin = good.index(b'victim["auto"')
    end = good.index(b"other-3", begin) - 12  # the row before it in the page begins with its header
    for at in range(begin - 12, end):
        for value in {0, 255, chance.randrange(256)} - {good[at]}:
            Path(file.path).write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            keyring = Keyring(file)
            for token, caller in zip(tokens, others):
                found = keyring.find(token)
                assert found is not None, (at - begin, value)
                assert (found.name, found.rpm) == (caller.name, caller.rpm)
            try:
                found = keyring.find(victim)
                assert found is None or evolve(found, created=0.0, revoked=None) == VICTIM
            except KeysUnavailable:
                pass


def test_a_key_file_may_be_damaged_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    caplog.set_level(logging.CRITICAL, "fastroute")
    counts = damage_keys(random.Random(seed), tmp_path, 200)
    assert counts["found"]


def test_a_damaged_key_is_shown_and_created_anew(serve: Serve, tmp_path: Path) -> None:
    served = serve(VICTIM)
    other = served.keys.create(Caller("other"))
    overwrite(served.keys.path, "UPDATE callers SET budgets = 'x' WHERE name = 'victim'")
    served.clock.ahead += 1.0
    response = served.post()
    assert response.status_code == 503
    assert "settings of this key are damaged" in response.text
    assert served.post(token=other).status_code == 200

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastroute.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    listed = run("keys", "list", "--file", "keys.db")
    assert "other" in listed.stdout
    assert "damaged  callers row 1, 'victim': budgets: must be JSON of a dict" in listed.stderr
    (tmp_path / "fastroute.toml").write_text(
        '[providers.local]\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["m"]\n'
    )
    checked = run("check", "--keys", "keys.db")
    assert checked.returncode == 1
    assert "problem  keys: callers row 1, 'victim': budgets" in checked.stdout
    with pytest.raises(errors.ConfigError, match="exists"):
        served.keys.create(Caller("other"))
    served.keys.create(VICTIM)
    assert served.keys.read().problems == ()
    served.clock.ahead += 1.0
    assert served.post().status_code == 200
    assert run("check", "--keys", "keys.db").returncode == 0


# --------------------------------------------------------------------------------------------- quiet


class SlowFile(KeyFile):
    """A key file whose next reading begins when a test lets it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hold: threading.Event | None = None
        self.reading = threading.Event()

    def read(self) -> Any:
        if self.hold is not None:
            self.reading.set()
            assert self.hold.wait(30)
        return super().read()


@pytest.mark.parametrize("quiet", [3.0, 61.0, 86_400.0])
def test_the_first_burst_after_a_quiet_time_waits_for_the_one_that_reads(
    tmp_path: Path, quiet: float
) -> None:
    asked = threading.Semaphore(0)
    clock = Clock()

    def counted() -> float:
        asked.release()
        return clock()

    file = SlowFile(tmp_path / "keys.db")
    web, gone = file.create(Caller("web")).encode(), file.create(Caller("gone")).encode()
    keyring = Keyring(file, clock=counted, patience=30.0)
    file.revoke("gone")
    clock.ahead += quiet
    file.hold = threading.Event()
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(keyring.find, web)
        assert file.reading.wait(30)
        while asked.acquire(blocking=False):
            pass
        burst = [pool.submit(keyring.find, token) for token in (web, gone) * 7]
        for _ in burst:
            assert asked.acquire(timeout=30)
        file.hold.set()
        assert first.result(30) is not None
        for each, (found, revoked) in enumerate(zip(burst[::2], burst[1::2])):
            caller = found.result(30)
            assert caller is not None, each
            assert revoked.result(30) is None, each


def test_who_waits_for_a_reader_that_does_not_end_is_told_in_time(tmp_path: Path) -> None:
    clock = Clock()
    file = SlowFile(tmp_path / "keys.db")
    web = file.create(Caller("web")).encode()
    keyring = Keyring(file, clock=clock, patience=0.05)
    file.create(Caller("more"))
    file.hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        clock.ahead += 3.0
        first = pool.submit(keyring.find, web)
        assert file.reading.wait(30)
        assert keyring.find(web) is not None  # within the minute that a file may be unreadable
        clock.ahead += 60.0
        with pytest.raises(KeysUnavailable):
            keyring.find(web)
        file.hold.set()
        assert first.result(30) is not None
    assert keyring.find(web) is not None


def test_a_gateway_answers_the_first_burst_after_a_quiet_hour(serve: Serve) -> None:
    served = serve(VICTIM, policy={"queue_timeout": 5.0})
    others = [served.keys.create(Caller(f"c{number}")) for number in range(12)]
    served.clock.ahead += 3600.0
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda token: served.post(HELLO, token=token).status_code, others))
    assert statuses == [200] * 12
