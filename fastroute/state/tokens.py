"""Estimates the tokens of a request and of its answer, without network and without a vocabulary.

The core's scan counts the characters, and the core's `Calibration` corrects the estimate by the real usage.
The estimate is deliberately high: what is reserved too much is returned when the usage is known, but what is
reserved too little exceeds a limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

# English has about four characters in a token and code about three. Four UTF-8 bytes in a token cover scripts
# whose characters have several bytes and take a token or more each.
CHARS_PER_TOKEN = 3
BYTES_PER_TOKEN = 4
# The role, the separators and a name take a few tokens besides the text.
TOKENS_PER_MESSAGE = 8
# An image of 1024 x 1024 in OpenAI's high detail takes 765; others take 250 to 1600.
TOKENS_PER_IMAGE = 1000
LEAST_OUTPUT = 256

_OUTPUTS_KEPT = 200


def estimate_input(chars: int, utf8: int, messages: int, images: int = 0) -> int:
    """Input tokens of a request, estimated high.

    Args:
        chars: characters of all text.
        utf8: bytes of the same text in UTF-8.
        messages: number of messages.
        images: number of image parts.
    """
    text = max(-(-chars // CHARS_PER_TOKEN), -(-utf8 // BYTES_PER_TOKEN))
    return text + TOKENS_PER_MESSAGE * messages + TOKENS_PER_IMAGE * images


USUAL_OUTPUT = 1000  # tokens of an answer where no length is asked for and none has been observed
_EFFORT_TOKENS = {
    "none": 0,
    "minimal": 1_000,
    "low": 2_000,
    "medium": 8_000,
    "high": 24_000,
    "xhigh": 48_000,
    "max": 64_000,
}
USUAL_EFFORT = _EFFORT_TOKENS["medium"]
REASONING_PARAMETERS = frozenset({"reasoning_effort", "reasoning", "thinking"})


def reasoning_tokens(params: Mapping[str, Any]) -> int | None:
    """Tokens of reasoning that a request asks for; 0 if it turns reasoning off, None if it says nothing.

    Understands ``reasoning_effort`` (OpenAI), ``reasoning`` (OpenRouter) and ``thinking`` (Anthropic).
    """
    effort = params.get("reasoning_effort")
    reasoning = params.get("reasoning")
    if effort is None and isinstance(reasoning, Mapping):
        effort = "none" if reasoning.get("enabled") is False else reasoning.get("effort")
        if effort is None:
            effort = reasoning.get("max_tokens")
    thinking = params.get("thinking")
    if effort is None and isinstance(thinking, Mapping):
        effort = "none" if thinking.get("type") == "disabled" else thinking.get("budget_tokens", "medium")
    if isinstance(effort, int) and not isinstance(effort, bool):
        return min(max(effort, 0), 1_000_000)
    return _EFFORT_TOKENS.get(effort) if isinstance(effort, str) else None


class _HasOutputLimit(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def max_output_tokens(self) -> int: ...


class OutputHistory:
    """The lengths of each model's last answers, to estimate those of requests without a limit.

    Thread safety: any thread may record and read. Items are only appended to a model's ring, which is atomic,
    and the 95th percentile is one value that is replaced.
    """

    __slots__ = ("_rings", "p95")

    def __init__(self) -> None:
        self._rings: dict[str, deque[int]] = {}
        self.p95: dict[str, int] = {}

    def record(self, model: str, output_tokens: int) -> None:
        """Records the output tokens of one complete answer; numbers below 1 are ignored."""
        if output_tokens < 1:
            return
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings.setdefault(model, deque(maxlen=_OUTPUTS_KEPT))
        ring.append(output_tokens)
        try:
            # ``copy`` is one step in C, so another thread cannot append during the sort.
            ordered = sorted(ring.copy())
        except RuntimeError:
            return  # it is not one step in free-threaded builds; the thread that has appended sorts as well
        # `figures.percentile`, inlined because this runs in every call.
        self.p95[model] = ordered[-(-len(ordered) * 95 // 100) - 1]

    def expected_output(self, max_tokens: int | None, model: _HasOutputLimit) -> int:
        """Output tokens to reserve for a request.

        Args:
            max_tokens: the caller's limit; None for no limit.
            model: the model; its own limit applies if it is known (above 0).

        Returns:
            The caller's limit, or the 95th percentile of the recorded lengths and at least 256; never more
            than the model's limit.
        """
        wanted = max_tokens
        if wanted is None:
            wanted = max(LEAST_OUTPUT, self.p95.get(model.name, 0))
        return min(wanted, model.max_output_tokens) if model.max_output_tokens > 0 else wanted
