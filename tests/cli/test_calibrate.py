"""`fastroute calibrate`: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastroute.cli.group import cli
from fastroute.routing.router_file import read_router
from fastroute.testing import Provider

MODELS = ("--weak", "gpt-4.1-nano", "--strong", "gpt-4.1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to be in, and an environment that configures nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTROUTE_CONFIG", raising=False)
    good, bad = [], []
    draw = random.Random(3)
    for number in range(200):
        hard = number % 2
        text = f"prove lemma {number} of the {draw.choice('abcdef')} series" if hard else f"add {number} to 7"
        good.append(line(text, 1 - hard, 1))
        bad.append(line(text, draw.randrange(2), 1 - (number % 9 == 0)))
    Path("good.jsonl").write_text("\n".join(good))
    Path("bad.jsonl").write_text("\n".join(bad))


def line(text: str, weak: float, strong: float) -> str:
    tokens = {"gpt-4.1-nano": [20, 100], "gpt-4.1": [20, 300]}
    return json.dumps({"prompt": text, "scores": {"gpt-4.1-nano": weak, "gpt-4.1": strong}, "tokens": tokens})


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_an_accepted_router_is_written_with_status_0() -> None:
    result = run("good.jsonl", *MODELS, "--share", "0.4", "-o", "router.frl")
    assert result.exit_code == 0, result.output
    assert "accepted: at a share of 40% its quality is +0." in result.output
    assert 'written to router.frl: set classifier = "learned"' in result.output
    lines = result.stdout.splitlines()
    assert [row.split("%")[0].split()[-1] for row in lines if re.match(r" *[a-z ]*\d+%", row)][:11] == [
        str(share) for share in range(0, 101, 10)
    ]
    assert any(row.startswith("chosen") and " 40% " in row for row in lines)
    for mark in "●░·◆○":
        assert mark in result.stdout
    assert "dollars a thousand calls, about" in result.stdout
    assert read_router("router.frl").header.share == 0.4


def test_a_refused_router_is_not_written_and_the_status_is_3() -> None:
    result = run("bad.jsonl", *MODELS, "--share", "0.4", "-o", "router.frl")
    assert result.exit_code == 3
    assert "refused: at a share of 40% its quality is" in result.output
    assert re.search(r"Label (about )?[\d,]+ more prompts", result.output)
    assert "router.frl was not written" in result.output
    assert not Path("router.frl").exists()
    forced = run("bad.jsonl", *MODELS, "--share", "0.4", "-o", "router.frl", "--force")
    assert forced.exit_code == 3
    header = read_router("router.frl").header
    assert (header.accepted, header.forced) == (False, True)
    assert "refused, but written by --force" in run("--show", "router.frl").output


def test_a_file_is_shown_as_it_was_forecast() -> None:
    first = run("good.jsonl", *MODELS, "--keep", "0.9", "-o", "router.frl").stdout
    shown = run("--show", "router.frl").stdout
    assert first.partition("written to")[0] in shown
    found = json.loads(run("--show", "router.frl", "--json").stdout)
    assert (found["accepted"], found["weak"], len(found["forecast"])) == (True, "gpt-4.1-nano", 12)


def test_json() -> None:
    found = json.loads(run("good.jsonl", *MODELS, "--json").stdout)
    assert (found["accepted"], found["share"], found["written"], found["labels"]) == (True, 0.5, None, 200)
    assert [row["share"] for row in found["forecast"]] == [tenths / 10 for tenths in range(11)]
    pairs = json.loads(run("good.jsonl", "--pairs", "--json").stdout)["pairs"]
    assert [(pair["weak"], pair["strong"], pair["accepted"]) for pair in pairs] == [
        ("gpt-4.1-nano", "gpt-4.1", True)
    ]


def test_pairs() -> None:
    result = run("good.jsonl", "--pairs", "--share", "0.3")
    assert result.exit_code == 0
    assert re.search(r"gpt-4\.1-nano +gpt-4\.1 +200 .* accepted", result.stdout)
    assert "At a share of 30% to strong" in result.stdout


def test_the_page_is_one_file_without_scripts() -> None:
    assert run("good.jsonl", *MODELS, "--html", "page.html").exit_code == 0
    page = Path("page.html").read_text("utf-8")
    assert page.count("<svg") == 1
    assert 'class="band"' in page
    assert 'class="coin"' in page
    assert 'class="chosen"' in page
    assert page.count("<tr") == 12
    assert "default-src 'none'" in page
    assert not re.search(r"<script|https?:|url\(|<link|<img", page)


def test_names_are_escaped_in_the_page_and_on_the_terminal() -> None:
    text = Path("good.jsonl").read_text().replace("gpt-4.1-nano", "<b>")
    Path("good.jsonl").write_text(text)
    assert run("good.jsonl", "--weak", "<b>", "--strong", "gpt-4.1", "--html", "page.html").exit_code == 0
    assert "<b>" not in Path("page.html").read_text("utf-8")
    result = run("good.jsonl", "--weak", "\x1b[2J", "--strong", "gpt-4.1")
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    Path("good.jsonl").write_text(text.replace("<b>", "\\u001b[2J"))
    assert "\x1b" not in run("good.jsonl", "--pairs").output


def test_traffic_alone_sets_the_share_and_knows_no_quality() -> None:
    result = run("--traffic", "good.jsonl", "--share", "0.3", "-o", "router.frl")
    assert result.exit_code == 0
    assert "unknown quality: there were no labels, so the quality is unknown" in result.output
    assert read_router("router.frl").header.forced
    assert "unknown quality" in run("--show", "router.frl").output
    assert run("--show", "router.frl", "--html", "page.html").exit_code == 1


def test_csv() -> None:
    rows = [json.loads(row) for row in Path("good.jsonl").read_text().splitlines()]
    Path("marks.txt").write_text(
        "question,nano,large\n"
        + "".join(f"{row['prompt']},{','.join(map(str, row['scores'].values()))}\n" for row in rows)
    )
    columns = "prompt=question,gpt-4.1-nano=nano,gpt-4.1=large"
    result = run("marks.txt", "--columns", columns, *MODELS, "--json")
    assert json.loads(result.stdout)["labels"] == 200


WRONG: Mapping[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "name a file of LABELS, or prompts with --traffic, --ask or --show"),
    "no models": (("good.jsonl",), "the labels have scores of gpt-4.1, gpt-4.1-nano"),
    "one model": (("good.jsonl", "--weak", "a", "--strong", "a"), "must be two models"),
    "unknown model": (("good.jsonl", "--weak", "a", "--strong", "gpt-4.1"), "a has no scores"),
    "two targets": (("good.jsonl", *MODELS, "--share", "0.3", "--keep", "0.9"), "only one of --share"),
    "two sources": (("good.jsonl", "--ask", "good.jsonl"), "only one of LABELS"),
    "a share of all": (("good.jsonl", *MODELS, "--share", "1"), "--share"),
    "traffic without share": (("--traffic", "good.jsonl"), "needs --share"),
    "pairs of nothing": (("--pairs",), "--pairs needs LABELS"),
    "columns": (("good.jsonl", "--columns", "prompt"), "is not a column"),
    "ask": (("--ask", "good.jsonl", *MODELS), "--ask also needs --judge, --spend, -o"),
    "bad labels": (("torn.jsonl", *MODELS), "torn.jsonl, line 2: is not JSON"),
    "no file": (("none.jsonl", *MODELS), "none.jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_ends_with_status_2(name: str) -> None:
    Path("torn.jsonl").write_text(line("x", 0, 1) + "\n{")
    arguments, message = WRONG[name]
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(["gpt-4.1", "gpt-4.1-nano"], answer="fine") as running:
        Path("fastroute.toml").write_text(
            '[fastroute]\nledger = ""\nstate = "memory"\n[providers.local]\nbase_url = '
            f'"{running.base_url}"\n'
            '[[endpoints]]\nprovider = "local"\nmodel = "gpt-4.1"\n'
            '[[endpoints]]\nprovider = "local"\nmodel = "gpt-4.1-nano"\n'
        )
        yield running


def test_ask_says_the_price_first_and_stops_at_the_budget(provider: Provider) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(8)))
    arguments: list[Any] = ["--ask", "prompts.jsonl", "--judge", "echo 1 0.5", *MODELS, "-o", "labels.jsonl"]
    result = run(*arguments, "--spend", "0.00000001")
    assert result.exit_code == 1
    assert "16 answers to 8 prompts will cost about $" in result.stderr
    assert "8 prompts are left: the next answer might cost more than is left of --spend" in result.stderr
    assert not provider.requests
    result = run(*arguments, "--spend", "5")
    assert result.exit_code == 0, result.output
    assert "labels.jsonl: 8 labels, 8 of them new; $" in result.stdout
    assert run("labels.jsonl", *MODELS).exit_code == 3
