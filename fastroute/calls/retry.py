"""What may be done about a failed attempt, and after how long: an immutable policy, from error to `Verdict`.

What a provider's headers say is read in `providers/limit_headers.py`. The choice of the next endpoint,
sleeping and the retry budget are in `dispatch.py`, `admission.py` and the core. Pure: no I/O and no clock;
the random number is an argument.
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
    """What may be done about a failed attempt, the weakest first."""

    STOP = "stop"  #: nothing: the caller gets the error
    FALL_BACK = "fall back"  #: a model with a larger context window may be asked
    FAIL_OVER = "fail over"  #: other endpoints may be asked, this one not
    RESPELL = "respell"  #: this endpoint may be asked at once, in another spelling
    ONCE_MORE = "once more"  #: other endpoints may be asked, and this one once again after a pause
    RETRY = "retry"  #: other endpoints may be asked, and this one again after a pause


class CoreOutcome(enum.IntEnum):
    """The outcome of an attempt as the core records it; the numbers are the core's."""

    OK = 0
    FAILURE = 1
    IGNORED = 2  #: says nothing about the endpoint
    THROTTLED = 3  #: over a limit: counted by the limiter, not by the breaker
    USELESS = 4  #: an answer, but not what was asked for: counted by the rank, not by the breaker


@frozen
class Verdict:
    """What the policy says of an error.

    Attributes:
        action: what may be done.
        outcome: what the core counts.
        block_seconds: leave out for so long whatever the failure holds for; 0 for not at all.
        block_code: why, as the core keeps it.
        reason: why, in words, for logs and events.
        blame: what the failure holds for, and so which endpoints are left out.
        strikes: leave out only after so many such failures in a row, with no success between.
        once: another attempt makes sense once, not again and again: it failed slowly.
        free: the attempt does not count against ``max_attempts``.
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


_OVERLOADED = 529
_STRIKES = 3  # refusals without a reason, one after the other, until an endpoint is left out


def _positive(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} must be a number of seconds above 0")


def _not_negative(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} must be a number of seconds, 0 or more")


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
        key_block: seconds for which an account, a host or an endpoint is left out that refuses all requests:
            a key that is not valid, a certificate that cannot be verified, a model that is not served.
        quota_block: the same for an account without money.
        host_block: the same for the other endpoints of a host that cannot be reached.
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
        """The policy that a configuration asks for."""
        return cls(
            max_attempts=settings.max_attempts,
            base=settings.backoff_base,
            cap=settings.backoff_cap,
            throttle_base=settings.throttle_base,
            throttle_cap=settings.throttle_cap,
            max_retry_after=settings.max_retry_after,
        )

    def classify(self, error: BaseException) -> Verdict:
        """What may be done about an error, and which outcome the core records.

        A provider's own ``x-should-retry`` decides about asking the same endpoint again, whatever the status
        (except that a spent quota stays spent); the breaker uses the status alone. A Retry-After above
        `max_retry_after` is never slept through: the endpoint is blocked for that time, and others may be
        asked.

        Anything that is not an error of fastroute (an interrupt, a bug) stops, and is not held against the
        endpoint.
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
                    reason=verdict.reason or "it asked for that by Retry-After",
                )
        return verdict

    def backoff(self, n: int, error: BaseException | None, rnd: float) -> float | None:
        """Seconds to pause before asking the same endpoint again; None if it should not be asked at all.

        Args:
            n: retries made already, from 0.
            error: what the last attempt failed with.
            rnd: a random number in 0..1, which spreads the callers.

        A Retry-After is obeyed, plus up to a tenth of it (a second at most); without one the pause is drawn
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


# ---------------------------------------------------------------------------------------------- what is done


@frozen
class _Handling:
    """What is done about one kind of error.

    Attributes:
        errors: classes of the error.
        verdict: what is done; seconds and blame are filled in.
        blame: what the error must hold for; None: whatever it holds for.
        statuses: the statuses that it must have; empty: any.
        block: the attribute of the policy that says for how long endpoints are left out; empty: they are not.
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

# The first rule that holds is the one.
_RULES: tuple[_Handling, ...] = (
    # -- the request
    _Handling((errors.ContextLengthExceeded,), Verdict(Action.FALL_BACK, CoreOutcome.IGNORED)),
    # A model with `content_fallbacks` leads on from here: that is known in dispatch.
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
    # It can pay for less, and another account perhaps for this.
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
    # A 403 that does not say why: a firewall's page, or a rule of somebody between.
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
    # Groq: no capacity for its flex tier at present.
    _Handling(
        (errors.APIStatusError,), Verdict(Action.RETRY, CoreOutcome.THROTTLED), statuses=frozenset({498})
    ),
    # A redirect, which only a change of the configuration mends.
    _Handling((errors.APIStatusError,), Verdict(Action.STOP, CoreOutcome.IGNORED), statuses=range(300, 400)),
    # Any other status is this provider's alone.
    _Handling((errors.APIStatusError,), Verdict(Action.FAIL_OVER, CoreOutcome.IGNORED)),
    # -- the host, and what lies between
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
    # A silent endpoint costs a whole time-out each time.
    _Handling((errors.APITimeoutError,), Verdict(Action.RETRY, CoreOutcome.FAILURE, once=True)),
    _Handling((errors.APIConnectionError,), Verdict(Action.RETRY, CoreOutcome.FAILURE)),
    _Handling((errors.StreamTruncated, errors.StreamStalled), Verdict(Action.STOP, CoreOutcome.FAILURE)),
)
