"""What is charged beside tokens at list price: read from requests before they are sent, and from answers.

A request may ask for another price of its tokens (a service tier, a faster speed) and for tools that the
provider runs and charges for (web search). An answer says what it was served with, and sometimes what it
cost. The parameters and fields are data here, a line for each. The prices are in the catalogue, and applying
them is in `calls/pricing.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from fastroute.types import NANO, PRICE_MODIFIERS, Billing, Request

# ------------------------------------------------------------------------------------------------- requests

CHARGING = frozenset(
    {
        *PRICE_MODIFIERS,
        *("serviceTier", "tools", "web_search_options", "search_parameters", "plugins", "enable_search"),
        *("generationConfig", "response_format"),
        *("modalities", "audio", "prediction", "cachedContent", "mcp_servers", "container", "web_search"),
    }
)
"""Parameters that may lead to other charges than tokens at list price."""
WITH_TEXT = frozenset({"tools", "response_format"})
"""Those whose text is part of the prompt."""
_ALWAYS_SEARCHES = re.compile(r"-search-(?:preview|api)|:online\b|sonar")


def searches_unasked(upstream: str) -> bool:
    """Whether a model searches the web for every request, by its name at the provider."""
    return _ALWAYS_SEARCHES.search(upstream) is not None


@frozen(kw_only=True)
class Searches:
    """Web searches that a provider may make for a request.

    Attributes:
        place: what asks for them.
        most: how many it charges for at most; None if nothing limits them.
    """

    place: str
    most: int | None


@frozen(kw_only=True)
class Charges:
    """What a request may be charged beside its tokens at list price.

    Attributes:
        modifiers: the values of `PRICE_MODIFIERS` that it asks for.
        searches: what may search the web.
        rounds: how often a prompt as long as the context window may be charged, because the provider adds to
            it what it finds, fetches or keeps; 0: the request is the prompt.
        unknown: what has a price that is not known.
        audio: whether the answer may be audio.
        prediction: tokens of predicted output at most, which are charged as output where they are wrong.
        tool_prompt: tokens at most that the provider adds to explain the tools.
    """

    modifiers: Mapping[str, str]
    searches: tuple[Searches, ...] = ()
    rounds: int = 0
    unknown: tuple[str, ...] = ()
    audio: bool = False
    prediction: int = 0
    tool_prompt: int = 0


def charges_of(request: Request, upstream: str) -> Charges:
    """What a request may be charged beside its tokens at list price, whatever the provider."""
    params = request.params
    searches: list[Searches] = []
    unknown: list[str] = []
    rounds = _hosted_tools(params.get("tools"), upstream, searches, unknown)
    if params.get("web_search_options") is not None:
        searches.append(Searches(place="web_search_options", most=1))
    elif _ALWAYS_SEARCHES.search(upstream):
        searches.append(
            Searches(place=f"the model {upstream}", most=_WEB_PLUGIN if ":online" in upstream else 1)
        )
    given = params.get("search_parameters")
    if isinstance(given, Mapping) and given.get("mode") != "off":
        most = given.get("max_search_results", _XAI_SOURCES)
        searches.append(Searches(place="search_parameters", most=_number(most)))
    elif given is not None and not isinstance(given, Mapping):
        unknown.append("search_parameters")
    _plugins(params.get("plugins"), searches, unknown)
    unknown += [name for name in ("enable_search", "web_search") if params.get(name)]
    if any(params.get(name) for name in ("mcp_servers", "container")):
        rounds = _MOST_ROUNDS
    if searches or params.get("cachedContent"):
        rounds = max(rounds, 1)
    modalities = params.get("modalities")
    speaks = isinstance(modalities, (list, tuple)) and "audio" in modalities
    prediction = params.get("prediction")
    return Charges(
        modifiers=modifiers_asked(params),
        searches=tuple(searches),
        rounds=rounds,
        unknown=tuple(unknown),
        audio=speaks or params.get("audio") is not None,
        prediction=0 if prediction is None else len(str(prediction).encode("utf-8", "replace")) // 2 + 1,
        tool_prompt=_tool_prompt(params.get("tools")),
    )


def always_searches(request: Request, upstream: str) -> int:
    """Searches that are charged for any answer to the request, whether it says so or not."""
    if request.params.get("web_search_options") is not None:
        return 1
    return 1 if ":online" not in upstream and _ALWAYS_SEARCHES.search(upstream) else 0


def modifiers_asked(params: Mapping[str, Any]) -> dict[str, str]:
    """The values of `PRICE_MODIFIERS` in a request's parameters."""
    found = {}
    for name, value in params.items():
        known = "service_tier" if name == "serviceTier" else name
        if known in PRICE_MODIFIERS and value is not None:
            found[known] = modifier(value) or "?"
    return found


_MOST_COUNTED = 10_000  # searches; a larger number is an error
_WEB_PLUGIN = 5  # results that OpenRouter's plugin for the web finds unless told otherwise
_XAI_SOURCES = 20  # that xAI's live search uses at most unless told otherwise

# Tools that a provider runs, by the beginning of their type, and what they charge. Searches: by `max_uses`.
_SEARCH, _FETCH, _FREE = "search", "fetch", "free"
# For tools as such, and again for each that Anthropic describes itself (computer use takes the most).
_TOOL_PROMPT = 800
_MOST_ROUNDS = 10  # that Anthropic lets a model take with its tools before it pauses the turn
_TOOL_TYPES: tuple[tuple[str, str], ...] = (
    ("function", _FREE),
    ("custom", _FREE),
    ("web_search", _SEARCH),
    ("web_fetch", _FETCH),
    ("mcp_toolset", _FETCH),
    # These run in the caller's program, or search in the tools only.
    ("bash_", _FREE),
    ("computer_", _FREE),
    ("memory_", _FREE),
    ("text_editor_", _FREE),
    ("tool_search_tool_", _FREE),
)
# Gemini's tools have no type; each is a field of its own.
_GEMINI_TOOLS: Mapping[str, str] = {
    "functionDeclarations": _FREE,
    "function_declarations": _FREE,
    "computerUse": _FREE,
    "googleSearch": _SEARCH,
    "google_search": _SEARCH,
    "googleSearchRetrieval": _SEARCH,
    "google_search_retrieval": _SEARCH,
    "urlContext": _FETCH,
    "url_context": _FETCH,
    "codeExecution": _FETCH,  # what it prints is charged as input, the tool is not
    "code_execution": _FETCH,
    "fileSearch": _FETCH,
    "file_search": _FETCH,
}
# Before version 3 a grounded answer is charged once, since then each of its queries, which nothing limits.
_ONE_GROUNDING = re.compile(r"gemini-[12](?!\d)")


def _hosted_tools(tools: Any, upstream: str, searches: list[Searches], unknown: list[str]) -> int:
    """Adds what the tools in a request may charge; returns how often they make the prompt be charged."""
    rounds = 0
    for place, tool in enumerate(tools if isinstance(tools, (list, tuple)) else ()):
        path = f"tools[{place}]"
        if not isinstance(tool, Mapping):
            continue  # refused by the provider's encoder
        kind, most, again = tool.get("type"), None, 1
        found: set[str | None] = {_FREE}
        if isinstance(kind, str):
            found = {next((what for start, what in _TOOL_TYPES if kind.startswith(start)), None)}
            most, again = _number(tool.get("max_uses")), _MOST_ROUNDS
        elif "input_schema" not in tool and "function" not in tool:
            found = {_GEMINI_TOOLS.get(name) if isinstance(name, str) else None for name in tool}
            most = 1 if _ONE_GROUNDING.search(upstream) else None
        if _SEARCH in found:
            searches.append(Searches(place=path, most=most))
        if None in found:
            unknown.append(path)
        if _SEARCH in found or _FETCH in found:
            uses = again if most is None or _FETCH in found else min(most + 1, again)
            rounds = max(rounds, uses)
    return rounds


def _tool_prompt(tools: Any) -> int:
    if not isinstance(tools, (list, tuple)) or not tools:
        return 0
    described = sum(
        isinstance(tool, Mapping) and tool.get("type") not in (None, "function", "custom") for tool in tools
    )
    return _TOOL_PROMPT * (1 + described)


# OpenRouter's plugins that change an answer or a prompt for nothing.
_FREE_PLUGINS = frozenset({"response-healing", "context-compression", "moderation", "auto-router"})
# Of its parsers of PDFs, those that charge for tokens at most.
_FREE_PARSERS = tuple({"engine": engine} for engine in ("native", "cloudflare-ai", "pdf-text"))


def _plugins(plugins: Any, searches: list[Searches], unknown: list[str]) -> None:
    for place, plugin in enumerate(plugins if isinstance(plugins, (list, tuple)) else ()):
        name = plugin.get("id") if isinstance(plugin, Mapping) else None
        if name == "file-parser" and plugin.get("pdf", {}) in _FREE_PARSERS:
            continue
        if name == "web":
            most = _number(plugin.get("max_results", _WEB_PLUGIN))
            searches.append(Searches(place=f"plugins[{place}]", most=most))
        elif not isinstance(name, str) or name not in _FREE_PLUGINS:
            unknown.append(f"plugins[{place}]")


def _number(value: Any) -> int | None:
    """A limit as a request states it; None if it is none."""
    return value if type(value) is int and 0 <= value <= _MOST_COUNTED else None


_MODIFIER = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def modifier(value: Any) -> str | None:
    """The value of a price modifier in lower case, without Gemini's prefix; None if it is not a name."""
    if not isinstance(value, str) or not _MODIFIER.fullmatch(value):
        return None
    return value.lower().removeprefix("service_tier_")


# -------------------------------------------------------------------------------------------------- answers

# Where usages state what was charged, and in how many units a nano-dollar is; the first that is there counts.
_CHARGED: tuple[tuple[tuple[str, ...], float], ...] = (
    (("cost",), NANO),  # OpenRouter, LiteLLM and relays, in USD
    (("cost", "total_cost"), NANO),  # Perplexity
    (("estimated_cost",), NANO),  # DeepInfra
    (("cost_in_usd_ticks",), 0.1),  # xAI, in ten-billionths
)
_MOST_CHARGED = 10_000 * NANO  # a larger sum for one answer is an error
BILLED = frozenset({"cost", "estimated_cost", "cost_in_usd_ticks", "server_tool_use", "num_sources_used"})
"""Fields of a usage that say what was charged, or what is charged for."""


LISTED_BILLING = Billing(modifiers={"service_tier": "default"})
"""What nearly every answer of OpenAI's says: list price."""


def billing_of(
    usage: Mapping[str, Any],
    service_tier: Any = None,
    *,
    audio: int = 0,
    audio_output: int = 0,
    searches: int = 0,
) -> Billing | None:
    """What an answer says about its price; None if nothing.

    Args:
        usage: of the answer, in the provider's JSON.
        service_tier: the answer's, where it stands beside the usage.
        audio, audio_output: tokens of audio in the prompt and in the answer.
        searches: those that the answer shows elsewhere.
    """
    modifiers = {}
    for name in PRICE_MODIFIERS:
        value = modifier(usage.get(name))
        if value is not None:
            modifiers[name] = value
    tier = modifier(service_tier)
    if tier is not None:
        modifiers["service_tier"] = tier
    charged = None
    if not BILLED.isdisjoint(usage):
        charged = _charged(usage)
        searches = max(searches, _searches(usage))
    if charged is None and not (searches or audio or audio_output):
        if not modifiers:
            return None
        if modifiers == LISTED_BILLING.modifiers:
            return LISTED_BILLING
    return Billing(
        modifiers=modifiers,
        charged_nano=charged,
        searches=searches,
        audio_tokens=audio,
        audio_output_tokens=audio_output,
    )


def _charged(usage: Mapping[str, Any]) -> int | None:
    found = None
    for path, unit in _CHARGED:
        value: Any = usage
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        found = _nano(value, unit)
        if found is not None:
            break
    if found is None:
        return None
    # With a key of one's own OpenRouter charges its fee only, and the provider the rest.
    details = usage.get("cost_details")
    if usage.get("is_byok") is True and isinstance(details, Mapping):
        upstream = _nano(details.get("upstream_inference_cost"), NANO)
        return None if upstream is None else found + upstream
    return found


def _nano(value: Any, unit: float) -> int | None:
    """Nano-dollars, rounded up; None for what is no believable amount."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e18:
        return None  # NaN is not in order with anything
    # Less than a thousandth of a nano-dollar is what binary fractions are off by.
    return math.ceil(value * unit - 1e-3) if value * unit <= _MOST_CHARGED else None


def _searches(usage: Mapping[str, Any]) -> int:
    used = usage.get("server_tool_use")
    count = used.get("web_search_requests") if isinstance(used, Mapping) else usage.get("num_sources_used")
    return _number(count) or 0


def grounding(candidates: Any, upstream: str) -> int:
    """The searches that Gemini charges for, by the grounding of an answer's candidates."""
    queries = 0
    for candidate in candidates if isinstance(candidates, list) else ():
        metadata = candidate.get("groundingMetadata") if isinstance(candidate, dict) else None
        asked = metadata.get("webSearchQueries") if isinstance(metadata, dict) else None
        queries += len(asked) if isinstance(asked, list) else 0
    return min(queries, 1) if _ONE_GROUNDING.search(upstream) else min(queries, _MOST_COUNTED)


__all__ = [
    "BILLED",
    "CHARGING",
    "LISTED_BILLING",
    "WITH_TEXT",
    "Charges",
    "Searches",
    "always_searches",
    "billing_of",
    "charges_of",
    "grounding",
    "modifier",
    "modifiers_asked",
    "searches_unasked",
]
