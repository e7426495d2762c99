"""``fastroute probe``: what it sends is counted by the provider, what it shows by what was sent."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors
from fastroute.cli.group import cli
from fastroute.cli.probe_run import EndpointTally, kind_of
from fastroute.ledger import open_ledger
from fastroute.testing import Fault, Provider, Uniform

Serve = Callable[..., dict[str, Provider]]
MODEL = "gpt-4.1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FASTROUTE_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts providers by name, and writes the configuration of an endpoint at each."""
    with ExitStack() as stack:

        def begin(more: str = "", **servers: Provider) -> dict[str, Provider]:
            text = '[fastroute]\nledger = "spent.db"\n'
            for name, provider in servers.items():
                stack.enter_context(provider)
                text += f'[providers.{name}]\nbase_url = "{provider.base_url}"\n'
                text += f'[[endpoints]]\nprovider = "{name}"\nmodel = "{MODEL}"\n'
            Path("fastroute.toml").write_text(text + more)
            return servers

        yield begin


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["probe", *arguments])


def told(*arguments: str, status: int = 0) -> dict[str, Any]:
    """What ``--json`` said, by endpoint."""
    result = run("--json", *arguments)
    assert result.exit_code == status, result.output
    found = json.loads(result.stdout)
    return {**found, "endpoints": {each["endpoint"]: each for each in found["endpoints"]}}


# -------------------------------------------------------------------------------------------------- measuring


def test_every_endpoint_gets_its_calls_and_nobody_elses(serve: Serve) -> None:
    a, b = serve(a=Provider(), b=Provider(fail_rate=1.0, fail_with=[Fault.status(429)])).values()
    found = told("--calls", "4", "--prompt", "Say it", "--max-tokens", "7", status=1)
    assert (a.received, b.received) == (4, 4)
    assert {request.json["messages"][0]["content"] for request in a.requests} == {"Say it"}
    assert {request.json["max_tokens"] for request in a.requests} == {7}
    good, bad = found["endpoints"][f"a/{MODEL}"], found["endpoints"][f"b/{MODEL}"]
    assert (good["sent"], good["ok"], good["failed"], good["error_rate"], good["errors"]) == (4, 4, 0, 0, [])
    assert (bad["sent"], bad["ok"], bad["failed"], bad["error_rate"]) == (4, 0, 4, 1)
    assert [(error["error"], error["count"]) for error in bad["errors"]] == [("RateLimitError", 4)]
    assert bad["p50_s"] is bad["mean_s"] is bad["ttft_p50_s"] is None
    assert 0 < good["p50_s"] <= good["p95_s"] <= good["p99_s"]
    assert good["mean_s"] <= good["p99_s"]
    assert (good["model"], good["provider"], good["stopped"], bad["stopped"]) == (MODEL, "a", None, None)


def test_the_calls_stand_in_the_ledger_with_their_tag_and_their_cost(serve: Serve) -> None:
    serve(a=Provider(), b=Provider())
    found = told("--calls", "3", "--endpoint", f"a/{MODEL}")
    assert list(found["endpoints"]) == [f"a/{MODEL}"]
    with open_ledger("spent.db") as ledger:
        rows = list(ledger.entries(None))
    assert len(rows) == 3
    assert {row.tags["probe"] for row in rows} == {"command"}
    assert found["cost_usd"] == pytest.approx(sum(row.cost_nano or 0 for row in rows) / 1e9)
    assert found["cost_usd"] > 0


def test_its_percentiles_are_those_of_the_ledger(serve: Serve) -> None:
    """Of 20 calls, so that half and 95 % of them are whole numbers."""
    serve(a=Provider(latency=Uniform(0.001, 0.02)))
    found = told("--calls", "20", "--concurrency", "1")["endpoints"][f"a/{MODEL}"]
    with open_ledger("spent.db") as ledger:
        latencies = sorted(row.latency for row in ledger.entries(None))
        totals = ledger.totals()
    assert [found["p50_s"], found["p95_s"], found["p99_s"]] == [latencies[9], latencies[18], latencies[19]]
    assert [totals.latency_p50, totals.latency_p95] == pytest.approx([latencies[9], latencies[18]], abs=1e-6)


def test_only_so_many_at_once(serve: Serve) -> None:
    (a,) = serve(a=Provider(latency=0.02)).values()
    told("--calls", "12", "--concurrency", "3")
    assert (a.received, a.peak_in_flight) == (12, 3)


def test_streams_have_a_time_to_the_first_token(serve: Serve) -> None:
    (a,) = serve(a=Provider(latency=0.02, tokens_per_second=200, answer=8)).values()
    found = told("--calls", "3", "--stream")["endpoints"][f"a/{MODEL}"]
    assert all(request.json["stream"] for request in a.requests)
    assert 0.02 <= found["ttft_p50_s"] < found["p50_s"]
    table = run("--calls", "1", "--stream").stdout
    assert "first token" in table.splitlines()[0]


def test_an_unreliable_endpoint_is_measured_to_the_end(serve: Serve) -> None:
    (a,) = serve(a=Provider()).values()
    a.script(Fault.status(503), Fault.html(), None, repeat=True)
    found = told("--calls", "60")["endpoints"][f"a/{MODEL}"]
    assert (found["sent"], found["ok"], found["stopped"]) == (60, 20, None)
    assert found["error_rate"] == pytest.approx(2 / 3)
    assert {error["error"]: error["count"] for error in found["errors"]} == {
        "InternalServerError": 20,
        "UpstreamProtocolError": 20,
    }


def test_a_dead_endpoint_is_left_alone_by_its_breaker(serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        dead = f'[providers.d]\nbase_url = "{address}"\n[[endpoints]]\nprovider = "d"\nmodel = "{MODEL}"\n'
        serve(dead, a=Provider())
        result = run("--calls", "40")
    assert result.exit_code == 1
    head, first, second, *below = result.stdout.splitlines()
    assert head.split() == ["endpoint", "calls", "ok", "errors", "p50", "p95", "p99", "mean", "cost", "why"]
    assert first.split()[:4] == [f"a/{MODEL}", "40", "40", "0%"]
    assert second.split()[2:4] == ["0", "100%"]
    assert "unreachable" in second
    assert int(second.split()[1]) < 10
    assert below[0].startswith(f"d/{MODEL}: unreachable: ")
    assert "not sent" in below[1]
    assert "breaker open" in below[1]


def test_a_key_that_is_refused_is_asked_with_once(serve: Serve) -> None:
    (a,) = serve(a=Provider(api_keys=["sk-" + "x" * 20])).values()
    result = run("--calls", "8", "--concurrency", "4")
    assert result.exit_code == 1
    assert a.received == 1
    assert "key refused 1, not sent 7" in result.stdout
    assert "Incorrect API key" in result.stdout


def test_it_waits_for_limits_outside_of_what_it_measures(serve: Serve) -> None:
    limited = "[policy]\nqueue_timeout = 10\n"
    (a,) = serve(limited, a=Provider()).values()
    text = Path("fastroute.toml").read_text()
    Path("fastroute.toml").write_text(text.replace("[[endpoints]]", "rpm = 1200\nburst = 1\n[[endpoints]]"))
    found = told("--calls", "5")["endpoints"][f"a/{MODEL}"]
    assert (a.received, found["ok"]) == (5, 5)
    spread = a.requests[-1].time - a.requests[0].time
    assert spread > 0.1
    assert found["mean_s"] < spread / 4


def test_a_budget_that_is_used_up_ends_it(serve: Serve) -> None:
    (a,) = serve('[[budgets]]\nname = "small"\nlimit = 0.0005\nwindow = "total"\n', a=Provider()).values()
    found = told("--calls", "50")["endpoints"][f"a/{MODEL}"]
    assert 0 < a.received < 50
    assert found["ok"] == found["sent"] == a.received
    assert "small" in found["stopped"]


# ----------------------------------------------------------------------------------------------- before it


def test_what_makes_no_sense_is_refused_and_nothing_is_sent(serve: Serve) -> None:
    (a,) = serve(a=Provider()).values()
    for arguments, words in [
        (["--endpoint", "a/gpt4.1"], f"did you mean a/{MODEL}?"),
        (["--endpoint", "xyz"], f"use one of a/{MODEL}"),
        (["--calls", "0"], "--calls"),
        (["--concurrency", "0"], "--concurrency"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--timeout", "0"], "--timeout"),
        (["--prompt", " "], "is empty"),
        (["--calls", "5000"], "add --yes"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert words in result.stderr
    assert a.received == 0


def test_without_a_configuration_it_says_what_to_do() -> None:
    result = run()
    assert result.exit_code == 1
    assert "OPENAI_API_KEY" in result.stderr


def test_tokens_at_unknown_prices_are_asked_about_by_their_number(serve: Serve) -> None:
    (a,) = serve('[[endpoints]]\nprovider = "a"\nmodel = "of-our-own"\n', a=Provider()).values()
    said = run("--calls", "2").stderr
    assert "4 calls to 2 endpoints, at most about $0.000308 and 58 tokens at unknown prices" in said
    result = run("--calls", "3000", "--endpoint", "a/of-our-own")
    assert result.exit_code == 2
    assert "add --yes" in result.stderr
    assert a.received == 4


@pytest.mark.parametrize(("answer", "status", "sent"), [(b"n\n", 1, 0), (b"y\n", 0, 30)])
def test_on_a_terminal_it_asks_before_it_spends(serve: Serve, answer: bytes, status: int, sent: int) -> None:
    (a,) = serve(a=Provider()).values()
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", "probe", "--calls", "30", "--max-tokens", "1000"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    try:
        while b"Continue? [y/N]" not in seen:
            seen += os.read(master, 4096)
        os.write(master, answer)
        while True:
            try:
                seen += os.read(master, 4096)
            except OSError:  # the other end is closed
                break
        assert child.wait(20) == status
    finally:
        child.kill()
        child.wait()
        os.close(master)
    assert a.received == sent
    assert (f"a/{MODEL}".encode() in seen) is bool(sent)


# ---------------------------------------------------------------------------------------------- interrupted


def begun(a: Provider, *arguments: str) -> subprocess.Popen[str]:
    """The command, when its third call is under way."""
    child = subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", "probe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        a.wait_until(lambda known: known.received == 3 and known.in_flight == 1, 20)
    except TimeoutError:
        child.kill()
        print(child.communicate())
        raise
    return child


def test_ctrl_c_shows_what_there_is_and_waits_for_calls_under_way(serve: Serve) -> None:
    (a,) = serve(a=Provider()).values()
    a.script(None, None, Fault.slow(1.0))
    with begun(a, "--json", "--calls", "50") as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert child.returncode == 130, err
    found = json.loads(out)
    assert (found["interrupted"], found["endpoints"][0]["ok"]) == (True, 2)
    assert "waiting for" in err
    assert "Traceback" not in err
    assert a.received == 3
    with open_ledger("spent.db") as ledger:
        assert [row.outcome for row in ledger.entries(None)] == ["ok"] * 3


def test_ctrl_c_again_leaves_them(serve: Serve) -> None:
    (a,) = serve(a=Provider()).values()
    a.script(None, None, Fault.black_hole())
    with begun(a, "--calls", "50") as child:
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert any("waiting for" in line for line in iter(child.stderr.readline, ""))
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    assert child.returncode == 130, err
    assert f"a/{MODEL}" in out
    assert "Traceback" not in err


# ----------------------------------------------------------------------------------------------------- sums


@given(st.lists(st.floats(0.001, 100), min_size=1))
def test_the_mean_is_not_below_the_least(values: list[float]) -> None:
    tally = EndpointTally(endpoint="e", calls=len(values), latencies=values)
    assert min(values) <= (tally.mean or 0) * (1 + 1e-12)


def test_nothing_measured_is_nothing_and_no_zero() -> None:
    tally = EndpointTally(endpoint="e", calls=3)
    assert (tally.mean, tally.percentile(50), tally.ttft, tally.error_rate) == (None,) * 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.ContentFilterError("x"), "refused"),
        (errors.EmptyResponse("x"), "malformed answer"),
        (errors.StreamTruncated("x"), "cut off"),
        (errors.ModelNotFoundError("x"), "not found"),
        (errors.Error("x"), "failed"),
    ],
)
def test_errors_are_called_by_what_they_are_nearest_to(error: errors.Error, kind: str) -> None:
    assert kind_of(error) == kind
