"""The values that flow through a call, all frozen, in the shape of OpenAI's chat completions.

Defines the request, the completion, the chunk and what fastroute adds to them (`Route`, `Attempt`,
`Classification`). `providers/` makes them from bytes; nothing here does I/O or reads a clock.
Money is in integer nano-dollars (1 USD = 10**9) in fields that end in ``_nano``; times are in seconds.

Whatever a provider sends beside the known fields stays reachable: attribute access on a message, delta
or completion falls back to the provider's own JSON, and `to_dict` returns all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import field, fields, frozen

Outcome = Literal["ok", "failed", "client_cancelled", "hedge_lost"]
UsageSource = Literal["provider", "estimated", "none"]

NANO = 1_000_000_000
_EMPTY: Mapping[str, Any] = {}

Compress = Callable[[Sequence[Mapping[str, Any]], int], Sequence[Mapping[str, Any]]]
"""Messages and the input tokens there is room for → shorter messages."""
_MOST_TOKENS = 1 << 40  # more than this asks for nothing more


def copy_json(value: Any) -> Any:
    """A deep copy of JSON data, so that callers cannot change what a cache or another caller holds."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy_json(item) for item in value]
    return value


class _Open:
    """Falls back to the provider's JSON for fields that OpenAI, or somebody else, adds later."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            raw = self._raw
            if name in raw:
                return copy_json(raw[name])
        raise AttributeError(f"{type(self).__name__!r} has no field {name!r}, and the provider sent none")

    def to_dict(self) -> dict[str, Any]:
        """The provider's JSON for this part, as a copy of its own."""
        copied: dict[str, Any] = copy_json(self._raw)
        return copied


def raw_of(part: Completion | Chunk | Choice | ChunkChoice | Message | Delta) -> Mapping[str, Any]:
    """The provider's JSON of this part. It is not a copy and must not be changed."""
    return part._raw


# ---------------------------------------------------------------------------------------------- request


@runtime_checkable
class Purse(Protocol):
    """Pays for the attempts of the calls that hold it; the implementations are in `budget` and `gateway`.

    Thread safety: all methods may be called from any thread.
    """

    def reserve(self, attempt: str, amount_nano: int | None) -> None:
        """Reserves the worst-case cost of an attempt, by the attempt's id.

        Args:
            attempt: the id of the attempt.
            amount_nano: nano-dollars; None if the price is unknown.

        Raises:
            BudgetExceeded: the amount does not fit.
        """

    def settle(self, attempt: str, cost_nano: int | None) -> None:
        """Replaces the reservation by the real cost. Idempotent.

        Args:
            attempt: the id of the attempt.
            cost_nano: nano-dollars; None keeps the worst case.
        """


PRIORITIES = ("high", "normal", "low")
SAMPLING_PARAMETERS: Mapping[str, Any] = {"temperature": 1, "top_p": 1, "top_k": None}
"""What sets how tokens are drawn, each with the value that is the same as leaving it out."""
REQUEST_ID_TAG = "client_request_id"
"""A tag that tells single calls apart, for the ledger; it says nothing of whose they are."""


@frozen(kw_only=True)
class RouteOptions:
    """The routing words of one call (the ``route=`` mapping), checked.

    Attributes:
        tags: free labels for the ledger; all but `REQUEST_ID_TAG` also keep cached answers of different tags
            apart.
        tier: serve from this tier whatever the classifier says.
        quality: the least quality (0..1) a model may have.
        max_cost: USD the whole call may cost by estimate.
        max_latency: seconds an endpoint may be expected to take.
        cache: False neither reads nor writes the response cache.
        force_premium: budgets neither downgrade nor, unless hard, refuse the call.
        validate: what the answer is held to: a JSON Schema, a regular expression or a callable.
        deadline: seconds from the start of the call until it must have ended.
        priority: its class, one of `PRIORITIES`: who goes first where calls wait for a limit, and how much
            of a budget it may use.
        hedge: whether a second request may be sent when the first is slow, where ``policy.hedging`` is
            enabled; None leaves it to the policy.
    """

    tags: Mapping[str, str] = field(factory=dict)
    tier: str | None = None
    quality: float | None = None
    max_cost: float | None = None
    max_latency: float | None = None
    cache: bool = True
    force_premium: bool = False
    validate: Mapping[str, Any] | str | Callable[[Completion], object] | None = None
    deadline: float | None = None
    priority: str = "normal"
    hedge: bool | None = None


@frozen
class Request:
    """One chat completion as asked for.

    Attributes:
        model: the name the caller used: a model, an alias, a tier or ``auto``.
        messages: OpenAI's message mappings, untouched.
        params: every other parameter by its OpenAI name; a value of 0 is a value.
        stream: whether chunks are wanted.
        options: the routing words.
        allowance: pays for the call, where the copy of the client that made it may spend a limited amount.
        submitted: nobody waits for the answer at once, so it may wait for a limit until its deadline.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any] = _EMPTY
    stream: bool = False
    options: RouteOptions = field(factory=RouteOptions)
    allowance: Purse | None = field(default=None, repr=False, eq=False)
    submitted: bool = field(default=False, repr=False, eq=False)

    @property
    def max_tokens(self) -> int | None:
        """Output tokens asked for, under either of OpenAI's two names; None for no limit.

        Some servers take a negative number for no limit, so it is no error here.
        """
        wanted = self.params.get("max_completion_tokens")
        if wanted is None:
            wanted = self.params.get("max_tokens")
        return None if wanted is None or wanted < 0 else min(wanted, _MOST_TOKENS)


# --------------------------------------------------------------------------------------------- decision


@frozen(kw_only=True)
class Classification:
    """What kind of request it is, and why.

    Attributes:
        level: the class, one of the rule set's levels.
        score: the rule set's number, where it has one.
        confidence: 0..1.
        matches: the words and patterns found, by group.
        classifier: the rule set's name.
        reason: one line in words.
    """

    level: str
    score: float | None = None
    confidence: float = 1.0
    matches: Mapping[str, tuple[str, ...]] = _EMPTY
    classifier: str = ""
    reason: str = ""


@frozen(kw_only=True)
class Attempt:
    """One request sent to one endpoint: a line of the ledger.

    Attributes:
        id: unique among all attempts of all processes.
        call_id: shared by the attempts of one call.
        time: when it was sent, seconds since the epoch (UTC).
        endpoint, provider, model: where it went.
        tier, level: the tier it was served from and the class of the request, if any.
        outcome: ``ok``, ``failed``, ``client_cancelled``, or ``hedge_lost``: another attempt of the same call
            was quicker.
        error: the error's class name, if it failed.
        prompt_tokens: all input tokens, those read from a cache or written to one among them.
        completion_tokens: all output tokens, reasoning among them.
        usage_source: ``provider`` (its own figures), ``estimated``, or ``none`` (nothing was spent).
        cost_nano: nano-dollars; None if the model's price is unknown.
        latency: seconds until the answer was complete (or the failure was known).
        ttft: seconds until the first token of a stream.
        maybe_billed: it failed, but the provider may have charged for it.
        cached_tokens, cache_write_tokens, cache_write_1h_tokens: as in `Usage`.
        service_tier: the service tier that the provider says it served the request in, if it says so.
    """

    id: str
    call_id: str
    time: float
    endpoint: str
    provider: str
    model: str
    tier: str | None = None
    level: str | None = None
    outcome: Outcome = "ok"
    status_code: int | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    usage_source: UsageSource = "none"
    cost_nano: int | None = 0
    latency: float = 0.0
    ttft: float | None = None
    stream: bool = False
    maybe_billed: bool = False
    request_id: str | None = None
    tags: Mapping[str, str] = _EMPTY
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    service_tier: str | None = None


@frozen(kw_only=True)
class Route:
    """How a call was served.

    Attributes:
        model: the catalogue's name of the model that answered.
        endpoint, provider: where.
        tier: the tier it was chosen from, if by tier.
        classification: of the request, if it was classified; worked out when first asked for, because most
            callers never do.
        cost_nano: nano-dollars for all attempts of the call; None if a price is unknown.
        latency: seconds from the call to its end (None while a stream is running).
        ttft: seconds to the first token of a stream.
        attempts: all of them, oldest first.
        cached: the answer came from the cache, or from an equal call that was in flight.
        waited: seconds spent waiting for limits and back-off.
        request_id: the provider's id.
        downgraded: the budget that sent the call to the cheapest tier, if one did.
    """

    model: str
    endpoint: str
    provider: str
    tier: str | None = None
    _classification: Classification | Callable[[], Classification] | None = field(
        default=None, repr=False, eq=False
    )
    cost_nano: int | None = 0
    latency: float | None = None
    ttft: float | None = None
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False
    waited: float = 0.0
    request_id: str | None = None
    downgraded: str | None = None

    @property
    def classification(self) -> Classification | None:
        known = self._classification
        if callable(known):
            known = known()
            object.__setattr__(self, "_classification", known)
        return known

    @property
    def cost(self) -> float | None:
        """USD, or None if a price is unknown."""
        return None if self.cost_nano is None else self.cost_nano / NANO

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.alias: getattr(self, each.alias) for each in fields(type(self))}
        return partial(type(self), **values), ()


# ----------------------------------------------------------------------------------------------- answer


@frozen
class TokenPrices:
    """What a model's tokens cost, nano-dollars per million.

    Attributes:
        input, output: of the prompt, of the answer.
        cached_input: read from the provider's cache; None: as ``input``.
        cache_write: written to it, for minutes; None: as ``input``.
        cache_write_1h: written to be kept for an hour; None: as ``cache_write``.
        long_context: a prompt of more tokens than this costs ``long``, it and its answer as a whole.
        long: None: prompts of any length cost the same.
    """

    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    long_context: int = 0
    long: TokenPrices | None = None

    def at(self, prompt_tokens: int) -> TokenPrices:
        """The prices of a prompt of that length."""
        return self if self.long is None or prompt_tokens <= self.long_context else self.long

    def cost(self, usage: Usage) -> int:
        """Nano-dollars, rounded up to a whole one."""
        prices = self.at(usage.prompt_tokens)
        total = usage.prompt_tokens * prices.input + usage.completion_tokens * prices.output
        if usage.cached_tokens and prices.cached_input is not None:
            total += usage.cached_tokens * (prices.cached_input - prices.input)
        written = usage.cache_write_tokens
        if written and prices.cache_write is not None:
            total += written * (prices.cache_write - prices.input)
        if usage.cache_write_1h_tokens and prices.cache_write_1h is not None:
            minutes = prices.input if prices.cache_write is None else prices.cache_write
            total += usage.cache_write_1h_tokens * (prices.cache_write_1h - minutes)
        return -(-total // 1_000_000)

    def worst(self, prompt_tokens: int, completion_tokens: int, *, hour: bool = False) -> int:
        """Nano-dollars that so many tokens cost at most, whatever of them is read from a cache or written.

        Args:
            hour: whether they may be written to be kept for an hour.
        """
        prices = self.at(prompt_tokens)
        dearest = max(prices.input, prices.cache_write or 0, (prices.cache_write_1h or 0) if hour else 0)
        return -(-(prompt_tokens * dearest + completion_tokens * prices.output) // 1_000_000)


@frozen
class PromptTokensDetails:
    cached_tokens: int = 0
    cache_write_tokens: int = 0


@frozen
class CompletionTokensDetails:
    reasoning_tokens: int = 0


@frozen
class Usage:
    """Tokens of one answer, each counted once whatever the provider's own way of counting.

    Attributes:
        prompt_tokens: all input tokens; ``cached_tokens`` and ``cache_write_tokens`` are among them.
        completion_tokens: all output tokens; ``reasoning_tokens`` are among them.
        source: ``provider`` or ``estimated``.
        cached_tokens: input read from the provider's cache.
        cache_write_tokens: input written to the provider's cache, ``cache_write_1h_tokens`` among them.
        cache_write_1h_tokens: input written to be kept for an hour.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "provider"
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def prompt_tokens_details(self) -> PromptTokensDetails:
        return PromptTokensDetails(self.cached_tokens, self.cache_write_tokens)

    @property
    def completion_tokens_details(self) -> CompletionTokensDetails:
        return CompletionTokensDetails(self.reasoning_tokens)

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's shape; tokens written to a cache are told where there are any."""
        details = {"cached_tokens": self.cached_tokens}
        if self.cache_write_tokens:
            details["cache_write_tokens"] = self.cache_write_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@frozen
class FunctionCall:
    """A function's name and its arguments as the JSON text that the model wrote."""

    name: str | None = None
    arguments: str = ""


@frozen
class ToolCall:
    """A call of a tool; in a delta, ``index`` says which call the fragment belongs to."""

    id: str | None = None
    type: str | None = "function"
    function: FunctionCall = field(factory=FunctionCall)
    index: int | None = None


@frozen
class Message(_Open):
    role: str = "assistant"
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it: no content, tool call, refusal, reasoning, picture, or the like."""
        return not (self.content or self.tool_calls or self.refusal or _says_something(self._raw))


@frozen
class Choice(_Open):
    index: int
    message: Message
    finish_reason: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)


@frozen(kw_only=True)
class Completion(_Open):
    """An answer in OpenAI's shape, with ``.route`` beside it.

    Attributes:
        choices: at least one.
        usage: None only where the provider gave none and none was estimated.
        route: how it was served.
    """

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    route: Route | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)
    object: str = "chat.completion"

    @property
    def text(self) -> str:
        """The first choice's content, or an empty string."""
        return self.choices[0].message.content or "" if self.choices else ""

    def with_route(self, route: Route, usage: Usage | None = None) -> Completion:
        """The same answer, served another way; ``usage`` replaces its own where given."""
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=self.choices,
            usage=usage or self.usage,
            route=route,
            raw=self._raw,
            object=self.object,
        )


@frozen
class Delta(_Open):
    """What one chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)


@frozen
class ChunkChoice(_Open):
    index: int
    delta: Delta
    finish_reason: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)


@frozen(kw_only=True)
class Chunk(_Open):
    """One piece of a streamed answer; ``usage`` is set on the last one where it was asked for."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)
    object: str = "chat.completion.chunk"

    @property
    def has_content(self) -> bool:
        """Whether it brings something a caller would show: from then on no other endpoint may take over."""
        for choice in self.choices:
            delta = choice.delta
            if delta.content or delta.tool_calls or delta.refusal or _says_something(delta._raw):
                return True
        return False


def _says_something(raw: Mapping[str, Any]) -> bool:
    """Whether any field of a message but its role has something in it."""
    return any(name != "role" and value and _is_filled(value) for name, value in raw.items())


def _is_filled(value: Any) -> bool:
    """Whether there is more in a JSON value than empty parts."""
    if isinstance(value, Mapping):
        return any(name != "type" and item and _is_filled(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(item and _is_filled(item) for item in value)
    return bool(value)


# --------------------------------------------------------------------------------------------- checking


def usd_to_nano(usd: float) -> int:
    """Whole nano-dollars, rounded up; money is never compared as a float.

    Raises:
        ValueError: if it is negative, NaN or infinite.
    """
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd!r} is no amount of money")
    return math.ceil(round(usd * NANO, 3))


__all__ = [
    "NANO",
    "Attempt",
    "Choice",
    "Chunk",
    "ChunkChoice",
    "Classification",
    "Completion",
    "CompletionTokensDetails",
    "Compress",
    "Delta",
    "FunctionCall",
    "Message",
    "Outcome",
    "PromptTokensDetails",
    "Request",
    "Route",
    "RouteOptions",
    "TokenPrices",
    "ToolCall",
    "Usage",
    "UsageSource",
    "copy_json",
    "usd_to_nano",
]
