"""The ledger in PostgreSQL: a server that is away, stopped, restarted, newer, foreign or unwilling."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import forked
from entries import Opens, attempt, in_child, reap, segments, until
from postgres_server import PostgresServer

import fastroute
from fastroute import ledger as ledger_module
from fastroute.errors import ConfigError, LedgerError
from fastroute.events import Hooks, LedgerDegraded
from fastroute.ledger import Ledger, postgres
from fastroute.testing import Provider


@pytest.fixture
def opens(server: PostgresServer, tmp_path: Path) -> Opens:
    return Opens(server.new_schema(), tmp_path / "journal")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("fastroute.ledger.writer.MAX_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(postgres, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(postgres, "READ_SECONDS", 0.2)


def backends(server: PostgresServer) -> list[int]:
    """Process ids of the server's sessions that are ledgers'."""
    rows = server.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'fastroute'")
    return [row[0] for row in rows]


# --------------------------------------------------------------------------------------------- in trouble


@pytest.mark.usefixtures("impatient")
def test_a_server_away_delays_no_call_and_loses_nothing(
    server: PostgresServer, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.QUEUE_LIMIT", 50)
    heard: list[LedgerDegraded] = []
    hooks = Hooks()
    hooks.add(heard.append, LedgerDegraded)
    with opens(hooks=hooks) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        server.kill()
        try:
            for n in range(2000):
                ledger.append(attempt(n, cost_nano=1))
            until(lambda: bool(heard))
            assert not ledger.health.ok
            assert ledger.health.waiting <= 50 + 512  # the rest is in the journal only
            with pytest.raises(LedgerError, match="could not write its entries"):
                ledger.flush(0.05)
            with opens() as second:  # one that begins meanwhile
                second.append(attempt(0, cost_nano=5))
                assert "refused" in (second.health.reason or "")
        finally:
            server.start()
        assert ledger.spent() == 2006  # known before all of it is in the database
        until(lambda: ledger.health.ok)
        assert ledger.totals().attempts == 2002
        assert (ledger.health.lost, ledger.health.rejected) == (0, 0)
        assert len(segments(opens.journal)) == 1


@pytest.mark.usefixtures("impatient")
def test_sessions_that_are_ended_are_begun_anew(server: PostgresServer, opens: Opens) -> None:
    with opens() as ledger:
        for n in range(5):
            ledger.append(attempt(n, cost_nano=1))
            ledger.flush()
            for pid in backends(server):
                server.run(f"SELECT pg_terminate_backend({pid})")
        assert ledger.spent() == 5


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stands_still_holds_up_nobody_for_good(server: PostgresServer, opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        until(lambda: len(backends(server)) == 1)  # that of the test before takes its time to end
        (pid,) = backends(server)
        os.kill(pid, signal.SIGSTOP)  # its session alone: it takes what is sent, and never answers
        try:
            ledger.append(attempt(1, cost_nano=10))
            assert ledger.spent() == 11  # over another session
        finally:
            os.kill(pid, signal.SIGCONT)


def test_an_answer_lost_on_the_way_counts_once(
    server: PostgresServer, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    insert = postgres.PostgresConnection.insert
    told: list[int] = []

    def insert_and_lose(session: postgres.PostgresConnection, rows: Any) -> None:
        insert(session, rows)
        if rows and not told:
            told.append(len(rows))
            raise postgres.DatabaseUnavailable("the connection broke after the commit")

    monkeypatch.setattr(postgres.PostgresConnection, "insert", insert_and_lose)
    with opens() as ledger:
        ledger.append(attempt(cost_nano=7))
        assert ledger.spent() == 7
        assert told == [1]


@pytest.mark.usefixtures("impatient")
def test_a_locked_table_and_a_read_only_database_only_delay(server: PostgresServer, opens: Opens) -> None:
    import psycopg

    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        with psycopg.connect(str(opens.place)) as other:
            other.execute("LOCK TABLE fastroute_attempts IN EXCLUSIVE MODE")
            ledger.append(attempt(1, cost_nano=10))
            until(lambda: not ledger.health.ok)
            assert ledger.health.waiting >= 1
        ledger.flush()
        server.run("ALTER ROLE tester SET default_transaction_read_only = on")
        try:
            server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastroute'"
            )
            ledger.append(attempt(2, cost_nano=100))
            until(lambda: "read-only" in (ledger.health.reason or ""))
        finally:
            server.run("ALTER ROLE tester RESET ALL")
            server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastroute'"
            )
        assert ledger.spent() == 111


def test_tables_that_are_dropped_are_made_anew(server: PostgresServer, opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        server.run("DROP TABLE fastroute_ledger, fastroute_attempts", str(opens.place))
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 10


def test_a_row_the_server_refuses_holds_up_no_other(opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        # Counted as 64 bits are, and one more than they hold.
        ledger.append(attempt(1, cost_nano=1, prompt_tokens=2**63))
        ledger.append(attempt(2, cost_nano=1))
        assert ledger.spent() == 2
        assert ledger.health.rejected == 1


# -------------------------------------------------------------------------------------------- the schema


def test_a_newer_schema_is_not_written_to_even_if_it_comes_while_running(
    server: PostgresServer, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    url = str(opens.place)
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        server.run("UPDATE fastroute_ledger SET version = 99", url)
        ledger.append(attempt(1, cost_nano=10))
        until(lambda: not ledger.health.ok)
        assert "written by a newer fastroute (schema 99" in (ledger.health.reason or "")
        assert server.run("SELECT count(*) FROM fastroute_attempts", url) == [(1,)]
        with pytest.raises(ConfigError, match="newer fastroute"):
            opens()
        assert postgres.VERSION == 5
        server.run("UPDATE fastroute_ledger SET version = 5", url)
        assert ledger.spent() == 11


def test_an_older_schema_is_brought_forward_by_one_of_many(
    server: PostgresServer, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(opens.place)
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
    more = ("ALTER TABLE fastroute_attempts ADD COLUMN region text",)
    monkeypatch.setattr(postgres, "MIGRATIONS", (*postgres.MIGRATIONS, more))
    monkeypatch.setattr(postgres, "VERSION", postgres.VERSION + 1)
    opened: list[Ledger] = []
    threads = [threading.Thread(target=lambda: opened.append(opens())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    for ledger in opened:
        ledger.append(attempt(1, cost_nano=10))
        ledger.close()
    assert server.run("SELECT version FROM fastroute_ledger", url) == [(postgres.VERSION,)]
    assert server.run("SELECT sum(cost_nano) FROM fastroute_attempts WHERE region IS NULL", url) == [(61,)]


def test_a_database_from_before_service_tiers_were_recorded_goes_on(
    server: PostgresServer, opens: Opens
) -> None:
    url = str(opens.place)
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
    server.run(
        "ALTER TABLE fastroute_attempts DROP COLUMN service_tier, DROP COLUMN budget_nano, DROP COLUMN score",
        url,
    )
    server.run("UPDATE fastroute_ledger SET version = 2", url)
    with opens() as ledger:
        ledger.append(attempt(1, cost_nano=10, service_tier="flex"))
        assert [entry.service_tier for entry in ledger.entries()] == ["flex", None]
        assert [(row.keys, row.cost_nano) for row in ledger.by("service_tier")] == [
            ((None,), 1),
            (("flex",), 10),
        ]


def test_a_database_from_before_scores_were_recorded_goes_on(server: PostgresServer, opens: Opens) -> None:
    url = str(opens.place)
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
    server.run("ALTER TABLE fastroute_attempts DROP COLUMN score", url)
    server.run("UPDATE fastroute_ledger SET version = 4", url)
    with opens() as ledger:
        ledger.append(attempt(1, cost_nano=10, score=-1.25))
        assert [entry.score for entry in ledger.entries()] == [-1.25, None]


def test_what_is_no_ledger_is_refused(server: PostgresServer, tmp_path: Path) -> None:
    foreign = server.new_schema()
    server.run("CREATE TABLE fastroute_attempts (theirs integer)", foreign)
    with pytest.raises(ConfigError, match="a table fastroute_attempts of another program"):
        Ledger(foreign, journal=tmp_path / "j")
    with pytest.raises(ConfigError, match="cannot hold a ledger: no schema"):
        Ledger(server.url("nowhere"), journal=tmp_path / "j")
    server.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(ConfigError, match="is encoded in LATIN1"):
        Ledger(server.url().replace("/postgres?", "/latin?"), journal=tmp_path / "j")
    server.run("CREATE ROLE reader LOGIN")
    theirs = server.new_schema()
    server.run(f"GRANT USAGE ON SCHEMA {theirs.rpartition('%3D')[2]} TO reader")
    with pytest.raises(ConfigError, match="cannot hold a ledger: permission denied"):
        Ledger(theirs.replace("tester", "reader"), journal=tmp_path / "j")


def test_a_role_that_may_only_insert_and_read_is_enough_once_the_tables_are_there(
    server: PostgresServer, opens: Opens
) -> None:
    url = str(opens.place)
    opens().close()
    server.run("CREATE ROLE clerk LOGIN")
    schema = url.rpartition("%3D")[2]
    server.run(
        f"GRANT USAGE ON SCHEMA {schema} TO clerk; GRANT SELECT, INSERT ON fastroute_attempts TO clerk", url
    )
    server.run("GRANT SELECT ON fastroute_ledger TO clerk", url)
    with Ledger(url.replace("tester", "clerk"), journal=opens.journal) as ledger:
        ledger.append(attempt(cost_nano=4))
        assert ledger.spent() == 4


# --------------------------------------------------------------------------------------- address, secrets


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://who:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=who&password=s3cret",
        "postgres://who:s3cret@127.0.0.1:1/db?sslmode=sideways",
        "postgresql://who:s3cret@127.0.0.1:1/db?nonsense=1",
        "postgresql://who:s3cret@[::1/db",
        "postgresql://who:s3cret@127.0.0.1:port/db",
    ],
)
def test_a_password_is_never_shown(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = ""
    try:
        with Ledger(url, journal=tmp_path / "journal") as ledger:
            said += f"{ledger!r} {ledger.path} {ledger.health} {vars(ledger.storage)['name']}"
            ledger.append(attempt())
            with pytest.raises(LedgerError) as caught:
                ledger.flush(0.2)
            said += str(caught.value)
    except ConfigError as error:
        said += f"{error} {error.__cause__} {error.problems}"
    assert said
    assert "s3cret" not in said + caplog.text


def test_the_journal_has_a_place_of_its_own_for_each_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def place(url: str) -> str:
        return postgres.PostgresStorage(url, None).journal

    first = place("postgresql://u@h/one")
    assert first.startswith(str(tmp_path / "state" / "fastroute" / "ledger-"))
    assert first == place("postgresql://u:password@h/one")
    assert len({first, place("postgresql://u@h/two"), place("postgresql://u@other/one")}) == 3
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(
        ConfigError, match=r"the journal .* cannot be created: Not a directory; set ledger_journal"
    ):
        Ledger("postgresql://u@127.0.0.1:1/one")


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastroute\[postgres\]'"):
        Ledger("postgresql://u@h/one", journal=tmp_path)


def test_settings_of_one_kind_are_refused_for_the_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it applies to SQLite files only"):
        Ledger("postgresql://u@h/one", wal=True)
    with pytest.raises(ConfigError, match="it applies to PostgreSQL only"):
        Ledger(tmp_path / "x.db", journal=tmp_path)


# ---------------------------------------------------------------------------------------- forks and calls


def test_a_fork_leaves_the_parents_session_alone(server: PostgresServer, opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        until(lambda: len(backends(server)) == 1)  # that of the test before takes its time to end
        before = backends(server)

        def work() -> None:
            assert len(ledger_module.inherited_connections) >= 1
            ledger.append(attempt(1, cost_nano=10))
            ledger.flush()
            ledger.close()

        reap(in_child(work))
        ledger.append(attempt(2, cost_nano=100))
        assert ledger.spent() == 111
        assert set(before) <= set(backends(server))


def config(provider: Provider, url: str, journal: Path) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": url, "ledger_journal": str(journal)},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1000, "output_price": 1000}},
        "budgets": [
            {"name": "all", "limit": 1000, "window": "month"},
            {"name": "team", "limit": 1000, "window": "month", "per": "tag:team"},
        ],
        "cache": {"enabled": False},
    }


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(models=["m"]) as provider:
        yield provider


def test_what_was_spent_comes_back_after_a_restart(
    server: PostgresServer, tmp_path: Path, provider: Provider
) -> None:
    settings = config(provider, server.new_schema(), tmp_path / "journal")
    messages = [{"role": "user", "content": "Hello"}]
    with fastroute.Client(settings) as client:
        cost = 0
        for team in ("red", "red", ""):
            route = {"tags": {"team": team}} if team else {}
            reply = client.chat.completions.create(model="m", messages=messages, max_tokens=50, route=route)
            cost += round(reply.route.cost * 1e9)
        assert cost > 0
        assert client.stats()["ledger"].ok
    # Another machine, as it were: another journal, another segment, the same database.
    settings["fastroute"]["ledger_journal"] = str(tmp_path / "elsewhere")
    with fastroute.Client(settings) as client:
        client.chat.completions.create(
            model="m", messages=messages, max_tokens=50, route={"tags": {"team": "red"}}
        )
        spent = {(status.name, status.value): status.spent_nano for status in client.stats()["budgets"]}
        assert client.ledger.spent() == spent["all", None] == cost * 4 // 3
        assert spent["team", "red"] == client.ledger.spent(tags={"team": "red"}) == cost
        assert client.ledger.spent(tags={"team": ""}) == cost // 3


def test_a_hard_budget_lets_nothing_in_while_the_server_cannot_say_what_was_spent(
    server: PostgresServer,
    tmp_path: Path,
    provider: Provider,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastroute.ledger.FLUSH_SECONDS_IN_TROUBLE", 0.1)
    settings = config(provider, server.new_schema(), tmp_path / "journal")
    for budget in settings["budgets"]:
        budget["hard"] = True
    messages = [{"role": "user", "content": "Hello"}]
    server.kill()
    try:
        with fastroute.Client(settings) as client:
            with pytest.raises(fastroute.BudgetExceeded, match="the ledger cannot be read"):
                client.chat.completions.create(model="m", messages=messages, max_tokens=50)
            until(lambda: not client.stats()["ledger"].ok)
    finally:
        server.start()


def test_a_parent_killed_in_a_transaction_holds_no_lock_through_its_child(opens: Opens) -> None:
    ready, go = os.pipe()

    def child() -> None:
        os.write(go, b"%9d\n" % os.getpid())
        signal.pause()

    def parent() -> None:
        ledger = opens()
        ledger.append(attempt(0, cost_nano=5))
        ledger.flush()
        database: Any = ledger.writer.held_database
        database.connection.execute("BEGIN")
        database.connection.execute("LOCK TABLE fastroute_attempts")
        forked(child)
        with open(ready, "rb") as pipe:  # the child has begun, and so has left the connection
            os.write(told, pipe.readline())

    heard, told = os.pipe()
    reap(in_child(parent))
    with open(heard, "rb") as pipe:
        grandchild = int(pipe.readline())
    try:
        with opens() as ledger:
            ledger.append(attempt(1, cost_nano=7))
            assert ledger.spent() == 12  # within the time that a lock is waited for
    finally:
        os.kill(grandchild, signal.SIGKILL)
        for end in (ready, go, told):
            os.close(end)


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ("time = 'NaN'", False),
        ("time = 'Infinity'", False),
        ("cost_nano = 9223372036854775807", False),
        ("cost_nano = -9223372036854775808", False),
        ("budget_nano = -9000000000000000000", False),
        ("latency = 'NaN', ttft = 'Infinity'", True),
        ("latency = '-Infinity'", True),
        ("day = 9223372036854775807", True),
        ("day = -9223372036854775808", True),
        ("tags = '[1]'", True),
        ("tags = '\"text\"'", True),
        ("tags = '{\"team\": [1]}'", True),
        ("prompt_tokens = 9223372036854775807, completion_tokens = 9223372036854775807", True),
    ],
)
def test_an_impossible_row_makes_no_report_fail_and_no_sum_too_low(
    opens: Opens, change: str, known: bool
) -> None:
    import psycopg

    with opens() as ledger:
        for n in range(3):
            ledger.append(attempt(n, cost_nano=10))
    with psycopg.connect(str(opens.place)) as other:
        other.execute(
            "UPDATE fastroute_attempts SET X WHERE call_id = 'call-1'".replace("X", change).encode()
        )
    with opens() as ledger:
        assert ledger.totals().attempts >= 2
        ledger.by("day", "tag:team", "outcome")
        ledger.by("model", tags={"team": "blue"})
        if "tags" not in change or "{" in change:
            ledger.entries()
        else:
            with pytest.raises(LedgerError, match="impossible values"):
                ledger.entries()
        if known:
            assert ledger.spent() == 30
        else:
            with pytest.raises(LedgerError, match="impossible costs or times"):
                ledger.spent()
