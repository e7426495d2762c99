"""What is charged beside tokens at list price: reserved at its worst, settled by what the answer says."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback

import fastroute
from fastroute.config import load
from fastroute.config.catalog import Catalog
from fastroute.events import BudgetExceededEvent
from fastroute.testing import Fault

Start = Callable[..., Loopback]
PRICED: dict[str, Any] = {
    "input_price": 1.0,
    "output_price": 2.0,
    "audio_input_price": 10.0,
    "context_window": 100_000,
    "max_output_tokens": 1000,
    "search_price": 10.0,
    "price_factors": {
        "service_tier": {"flex": 0.5, "priority": 2.0, "batch": 0.5},
        "speed": {"fast": 6.0},
        "inference_geo": {"us": 1.1},
    },
    "capabilities": ["streaming", "tools", "json_schema", "vision", "audio", "video"],
}
PROMPT, OUTPUT = 1000, 100
LISTED = PROMPT * 1000 + OUTPUT * 2000  # nano-dollars
SEARCH = 10_000_000  # nano-dollars


def sse(body: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(body).encode()


def openai(stream: bool, usage: dict[str, Any] | None = None, **fields: Any) -> Fault:
    counts = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "total_tokens": PROMPT + OUTPUT}
    shape = {"id": "x", "created": 1, "model": "m", **fields}
    counts |= usage or {}
    message = {"role": "assistant", "content": "yes"}
    if not stream:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Fault.status(200, {**shape, "object": "chat.completion", "choices": [choice], "usage": counts})
    choice = {"index": 0, "delta": message, "finish_reason": "stop"}
    chunks = [{**shape, "choices": [choice]}, {**shape, "choices": [], "usage": counts}]
    return Fault.events(b"".join(map(sse, chunks)) + b"data: [DONE]\n\n")


def anthropic(stream: bool, usage: dict[str, Any] | None = None) -> Fault:
    counts = {"input_tokens": PROMPT, "output_tokens": OUTPUT, **(usage or {})}
    message = {"type": "message", "id": "x", "role": "assistant", "model": "m", "usage": counts}
    block = {"type": "text", "text": "yes"}
    if not stream:
        return Fault.status(200, {**message, "content": [block], "stop_reason": "end_turn"})
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT}}
    events = [
        {"type": "message_start", "message": {**message, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_stop", "index": 0},
        end,
        {"type": "message_stop"},
    ]
    return Fault.events(b"".join(map(sse, events)))


def gemini(
    stream: bool, usage: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **candidate: Any
) -> Fault:
    counts = {"promptTokenCount": PROMPT, "candidatesTokenCount": OUTPUT, **(usage or {})}
    content = {"role": "model", "parts": [{"text": "yes"}]}
    body = {
        "candidates": [{"index": 0, "content": content, "finishReason": "STOP", **candidate}],
        "usageMetadata": counts,
    }
    return Fault.events(sse(body)) if stream else Fault.status(200, body, headers)


def begin(start: Start, format: str = "openai", **tables: Any) -> Loopback:
    return start(format=format, models={MODEL: PRICED}, check=False, **tables)


OWN = ("serviceTier", "speed", "inference_geo", "search_parameters", "plugins", "enable_search")
OWN += ("cachedContent", "mcp_servers")


def spelt(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with those that only a provider knows where they belong."""
    own = {name: params.pop(name) for name in OWN if name in params}
    return {**params, "extra_body": own} if own else params


def served(loop: Loopback, stream: bool, **params: Any) -> fastroute.Attempt:
    params = spelt(params)
    if stream:
        list(loop.stream(**params))
    else:
        loop.ask(**params)
    return loop.attempts[-1]


# ------------------------------------------------------------------------------------------ before it is sent

TIERS: list[tuple[dict[str, Any], float | None]] = [
    # what is asked for, and by how much it multiplies the list price; None: unknown
    ({}, 1),
    ({"service_tier": None}, 1),
    ({"service_tier": "default"}, 1),
    ({"service_tier": "standard_only"}, 1),
    ({"service_tier": "on_demand"}, 1),
    ({"service_tier": "flex"}, 0.5),
    ({"service_tier": "batch"}, 0.5),
    ({"service_tier": "priority"}, 2),
    ({"service_tier": "PRIORITY"}, 2),
    ({"serviceTier": "priority"}, 2),
    ({"service_tier": "auto"}, 2),
    ({"service_tier": "scale"}, None),
    ({"speed": "fast"}, 6),
    ({"speed": "ludicrous"}, None),
    ({"inference_geo": "us"}, 1.1),
    ({"inference_geo": "global"}, 1),
    ({"speed": "fast", "service_tier": "flex"}, 3),
]


def worst(loop: Loopback, **params: Any) -> tuple[int | None, str]:
    """What an empty budget is asked for, and the message of its refusal."""
    params.setdefault("max_tokens", 100)
    with pytest.raises(fastroute.BudgetExceeded) as raised:
        loop.ask(**spelt(params))
    return loop.of(BudgetExceededEvent)[-1].amount_nano, str(raised.value)


EMPTY = [{"name": "all", "limit": 0.000001, "window": "day"}]


@pytest.mark.parametrize(("params", "factor"), TIERS, ids=str)
def test_a_service_tier_is_reserved_at_its_price(
    start: Start, params: dict[str, Any], factor: float | None
) -> None:
    loop = begin(start, budgets=EMPTY)
    amount, message = worst(loop, **params)
    if factor is None:
        (name,) = params
        assert amount is None
        assert f"the price of {name} = " in message
        assert f'models."{MODEL}".price_factors' in message
    else:
        plain, _ = worst(loop)
        assert plain is not None
        assert amount == pytest.approx(plain * factor)


WEB = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
CHARGING: list[tuple[dict[str, Any], int, int, str]] = [
    # what is asked for, nano-dollars for searches at most, context windows of prompt, the refusal otherwise
    ({"web_search_options": {}}, SEARCH, 1, ""),
    ({"search_parameters": {"mode": "on"}}, 20 * SEARCH, 1, ""),
    ({"search_parameters": {"mode": "auto", "max_search_results": 5}}, 5 * SEARCH, 1, ""),
    ({"search_parameters": {"mode": "off"}}, 0, 0, ""),
    ({"plugins": [{"id": "web"}]}, 5 * SEARCH, 1, ""),
    ({"plugins": [{"id": "web", "max_results": 2}, {"id": "response-healing"}]}, 2 * SEARCH, 1, ""),
    ({"plugins": [{"id": "file-parser"}]}, 0, 0, "the price of plugins[0] is unknown"),
    ({"plugins": [{"id": "file-parser", "pdf": {"engine": "native"}}]}, 0, 0, ""),
    ({"tools": [WEB]}, 3 * SEARCH, 4, ""),
    ({"tools": [{**WEB, "max_uses": 50}]}, 50 * SEARCH, 10, ""),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 0, 0, "nothing limits the searches"),
    ({"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}, 0, 10, ""),
    ({"tools": [{"type": "code_execution_20250825"}]}, 0, 0, "the price of tools[0] is unknown"),
    ({"tools": [{"googleSearch": {}}]}, 0, 0, "nothing limits the searches of tools[0]"),
    ({"tools": [{"urlContext": {}}]}, 0, 1, ""),
    ({"tools": [{"googleMaps": {}}]}, 0, 0, "the price of tools[0] is unknown"),
    ({"tools": [{"type": "browser_search"}]}, 0, 0, "the price of tools[0] is unknown"),
    ({"enable_search": True}, 0, 0, "the price of enable_search is unknown"),
    ({"cachedContent": "cachedContents/x"}, 0, 1, ""),
    ({"mcp_servers": [{"url": "https://x"}]}, 0, 10, ""),
]


@pytest.mark.parametrize(("params", "fees", "windows", "refusal"), CHARGING, ids=lambda each: str(each)[:50])
def test_tools_that_the_provider_runs_are_reserved_at_their_worst(
    start: Start, params: dict[str, Any], fees: int, windows: int, refusal: str
) -> None:
    loop = begin(start, budgets=EMPTY)
    amount, message = worst(loop, **params)
    if refusal:
        assert (amount, refusal in message) == (None, True), message
        return
    assert amount is not None
    prompt = amount - fees - 100 * 2000
    if windows:
        assert prompt == windows * PRICED["context_window"] * 1000
    else:
        assert 0 < prompt < 200 * 1000


def test_without_a_window_what_tools_find_has_no_bound(start: Start) -> None:
    loop = start(
        budgets=EMPTY,
        models={MODEL: {"input_price": 1, "output_price": 2, "search_price": 10.0}},
        check=False,
    )
    amount, message = worst(loop, web_search_options={})
    assert amount is None
    assert f'models."{MODEL}".context_window is unknown' in message


def test_a_search_of_unknown_price_is_refused(start: Start) -> None:
    loop = start(budgets=EMPTY, check=False)
    amount, message = worst(loop, web_search_options={})
    assert amount is None
    assert f'set models."{MODEL}".search_price' in message


def test_without_a_hard_budget_nothing_stands_in_the_way(start: Start) -> None:
    loop = begin(start)
    loop.provider().script(openai(False))
    attempt = served(loop, False, service_tier="scale", tools=[{"type": "browser_search"}])
    assert attempt.cost_nano is None


# ------------------------------------------------------------------------------------------ content, reserved


def pages(count: int) -> str:
    kids = b" ".join(b"%d 0 R" % number for number in range(10, 10 + count))
    data = b"%PDF-1.4 2 0 obj <</Kids [" + kids + b"]>> endobj trailer <<>>"
    return "data:application/pdf;base64," + base64.b64encode(data).decode()


def picture(width: int, height: int) -> str:
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(50_000)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def with_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say"}, part]}]}


SOUND = base64.b64encode(b"\xff\xfb\x90\x00" + bytes(9_996)).decode()
CONTENT: list[tuple[str, dict[str, Any], int | None]] = [
    # the model, the part, nano-dollars at most for it; None: those of the context window
    ("gpt-4o", {"type": "image_url", "image_url": {"url": picture(1024, 1024)}}, 765 * 1000),
    (
        "gpt-4o",
        {"type": "image_url", "image_url": {"url": picture(1024, 1024), "detail": "low"}},
        85 * 1000,
    ),
    ("claude-sonnet-4.5", {"type": "image_url", "image_url": {"url": picture(1092, 1092)}}, 1590 * 1000),
    ("gemini-2.5-pro", {"type": "image_url", "image_url": {"url": "https://x/y.png"}}, 6192 * 1000),
    ("gemini-2.5-pro", {"type": "file", "file": {"file_data": pages(3)}}, 774 * 1000),
    (
        "gemini-2.5-pro",
        {"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}},
        320 * 10_000,
    ),
    ("gpt-4o", {"type": "file", "file": {"file_data": pages(3)}}, None),
    ("claude-sonnet-4.5", {"type": "file", "file": {"file_id": "file-1"}}, None),
    ("m", {"type": "file", "file": {"file_data": pages(3)}}, None),
    ("m", {"type": "hologram", "hologram": "x"}, None),
    ("gemini-2.5-pro", {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, None),
]


@pytest.mark.parametrize(("model", "part", "most"), CONTENT, ids=lambda each: str(each)[:50])
def test_content_is_reserved_by_the_rules_of_the_models_family(
    start: Start, model: str, part: dict[str, Any], most: int | None
) -> None:
    own = {"endpoints": [{"provider": "a", "model": MODEL, "upstream": model}]}
    loop = begin(start, budgets=EMPTY, **own)
    amount, message = worst(loop, **with_part(part))
    assert amount is not None
    of_prompt = amount - 100 * 2000
    kind = "video" if part["type"] == "video_url" else "file" if part["type"] == "file" else "unknown"
    if most is None:
        price = 10_000 if kind == "video" else 1000
        assert of_prompt == PRICED["context_window"] * price
        assert f"all of the context window for messages[0].content[1] ({kind})" in message
        assert "leave out messages[0].content[1]" in message
    else:
        assert most < of_prompt < most + 300 * 1000  # and the text, with what is around it


def test_content_without_bound_at_a_model_without_window_is_refused(start: Start) -> None:
    capable = {"input_price": 1, "output_price": 2, "capabilities": ["streaming", "tools", "vision"]}
    loop = start(budgets=EMPTY, models={MODEL: capable}, check=False)
    amount, message = worst(loop, **with_part({"type": "file", "file": {"file_id": "f"}}))
    assert amount is None
    assert f'nothing bounds the tokens of messages[0].content[1] (file) while models."{MODEL}".con' in message


# --------------------------------------------------------------------------------------------- once answered

ANSWERED: list[tuple[Any, Any, float | None, str | None]] = [
    # the tier asked for, the one that the answer names, the factor of the list price, the ledger's tier
    ("priority", "priority", 2, "priority"),
    ("priority", "default", 1, "default"),
    ("priority", None, 2, None),
    ("flex", None, 0.5, None),
    ("auto", "flex", 0.5, "flex"),
    ("auto", None, 2, None),
    (None, None, 1, None),
    (None, "default", 1, "default"),
    (None, "priority", 2, "priority"),
    (None, "scale", None, "scale"),
    ("scale", None, None, None),
    ("scale", "default", 1, "default"),
    (None, 7, 1, None),
    (None, "<b>" * 100, 1, None),
]


def nano(factor: float | None) -> int | None:
    return None if factor is None else round(LISTED * factor)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("asked", "named", "factor", "tier"), ANSWERED)
def test_the_tier_that_the_answer_names_is_charged(
    start: Start, asked: Any, named: Any, factor: float | None, tier: str | None, stream: bool
) -> None:
    loop = begin(start)
    loop.provider().script(openai(stream, service_tier=named))
    attempt = served(loop, stream, **({} if asked is None else {"service_tier": asked}))
    assert (attempt.cost_nano, attempt.service_tier) == (nano(factor), tier)
    loop.client.ledger.flush()
    (row,) = loop.client.ledger.by("service_tier")
    assert (row.keys, row.cost_nano) == ((tier,), nano(factor) or 0)


def test_a_tier_that_a_project_has_set_is_reserved_once_it_is_known(start: Start) -> None:
    loop = begin(start, budgets=[{"name": "all", "limit": 0.0004, "window": "request"}])
    loop.provider().script(openai(False, service_tier="priority"), openai(False, service_tier="default"))
    served(loop, False, max_tokens=100)  # worst case: $0.000217, and it was charged twice that
    with pytest.raises(fastroute.BudgetExceeded):
        served(loop, False, max_tokens=100)
    served(loop, False, max_tokens=100, service_tier="default")
    assert loop.of(BudgetExceededEvent)[-1].amount_nano == pytest.approx(2 * 217_000, rel=0.05)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("usage", "factor", "tier"),
    [
        ({"service_tier": "standard"}, 1, "standard"),
        ({"service_tier": "priority", "speed": "standard", "inference_geo": "not_available"}, 2, "priority"),
        ({"service_tier": "standard", "speed": "fast"}, 6, "standard"),
        ({"service_tier": "standard", "inference_geo": "us"}, 1.1, "standard"),
        ({"service_tier": "batch"}, 0.5, "batch"),
    ],
)
def test_anthropic_names_them_in_the_usage(
    start: Start, usage: dict[str, Any], factor: float, tier: str, stream: bool
) -> None:
    loop = begin(start, "anthropic")
    loop.provider().script(anthropic(stream, usage))
    attempt = served(loop, stream)
    assert (attempt.cost_nano, attempt.service_tier) == (nano(factor), tier)


@pytest.mark.parametrize(("header", "factor"), [("standard", 1), ("priority", 2), ("<", 2)])
def test_gemini_names_it_in_a_header(start: Start, header: str, factor: float) -> None:
    loop = begin(start, "gemini")
    loop.provider().script(gemini(False, headers={"x-gemini-service-tier": header}))
    attempt = served(loop, False, service_tier="priority")
    assert (attempt.cost_nano, attempt.service_tier) == (nano(factor), header if header != "<" else None)


COSTS: list[tuple[dict[str, Any], int | None]] = [
    # what the usage says beside its tokens, and nano-dollars of the attempt; None: the list price
    ({"cost": 0.0007}, 700_000),
    ({"cost": 0.01}, 10_000_000),
    ({"cost": 1e-9}, 1),
    ({"cost": 0}, None),
    ({"cost": -1}, None),
    ({"cost": float("inf")}, None),
    ({"cost": 1e300}, None),
    ({"cost": 500}, None),
    ({"cost": "0.0007"}, None),
    ({"cost": True}, None),
    ({"cost": None, "estimated_cost": 0.0007}, 700_000),
    ({"cost": {"total_cost": 0.0007, "request_cost": 0.0001}}, 700_000),
    ({"cost_in_usd_ticks": 7_000_000}, 700_000),
    ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0007}}, 700_000),
    ({"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0007}}, 800_000),
    ({"cost": 0.0001, "is_byok": True, "cost_details": {}}, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("usage", "cost"), COSTS, ids=str)
def test_what_the_provider_says_it_charged_is_the_cost(
    start: Start, usage: dict[str, Any], cost: int | None, stream: bool
) -> None:
    if usage.get("cost") == float("inf"):
        usage = {"cost": 1e308}  # JSON has no infinity
    loop = begin(start)
    loop.provider().script(openai(stream, usage))
    assert served(loop, stream).cost_nano == (LISTED if cost is None else cost)


def test_a_charge_makes_the_cost_of_a_model_without_prices_known(start: Start) -> None:
    loop = start(
        check=False,
        endpoints=[{"provider": "a", "model": "other"}],
        models={},
    )
    loop.provider().script(openai(False, {"cost": 0.0007}), openai(False, {"cost": 0}), openai(False))
    assert [served(loop, False, model="other").cost_nano for _ in range(3)] == [700_000, 0, None]


def test_what_was_charged_is_what_the_budget_has_spent(start: Start) -> None:
    loop = begin(start, budgets=[{"name": "all", "limit": 1, "window": "day"}])
    loop.provider().script(openai(False, {"cost": 0.0007}))
    loop.ask(max_tokens=100)
    assert loop.client.stats()["budgets"][0].spent_nano == 700_000


SEARCHED: list[tuple[str, dict[str, Any], Callable[[bool], Fault], int]] = [
    ("openai", {"web_search_options": {}}, lambda stream: openai(stream), 1),
    ("openai", {}, lambda stream: openai(stream, {"num_sources_used": 4}), 4),
    ("openai", {}, lambda stream: openai(stream, {"server_tool_use": {"web_search_requests": 2}}), 2),
    ("openai", {}, lambda stream: openai(stream, {"server_tool_use": {"web_search_requests": -2}}), 0),
    ("openai", {}, lambda stream: openai(stream, {"num_sources_used": 10**9}), 0),
    ("anthropic", {}, lambda stream: anthropic(stream, {"server_tool_use": {"web_search_requests": 2}}), 2),
    ("gemini", {}, lambda stream: gemini(stream, groundingMetadata={"webSearchQueries": ["a", "b"]}), 2),
    ("gemini", {}, lambda stream: gemini(stream, groundingMetadata={"webSearchQueries": "a"}), 0),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("format", "params", "answer", "searches"), SEARCHED)
def test_searches_are_charged(
    start: Start,
    format: str,
    params: dict[str, Any],
    answer: Callable[[bool], Fault],
    searches: int,
    stream: bool,
) -> None:
    loop = begin(start, format)
    loop.provider().script(answer(stream))
    assert served(loop, stream, **params).cost_nano == LISTED + searches * SEARCH


def test_before_version_3_gemini_charges_a_grounded_answer_once(start: Start) -> None:
    own = {"endpoints": [{"provider": "a", "model": MODEL, "upstream": "gemini-2.5-flash"}]}
    loop = begin(start, "gemini", **own)
    loop.provider().script(gemini(False, groundingMetadata={"webSearchQueries": ["a", "b"]}))
    assert served(loop, False).cost_nano == LISTED + SEARCH


def test_searches_of_unknown_price_make_the_cost_unknown(start: Start) -> None:
    loop = start(check=False)
    loop.provider().script(openai(False, {"num_sources_used": 4}))
    assert served(loop, False).cost_nano is None


@pytest.mark.parametrize("stream", [False, True])
def test_audio_has_a_price_of_its_own(start: Start, stream: bool) -> None:
    for format, answer in (
        ("openai", openai(stream, {"prompt_tokens_details": {"audio_tokens": 600}})),
        ("gemini", gemini(stream, {"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 600}]})),
    ):
        loop = begin(start, format)
        loop.provider().script(answer)
        assert served(loop, stream).cost_nano == 400 * 1000 + 600 * 10_000 + OUTPUT * 2000


# ------------------------------------------------------------------------------------------ the configuration


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            {"price_factors": {"service_teir": {"flex": 0.5}}},
            r"unknown parameter 'service_teir' \(did you mean",
        ),
        ({"price_factors": {"service_tier": 0.5}}, "price_factors.service_tier: must be a table"),
        (
            {"price_factors": {"service_tier": {"flex": -1}}},
            "price_factors.service_tier.flex: must be a number",
        ),
        (
            {"price_factors": {"service_tier": {"flex": "half"}}},
            "price_factors.service_tier.flex: must be a num",
        ),
        ({"search_price": -1}, "search_price: must be a number from 0"),
        ({"capabilities": ["smell"]}, "capabilit"),
    ],
)
def test_wrong_prices_are_refused(table: dict[str, Any], problem: str) -> None:
    config = {
        "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": table},
    }
    with pytest.raises(fastroute.ConfigError, match=problem):
        load(config)


def test_factors_of_the_catalogue_stay_with_a_price_of_ones_own() -> None:
    found = Catalog.builtin().model("gpt-5")
    assert found.price_factors["service_tier"] == {"flex": 0.5, "batch": 0.5, "priority": 2.0}
    assert found.prices is not None
    assert found.prices.times(0.5).input == 625_000_000
