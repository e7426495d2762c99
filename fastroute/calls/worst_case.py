"""The worst case of an attempt's cost, which budgets reserve, and what it is computed from."""

from __future__ import annotations

from attrs import evolve, frozen

from fastroute.budget import Assumption
from fastroute.config.catalog import Model
from fastroute.routing.stage import Estimate
from fastroute.types import Request

UNBOUNDED_OUTPUT = 4096
"""``max_tokens`` under a hard budget where nothing else limits the answer; nearly every model takes it."""
LEAST_ANSWER = 256
"""Of that, the least that is sent: an answer of fewer tokens is mostly cut in the middle of a sentence."""
_NO_PRICE = Assumption("the call's price is unknown", "set the model's prices")


@frozen
class WorstCase:
    """What an attempt can cost at most.

    Attributes:
        nano: nano-dollars; None if the price is unknown.
        assumed: what that was computed from.
    """

    nano: int | None
    assumed: Assumption


def worst_case(
    request: Request, estimate: Estimate, model: Model, body: bytes, *, asked: bool = True
) -> WorstCase:
    """The most that a request can cost at a model.

    Args:
        request: as it is sent.
        estimate: of the call.
        asked: whether the limit of the answer in it, if there is one, is the caller's own.
        model: the endpoint's.
        body: the request in the provider's format.
    """
    if model.prices is None:
        return WorstCase(None, _NO_PRICE)
    prompt = most_prompt(estimate)
    output = _most_output(request, estimate, model)
    text, cure = f"{output:,} output tokens (max_tokens)", "lower max_tokens"
    if not asked:
        text = f"{output:,} output tokens assumed because max_tokens is missing"
        cure = "set max_tokens or policy.default_max_tokens"
    choices = choices_of(request)
    if choices > 1:
        output *= choices
        text = f"{choices} choices, and {text}"
    # Keeping the prompt for an hour is the dearest that can be asked for, and is asked for by this word.
    nano = model.prices.worst(prompt, output, hour=b'"1h"' in body)
    return WorstCase(nano, Assumption(f"{prompt:,} input tokens at most, {text}", cure))


def most_prompt(estimate: Estimate) -> int:
    """Input tokens at most: the estimate takes three characters a token, and hardly any text has fewer than
    two.
    """
    return -(-3 * estimate.input_tokens // 2)


def choices_of(request: Request) -> int:
    """How many answers are asked for."""
    choices = request.params.get("n")
    return choices if isinstance(choices, int) and choices > 1 else 1


def _most_output(request: Request, estimate: Estimate, model: Model) -> int:
    """Output tokens at most of one answer."""
    wanted, most = request.max_tokens, model.max_output_tokens
    if wanted is not None:
        return min(wanted, most) if most else wanted
    # The input is not taken off the window: the estimate of it is too high by an unknown amount.
    return most or model.context_window or estimate.output_tokens


def is_bounded(request: Request, model: Model) -> bool:
    """Whether anything limits how long, and so how dear, the answer can be."""
    return bool(
        request.max_tokens is not None
        or model.max_output_tokens
        or model.context_window
        or model.prices is None
        or not model.prices.output
    )


def bounded(request: Request, estimate: Estimate, model: Model, affordable: int | None) -> Request:
    """A request whose answer nothing limits, with a limit that the budgets can pay for.

    Args:
        affordable: nano-dollars that the budgets can pay at most; None if that is not known.
    """
    output = UNBOUNDED_OUTPUT
    if affordable is not None and model.prices is not None:
        prompt = model.prices.worst(most_prompt(estimate), 0, hour=True)
        price = model.prices.at(most_prompt(estimate)).output * choices_of(request)
        payable = (affordable - prompt) * 1_000_000 // price
        # Of a shorter answer nobody has anything: such a call is refused, with what is missing.
        if payable >= LEAST_ANSWER:
            output = min(output, payable)
    return with_output(request, output)


def with_output(request: Request, tokens: int) -> Request:
    """The request with this ``max_tokens``, under the name that the caller used, if any."""
    params = request.params
    name = "max_tokens" if params.get("max_completion_tokens") is None else "max_completion_tokens"
    return evolve(request, params={**params, name: tokens})
