"""What is unknown after an attempt stays at the worst case; what surely was not charged costs nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson
import pytest
from loopback import counted

import fastroute
from fastroute.ledger.report import report, to_csv, to_json, to_table
from fastroute.providers.wordings import CHARGED
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
LIMITS = {"context_window": 100_000, "max_output_tokens": 8000}
HUGE = 10**12
FORMATS = ("openai", "anthropic", "gemini")


def tables(provider: Provider, ledger: Path, **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": str(ledger), "timeout": 10.0},
        "cache": {"enabled": False},
        "providers": {"p": {"base_url": provider.base_url, "format": more.pop("format", "openai")}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 2.0, **LIMITS}},
        "budgets": [{"name": "all", "limit": 1.0, "window": "total"}],
        "policy": {"max_attempts": 1, "idle_timeout": 0.2},
        **more,
    }


def ask(client: fastroute.Client, stream: bool, timeout: float | None, early: bool) -> Any:
    """The attempts of a call, however it ends."""
    wanted: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 1000}
    try:
        if stream:
            with client.chat.completions.create(stream=True, timeout=timeout, **wanted) as answer:
                for _ in answer:
                    if early:
                        break
            return answer.route.attempts
        reply = client.chat.completions.create(timeout=timeout, **wanted)
        assert isinstance(reply, fastroute.Completion)
        assert reply.route is not None
        return reply.route.attempts
    except fastroute.Error as error:
        return error.attempts


WORST, NOTHING, COST = "worst case", "nothing", "cost"

# what the provider does, and what the budget keeps of it; "early": the caller leaves the stream
PLAIN = [
    (Fault.slow(5.0), WORST),
    (Fault.truncated(), WORST),
    (Fault.reset("request"), WORST),
    (Fault.close("headers"), WORST),
    (None, COST),
    *((Fault.status(status), WORST) for status in CHARGED),
    *(
        (Fault.status(status), NOTHING)
        for status in (400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 502, 503, 529)
    ),
]
STREAMED = [
    (Fault.slow(5.0), WORST),
    (Fault.stream_cut(3), WORST),
    (Fault.stream_cut(3, "reset"), WORST),
    (Fault.stream_stall(3), WORST),
    (Fault.stream_error(3), WORST),
    (Fault.malformed_event(3), WORST),
    ("early", WORST),
    (Fault.status(500), NOTHING),
    (None, COST),
]
CASES = [(False, *case) for case in PLAIN] + [(True, *case) for case in STREAMED]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("stream", "fault", "kept"), CASES, ids=lambda value: str(value)[:40].replace(" ", "-")
)
def test_what_a_budget_keeps_of_an_attempt(
    format: str, stream: bool, fault: Any, kept: str, tmp_path: Path
) -> None:
    text = " ".join(f"word{n}" for n in range(40))
    with Provider(models=["m"], format=format, answer=Answer(text)) as provider:
        if fault not in (None, "early"):
            provider.script(fault)
        settings = tables(provider, tmp_path / "ledger.db", format=format)
        timeout = 0.3 if kept == WORST and "slow" in str(fault) else None
        with fastroute.Client(settings) as client:
            (attempt,) = ask(client, stream, timeout, fault == "early")
            (left,) = client.budgets()
            assert left.reserved_nano == 0
            assert left.spent_nano == counted([attempt])
            if kept == WORST:
                # 1000 output tokens at two dollars a million, and the most that the prompt may have.
                assert 2_000_000 < left.spent_nano < 2_100_000
                assert (attempt.usage_source, attempt.estimated) == ("estimated", True)
                assert attempt.cost_nano < left.spent_nano
            elif kept == NOTHING:
                assert (left.spent_nano, attempt.cost_nano, attempt.usage_source) == (0, 0, "none")
            else:
                assert left.spent_nano == attempt.cost_nano
                assert not attempt.estimated
        with fastroute.Client(settings) as client:  # a restart without the counters, by the ledger alone
            (again,) = client.budgets()
            assert again.spent_nano == left.spent_nano


@pytest.mark.parametrize("format", ["openai", "anthropic"])
@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": -1}])
def test_an_answer_without_a_usable_usage_keeps_the_worst_case(
    format: str, usage: Any, tmp_path: Path
) -> None:
    with Provider(models=["m"], format=format) as provider:
        provider.script(Fault.usage(usage))
        with fastroute.Client(tables(provider, tmp_path / "ledger.db", format=format)) as client:
            (attempt,) = ask(client, False, None, False)
            assert (attempt.outcome, attempt.estimated) == ("ok", True)
            assert 0 < attempt.cost_nano < 2_000_000 < attempt.budget_nano
            assert client.budgets()[0].spent_nano == attempt.budget_nano


def test_an_answer_at_a_tier_of_unknown_price_keeps_the_worst_case(tmp_path: Path) -> None:
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "service_tier": "scale",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
    }
    with Provider(models=["m"]) as provider:
        provider.script(Fault.status(200, answer))
        settings = tables(provider, tmp_path / "ledger.db")
        with fastroute.Client(settings) as client:
            (attempt,) = ask(client, False, None, False)
            assert (attempt.cost_nano, attempt.usage_source) == (None, "provider")
            assert client.budgets()[0].spent_nano == attempt.budget_nano > 2_000_000
        with fastroute.Client(settings) as client:
            assert client.budgets()[0].spent_nano == attempt.budget_nano


# an error that the provider sends in place of an answer, with the status of a gateway that gave up
IN_200 = [({"code": 524, "message": "timed out"}, WORST), ({"code": 503, "message": "busy"}, NOTHING)]


@pytest.mark.parametrize(("error", "kept"), IN_200)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_an_answer_is_judged_by_its_own_status(
    error: dict[str, Any], kept: str, stream: bool, tmp_path: Path
) -> None:
    with Provider(models=["m"]) as provider:
        body = {"error": error}
        events = b"data: " + orjson.dumps(body) + b"\n\n"
        provider.script(Fault.events(events) if stream else Fault.status(200, body))
        with fastroute.Client(tables(provider, tmp_path / "ledger.db")) as client:
            (attempt,) = ask(client, stream, None, False)
            assert attempt.maybe_billed is (kept == WORST)
            assert client.budgets()[0].spent_nano == (attempt.budget_nano or 0)
            assert bool(attempt.budget_nano) is (kept == WORST)


def test_a_refused_connection_costs_nothing(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        settings = tables(provider, tmp_path / "ledger.db")
    with fastroute.Client(settings) as client:
        (attempt,) = ask(client, False, None, False)
        assert (attempt.error, attempt.cost_nano, attempt.maybe_billed) == ("APIConnectionError", 0, False)
        assert client.budgets()[0].left_nano == 10**9


def test_a_name_that_does_not_resolve_costs_nothing(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        settings = tables(provider, tmp_path / "ledger.db")
    settings["providers"]["p"]["base_url"] = "https://nowhere.invalid/v1"
    with fastroute.Client(settings) as client:
        (attempt,) = ask(client, False, None, False)
        assert (attempt.cost_nano, attempt.maybe_billed) == (0, False)
        assert client.budgets()[0].left_nano == 10**9


@pytest.mark.parametrize("payer", ["with_options", "object"])
def test_whoever_pays_keeps_the_worst_case(payer: str, tmp_path: Path) -> None:
    class Account:
        """Pays for anything, and remembers what for."""

        def __init__(self) -> None:
            self.reserved: list[int | None] = []
            self.settled: list[int | None] = []

        def reserve(self, attempt: str, amount_nano: int | None) -> None:
            self.reserved.append(amount_nano)

        def settle(self, attempt: str, cost_nano: int | None) -> None:
            self.settled.append(cost_nano)

    with Provider(models=["m"]) as provider:
        provider.script(Fault.truncated())
        with fastroute.Client(tables(provider, tmp_path / "ledger.db", budgets=[])) as client:
            account = Account()
            paid = client.with_options(budget=1.0 if payer == "with_options" else account)
            (attempt,) = ask(paid, False, None, False)
            if payer == "object":
                assert account.settled == account.reserved == [attempt.budget_nano]
            else:
                (left,) = paid.budgets()
                assert (left.name, left.spent_nano, left.reserved_nano) == (
                    "with_options",
                    attempt.budget_nano,
                    0,
                )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_usage_beyond_any_window_is_not_believed(
    format: str, stream: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Provider(models=["m"], format=format) as provider:
        answers = [Answer("hi", prompt_tokens=HUGE), Answer("hi", completion_tokens=HUGE), Answer("hi")]
        provider.answer = lambda question: answers.pop(0)
        settings = tables(provider, tmp_path / "ledger.db", format=format)
        settings["providers"]["p"] |= {"tpm": 1_000_000, "token_burst": 1_000_000}
        with fastroute.Client(settings) as client:
            attempts = [*ask(client, stream, None, False), *ask(client, stream, None, False)]
            assert [attempt.cost_nano for attempt in attempts] == [None, None]
            assert [attempt.outcome for attempt in attempts] == ["ok", "ok"]
            (left,) = client.budgets()
            assert 4_000_000 < left.spent_nano == counted(attempts) < 4_200_000
            # Neither the token limit nor the estimates have learned from it.
            assert client.stats()["endpoints"]["p/m"]["available_tokens"] > 900_000
            assert client.plan(model="m", messages=MESSAGES).estimate.input_tokens < 100
            assert ask(client, stream, None, False)[0].usage_source == "provider"
            assert client.ledger.totals().unknown_cost == 2
    said = [record for record in caplog.records if "impossible" in record.getMessage()]
    assert len(said) == 1
    assert "p/m" in said[0].getMessage()


def test_without_a_window_only_an_absurd_usage_is_not_believed(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        answers = [Answer("hi", prompt_tokens=100_000_000), Answer("hi", prompt_tokens=100_000_001)]
        provider.answer = lambda question: answers.pop(0)
        settings = tables(provider, tmp_path / "ledger.db", budgets=[])
        settings["models"]["m"] = {"input_price": 1.0, "output_price": 2.0, "max_output_tokens": 8}
        with fastroute.Client(settings) as client:
            known, absurd = (ask(client, False, None, False)[0].cost_nano for _ in range(2))
            assert known is not None
            assert known > 10**11
            assert absurd is None


def test_a_large_usage_within_reason_is_believed(tmp_path: Path) -> None:
    # A catalogue may be older than the model, and several answers are longer than one.
    with Provider(models=["m"]) as provider:
        most = 10 * LIMITS["context_window"]
        provider.answer = Answer("hi", prompt_tokens=most, completion_tokens=most)
        with fastroute.Client(tables(provider, tmp_path / "ledger.db")) as client:
            (attempt,) = ask(client, False, None, False)
            assert attempt.cost_nano == most * 3000


def test_reports_say_what_is_estimated(tmp_path: Path) -> None:
    with Provider(models=["m"]) as provider:
        provider.script(None, Fault.truncated())
        with fastroute.Client(tables(provider, tmp_path / "ledger.db")) as client:
            ask(client, False, None, False)
            (attempt,) = ask(client, False, None, False)
            made = report(client.ledger)
    totals = made.totals
    assert (totals.estimated, totals.estimated_nano) == (1, attempt.cost_nano)
    assert totals.budget_nano - totals.cost_nano == attempt.budget_nano - attempt.cost_nano
    assert "1 attempt(s) ended without a usage" in to_table(made)
    assert f'"budget_nano": {totals.budget_nano}' in to_json(made)
    header, line = to_csv(made).splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert row["estimated"] == "1"
    assert row["estimated_nano"] == str(attempt.cost_nano)
    assert row["budget_nano"] == str(totals.budget_nano)
