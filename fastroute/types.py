"""The immutable values of a call, in the shape of OpenAI's chat completions.

They are the request, the completion, the chunk, and what fastroute adds to them (`Route`, `Attempt`,
`Classification`). `providers/` creates them from bytes. Nothing here does I/O or reads a clock. Fields that
end in ``_nano`` are integer nano-dollars (1 USD = 10**9); times are in seconds.

Unknown fields of a provider remain available: attribute access on a message, delta or completion falls back
to the provider's JSON, and `to_dict` returns all of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable

from attrs import field, fields, frozen

Outcome = Literal["ok", "failed", "client_cancelled", "hedge_lost"]
UsageSource = Literal["provider", "estimated", "none"]

NANO = 1_000_000_000
_EMPTY: Mapping[str, Any] = {}

Compress = Callable[[Sequence[Mapping[str, Any]], int], Sequence[Mapping[str, Any]]]
"""A function from messages and the allowed input tokens to shorter messages."""
_MOST_TOKENS = 1 << 40  # a larger max_tokens means the same


def copy_json(value: Any) -> Any:
    """A deep copy of JSON data, so that callers cannot change what a cache or another caller holds."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy_json(item) for item in value]
    return value


class MissingFieldError(AttributeError):
    """There is no field of that name; the message has the nearest one.

    The near name is looked for when the message is shown, since programs often ask for a field that an answer
    may have (``getattr(message, "reasoning_content", None)``).
    """

    def __init__(self, owner: type, name: str, given: tuple[str, ...]) -> None:
        super().__init__(owner, name, given)
        self._owner, self._name, self._given = owner, name, given

    def __str__(self) -> str:
        text = f"{self._owner.__name__!r} has no field {self._name!r}, and the provider sent none"
        hint = _HABITS.get((self._owner.__name__, self._name))
        if hint is None:
            import difflib  # only once a name is wrong

            known = [name for name in (*dir(self._owner), *self._given) if not name.startswith("_")]
            hint = next(iter(difflib.get_close_matches(self._name[:100], known, 1)), None)
        return text if hint is None else f"{text} (did you mean {hint}?)"


# Names that other libraries have, or that are looked for at the wrong place.
_HABITS = {
    ("Completion", "content"): "choices[0].message.content",
    ("Completion", "message"): "choices[0].message",
    ("Completion", "output_text"): "text",
    ("Completion", "cost"): "route.cost",
    ("Choice", "text"): "message.content",
    ("Choice", "delta"): "message; only the chunks of a stream have a delta",
    ("Choice", "content"): "message.content",
    ("Message", "text"): "content",
    ("Chunk", "content"): "choices[0].delta.content",
    ("Chunk", "text"): "choices[0].delta.content",
    ("ChunkChoice", "message"): "delta; only answers that are not streamed have a message",
}


class _Dumped:
    """The OpenAI SDK's methods that return a value as data, in the shape that the SDK has.

    ``exclude_unset`` leaves out what the provider has not sent, ``exclude_none`` and ``exclude_defaults``
    what is None. ``mode`` and ``by_alias`` change nothing, as in the SDK: all values are JSON, and no field
    has an alias.
    """

    __slots__ = ()

    def _shape(self, full: bool) -> dict[str, Any]:
        """A copy in OpenAI's shape; ``full`` with the SDK's optional fields, as None if there are none."""
        raise NotImplementedError

    def model_dump(
        self,
        *,
        mode: str = "python",
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        by_alias: bool | None = None,
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
    ) -> dict[str, Any]:
        """The value as a mapping.

        Args:
            include, exclude: names of fields to return alone, or to leave out.
        """
        shape = self._shape(not (exclude_unset or exclude_defaults or exclude_none))
        if exclude_none or exclude_defaults:
            shape = _without_none(shape)
        if include is not None:
            shape = {name: value for name, value in shape.items() if name in include}
        if exclude is not None:
            shape = {name: value for name, value in shape.items() if name not in exclude}
        return shape

    def model_dump_json(
        self, *, indent: int | None = None, ensure_ascii: bool = False, **options: Any
    ) -> str:
        """As `model_dump`, with its options, as JSON."""
        compact = (",", ":") if indent is None else None
        shape = self.model_dump(**options)
        return json.dumps(shape, indent=indent, ensure_ascii=ensure_ascii, separators=compact)

    def to_json(self, *, indent: int | None = 2) -> str:
        """What the provider has sent, as JSON."""
        return self.model_dump_json(indent=indent, exclude_unset=True)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


class _Open(_Dumped):
    """Falls back to the provider's JSON for fields that the class does not have."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        raw = self._raw
        if name in raw:
            return copy_json(raw[name])
        raise MissingFieldError(type(self), name, tuple(raw))

    def __getitem__(self, name: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__!r} has attributes and no keys: write .{name}, or use to_dict()"
            if isinstance(name, str)
            else f"{type(self).__name__!r} is not a sequence or a stream; for a stream write stream=True"
        )

    def to_dict(self) -> dict[str, Any]:
        """A copy of the provider's JSON for this part."""
        copied: dict[str, Any] = copy_json(self._raw)
        return copied

    def _begun(self, full: bool, optional: tuple[str, ...], own: tuple[str, ...]) -> dict[str, Any]:
        """The optional fields as None, and a copy of the provider's JSON without the fields in ``own``."""
        shape: dict[str, Any] = dict.fromkeys(optional) if full else {}
        shape.update((name, copy_json(value)) for name, value in self._raw.items() if name not in own)
        return shape


def raw_of(part: Completion | Chunk | Choice | ChunkChoice | Message | Delta | ToolCall) -> Mapping[str, Any]:
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
"""The sampling parameters, each with the value that is the same as leaving it out."""
REQUEST_ID_TAG = "client_request_id"
"""A tag that identifies single calls in the ledger, and not their owner."""


@frozen(kw_only=True)
class RouteOptions:
    """The routing words of one call (the ``route=`` mapping), after checks.

    Attributes:
        tags: labels for the ledger; all except `REQUEST_ID_TAG` also separate cached answers.
        tier: the tier to serve from, whatever the classifier finds.
        quality: preferred minimum quality (0..1) of the model.
        max_cost: maximum of the estimated cost of the whole call, USD.
        max_latency: preferred maximum of the expected latency, seconds.
        cache: False to use the response cache neither for reading nor for writing.
        force_premium: budgets do not downgrade the call, and only hard ones reject it.
        validate: the rule for the answer: a JSON Schema, a regular expression or a callable.
        deadline: seconds from the start of the call until it must have ended.
        priority: one of `PRIORITIES`, for the order of calls that wait for a limit and for the shares of
            budgets.
        hedge: whether a second request may be sent if the first is slow, if ``policy.hedging`` is enabled;
            None for the policy's setting.
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
class Extras:
    """What a call asks for beyond its body, as the OpenAI SDK's callers do.

    Attributes:
        headers: sent over the endpoint's own; None removes one.
        query: added to the address; each name with its values.
        max_retries: how often the call may try again at most; None for the policy's setting alone.
        model: the pydantic model that the answer is read as.
        answered: gets the status and the headers of the response that answers the call.
    """

    headers: Mapping[str, str | None] = field(default=_EMPTY, repr=False)
    query: Mapping[str, tuple[str, ...]] = field(default=_EMPTY, repr=False)
    max_retries: int | None = None
    model: type[Any] | None = None
    answered: Callable[[int, Mapping[str, str]], object] | None = field(default=None, repr=False, eq=False)

    @property
    def scope(self) -> Any:
        """What separates cached answers: headers and query may change an answer as the body does."""
        return [self.headers, self.query] if self.headers or self.query else None


@frozen
class Request:
    """The request for one chat completion.

    Attributes:
        model: the name that the caller used: a model, an alias, a tier or ``auto``.
        messages: OpenAI's message mappings, unchanged.
        params: all other parameters by their OpenAI names, also those with the value 0.
        stream: whether the answer is streamed.
        options: the routing words.
        allowance: pays for the call, if its client has a budget of its own (`Client.with_options`).
        submitted: whether it was submitted to the thread pool, so that it may wait for a limit until its
            deadline.
        extras: what it asks for beyond its body; None for nearly every request.
        cancelled: returns whether the answer is not wanted any more; None if that is never asked.
    """

    model: str
    # Trackers of errors record the repr of every local variable, which must not show a prompt.
    messages: Sequence[Mapping[str, Any]] = field(repr=lambda messages: f"<{len(messages)} messages>")
    params: Mapping[str, Any] = field(default=_EMPTY, repr=lambda params: f"<{', '.join(params)}>")
    stream: bool = False
    options: RouteOptions = field(factory=RouteOptions)
    allowance: Purse | None = field(default=None, repr=False, eq=False)
    submitted: bool = field(default=False, repr=False, eq=False)
    extras: Extras | None = None
    cancelled: Callable[[], bool] | None = field(default=None, repr=False, eq=False)

    @property
    def max_tokens(self) -> int | None:
        """The limit of output tokens, under either of OpenAI's two names; None for no limit.

        A negative number is no limit too, as some servers define it.
        """
        wanted = self.params.get("max_completion_tokens")
        if wanted is None:
            wanted = self.params.get("max_tokens")
        return None if wanted is None or wanted < 0 else min(wanted, _MOST_TOKENS)


# --------------------------------------------------------------------------------------------- decision


@frozen(kw_only=True)
class Classification:
    """The class of a request, with the reason.

    Attributes:
        level: the class, one of the rule set's levels.
        score: the rule set's score, if it has one.
        confidence: 0..1.
        matches: the words and patterns that were found, by group.
        classifier: the rule set's name.
        reason: one line of text.
    """

    level: str
    score: float | None = None
    confidence: float = 1.0
    matches: Mapping[str, tuple[str, ...]] = _EMPTY
    classifier: str = ""
    reason: str = ""


# Attempt and Route are without slots, because every call makes one of each: attrs fills the dict of a frozen
# class at once, but sets each slot by a call of its own.
@frozen(kw_only=True, slots=False)
class Attempt:
    """One request that was sent to one endpoint: an entry of the ledger.

    Attributes:
        id: unique among all attempts of all processes.
        call_id: shared by the attempts of one call.
        time: when it was sent, seconds since the epoch (UTC).
        endpoint, provider, model: where it was sent.
        tier, level: the tier it was served from and the class of the request, if any.
        outcome: ``ok``, ``failed``, ``client_cancelled``, or ``hedge_lost`` (another attempt of the same
            call finished first).
        error: the error's class name, if it failed.
        prompt_tokens: all input tokens, including those read from a cache or written to one.
        completion_tokens: all output tokens, including reasoning.
        usage_source: ``provider`` (the provider's figures), ``estimated``, or ``none`` (nothing was spent).
        cost_nano: nano-dollars; None if the model's price is unknown.
        latency: seconds until the answer was complete (or the failure was known).
        ttft: seconds until the first token of a stream.
        maybe_billed: it failed, but the provider may have charged for it.
        cached_tokens, cache_write_tokens, cache_write_1h_tokens: as in `Usage`.
        service_tier: the service tier that the provider says it served the request in, if it says so.
        budget_nano: nano-dollars that budgets count, where that is not ``cost_nano``: the worst case of an
            attempt whose usage is unknown.
        score: the score of the classifier ``learned``; None for a rule set, and without text to score.
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
    budget_nano: int | None = None
    score: float | None = None

    @property
    def estimated(self) -> bool:
        """Whether the tokens, and so the cost, are an estimate: the provider told none or not all of them."""
        return self.usage_source == "estimated"


@frozen(kw_only=True, slots=False)
class Route:
    """How a call was served.

    Attributes:
        model: the catalogue's name of the model that answered.
        endpoint, provider: where it answered.
        tier: the tier that the model was chosen from, if any.
        classification: the class of the request, if it was classified; computed at the first access, because
            most callers do not need it.
        cost_nano: nano-dollars for all attempts of the call; None if a price is unknown.
        latency: seconds from the call to its end (None while a stream is running).
        ttft: seconds to the first token of a stream.
        attempts: all attempts, oldest first.
        cached: the answer came from the cache, or from an equal call that was in flight.
        waited: seconds spent waiting for limits and back-off.
        request_id: the provider's id.
        downgraded: the name of the budget that downgraded the call to the cheapest tier, if any.
        budgets: what is left of the budgets that the call counts in, at the first access.
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
    _budgets: tuple[BudgetStatus, ...] | Callable[[], tuple[BudgetStatus, ...]] = field(
        default=(), repr=False, eq=False
    )

    @property
    def budgets(self) -> tuple[BudgetStatus, ...]:
        known = self._budgets
        if callable(known):
            known = known()
            object.__setattr__(self, "_budgets", known)
        return known

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


# ----------------------------------------------------------------------------------------------- budgets


@frozen(kw_only=True)
class BudgetStatus:
    """What is left of a budget: one value of its tag, in one window.

    Attributes:
        name: of the budget; ``with_options`` for the one of a client's copy.
        tag, value: the tag whose values are counted separately, and the value (empty: calls without the tag);
            None for a budget of all calls.
        others: whether values are counted here together that found no room to be counted by themselves.
        window: ``day``, ``month`` or ``total``.
        period: the day (``2026-11-21``) or month (``2026-11``) that it is in, or ``total``.
        resets_at: when the window ends and the next one begins, seconds since the epoch; None for ``total``.
        limit_nano, spent_nano, reserved_nano: nano-dollars; the last two are None while the ledger cannot be
            read, so that what was spent is unknown.
        hard, on_breach: as configured.
    """

    name: str
    tag: str | None = None
    value: str | None = None
    others: bool = False
    window: str
    period: str
    resets_at: float | None = None
    limit_nano: int
    spent_nano: int | None
    reserved_nano: int | None
    hard: bool = True
    on_breach: str = "refuse"

    @property
    def limit(self) -> float:
        """USD that may be spent in the window."""
        return self.limit_nano / NANO

    @property
    def spent(self) -> float | None:
        """USD spent; None if unknown."""
        return None if self.spent_nano is None else self.spent_nano / NANO

    @property
    def reserved(self) -> float | None:
        """USD reserved for calls under way, at their worst case; None if unknown."""
        return None if self.reserved_nano is None else self.reserved_nano / NANO

    @property
    def left_nano(self) -> int | None:
        """Nano-dollars that are neither spent nor reserved, 0 or more; None if unknown."""
        if self.spent_nano is None or self.reserved_nano is None:
            return None
        return max(0, self.limit_nano - self.spent_nano - self.reserved_nano)

    @property
    def left(self) -> float | None:
        """USD that are neither spent nor reserved, 0 or more; None if unknown."""
        nano = self.left_nano
        return None if nano is None else nano / NANO


# ----------------------------------------------------------------------------------------------- answer


@frozen
class TokenPrices:
    """The prices of a model's tokens, nano-dollars per million.

    Attributes:
        input, output: tokens of the prompt and of the answer.
        cached_input: tokens read from the provider's cache; None: as ``input``.
        cache_write: tokens written to the cache for minutes; None: as ``input``.
        cache_write_1h: tokens written to the cache for an hour; None: as ``cache_write``.
        long_context: if the prompt has more tokens than this, the prices ``long`` apply to prompt and answer.
        long: these prices; None if all prompts have the same prices.
        audio_input, audio_output: tokens of audio; None: as ``input`` and ``output``.
    """

    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    long_context: int = 0
    long: TokenPrices | None = None
    audio_input: int | None = None
    audio_output: int | None = None

    def at(self, prompt_tokens: int) -> TokenPrices:
        """The prices for a prompt of this length."""
        return self if self.long is None or prompt_tokens <= self.long_context else self.long

    def cost(self, usage: Usage) -> int:
        """The cost of an answer in nano-dollars, rounded up."""
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
        """The highest possible cost in nano-dollars, however many tokens are read from or written to a cache.

        Args:
            hour: whether tokens may be written to the cache for an hour.
        """
        prices = self.at(prompt_tokens)
        dearest = max(prices.input, prices.cache_write or 0, (prices.cache_write_1h or 0) if hour else 0)
        return -(-(prompt_tokens * dearest + completion_tokens * prices.output) // 1_000_000)

    def times(self, factor: float) -> TokenPrices:
        """These prices multiplied, each rounded up."""
        millionths = round(factor * 1_000_000)

        def scaled(price: int) -> int:
            return -(-price * millionths // 1_000_000)

        def known(price: int | None) -> int | None:
            return None if price is None else scaled(price)

        return TokenPrices(
            input=scaled(self.input),
            output=scaled(self.output),
            cached_input=known(self.cached_input),
            cache_write=known(self.cache_write),
            cache_write_1h=known(self.cache_write_1h),
            long_context=self.long_context,
            long=None if self.long is None else self.long.times(factor),
            audio_input=known(self.audio_input),
            audio_output=known(self.audio_output),
        )


PRICE_MODIFIERS: Mapping[str, frozenset[str]] = {
    "service_tier": frozenset({"default", "standard", "standard_only", "on_demand"}),
    "speed": frozenset({"standard", "normal"}),
    "inference_geo": frozenset({"global", "not_available"}),
}
"""Parameters that change the price of all tokens, with the values that cost the list price."""


@frozen(kw_only=True)
class Billing:
    """What an answer says about its price, beside its tokens.

    Attributes:
        modifiers: the values of `PRICE_MODIFIERS` that it was served with, in lower case.
        charged_nano: nano-dollars that the provider says it charged; None if it does not say.
        searches: web searches, as the provider counts them for its fee.
        audio_tokens: tokens of audio among the prompt's.
        audio_output_tokens: tokens of audio among the answer's.
    """

    modifiers: Mapping[str, str] = _EMPTY
    charged_nano: int | None = None
    searches: int = 0
    audio_tokens: int = 0
    audio_output_tokens: int = 0


@frozen
class PromptTokensDetails:
    cached_tokens: int = 0
    cache_write_tokens: int = 0


@frozen
class CompletionTokensDetails:
    reasoning_tokens: int = 0


@frozen
class Usage(_Dumped):
    """The tokens of one answer, each counted once, however the provider counts.

    Attributes:
        prompt_tokens: all input tokens, including ``cached_tokens`` and ``cache_write_tokens``.
        completion_tokens: all output tokens, including ``reasoning_tokens``.
        source: ``provider`` or ``estimated``.
        cached_tokens: input read from the provider's cache.
        cache_write_tokens: input written to the provider's cache, including ``cache_write_1h_tokens``.
        cache_write_1h_tokens: input written to the cache for an hour.
        billing: what else the answer says about its price; None if nothing.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "provider"
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    billing: Billing | None = None

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
        """The usage in OpenAI's shape; ``cache_write_tokens`` is included unless it is 0."""
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

    def _shape(self, full: bool) -> dict[str, Any]:
        return _usage_shape(self.to_dict(), full)


_USAGE_DETAILS = {
    "completion_tokens_details": (
        "accepted_prediction_tokens",
        "audio_tokens",
        "reasoning_tokens",
        "rejected_prediction_tokens",
        "text_tokens",
    ),
    "prompt_tokens_details": (
        "audio_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "image_tokens",
        "text_tokens",
    ),
}


def _usage_shape(usage: dict[str, Any], full: bool) -> dict[str, Any]:
    if not full:
        return usage
    for name, optional in _USAGE_DETAILS.items():
        details = usage.setdefault(name, None)
        if isinstance(details, dict):
            usage[name] = {**dict.fromkeys(optional), **details}
    return usage


@frozen
class FunctionCall(_Dumped):
    """A function's name and its arguments as the JSON text that the model wrote."""

    name: str | None = None
    arguments: str = ""

    def _shape(self, full: bool) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


@frozen
class CustomCall(_Dumped):
    """A custom tool's name and its input as the text that the model wrote."""

    name: str | None = None
    input: str = ""

    def _shape(self, full: bool) -> dict[str, Any]:
        return {"name": self.name, "input": self.input}


@frozen
class ToolCall(_Open):
    """A call of a tool.

    Attributes:
        function: name and arguments; empty in a call of a custom tool.
        index: in a delta, which call of the message the fragment belongs to, counted from 0.
        custom: name and input in a call of a custom tool (``type`` is ``custom``), otherwise None.
    """

    id: str | None = None
    type: str | None = "function"
    function: FunctionCall = field(factory=FunctionCall)
    index: int | None = None
    custom: CustomCall | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    def _shape(self, full: bool) -> dict[str, Any]:
        fragment = self.index is not None
        shape = self._begun(full and fragment, ("id", "function", "type"), ("index",))
        for name in ("index", "id", "type"):
            value = getattr(self, name)
            if value is not None:
                shape[name] = value
        kind, said = "function", self.function._shape(full)
        if self.custom is not None:
            kind, said = "custom", self.custom._shape(full)
        sent = shape.get(kind)
        if fragment and isinstance(sent, dict):
            # A fragment has what has arrived with it: of a name that came before, nothing.
            said = {name: value for name, value in said.items() if full or name in sent}
        if isinstance(sent, dict) or not fragment:
            shape[kind] = {**(sent or {}), **said}
        return shape


@frozen
class Message(_Open):
    role: str = "assistant"
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    @property
    def is_empty(self) -> bool:
        """Whether it has no content, tool call, refusal, reasoning, image, or other field with a value."""
        return not (self.content or self.tool_calls or self.refusal or _says_something(self._raw))

    def _shape(self, full: bool) -> dict[str, Any]:
        shape = self._begun(full, _OF_A_MESSAGE, ("tool_calls",))
        shape["role"] = self.role
        return _with_said(self, shape, full)


_OF_A_DELTA = ("audio", "content", "function_call", "refusal", "role", "tool_calls")
_OF_A_MESSAGE = ("annotations", *(name for name in _OF_A_DELTA if name != "role"))


def _with_said(part: Message | Delta, shape: dict[str, Any], full: bool) -> dict[str, Any]:
    """The shape of a message or a delta, with what its fields say."""
    for name in ("content", "refusal"):
        value = getattr(part, name)
        if value is not None or name in shape:
            shape[name] = value
    if part.tool_calls:
        shape["tool_calls"] = [call._shape(full) for call in part.tool_calls]
    elif "tool_calls" in part._raw:
        shape["tool_calls"] = copy_json(part._raw["tool_calls"])
    return shape


@frozen
class Choice(_Open):
    index: int
    message: Message
    finish_reason: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    def _shape(self, full: bool) -> dict[str, Any]:
        shape = self._begun(full, ("logprobs",), ("message",))
        shape.update(index=self.index, message=self.message._shape(full), finish_reason=self.finish_reason)
        return _with_logprobs(shape, full)


def _with_logprobs(shape: dict[str, Any], full: bool) -> dict[str, Any]:
    known = shape.get("logprobs")
    if full and isinstance(known, dict):
        shape["logprobs"] = {"content": None, "refusal": None, **known}
    return shape


@frozen(kw_only=True)
class Completion(_Open):
    """An answer in OpenAI's shape, with ``.route``.

    Attributes:
        choices: at least one.
        usage: None if the provider sent none and none was estimated.
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
        """The same answer with another route, and with ``usage`` if given."""
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

    @property
    def _request_id(self) -> str | None:
        """The provider's id of the request, under the name that the OpenAI SDK gives it."""
        return None if self.route is None else self.route.request_id

    def _shape(self, full: bool) -> dict[str, Any]:
        return _answer_shape(self, full, ("metadata", "moderation", "service_tier", "system_fingerprint"))


def _answer_shape(answer: Completion | Chunk, full: bool, optional: tuple[str, ...]) -> dict[str, Any]:
    shape = answer._begun(full, (*optional, "usage"), ("choices", "usage"))
    shape.update(id=answer.id, object=answer.object, created=answer.created, model=answer.model)
    shape["choices"] = [choice._shape(full) for choice in answer.choices]
    if answer.usage is not None:
        # The provider's own figures and further fields, unless they were not believed.
        sent = answer._raw.get("usage")
        believed = isinstance(sent, dict) and answer.usage.source == "provider"
        shape["usage"] = _usage_shape(copy_json(sent) if believed else answer.usage.to_dict(), full)
    return shape


@frozen
class Delta(_Open):
    """The part of a message that one chunk adds."""

    role: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    def _shape(self, full: bool) -> dict[str, Any]:
        shape = self._begun(full, _OF_A_DELTA, ("tool_calls",))
        if self.role is not None:
            shape["role"] = self.role
        return _with_said(self, shape, full)


@frozen
class ChunkChoice(_Open):
    index: int
    delta: Delta
    finish_reason: str | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)

    def _shape(self, full: bool) -> dict[str, Any]:
        shape = self._begun(full, ("finish_reason", "logprobs"), ("delta",))
        shape.update(index=self.index, delta=self.delta._shape(full))
        if self.finish_reason is not None:
            shape["finish_reason"] = self.finish_reason
        return _with_logprobs(shape, full)


@frozen(kw_only=True)
class Chunk(_Open):
    """One piece of a streamed answer; the last one has ``usage`` if that was requested."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    _raw: Mapping[str, Any] = field(default=_EMPTY, repr=False, eq=False)
    object: str = "chat.completion.chunk"

    @property
    def has_content(self) -> bool:
        """Whether it has content that a caller would show; after such a chunk there is no failover."""
        for choice in self.choices:
            delta = choice.delta
            if delta.content or delta.tool_calls or delta.refusal or _says_something(delta._raw):
                return True
        return False

    def _shape(self, full: bool) -> dict[str, Any]:
        optional = ("moderation", "obfuscation", "service_tier", "system_fingerprint")
        return _answer_shape(self, full, optional)


def _says_something(raw: Mapping[str, Any]) -> bool:
    """Whether any field of a message except its role has a value."""
    return any(name != "role" and value and _is_filled(value) for name, value in raw.items())


def _is_filled(value: Any) -> bool:
    """Whether a JSON value has a part that is not empty."""
    if isinstance(value, Mapping):
        return any(name != "type" and item and _is_filled(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(item and _is_filled(item) for item in value)
    return bool(value)


# --------------------------------------------------------------------------------------------- checking


def usd_to_nano(usd: float) -> int:
    """An amount in nano-dollars, rounded up, because amounts must not be compared as floats.

    Raises:
        ValueError: if it is negative, NaN or infinite.
    """
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd!r} is not an amount of money; must be 0 or more and finite")
    return math.ceil(round(usd * NANO, 3))


__all__ = [
    "NANO",
    "Attempt",
    "Billing",
    "BudgetStatus",
    "Choice",
    "Chunk",
    "ChunkChoice",
    "Classification",
    "Completion",
    "CompletionTokensDetails",
    "Compress",
    "CustomCall",
    "Delta",
    "Extras",
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
