"""Labels by asking both models: budget, resuming after a kill, the judge, and the whole way to a router."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import STRONG, WEAK, prompts

from fastroute.client import Client
from fastroute.learning import AskReport, Label, LabelError, ask, calibrate, read_labels
from fastroute.learning.judge import Judge
from fastroute.testing import Fault, Provider, Received

JUDGE = """#!/bin/sh
read -r question
case "$question" in *gpt*) exit 9 ;; esac
case "$question" in *'"a":"right'*) a=1 ;; *) a=0 ;; esac
case "$question" in *'"b":"right'*) b=1 ;; *) b=0 ;; esac
echo "$a $b"
"""


def answer(request: Received) -> str:
    """The weak model fails on hard prompts, the strong one on every tenth."""
    body = request.json
    text = body["messages"][-1]["content"]
    if body["model"] == WEAK:
        return "wrong" if text.startswith("prove") else "right"
    return "wrong" if sum(text.encode()) % 10 == 0 else "right"


@pytest.fixture
def providers() -> Iterator[tuple[Provider, Provider]]:
    with Provider([WEAK], answer=answer) as small, Provider([STRONG], answer=answer) as large:
        yield small, large


@pytest.fixture
def config(providers: tuple[Provider, Provider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small, large = providers
    file = tmp_path / "fastroute.toml"
    file.write_text(
        '[fastroute]\nledger = ""\nstate = "memory"\n'
        f'[providers.small]\nbase_url = "{small.base_url}"\n'
        f'[providers.large]\nbase_url = "{large.base_url}"\n'
        f'[[endpoints]]\nprovider = "small"\nmodel = "{WEAK}"\n'
        f'[[endpoints]]\nprovider = "large"\nmodel = "{STRONG}"\n'
    )
    return file


@pytest.fixture
def judge(tmp_path: Path) -> str:
    file = tmp_path / "judge"
    file.write_text(JUDGE)
    file.chmod(0o700)
    return str(file)


def questions(count: int) -> list[Label]:
    return [Label([{"role": "user", "content": text}]) for text, _ in prompts(count)]


def asked(config: Path, count: int, judge: str, spend: float = 20.0, **more: object) -> AskReport:
    with Client(config) as client:
        return ask(
            questions(count),
            client,
            weak=WEAK,
            strong=STRONG,
            judge=judge,
            spend=spend,
            to="labels.jsonl",
            **more,  # type: ignore[arg-type]
        )


def sent(*providers: Provider) -> Counter[tuple[str, str]]:
    """How often each model was asked each prompt."""
    return Counter(
        (request.json["model"], request.json["messages"][-1]["content"])
        for provider in providers
        for request in provider.requests
    )


def test_300_prompts_become_labels_and_a_router(
    config: Path, providers: tuple[Provider, Provider], judge: str
) -> None:
    said: list[str] = []
    report = asked(config, 300, judge, say=said.append)
    assert (report.labelled, report.before, report.left, report.stopped) == (300, 0, 0, "")
    assert "600 answers to 300 prompts will cost about $" in said[0]
    labels = list(read_labels("labels.jsonl"))
    assert len(labels) == 300
    for label in labels:
        text = label.messages[-1]["content"]
        assert label.scores[WEAK] == (not text.startswith("prove"))
        assert label.scores[STRONG] == (sum(text.encode()) % 10 != 0)
    tokens = {model: label.tokens[model] for model in (WEAK, STRONG)}
    assert all(count > 0 for pair in tokens.values() for count in pair)
    assert report.spent_nano > 0
    assert sent(*providers) == {(model, text): 1 for text, _ in prompts(300) for model in (WEAK, STRONG)}
    for name in ("labels.jsonl", "labels.jsonl.answers"):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
    found = calibrate(labels, weak=WEAK, strong=STRONG, share=0.4)
    assert found.accepted, found.reason
    assert found.forecast is not None
    assert found.forecast.cost is not None
    found.save("router.frl")
    config.write_text(
        config.read_text() + f'[tiers]\nbudget = ["{WEAK}"]\npremium = ["{STRONG}"]\n'
        '[policy]\nclassifier = "learned"\n[policy.classes]\nweak = "budget"\nstrong = "premium"\n'
        '[learned]\nfile = "router.frl"\n'
    )
    with Client(config) as client:
        went: Counter[tuple[bool, str]] = Counter()
        for text, hard in prompts(100, 8):
            reply = client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": text}], max_tokens=50
            )
            went[hard, reply.model] += 1
    assert went[False, WEAK] >= 45  # the share of .4 leaves some of the hard ones to weak
    assert 30 <= went[True, STRONG] <= 50


def test_what_is_labelled_is_not_asked_again(
    config: Path, providers: tuple[Provider, Provider], judge: str
) -> None:
    assert asked(config, 10, judge).labelled == 10
    report = asked(config, 15, judge)
    assert (report.labelled, report.before) == (5, 10)
    assert set(sent(*providers).values()) == {1}


def test_a_kill_costs_the_answers_under_way_and_no_more(
    config: Path, providers: tuple[Provider, Provider], judge: str, tmp_path: Path
) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text, _ in prompts(40)))
    command = [sys.executable, "-m", "fastroute.cli", "calibrate", "--ask", "prompts.jsonl", "--judge", judge]
    command += ["--spend", "20", "--weak", WEAK, "--strong", STRONG, "--at-once", "1", "-o", "labels.jsonl"]
    kills = 0
    for share in (8, 20):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while child.poll() is None:
                if sum(sent(*providers).values()) >= share:
                    child.send_signal(signal.SIGKILL)
                    kills += 1
                    break
        finally:
            child.kill()
            child.wait()
    with open("labels.jsonl", "ab") as file:
        file.write(b'{"messages": [{"role": "us')  # a line that the kill has cut
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "labels.jsonl: 40 labels" in done.stdout
    assert len(list(read_labels("labels.jsonl"))) == 40
    rows = [json.loads(row) for row in Path("labels.jsonl.answers").read_text().splitlines()]
    lost = sum("most_nano" in row for row in rows) - sum("cost_nano" in row for row in rows)
    assert 0 <= lost <= kills
    known = sum(row.get("cost_nano", 0) for row in rows)
    again = asked(config, 40, judge)
    assert (again.labelled, again.spent_nano > known) == (0, lost > 0)  # what was on its way counts as spent
    counts = sent(*providers)
    assert len(counts) == 80
    assert sum(counts.values()) <= 80 + kills


def test_no_more_is_spent_than_may_be_and_more_money_continues(
    config: Path, providers: tuple[Provider, Provider], judge: str
) -> None:
    report = asked(config, 60, judge, spend=0.005, max_tokens=300)
    assert 0 < report.labelled < 60
    assert report.left == 60 - report.labelled
    assert "more than is left of --spend" in report.stopped
    assert 0 < report.spent_nano <= 5_000_000
    before = sum(sent(*providers).values())
    again = asked(config, 60, judge, spend=0.005, max_tokens=300)
    assert again.spent_nano <= 5_000_000
    last = asked(config, 60, judge, spend=20.0)
    assert (last.left, last.stopped) == (0, "")
    assert set(sent(*providers).values()) == {1}
    assert before < 120


def test_answers_of_a_judge_that_failed_are_kept(
    config: Path, providers: tuple[Provider, Provider], judge: str
) -> None:
    report = asked(config, 20, "false", at_once=1)
    assert (report.labelled, report.left) == (0, 20)
    assert report.stopped == "judge: ended with status 1; must print two numbers and end with 0"
    assert sum(sent(*providers).values()) == 6  # it stops after three failures
    assert asked(config, 20, judge).labelled == 20
    assert set(sent(*providers).values()) == {1}


def test_a_provider_that_fails_stops_the_run(
    config: Path, providers: tuple[Provider, Provider], judge: str
) -> None:
    providers[0].script(Fault.status(401), repeat=True)
    report = asked(config, 20, judge, at_once=1)
    assert report.labelled == 0
    assert "key refused" in report.stopped


def test_a_model_without_a_price_and_a_second_run_are_refused(config: Path, judge: str) -> None:
    config.write_text(config.read_text().replace(f'model = "{WEAK}"', 'model = "own-model"'))
    with Client(config) as client, pytest.raises(LabelError, match="own-model: has no price"):
        ask(questions(3), client, weak="own-model", strong=STRONG, judge=judge, spend=1, to="labels.jsonl")
    with Client(config) as client, pytest.raises(LabelError, match="prompts: are empty"):
        ask([], client, weak=WEAK, strong=STRONG, judge=judge, spend=1, to="labels.jsonl")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("'", "cannot be read"),
        ("/nowhere/judge", "cannot be run"),
        ("false", "ended with status 1"),
        ("echo good", "something else than two numbers"),
        ("echo 1", "something else than two numbers"),
        ("echo 1 2", "something else than two numbers"),
        ("echo nan 1", "something else than two numbers"),
    ],
)
def test_a_judge_that_does_not_judge(command: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        Judge(command).scores([], "x", "y")


def test_a_judge_gets_the_question_and_two_answers_without_names() -> None:
    program = (
        "import json,sys; q=json.load(sys.stdin); "
        "assert q == {'messages': [{'role': 'user', 'content': 'x'}], 'answers': {'a': 'é', 'b': ''}}; "
        "print('0.25,', 1)"
    )
    judge = Judge(f'{sys.executable} -c "{program}"')
    assert judge.scores([{"role": "user", "content": "x"}], "é", "") == (0.25, 1.0)
