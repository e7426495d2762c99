"""What may be done about a failed attempt, and after how long: an immutable policy, from error to `Verdict`.

What a provider's headers say is read in `providers/limit_headers.py`. The choice of the next endpoint,
sleeping and the retry budget are in `dispatch.py`, `admission.py` and the core. Pure: no I/O and no clock;
the random number is an argument.
"""

from __future__ import annotations

import enum
import math
from typing import Protocol

from attrs import Attribute, field, frozen, validators

from fastroute import errors
from fastroute.state.endpoints import BlockReason


class Action(enum.Enum):
    """What may be done about a failed attempt, the weakest first."""

    STOP = "stop"  #: nothing: the caller gets the error
    FALL_BACK = "fall back"  #: a model with a larger context window may be asked
    FAIL_OVER = "fail over"  #: other endpoints may be asked, this one not
    WITHOUT_USAGE = "without usage"  #: this endpoint may be asked at once, without ``stream_options``
    RETRY = "retry"  #: other endpoints may be asked, and this one again after a pause


class BreakerOutcome(enum.IntEnum):
    """The outcome of an attempt as the core records it; the numbers are the core's."""

    OK = 0
    FAILURE = 1
    IGNORED = 2  #: says nothing about the endpoint's health
    THROTTLED = 3  #: over a limit: counted by the limiter, not by the breaker


@frozen
class Verdict:
    """What the policy says of an error.

    Attributes:
        action: what may be done.
        outcome: what the breaker and the latency hear.
        block_seconds: leave the endpoint out for so long; 0 for not at all.
        block_code: why, as the core keeps it.
        reason: why, in words, for logs and events.
        once: another attempt makes sense once, not again and again: it failed slowly, or may have been
            charged for.
    """

    action: Action
    outcome: BreakerOutcome
    block_seconds: float = 0.0
    block_code: BlockReason = BlockReason.NONE
    reason: str = ""
    once: bool = False


class _RetrySettings(Protocol):
    """The part of the configuration's policy that is about retries."""

    @property
    def max_attempts(self) -> int: ...
    @property
    def backoff_base(self) -> float: ...
    @property
    def backoff_cap(self) -> float: ...
    @property
    def throttle_base(self) -> float: ...
    @property
    def throttle_cap(self) -> float: ...
    @property
    def max_retry_after(self) -> float: ...
    @property
    def fallback_on_404(self) -> bool: ...


_TRANSIENT_STATUSES = frozenset({408, 425})
_OVERLOADED = 529


def _positive(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} is no number of seconds above 0")


def _not_negative(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} is no number of seconds from 0 on")


@frozen(kw_only=True)
class RetryPolicy:
    """When to try again, where, and after how long. Immutable, so all threads share one.

    Attributes:
        max_attempts: attempts of one call in all, over all endpoints.
        base, cap: seconds; the n-th pause is drawn from 0 to ``min(cap, base * 2**n)``.
        throttle_base, throttle_cap: the same after 429 and 529.
        floor: the shortest pause.
        max_retry_after: a Retry-After up to this is waited for, a longer one blocks the endpoint.
        max_block: no Retry-After blocks for longer than this.
        key_block: for how long an endpoint is left out after 401 or 403, or a refused certificate.
        quota_block: and after a billing error.
        fallback_on_404: whether "no such model" at one endpoint lets another be asked.
    """

    max_attempts: int = field(default=3, validator=validators.ge(1))
    base: float = field(default=0.5, validator=_positive)
    cap: float = field(default=8.0, validator=_positive)
    throttle_base: float = field(default=1.0, validator=_positive)
    throttle_cap: float = field(default=20.0, validator=_positive)
    floor: float = field(default=0.05, validator=_positive)
    max_retry_after: float = field(default=60.0, validator=_not_negative)
    max_block: float = field(default=3600.0, validator=_positive)
    key_block: float = field(default=300.0, validator=_positive)
    quota_block: float = field(default=900.0, validator=_positive)
    fallback_on_404: bool = False

    @classmethod
    def from_policy(cls, settings: _RetrySettings) -> RetryPolicy:
        """The policy that a configuration asks for."""
        return cls(
            max_attempts=settings.max_attempts,
            base=settings.backoff_base,
            cap=settings.backoff_cap,
            throttle_base=settings.throttle_base,
            throttle_cap=settings.throttle_cap,
            max_retry_after=settings.max_retry_after,
            fallback_on_404=settings.fallback_on_404,
        )

    def classify(self, error: BaseException) -> Verdict:
        """What may be done about an error, and which outcome the breaker records.

        A provider's own ``x-should-retry`` decides about asking the same endpoint again, whatever the status
        (except that a spent quota stays spent); the breaker uses the status alone. A Retry-After above
        `max_retry_after` is never slept through: the endpoint is blocked for that time, and others may be
        asked.

        Anything that is not an error of fastroute (an interrupt, a bug) stops, and is not held against the
        endpoint.
        """
        if isinstance(error, errors.APIStatusError):
            return self._with_headers(error, self._by_status(error))
        if isinstance(error, errors.TLSError):
            return Verdict(
                Action.FAIL_OVER,
                BreakerOutcome.FAILURE,
                self.key_block,
                BlockReason.TLS,
                "certificate or handshake refused",
            )
        if isinstance(error, errors.APIConnectionError):
            # A silent endpoint costs a whole time-out each time, and an empty answer may have been charged.
            slow = isinstance(error, (errors.APITimeoutError, errors.EmptyResponse))
            return Verdict(Action.RETRY, BreakerOutcome.FAILURE, once=slow)
        if isinstance(error, (errors.StreamTruncated, errors.StreamStalled)):
            return Verdict(Action.STOP, BreakerOutcome.FAILURE)
        return Verdict(Action.STOP, BreakerOutcome.IGNORED)

    def _by_status(self, error: errors.APIStatusError) -> Verdict:
        status = error.status_code or 0
        if isinstance(error, errors.QuotaExceededError):
            return Verdict(
                Action.FAIL_OVER,
                BreakerOutcome.IGNORED,
                self.quota_block,
                BlockReason.QUOTA_SPENT,
                "its quota or spend limit is reached",
            )
        if isinstance(error, errors.ContextLengthExceeded):
            return Verdict(Action.FALL_BACK, BreakerOutcome.IGNORED)
        if isinstance(error, errors.ContentFilterError):
            # A model with `content_fallbacks` leads on from here: that is dispatch's to know.
            return Verdict(Action.STOP, BreakerOutcome.IGNORED)
        if isinstance(error, errors.RateLimitError):
            return Verdict(Action.RETRY, BreakerOutcome.THROTTLED)
        if isinstance(error, (errors.AuthenticationError, errors.PermissionDeniedError)):
            return Verdict(
                Action.FAIL_OVER,
                BreakerOutcome.IGNORED,
                self.key_block,
                BlockReason.KEY_REFUSED,
                "the key was refused",
            )
        if isinstance(error, errors.NotFoundError):
            action = Action.FAIL_OVER if self.fallback_on_404 else Action.STOP
            return Verdict(action, BreakerOutcome.IGNORED)
        if error.param == "stream_options" and status in (400, 422):
            return Verdict(Action.WITHOUT_USAGE, BreakerOutcome.IGNORED)
        if status >= 500:
            return Verdict(Action.RETRY, BreakerOutcome.FAILURE)
        if status in _TRANSIENT_STATUSES:
            return Verdict(Action.RETRY, BreakerOutcome.IGNORED)
        # The caller's own making (409 too, unless the header says otherwise: most conflicts stay conflicts),
        # or a redirect, which only a change of the configuration mends.
        return Verdict(Action.STOP, BreakerOutcome.IGNORED)

    def _with_headers(self, error: errors.APIStatusError, verdict: Verdict) -> Verdict:
        if error.should_retry is True and not (
            verdict.action is Action.WITHOUT_USAGE or isinstance(error, errors.QuotaExceededError)
        ):
            verdict = Verdict(Action.RETRY, verdict.outcome)
        elif error.should_retry is False and verdict.action is Action.RETRY:
            verdict = Verdict(Action.FAIL_OVER, verdict.outcome)
        wait = error.retry_after
        if (
            wait is not None
            and wait > self.max_retry_after
            and verdict.action in (Action.RETRY, Action.FAIL_OVER)
        ):
            wait = min(wait, self.max_block)
            if wait > verdict.block_seconds:
                verdict = Verdict(
                    Action.FAIL_OVER,
                    verdict.outcome,
                    wait,
                    verdict.block_code or BlockReason.RETRY_AFTER,
                    verdict.reason or "it asked for that by Retry-After",
                )
        return verdict

    def backoff(self, n: int, error: BaseException | None, rnd: float) -> float | None:
        """Seconds to pause before asking the same endpoint again; None if it should not be asked at all.

        Args:
            n: retries made already, from 0.
            error: what the last attempt failed with.
            rnd: a random number in 0..1, which spreads the callers.

        A Retry-After is kept to, plus up to a tenth of it (a second at most); without one the pause is drawn
        evenly from 0 to a bound that doubles each time.
        """
        wait = getattr(error, "retry_after", None)
        if wait is not None and wait > 0:
            if wait > self.max_retry_after:
                return None
            return float(wait + rnd * min(1.0, 0.1 * wait))
        throttled = isinstance(error, errors.APIStatusError) and (
            isinstance(error, errors.RateLimitError) or error.status_code == _OVERLOADED
        )
        base, cap = (self.throttle_base, self.throttle_cap) if throttled else (self.base, self.cap)
        return max(self.floor, rnd * min(cap, base * 2.0 ** min(max(n, 0), 60)))
