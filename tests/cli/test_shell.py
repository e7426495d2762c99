"""The command line among other programs: modules, completion, pipes, full disks, logs, help with examples."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import requests
from click.testing import CliRunner

import fastroute
from fastroute.cli.access_log import AccessLog
from fastroute.cli.group import COMMANDS, cli
from fastroute.gateway import create_app
from fastroute.testing import Provider

ROOT = Path(fastroute.__file__).parent.parent


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, str]]:
    """An empty folder to be in, and an environment with a key and the address of a local provider."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("FASTROUTE_", "OPENAI_")) or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    with Provider(answer="It is Ulan Bator.") as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        yield {**os.environ, "PYTHONPATH": str(ROOT)}


def shell(line: str, environ: Mapping[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of Bash in which ``fastroute`` is the command line of this tree."""
    program = f'set -o pipefail; fastroute() {{ {shlex.quote(sys.executable)} -m fastroute "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", program],
        env={**environ, **more},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -------------------------------------------------------------------------------------------- as a program


def test_the_package_runs_as_a_module(environ: Mapping[str, str]) -> None:
    for option in ("--version", "-V"):
        ended = shell(f"fastroute {option}", environ)
        assert re.fullmatch(r"fastroute, version \d+\.\d+\.\d+\S*\n", ended.stdout)


def test_a_reader_that_has_gone_is_no_traceback(environ: Mapping[str, str]) -> None:
    ended = shell("fastroute models --all --json | head -n 1", environ)
    assert ended.stdout == "{\n"
    assert ended.stderr == ""
    ended = shell("fastroute models --all --json | true", environ)
    assert ended.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["models --all", "check", "chat hello", "--help", "report"])
def test_a_full_disk_is_one_sentence(environ: Mapping[str, str], command: str) -> None:
    shell("fastroute chat hello", environ)  # so that there is something to report
    ended = shell(f"fastroute {command} >/dev/full", environ)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "Error: No space left on device"
    assert "Traceback" not in ended.stderr
    assert shell(f"fastroute {command} >/dev/full 2>/dev/full", environ).returncode == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fastroute ch", {"chat", "check"}),
        ("fastroute serve --acc", {"--access-log"}),
        ("fastroute keys r", {"rotate", "revoke"}),
    ],
)
def test_the_shell_completes(environ: Mapping[str, str], words: str, found: set[str]) -> None:
    completed = shell(
        "fastroute",
        environ,
        _FASTROUTE_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert {line.partition(",")[2] for line in completed.stdout.splitlines()} == found


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_the_page_tells_how_to_switch_completion_on(environ: Mapping[str, str], kind: str) -> None:
    assert f"_FASTROUTE_COMPLETE={kind}_source fastroute" in (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert "_FASTROUTE_COMPLETE" in shell("fastroute", environ, _FASTROUTE_COMPLETE=f"{kind}_source").stdout


# ------------------------------------------------------------------------------------------------ help, log


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", command) for inner, command in found.commands.items())


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_help_text_has_examples_of_options_that_exist(name: str, command: click.Command) -> None:
    text = CliRunner().invoke(cli, [*name.split(), "--help"]).stdout
    lines = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        given = words[words.index("fastroute") + 1 :]
        assert " ".join(given).startswith(name) or isinstance(command, click.Group)
        inner = command
        if isinstance(command, click.Group):
            inner = command.commands[given[1]]
        options = {option for param in inner.params for option in (*param.opts, *param.secondary_opts)}
        assert {word for word in given if word.startswith("-")} <= options


@pytest.mark.parametrize(
    "arguments", [["-v", "chat", "hello"], ["chat", "-v", "hello"], ["chat", "hello", "-vv"]]
)
@pytest.mark.usefixtures("environ")
def test_verbose_shows_the_attempts_and_leaves_nothing_behind(arguments: list[str]) -> None:
    log = logging.getLogger("fastroute")
    before = (list(log.handlers), log.level)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "It is Ulan Bator.\n"
    assert re.search(r"^  openai/\S+: ok \(200\), \d", result.stderr, re.MULTILINE), result.stderr
    assert (list(log.handlers), log.level) == before
    assert "ok (200)" not in CliRunner().invoke(cli, ["chat", "hello"]).stderr


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_every_command_takes_verbose(name: str, command: click.Command) -> None:
    assert any("-v" in param.opts for param in command.params), name


@pytest.mark.usefixtures("environ")
def test_warnings_of_the_library_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROUTE_X", "1")
    result = CliRunner().invoke(cli, ["chat", "hello"])
    assert "warning: FASTROUTE_X: names no key and is ignored; " in result.stderr


def test_a_program_without_logging_sees_warnings_of_the_start_only_as_python_warnings(
    environ: Mapping[str, str],
) -> None:
    program = (
        "import logging, sys, fastroute\n"
        "if sys.argv[1:]: logging.basicConfig(format='%(name)s %(levelname)s %(message)s')\n"
        "fastroute.Client().close()\n"
    )
    for argument, shown in (
        ("", "UserWarning: FASTROUTE_X: names no key"),
        ("x", "fastroute WARNING FASTROUTE_X: "),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", program, *argument],
            env={**environ, "FASTROUTE_X": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ended.stderr.count(shown) == 1, ended.stderr


# --------------------------------------------------------------------------------------------- report, chat


@pytest.mark.usefixtures("environ")
def test_report_json_says_where_the_ledger_is(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["chat", "hello"]).exit_code == 0
    result = CliRunner().invoke(cli, ["report", "--json"])
    assert json.loads(result.stdout) == json.loads(
        CliRunner().invoke(cli, ["report", "--format", "json"]).stdout
    )
    assert result.stderr == f"ledger: {tmp_path}/state/fastroute/fastroute.db\n"


# --------------------------------------------------------------------------------------------- access log


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def asked(app: Any, method: str, path: str, body: bytes = b"", **more: Any) -> bytes:
    """The body of a WSGI application's response."""
    import io

    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "key=secret",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
        "wsgi.input": io.BytesIO(body),
        **more,
    }
    found = app(environ, lambda status, headers: None)
    try:
        return b"".join(found)
    finally:
        found.close()


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("stream", [False, True])
def test_each_request_is_a_line_of_the_access_log(capsys: pytest.CaptureFixture[str], stream: bool) -> None:
    body = json.dumps(
        {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "secret"}], "stream": stream}
    ).encode()
    app = create_app(keyless=True)
    try:
        length = len(asked(AccessLog(app, True), "POST", "/v1/chat/completions", body))
        asked(AccessLog(app, False), "GET", "/nowhere\x1b[2J")
    finally:
        app.close()
    first, second = logged(capsys)
    entry = json.loads(first)
    assert {
        name: entry[name]
        for name in ("remote", "key", "method", "path", "status", "bytes", "model", "endpoint")
    } == {
        "remote": "127.0.0.1",
        "key": None,
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "bytes": length,
        "model": "gpt-4.1-mini",
        "endpoint": "openai/gpt-4.1-mini",
    }
    assert entry["request_id"].startswith("req_")
    assert 0 <= entry["seconds"] < 60
    assert re.fullmatch(r'\S+Z 127\.0\.0\.1 - "GET /nowhere\\x1b\[2J" 404 \d+ [0-9.]+s - - req_\w+', second)
    assert "secret" not in first + second


def test_serve_listens_on_port_and_logs(environ: Mapping[str, str], tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "fastroute", "keys", "create", "web"],
        env=environ,
        check=True,
        capture_output=True,
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "fastroute", "serve", "--access-log", "text"],
        env={**environ, "PORT": "0", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        found = re.match(r"serving (http://127\.0\.0\.1:[0-9]+)/v1", server.stderr.readline())
        assert found is not None
        assert requests.get(f"{found[1]}/v1/models", timeout=10).status_code == 401
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=30)
    assert re.fullmatch(r'\S+Z 127\.0\.0\.1 - "GET /v1/models" 401 \d+ [0-9.]+s - - req_\w+\n', output)


def test_a_port_that_is_none_names_the_variable(environ: Mapping[str, str]) -> None:
    ended = shell("fastroute serve", environ, PORT="tcp://10.0.0.1:80")
    assert ended.returncode == 2
    assert "PORT" in ended.stderr
    assert "Traceback" not in ended.stderr
