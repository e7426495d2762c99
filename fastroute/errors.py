"""Every exception that fastroute raises.

What each error carries is documented here. `providers/` decides which error a response means, and
`calls/retry.py` what happens next. Names below `APIError` are the OpenAI SDK's own::

    Error
    ├── ConfigError                    a configuration that cannot be right; .problems lists all of it
    ├── NoEndpointError                nothing is left that could serve the request
    │   └── RequestTooLargeForLimit    it asks for more tokens than a limit can ever grant
    ├── BudgetExceeded                 money: the call would cost more than is allowed
    ├── DeadlineExceeded               the call's own time is up (also a TimeoutError)
    ├── LedgerError                    the record of attempts cannot be written out or read at present
    ├── ValidationError                the answer failed the caller's check; .completion is the last one
    ├── StreamInterrupted              a stream broke after content had been handed out
    │   ├── StreamTruncated            it ended without a finish reason
    │   └── StreamStalled              it stayed silent for too long
    └── APIError
        ├── APIConnectionError         no usable answer came back
        │   ├── APITimeoutError        (also a TimeoutError)
        │   ├── TLSError               the certificate or the handshake was refused
        │   └── UpstreamProtocolError  what came back is not an answer in the provider's format
        │       ├── UpstreamTruncated  it was cut off
        │       └── EmptyResponse      it holds nothing
        └── APIStatusError             the provider answered with an error
            ├── BadRequestError            400
            │   ├── ContextLengthExceeded
            │   └── ContentFilterError
            ├── AuthenticationError        401
            ├── PermissionDeniedError      403
            ├── NotFoundError              404, 410
            │   └── ModelNotFoundError     no such model in the catalogue; .suggestions are near names
            ├── ConflictError              409
            ├── RequestTooLargeError       413
            ├── UnprocessableEntityError   422
            ├── RateLimitError             429
            │   └── QuotaExceededError     billing: waiting does not help
            └── InternalServerError        500 and above

No message holds an API key or a prompt. Errors are plain values: making one takes no lock and does no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .types import Attempt, Completion, Usage


class Error(Exception):
    """The root of all errors raised by fastroute.

    Attributes:
        message: what went wrong; ``str(error)`` puts the endpoint before it.
        endpoint: where the attempt failed that this is the error of; None if it is of no attempt.
        status_code: HTTP status of the provider's answer, or the one a gateway should send; None if
            there is none.
        attempts: what was tried before giving up, oldest first.
        request_id: the provider's id of the failed request.
        retry_after: seconds after which the same call may succeed.
    """

    default_status: ClassVar[int | None] = None

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = None,
        attempts: Sequence[Attempt] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.endpoint: str | None = None
        self.status_code = self.default_status if status_code is None else status_code
        self.attempts: tuple[Attempt, ...] = tuple(attempts)
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message if self.endpoint is None else f"{self.endpoint}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default protocol, and process pools pickle errors.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[Error], args: tuple[Any, ...], state: dict[str, Any]) -> Error:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(Error):
    """A configuration that cannot be right.

    Attributes:
        problems: one line each, ``path: what is wrong, what would be right``.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        lines = self.problems
        super().__init__(
            lines[0]
            if len(lines) == 1
            else f"{len(lines)} problems:" + "".join(f"\n  {line}" for line in lines)
        )


class NoEndpointError(Error):
    """Nothing is left that could serve the request; the message says why for each candidate."""

    default_status = 503


class LedgerError(Error):
    """The record of attempts cannot be written out or read at present; no call fails for it."""


class RequestTooLargeForLimit(NoEndpointError):
    """The request asks for more tokens at once than any endpoint's limit can ever grant."""

    default_status = 413


class BudgetExceeded(Error):
    """The call would cost more than a budget or its price cap allows.

    Attributes:
        budget: the name of the budget; None for a price cap.
        on_breach: ``refuse``, or ``downgrade`` where a cheaper model may be tried.
    """

    default_status = 429

    def __init__(
        self, message: str = "", *, budget: str | None = None, on_breach: str = "refuse", **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.budget = budget
        self.on_breach = on_breach


class DeadlineExceeded(Error, TimeoutError):
    """The time that the caller gave the whole call is up."""

    default_status = 504


class ValidationError(Error):
    """The answer failed the caller's check.

    Attributes:
        completion: the last answer that was judged.
        reason: what is wrong with it, in the words of the check.
    """

    default_status = 502

    def __init__(
        self, message: str = "", *, completion: Completion | None = None, reason: str = "", **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.completion = completion
        self.reason = reason


class StreamInterrupted(Error):
    """A stream broke after some of it had been handed to the caller, so no other endpoint may take over.

    Attributes:
        partial_text: the content handed out so far.
        usage: tokens spent as far as known; its ``source`` says whether estimated.
    """

    default_status = 502

    def __init__(
        self, message: str = "", *, partial_text: str = "", usage: Usage | None = None, **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.partial_text = partial_text
        self.usage = usage


class StreamTruncated(StreamInterrupted):
    """The stream ended without saying why it finished."""


class StreamStalled(StreamInterrupted):
    """The stream stayed silent longer than its idle time-out."""


class Blame(enum.Enum):
    """What a failed attempt holds for: whatever shares it will fail in the same way."""

    REQUEST = "request"  #: this request, and no other
    ENDPOINT = "endpoint"  #: one model at one provider
    ACCOUNT = "account"  #: a provider's key: all endpoints of that provider
    HOST = "host"  #: the host in a base URL: all endpoints at that host


class APIError(Error):
    """An attempt at a provider failed.

    Attributes:
        code, type, param: the provider's own error fields, where it gave them.
        blame: what the failure holds for.
        maybe_billed: whether the provider may have charged for the attempt all the same.
    """

    default_blame: ClassVar[Blame] = Blame.ENDPOINT

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        blame: Blame | None = None,
        maybe_billed: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(message, **rest)
        self.code = code
        self.type = type
        self.param = param
        self.blame = self.default_blame if blame is None else blame
        self.maybe_billed = maybe_billed


class APIConnectionError(APIError):
    """No usable answer came back: refused, reset, unresolvable, or not HTTP."""

    default_status = 502


class APITimeoutError(APIConnectionError, TimeoutError):
    """The provider did not answer in the time the attempt had."""

    default_status = 504


class TLSError(APIConnectionError):
    """The provider's certificate or the handshake was refused; verification is never weakened."""

    default_blame = Blame.HOST


class UpstreamProtocolError(APIConnectionError):
    """What came back is not an answer in the provider's format."""


class UpstreamTruncated(UpstreamProtocolError):
    """The answer was cut off before its end."""


class EmptyResponse(UpstreamProtocolError):
    """The answer holds nothing: no choices, or no content, tool call, refusal or reasoning in them."""


class APIStatusError(APIError):
    """The provider answered with an error status, or with an error in a successful answer.

    Attributes:
        should_retry: the provider's own word in ``x-should-retry``; None if it said nothing.
        respell: changes to a `providers.base.Target` with which the endpoint would take the same request;
            empty if none are known.
    """

    default_blame = Blame.REQUEST

    def __init__(
        self,
        message: str = "",
        *,
        should_retry: bool | None = None,
        respell: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(message, **rest)
        self.should_retry = should_retry
        self.respell: Mapping[str, Any] = respell or {}


class BadRequestError(APIStatusError):
    default_status = 400


class ContextLengthExceeded(BadRequestError):
    """The input is longer than the model's context window."""


class ContentFilterError(BadRequestError):
    """The provider's content filter refused the input or the answer."""


class AuthenticationError(APIStatusError):
    default_status = 401
    default_blame = Blame.ACCOUNT


class PermissionDeniedError(APIStatusError):
    default_status = 403


class NotFoundError(APIStatusError):
    default_status = 404
    default_blame = Blame.ENDPOINT


class ModelNotFoundError(NotFoundError):
    """No model, alias or tier has the name that the caller asked for.

    Attributes:
        suggestions: known names that are near it, nearest first.
    """

    def __init__(self, message: str = "", *, suggestions: Sequence[str] = (), **rest: Any) -> None:
        super().__init__(message, **rest)
        self.suggestions = tuple(suggestions)


class ConflictError(APIStatusError):
    default_status = 409
    default_blame = Blame.ENDPOINT


class RequestTooLargeError(APIStatusError):
    default_status = 413
    default_blame = Blame.ENDPOINT


class UnprocessableEntityError(APIStatusError):
    default_status = 422


class RateLimitError(APIStatusError):
    default_status = 429
    default_blame = Blame.ENDPOINT


class QuotaExceededError(RateLimitError):
    """A spend or quota limit at the provider: waiting does not help until the bill is paid."""

    default_blame = Blame.ACCOUNT


class InternalServerError(APIStatusError):
    default_status = 500
    default_blame = Blame.ENDPOINT


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    413: RequestTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def for_status(status: int) -> type[APIStatusError]:
    """The class for an HTTP status: its own, or `InternalServerError` from 500 up, or `APIStatusError`."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    return InternalServerError if status >= 500 else APIStatusError
