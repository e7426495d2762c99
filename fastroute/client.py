"""The public client, with the interface of OpenAI's `chat.completions.create`.

It checks the arguments of a call and passes it to `runtime/runtime.py`. A call runs in its caller's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from attrs import evolve

from . import errors, events
from .budget import Allowance
from .calls import arguments
from .calls.arguments import CONTENTS, PLAIN
from .calls.parsing import ParsedCompletion, is_model, parsed
from .calls.raw_response import RawResponse
from .calls.stream import Stream
from .calls.stream_events import CompletionStream
from .config import Config, Source
from .config.messages import did_you_mean
from .ledger import Ledger, NullLedger
from .platform import forks
from .routing.function_classifier import Ask
from .routing.plan import Plan
from .runtime.health import PROMPT, TAG, ask
from .runtime.runtime import Runtime
from .types import (
    BudgetStatus,
    Completion,
    Compress,
    Extras,
    Purse,
    Request,
    RouteOptions,
    usd_to_nano,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    import requests
    from typing_extensions import Unpack

    from .calls.parameters import CompletionParams, FurtherParams, Messages, TimeoutLike

T = TypeVar("T")


class _Named:
    """Names the nearest attribute for one that does not exist."""

    # Hidden from type checkers, which would take every name for an attribute.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            kind = type(self).__name__
            instead = _INSTEAD.get((kind, name)) or (_ELSEWHERE if name in _RESOURCES else None)
            if instead is not None:
                raise AttributeError(f"{kind!r} has no attribute {name!r}; {instead}")
            known = [each for each in (*dir(type(self)), *vars(self)) if not each.startswith("_")]
            raise AttributeError(f"{kind!r} has no attribute {name!r}{did_you_mean(name, known)}")


_INSTEAD = {
    ("Client", "completions"): "write client.chat.completions.create(...)",
    ("Client", "create"): "write client.chat.completions.create(...)",
    ("Chat", "create"): "write client.chat.completions.create(...)",
    ("Client", "models"): "the models are in client.config and in `fastroute models`",
    ("Client", "beta"): "write client.chat.completions instead of client.beta.chat.completions",
}
_RESOURCES = frozenset(
    {
        "audio",
        "batches",
        "containers",
        "conversations",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "moderations",
        "realtime",
        "responses",
        "uploads",
        "vector_stores",
        "videos",
        "webhooks",
    }
)
_ELSEWHERE = "fastroute routes chat completions only; use the provider's own SDK for the rest"


class Completions(_Named):
    """`client.chat.completions`."""

    def __init__(self, client: Client, change: Callable[[Request], Request] | None = None) -> None:
        self._client = client
        self._change = change  # of each request, for calls that are made in another way

    @overload
    def create(
        self,
        /,
        *,
        messages: Messages,
        model: str | None = None,
        stream: Literal[False] | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Completion: ...
    @overload
    def create(
        self,
        /,
        *,
        messages: Messages,
        model: str | None = None,
        stream: Literal[True],
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Stream: ...
    @overload
    def create(
        self,
        /,
        *,
        messages: Messages,
        model: str | None = None,
        stream: bool | None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Completion | Stream: ...
    def create(
        self,
        /,
        *,
        messages: Messages,
        model: str | None = None,
        stream: bool | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Any,
    ) -> Completion | Stream:
        """Routes one chat completion and waits for its answer.

        Args:
            messages: OpenAI's messages.
            model: a model, an alias, a tier, or ``auto``; default: ``default_model`` of the configuration.
            stream: whether to return a `Stream` of chunks.
            route: routing words: ``tags``, ``tier``, ``quality``, ``max_cost`` (USD), ``max_latency``
                (seconds), ``cache`` (False: do not use the cache), ``validate`` (a JSON Schema, a pattern or
                a callable that validates the answer), ``force_premium`` (budgets do not downgrade),
                ``priority`` (``high``, ``normal``, ``low``), ``hedge`` (whether a second request may be sent
                if the first is slow), ``deadline`` (seconds).
            timeout: seconds that the whole call may take, including retries and waiting; or the ``Timeout``
                of httpx, of which ``read`` counts.
            **params: all other parameters of the API, passed on unchanged, also those with the value 0. The
                OpenAI SDK's ``extra_body`` is merged into the body, ``extra_headers`` and ``extra_query`` are
                sent (none that carries a key), and ``max_retries`` bounds how often the call tries again. Its
                ``NOT_GIVEN`` and ``omit`` leave a parameter out.

        Returns:
            A `Completion` in OpenAI's shape with ``.route``, or a `Stream`.

        Raises:
            Error: or a subclass; ``.attempts`` has the attempts.
        """
        client = self._client
        runtime = client.runtime
        generation, token = None, object()
        try:
            generation = runtime.enter(token)
            request = client._request(generation.config, messages, model, bool(stream), route, params)
            if self._change is not None:
                request = self._change(request)
            answer = runtime.run(generation, request, client._timeout_of(generation.config, request, timeout))
        finally:
            runtime.leave(generation, token)
        return answer if request.extras is None else _read(request, answer)

    @overload
    def parse(
        self,
        /,
        *,
        messages: Messages,
        response_format: type[T],
        model: str | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[FurtherParams],
    ) -> ParsedCompletion[T]: ...
    @overload
    def parse(
        self,
        /,
        *,
        messages: Messages,
        response_format: Mapping[str, Any] | None = None,
        model: str | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[FurtherParams],
    ) -> ParsedCompletion[None]: ...
    def parse(self, /, **call: Any) -> ParsedCompletion[Any]:
        """As `create`, with the answer's content read as a pydantic model, and the arguments of strict tools.

        ``response_format`` is a pydantic model or dataclass. Its JSON Schema is sent in strict form, and
        ``reply.choices[0].message.parsed`` is an instance, or None if the model has refused.

        Raises:
            ValidationError: the answer does not fit the model, or was cut at ``max_tokens``; it is in the
                error's ``completion``.
            ContentFilterError: the content filter ended the answer.
            Error: as `create`.
        """
        if call.get("stream"):
            raise errors.BadRequestError("stream: is not supported by parse; write .stream(...)")
        answer = self.create(**call)
        if isinstance(answer, ParsedCompletion):
            return answer
        assert isinstance(answer, Completion)
        return parsed(answer, None, call.get("tools") or ())

    @overload
    def stream(
        self,
        /,
        *,
        messages: Messages,
        response_format: type[T],
        model: str | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[FurtherParams],
    ) -> CompletionStream[T]: ...
    @overload
    def stream(
        self,
        /,
        *,
        messages: Messages,
        response_format: Mapping[str, Any] | None = None,
        model: str | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[FurtherParams],
    ) -> CompletionStream[None]: ...
    def stream(self, /, **call: Any) -> CompletionStream[Any]:
        """As `create` with ``stream=True``, as events: ``content.delta``, ``content.done`` and so on.

        Use it in a ``with`` block; the call begins there. Its ``get_final_completion`` returns the answer, as
        `parse` does.
        """
        model, tools = call.get("response_format"), call.get("tools")
        begin: Callable[[], Stream] = partial(self.create, stream=True, **call)  # type: ignore[assignment]
        return CompletionStream(
            begin,
            model if is_model(model) else None,
            tools if isinstance(tools, (list, tuple)) else (),
        )

    @property
    def with_raw_response(self) -> RawCompletions:
        """The same calls, each with the headers of its response; they do not use the cache."""
        return RawCompletions(self._client)


class RawCompletions(_Named):
    """`client.chat.completions.with_raw_response`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, /, **call: Any) -> RawResponse[Any]:
        """As `Completions.create`; returns `RawResponse`, whose ``parse()`` is the answer."""
        return self._raw("create", call)

    def parse(self, /, **call: Any) -> RawResponse[Any]:
        """As `Completions.parse`; returns `RawResponse`, whose ``parse()`` is the answer."""
        return self._raw("parse", call)

    def _raw(self, name: str, call: Mapping[str, Any]) -> RawResponse[Any]:
        heads: list[tuple[int, Mapping[str, str]]] = []

        def asked(request: Request) -> Request:
            extras = evolve(request.extras or Extras(), answered=lambda *head: heads.append(head))
            # An answer from the cache has no headers.
            return evolve(request, extras=extras, options=evolve(request.options, cache=False))

        answer = getattr(Completions(self._client, asked), name)(**call)
        # Of an answer that failed its check and was asked for again, the last one counts.
        status, headers = heads[-1]
        return RawResponse(answer, headers, status)


class Chat(_Named):
    """`client.chat`."""

    def __init__(self, client: Client) -> None:
        self.completions = Completions(client)


# Arguments of the OpenAI SDK's clients, and where their settings are here.
_SDK_ARGUMENTS = {
    "api_key": "keys come from the environment: set OPENAI_API_KEY, or the variable that api_key_env names",
    "base_url": "set base_url in [providers.NAME], or OPENAI_BASE_URL",
    "organization": 'set it in the configuration: [providers.openai] headers = {"OpenAI-Organization" = "…"}',
    "project": 'set it in the configuration: [providers.openai] headers = {"OpenAI-Project" = "…"}',
    "timeout": "set timeout in [fastroute] or FASTROUTE_TIMEOUT, or use client.with_options(timeout=…)",
    "max_retries": "set max_attempts in [policy], or FASTROUTE_POLICY__MAX_ATTEMPTS",
    "default_headers": "set headers in [providers.NAME]",
    "default_query": "set api_version in [providers.NAME] for Azure; there are no other query parameters",
    "http_client": "pass a requests.Session as session=",
    "azure_endpoint": "set base_url in [providers.azure], or AZURE_OPENAI_ENDPOINT",
    "azure_deployment": "set upstream in [[endpoints]]",
    "api_version": "set api_version in [providers.azure], or OPENAI_API_VERSION",
    "model": "set default_model in [fastroute], or pass model= to create",
    "budget": "set [[budgets]], or use client.with_options(budget=…)",
}


def _unknown_argument(name: str) -> str:
    """The message for an argument that `Client` does not have."""
    right = _SDK_ARGUMENTS.get(name)
    if right is None:
        known = ("config", "session", "compress", "classifier", "default_state")
        right = f"use one of {', '.join(known)}{did_you_mean(name, known)}"
    return f"Client({name}=…): there is no such argument; {right}"


class Client(_Named):
    """Routes chat completions among the configured endpoints.

    Args:
        config: a path to a TOML file, a mapping, a `Config`, or None: the file that FASTROUTE_CONFIG names,
            else ./fastroute.toml, else the providers whose keys are in the environment.
        session: your own requests session to send through, with its proxies, TLS settings and mounted
            adapters; the client does not close it.
        compress: called if a request is too long for every model that could serve it, with the messages and
            the input tokens that are allowed; returns shorter messages. It runs in the caller's thread
            without a time limit, before anything is reserved.
        classifier: called instead of the rule set of ``policy.classifier`` for requests with ``auto``, with
            the messages and the other parameters; returns a level of the rule set or a tier, either with a
            confidence (0..1), or a mapping with a score for each. It runs in a separate thread for at most
            ``policy.classifier_timeout`` seconds; if it fails, the default tier is used.
        default_state: the default of ``[fastroute] state``, such as ``"memory"`` or ``"machine"``. None:
            ``"machine"`` under a server or job queue that runs the program in several processes, such as
            gunicorn, Celery or a pool of multiprocessing, otherwise ``"memory"``.

    Raises:
        ConfigError: with every problem of the configuration.

    Thread safety: all methods. Forked children can use the client too: they share limits, breakers and
    latencies with their parent, and have their own connections and threads.
    """

    _options: Mapping[str, Any] = {}
    _defaults = RouteOptions()  # the same as a value
    _timeout: float | None = None
    _allowance: Purse | None = None
    _cancelled: Callable[[], bool] | None = None

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        *,
        session: requests.Session | None = None,
        compress: Compress | None = None,
        classifier: Ask | None = None,
        default_state: str | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise TypeError(_unknown_argument(next(iter(unknown))))
        self.runtime = Runtime(config, session, compress, classifier).start(default_state)
        self.chat = Chat(self)

    @property
    def _here(self) -> Runtime:
        """The runtime, repaired after a fork that ran no Python hooks; `create` does that itself."""
        forks.ensure()
        return self.runtime

    @property
    def config(self) -> Config:
        """The current configuration."""
        return self.runtime.generation.config

    @property
    def ledger(self) -> Ledger | NullLedger:
        """The ledger: the record of all attempts, and sums over it."""
        return self.runtime.ledger

    def plan(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        stream: bool | None = None,
        route: Mapping[str, Any] | None = None,
        **params: Unpack[CompletionParams],
    ) -> Plan:
        """Returns how a call would be routed, without sending anything; ``str(plan)`` explains it.

        Raises:
            ModelNotFoundError, BadRequestError: as `create` would.
        """
        generation = self._here.generation
        request = self._request(generation.config, messages, model, bool(stream), route, params)
        planner = generation.planner
        return planner.rank(planner.plan(request))

    @overload
    def probe(
        self,
        endpoint: str,
        *,
        messages: Messages = ...,
        stream: Literal[False] | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Completion: ...
    @overload
    def probe(
        self,
        endpoint: str,
        *,
        messages: Messages = ...,
        stream: bool,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Completion | Stream: ...
    def probe(
        self,
        endpoint: str,
        *,
        messages: Messages = ({"role": "user", "content": PROMPT},),
        stream: bool | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Any,
    ) -> Completion | Stream:
        """Calls one endpoint, without the cache, failover or a second attempt.

        The call waits for limits, and is recorded and charged like any other, with the tag ``probe`` unless
        ``route`` has one. Its latency does not affect the ranking of endpoints.

        Args:
            endpoint: the endpoint's name, by default ``provider/model``.
            messages, stream, route, timeout, **params: as for `create`.

        Raises:
            NoEndpointError: there is no endpoint of that name, or it admits no call now.
            Error: the attempt failed; ``.attempts`` has it.
        """
        runtime = self.runtime
        generation, token = None, object()
        try:
            generation = runtime.enter(token)
            request = self._request(generation.config, messages, None, bool(stream), route, params)
            if request.options.validate is not None:
                raise errors.BadRequestError("route.validate: is not supported by probe; leave it out")
            options = evolve(request.options, tags={TAG: "call", **request.options.tags})
            request = evolve(request, options=options)
            asked = generation.state.named(endpoint)
            limit = self._timeout_of(generation.config, request, timeout)
            answer = ask(generation, asked, request, limit, wait=True)
        finally:
            runtime.leave(generation, token)
        return answer if request.extras is None else _read(request, answer)

    def unblock(self, endpoint: str) -> None:
        """Ends the block of an endpoint at once, for instance after its key or quota was corrected.

        This includes other endpoints that are blocked because of the same account or host, and all processes
        that share the state. Breakers are not changed. Does nothing if the endpoint is not blocked.

        Args:
            endpoint: the endpoint's name, by default ``provider/model``.

        Raises:
            NoEndpointError: there is no endpoint of that name.

        Thread safety: may be called from any thread.
        """
        runtime = self._here
        state = runtime.generation.state
        for mended in state.left_out_with(state.named(endpoint)):
            mended.core.unblock()
            if runtime.shared is not None:
                runtime.shared.unblocked(mended.name)

    @overload
    def submit(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        stream: Literal[False] | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Future[Completion]: ...
    @overload
    def submit(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        stream: Literal[True],
        route: Mapping[str, Any] | None = None,
        timeout: float | TimeoutLike | None = None,
        **params: Unpack[CompletionParams],
    ) -> Future[Stream]: ...
    def submit(self, **call: Any) -> Future[Any]:
        """Runs `create` with these arguments in a thread of the pool; blocks while its queue is full.

        `create` waits for a limit for at most ``policy.queue_timeout``. A submitted call waits until its
        deadline (``timeout``), which is counted from when a thread starts it.
        """
        completions = Completions(self, partial(evolve, submitted=True))
        return self._here.workers.submit(lambda: completions.create(**call))

    def stats(self) -> dict[str, Any]:
        """Current figures as plain values.

        They are: where the state is kept and how many processes share it, endpoints (limits, breaker,
        latency), cache, waiting calls, classifier failures, the traffic of the learned classifier, rates,
        budgets and how often they had no room to count a value by itself (in all, and in the last five
        minutes), ledger, and the health checks of this process.
        """
        runtime = self._here
        generation, health = runtime.generation, runtime.health
        return {
            "state": generation.state.sharing(),
            "redis": runtime.shared.stats() if runtime.shared is not None else None,
            "endpoints": generation.state.snapshot(),
            "cache": generation.cache.stats() if generation.cache is not None else None,
            "queued": runtime.queue.waiting,
            "classifier": runtime.function_classifier.stats(),
            "learned": generation.learned.figures() if generation.learned is not None else None,
            "rates": generation.rates.snapshot(),
            "budgets": generation.budgets.snapshot(),
            "crowded": generation.budgets.crowded(),
            "ledger": runtime.ledger.health,
            "health_checks": health.snapshot() if health is not None else None,
        }

    def budgets(self, tags: Mapping[str, str] | None = None) -> tuple[BudgetStatus, ...]:
        """What is left of every budget, now: spent, reserved for calls under way, and when it begins anew.

        Budgets of a single request have nothing to add up and are not among them. The budget of a copy that
        `with_options` made is, under the name ``with_options``.

        Args:
            tags: of a call, whose budgets are wanted. Default: all, with each value of a tag that this
                process has had a call of.

        Thread safety: may be called from any thread. The first call in a window asks the ledger.
        """
        budgets = self._here.generation.budgets
        if tags is None and "tags" not in self._options:
            found = budgets.snapshot()
        else:
            found = budgets.snapshot({**self._options.get("tags", {}), **(tags or {})})
        return found + self._own_budget()

    def _own_budget(self) -> tuple[BudgetStatus, ...]:
        allowance = self._allowance
        return (allowance.status(),) if isinstance(allowance, Allowance) else ()

    def reload(self, source: Source = None) -> events.ConfigReloaded:
        """Reads the configuration again and applies it as a whole, or changes nothing if it is invalid.

        Running calls and streams keep their configuration, except for limits, which change for all calls at
        once; what was used of them stays used. See docs/reload.md.

        Args:
            source: where to read from, now and at later reloads, as for `Client`. Default: the source of the
                current configuration, with the current environment and keys.

        Returns:
            What has changed, and which settings need a restart.

        Raises:
            ConfigError: with every problem; the current configuration stays in use.
            Error: the client is closed.

        Thread safety: may be called from any thread; reloads run one after the other. It affects only this
        process, not its parent or children.
        """
        return self._here.reload(source)

    def on(
        self, hook: Callable[[Any], object], kind: type[events.Event] = events.Event
    ) -> Callable[[], None]:
        """Calls ``hook`` with every event of a kind (see `fastroute.events`).

        Returns:
            A function that removes the hook.
        """
        return self._here.hooks.add(hook, kind)

    def with_options(
        self,
        *,
        timeout: float | TimeoutLike | None = None,
        tags: Mapping[str, str] | None = None,
        budget: float | Purse | None = None,
        cache: bool | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Client:
        """A client with other defaults that shares everything else with this one; closing one closes both.

        Args:
            timeout: seconds that a whole call may take.
            tags: added to the tags of every call.
            budget: USD that all calls of the new client together may cost in this process; a call whose
                worst-case cost does not fit raises `BudgetExceeded`. Or an object that pays for the attempts
                of these calls, see `fastroute.types.Purse`.
            cache: False to use the response cache for no call.
            cancelled: asked twice a second while a call is made; once it returns True, the call ends with
                `CallCancelled`, and so does the provider's request. It is called by another thread and must
                not block. A stream is asked about until its first content.
        """
        other = Client.__new__(Client)
        other.__dict__.update(self.__dict__)  # with its runtime, if that is started yet
        limit = None if timeout is None else arguments.time_limit(timeout)
        other._timeout = self._timeout if limit is None else limit
        options = dict(self._options)
        if tags is not None:
            options["tags"] = {**options.get("tags", {}), **arguments.checked_tags("tags", tags)}
        if cache is not None:
            options["cache"] = cache
        other._defaults = arguments.route_options(options)
        other._options = options
        other._cancelled = self._cancelled if cancelled is None else cancelled
        other._allowance = self._allowance
        if budget is not None:
            other._allowance = (
                budget
                if isinstance(budget, Purse)
                else Allowance(usd_to_nano(arguments.number("budget", budget)), self.runtime.queue.freed)
            )
        other.chat = Chat(other)
        return other

    def close(self) -> None:
        """Waits for running calls, writes the ledger and closes connections. Idempotent."""
        self._here.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Client holds connections and shared memory and cannot be pickled; pickle its config"
        )

    def _request(
        self,
        config: Config,
        messages: Any,
        model: str | None,
        stream: bool,
        route: Mapping[str, Any] | None,
        params: Mapping[str, Any],
    ) -> Request:
        extras = None
        # One look at names and types: what is usual needs no more than this.
        if params and not PLAIN.issuperset(zip(params, map(type, params.values()))):
            params, route, extras = arguments.read(params, route)
        if type(messages) is not list or not messages:
            messages = arguments.checked_messages(messages)
        for message in messages:
            if (
                type(message) is not dict
                or type(message.get("role")) is not str
                or type(message.get("content")) not in CONTENTS
            ):
                messages = arguments.checked_messages(messages)
                break
        if model is None:
            model = config.default_model
        elif not isinstance(model, str) or not model:
            if not arguments.is_absent(model):
                raise errors.BadRequestError(
                    f"model: must be the name of a model, alias or tier, or auto, not {model!r}"
                    if isinstance(model, str)
                    else f"model: must be a string, not {type(model).__name__}",
                    param="model",
                )
            model = config.default_model
        options = self._route_options(route)
        if stream and options.validate is not None:
            raise errors.BadRequestError(
                "route.validate: a streamed answer cannot be validated; leave out stream"
            )
        request = Request(model, messages, params, stream, options)
        allowance, cancelled = self._allowance, self._cancelled
        if allowance is not None or extras is not None or cancelled is not None:
            request = evolve(request, allowance=allowance, extras=extras, cancelled=cancelled)
        return request

    def _route_options(self, route: Mapping[str, Any] | None) -> RouteOptions:
        if not route:
            return self._defaults
        words = {**self._options, **arguments.checked_route(route)}
        if "tags" in route and "tags" in self._options:
            words["tags"] = {
                **self._options["tags"],
                **arguments.checked_tags("route.tags", route["tags"]),
            }
        return arguments.route_options(words)

    def _timeout_of(self, config: Config, request: Request, timeout: Any) -> float:
        limit = None if timeout is None else arguments.time_limit(timeout)
        if limit is None:
            limit = config.timeout if self._timeout is None else self._timeout
        deadline = request.options.deadline
        return limit if deadline is None else min(limit, deadline)


def _read(request: Request, answer: Completion | Stream) -> Completion | Stream:
    """The answer, read as the pydantic model that the request has."""
    extras = request.extras
    if extras is None or extras.model is None or not isinstance(answer, Completion):
        return answer
    return parsed(answer, extras.model, request.params.get("tools") or ())
