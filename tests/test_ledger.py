"""The ledger: nothing acknowledged is lost, and sums are exact."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastroute import ledger as ledger_module
from fastroute.errors import ConfigError, Error
from fastroute.events import Hooks, LedgerDegraded
from fastroute.ledger import Ledger, NullLedger, Totals, database, journal, open_ledger
from fastroute.ledger.report import report, to_csv, to_json, to_table, usd
from fastroute.types import Attempt, Usage

DAY = 86_400
NOON = 20_000 * DAY + 43_200.25


def attempt(n: int = 0, **fields: Any) -> Attempt:
    return Attempt(
        **{
            "id": os.urandom(16).hex(),
            "call_id": f"call-{n}",
            "time": NOON + n,
            "endpoint": "openai/gpt-4.1",
            "provider": "openai",
            "model": "gpt-4.1",
            "cost_nano": 1_000_003 + n,
            "prompt_tokens": 10,
            "latency": 0.1,
            **fields,
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def segments(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(f"{path}.journal") if name.endswith(journal.SUFFIX))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a condition, for a bounded time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


# ----------------------------------------------------------------------------------------------- entries


def test_an_entry_comes_back_as_it_was(ledger: Ledger) -> None:
    entry = attempt(
        tier="premium",
        level="expert",
        outcome="failed",
        status_code=503,
        error="InternalServerError",
        completion_tokens=7,
        cached_tokens=3,
        reasoning_tokens=2,
        usage_source="provider",
        cost_nano=None,
        latency=0.123456789,
        ttft=0.01,
        stream=True,
        maybe_billed=True,
        request_id="req-1",
        tags={"team": "søk", 'odd "name"': "a\nb"},
    )
    plain = attempt(1)
    ledger.append(entry)
    ledger.append(plain)
    assert ledger.entries() == [plain, entry]
    assert ledger.entries(1) == [plain]
    assert ledger.entries(tags={"team": "søk"}) == [entry]


def test_entries_survive_close_and_reopen(path: Path) -> None:
    with Ledger(path) as first:
        first.append(attempt(1, cost_nano=5))
    assert segments(path) == []
    with Ledger(path) as second:
        second.append(attempt(2, cost_nano=7))
        assert second.spent() == 12


def test_the_same_entry_twice_counts_once(ledger: Ledger) -> None:
    entry = attempt(cost_nano=5)
    ledger.append(entry)
    ledger.append(entry)
    assert ledger.totals().attempts == 1
    assert ledger.spent() == 5


def test_text_that_no_database_takes_is_kept_as_escapes(ledger: Ledger) -> None:
    entry = attempt(
        model="m\ud800\0",
        error="x" * 10_000_000,
        tags={"k\udfff": "v\0", "long": "y" * 5000},
        cost_nano=2**70,
        time=NOON,
        latency=float("nan"),
        ttft=float("inf"),
    )
    ledger.append(entry)
    (found,) = ledger.entries()
    assert found.model == "m\\ud800\\x00"
    assert found.error is not None
    assert len(found.error) == journal.MAX_TEXT
    assert found.tags["k\\udfff"] == "v\\x00"
    assert len(found.tags["long"]) == journal.MAX_TEXT
    assert (found.cost_nano, found.latency, found.ttft) == (None, 0.0, None)
    assert ledger.totals(tags={"k\udfff": "v\0"}).attempts == 1


def test_append_takes_whatever_it_is_given(ledger: Ledger) -> None:
    ledger.append(attempt(time=None, tags=None, cost_nano=1.5, prompt_tokens="many", status_code=object()))
    ledger.append(attempt(1, tags={1: 2}))
    assert ledger.totals().attempts == 2
    assert ledger.totals(tags={"1": "2"}).attempts == 1


finite = st.floats(0, 4e9, allow_nan=False)
texts = st.text(st.characters(codec=None), max_size=20)
entries_of_any_kind = st.builds(
    Attempt,
    id=texts,
    call_id=texts,
    time=finite,
    endpoint=texts,
    provider=texts,
    model=texts,
    tier=st.none() | texts,
    outcome=st.sampled_from(["ok", "failed", "client_cancelled"]),
    status_code=st.none() | st.integers(100, 599),
    error=st.none() | texts,
    prompt_tokens=st.integers(0, 2**40),
    cost_nano=st.none() | st.integers(0, 2**60),
    latency=finite,
    ttft=st.none() | finite,
    stream=st.booleans(),
    tags=st.dictionaries(texts, texts, max_size=4),
)


@given(entries_of_any_kind)
def test_a_record_decodes_to_what_was_encoded(entry: Attempt) -> None:
    values = journal.decode(journal.encode(entry))
    assert values is not None
    found = dict(zip(journal.FIELDS, values))
    for name, value in attrs.asdict(entry).items():
        if isinstance(value, str):
            value = journal.clean_text(value)
        elif name == "tags":
            value = journal.clean_tags(value)
        assert found[name] == value, name


@given(entries_of_any_kind, st.data())
def test_a_damaged_record_is_noticed(entry: Attempt, data: st.DataObject) -> None:
    record = journal.encode(entry)
    cut = data.draw(st.integers(1, len(record) - 1))
    assert journal.decode(record[:cut]) is None
    at = data.draw(st.integers(1, len(record) - 1))
    flipped = record[:at] + bytes([record[at] ^ (1 << data.draw(st.integers(0, 4)))]) + record[at + 1 :]
    decoded = journal.decode(flipped)
    assert decoded is None or at <= 8  # the case of a hexadecimal digit may flip without harm


def test_the_document_names_every_column() -> None:
    text = (Path(__file__).parent.parent / "docs" / "ledger.md").read_text(encoding="utf-8")
    assert [name for name in (*journal.FIELDS, *database.GROUPS) if f"`{name}`" not in text] == []


# -------------------------------------------------------------------------------------------------- sums

priced = st.builds(
    lambda n, model, tag, cost, tokens, ok, day, latency: attempt(
        n % 7,
        model=model,
        tags={"team": tag} if tag else {},
        cost_nano=cost,
        prompt_tokens=tokens,
        completion_tokens=tokens // 3,
        cached_tokens=tokens // 5,
        outcome="ok" if ok else "failed",
        time=day * DAY + 1.5,
        latency=latency,
    ),
    n=st.integers(0, 100),
    model=st.sampled_from(["a", "b", "c"]),
    tag=st.sampled_from(["", "x", "y"]),
    cost=st.none() | st.integers(0, 2**50),
    tokens=st.integers(0, 2**31),
    ok=st.booleans(),
    day=st.integers(20_000, 20_003),
    latency=st.floats(0, 100),
)


def expected(entries: list[Attempt], keys: tuple[str | None, ...] = ()) -> Totals:
    """The same sums in plain Python."""
    costs = [entry.cost_nano for entry in entries if entry.cost_nano is not None]
    latencies = sorted(entry.latency for entry in entries if entry.outcome == "ok")
    count = len(latencies)
    return Totals(
        keys=keys,
        calls=len({entry.call_id for entry in entries}),
        attempts=len(entries),
        failures=len(entries) - count,
        prompt_tokens=sum(entry.prompt_tokens for entry in entries),
        completion_tokens=sum(entry.completion_tokens for entry in entries),
        cached_tokens=sum(entry.cached_tokens for entry in entries),
        cost_nano=sum(costs),
        unknown_cost=len(entries) - len(costs),
        latency_mean=pytest.approx(sum(latencies) / count) if count else None,
        latency_p50=pytest.approx(latencies[-(-count * 50 // 100) - 1], abs=1e-6) if count else None,
        latency_p95=pytest.approx(latencies[-(-count * 95 // 100) - 1], abs=1e-6) if count else None,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(priced, min_size=1, max_size=60))
def test_sums_are_those_of_plain_python(tmp_path: Path, entries: list[Attempt]) -> None:
    with Ledger(tmp_path / f"{os.urandom(8).hex()}.db") as ledger:
        for entry in entries:
            ledger.append(entry)
        assert ledger.totals() == expected(entries)
        assert ledger.spent() == expected(entries).cost_nano
        readings: dict[tuple[str, ...], Callable[[Attempt], tuple[str | None, ...]]] = {
            ("model",): lambda entry: (entry.model,),
            ("outcome", "tag:team"): lambda entry: (entry.outcome, entry.tags.get("team")),
            ("day", "model"): lambda entry: (
                datetime.fromtimestamp(entry.time, timezone.utc).strftime("%Y-%m-%d"),
                entry.model,
            ),
        }
        for keys, read in readings.items():
            groups: dict[tuple[str | None, ...], list[Attempt]] = {}
            for entry in entries:
                groups.setdefault(read(entry), []).append(entry)
            found = {group.keys: group for group in ledger.by(*keys)}
            assert found == {key: expected(members, key) for key, members in groups.items()}
        prices = {"cheap": (1_000_000_000, 3_000_000_000, None), "dear": (15 * 10**9, 75 * 10**9, 10**9)}
        compared = [entry for entry in entries if entry.outcome == "ok" and entry.cost_nano is not None]
        for saving in ledger.savings(prices.__getitem__, prices):
            alone = [
                Usage(entry.prompt_tokens, entry.completion_tokens, entry.cached_tokens).cost_nano(
                    *prices[saving.model]
                )
                for entry in compared
            ]
            assert saving.entries == len(compared)
            assert saving.alone_nano == sum(alone)
            assert saving.actual_nano == sum(entry.cost_nano or 0 for entry in compared)
            assert saving.saved_nano == saving.alone_nano - saving.actual_nano


def test_a_span_holds_its_start_and_not_its_end(ledger: Ledger) -> None:
    for n in range(5):
        ledger.append(attempt(n, cost_nano=10**n))
    assert ledger.spent(NOON + 3) == 11_000
    assert ledger.totals(since=NOON + 1, until=NOON + 3).cost_nano == 110
    moment = datetime.fromtimestamp(NOON + 4, timezone.utc)
    assert ledger.totals(since=moment).cost_nano == 10_000


def test_filters(ledger: Ledger) -> None:
    ledger.append(attempt(0, cost_nano=1, tags={"team": "a", "user": "u"}, tier="budget"))
    ledger.append(attempt(1, cost_nano=10, tags={"team": "a"}, outcome="failed"))
    ledger.append(attempt(2, cost_nano=100, model="other"))
    assert ledger.spent(tags={"team": "a"}) == 11
    assert ledger.spent(tags={"team": "a", "user": "u"}) == 1
    assert ledger.spent(tags={"team": "b"}) == 0
    assert ledger.totals(model="other").cost_nano == 100
    assert ledger.totals(outcome="failed").cost_nano == 10
    assert ledger.totals(tier="budget", provider="openai", endpoint="openai/gpt-4.1").cost_nano == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [('a"b', "quote"), ("$.x[0]", "path"), ("' OR 1=1 --", "'; DROP TABLE attempts; --"), ("tag:x", "é\n")],
)
def test_tag_names_are_data_never_syntax(ledger: Ledger, name: str, value: str) -> None:
    ledger.append(attempt(0, tags={name: value, "x": "other"}))
    ledger.append(attempt(1))
    assert [(group.keys, group.attempts) for group in ledger.by(f"tag:{name}")] == [
        ((None,), 1),
        ((value,), 1),
    ]
    assert ledger.totals(tags={name: value}).attempts == 1


@pytest.mark.parametrize("keys", [("cost_nano",), ("tag:",), ("model; DROP TABLE attempts",), ("model",) * 5])
def test_unknown_groups_are_refused(ledger: Ledger, keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="cannot group by"):
        ledger.by(*keys)


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        ledger.totals(since=datetime(2025, 1, 1))
    with pytest.raises(ValueError, match="limit"):
        ledger.entries(-1)


# ------------------------------------------------------------------------------------------------ report


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    ledger.append(attempt(0, model="small", cost_nano=1_500, prompt_tokens=1000, tags={"team": "=cmd()"}))
    ledger.append(attempt(1, model="large", cost_nano=2_000_000_000, prompt_tokens=1_000_000))
    ledger.append(attempt(1, model="large\x1b[2J", cost_nano=None, outcome="failed", time=NOON + DAY))
    return ledger


def test_report_as_json(filled: Ledger) -> None:
    made = report(filled, by=("model",), against=["large"], prices=lambda _: (2_000_000_000, 0, None))
    value = json.loads(to_json(made))
    assert value["totals"]["cost_nano"] == 2_000_001_500
    assert value["totals"]["cost_usd"] == "2.000001500"
    assert value["totals"]["unknown_cost"] == 1
    assert [group["group"]["model"] for group in value["groups"]] == ["large", "small", "large\x1b[2J"]
    assert value["savings"][0]["alone_nano"] == 2_002_000_000
    assert value["savings"][0]["saved_usd"] == "0.001998500"


def test_report_as_csv(filled: Ledger) -> None:
    lines = to_csv(report(filled, by=("day", "tag:team"))).splitlines()
    assert lines[0].startswith("day,tag:team,calls,attempts,failures,")
    assert lines[1].startswith("2024-10-04,,1,1,0,1000000,")
    assert lines[2].startswith("2024-10-04,'=cmd(),1,1,0,1000,0,0,0,1500,0.000001500,0,")
    assert lines[3].startswith("2024-10-05,,1,1,1,")


def test_report_as_table(filled: Ledger) -> None:
    text = to_table(report(filled, against=["large"], prices=lambda _: (2_000_000_000, 0, None)))
    assert "\x1b" not in text
    assert "large\\x1b[2J" in text
    assert "1 attempt(s) of unknown price" in text
    assert "With large alone, the 2 successful attempts would have cost 2.002000 USD" in text
    assert text.splitlines()[0].split()[0] == "model"
    assert len(to_table(report(filled, by=())).splitlines()) == 5


def test_report_of_nothing(ledger: Ledger) -> None:
    made = report(ledger, since=NOON, until=NOON + 1)
    assert made.totals == Totals()
    assert made.since == "2024-10-04T12:00:00.250000+00:00"
    assert "total" in to_table(made)
    assert to_csv(made).count("\n") == 1
    with pytest.raises(ValueError, match="needs prices"):
        report(ledger, against=["m"])


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0.000000000"), (1, "0.000000001"), (-1_500_000_000, "-1.500000000")]
)
def test_dollars_are_exact(nano: int, text: str) -> None:
    assert usd(nano) == text


# --------------------------------------------------------------------------------------- kills and forks


def in_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked child that is then killed by SIGKILL; the child's process id.

    A child whose work raises exits with 1, which `reap` notices.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child raised"
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_killed_the_instant_after_append_nothing_is_lost(path: Path) -> None:
    def work() -> None:
        ledger = Ledger(path)
        for n in range(500):
            ledger.append(attempt(n, cost_nano=n))

    reap(in_child(work))
    assert segments(path)
    with Ledger(path) as ledger:
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (500, sum(range(500)))
        assert segments(path) == []


def test_killed_at_any_moment_what_was_acknowledged_is_there(path: Path) -> None:
    for acknowledged in (1, 37, 700):
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            ledger = Ledger(path)
            while True:
                entry = attempt(cost_nano=3)
                ledger.append(entry)
                os.write(writing, entry.id.encode())

        pid = in_child(work)
        os.close(writing)
        ids = set()
        with open(reading, "rb") as pipe:
            while len(ids) < acknowledged:
                ids.add(pipe.read(32).decode())
            os.kill(pid, signal.SIGKILL)
            reap(pid)
            rest = pipe.read().decode()
        ids |= {rest[at : at + 32] for at in range(0, len(rest), 32)}
        with Ledger(path) as ledger:
            assert ids <= {entry.id for entry in ledger.entries(None)}
            totals = ledger.totals()
            assert totals.cost_nano == 3 * totals.attempts


def test_many_processes_and_threads_write_at_once(path: Path) -> None:
    def work() -> None:
        ledger = Ledger(path)
        threads = [
            threading.Thread(target=lambda: [ledger.append(attempt(n, cost_nano=7)) for n in range(100)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [in_child(work) for _ in range(4)]
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.append(attempt(n, cost_nano=7))
        ledger.flush()
        for child in children:
            reap(child)
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (1400, 9800)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


SEPARATE = """
import sys, os
from fastroute.ledger import Ledger
from fastroute.types import Attempt
ledger = Ledger(sys.argv[1])
for n in range(300):
    ledger.append(Attempt(os.urandom(16).hex(), "c", 1.7e9 + n, "e", "p", "m", cost_nano=n))
if sys.argv[2] == "exit":
    os._exit(0)
"""


def test_processes_that_share_nothing_write_at_once(path: Path) -> None:
    command = [sys.executable, "-c", SEPARATE, str(path)]
    children = [subprocess.Popen([*command, how]) for how in ("exit", "return")]
    for child in children:
        assert child.wait(30) == 0
    with Ledger(path) as ledger:
        assert ledger.totals().attempts == 600
        assert ledger.spent() == 2 * sum(range(300))


def test_a_fork_after_the_first_entries(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        ledger.append(attempt(1, cost_nano=10))
        before = segments(path)

        def work() -> None:
            ledger.append(attempt(2, cost_nano=100))
            ledger.flush()
            ledger.append(attempt(3, cost_nano=1000))

        reap(in_child(work))
        ledger.append(attempt(4, cost_nano=10_000))
        assert ledger.spent() == 11_111
        assert ledger.totals().attempts == 5
        assert segments(path) == before  # its own is still in use; the child's was drained and removed


def test_a_fork_takes_nothing_of_what_the_parent_holds(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(attempt(0, cost_nano=1))
    ledger.flush()

    def work() -> None:
        assert all(isinstance(held, database.Database) for held in ledger_module._leaked)
        assert len(ledger_module._leaked) == 1  # the parent's connection is neither closed nor collected
        ledger.close()  # a child that never used it must not write, remove or unlock the parent's

    reap(in_child(work))
    assert list(journal.orphans(f"{path}.journal")) == []
    assert ledger.spent() == 1
    ledger.close()


def test_a_lock_dies_with_the_parent_though_its_child_lives(path: Path) -> None:
    ready, go = os.pipe()

    def parent() -> None:
        ledger = Ledger(path)
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(8):  # so that some fork falls into a commit
            ledger.append(attempt(0, cost_nano=5))
            if os.fork() == 0:
                os.write(go, b"%9d\n" % os.getpid())
                signal.pause()

    pid = in_child(parent)
    with open(ready, "rb") as pipe:
        grandchildren = [int(pipe.readline()) for _ in range(8)]
    try:
        reap(pid)
        with Ledger(path) as ledger:
            assert ledger.spent() == 40
    finally:
        for grandchild in grandchildren:
            os.kill(grandchild, signal.SIGKILL)
        os.close(go)


# --------------------------------------------------------------------------------------- damaged journals


def test_a_torn_record_spoils_only_itself(path: Path) -> None:
    whole = [attempt(n, cost_nano=10**n) for n in range(3)]
    torn = journal.encode(attempt(9))[:-5]
    Ledger(path).close()
    for name, parts in {"1-a-1": [0, torn, 1], "1-b-1": [2, torn], "1-c-1": []}.items():
        data = b"".join(journal.encode(whole[part]) if isinstance(part, int) else part for part in parts)
        Path(f"{path}.journal/{name}{journal.SUFFIX}").write_bytes(data)
    Path(f"{path}.journal/1-d-1.v999").write_bytes(b"from a later release")
    with Ledger(path) as ledger:
        assert ledger.spent() == 111
        assert segments(path) == []
        assert os.path.exists(f"{path}.journal/1-d-1.v999")


def test_a_segment_in_use_is_nobody_elses(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(cost_nano=1))
        ledger.flush()
        (mine,) = segments(path)
        with Ledger(path) as other:
            assert other.spent() == 1
        assert segments(path) == [mine]


def test_full_segments_are_replaced_and_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.SEGMENT_BYTES", 2000)
    with Ledger(path) as ledger:
        names = set()
        for n in range(60):
            ledger.append(attempt(n, cost_nano=1))
            if n % 10 == 9:
                ledger.flush()
                names |= set(segments(path))
                assert len(segments(path)) == 1
        assert len(names) > 3
        assert ledger.spent() == 60


def test_a_record_never_goes_to_a_segment_that_is_given_up(tmp_path: Path) -> None:
    written = journal.Journal(str(tmp_path))
    first = written.write(journal.encode(attempt(0)))
    first.settled = 1

    class RotatedMeanwhile:
        add_first, value = first.begun.add, first.begun.value

        def add(self) -> int:
            written.rotate(-1)
            return type(self).add_first()

    assert not first.complete
    first.begun = RotatedMeanwhile()  # type: ignore[assignment]
    second = written.write(journal.encode(attempt(1)))
    assert second.path != first.path
    assert first.complete
    assert written.retired() == (first,)
    written.retire()
    assert not second.complete  # its record is neither settled nor spilled
    second.spill()
    assert second.complete
    written.release()


def test_threads_that_meet_a_rotation_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.SEGMENT_BYTES", 1)
    monkeypatch.setattr("fastroute.ledger.writer.BATCH_SECONDS", 0.0)
    with Ledger(path) as ledger:
        threads = [
            threading.Thread(target=lambda: [ledger.append(attempt(n, cost_nano=1)) for n in range(150)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.spent() == 1200
        until(lambda: len(segments(path)) <= 1)
    assert segments(path) == []


def test_a_deleted_journal_directory_is_made_anew(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        shutil.rmtree(f"{path}.journal")
        ledger.append(attempt(1, cost_nano=10))
        ledger.flush()
        assert len(segments(path)) == 1
        assert ledger.spent() == 11


def test_an_entry_after_close_waits_in_the_journal(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(attempt(0, cost_nano=1))
    ledger.close()
    ledger.close()
    ledger.append(attempt(1, cost_nano=10))
    assert ledger.spent() == 1
    with Ledger(path) as again:
        assert again.spent() == 11


# ---------------------------------------------------------------------------------- a database in trouble


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr("fastroute.ledger.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("fastroute.ledger.writer.MAX_RETRY_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_stops_no_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.QUEUE_LIMIT", 50)
    heard: list[LedgerDegraded] = []
    hooks = Hooks()
    hooks.add(heard.append, LedgerDegraded)
    with Ledger(path, hooks=hooks) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for n in range(2000):
            ledger.append(attempt(n, cost_nano=n))
        until(lambda: not ledger.health.ok)
        assert "locked" in (ledger.health.reason or "")
        assert ledger.health.waiting <= 50 + 512
        until(lambda: bool(heard))  # the hook hears of it just after the health says so
        with pytest.raises(Error, match=r"could not be brought up to date in 0.05 s.*locked"):
            ledger.flush(0.05)
        other.execute("ROLLBACK")
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (2000, sum(range(2000)))
        assert ledger.health == attrs.evolve(ledger.health, ok=True, reason=None, waiting=0, lost=0)


@pytest.mark.usefixtures("impatient")
def test_closing_beside_a_lock_leaves_entries_to_the_next(path: Path) -> None:
    ledger = Ledger(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.append(attempt(cost_nano=5))
        ledger.close()
        assert len(segments(path)) == 1
        held_up = Ledger(path)  # opening is not held up either
        other.execute("ROLLBACK")
    assert held_up.spent() == 5
    held_up.close()


DISK_FULL = """
import os, resource, sys, logging
logging.disable(logging.CRITICAL)
from fastroute.ledger import Ledger
from fastroute.types import Attempt
ledger = Ledger(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
for n in range(1000):
    ledger.append(Attempt(os.urandom(16).hex(), "c", 1.7e9 + n, "e", "p", "m", cost_nano=n))
try:
    ledger.flush(0.3)
except Exception as error:
    print(type(error).__name__)
print(ledger.health.ok, ledger.health.lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ledger.flush(30)
print(ledger.totals().attempts, ledger.spent())
ledger.close()
print(os.listdir(sys.argv[1] + ".journal"))
"""


def test_a_full_disk_loses_nothing_that_memory_can_hold(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["Error", "False 0", f"1000 {sum(range(1000))}", "['lock']"]


def test_without_journal_and_memory_the_loss_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    def refuse(fd: int, record: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastroute.ledger.writer.QUEUE_LIMIT", 10)
    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.append(attempt(0, cost_nano=1))
        until(lambda: not ledger.health.ok)
        monkeypatch.setattr(ledger._journal, "_write", refuse)
        for n in range(2000):
            ledger.append(attempt(n, cost_nano=1))
        assert "No space left" in (ledger.health.reason or "")
        other.execute("ROLLBACK")
        assert ledger.spent() + ledger.health.lost == 2001
        assert ledger.health.lost > 0


def test_a_deleted_database_is_noticed_before_entries_are_forgotten(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        for ending in ("", "-wal", "-shm"):
            os.unlink(f"{path}{ending}")
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 10
    with Ledger(path) as again:
        assert again.spent() == 10


def test_an_entry_the_database_refuses_holds_up_no_other(ledger: Ledger) -> None:
    body = journal.encode(attempt(cost_nano=3))[9:].replace(b'"openai"', b"null")
    ledger._journal.write(b"\n%08x%b" % (zlib.crc32(body), body)).spill()
    ledger.append(attempt(1, cost_nano=5))
    assert ledger.spent() == 5
    assert ledger.health.rejected >= 1


def test_a_damaged_database_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        Ledger(path).append(attempt(1, cost_nano=10))

    with Ledger(path) as ledger:
        for n in range(2000):
            ledger.append(attempt(n))
    reap(in_child(work))
    with open(path, "r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096 * 20)
    with Ledger(path) as ledger:
        assert ledger.spent() == 10
    aside = [name for name in os.listdir(path.parent) if ".corrupt-" in name]
    assert len(aside) == 1
    assert "is damaged" in caplog.text


def test_a_database_of_zeros_is_set_aside(path: Path) -> None:
    Ledger(path).close()
    path.write_bytes(b"\0" * 8192)
    with Ledger(path) as ledger:
        ledger.append(attempt(cost_nano=3))
        assert ledger.spent() == 3


def test_damage_found_while_writing_is_set_aside(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.close()
    with Ledger(path) as ledger:
        path.write_bytes(b"no longer a database" * 1000)
        ledger.append(attempt(1, cost_nano=10))
        assert ledger.spent() == 10


# ------------------------------------------------------------------------------------------- bad settings


def test_another_programs_files_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and longer than nothing" * 100)
    with pytest.raises(ConfigError, match=r"notes\.txt is no SQLite database"):
        Ledger(text)
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="some other program's database"):
        Ledger(foreign)
    assert sorted(os.listdir(tmp_path)) == ["foreign.db", "notes.txt"]


def test_a_newer_schema_is_not_written_to(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=r"newer fastroute \(schema 99"):
        Ledger(path)


def test_links_and_places_that_are_no_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target.db"
    (tmp_path / "link.db").symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        Ledger(tmp_path / "link.db")
    assert not target.exists()
    with pytest.raises(ConfigError, match="no regular file"):
        Ledger(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory"):
        Ledger(tmp_path / "absent" / "x.db")
    with pytest.raises(ConfigError, match="durability"):
        Ledger(tmp_path / "x.db", durability="eternal")  # type: ignore[arg-type]


def test_files_are_their_owners_only(ledger: Ledger, path: Path) -> None:
    ledger.append(attempt())
    ledger.flush()
    for name in os.listdir(path.parent):
        mode = stat.S_IMODE(os.stat(path.parent / name).st_mode)
        assert mode == (0o700 if name.endswith(".journal") else 0o600), name
    for name in os.listdir(f"{path}.journal"):
        assert stat.S_IMODE(os.stat(f"{path}.journal/{name}").st_mode) == 0o600


def test_open_ledger(tmp_path: Path) -> None:
    off = open_ledger("")
    off.append(attempt())
    off.flush()
    assert isinstance(off, NullLedger)
    assert (off.totals(), off.by("model"), off.entries(), off.spent()) == (Totals(), [], [], 0)
    assert off.health.ok
    assert report(off, against=["m"], prices=lambda _: (1, 1, 1)).savings[0].saved_nano == 0
    off.close()
    with pytest.raises(ConfigError, match="postgresql:// is not supported in this version"):
        open_ledger("postgresql://user:secret@host/db")
    with open_ledger(tmp_path / "x.db") as ledger:
        ledger.append(attempt(cost_nano=4))
        assert ledger.spent() == 4


def test_a_flush_ends_though_entries_keep_coming(ledger: Ledger) -> None:
    enough = threading.Event()

    def pour() -> None:
        while not enough.wait(1e-5):
            ledger.append(attempt(cost_nano=1))

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        for _ in range(3):
            ledger.flush()
    finally:
        enough.set()
        pouring.join()


def test_nothing_starts_before_the_first_entry(path: Path) -> None:
    before = threading.active_count()
    with Ledger(path):
        assert threading.active_count() == before
        assert segments(path) == []


def test_power_durability_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), fdatasync(fd)))
    with Ledger(path, durability="power") as ledger:
        ledger.append(attempt(cost_nano=2))
        assert len(synced) == 1
        assert ledger.spent() == 2


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((4, 0, 0), False),
    ],
)
def test_which_sqlite_needs_one_checkpointer(version: tuple[int, int, int], needed: bool) -> None:
    assert database.one_checkpointer_needed(version) is needed


@pytest.mark.parametrize(("threshold", "short"), [(50_000, True), (1 << 40, False)])
def test_one_checkpointer_keeps_the_log_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, short: bool
) -> None:
    monkeypatch.setattr(database, "one_checkpointer_needed", lambda _: True)
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", threshold)
    with Ledger(path) as ledger:
        for n in range(20):
            for m in range(100):
                ledger.append(attempt(100 * n + m, cost_nano=1))
            ledger.flush()
        assert (os.stat(f"{path}-wal").st_size < 400_000) is short
        assert ledger.spent() == 2000
