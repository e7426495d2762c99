"""How many tokens a request will take, without network and without a vocabulary.

Owns the estimate from sizes, and what answers are expected to take. Counting characters is the core's scan;
correcting the estimate by the usage that comes back is the core's `Calibration`, by which it chooses; prices
are `catalog`. The estimate leans high, because what it reserves is given back when the real usage is known,
and what it fails to reserve is an overshoot.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

# English takes about four characters a token and code about three; one UTF-8 byte in four covers scripts
# whose characters are several bytes and a token or more each.
CHARS_PER_TOKEN = 3
BYTES_PER_TOKEN = 4
# The role, the separators and a name cost a few tokens beside the text.
TOKENS_PER_MESSAGE = 8
# A picture of 1024 x 1024 in OpenAI's high detail takes 765; others lie between 250 and 1600.
TOKENS_PER_IMAGE = 1000
LEAST_OUTPUT = 256

_OUTPUTS_KEPT = 200


def estimate_input(chars: int, utf8: int, messages: int, images: int = 0) -> int:
    """Input tokens of a request, leaning high.

    Args:
        chars: characters of all text.
        utf8: bytes of the same text in UTF-8.
        messages: how many messages there are.
        images: how many image parts there are.
    """
    text = max(-(-chars // CHARS_PER_TOKEN), -(-utf8 // BYTES_PER_TOKEN))
    return text + TOKENS_PER_MESSAGE * messages + TOKENS_PER_IMAGE * images


class _HasOutputLimit(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def max_output_tokens(self) -> int: ...


class OutputHistory:
    """How long the answers of each model were, to foresee those that set no limit.

    Thread safety: any thread may record and ask; each model's ring only has items appended at one end, which
    is atomic, and the 95th percentile is a plain value replaced whole.
    """

    __slots__ = ("_p95", "_rings")

    def __init__(self) -> None:
        self._rings: dict[str, deque[int]] = {}
        self._p95: dict[str, int] = {}

    def record(self, model: str, output_tokens: int) -> None:
        """Takes in the output tokens of one whole answer; figures below 1 are ignored."""
        if output_tokens < 1:
            return
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings.setdefault(model, deque(maxlen=_OUTPUTS_KEPT))
        ring.append(output_tokens)
        # ``copy`` is one step in C: a thread that appends meanwhile cannot spoil the sort.
        ordered = sorted(ring.copy())
        # `figures.percentile`, written out because this runs once a call and nobody reads the figure.
        self._p95[model] = ordered[-(-len(ordered) * 95 // 100) - 1]

    def expected_output(self, max_tokens: int | None, model: _HasOutputLimit) -> int:
        """Output tokens to reserve for a request.

        Args:
            max_tokens: what the caller allows; None for no limit.
            model: whose limit holds, where it is known (above 0).

        Returns:
            What the caller allows, or the 95th percentile of what was observed and at least 256; never more
            than the model can give.
        """
        wanted = max_tokens
        if wanted is None:
            wanted = max(LEAST_OUTPUT, self._p95.get(model.name, 0))
        return min(wanted, model.max_output_tokens) if model.max_output_tokens > 0 else wanted
