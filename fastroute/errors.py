"""Every exception that fastroute raises.

What each error carries is documented here. `providers/` decides which error a response means, and
`calls/retry.py` what happens next. Names below `APIError` are the OpenAI SDK's own::

    Error
    ├── ConfigError                    an invalid configuration; .problems lists every problem
    ├── NoEndpointError                no endpoint can serve the request
    │   └── RequestTooLargeForLimit    it needs more tokens than any limit allows
    ├── BudgetExceeded                 the call would cost more than is allowed
    ├── DeadlineExceeded               the call's deadline has passed (also a TimeoutError)
    ├── CallCancelled                  the program did not want the answer any more
    ├── LedgerError                    the ledger cannot be read or written now
    ├── ValidationError                the answer failed its validation; .completion is the last answer
    ├── StreamInterrupted              a stream broke after its first content
    │   ├── StreamTruncated            it ended without a finish reason
    │   └── StreamStalled              nothing arrived for too long
    └── APIError
        ├── APIConnectionError         there was no usable answer
        │   ├── APITimeoutError        (also a TimeoutError)
        │   ├── TLSError               the certificate was invalid or the handshake failed
        │   └── UpstreamProtocolError  the answer is not in the provider's format
        │       ├── UpstreamTruncated  it was cut off
        │       └── EmptyResponse      it has no content
        └── APIStatusError             the provider answered with an error
            ├── BadRequestError            400
            │   ├── ContextLengthExceeded
            │   └── ContentFilterError
            ├── AuthenticationError        401
            ├── PermissionDeniedError      403
            ├── NotFoundError              404, 410
            │   └── ModelNotFoundError     no such model in the catalogue; .suggestions are similar names
            ├── ConflictError              409
            ├── RequestTooLargeError       413
            ├── UnprocessableEntityError   422
            ├── RateLimitError             429
            │   └── QuotaExceededError     billing: waiting does not help
            └── InternalServerError        500 and above

No message contains an API key or a prompt. Creating an error takes no lock and does no I/O.
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
        message: what went wrong; ``str(error)`` also has the endpoint.
        endpoint: the endpoint of the attempt that failed; None if the error is not that of an attempt.
        status_code: HTTP status of the provider's answer, or the one a gateway should send; None if
            there is none.
        attempts: the attempts of the call, oldest first.
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
    """A configuration is invalid.

    Attributes:
        problems: one line each, ``path: what is wrong, what would be right``.
        file: the file that they are in, if they are in one.
    """

    def __init__(self, problems: str | Sequence[str], file: str = "") -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        self.file = file
        lines, where = self.problems, f" in {file}" if file else ""
        super().__init__(
            lines[0] + (f" ({where.strip()})" if where else "")
            if len(lines) == 1
            else f"{len(lines)} problems{where}:" + "".join(f"\n  {line}" for line in lines)
        )


class NoEndpointError(Error):
    """No endpoint can serve the request; the message has the reason of each candidate.

    Attributes:
        lacking: capabilities that the request needs and no candidate has, like ``vision``; the status is then
            400, since waiting does not help.
    """

    default_status = 503
    lacking: tuple[str, ...] = ()


class LedgerError(Error):
    """The ledger cannot be read or written now. Calls do not raise it."""


class RequestTooLargeForLimit(NoEndpointError):
    """The request needs more tokens at once than the limit of any endpoint allows."""

    default_status = 413


class BudgetExceeded(Error):
    """The call would cost more than a budget or its ``max_cost`` allows.

    Attributes:
        budget: the name of the budget; None for ``max_cost``.
        on_breach: ``refuse``, or ``downgrade`` if a cheaper tier may be tried.
        hard: whether the budget's limit is never exceeded.
        retry_after: seconds until the budget may admit such a call: until its window ends, or about a second
            if money is only reserved for other calls. None if waiting does not help.
    """

    default_status = 429

    def __init__(
        self,
        message: str = "",
        *,
        budget: str | None = None,
        on_breach: str = "refuse",
        hard: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(message, **rest)
        self.budget = budget
        self.on_breach = on_breach
        self.hard = hard


class DeadlineExceeded(Error, TimeoutError):
    """The deadline of the call has passed."""

    default_status = 504


class CallCancelled(Error):
    """The program did not want the answer any more: see ``cancelled`` of `Client.with_options`."""

    default_status = 499  # as nginx: nobody is there to get it


class ValidationError(Error):
    """The answer failed its validation.

    Attributes:
        completion: the last answer that was validated.
        reason: why it failed, in the words of the rule.
    """

    default_status = 502

    def __init__(
        self, message: str = "", *, completion: Completion | None = None, reason: str = "", **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.completion = completion
        self.reason = reason


class StreamInterrupted(Error):
    """A stream broke after its first content, so failover was not possible.

    Attributes:
        partial_text: the content until then.
        usage: the tokens used, as far as known; its ``source`` says whether they are estimated.
    """

    default_status = 502

    def __init__(
        self, message: str = "", *, partial_text: str = "", usage: Usage | None = None, **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.partial_text = partial_text
        self.usage = usage


class StreamTruncated(StreamInterrupted):
    """The stream ended without a finish reason."""


class StreamStalled(StreamInterrupted):
    """Nothing arrived for longer than the idle time-out."""


class Blame(enum.Enum):
    """What caused a failure: everything that shares the cause is expected to fail too."""

    REQUEST = "request"  #: only this request
    ENDPOINT = "endpoint"  #: one model at one provider
    ACCOUNT = "account"  #: a provider's key: all endpoints of that provider
    HOST = "host"  #: the host in a base URL: all endpoints at that host


class APIError(Error):
    """An attempt at a provider failed.

    Attributes:
        code, type, param: fields of the provider's error, if present.
        blame: what caused the failure.
        maybe_billed: whether the provider may have charged for the attempt.
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
    """There was no usable answer: connection refused or reset, unknown host, or not HTTP."""

    default_status = 502


class APITimeoutError(APIConnectionError, TimeoutError):
    """The provider did not answer within the time limit of the attempt."""

    default_status = 504


class TLSError(APIConnectionError):
    """The provider's certificate is invalid, or the TLS handshake failed."""

    default_blame = Blame.HOST


class UpstreamProtocolError(APIConnectionError):
    """The answer is not in the provider's format."""


class UpstreamTruncated(UpstreamProtocolError):
    """The answer was cut off before its end."""


class EmptyResponse(UpstreamProtocolError):
    """The answer is empty: no choices, or no content, tool call, refusal or reasoning in them."""


class APIStatusError(APIError):
    """The provider answered with an error status, or with an error in a successful answer.

    Attributes:
        should_retry: the provider's header ``x-should-retry``; None without one.
        respell: changes to a `providers.base.Target` with which the endpoint would accept the same request;
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
    """No model, alias or tier has the name that was asked for.

    Attributes:
        suggestions: similar known names, most similar first.
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
    """A spending limit or quota at the provider is used up; waiting does not help."""

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
    """The class for an HTTP status; `InternalServerError` from 500 on, `APIStatusError` for others."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    return InternalServerError if status >= 500 else APIStatusError
