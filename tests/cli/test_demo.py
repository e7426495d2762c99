"""The demonstration, run for real: every figure adds up, faults happen, nothing is lost or left."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from fastroute.cli import demo, demo_run, demo_view
from fastroute.cli.group import cli
from fastroute.routing.classifier import Classifier

FIGURES = {
    "calls": int,
    "ok": int,
    "failed": int,
    "failovers": int,
    "p50_ms": float,
    "p95_ms": float,
    "p99_ms": float,
    "cost_usd": float,
    "premium_cost_usd": float,
    "by_class": dict,
    "by_model": dict,
    "breakers_opened": int,
    "wall_s": float,
}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def write(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------ the whole of it


def test_the_demonstration_loses_no_call(tmp_path: Path) -> None:
    prompts = demo.read_messages(None)
    file = write(tmp_path / "some.jsonl", ({"id": 1, "messages": messages} for messages in prompts))
    running = start("--json", "--fast", "--prompts", str(file))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    told = json.loads(out)
    assert {name: type(value) for name, value in told.items()} == FIGURES
    assert told["ok"] == told["calls"] == 300
    assert told["failed"] == 0
    assert told["failovers"] > 0
    assert told["breakers_opened"] >= 1
    classifier = Classifier.named("five-level")
    levels = Counter(classifier.classify(messages, {})[0].level for messages in prompts)
    assert told["by_class"] == levels
    by_model = Counter()
    for level, count in levels.items():
        by_model[demo_run.TIERS[demo_run.CLASSES[level]]] += count
    assert told["by_model"] == by_model
    assert 0 < told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"] <= told["wall_s"] * 1e3
    assert 0 < told["cost_usd"] < told["premium_cost_usd"]
    told_on_the_way = [line.split("s  ", 1)[1] for line in err.splitlines() if "s  " in line]
    killed = next(place for place, line in enumerate(told_on_the_way) if "is killed" in line)
    back = told_on_the_way.index("aurora is back")
    assert killed < back
    opened = [
        place for place, line in enumerate(told_on_the_way) if re.match("breaker of aurora.*: open", line)
    ]
    closed = [
        place for place, line in enumerate(told_on_the_way) if re.match("breaker of aurora.*: closed", line)
    ]
    assert opened, err
    assert closed, err
    assert closed[-1] > back


def test_lost_calls_are_counted_and_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo_run, "PARTS", tuple(attrs.evolve(part, fail_rate=1.0) for part in demo_run.PARTS)
    )
    file = write(tmp_path / "few.jsonl", [{"messages": [{"role": "user", "content": "Hello"}]}] * 3)
    ended = CliRunner().invoke(cli, ["demo", "--json", "--fast", "--threads", "3", "--prompts", str(file)])
    assert ended.exit_code == 1, ended.output
    told = json.loads(ended.stdout)
    assert (told["calls"], told["ok"], told["failed"]) == (3, 0, 3)
    assert told["by_class"] == {"trivial": 3}
    assert told["by_model"] == {}


def test_the_summary_is_for_people(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    file = write(tmp_path / "few.jsonl", [{"messages": messages}] * 4)
    ended = CliRunner().invoke(cli, ["demo", "--fast", "--threads", "2", "--prompts", str(file)])
    assert ended.exit_code == 0, ended.output
    assert "4 of 4 calls answered, none was lost" in ended.stdout
    assert "all by claude-sonnet-4.5" in ended.stdout
    assert re.search(r"^total +4 ", ended.stdout, re.MULTILINE)
    assert "100 %: 4 of 4 calls done" in ended.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for children in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    few = ({"messages": messages} for messages in demo.read_messages(None)[:48])
    running = start("--prompts", str(write(tmp_path / "few.jsonl", few)))
    assert running.stderr is not None
    while "25 %" not in running.stderr.readline():
        assert running.poll() is None
    children = [
        int(pid)
        for task in Path(f"/proc/{running.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    assert len(children) == len(demo_run.PARTS)
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == status
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == "interrupted; the providers have been stopped"
    assert "Traceback" not in err
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("fastroute-demo-")] == []


# ------------------------------------------------------------------------------------------ prompts


def test_the_prompts_that_come_with_it_cover_every_class() -> None:
    prompts = demo.read_messages(None)
    assert len(prompts) == 300
    assert len({json.dumps(messages) for messages in prompts}) == 300
    classifier = Classifier.named("five-level")
    levels = Counter(classifier.classify(messages, {})[0].level for messages in prompts)
    assert set(levels) == set(demo_run.CLASSES)
    assert min(levels.values()) >= 5
    roles = {message["role"] for messages in prompts for message in messages}
    assert roles == {"system", "user", "assistant"}
    assert any(len(messages) >= 3 for messages in prompts)
    assert max(len(message["content"]) for messages in prompts for message in messages) > 4000
    assert any(not message["content"].isascii() for messages in prompts for message in messages)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "no list of messages"),
        (b'{"messages": []}', "must have messages"),
        (b'{"messages": "Hello"}', "no list of messages"),
        (b'{"messages": [{"content": "Hello"}]}', "each with a role and content"),
        (b'{"messages": [{"role": "user"}]}', "each with a role and content"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"messages": [{"role": "user", "content": "Hello"}]}\n\n' + line + b"\n")
    with pytest.raises(click.ClickException) as caught:
        demo.read_messages(str(file))
    assert "line 3" in caught.value.message
    assert words in caught.value.message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(click.ClickException, match="no prompt"):
        demo.read_messages(str(tmp_path / "empty.jsonl"))


def test_a_byte_order_mark_and_missing_last_newline_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "marked.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "Hello"}]}')
    assert demo.read_messages(str(file)) == [[{"role": "user", "content": "Hello"}]]


# ------------------------------------------------------------------------------------------ the scene


def test_a_killed_provider_leaves_every_tier_two() -> None:
    for tier in demo_run.TIERS:
        left = [part for part in demo_run.PARTS if tier in part.tiers and part.name != demo_run.KILLED]
        assert len(left) >= 2
        assert any(not part.fail_rate for part in left)
    assert [part.name for part in demo_run.PARTS if part.fail_rate] == ["borealis"]
    assert set(demo_run.CLASSES.values()) == set(demo_run.TIERS)


def test_before_the_first_answer_its_percentiles_are_0() -> None:
    assert demo_run.Board().percentiles() == (0.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------------ the picture


def scene(calls: int, state: str) -> Any:
    """What the picture reads, with large figures."""
    board = demo_run.Board()
    board.ok, board.failed, board.failovers = calls, 1, 321
    board.latencies = [0.23456, 2.3]
    board.cost_nano, board.premium_nano = 10**9, 3 * 10**9
    for level in demo_run.CLASSES:
        board.by_class[level] = calls
    endpoints = {}
    for part in demo_run.PARTS:
        for tier in part.tiers:
            model = demo_run.TIERS[tier]
            board.by_model[model] = calls
            name = f"{part.name}/{model}"
            board.by_endpoint[name] = 234
            board.failures_of[name] = 56
            endpoints[name] = {"state": state, "p50_s": 0.234}
    for number in range(20):
        board.say(f"happening {number} " + "and so on " * 12)
    client = SimpleNamespace(stats=lambda: {"endpoints": endpoints})
    return SimpleNamespace(board=board, total=2 * calls, elapsed=lambda: 123.4, down=True, client=client)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("state", ["closed", "half-open", "open"])
def test_the_picture_fits_its_terminal(width: int, height: int, state: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None, highlight=False)
    console.print(demo_view.picture(scene(999, state), width, height))
    lines = out.getvalue().rstrip("\n").split("\n")
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("lost 1", "fail-overs 321", "p99 2.3 s", "67 % saved", "happening 19", "claude-sonnet-4.5"):
        assert words in text
    assert text.count(demo_view.MARKS[state][0] + " 234/56 234 ms") == len(
        scene(1, state).client.stats()["endpoints"]
    )
