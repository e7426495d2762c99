"""The retry policy's verdicts and pauses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import _core, errors
from fastroute.calls.retry import Action, CoreOutcome, RetryPolicy
from fastroute.config import Policy
from fastroute.errors import Blame
from fastroute.state.endpoints import BlockReason

# ------------------------------------------------------------------------------------------------- verdicts

POLICY = RetryPolicy()


def blame_of(error: BaseException) -> str:
    return error.blame.value if isinstance(error, errors.APIError) else ""


def status(code: int, **rest: object) -> errors.APIStatusError:
    return errors.for_status(code)("x", status_code=code, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "action", "outcome"),
    [
        (errors.APIConnectionError(), Action.RETRY, CoreOutcome.FAILURE),
        (errors.APITimeoutError(), Action.RETRY, CoreOutcome.FAILURE),
        (errors.UpstreamProtocolError(), Action.RETRY, CoreOutcome.FAILURE),
        (errors.UpstreamTruncated(), Action.RETRY, CoreOutcome.FAILURE),
        (errors.APIConnectionError(blame=Blame.HOST), Action.RETRY, CoreOutcome.FAILURE),
        (errors.EmptyResponse(), Action.ONCE_MORE, CoreOutcome.USELESS),
        (errors.TLSError(), Action.FAIL_OVER, CoreOutcome.FAILURE),
        (status(301), Action.STOP, CoreOutcome.IGNORED),
        (status(400), Action.STOP, CoreOutcome.IGNORED),
        (status(401), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (status(403), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (status(403, blame=Blame.ACCOUNT), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (status(404), Action.FAIL_OVER, CoreOutcome.USELESS),
        (status(404, blame=Blame.REQUEST), Action.STOP, CoreOutcome.IGNORED),
        (status(410), Action.FAIL_OVER, CoreOutcome.USELESS),
        (status(408), Action.RETRY, CoreOutcome.IGNORED),
        (status(409), Action.RETRY, CoreOutcome.IGNORED),
        (status(412), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (status(413), Action.FAIL_OVER, CoreOutcome.USELESS),
        (status(422), Action.STOP, CoreOutcome.IGNORED),
        (status(422, blame=Blame.ENDPOINT), Action.FAIL_OVER, CoreOutcome.USELESS),
        (status(400, blame=Blame.ENDPOINT), Action.FAIL_OVER, CoreOutcome.USELESS),
        (status(418), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (status(425), Action.RETRY, CoreOutcome.IGNORED),
        (status(429), Action.RETRY, CoreOutcome.THROTTLED),
        (status(498), Action.RETRY, CoreOutcome.THROTTLED),
        (status(500), Action.RETRY, CoreOutcome.FAILURE),
        (status(502), Action.RETRY, CoreOutcome.FAILURE),
        (status(503), Action.RETRY, CoreOutcome.FAILURE),
        (status(504), Action.RETRY, CoreOutcome.FAILURE),
        (status(529), Action.RETRY, CoreOutcome.FAILURE),
        (errors.ContextLengthExceeded(), Action.FALL_BACK, CoreOutcome.IGNORED),
        (errors.ContentFilterError(), Action.STOP, CoreOutcome.IGNORED),
        (errors.QuotaExceededError(), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (errors.QuotaExceededError(blame=Blame.REQUEST), Action.FAIL_OVER, CoreOutcome.IGNORED),
        (errors.StreamTruncated(), Action.STOP, CoreOutcome.FAILURE),
        (errors.BudgetExceeded(), Action.STOP, CoreOutcome.IGNORED),
        (errors.DeadlineExceeded(), Action.STOP, CoreOutcome.IGNORED),
        (errors.NoEndpointError(), Action.STOP, CoreOutcome.IGNORED),
        (KeyboardInterrupt(), Action.STOP, CoreOutcome.IGNORED),
        (ZeroDivisionError(), Action.STOP, CoreOutcome.IGNORED),
        (status(400, respell={"include_usage": False}), Action.RESPELL, CoreOutcome.IGNORED),
        (status(422, respell={"max_output": 10}), Action.RESPELL, CoreOutcome.IGNORED),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{getattr(value, 'status_code', '')}-{blame_of(value)}"
        if isinstance(value, BaseException)
        else None
    ),
)
def test_verdicts(error: BaseException, action: Action, outcome: CoreOutcome) -> None:
    verdict = POLICY.classify(error)
    assert (verdict.action, verdict.outcome) == (action, outcome)


@pytest.mark.parametrize(
    ("error", "seconds", "code"),
    [
        (status(401), 300, BlockReason.KEY_REFUSED),
        (status(403, blame=Blame.ACCOUNT), 300, BlockReason.KEY_REFUSED),
        (status(403), 300, BlockReason.REFUSALS),
        (status(404), 300, BlockReason.MODEL_GONE),
        (status(410), 300, BlockReason.MODEL_GONE),
        (errors.QuotaExceededError(), 900, BlockReason.QUOTA_SPENT),
        (errors.QuotaExceededError(blame=Blame.REQUEST), 0, BlockReason.NONE),
        (errors.TLSError(), 300, BlockReason.TLS),
        (errors.APIConnectionError(blame=Blame.HOST), 5, BlockReason.HOST_DOWN),
        (errors.APIConnectionError(), 0, BlockReason.NONE),
        (status(400, blame=Blame.ENDPOINT), 0, BlockReason.NONE),
        (status(413), 0, BlockReason.NONE),
        (status(429, retry_after=61.0), 61, BlockReason.RETRY_AFTER),
        (status(503, retry_after=121.0), 121, BlockReason.RETRY_AFTER),
        (status(429, retry_after=86400.0), 3600, BlockReason.RETRY_AFTER),
        (status(429, retry_after=60.0), 0, BlockReason.NONE),
        (status(400, retry_after=86400.0), 0, BlockReason.NONE),
        (status(500), 0, BlockReason.NONE),
    ],
)
def test_blocks(error: errors.APIError, seconds: float, code: BlockReason) -> None:
    verdict = POLICY.classify(error)
    assert (verdict.block_seconds, verdict.block_code) == (seconds, code)
    assert bool(verdict.reason) == bool(seconds)
    assert verdict.strikes == (3 if code is BlockReason.REFUSALS else 1)
    assert verdict.blame is error.blame
    if seconds:
        assert verdict.action is (Action.RETRY if code is BlockReason.HOST_DOWN else Action.FAIL_OVER)


def test_a_long_retry_after_lengthens_a_block_and_a_short_one_does_not_shorten_it() -> None:
    assert POLICY.classify(errors.QuotaExceededError(retry_after=2000.0)).block_seconds == 2000
    assert POLICY.classify(errors.QuotaExceededError(retry_after=100.0)).block_seconds == 900
    assert (
        POLICY.classify(errors.QuotaExceededError(retry_after=2000.0)).block_code is BlockReason.QUOTA_SPENT
    )


@pytest.mark.parametrize(
    ("code", "said", "action", "outcome"),
    [
        (500, False, Action.FAIL_OVER, CoreOutcome.FAILURE),
        (429, False, Action.FAIL_OVER, CoreOutcome.THROTTLED),
        (400, False, Action.STOP, CoreOutcome.IGNORED),
        (400, True, Action.RETRY, CoreOutcome.IGNORED),
        (409, True, Action.RETRY, CoreOutcome.IGNORED),
        (401, True, Action.RETRY, CoreOutcome.IGNORED),
        (500, True, Action.RETRY, CoreOutcome.FAILURE),
    ],
)
def test_the_provider_s_word_on_retrying(code: int, said: bool, action: Action, outcome: CoreOutcome) -> None:
    verdict = POLICY.classify(status(code, should_retry=said))
    assert (verdict.action, verdict.outcome) == (action, outcome)


def test_a_spent_quota_is_not_retried_whatever_the_provider_says() -> None:
    verdict = POLICY.classify(errors.QuotaExceededError(should_retry=True))
    assert verdict.action is Action.FAIL_OVER
    assert verdict.block_seconds == 900


def test_slow_failures_are_worth_one_more_attempt() -> None:
    assert POLICY.classify(errors.APITimeoutError()).once
    assert not POLICY.classify(status(500)).once


def test_a_model_that_is_not_served_takes_no_attempt() -> None:
    assert POLICY.classify(status(404)).free
    assert not POLICY.classify(status(401)).free


def test_the_outcomes_are_the_cores_own_numbers() -> None:
    known = [_core.OK, _core.FAILURE, _core.IGNORED, _core.THROTTLED, _core.USELESS]
    assert list(CoreOutcome) == known


# --------------------------------------------------------------------------------------------------- pauses

RANDOM = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 100), RANDOM)
def test_pauses_are_spread_over_a_doubling_span(n: int, rnd: float) -> None:
    for error, base, cap in [(status(500), 0.5, 8.0), (status(429), 1.0, 20.0), (status(529), 1.0, 20.0)]:
        pause = POLICY.backoff(n, error, rnd)
        assert pause == max(0.05, rnd * min(cap, base * 2.0 ** min(n, 10)))


@given(st.floats(0.001, 60), RANDOM)
def test_a_retry_after_is_kept_to_with_a_little_more(wait: float, rnd: float) -> None:
    pause = POLICY.backoff(0, status(429, retry_after=wait), rnd)
    assert pause is not None
    assert wait <= pause <= wait + min(1.0, wait / 10)


def test_a_retry_after_that_is_too_long_is_not_slept_through() -> None:
    assert POLICY.backoff(0, status(503, retry_after=60.01), 0.5) is None


@pytest.mark.parametrize(("wait", "latest"), [(2.0, 2.2), (20.0, 21.0)])
def test_a_retry_after_is_kept_to_and_spread_by_a_tenth_of_it_and_a_second_at_most(
    wait: float, latest: float
) -> None:
    asked = status(429, retry_after=wait)
    assert [POLICY.backoff(0, asked, chance) for chance in (0.0, 1.0)] == [wait, latest]


@pytest.mark.parametrize("wait", [0.0, -5.0, math.nan])
def test_a_retry_after_that_means_nothing_gives_way_to_the_policy(wait: float) -> None:
    assert POLICY.backoff(0, status(500, retry_after=wait), 0.5) == 0.25


@pytest.mark.parametrize("name", ["base", "cap", "floor", "key_block"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        RetryPolicy(max_attempts=0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_longest_retry_after_is_a_time(value: float) -> None:
    with pytest.raises(ValueError, match="max_retry_after"):
        RetryPolicy(max_retry_after=value)


def test_no_retry_after_may_be_waited_for() -> None:
    policy = RetryPolicy(max_retry_after=0)
    asked = status(429, retry_after=0.5)
    assert policy.backoff(0, asked, 0.5) is None
    verdict = policy.classify(asked)
    assert (verdict.action, verdict.block_seconds) == (Action.FAIL_OVER, 0.5)


def test_the_configurations_defaults_are_the_policys() -> None:
    assert RetryPolicy.from_policy(Policy()) == RetryPolicy()


def test_a_policy_from_the_configuration() -> None:
    settings = SimpleNamespace(
        max_attempts=5,
        backoff_base=1.0,
        backoff_cap=2.0,
        throttle_base=3.0,
        throttle_cap=4.0,
        max_retry_after=5.0,
    )
    assert RetryPolicy.from_policy(settings) == RetryPolicy(
        max_attempts=5,
        base=1.0,
        cap=2.0,
        throttle_base=3.0,
        throttle_cap=4.0,
        max_retry_after=5.0,
    )
