"""A function as classifier: whatever it does, the call continues within the time limit."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from children import ended, forked

import fastroute
from fastroute.events import ClassifierFailed
from fastroute.routing import function_classifier
from fastroute.testing import Provider

ASKED = [{"role": "user", "content": "How are you?"}]
LATE = contextvars.ContextVar("LATE", default="")


def tables(base_url: str = "http://127.0.0.1:1/v1", **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": base_url}},
        "endpoints": [{"provider": "p", "model": model} for model in ("small", "usual", "large")],
        "tiers": {"budget": ["small"], "standard": ["usual"], "premium": ["large"]},
        **more,
    }


class Asked:
    """A client whose classifier is a function, and what was heard of its failures."""

    def __init__(self, ask: Any, **more: Any) -> None:
        self.client = fastroute.Client(tables(**more), classifier=ask)
        self.heard: list[ClassifierFailed] = []
        self.client.on(self.heard.append, ClassifierFailed)

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def plan(self, **call: Any) -> Any:
        return self.client.plan(messages=ASKED, **call)

    @property
    def stats(self) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = self.client.stats()["classifier"]
        return stats


def says(value: object) -> Callable[..., object]:
    def ask(messages: Any, params: Any) -> object:
        return value

    return ask


def raises(messages: Any, params: Any) -> object:
    raise ValueError(messages[0]["content"])


class Number:
    """As numpy's: a number to float(), and no kind of Python's own."""

    def __float__(self) -> float:
        return 0.9


@pytest.mark.parametrize(
    ("said", "level", "confidence", "tier"),
    [
        ("expert", "expert", 1.0, "premium"),
        ("trivial", "trivial", 1.0, "budget"),
        ("premium", "premium", 1.0, "premium"),
        (("expert", 0.9), "expert", 0.9, "premium"),
        (("expert", 0.69), "expert", 0.69, "standard"),
        (("expert", 0), "expert", 0.0, "standard"),
        (("expert", Number()), "expert", 0.9, "premium"),
        ({"trivial": 0.1, "expert": 0.8, "simple": 0.1}, "expert", 0.8, "premium"),
        ({"trivial": 0.4, "expert": 0.6}, "expert", 0.6, "standard"),
    ],
)
def test_what_it_says_is_the_class(said: object, level: str, confidence: float, tier: str) -> None:
    with Asked(says(said)) as asked:
        plan = asked.plan()
        assert (plan.judgement.level, plan.tier) == (level, tier)
        found = plan.classification
        assert (found.level, found.confidence, found.classifier) == (level, confidence, "ask")
        assert f"({found.classifier}" in str(plan)
        assert asked.heard == []
        assert asked.stats == {"asked": 1, "failed": {}, "hanging": 0}


@pytest.mark.parametrize(
    ("ask", "kind", "reason"),
    [
        (raises, "raised", "it raised ValueError"),
        (says("impossible"), "unknown-level", "an unknown level; known: budget, standard"),
        (says(("impossible", 0.9)), "unknown-level", "an unknown level"),
        (says({"impossible": 0.9, "expert": 0.1}), "unknown-level", "an unknown level"),
        (says(("expert", 0.9, 1)), "unknown-level", "a value of type tuple"),
        (says(None), "unknown-level", "a value of type NoneType"),
        (says(math.nan), "unknown-level", "a value of type float"),
        (says(("expert", math.nan)), "bad-score", "a confidence that is not a number from 0 to 1"),
        (says(("expert", -0.1)), "bad-score", "not a number from 0 to 1"),
        (says(("expert", True)), "bad-score", "not a number from 0 to 1"),
        (says(("expert", "0.9")), "bad-score", "not a number from 0 to 1"),
        (says(("expert", 10**400)), "bad-score", "not a number from 0 to 1"),
        (says({"expert": math.nan, "trivial": 0.9}), "bad-score", "a score that is not a number"),
        (says({"expert": math.inf}), "bad-score", "a score that is not a number"),
        (says({"expert": None}), "bad-score", "a score that is not a number"),
        (says({}), "bad-score", "it returned no scores"),
        (says({"expert": 0.5, "trivial": 0.5}), "tie", "it gave expert, trivial the same score"),
    ],
)
def test_182_what_cannot_be_used_leads_to_the_default_tier_and_is_counted(
    ask: Any, kind: str, reason: str
) -> None:
    with Asked(ask) as asked:
        plan = asked.plan()
        assert (plan.tier, plan.judgement.level) == ("standard", None)
        found = plan.classification
        assert (found.level, found.confidence) == ("unknown", 0.0)
        assert reason in found.reason
        assert "How are you" not in found.reason
        assert asked.stats["failed"] == {kind: 1}
        (event,) = asked.heard
        assert (event.kind, event.classifier) == (kind, ask.__name__)
        assert reason in event.reason


@pytest.fixture
def hanging() -> Iterator[Callable[..., object]]:
    """A function that hangs until the test is over."""
    over = threading.Event()

    def hang(messages: Any, params: Any) -> object:
        over.wait()
        return "expert"

    hang.over = over  # type: ignore[attr-defined]
    yield hang
    over.set()


def test_182_one_that_hangs_costs_a_call_its_budget_and_no_more(hanging: Any) -> None:
    with Asked(hanging) as asked:
        assert asked.client.config.policy.classifier_timeout == 0.05
        plan = asked.plan()  # comes back, while the function never does
        assert plan.tier == "standard"
        assert plan.classification.reason.endswith("it took longer than 50 ms")
        assert asked.stats == {"asked": 1, "failed": {"timeout": 1}, "hanging": 1}
        hanging.over.set()


def test_182_when_it_hangs_everywhere_calls_do_not_wait_for_it_any_more(
    hanging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_classifier, "MOST_THREADS", 2)
    with Asked(hanging, policy={"classifier_timeout": 0.01}) as asked:
        for _ in range(4):
            assert asked.plan().tier == "standard"
        assert asked.stats == {"asked": 4, "failed": {"timeout": 2, "busy": 2}, "hanging": 2}
        hanging.over.set()
        threads = [thread for thread in threading.enumerate() if thread.name == "fastroute-classifier"]
        # They come back to work once the function does.
        while asked.stats["hanging"]:
            threads[0].join(0.001)
        assert asked.plan().tier == "premium"
        assert len(threads) == 2


def test_a_question_that_nobody_waits_for_any_more_is_not_asked(
    hanging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_classifier, "MOST_THREADS", 1)
    ran: list[str] = []

    def ask(messages: Any, params: Any) -> object:
        ran.append(params["user"])
        return hanging(messages, params) if params["user"] == "first" else "expert"

    with Asked(ask, policy={"classifier_timeout": 5}) as asked:
        first = threading.Thread(target=asked.plan, kwargs={"user": "first"})
        first.start()
        while ran != ["first"]:
            first.join(0.001)
        # The one thread is taken but not late yet, so the second waits in line and gives up there.
        monkeypatch.setattr(asked.client.runtime.generation.planner, "classifier_timeout", 0.01)
        assert asked.plan(user="second").tier == "standard"
        hanging.over.set()
        first.join()
        monkeypatch.setattr(asked.client.runtime.generation.planner, "classifier_timeout", 5)
        assert asked.plan(user="third").tier == "premium"
        assert ran == ["first", "third"]


def test_it_is_asked_only_where_the_class_decides() -> None:
    def never(messages: Any, params: Any) -> object:
        raise AssertionError

    with Asked(never) as asked:
        assert asked.plan(model="large").classification.level == "trivial"
        assert asked.plan(model="premium").tier == "premium"
        assert asked.plan(route={"tier": "premium"}).tier == "premium"
        assert asked.stats["asked"] == 0
    with Asked(never, policy={"fixed_model": "usual"}) as asked:
        assert asked.plan().classification.level == "trivial"
        assert asked.stats["asked"] == 0


def test_it_sees_the_parameters_and_the_callers_context() -> None:
    seen: list[object] = []

    def ask(messages: Any, params: Any) -> object:
        seen.append((messages, dict(params), LATE.get()))
        return "expert"

    token = LATE.set("tonight")
    try:
        with Asked(ask) as asked:
            asked.plan(temperature=0)
    finally:
        LATE.reset(token)
    assert seen == [(ASKED, {"temperature": 0}, "tonight")]


def test_failures_are_a_metric_of_the_gateway() -> None:
    from fastroute.gateway.stats import prometheus

    with Asked(raises) as asked:
        assert b"classifier_failures_total{" not in prometheus(asked.client, {})
        asked.plan()
        asked.plan()
        text = prometheus(asked.client, {})
    assert b'\nfastroute_classifier_failures_total{kind="raised"} 2\n' in text


def test_a_call_whose_classifier_fails_is_answered() -> None:
    with (
        Provider(models=["small", "usual", "large"]) as provider,
        fastroute.Client(tables(provider.base_url), classifier=raises) as client,
    ):
        reply = client.chat.completions.create(messages=ASKED)
        assert reply.route is not None
        assert (reply.route.model, reply.route.tier) == ("usual", "standard")
        assert reply.route.attempts[0].level is None


def test_a_forked_child_asks_in_threads_of_its_own() -> None:
    with Asked(says("expert")) as asked:
        assert asked.plan().tier == "premium"

        def ask() -> None:
            assert asked.plan().tier == "premium"

        assert ended(forked(ask)) == 0


def test_a_closed_client_has_no_threads_left_that_could_be_asked() -> None:
    with Asked(says("expert")) as asked:
        asked.plan()
        threads = [thread for thread in threading.enumerate() if thread.name == "fastroute-classifier"]
    assert threads
    for thread in threads:
        thread.join()
    assert asked.plan().tier == "standard"
    assert asked.stats["failed"] == {"busy": 1}


async def waited_for(messages: Any, params: Any) -> str:
    return "expert"


@pytest.mark.parametrize("ask", [waited_for, Number, "five-level"], ids=["coroutine", "class", "text"])
def test_what_cannot_be_asked_is_refused_at_once(ask: Any) -> None:
    with pytest.raises(fastroute.ConfigError, match=r"^classifier: "):
        fastroute.Client(tables(), classifier=ask)


def test_182_a_rule_set_has_no_ties_and_the_first_rule_that_holds_decides() -> None:
    rules = {
        "levels": ["low", "high"],
        "rules": [{"level": "high", "when": ["chars >= 0"]}, {"level": "low", "when": ["chars >= 0"]}],
        "otherwise": {"level": "low"},
    }
    own: dict[str, Any] = {"policy": {"classifier": "own"}, "classifiers": {"own": rules}}
    with fastroute.Client(tables(**own)) as client:
        assert client.plan(messages=ASKED).level == "high"
