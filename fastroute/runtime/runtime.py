"""The runtime that a client and its copies share: the current generation, and what outlives it.

`Runtime.run` carries out one call: cache, plan, dispatch.

A call enters the current generation with `Runtime.enter` and leaves it with `Runtime.leave`. `enter` stores
the call's token in the generation and then checks that the generation is still the current one. A reload
first replaces the current generation and then looks for tokens in the old one. In this order at least one of
the two sees the other, so a call takes no lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from fastroute import _core, errors, events
from fastroute.calls.call import Call
from fastroute.calls.queue import WaitQueue
from fastroute.calls.stream import Stream
from fastroute.calls.watch import watched
from fastroute.config import Config, Secret, Source, file_of, load_with_keys
from fastroute.ledger import Ledger, NullLedger, configured_ledger
from fastroute.platform import forks, greenlets
from fastroute.platform import hosting as servers
from fastroute.platform.workers import Workers
from fastroute.providers import names as format_names
from fastroute.routing.function_classifier import Ask, FunctionClassifier
from fastroute.types import Completion, Compress, Request, Route

from .generation import Generation, Surroundings, files_of, lasting
from .health import HealthChecks
from .reload import FileWatch

if TYPE_CHECKING:
    import requests

    from fastroute.state.redis import Shared

Unstarted = tuple[Config, dict[str, Secret | None], "requests.Session | None"]

_CLOSED = "the client is closed; keep it open while calls are made, or create another Client"
log = logging.getLogger("fastroute")

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _after_fork() -> None:
    for runtime in list(_runtimes):
        runtime.after_fork()


forks.in_child(_after_fork)


class Runtime:
    """Serves calls with the current configuration, once it is started.

    Before `start` it has read the configuration and opened the ledger, so that what is wrong with them shows.

    Attributes:
        generation: the current generation. Read it once per call, because a reload may replace it.
        hedge_workers: the threads of hedges.

    Raises:
        ConfigError: with every problem of the configuration.

    Thread safety: all methods. A forked child keeps the current generation and opens its own connections.
    """

    def __init__(
        self,
        source: Source,
        session: requests.Session | None,
        compress: Compress | None = None,
        classifier: Ask | None = None,
    ) -> None:
        greenlets.check()
        self._compress = compress
        self._source, config, keys = _read(source)
        servers.check(config.timeout)
        self.hooks = events.Hooks()
        self.function_classifier = FunctionClassifier(classifier, self.hooks)
        self.queue = WaitQueue()
        self.closed = False
        self._retired: set[Generation] = set()  # old generations that calls still use
        self._reloading = threading.Lock()
        self._swapping = threading.Lock()
        self.watch: FileWatch | None = None
        self.health: HealthChecks | None = None
        self.ledger: Ledger | NullLedger = configured_ledger(config, self.hooks)
        self._unstarted: Unstarted | None = (self._with_ledger(config), keys, session)

    def start(self, default_state: str | None) -> Runtime:
        """Builds the first generation, before anything else but `close` is used. Idempotent, not thread-safe.

        Args:
            default_state: where the state is kept if the configuration does not say; see
                `segment_file.open_home`.

        Raises:
            ConfigError: it cannot be built; the runtime is closed.
            Error: the runtime is closed.
        """
        if self._unstarted is None:
            return self
        if self.closed:
            raise errors.Error(_CLOSED)
        config, keys, session = self._unstarted
        try:
            self.hedge_workers = Workers(config.workers, 0, "fastroute-hedge")
            self._around = Surroundings(
                ledger=self.ledger,
                hooks=self.hooks,
                queue=self.queue,
                function_classifier=self.function_classifier,
                session=session,
                hedges=self.hedge_workers,
                default_state=default_state,
            )
            self.generation = Generation(config, keys, self._around)
            self.shared: Shared | None = self._share()
            if config.reload != "off":
                self.watch = FileWatch(config.reload, self._files(), self._reload_unasked)
        except BaseException:
            self.closed = True
            self.ledger.close()
            raise
        self.workers = Workers(config.workers, config.max_pending)
        self._check_health(config)
        self._unstarted = None
        _runtimes.add(self)
        if self.watch is not None:
            self.watch.ensure()
        return self

    @property
    def state_is_configured(self) -> bool:
        """Before the start: whether the configuration says where the state is kept."""
        return self._unstarted is not None and self._unstarted[0].state is not None

    def after_fork(self) -> None:
        """In a forked child: drops the calls and threads of the parent."""
        self._reloading = threading.Lock()
        self._swapping = threading.Lock()
        self.hooks.after_fork()
        self.function_classifier.after_fork()
        self.workers.after_fork()
        self.hedge_workers.after_fork()
        self.queue.after_fork()
        if self.shared is not None:
            self.shared.after_fork()
        for generation in (self.generation, *self._retired):
            generation.after_fork()
        self._retired.clear()
        if self.watch is not None:
            self.watch.after_fork()
        if self.health is not None:
            self.health.after_fork()

    def close(self) -> None:
        """Waits for running calls, writes the ledger and closes connections. Idempotent."""
        with self._swapping:
            if self.closed:
                return
            self.closed = True
            if self._unstarted is not None:
                self.ledger.close()
                return
            live = (self.generation, *self._retired)
        if self.watch is not None:
            self.watch.stop()
        if self.health is not None:
            self.health.stop()
        self.workers.close()
        self.hedge_workers.close()
        self.function_classifier.close()
        if self.shared is not None:
            self.shared.close()
        for generation in live:
            for transport in generation.transports.values():
                transport.close()
        self.ledger.close()

    # ------------------------------------------------------------------------------------------- generations

    def enter(self, token: object) -> Generation:
        """The current generation, which stays usable until `leave` is called with the same token.

        Raises:
            RecursionError: the stack has no room for a whole call.
        """
        # Before anything is taken: without room, what gives it back would fail as well.
        _core.check_stack()
        if _core.fork_count() != forks.handled:
            forks.ensure()
        if threading.get_ident is not greenlets.GET_IDENT:
            greenlets.check()  # raises if gevent has patched after the import
        if self.closed:
            raise errors.Error(_CLOSED)
        if self.watch is not None:
            self.watch.ensure()  # a forked child has no thread until it is first used
        if self.shared is not None:
            self.shared.ensure()
        health = self.health  # a reload may set it to None
        if health is not None:
            health.ensure()
        while True:
            generation = self.generation
            generation.active.add(token)
            if generation is self.generation:
                return generation
            self.leave(generation, token)

    def leave(self, generation: Generation | None, token: object) -> None:
        """Ends the use of a generation; None if `enter` was interrupted before it returned one."""
        if generation is None:
            for each in (self.generation, *self._retired):
                each.active.discard(token)
            return
        generation.active.discard(token)
        if generation is not self.generation and not generation.active:
            self._give_up(generation)

    def reload(self, source: Source) -> events.ConfigReloaded:
        """Reads the configuration and applies it, or raises and changes nothing."""
        try:
            with self._reloading:
                event = self._replace(self._source if source is None else source)
        except errors.ConfigError as error:
            if self.hooks.wanted:
                self.hooks.emit(
                    events.ConfigRefused(_name_of(self._source if source is None else source), error.problems)
                )
            raise
        for key in event.kept:
            log.warning("%s: has changed in %s; a restart is needed to apply it", key, event.source)
        if self.hooks.wanted:
            self.hooks.emit(event)
        return event

    def _reload_unasked(self) -> Sequence[str]:
        """Reloads because of a signal or a changed file, and logs the result."""
        try:
            event = self.reload(None)
            log.info("%s was reloaded; changed: %s", event.source, ", ".join(event.changed) or "nothing")
        except errors.Error as error:
            if not self.closed:
                log.error("the configuration was not reloaded; the previous one stays in use: %s", error)
        except Exception:
            log.exception("the configuration was not reloaded; the previous one stays in use")
        return self._files()

    def _replace(self, source: Source) -> events.ConfigReloaded:
        if self.closed:
            raise errors.Error(_CLOSED)
        old = self.generation
        source, found, keys = _read(source)
        config, kept = lasting(old.config, self._with_ledger(found))
        new = Generation(config, keys, self._around, old)
        if self.shared is not None:
            self._attach(self.shared, new)
        with self._swapping:
            if self.closed:
                raise errors.Error(_CLOSED)
            self._retired.add(old)
            self._source = source
            self.generation = new
            older = tuple(self._retired)
        for generation in older:
            generation.state.follow(new.state)
        new.forgive(old)
        self._check_health(config)
        self.queue.look()  # a limit may have been raised
        if not old.active:
            self._give_up(old)
        return events.ConfigReloaded(_name_of(source), new.changes(old), kept)

    def _with_ledger(self, config: Config) -> Config:
        """The configuration with no ledger, if the default one could not be opened."""
        skipped = config.ledger is None and isinstance(self.ledger, NullLedger)
        return evolve(config, ledger="") if skipped else config

    def _share(self) -> Shared | None:
        config, state = self.generation.config, self.generation.state
        if not config.over_redis:
            return None
        from fastroute.state.redis import Shared  # imported only if it is used

        shared = Shared(config, state.segment, state.home.path, self.hooks)
        self._attach(shared, self.generation)
        return shared

    def _check_health(self, config: Config) -> None:
        """Starts or stops health checks, as configured."""
        before = self.health
        if not config.policy.health_check.enabled:
            self.health = None
            if before is not None:
                before.stop(wait=False)
        elif before is None:
            self.health = HealthChecks(self)
        else:
            before.wake()

    def _attach(self, shared: Shared, generation: Generation) -> None:
        shared.attach(generation.state.cores, generation.config.policy.breaker.probe_lease)
        generation.budgets.share(shared.bank)

    def _give_up(self, generation: Generation) -> None:
        """Closes the connections that only this generation used; running streams finish."""
        with self._swapping:
            if generation not in self._retired:
                return
            self._retired.discard(generation)
            wanted = {
                id(transport)
                for live in (self.generation, *self._retired)
                for transport in live.transports.values()
            }
        for transport in generation.transports.values():
            if id(transport) not in wanted:
                transport.close()

    def _files(self) -> tuple[str, ...]:
        source = (self._source,) if isinstance(self._source, str) else ()
        return (*source, *files_of(self.generation.config))

    # ----------------------------------------------------------------------------------------------- calls

    def run(self, generation: Generation, request: Request, timeout: float) -> Completion | Stream:
        """Carries out one call and returns its answer."""
        started = time.monotonic()
        deadline = started + timeout
        hooks = self.hooks
        # Releases what killed workers held; one process does it every few seconds.
        generation.state.segment.tend()
        if generation.state.untold:
            generation.state.tell(hooks)
        if generation.learned is not None:
            generation.learned.look()
        try:
            answer = self._answer(generation, request, started, deadline)
        except errors.Error as error:
            if hooks.wanted:
                hooks.emit(events.CallFinished(None, type(error).__name__))
            raise
        if hooks.wanted and isinstance(answer, Completion):
            hooks.emit(events.CallFinished(answer.route))
        return answer

    def _answer(
        self, generation: Generation, request: Request, started: float, deadline: float
    ) -> Completion | Stream:
        cache = generation.cache
        if cache is None or request.stream or not request.options.cache:
            return self._routed(generation, request, started, deadline)
        key = cache.key(request, generation.fingerprint)
        if key is None:
            return self._routed(generation, request, started, deadline)
        completion = cache.get(key)
        shared = True
        if completion is None:
            completion, shared = cache.through(
                key, lambda: self._routed_whole(generation, request, started, deadline), deadline
            )
        if not shared or completion.route is None:
            return completion
        route = completion.route
        return completion.with_route(
            Route(
                model=route.model,
                endpoint=route.endpoint,
                provider=route.provider,
                tier=route.tier,
                classification=route._classification,
                cost_nano=0,
                latency=time.monotonic() - started,
                ttft=None,
                attempts=(),
                cached=True,
                budgets=generation.budgets.left_for(request) or (),
            )
        )

    def _routed(
        self, generation: Generation, request: Request, started: float, deadline: float
    ) -> Completion | Stream:
        planner = generation.planner
        plan = planner.plan(request)
        if self._compress is not None:
            room = planner.room(plan)
            if room:
                request = evolve(request, messages=_compressed(self._compress, request.messages, room))
                plan = planner.plan(request)
        call = Call(request, plan.estimate, plan.judgement, started, deadline)
        if generation.config.budgets or request.allowance is not None:
            call.budgets = generation.budgets.left_for(request)
        run = generation.dispatcher.stream if request.stream else generation.dispatcher.complete
        return run(call, plan) if request.cancelled is None else watched(request.cancelled, call, plan, run)

    def _routed_whole(
        self, generation: Generation, request: Request, started: float, deadline: float
    ) -> Completion:
        answer = self._routed(generation, request, started, deadline)
        assert isinstance(answer, Completion)
        return answer


def _compressed(
    compress: Compress, messages: Sequence[Mapping[str, Any]], room: int
) -> Sequence[Mapping[str, Any]]:
    shorter = compress(messages, room)
    if isinstance(shorter, (str, bytes, Mapping)) or not isinstance(shorter, Sequence) or not shorter:
        raise errors.BadRequestError(
            f"compress: the hook must return a list of messages, not {type(shorter).__name__}"
        )
    return shorter


def _read(source: Source) -> tuple[Source, Config, dict[str, Secret | None]]:
    """The source (a file by its absolute path), the configuration and its keys."""
    file = file_of(source)
    if file is not None:
        source = str(file)
    return source, *load_with_keys(source, formats=format_names())


def _name_of(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(source)
    if source is None:
        return "environment"
    return "Config" if isinstance(source, Config) else "mapping"
