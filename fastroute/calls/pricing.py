"""Charges other than tokens at list price: the most before a request is sent, and those of an answer.

Settlement uses this only for requests and answers with such charges; the cost of all others is
`TokenPrices.cost`. `providers/charges.py` reads the charges from requests and answers.

If the provider reports what it charged, that is the cost, if it is credible. Otherwise the cost is that of
the tokens at the price of the service tier that the answer names, with fees for searches; it is unknown if
one of these prices is.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, frozen

from fastroute.config.catalog import Model
from fastroute.providers.charges import Charges, always_searches, charges_of, modifier, modifiers_asked
from fastroute.types import NANO, PRICE_MODIFIERS, Billing, Request, TokenPrices, Usage

from .upstream import Upstream

_NOTHING = Billing()
_TIER_HEADER = "x-gemini-service-tier"

# A reported charge is credible up to this many times the list price, plus a dollar for fees.
_BELIEVED_TIMES = 20
_BELIEVED_FEES = NANO


# ------------------------------------------------------------------------------------------ before it is sent


@frozen(kw_only=True)
class Terms:
    """The highest prices that may apply to a request at a model.

    Attributes:
        prices: of its tokens; None if unknown.
        fees_nano: for web searches.
        boundless: what makes the prompt longer without a limit but the context window; empty if nothing.
        rounds: how often such a prompt may be charged.
        prediction: output tokens that are charged beside the answer.
        tool_prompt: input tokens that the provider adds.
        why: what is unknown, and the setting that would make it known; empty if all is known.
    """

    prices: TokenPrices | None
    fees_nano: int = 0
    boundless: str = ""
    rounds: int = 0
    prediction: int = 0
    tool_prompt: int = 0
    why: tuple[str, str] = ("", "")


def terms_of(request: Request, upstream: Upstream) -> Terms:
    """The terms of a request that may be charged more than tokens at list price.

    Args:
        request: as it is sent.
        upstream: where it is sent.
    """
    model = upstream.endpoint.model
    charges = charges_of(request, upstream.target.upstream)
    modifiers = charges.modifiers
    if upstream.service_tier is not None:
        modifiers = {"service_tier": upstream.service_tier, **modifiers}
    factor = price_factor(model, modifiers)
    if model.prices is None or factor is None:
        text = ", ".join(f"{name} = {value}" for name, value in modifiers.items())
        return Terms(prices=None, why=(f"the price of {text} is unknown", _cure_of(model, "price_factors")))
    if charges.unknown:
        text = f"the price of {', '.join(charges.unknown)} is unknown"
        return Terms(prices=None, why=(text, "leave it out"))
    fees = 0
    for search in charges.searches:
        if model.search_price is None:
            text = f"the price of the searches of {search.place} is unknown"
            return Terms(prices=None, why=(text, _cure_of(model, "search_price")))
        if search.most is None:
            text = f"nothing limits the searches of {search.place}"
            return Terms(prices=None, why=(text, "set max_uses where the provider has it"))
        fees += -(-search.most * model.search_price // 1000)
    prices = model.prices if factor == 1 else model.prices.times(factor)
    return Terms(
        prices=_with_audio(prices, charges),
        fees_nano=fees,
        boundless="what the provider finds or keeps" if charges.rounds else "",
        rounds=charges.rounds,
        prediction=charges.prediction,
        tool_prompt=charges.tool_prompt,
    )


def _cure_of(model: Model, key: str) -> str:
    return f'set models."{model.name}".{key}, or leave it out'


def _with_audio(prices: TokenPrices, charges: Charges) -> TokenPrices:
    """The prices with audio's price for the whole answer, if it may be audio."""
    if not charges.audio or prices.audio_output is None or prices.audio_output <= prices.output:
        return prices
    long = prices.long
    if long is not None:
        long = evolve(long, output=max(long.output, prices.audio_output))
    return evolve(prices, output=prices.audio_output, long=long)


def price_factor(model: Model, modifiers: Mapping[str, str]) -> float | None:
    """The factor of the prices of all tokens; None if one of the modifiers has no known price.

    ``auto`` leaves the choice to the provider, so the highest factor of the model counts.
    """
    factor = 1.0
    for name, value in modifiers.items():
        stated = model.price_factors.get(name, {})
        if value in stated:
            factor *= stated[value]
        elif value == "auto":
            factor *= max(1.0, *stated.values()) if stated else 1.0
        elif value not in PRICE_MODIFIERS[name]:
            return None
    return factor


# ---------------------------------------------------------------------------------------- once it is answered


def charged(
    usage: Usage, request: Request, upstream: Upstream, headers: Mapping[str, str] | None
) -> tuple[int | None, str | None]:
    """Nano-dollars that an answer costs, None if unknown; and the service tier that it names.

    Args:
        usage: its tokens, and what it reports about its price.
        request: the request.
        upstream: where it was sent.
        headers: of the answer, if it came.
    """
    model, billing = upstream.endpoint.model, usage.billing or _NOTHING
    asked = modifiers_asked(request.params)
    modifiers = {**asked, **billing.modifiers}
    if headers is not None and "service_tier" in modifiers and "service_tier" not in billing.modifiers:
        tier = modifier(headers.get(_TIER_HEADER))
        if tier is not None:
            modifiers["service_tier"] = tier
            billing = evolve(billing, modifiers={**billing.modifiers, "service_tier": tier})
    tier = billing.modifiers.get("service_tier")
    if tier is not None and "service_tier" not in asked and tier != upstream.service_tier:
        factor = price_factor(model, {"service_tier": tier})
        # Back at list price counts as well, once another tier is known.
        if upstream.service_tier is not None or (factor is not None and factor > 1):
            upstream.served_in(tier)
    searches = max(billing.searches, always_searches(request, upstream.target.upstream))
    return _believed(billing.charged_nano, _listed(usage, billing, searches, model, modifiers)), tier


def _listed(
    usage: Usage, billing: Billing, searches: int, model: Model, modifiers: Mapping[str, str]
) -> int | None:
    """The answer's tokens at the prices of the catalogue, with fees; None if a price is unknown."""
    factor = price_factor(model, modifiers)
    if model.prices is None or factor is None or (searches and model.search_price is None):
        return None
    prices = model.prices if factor == 1 else model.prices.times(factor)
    audio = 0
    if billing.audio_tokens and prices.audio_input is not None:
        heard = min(billing.audio_tokens, usage.prompt_tokens)
        audio += heard * (prices.audio_input - prices.at(usage.prompt_tokens).input)
    if billing.audio_output_tokens and prices.audio_output is not None:
        said = min(billing.audio_output_tokens, usage.completion_tokens)
        audio += said * (prices.audio_output - prices.at(usage.prompt_tokens).output)
    cost = prices.cost(usage) - (-audio // 1_000_000)
    return max(cost, 0) - (-searches * (model.search_price or 0) // 1000)


def _believed(stated: int | None, listed: int | None) -> int | None:
    """The charge that the provider reports, unless it contradicts the list price.

    A charge of 0 is not credible if tokens have a price: relays report it when they do not know the charge.
    """
    if stated is None or listed is None:
        return listed if stated is None else stated
    if (stated == 0 and listed > 0) or stated > _BELIEVED_TIMES * listed + _BELIEVED_FEES:
        return listed
    return stated


__all__ = ["Terms", "charged", "price_factor", "terms_of"]
