"""The retry policy: what may be tried after an error, and after how long, as a `Verdict`.

`providers/limit_headers.py` reads the headers of a provider. The choice of the next endpoint, sleeping and
the retry budget are in `dispatch.py`, `admission.py` and the core. Nothing here does I/O or reads a clock;
random numbers are arguments.
"""

from __future__ import annotations

import enum
import math
from typing import Protocol

from attrs import Attribute, evolve, field, frozen, validators

from fastroute import errors
from fastroute.errors import Blame
from fastroute.state.endpoints import BlockReason


class Action(enum.Enum):
    """What may be tried after a failed attempt, in the order of how much that is."""

    STOP = "stop"  #: nothing; the caller gets the error
    FALL_BACK = "fall back"  #: a model with a larger context window
    FAIL_OVER = "fail over"  #: other endpoints, but not this one
    RESPELL = "respell"  #: this endpoint at once, with the request in another form
    ONCE_MORE = "once more"  #: other endpoints, and this one once after a pause
    RETRY = "retry"  #: other endpoints, and this one after a pause


class CoreOutcome(enum.IntEnum):
    """The outcome of an attempt, with the core's numbers."""

    OK = 0
    FAILURE = 1
    IGNORED = 2  #: not related to the endpoint's health
    THROTTLED = 3  #: over a limit: counted by the limiter, not by the breaker
    USELESS = 4  #: an answer without use: lowers the rank, does not count for the breaker


@frozen
class Verdict:
    """The policy's decision about an error.

    Attributes:
        action: what may be tried.
        outcome: what the core records.
        block_seconds: how long to block the endpoints that ``blame`` covers; 0 for no block.
        block_code: the reason of the block, as the core stores it.
        reason: the reason as text, for logs and events.
        blame: the cause of the failure, which determines the blocked endpoints.
        strikes: block only after this many such failures in a row.
        once: retry at most once, because the attempt failed slowly.
        free: the attempt does not count for ``max_attempts``.
    """

    action: Action
    outcome: CoreOutcome
    block_seconds: float = 0.0
    block_code: BlockReason = BlockReason.NONE
    reason: str = ""
    blame: Blame = Blame.ENDPOINT
    strikes: int = 1
    once: bool = False
    free: bool = False


class _RetrySettings(Protocol):
    """The retry settings of the configuration's policy."""

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


_OVERLOADED = 529
_STRIKES = 3  # refusals in a row without a reason after which an endpoint is blocked


def _positive(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} must be a number of seconds above 0")


def _not_negative(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} must be a number of seconds, 0 or more")


@frozen(kw_only=True)
class RetryPolicy:
    """When to try again, where, and after how long. Immutable, so all threads share one.

    All times are in seconds.

    Attributes:
        max_attempts: attempts of one call, over all endpoints together.
        base, cap: the n-th pause is a random time from 0 to ``min(cap, base * 2**n)``.
        throttle_base, throttle_cap: the same after 429 and 529.
        floor: the shortest pause.
        max_retry_after: a Retry-After up to this is waited for; a longer one blocks the endpoint.
        max_block: the longest block because of a Retry-After.
        key_block: block of an account, a host or an endpoint that refuses all requests: an invalid key, a
            certificate that cannot be verified, a model that is not served.
        quota_block: block of an account whose quota is spent.
        host_block: block of the other endpoints of a host that cannot be reached.
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
    host_block: float = field(default=5.0, validator=_positive)

    @classmethod
    def from_policy(cls, settings: _RetrySettings) -> RetryPolicy:
        """The policy with the settings of a configuration."""
        return cls(
            max_attempts=settings.max_attempts,
            base=settings.backoff_base,
            cap=settings.backoff_cap,
            throttle_base=settings.throttle_base,
            throttle_cap=settings.throttle_cap,
            max_retry_after=settings.max_retry_after,
        )

    def classify(self, error: BaseException) -> Verdict:
        """What may be tried after an error, and which outcome the core records.

        The provider's header ``x-should-retry`` decides whether the same endpoint may be tried again,
        whatever the status, except for a spent quota. The breaker uses the status only. A Retry-After above
        `max_retry_after` is not waited for: the endpoint is blocked for that time, and others may be tried.

        Any other exception (an interrupt, a bug) ends the call and does not count for the endpoint.
        """
        verdict = self._by_rule(error)
        return self._with_headers(error, verdict) if isinstance(error, errors.APIStatusError) else verdict

    def _by_rule(self, error: BaseException) -> Verdict:
        if isinstance(error, errors.APIStatusError) and error.respell:
            return Verdict(Action.RESPELL, CoreOutcome.IGNORED)
        for rule in _RULES:
            if rule.holds_for(error):
                seconds = getattr(self, rule.block) if rule.block else 0.0
                blame = error.blame if isinstance(error, errors.APIError) else Blame.REQUEST
                return evolve(rule.verdict, block_seconds=seconds, blame=blame)
        return Verdict(Action.STOP, CoreOutcome.IGNORED, blame=Blame.REQUEST)

    def _with_headers(self, error: errors.APIStatusError, verdict: Verdict) -> Verdict:
        if error.should_retry is True and not (
            verdict.action is Action.RESPELL or isinstance(error, errors.QuotaExceededError)
        ):
            verdict = Verdict(Action.RETRY, verdict.outcome)
        elif error.should_retry is False and verdict.action is Action.RETRY:
            verdict = Verdict(Action.FAIL_OVER, verdict.outcome)
        # Not slept through: a call has other endpoints to try. The block also keeps all other calls away, in
        # every process, which would only get the same answer.
        wait = error.retry_after
        if (
            wait is not None
            and wait > self.max_retry_after
            and verdict.action in (Action.RETRY, Action.FAIL_OVER)
        ):
            wait = min(wait, self.max_block)
            if wait > verdict.block_seconds:
                verdict = evolve(
                    verdict,
                    action=Action.FAIL_OVER,
                    block_seconds=wait,
                    block_code=verdict.block_code or BlockReason.RETRY_AFTER,
                    reason=verdict.reason or "its Retry-After is longer than policy.max_retry_after",
                )
        return verdict

    def backoff(self, n: int, error: BaseException | None, rnd: float) -> float | None:
        """Seconds to wait before the same endpoint is tried again; None if it should not be tried again.

        After a Retry-After the pause is that time plus up to a tenth of it (at most a second). Otherwise it
        is a random time below a bound that doubles with each retry.

        Args:
            n: retries made so far, from 0.
            error: the error of the last attempt.
            rnd: a random number in 0..1, so that callers do not retry at the same time.
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


# ---------------------------------------------------------------------------------------------- what is done


@frozen
class _Handling:
    """The verdict for one kind of error.

    Attributes:
        errors: the classes of the error.
        verdict: the verdict, without its seconds and blame.
        blame: the blame that the error must have; None for any.
        statuses: the statuses that it must have; empty for any.
        block: the attribute of `RetryPolicy` with the seconds of the block; empty for no block.
    """

    errors: tuple[type[BaseException], ...]
    verdict: Verdict
    blame: Blame | None = None
    statuses: range | frozenset[int] = frozenset()
    block: str = ""

    def holds_for(self, error: BaseException) -> bool:
        return (
            isinstance(error, self.errors)
            and (self.blame is None or getattr(error, "blame", None) is self.blame)
            and (not self.statuses or getattr(error, "status_code", None) in self.statuses)
        )


_REFUSED = (errors.BadRequestError, errors.UnprocessableEntityError)

# The first rule that holds determines the verdict, so a special case comes before the general one. What only
# the caller's request is to blame for is IGNORED: one caller's bad requests must not open the breaker for all
# others.
_RULES: tuple[_Handling, ...] = (
    # -- the request
    _Handling((errors.ContextLengthExceeded,), Verdict(Action.FALL_BACK, CoreOutcome.IGNORED)),
    # `dispatch.py` tries the model's `content_fallbacks`, if it has some.
    _Handling((errors.ContentFilterError,), Verdict(Action.STOP, CoreOutcome.IGNORED)),
    # -- the account
    _Handling(
        (errors.QuotaExceededError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.IGNORED,
            block_code=BlockReason.QUOTA_SPENT,
            reason="its quota or spend limit is reached",
        ),
        Blame.ACCOUNT,
        block="quota_block",
    ),
    # The account can still pay for smaller requests, and another account may pay for this one.
    _Handling((errors.QuotaExceededError,), Verdict(Action.FAIL_OVER, CoreOutcome.IGNORED)),
    _Handling(
        (errors.AuthenticationError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.IGNORED,
            block_code=BlockReason.KEY_REFUSED,
            reason="the key was refused",
        ),
        block="key_block",
    ),
    _Handling(
        (errors.PermissionDeniedError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.IGNORED,
            block_code=BlockReason.KEY_REFUSED,
            reason="the account was refused",
        ),
        Blame.ACCOUNT,
        block="key_block",
    ),
    # A 403 without a reason, such as the page of a firewall or proxy.
    _Handling(
        (errors.PermissionDeniedError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.IGNORED,
            block_code=BlockReason.REFUSALS,
            reason=f"it refused {_STRIKES} requests in a row without a reason",
            strikes=_STRIKES,
        ),
        block="key_block",
    ),
    # -- the endpoint
    _Handling((errors.NotFoundError,), Verdict(Action.STOP, CoreOutcome.IGNORED), Blame.REQUEST),
    _Handling(
        (errors.NotFoundError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.USELESS,
            block_code=BlockReason.MODEL_GONE,
            reason="it does not serve the model",
            free=True,
        ),
        block="key_block",
    ),
    _Handling((errors.RequestTooLargeError,), Verdict(Action.FAIL_OVER, CoreOutcome.USELESS)),
    _Handling((errors.RateLimitError,), Verdict(Action.RETRY, CoreOutcome.THROTTLED)),
    _Handling((errors.ConflictError,), Verdict(Action.RETRY, CoreOutcome.IGNORED)),
    _Handling((errors.InternalServerError,), Verdict(Action.RETRY, CoreOutcome.FAILURE)),
    _Handling(_REFUSED, Verdict(Action.FAIL_OVER, CoreOutcome.USELESS), Blame.ENDPOINT),
    _Handling(_REFUSED, Verdict(Action.STOP, CoreOutcome.IGNORED)),
    _Handling(
        (errors.APIStatusError,), Verdict(Action.RETRY, CoreOutcome.IGNORED), statuses=frozenset({408, 425})
    ),
    # Groq: its flex tier has no capacity now.
    _Handling(
        (errors.APIStatusError,), Verdict(Action.RETRY, CoreOutcome.THROTTLED), statuses=frozenset({498})
    ),
    # A redirect: the configured base URL is wrong, so retries do not help.
    _Handling((errors.APIStatusError,), Verdict(Action.STOP, CoreOutcome.IGNORED), statuses=range(300, 400)),
    # Any other status may be specific to this provider.
    _Handling((errors.APIStatusError,), Verdict(Action.FAIL_OVER, CoreOutcome.IGNORED)),
    # -- the host and the network
    _Handling(
        (errors.TLSError,),
        Verdict(
            Action.FAIL_OVER,
            CoreOutcome.FAILURE,
            block_code=BlockReason.TLS,
            reason="certificate or handshake refused",
        ),
        block="key_block",
    ),
    _Handling(
        (errors.APIConnectionError,),
        Verdict(
            Action.RETRY,
            CoreOutcome.FAILURE,
            block_code=BlockReason.HOST_DOWN,
            reason="its host cannot be reached",
        ),
        Blame.HOST,
        block="host_block",
    ),
    # -- the answer
    _Handling((errors.EmptyResponse,), Verdict(Action.ONCE_MORE, CoreOutcome.USELESS)),
    # Each further attempt at an endpoint that does not answer takes a whole time-out.
    _Handling((errors.APITimeoutError,), Verdict(Action.RETRY, CoreOutcome.FAILURE, once=True)),
    _Handling((errors.APIConnectionError,), Verdict(Action.RETRY, CoreOutcome.FAILURE)),
    _Handling((errors.StreamTruncated, errors.StreamStalled), Verdict(Action.STOP, CoreOutcome.FAILURE)),
)
