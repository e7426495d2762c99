"""The public client: OpenAI's `chat.completions.create`, routed.

Owns the checking of what a caller passes and the order cache → plan → dispatch; each of these is a module of
its own. A call runs in its caller's thread.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, overload

import requests
from attrs import evolve, fields_dict

from . import errors, events
from .attempt import Attempts
from .budget import Budgets, spent_in
from .cache import Cache
from .classify import Classifier
from .config import Config, catalog_of, is_loopback_url, load, read_keys
from .dispatch import Dispatcher
from .ledger import Ledger, NullLedger, open_ledger
from .plan import Plan, Planner
from .providers import get as get_format
from .providers import names as format_names
from .providers.base import Target
from .quality import Rates, Validator
from .retry import RetryPolicy
from .sending import Call, Sinks, Wire
from .state import State
from .stream import Stream
from .transport import Transport
from .types import Completion, Request, Route, RouteOptions
from .workers import Workers

_ROUTE_WORDS = tuple(fields_dict(RouteOptions))
_clients: weakref.WeakSet[_Shared] = weakref.WeakSet()


def _after_fork() -> None:
    for shared in list(_clients):
        shared.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Shared:
    """What a client and all that `Client.with_options` makes of it share."""

    def __init__(self, config: Config, session: requests.Session | None, environ: Mapping[str, str]) -> None:
        self.config = config
        self.catalog = catalog_of(config)
        self.hooks = events.Hooks()
        self.state = State(config, self.catalog)
        self.classifier = Classifier.named(config.policy.classifier)
        self.planner = Planner(config, self.catalog, self.state, self.classifier)
        policy = config.policy
        retries = RetryPolicy.from_policy(policy)
        transports: dict[str, Transport] = {}
        wires: dict[str, Wire] = {}
        keys = read_keys(config, environ)
        for name, provider in config.providers.items():
            transports[name] = Transport(
                pool_size=provider.max_in_flight,
                connect_timeout=provider.connect_timeout or config.connect_timeout,
                max_response_bytes=config.max_response_bytes,
                proxy=provider.proxy,
                ca_bundle=provider.ca_bundle,
                session=session,
                allow_private_hosts=provider.allow_private_hosts
                or provider.proxy is not None
                or is_loopback_url(provider.base_url),
            )
        for endpoint in self.state.endpoints:
            provider = endpoint.provider
            name = endpoint.config.provider
            target = Target(
                endpoint=endpoint.name,
                provider=name,
                model=endpoint.model.name,
                upstream=endpoint.config.upstream,
                base_url=provider.base_url,
                key=keys.get(name),
                headers=provider.headers,
                max_output=endpoint.model.max_output_tokens or None,
            )
            wires[endpoint.name] = Wire(endpoint, get_format(provider.format), target, transports[name])
        self.transports = transports
        self.ledger: Ledger | NullLedger = open_ledger(config.ledger, hooks=self.hooks)
        self.rates = Rates(config.quality, self.hooks)
        self.budgets = Budgets(config.budgets, self.state.segment, spent_in(self.ledger), self.hooks)
        sinks = Sinks(
            retries, self.ledger, self.hooks, self.state.outputs, self.rates, self.budgets, self.freed
        )
        attempts = Attempts(policy, sinks)
        self.dispatcher = Dispatcher(policy, config.quality, retries, wires, attempts)
        cache = config.cache
        self.cache = (
            Cache(
                ttl=cache.ttl,
                max_entries=cache.max_entries,
                max_bytes=cache.max_bytes,
                max_entry_bytes=cache.max_entry_bytes,
                scope=cache.scope,
                fingerprint=hashlib.sha256(repr(config).encode("utf-8", "backslashreplace")).digest(),
            )
            if cache.enabled
            else None
        )
        self.workers = Workers(config.workers, config.max_pending)
        self.closed = False
        self._closing = threading.Lock()
        _clients.add(self)

    def freed(self) -> None:
        self.dispatcher.freed()

    def after_fork(self) -> None:
        self._closing = threading.Lock()
        self.workers.after_fork()
        self.dispatcher.after_fork()
        self.rates.after_fork()
        if self.cache is not None:
            self.cache.after_fork()

    def close(self) -> None:
        with self._closing:
            if self.closed:
                return
            self.closed = True
        self.workers.close()
        for transport in self.transports.values():
            transport.close()
        self.ledger.close()

    def run(self, request: Request, timeout: float) -> Completion | Stream:
        """One call, from the cache to its answer."""
        if self.closed:
            raise errors.Error("the client is closed")
        started = time.monotonic()
        deadline = started + timeout
        hooks = self.hooks
        try:
            answer = self._answer(request, started, deadline)
        except errors.Error as error:
            if hooks.wanted:
                hooks.emit(events.CallFinished(None, type(error).__name__))
            raise
        if hooks.wanted and isinstance(answer, Completion):
            hooks.emit(events.CallFinished(answer.route))
        return answer

    def _answer(self, request: Request, started: float, deadline: float) -> Completion | Stream:
        cache = self.cache
        if cache is None or request.stream or not request.options.cache:
            return self._routed(request, started, deadline)
        key = cache.key(request)
        if key is None:
            return self._routed(request, started, deadline)
        completion = cache.get(key)
        shared = True
        if completion is None:
            completion, shared = cache.through(
                key, lambda: self._routed_whole(request, started, deadline), deadline
            )
        if not shared or completion.route is None:
            return completion
        route = completion.route
        return completion.with_route(
            Route(
                route.model,
                route.endpoint,
                route.provider,
                route.tier,
                route._classification,
                0,
                time.monotonic() - started,
                None,
                (),
                True,
            )
        )

    def _routed(self, request: Request, started: float, deadline: float) -> Completion | Stream:
        plan = self.planner.plan(request)
        call = Call(request, plan.estimate, plan.level, plan.explainer(), started, deadline)
        if request.stream:
            return self.dispatcher.stream(call, plan)
        return self.dispatcher.complete(call, plan)

    def _routed_whole(self, request: Request, started: float, deadline: float) -> Completion:
        answer = self._routed(request, started, deadline)
        assert isinstance(answer, Completion)
        return answer


class Completions:
    """`client.chat.completions`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @overload
    def create(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        stream: Literal[False] | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> Completion: ...
    @overload
    def create(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        stream: Literal[True],
        route: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> Stream: ...
    def create(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        stream: bool | None = None,
        route: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> Completion | Stream:
        """Routes one chat completion and waits for its answer.

        Args:
            messages: OpenAI's messages.
            model: a model, an alias, a tier, or ``auto``; default: ``default_model`` of the configuration.
            stream: return a `Stream` of chunks instead.
            route: routing words: ``tags``, ``tier``, ``quality``, ``max_cost`` (USD), ``max_latency``
                (seconds), ``cache`` (False: leave the cache alone), ``validate`` (a JSON Schema, a pattern or
                a callable that judges the answer), ``force_premium`` (budgets do not downgrade), ``deadline``
                (seconds).
            timeout: seconds the whole call may take, retries and waiting and all.
            **params: every other parameter of the API, passed on untouched; 0 is a value.

        Returns:
            A `Completion` in OpenAI's shape with ``.route``, or a `Stream`.

        Raises:
            Error: or one of its kinds; ``.attempts`` says what was tried.
        """
        client = self._client
        request = client._request(messages, model, bool(stream), route, params)
        return client._shared.run(request, client._timeout_of(request, timeout))


class Chat:
    """`client.chat`."""

    def __init__(self, client: Client) -> None:
        self.completions = Completions(client)


class Client:
    """Routes chat completions among the configured endpoints.

    Args:
        config: a path to a TOML file, a mapping, a `Config`, or None: the file that FASTROUTE_CONFIG names,
            else ./fastroute.toml, else the providers whose keys are in the environment.
        session: a requests session of the caller's to send through (its proxies, TLS settings and mounted
            adapters); it is not closed by the client.

    Raises:
        ConfigError: listing every problem of the configuration.

    Thread safety: one client serves all threads, and forked children go on with it: they share limits,
    breakers and latencies with their parent and start with connections and threads of their own.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        *,
        session: requests.Session | None = None,
    ) -> None:
        loaded = load(config, formats=format_names())
        self._shared = _Shared(loaded, session, os.environ)
        self._options: Mapping[str, Any] = {}
        self._timeout: float | None = None
        self.chat = Chat(self)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._shared.config

    @property
    def ledger(self) -> Ledger | NullLedger:
        """The record of all attempts, with its sums."""
        return self._shared.ledger

    def plan(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        stream: bool | None = None,
        route: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Plan:
        """Shows how a call would be routed, without sending anything; ``str(plan)`` explains it.

        Raises:
            ModelNotFoundError, BadRequestError: as `create` would.
        """
        return self._shared.planner.plan(self._request(messages, model, bool(stream), route, params))

    def submit(self, **call: Any) -> Future[Any]:
        """Runs `create` with these arguments in a thread of the pool; blocks while its queue is full."""
        return self._shared.workers.submit(lambda: self.chat.completions.create(**call))

    def stats(self) -> dict[str, Any]:
        """Plain figures at this moment: endpoints (limits, breaker, latency), cache, waiting calls."""
        shared = self._shared
        return {
            "endpoints": shared.state.snapshot(),
            "cache": shared.cache.stats() if shared.cache is not None else None,
            "queued": shared.dispatcher.queued,
            "rates": shared.rates.snapshot(),
            "budgets": shared.budgets.snapshot(),
            "ledger": shared.ledger.health,
        }

    def on(
        self, hook: Callable[[Any], object], kind: type[events.Event] = events.Event
    ) -> Callable[[], None]:
        """Calls ``hook`` with every event of that kind (see `fastroute.events`); the result takes it off."""
        return self._shared.hooks.add(hook, kind)

    def with_options(
        self,
        *,
        timeout: float | None = None,
        tags: Mapping[str, str] | None = None,
        cache: bool | None = None,
    ) -> Client:
        """A client with other defaults that shares all else with this one; closing either closes both."""
        other = Client.__new__(Client)
        other._shared = self._shared
        other._timeout = self._timeout if timeout is None else _seconds("timeout", timeout)
        options = dict(self._options)
        if tags is not None:
            options["tags"] = {**options.get("tags", {}), **tags}
        if cache is not None:
            options["cache"] = cache
        other._options = options
        other.chat = Chat(other)
        return other

    def close(self) -> None:
        """Lets running calls end, writes the ledger out, closes connections. May be called again."""
        self._shared.close()

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
        messages: Sequence[Mapping[str, Any]],
        model: str | None,
        stream: bool,
        route: Mapping[str, Any] | None,
        params: Mapping[str, Any],
    ) -> Request:
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise errors.BadRequestError(
                f"messages: a list of mappings with role and content is wanted, not {type(messages).__name__}"
            )
        if not messages:
            raise errors.BadRequestError("messages: at least one is needed")
        if model is None:
            model = self._shared.config.default_model
        elif not isinstance(model, str) or not model:
            raise errors.BadRequestError("model: the name of a model, alias or tier, or auto")
        for name in ("max_tokens", "max_completion_tokens"):
            wanted = params.get(name)
            if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int)):
                raise errors.BadRequestError(f"{name}: a whole number is wanted, not {type(wanted).__name__}")
        options = self._route_options(route)
        if stream and options.validate is not None:
            raise errors.BadRequestError(
                "route.validate: a streamed answer is handed out before it could be judged; leave out stream"
            )
        return Request(model, messages, params, stream, options)

    def _route_options(self, route: Mapping[str, Any] | None) -> RouteOptions:
        if not route:
            return RouteOptions(**self._options) if self._options else _NO_OPTIONS
        words = {**self._options, **route}
        if "tags" in route and "tags" in self._options:
            words["tags"] = {**self._options["tags"], **route["tags"]}
        return _checked(words)

    def _timeout_of(self, request: Request, timeout: float | None) -> float:
        if timeout is not None:
            limit = _seconds("timeout", timeout)
        elif self._timeout is not None:
            limit = self._timeout
        else:
            limit = self._shared.config.timeout
        deadline = request.options.deadline
        return limit if deadline is None else min(limit, deadline)


_NO_OPTIONS = RouteOptions()


def _checked(words: Mapping[str, Any]) -> RouteOptions:
    """The routing words as a value; every wrong one is named."""
    for name in words:
        if name not in _ROUTE_WORDS:
            raise errors.BadRequestError(
                f"route.{name}: unknown routing word; there are {', '.join(_ROUTE_WORDS)}"
            )
    options = RouteOptions(**words)
    tags = options.tags
    if not isinstance(tags, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in tags.items()
    ):
        raise errors.BadRequestError("route.tags: a mapping of strings to strings is wanted")
    if options.tier is not None and not isinstance(options.tier, str):
        raise errors.BadRequestError("route.tier: the name of a tier is wanted")
    for name in ("cache", "force_premium"):
        if not isinstance(getattr(options, name), bool):
            raise errors.BadRequestError(f"route.{name}: True or False is wanted")
    quality = options.quality
    if quality is not None:
        _number("route.quality", quality)
        if quality > 1:
            raise errors.BadRequestError("route.quality: a number from 0 to 1 is wanted")
    for name in ("max_cost", "max_latency"):
        value = getattr(options, name)
        if value is not None:
            _number(f"route.{name}", value)
    if options.deadline is not None:
        _seconds("route.deadline", options.deadline)
    if options.validate is not None:
        Validator.of(options.validate)
    return evolve(options, tags=dict(tags)) if tags else options


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise errors.BadRequestError(f"{name}: a number that is not negative is wanted")
    return float(value)


def _seconds(name: str, value: Any) -> float:
    number = _number(name, value)
    if number == 0:
        raise errors.BadRequestError(f"{name}: more than 0 seconds are wanted")
    return number
