"""Limits of a caller's key: what a request counts, what is left, and limits that have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateways import Served, admit, error_of

from fastroute import _core, errors, events
from fastroute.gateway.keys import Caller
from fastroute.gateway.limits import KeyAllowance, KeyBudgets, KeyLimits, LimitReached, Permit, tokens_of
from fastroute.providers.media import USUAL_TOKENS
from fastroute.state.tokens import LEAST_OUTPUT, TOKENS_PER_MESSAGE
from fastroute.testing import Answer

Serve = Callable[..., Served]
NANO = 10**9
TEXT = "x" * 300
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}}


def user(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize(
    ("messages", "params", "tokens"),
    [
        (user(TEXT), {}, 100 + TOKENS_PER_MESSAGE + LEAST_OUTPUT),
        (user(TEXT, TEXT), {}, 200 + 2 * TOKENS_PER_MESSAGE + LEAST_OUTPUT),
        (user(TEXT), {"max_tokens": 7}, 100 + TOKENS_PER_MESSAGE + 7),
        (user(TEXT), {"max_completion_tokens": 7}, 100 + TOKENS_PER_MESSAGE + 7),
        (user("语" * 400), {"max_tokens": 1}, 300 + TOKENS_PER_MESSAGE + 1),  # three bytes each
        (user("\ud83d" * 3), {"max_tokens": 1}, 3 + TOKENS_PER_MESSAGE + 1),  # half a pair is not UTF-8
        (user([{"type": "text", "text": TEXT}]), {"max_tokens": 1}, 100 + TOKENS_PER_MESSAGE + 1),
        (user([{"type": "refusal", "refusal": TEXT}]), {"max_tokens": 1}, 100 + TOKENS_PER_MESSAGE + 1),
        (user([{"type": "text", "text": TEXT}, IMAGE]), {"max_tokens": 1}, 1101 + TOKENS_PER_MESSAGE),
        (user([IMAGE, IMAGE], [FILE]), {"max_tokens": 1}, 6001 + 2 * TOKENS_PER_MESSAGE),
        (user(None), {"max_tokens": 1}, TOKENS_PER_MESSAGE + 1),  # a message with tool calls only
        (user([{"type": "text"}]), {"max_tokens": 1}, TOKENS_PER_MESSAGE + 1),
    ],
)
def test_what_a_request_counts(messages: list[dict[str, Any]], params: dict[str, Any], tokens: int) -> None:
    assert (USUAL_TOKENS["image"], USUAL_TOKENS["file"]) == (1000, 4000)
    assert tokens_of(messages, params) == tokens


@pytest.mark.parametrize(
    ("content", "tpm", "status"),
    [
        (TEXT, 100, 413),  # 108 of input, and one of output
        (TEXT, 109, 200),
        ([{"type": "text", "text": TEXT}], 100, 413),
        ([IMAGE], 1000, 413),
        ([IMAGE], 1009, 200),
    ],
)
def test_the_prompt_counts_toward_a_keys_tokens_a_minute(
    serve: Serve, content: Any, tpm: int, status: int
) -> None:
    served = serve(Caller("web", tpm=tpm), answer=Answer("ok", prompt_tokens=tpm, completion_tokens=1))
    body = {"model": "gpt-4.1", "messages": user(content), "max_tokens": 1}
    response = served.post(body)
    assert response.status_code == status
    if status == 413:
        assert error_of(response)["code"] == "request_too_large_for_limit"
        assert not served.provider.requests
        assert response.headers["x-ratelimit-remaining-tokens"] == str(tpm)
    else:
        # What it really took, which is one more than the limit.
        assert response.headers["x-ratelimit-remaining-tokens"] == "0"
        assert served.post(body).status_code == 429


# ------------------------------------------------------------------------------------------------- the limits


@pytest.fixture
def limits() -> KeyLimits:
    return KeyLimits(_core.Segment(256))


def reached(limits: KeyLimits, caller: Caller, tokens: int) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        admit(limits, caller, tokens)
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value


def test_the_limit_that_is_reached_is_named_with_its_time(limits: KeyLimits) -> None:
    caller = Caller("web", rpm=60, tpm=600)
    admit(limits, caller, 590)
    error = reached(limits, caller, 20)
    assert "tokens per minute" in error.message
    assert error.retry_after == pytest.approx(1.0, abs=0.5)  # ten more at ten a second
    for _ in range(8):  # the one that was refused counts
        admit(limits, caller, 0)
    error = reached(limits, caller, 0)
    assert "requests per minute" in error.message
    assert error.retry_after == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize(
    ("caller", "tokens", "says"),
    [
        (Caller("none", rpm=0), 0, "requests per minute"),
        (Caller("no-tokens", tpm=0), 1, "tokens per minute"),
        (Caller("neither", rpm=0, tpm=0), 1, "requests per minute"),
        (Caller("no-requests", rpm=0, tpm=10), 20, "requests per minute"),
    ],
    ids=lambda value: value.name if isinstance(value, Caller) else str(value),
)
def test_a_limit_of_nothing_admits_nothing_at_any_time(
    limits: KeyLimits, caller: Caller, tokens: int, says: str
) -> None:
    error = reached(limits, caller, tokens)
    assert says in error.message
    assert error.retry_after is None


def test_a_request_above_the_limit_is_told_so(limits: KeyLimits) -> None:
    with pytest.raises(
        errors.RequestTooLargeForLimit, match="needs about 601 tokens; the key's limit is 600"
    ):
        admit(limits, Caller("web", tpm=600), 601)
    admit(limits, Caller("web", tpm=600), 600)


def test_tokens_do_not_matter_to_a_limit_of_requests(limits: KeyLimits) -> None:
    caller = Caller("web", rpm=60)
    admit(limits, caller, 10**9).settle(10**9)
    assert dict(limits.headers(caller)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1.000s",
    }


def test_what_is_left_is_told_as_openai_does(limits: KeyLimits) -> None:
    caller = Caller("web", rpm=60, tpm=600)
    assert limits.headers(Caller("free")) == []
    assert limits.headers(caller) == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "10"),
        ("x-ratelimit-reset-requests", "0.000s"),
        ("x-ratelimit-limit-tokens", "600"),
        ("x-ratelimit-remaining-tokens", "600"),
        ("x-ratelimit-reset-tokens", "0.000s"),
    ]
    permit = admit(limits, caller, 300)
    found = dict(limits.headers(caller))
    assert found["x-ratelimit-remaining-requests"] == "9"
    assert 300 <= int(found["x-ratelimit-remaining-tokens"]) <= 310
    assert 29.0 <= float(found["x-ratelimit-reset-tokens"].rstrip("s")) <= 30.0
    permit.settle(1200)  # the debt is not shown as less than nothing
    permit.settle(0)  # counts once
    found = dict(limits.headers(caller))
    assert found["x-ratelimit-remaining-tokens"] == "0"
    assert found["x-ratelimit-reset-tokens"] == "60.000s"
    few = Caller("few", rpm=3)  # less than one each ten seconds, and still one at once
    assert dict(limits.headers(few))["x-ratelimit-remaining-requests"] == "1"
    nothing = dict(limits.headers(Caller("none", rpm=0)))
    assert nothing == {
        "x-ratelimit-limit-requests": "0",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "0.000s",
    }


def test_a_state_without_room_tells_nothing() -> None:
    segment = _core.Segment(64)
    for number in range(segment.cells - segment.used):
        _core.Bucket(segment, f"another {number}", 1, 1)
    assert KeyLimits(segment).headers(Caller("web", rpm=1)) == []


def test_a_key_that_is_made_anew_with_other_limits_has_these(limits: KeyLimits) -> None:
    for _ in range(5):
        admit(limits, Caller("web", rpm=600), 60)
    admit(limits, Caller("web", rpm=600, tpm=60), 60)
    reached(limits, Caller("web", rpm=600, tpm=60), 60)
    assert "requests" in reached(limits, Caller("web", rpm=6, tpm=60), 0).message


def test_a_permit_without_a_limit_settles_nothing() -> None:
    Permit(Caller("web"), None).settle(10)


# ---------------------------------------------------------------------------------------------------- budgets


class Kept:
    """The budgets of keys, and what they told."""

    def __init__(self) -> None:
        self.heard: list[events.Event] = []
        self.freed: list[str] = []
        hooks = events.Hooks()
        hooks.add(self.heard.append)
        self.budgets = KeyBudgets(_core.Segment(256), lambda since, tags: 0, hooks, self.freed.append)

    def purse(self, caller: Caller) -> KeyAllowance:
        budgets = self.budgets.of(caller)
        assert budgets is not None
        return KeyAllowance(budgets, caller.name, 60)


def test_a_keys_money_is_reserved_settled_once_and_shown() -> None:
    kept = Kept()
    web, other = Caller("web", budgets={"day": 1.0}), Caller("other", budgets={"day": 1.0})
    purse = kept.purse(web)
    purse.reserve("a", NANO // 2)
    purse.reserve("b", NANO // 4)
    purse.settle("a", NANO // 4)
    purse.settle("a", NANO)
    purse.settle("unknown", NANO)
    rows = kept.budgets.snapshot([web, Caller("free"), other])
    assert [(row["budget"], row["value"], row["limit_nano"]) for row in rows] == [
        ("key web, day", "web", NANO),
        ("key other, day", "other", NANO),
    ]
    assert [(row["spent_nano"], row["reserved_nano"]) for row in rows] == [(NANO // 4, NANO // 4), (0, 0)]
    purse.settle("b", None)  # unknown: the worst case
    assert kept.budgets.snapshot([web])[0]["spent_nano"] == NANO // 2
    assert len(kept.freed) == 2
    assert all("web" in line for line in kept.freed)
    with pytest.raises(errors.BudgetExceeded):
        purse.reserve("c", NANO)
    assert [type(event).__name__ for event in kept.heard] == ["BudgetAlert", "BudgetExceededEvent"]


def test_a_key_that_is_made_anew_with_other_budgets_has_these() -> None:
    kept = Kept()
    poor, rich = Caller("web", budgets={"day": 1.0}), Caller("web", budgets={"day": 5.0})
    kept.purse(poor).reserve("a", NANO)
    with pytest.raises(errors.BudgetExceeded):
        kept.purse(poor).reserve("b", NANO)
    kept.purse(rich).reserve("b", 4 * NANO)
    assert kept.budgets.of(rich) is kept.budgets.of(rich)
    assert kept.budgets.of(Caller("web")) is None
