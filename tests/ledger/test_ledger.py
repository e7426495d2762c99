"""The ledger over both databases: nothing acknowledged is lost, and sums are exact."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import warnings
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import attrs
import orjson
import pytest
from entries import DAY, NOON, Opens, attempt, in_child, reap, segments, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastroute.ledger import Ledger, Totals, database, journal
from fastroute.ledger.report import report, to_csv, to_json, to_table
from fastroute.types import Attempt, TokenPrices, Usage

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


def test_entries_survive_close_and_reopen(opens: Opens) -> None:
    with opens() as first:
        first.append(attempt(1, cost_nano=5))
    assert segments(opens.journal) == []
    with opens() as second:
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
    assert (found.cost_nano, found.latency, found.ttft) == (journal.MAX_COST, 0.0, None)
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
    outcome=st.sampled_from(["ok", "failed", "client_cancelled", "hedge_lost"]),
    status_code=st.none() | st.integers(100, 599),
    error=st.none() | texts,
    prompt_tokens=st.integers(0, 2**40),
    cost_nano=st.none() | st.integers(0, journal.MAX_COST),
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
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    assert [name for name in (*journal.FIELDS, *database.GROUPS) if f"`{name}`" not in text] == []


# -------------------------------------------------------------------------------------------------- sums

priced = st.builds(
    lambda n, model, tag, cost, worst, tokens, ok, day, latency, score: attempt(
        n % 7,
        model=model,
        tags={"team": tag} if tag else {},
        cost_nano=cost,
        budget_nano=worst,
        usage_source="provider" if worst is None else "estimated",
        prompt_tokens=tokens,
        completion_tokens=tokens // 3,
        cached_tokens=tokens // 5,
        outcome="ok" if ok else "failed",
        time=day * DAY + 1.5,
        latency=latency,
        score=score,
    ),
    n=st.integers(0, 100),
    model=st.sampled_from(["a", "b", "c"]),
    tag=st.sampled_from(["", "x", "y"]),
    cost=st.none() | st.integers(0, 2**50),
    worst=st.none() | st.integers(0, 2**50),
    tokens=st.integers(0, 2**31),
    ok=st.booleans(),
    day=st.integers(20_000, 20_003),
    latency=st.floats(0, 100),
    score=st.none() | st.floats(-10, 10),
)


def expected(entries: list[Attempt], keys: tuple[str | None, ...] = ()) -> Totals:
    """The same sums in plain Python."""
    costs = [entry.cost_nano for entry in entries if entry.cost_nano is not None]
    latencies = sorted(entry.latency for entry in entries if entry.outcome == "ok")
    count = len(latencies)
    estimated = [entry for entry in entries if entry.estimated]
    scores = [entry.score for entry in entries if entry.score is not None]
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
        estimated=len(estimated),
        estimated_nano=sum(entry.cost_nano or 0 for entry in estimated),
        budget_nano=sum(
            entry.cost_nano or 0 if entry.budget_nano is None else entry.budget_nano for entry in entries
        ),
        latency_mean=pytest.approx(sum(latencies) / count) if count else None,
        latency_p50=pytest.approx(latencies[-(-count * 50 // 100) - 1], abs=1e-6) if count else None,
        latency_p95=pytest.approx(latencies[-(-count * 95 // 100) - 1], abs=1e-6) if count else None,
        score_mean=pytest.approx(sum(scores) / len(scores), abs=1e-9) if scores else None,
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(priced, min_size=1, max_size=60))
def test_sums_are_those_of_plain_python(new: Callable[[], Opens], entries: list[Attempt]) -> None:
    with new()() as ledger:
        for entry in entries:
            ledger.append(entry)
        assert ledger.totals() == expected(entries)
        assert ledger.spent() == expected(entries).budget_nano
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
        prices = {
            "cheap": TokenPrices(1_000_000_000, 3_000_000_000),
            "dear": TokenPrices(15 * 10**9, 75 * 10**9, 10**9),
        }
        compared = [entry for entry in entries if entry.outcome == "ok" and entry.cost_nano is not None]
        for saving in ledger.savings(prices.__getitem__, prices):
            alone = [
                prices[saving.model].cost(
                    Usage(entry.prompt_tokens, entry.completion_tokens, entry.cached_tokens)
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
    made = report(filled, by=("model",), against=["large"], prices=lambda _: TokenPrices(2_000_000_000, 0))
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
    assert lines[2].startswith("2024-10-04,'=cmd(),1,1,0,1000,0,0,0,0,1500,0.000001500,0,")
    assert lines[3].startswith("2024-10-05,,1,1,1,")


def test_report_as_table(filled: Ledger) -> None:
    text = to_table(report(filled, against=["large"], prices=lambda _: TokenPrices(2_000_000_000, 0)))
    assert "\x1b" not in text
    assert "large\\x1b[2J" in text
    assert "1 attempt(s) with an unknown price" in text
    assert "With large alone, the 2 successful attempts would have cost $2.002; they cost $2.00" in text
    assert text.splitlines()[0].split()[0] == "model"
    assert len(to_table(report(filled, by=())).splitlines()) == 5


def test_report_of_nothing(ledger: Ledger) -> None:
    made = report(ledger, since=NOON, until=NOON + 1)
    assert made.totals == Totals()
    assert made.since == "2024-10-04T12:00:00.250000+00:00"
    assert "total" in to_table(made)
    assert to_csv(made).count("\n") == 1
    with pytest.raises(ValueError, match="prices: required"):
        report(ledger, against=["m"])


# --------------------------------------------------------------------------------------- kills and forks


def test_killed_the_instant_after_append_nothing_is_lost(opens: Opens) -> None:
    def work() -> None:
        ledger = opens()
        for n in range(500):
            ledger.append(attempt(n, cost_nano=n))

    reap(in_child(work))
    assert segments(opens.journal)
    with opens() as ledger:
        totals = ledger.totals()
        assert (totals.attempts, totals.cost_nano) == (500, sum(range(500)))
        assert segments(opens.journal) == []


def test_killed_at_any_moment_what_was_acknowledged_is_there(opens: Opens) -> None:
    for acknowledged in (1, 37, 700):
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            ledger = opens()
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
        with opens() as ledger:
            assert ids <= {entry.id for entry in ledger.entries(None)}
            totals = ledger.totals()
            assert totals.cost_nano == 3 * totals.attempts


def test_a_fork_after_the_first_entries(opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        ledger.append(attempt(1, cost_nano=10))
        before = segments(opens.journal)

        def work() -> None:
            ledger.append(attempt(2, cost_nano=100))
            ledger.flush()
            ledger.append(attempt(3, cost_nano=1000))

        reap(in_child(work))
        ledger.append(attempt(4, cost_nano=10_000))
        assert ledger.spent() == 11_111
        assert ledger.totals().attempts == 5
        assert segments(opens.journal) == before  # the child's was drained and removed


def test_a_lock_dies_with_the_parent_though_its_child_lives(opens: Opens) -> None:
    ready, go = os.pipe()

    def parent() -> None:
        ledger = opens()
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
        with opens() as ledger:
            assert ledger.spent() == 40
    finally:
        for grandchild in grandchildren:
            os.kill(grandchild, signal.SIGKILL)
        os.close(go)


# --------------------------------------------------------------------------------------- damaged journals


def test_a_torn_record_spoils_only_itself(opens: Opens) -> None:
    whole = [attempt(n, cost_nano=10**n) for n in range(3)]
    torn = journal.encode(attempt(9))[:-5]
    opens().close()
    for name, parts in {"1-a-1": [0, torn, 1], "1-b-1": [2, torn], "1-c-1": []}.items():
        data = b"".join(journal.encode(whole[part]) if isinstance(part, int) else part for part in parts)
        Path(f"{opens.journal}/{name}{journal.SUFFIX}").write_bytes(data)
    Path(f"{opens.journal}/1-d-1.v999").write_bytes(b"from a later release")
    with opens() as ledger:
        assert ledger.spent() == 111
        assert segments(opens.journal) == []
        assert os.path.exists(f"{opens.journal}/1-d-1.v999")


@pytest.mark.parametrize(
    ("suffix", "lacks"), [(".v2", "service_tier"), (".v3", "budget_nano"), (".v4", "score")]
)
def test_the_journals_of_earlier_releases_are_drained(opens: Opens, suffix: str, lacks: str) -> None:
    opens().close()
    values = orjson.loads(journal.encode(attempt(cost_nano=7))[9:])[: journal.FIELDS.index(lacks)]
    body = orjson.dumps(values)
    Path(f"{opens.journal}/1-a-1{suffix}").write_bytes(b"\n%08x%b" % (zlib.crc32(body), body))
    with opens() as ledger:
        assert ledger.spent() == 7
        assert [getattr(entry, lacks) for entry in ledger.entries()] == [None]
        assert not os.path.exists(f"{opens.journal}/1-a-1{suffix}")


def test_a_segment_in_use_is_nobody_elses(opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(cost_nano=1))
        ledger.flush()
        (mine,) = segments(opens.journal)
        with opens() as other:
            assert other.spent() == 1
        assert segments(opens.journal) == [mine]


def test_full_segments_are_replaced_and_removed(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.SEGMENT_BYTES", 2000)
    with opens() as ledger:
        names = set()
        for n in range(60):
            ledger.append(attempt(n, cost_nano=1))
            if n % 10 == 9:
                ledger.flush()
                names |= set(segments(opens.journal))
                assert len(segments(opens.journal)) == 1
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


def test_threads_that_meet_a_rotation_lose_nothing(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.writer.SEGMENT_BYTES", 1)
    monkeypatch.setattr("fastroute.ledger.writer.BATCH_SECONDS", 0.0)
    with opens() as ledger:
        threads = [
            threading.Thread(target=lambda: [ledger.append(attempt(n, cost_nano=1)) for n in range(150)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.spent() == 1200
        until(lambda: len(segments(opens.journal)) <= 1)
    assert segments(opens.journal) == []


def test_a_deleted_journal_directory_is_made_anew(opens: Opens) -> None:
    with opens() as ledger:
        ledger.append(attempt(0, cost_nano=1))
        ledger.flush()
        shutil.rmtree(f"{opens.journal}")
        ledger.append(attempt(1, cost_nano=10))
        ledger.flush()
        assert len(segments(opens.journal)) == 1
        assert ledger.spent() == 11


def test_an_entry_after_close_waits_in_the_journal(opens: Opens) -> None:
    ledger = opens()
    ledger.append(attempt(0, cost_nano=1))
    ledger.close()
    ledger.close()
    ledger.append(attempt(1, cost_nano=10))
    assert ledger.spent() == 1
    with opens() as again:
        assert again.spent() == 11


# ---------------------------------------------------------------------------------- a database in trouble


def test_an_entry_the_database_refuses_holds_up_no_other(ledger: Ledger) -> None:
    ledger.journal.write(journal.encode(attempt(cost_nano=3, prompt_tokens=2**63))).spill()
    ledger.append(attempt(1, cost_nano=5))
    assert ledger.spent() == 5
    assert ledger.health.rejected >= 1


# ------------------------------------------------------------------------------------------- bad settings


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


def test_nothing_starts_before_the_first_entry(opens: Opens) -> None:
    before = threading.active_count()
    with opens():
        assert threading.active_count() == before
        assert segments(opens.journal) == []
