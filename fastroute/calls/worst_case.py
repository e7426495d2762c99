"""Computes the worst case of an attempt's cost, which budgets reserve."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import evolve, frozen

from fastroute.budget import Assumption
from fastroute.config.catalog import Model
from fastroute.figures import dollars
from fastroute.providers.charges import CHARGING, WITH_TEXT
from fastroute.providers.media import USUAL_TOKENS
from fastroute.routing.stage import Estimate
from fastroute.types import Request

from .pricing import terms_of
from .upstream import Upstream

UNBOUNDED_OUTPUT = 4096
"""``max_tokens`` under a hard budget if nothing else limits the answer; nearly every model accepts it."""
LEAST_ANSWER = 256
"""The smallest such limit that is sent: shorter answers would mostly be cut in the middle of a sentence."""
_NO_PRICE = Assumption("the call's price is unknown", "set the model's prices")


@frozen
class WorstCase:
    """What an attempt can cost at most.

    Attributes:
        nano: nano-dollars; None if the price is unknown.
        assumed: what it was computed from, for messages.
    """

    nano: int | None
    assumed: Assumption


def worst_case(
    request: Request, estimate: Estimate, upstream: Upstream, body: bytes, *, asked: bool = True
) -> WorstCase:
    """The most that a request can cost at an endpoint.

    Args:
        request: as it is sent.
        estimate: of the call.
        upstream: where it is sent.
        body: the request in the provider's format.
        asked: whether the caller has set the limit of the answer, if there is one.
    """
    model = upstream.endpoint.model
    prices, window = model.prices, model.context_window
    if prices is None:
        return WorstCase(None, _NO_PRICE)
    output, choices = _most_output(request, estimate, upstream), choices_of(request)
    prompt, extra, audio, fees, rounds, boundless = most_prompt(estimate), 0, 0, 0, 1, ""
    if estimate.media:
        prompt, audio, boundless = _with_media(estimate, upstream, body)
    if upstream.charges_more or not CHARGING.isdisjoint(request.params):
        terms = terms_of(request, upstream)
        if terms.prices is None:
            return WorstCase(None, Assumption(*terms.why))
        prices, fees, rounds = terms.prices, terms.fees_nano, max(terms.rounds, 1)
        if not estimate.media and not WITH_TEXT.isdisjoint(request.params):
            prompt = max(prompt, _half(body))
        prompt += terms.tool_prompt
        extra = terms.prediction
        boundless = boundless or terms.boundless
    cure = "lower max_tokens" if asked else "set max_tokens or policy.default_max_tokens"
    if boundless:
        if not window:
            where = f'models."{model.name}".context_window'
            text = f"nothing bounds the tokens of {boundless} while {where} is unknown"
            return WorstCase(None, Assumption(text, f"set {where}, or leave it out"))
        prompt = window * rounds
        cure = f"leave out {boundless}, or use a model with a smaller context window"
    elif prompt > window > 0:
        prompt = window
    # Caching the prompt for an hour costs most. This is how a request asks for it.
    nano = prices.worst(prompt, output * choices + extra, hour=b'"1h"' in body) + fees
    if audio and prices.audio_input is not None:
        nano -= -min(audio, prompt) * max(prices.audio_input - prices.input, 0) // 1_000_000
    described = partial(_described, prompt, output, choices, asked, boundless, fees)
    return WorstCase(nano, Assumption(described, cure))


def _described(prompt: int, output: int, choices: int, asked: bool, boundless: str, fees: int) -> str:
    """What a worst case was computed from, in words; most calls never need them."""
    text = f"{output:,} output tokens "
    text += "(max_tokens)" if asked else "assumed because max_tokens is missing"
    if choices > 1:
        text = f"{choices} choices, and {text}"
    if boundless:
        text = f"all of the context window for {boundless}, {text}"
    if fees:
        text += f", {dollars(fees)} for searches"
    return f"{prompt:,} input tokens at most, {text}"


def _half(body: bytes, beside: int = 0) -> int:
    """Most tokens of the text in a body, without ``beside`` bytes of data: two bytes a token."""
    return -(-max(len(body) - beside, 0) // 2)


def _with_media(estimate: Estimate, upstream: Upstream, body: bytes) -> tuple[int, int, str]:
    """Most input tokens of a request with parts that are not text.

    Args:
        estimate: of the call.
        upstream: where it is sent.
        body: as it is sent.

    Returns:
        The tokens, those of audio among them, and the first part that only the context window bounds.
    """
    # Imported when the first request has such parts, because building the rules takes a while.
    from fastroute.providers.media_tokens import family_of, most_tokens

    family = family_of(upstream.format.name, upstream.target.upstream, upstream.endpoint.model.name)
    finest = b"ediaResolution" in body or b"edia_resolution" in body
    # Base64 data is not counted as text; its tokens are computed by the rules of its kind.
    text = estimate.input_tokens - sum(USUAL_TOKENS[part.kind] for part in estimate.media)
    data = sum(len(part.data or "") for part in estimate.media)
    total = max(-(-3 * text // 2), _half(body, data))
    audio, boundless = 0, ""
    for part in estimate.media:
        most = most_tokens(part, family, finest=finest)
        if most is None:
            boundless = boundless or f"{part.place} ({part.kind})"
            most = 0 if part.kind in ("file", "unknown") else _ENDLESS
        total += most
        if part.kind in ("audio", "video"):
            audio += most
    return total, audio, boundless


_ENDLESS = 1 << 40


def most_prompt(estimate: Estimate) -> int:
    """Most input tokens: the estimate assumes three characters a token; hardly any text has under two."""
    return -(-3 * estimate.input_tokens // 2)


def choices_of(request: Request) -> int:
    """The number of answers that the request asks for."""
    params = request.params
    choices = params.get("n")
    if "generationConfig" in params:
        own = _own(request, "candidateCount")  # Gemini's, which goes before the other
        choices = own if isinstance(own, int) else choices
    return choices if isinstance(choices, int) and choices > 1 else 1


def _own(request: Request, name: str) -> Any:
    """A value of Gemini's own ``generationConfig``; None without one."""
    given = request.params["generationConfig"]
    return given.get(name) if isinstance(given, Mapping) else None


def _most_output(request: Request, estimate: Estimate, upstream: Upstream) -> int:
    """Output tokens at most of one answer."""
    model = upstream.endpoint.model
    wanted, most = request.max_tokens, model.max_output_tokens
    if "generationConfig" in request.params and upstream.format.name == "gemini":
        own = _own(request, "maxOutputTokens")  # goes before the other, and is sent as it is
        if isinstance(own, int) and own >= 0:
            return own
    if wanted is not None:
        return min(wanted, most) if most else wanted
    # The input is not subtracted from the window, because its estimate is too high by an unknown amount.
    return most or model.context_window or estimate.output_tokens


def is_bounded(request: Request, model: Model) -> bool:
    """Whether anything limits the length of the answer, and with it the cost."""
    return bool(
        request.max_tokens is not None
        or model.max_output_tokens
        or model.context_window
        or model.prices is None
        or not model.prices.output
    )


def bounded(request: Request, estimate: Estimate, model: Model, affordable: int | None) -> Request:
    """The request with a limit of its answer that the budgets can pay for, where nothing else limits it.

    Args:
        affordable: nano-dollars, the most that the budgets can pay; None if unknown.
    """
    output = UNBOUNDED_OUTPUT
    if affordable is not None and model.prices is not None:
        prompt = model.prices.worst(most_prompt(estimate), 0, hour=True)
        price = model.prices.at(most_prompt(estimate)).output * choices_of(request)
        payable = (affordable - prompt) * 1_000_000 // price
        # A shorter answer would be of no use: the call is refused, and the error says what is missing.
        if payable >= LEAST_ANSWER:
            output = min(output, payable)
    return with_output(request, output)


def with_output(request: Request, tokens: int) -> Request:
    """The request with this ``max_tokens``, under the parameter name that the caller used, if any."""
    params = request.params
    name = "max_tokens" if params.get("max_completion_tokens") is None else "max_completion_tokens"
    return evolve(request, params={**params, name: tokens})
