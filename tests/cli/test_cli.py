"""The command line: every command on a real configuration and a real provider, and its documentation."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute.cli import bench, report
from fastroute.cli.group import COMMANDS, cli, visible
from fastroute.cli.output import Column, fitted
from fastroute.client import Completions
from fastroute.testing import Fault, Provider

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and an environment that configures nothing."""
    for name in list(os.environ):
        if name.startswith("FASTROUTE_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(["gpt-4.1", "gpt-4.1-mini"], answer="It is Ulan Bator.") as running:
        yield running


@pytest.fixture
def config(provider: Provider, tmp_path: Path) -> Path:
    file = tmp_path / "fastroute.toml"
    file.write_text(
        f"""
        [fastroute]
        ledger = "spent.db"
        [providers.local]
        base_url = "{provider.base_url}"
        rpm = 600
        [[endpoints]]
        provider = "local"
        model = "gpt-4.1"
        [[endpoints]]
        provider = "local"
        model = "gpt-4.1-mini"
        [tiers]
        budget = ["gpt-4.1-mini"]
        standard = ["gpt-4.1"]
        """
    )
    return file


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin)


def done(*arguments: str, stdin: str | None = None) -> str:
    """What a command that must succeed printed to standard output."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


# ------------------------------------------------------------------------------------------ all of it


def test_help_lists_every_command_and_imports_none() -> None:
    ended = python(
        """
        import sys
        from fastroute.cli import main
        try:
            main(["--help"])
        except SystemExit as exit:
            assert exit.code == 0, exit.code
        heavy = {"rich", "requests", "attrs", "orjson", "fastroute.client", "fastroute._core"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """.replace("\n        ", "\n")
    )
    assert ended.returncode == 0, ended.stderr
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    assert found.name == name
    assert found.get_short_help_str(200) == COMMANDS[name].removesuffix(".") + "."


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_names_the_command_that_installs_it(missing: str) -> None:
    ended = python(f"import sys; sys.modules[{missing!r}] = None; from fastroute.cli import main; main([])")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "the command line needs click and rich: pip install 'fastroute[cli]'"
    ]


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fastroute.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"fastroute, version \d+\.\d+\.\d+\S*\n", ended.stdout)


def test_a_misspelt_command_is_corrected() -> None:
    result = run("explian", "hello")
    assert result.exit_code == 2
    assert "did you mean explain?" in result.stderr
    result = run("xyz")
    assert result.exit_code == 2
    assert "use one of chat, explain" in result.stderr


def test_an_interrupt_ends_with_130(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(completions: Completions, **params: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Completions, "create", interrupt)
    result = run("chat", "hello")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------ chat


def test_chat_prints_the_answer_and_who_gave_it(config: Path) -> None:
    result = run("chat", "Capital of Mongolia?")
    assert result.exit_code == 0
    assert result.stdout == "It is Ulan Bator.\n"
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"gpt-4\.1-mini · local/gpt-4\.1-mini · trivial · \d+ in, \d+ out · \$0\.0000\d+ · [\d.]+ (µs|ms|s)",
        last,
    )


@pytest.mark.parametrize("arguments", [("chat",), ("chat", "-")])
def test_chat_reads_standard_input(config: Path, provider: Provider, arguments: tuple[str, ...]) -> None:
    done(*arguments, "--system", "Be brief.", "--max-tokens", "7", stdin="Où est-ce ?\n")
    sent = provider.requests[-1].json
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Où est-ce ?\n"},
    ]
    assert sent["max_tokens"] == 7
    assert "stream" not in sent or sent["stream"] is False


def test_chat_streams_when_told_to(config: Path, provider: Provider) -> None:
    assert done("chat", "--stream", "--model", "gpt-4.1", "Hello") == "It is Ulan Bator.\n"
    sent = provider.requests[-1].json
    assert sent["stream"] is True
    assert sent["model"] == "gpt-4.1"


def test_chat_as_json(config: Path) -> None:
    told = json.loads(done("chat", "--json", "--tag", "user=ann", "Hello"))
    assert told["content"] == "It is Ulan Bator."
    assert told["endpoint"] == "local/gpt-4.1-mini"
    assert told["class"] == "trivial"
    assert (
        told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]
    )
    assert told["cost_usd"] > 0
    assert (told["attempts"], told["cached"], told["tier"]) == (1, False, "budget")


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "words"),
    [
        (["chat"], "  \n", 2, "the prompt is empty"),
        (["chat", "--json", "--stream", "x"], None, 2, "leave out --stream"),
        (["chat", "--tag", "ann", "x"], None, 2, "NAME=VALUE"),
        (["chat", "--max-tokens", "0", "x"], None, 2, "--max-tokens"),
        (["chat", "--model", "gpt-4.2", "x"], None, 1, "near names are gpt-4.1"),
        (["chat", "--config", "nowhere.toml", "x"], None, 2, "nowhere.toml"),
    ],
)
def test_chat_refuses_what_makes_no_sense(
    config: Path, arguments: list[str], stdin: str | None, status: int, words: str
) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_call_that_fails_is_one_line_and_status_1(config: Path, provider: Provider) -> None:
    provider.script(Fault.status(422), repeat=True)
    result = run("chat", "Hello")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def read_until(terminal: int, words: str, seen: str = "") -> str:
    """What a program wrote to its terminal, up to and with the words."""
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, f"{words!r} did not come; there was {seen!r}"
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the program has ended
            raise AssertionError(f"it ended without {words!r}; there was {seen!r}") from None
    return seen


ENDED = "s\x1b[0m"  # the end of the line about an answer, whose last word is its time


def test_a_conversation_on_a_terminal(config: Path, provider: Provider) -> None:
    provider.answer = "Ulan Bator.\x1b[2J"
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", "chat"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        start_new_session=True,
    )
    os.close(slave)
    try:
        read_until(master, "> ")
        os.write(master, b"Capital of Mongolia?\n")
        first = read_until(master, ENDED)
        assert "Ulan Bator.\\x1b[2J" in first
        assert "\x1b[2J" not in first
        read_until(master, "> ", first.rpartition(ENDED)[2])
        os.write(master, b"And of Nepal?\n")
        second = read_until(master, ENDED)
        read_until(master, "> ", second.rpartition(ENDED)[2])
        os.write(master, b"\x04")  # only at its prompt does the terminal pass Ctrl-D on
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
    roles = [message["role"] for message in provider.requests[-1].json["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert provider.requests[-1].json["stream"] is True


def test_a_conversation_has_commands(config: Path, provider: Provider) -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", "chat", "--system", "Be brief."],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        start_new_session=True,
    )
    os.close(slave)
    try:
        left = read_until(master, "/help lists commands.").rpartition("commands.")[2]
        for line, shown in (
            ("/help", "/quit  "),
            ("/model", "model: the default of the configuration"),
            ("/model gpt-4.1-mini", "model: gpt-4.1-mini"),
            ("Capital of Mongolia?", ENDED),
            ("/clear", "begins again"),
            ("/etc/hosts is what?", ENDED),
        ):
            read_until(master, "> ", left)
            os.write(master, f"{line}\n".encode())
            left = read_until(master, shown).rpartition(shown)[2]
        read_until(master, "> ", left)
        os.write(master, b"/quit\n")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
    first, second = (request.json for request in provider.requests)
    assert first["model"] == second["model"] == "gpt-4.1-mini"
    assert [message["role"] for message in second["messages"]] == ["system", "user"], (
        "what was before is forgotten"
    )
    assert second["messages"][1]["content"] == "/etc/hosts is what?", "only the commands' names are taken"


# ------------------------------------------------------------------------------------------ explain


def test_explain_needs_no_key_and_leaves_nothing_behind(
    config: Path, provider: Provider, elsewhere: Path
) -> None:
    config.write_text(config.read_text().replace("rpm = 600", 'rpm = 600\napi_key_env = "NOT_SET_HERE"'))
    text = done("explain", "Compare these and explain the difference to me in one or two sentences, please")
    assert re.search(r"^class +moderate ", text, re.MULTILINE)
    assert "compare, explain" in text
    assert re.search(r"^ *1 +local/gpt-4\.1(-mini)? .*closed +tier ", text, re.MULTILINE)
    assert not provider.requests
    assert [path.name for path in elsewhere.iterdir()] == ["fastroute.toml"]


def test_explain_as_json(config: Path) -> None:
    told = json.loads(done("explain", "--json", "--model", "gpt-4.1", "--max-tokens", "50", "Hello"))
    assert told["class"]["level"] == "trivial"
    assert told["estimate"]["output_tokens"] == 50
    (only,) = told["candidates"]
    assert (only["endpoint"], only["rank"], only["state"]) == ("local/gpt-4.1", 0, "closed")
    assert only["price"] > 0
    assert (only["available_requests"], only["available_tokens"]) == (100, None)


def test_explain_without_any_configuration_shows_the_class_alone() -> None:
    text = done("explain", "-", stdin="Hello")
    assert re.search(r"^class +trivial ", text, re.MULTILINE)
    assert "OPENAI_API_KEY" in text
    assert json.loads(done("explain", "--json", "Hello"))["candidates"] is None
    result = run("explain", "--model", "gpt-4.1", "Hello")
    assert result.exit_code == 2
    assert "--model needs a configuration" in result.stderr


def test_explain_does_not_hide_a_broken_configuration(elsewhere: Path) -> None:
    (elsewhere / "fastroute.toml").write_text("[polcy]\n")
    result = run("explain", "Hello")
    assert result.exit_code == 1
    assert "polcy" in result.stderr


# ------------------------------------------------------------------------------------------ check, models


def test_check_lists_every_problem_at_once(elsewhere: Path) -> None:
    file = elsewhere / "bad.toml"
    file.write_text('[policy]\nstratgy = "latency"\nmax_attempts = -1\n[fastroute]\ntimeout = "long"\n')
    result = run("check", "bad.toml")
    assert result.exit_code == 1
    for path in ("policy.stratgy", "policy.max_attempts", "timeout"):
        assert re.search(rf"^problem  \S*{re.escape(path)}", result.stdout, re.MULTILINE), path
    assert re.search(r"^[3-9] problems in \S+/bad\.toml, no warnings$", result.stdout, re.MULTILINE)


def test_check_of_a_good_file_says_what_is_in_it(config: Path) -> None:
    text = done("check", str(config))
    assert text.splitlines()[0] == "ok: 1 provider, 2 endpoints, 2 models, no warnings"
    assert "tier standard: gpt-4.1" in text
    assert re.search(r"^  state: memory \(this process and its forks\)", text, re.MULTILINE)
    assert done("check") == text


def test_a_missing_key_is_a_warning(config: Path) -> None:
    config.write_text(config.read_text().replace("rpm = 600", 'api_key_env = "NOT_SET_HERE"'))
    text = done("check", str(config))
    assert re.search(r"^warning  .*NOT_SET_HERE", text, re.MULTILINE)
    assert "2 warnings" in text, "the key, and that no other endpoint is left"


def test_the_exit_status_is_the_process_s(elsewhere: Path) -> None:
    (elsewhere / "bad.toml").write_text("[nonsense]\n")
    for arguments, status in ((["check", "bad.toml"], 1), (["check", "none.toml"], 2), (["report"], 1)):
        ended = subprocess.run(
            [sys.executable, "-m", "fastroute.cli", *arguments], capture_output=True, text=True, check=False
        )
        assert ended.returncode == status, ended.stderr
        assert "Traceback" not in ended.stderr


def test_models_are_those_that_are_served_or_all(config: Path) -> None:
    served = json.loads(done("models", "--json"))
    assert [model["name"] for model in served["models"]] == ["gpt-4.1", "gpt-4.1-mini"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", served["date"])
    first = served["models"][0]
    assert first["endpoints"] == ["local/gpt-4.1"]
    assert "gpt-4" in first["aliases"]
    assert first["output_price_usd"] > first["input_price_usd"] > 0
    everything = json.loads(done("models", "--json", "--all"))
    assert len(everything["models"]) > 10
    text = done("models")
    assert f"catalogue of {served['date']}" in text
    assert re.search(r"^gpt-4\.1-mini +budget .* local/gpt-4\.1-mini", text, re.MULTILINE)


def test_models_without_a_configuration_are_all() -> None:
    text = done("models")
    assert "no model has an endpoint" in text
    assert "claude-sonnet" in text


# ------------------------------------------------------------------------------------------ report


@pytest.fixture
def spent(config: Path, provider: Provider) -> Path:
    """A ledger of three calls, one of which failed once before."""
    done("chat", "Capital of Mongolia?", "--tag", "user=ann")
    done("chat", "Capital of Nepal?", "--tag", "user=bob")
    done("chat", "--model", "standard", "Capital of Bhutan?", "--tag", "user=bob")
    return config.parent / "spent.db"


def test_report_by_model_and_tag(spent: Path) -> None:
    text = done("report")
    assert re.search(r"^gpt-4\.1-mini +2 +2 +0 ", text, re.MULTILINE)
    assert re.search(r"^total +3 +3 +0 ", text, re.MULTILINE)
    told = json.loads(done("report", "--by", "tag:user", "--format", "json", "--against", "gpt-4"))
    assert {group["group"]["tag:user"]: group["calls"] for group in told["groups"]} == {"ann": 1, "bob": 2}
    assert told["savings"][0]["model"] == "gpt-4.1"
    assert told["savings"][0]["alone_nano"] > told["savings"][0]["actual_nano"] > 0
    bob = json.loads(done("report", "--tag", "user=bob", "--format", "json"))
    assert bob["totals"]["calls"] == 2


def test_report_as_csv_of_another_ledger(spent: Path, tmp_path: Path) -> None:
    text = done("report", "--ledger", str(spent), "--by", "tier,model", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {(row["tier"], row["model"], row["calls"]) for row in rows} == {
        ("budget", "gpt-4.1-mini", "2"),
        ("standard", "gpt-4.1", "1"),
    }


def test_report_of_a_span(spent: Path) -> None:
    def calls(*span: str) -> int:
        return int(json.loads(done("report", "--format", "json", *span))["totals"]["calls"])

    assert calls("--since", "1h") == 3
    assert calls("--until", "1h") == 0
    assert calls("--since", "2020-01-01", "--until", "2020-12-31T23:59+02:00") == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--by", "colour"], 2, "colour"),
        (["--since", "yesterday"], 2, "7d"),
        (["--against", "gpt-4.2"], 1, "near names"),
        (["--ledger", "nowhere.db"], 2, "nowhere.db"),
    ],
)
def test_report_says_what_is_wrong(spent: Path, arguments: list[str], status: int, words: str) -> None:
    result = run("report", *arguments)
    assert result.exit_code == status
    assert words in result.stderr


def test_a_report_makes_no_ledger(config: Path, elsewhere: Path) -> None:
    result = run("report")
    assert result.exit_code == 1
    assert "the first call creates it" in result.stderr
    assert not (elsewhere / "spent.db").exists()


def test_a_compact_report_fits_80_columns(spent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastroute.ledger import open_ledger
    from fastroute.ledger.report import report as summed

    ledger = open_ledger(spent)
    try:
        report.print_compact(summed(ledger, by=("model",)))
    finally:
        ledger.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("total  ")
    assert max(map(len, lines)) <= 80


# ------------------------------------------------------------------------------------------ bench


def test_bench_measures_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "THREADS", (2,))
    monkeypatch.setattr(bench, "SPANS", {True: (1, 0.1), False: (1, 0.1)})
    figures = bench.measure(quick=True, say=None)
    assert set(figures.calls) == {"requests.post", "requests.Session.post", "fastroute"}
    for timing in (figures.decision, figures.plan, *figures.calls.values()):
        assert 0 < timing.low <= timing.median <= timing.high
    assert all(rate > 0 for rates in figures.rates.values() for rate in rates.values())
    assert figures.server_rate > 0
    text = bench.text_of(figures)
    assert "2 threads" in text
    assert f"{figures.server_rate:,.0f} calls per second" in text


def test_bench_fails_where_a_thread_does_or_an_answer_is_another() -> None:
    def refused() -> str:
        raise ConnectionRefusedError

    assert bench.rate(lambda: lambda: bench.ANSWER, 2, 0.05) > 0
    with pytest.raises(ConnectionRefusedError):
        bench.rate(lambda: refused, 2, 60.0)
    with pytest.raises(RuntimeError, match="must answer"):
        bench.rate(lambda: lambda: "another", 2, 60.0)
    answers = [bench.ANSWER, bench.ANSWER]
    with pytest.raises(IndexError):  # one thread has an answer more, the other none
        bench.rate(lambda: answers.pop, 2, 60.0)


# ------------------------------------------------------------------------------------------ writing

CELLS = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=40)


@settings(max_examples=50)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5), st.integers(40, 200))
def test_a_table_never_outgrows_its_terminal(rows: list[tuple[str, str, str]], width: int) -> None:
    columns = [Column("name"), Column("one", give=True), Column("other", right=True, give=True)]
    lines = fitted(columns, rows, width)
    fixed = max(4, *(len(row[0]) for row in rows))
    assert all(len(line) <= max(width, fixed) for line in lines)
    whole = fitted(columns, rows, 10_000)
    for line, row in zip(whole[1:], rows):
        assert line.split() == [cell for cell in row if cell]
    if max(map(len, whole)) <= width:
        assert lines == whole


@settings(max_examples=50)
@given(st.text())
def test_no_text_steers_a_terminal(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in visible(text))


# ------------------------------------------------------------------------------------------ its page


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_every_command_and_option(name: str) -> None:
    page = sections()
    assert name in page
    assert f"(#{name})" in page[""]
    found: Any = cli.get_command(click.Context(cli), name)
    documented = {*re.findall(r"`(--?[a-z][a-z-]*)", page[name]), "-v", "--verbose"}
    assert "`-v` or `--verbose`" in page[""], "said once for all commands"
    options = {
        option
        for param in found.params
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    }
    assert documented == options
    assert f"fastroute {name}" in page[name]


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_serve_says_where_calls_and_figures_are(
    host: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastroute.cli.serve import announce

    announce(host, 8080)
    said = capsys.readouterr()
    assert f"http://{shown}:8080/v1 " in said.out + said.err
    assert f"http://{shown}:8080/admin " in said.out + said.err
