"""The learned classifier on the way of calls: tiers, ledger, reloads, forks, `check` and `explain`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from children import ended, forked
from click.testing import CliRunner
from router_files import PROMPTS, write_router
from served import Serve, in_threads

from fastroute import Client, errors, events
from fastroute.cli.group import cli
from fastroute.gateway.stats import prometheus
from fastroute.routing.learned import WARM_UP
from fastroute.routing.router_file import ForecastRow
from fastroute.testing import Provider

TIERS = """
[[endpoints]]
provider = "a"
model = "big"
[models.big]
input_price = 10
output_price = 20
[tiers]
budget = ["test-model"]
standard = ["test-model"]
premium = ["big"]
[policy.classes]
weak = "budget"
strong = "premium"
"""
FORECAST = tuple(
    ForecastRow(
        share=share,
        quality=(quality, quality - 0.025, quality + 0.025),
        against_strong=(-0.02, -0.04, 0.0),
        lift=(0.03, 0.01, 0.05),
        cost=(1.5, 1.4, 1.6),
    )
    for share, quality in ((0.1, 0.7), (0.4, 0.725), (0.9, 0.75))
)
POLICY = 'classifier = "learned"'


def tables(*learned: str) -> dict[str, str]:
    return {"policy": POLICY, "tables": "\n".join([TIERS, "[learned]", *learned])}


def ask(served: Any, text: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return served.client.chat.completions.create(model="auto", messages=messages)


@pytest.fixture
def router(tmp_path: Path) -> Path:
    return write_router(tmp_path / "router.frl")


def test_each_level_is_served_by_its_tier_and_recorded(
    serve: Serve, router: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROUTE_LEDGER", str(tmp_path / "spent.db"))
    served = serve(Provider(answer=lambda request: "hello"), **tables('file = "router.frl"'))
    scores = {}
    for text in PROMPTS[:20]:
        route = ask(served, text).route
        found = route.classification
        assert (found.level, route.tier) in {("weak", "budget"), ("strong", "premium")}
        assert found.matches == {}
        (attempt,) = route.attempts
        assert (attempt.level, attempt.score) == (found.level, found.score)
        scores[attempt.id] = found.score
    assert ask(served, "").route.tier == "premium"
    served.client.ledger.flush()
    entries = served.client.ledger.entries()
    assert {entry.id: entry.score for entry in entries[1:]} == scores
    assert (entries[0].score, entries[0].level) == (None, "strong")
    figures = served.client.stats()["learned"]
    assert (figures["calls"], figures["scored"], figures["expected"]) == (21, 20, 0.5)


def test_a_rule_set_records_no_score(serve: Serve) -> None:
    served = serve()
    assert served.ask().route.attempts[0].score is None
    assert served.client.stats()["learned"] is None


def test_its_traffic_is_a_metric_of_the_gateway(serve: Serve, router: Path) -> None:
    served = serve(**tables('file = "router.frl"', "share = 0.25"))
    assert b"fastroute_learned_unfamiliar_share" not in prometheus(served.client, {})
    for text in (*PROMPTS[:3], "Wie spät ist es?"):
        ask(served, text)
    lines = prometheus(served.client, {}).decode().splitlines()
    assert {
        "fastroute_learned_calls 4",
        "fastroute_learned_strong_share_expected 0.25",
        "fastroute_learned_unfamiliar_share 0.25",
    } <= set(lines)


def test_the_plan_names_words_of_the_prompt(serve: Serve, router: Path) -> None:
    served = serve(**tables('file = "router.frl"'))
    plan = served.client.plan(model="auto", messages=[{"role": "user", "content": PROMPTS[4]}])
    words = [word for group in plan.classification.matches.values() for word in group]
    assert words
    assert all(word in PROMPTS[4] for word in words)
    assert words[0] in str(plan)


def test_what_is_unfamiliar_can_go_to_the_default_tier(serve: Serve, router: Path) -> None:
    served = serve(**tables('file = "router.frl"', 'unfamiliar = "default"'))
    route = ask(served, "Wie spät ist es in Zürich?").route
    assert (route.classification.level, route.tier) == ("unfamiliar", "standard")


def test_the_prior_sends_its_share_to_strong_after_the_warm_up(serve: Serve) -> None:
    served = serve(**tables("share = 0.3"))
    for number in range(WARM_UP):
        assert ask(served, PROMPTS[number % 101]).route.tier == "premium"
    tiers = [ask(served, text).route.tier for text in PROMPTS]
    assert tiers.count("premium") / len(tiers) == pytest.approx(0.3, abs=0.08)


def test_a_reload_swaps_the_file_and_a_bad_one_leaves_the_old_in_force(serve: Serve, router: Path) -> None:
    served = serve(**tables('file = "router.frl"'))
    write_router(router, threshold=1e6)
    assert served.client.reload().changed == ("learned.file",)
    assert {ask(served, text).route.tier for text in PROMPTS[:20]} == {"budget"}
    content = router.read_bytes()
    for bad in (content[:-1], b"", b"[learned]", content[:100] + b"\0" + content[101:]):
        router.write_bytes(bad)
        with pytest.raises(errors.ConfigError, match=r"learned\.file"):
            served.client.reload()
        assert ask(served, PROMPTS[0]).route.tier == "budget"
    write_router(router, accepted=False, reason="no lift")
    with pytest.raises(errors.ConfigError, match="was refused"):
        served.client.reload()
    write_router(router, threshold=-1e6)
    served.client.reload()
    assert {ask(served, text).route.tier for text in PROMPTS[:20]} == {"premium"}


def test_a_changed_file_is_noticed(serve: Serve, router: Path) -> None:
    served = serve(top='reload = "change"', **tables('file = "router.frl"'))
    write_router(router, threshold=1e6)
    assert isinstance(served.event(), events.ConfigReloaded)
    assert {ask(served, text).route.tier for text in PROMPTS[:20]} == {"budget"}


def test_reloads_under_load_serve_every_call_by_a_whole_file(serve: Serve, router: Path) -> None:
    served = serve(**tables('file = "router.frl"'))
    thresholds = (1e6, -1e6)

    def work() -> None:
        for number in range(60):
            route = ask(served, PROMPTS[number]).route
            assert (route.classification.level, route.tier) in {("weak", "budget"), ("strong", "premium")}

    threads, failed = in_threads(4, work)
    for number in range(10):
        write_router(router, threshold=thresholds[number % 2])
        served.client.reload()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {ask(served, text).route.tier for text in PROMPTS[:20]} == {"premium"}


def test_a_forked_child_routes_by_the_counts_of_its_parent(serve: Serve) -> None:
    served = serve(**tables("share = 0.5"))
    for number in range(WARM_UP - 1):
        ask(served, PROMPTS[number % 101])

    def child() -> None:
        ask(served, PROMPTS[0])
        assert served.client.stats()["learned"]["calls"] == WARM_UP
        tiers = [ask(served, text).route.tier for text in PROMPTS]
        assert {"budget", "premium"} == set(tiers)

    assert ended(forked(child)) == 0
    ask(served, PROMPTS[0])
    assert served.client.stats()["learned"]["threshold"] is not None


# ---------------------------------------------------------------------------------------------- commands


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("header", "status", "said"),
    [
        ({}, 0, "50% of the calls to strong"),
        (
            {"accepted": False, "forced": True, "reason": "few labels"},
            0,
            "used although it was not accepted: few labels",
        ),
        ({"accepted": False, "reason": "few labels"}, 1, "was refused (few labels)"),
        ({"strong": "huge"}, 0, "calibrated with huge as strong"),
        (
            {"forecast": FORECAST},
            0,
            "forecast for 40%: quality 0.725 (0.700 to 0.750), about $1.50 a thousand calls",
        ),
    ],
)
def test_check_says_what_is_known_of_the_file(
    serve: Serve, router: Path, header: dict[str, Any], status: int, said: str
) -> None:
    served = serve(**tables('file = "router.frl"'))
    write_router(router, **header)
    code, output = run("check", str(served.path))
    assert (code, said in output) == (status, True), output


def test_check_says_that_the_traffic_has_changed(serve: Serve, router: Path, tmp_path: Path) -> None:
    served = serve()
    served.write(top=f'state = "{tmp_path}/state"', **tables('file = "router.frl"'))
    assert "calls counted" not in run("check", str(served.path))[1]
    assert not (tmp_path / "state").exists()

    def child() -> None:
        with Client(served.path) as client:
            for _ in range(1000):
                client.plan(model="auto", messages=[{"role": "user", "content": "Wie spät?"}])

    assert ended(forked(child)) == 0
    before = sorted(os.listdir(tmp_path))
    code, output = run("check", str(served.path))
    assert code == 0, output
    assert "1,000 calls counted" in output
    assert "100% of the last 1000 calls are unfamiliar" in output
    assert sorted(os.listdir(tmp_path)) == before


def test_explain_shows_level_score_share_and_words(serve: Serve, router: Path, tmp_path: Path) -> None:
    served = serve(**tables('file = "router.frl"'))
    code, output = run("explain", "--config", str(served.path), "--json", "-m", "auto", PROMPTS[3])
    assert code == 0, output
    found = json.loads(output)["class"]
    assert found["classifier"] == "learned"
    assert "for 50% of the calls to strong" in found["reason"]
    assert all(word in PROMPTS[3] for words in found["matches"].values() for word in words)
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in PROMPTS]
    prompts.write_text("\n".join(lines))
    code, output = run("explain", "--config", str(served.path), "--json", "--file", str(prompts))
    assert code == 0, output
    assert json.loads(output)["levels"]["strong"]["share"] == pytest.approx(0.5, abs=0.05)
