"""An answer with the status and headers of the HTTP response that it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from attrs import field, frozen
from requests.structures import CaseInsensitiveDict

from fastroute.types import Completion

from .stream import Stream

AnswerT = TypeVar("AnswerT", bound="Completion | Stream")


def _ignoring_case(headers: Mapping[str, str]) -> Mapping[str, str]:
    return CaseInsensitiveDict(headers)


@frozen
class RawResponse(Generic[AnswerT]):
    """What ``with_raw_response`` returns, as the OpenAI SDK has it.

    Attributes:
        headers: of the provider's response; names ignore case.
        status_code: its status, 200.
    """

    _answer: AnswerT
    headers: Mapping[str, str] = field(repr=False, converter=_ignoring_case)
    status_code: int = 200

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request."""
        return None if self._answer.route is None else self._answer.route.request_id

    @property
    def retries_taken(self) -> int:
        """How many attempts came before this response."""
        return 0 if self._answer.route is None else max(len(self._answer.route.attempts) - 1, 0)

    def parse(self) -> AnswerT:
        """The answer: what the call returns without ``with_raw_response``."""
        return self._answer
