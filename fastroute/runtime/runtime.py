"""What a client and its copies share: the snapshot in force, and what outlasts it.

Owns which snapshot a call is served by, putting another into force, and a call's way from the cache over plan
and dispatch to its answer; each of these is a module of its own. What callers pass is checked in `client.py`.

A call takes hold of the snapshot in force with `Router.enter` and lets go of it with `Router.leave`. It first
leaves its token there and then looks whether the snapshot is still in force; a reload puts another into force
and then looks for tokens. So of the two one always sees the other, with no lock in the way of a call.
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

from fastroute import errors, events
from fastroute.calls.call import Call
from fastroute.calls.queue import Line
from fastroute.calls.stream import Stream
from fastroute.config import Config, Secret, Source, file_of, load, read_keys
from fastroute.ledger import Ledger, NullLedger, configured_ledger
from fastroute.platform import forks, greenlets
from fastroute.platform import hosting as servers
from fastroute.platform.workers import Workers
from fastroute.providers import names as format_names
from fastroute.routing.function_classifier import Ask, Opinions
from fastroute.types import Completion, Compress, Request, Route

from .generation import Snapshot, Surroundings, files_of, lasting
from .health import HealthChecks
from .reload import Watch

if TYPE_CHECKING:
    import requests

    from fastroute.state.redis import Shared

log = logging.getLogger("fastroute")

_routers: weakref.WeakSet[Router] = weakref.WeakSet()


def _after_fork() -> None:
    for router in list(_routers):
        router.after_fork()


forks.in_child(_after_fork)


class Router:
    """Serves calls by the configuration in force.

    Attributes:
        snapshot: the one in force. Read it once: the next read may give another.

    Raises:
        ConfigError: with every problem of the configuration.

    Thread safety: all methods. A forked child goes on with the snapshot in force and connections of its own.
    """

    def __init__(
        self,
        source: Source,
        session: requests.Session | None,
        compress: Compress | None = None,
        default_state: str = "memory",
        classifier: Ask | None = None,
    ) -> None:
        greenlets.check()
        self._compress = compress
        self._default_state = default_state
        self._source, config, keys = _read(source, default_state)
        servers.check(config.timeout)
        self.hooks = events.Hooks()
        self.opinions = Opinions(classifier, self.hooks)
        self.line = Line()
        self.closed = False
        self._retired: set[Snapshot] = set()  # no longer in force, but calls have hold of them
        self._reloading = threading.Lock()
        self._swapping = threading.Lock()
        self.watch: Watch | None = None
        self.health: HealthChecks | None = None
        self.ledger: Ledger | NullLedger = configured_ledger(config, self.hooks)
        try:
            self._hedges = Workers(config.workers, 0, "fastroute-hedge")
            self._around = Surroundings(
                self.ledger, self.hooks, self.line, self.opinions, session, self._hedges
            )
            self.snapshot = Snapshot(config, keys, self._around)
            self.shared: Shared | None = self._share()
            if config.reload != "off":
                self.watch = Watch(config.reload, self._files(), self._reload_unasked)
        except BaseException:
            self.ledger.close()
            raise
        self.workers = Workers(config.workers, config.max_pending)
        self._check_health(config)
        _routers.add(self)
        if self.watch is not None:
            self.watch.ensure()

    def after_fork(self) -> None:
        """In a forked child: starts over, with none of the parent's calls and threads."""
        self._reloading = threading.Lock()
        self._swapping = threading.Lock()
        self.hooks.after_fork()
        self.opinions.after_fork()
        self.workers.after_fork()
        self._hedges.after_fork()
        self.line.after_fork()
        if self.shared is not None:
            self.shared.after_fork()
        for snapshot in (self.snapshot, *self._retired):
            snapshot.after_fork()
        self._retired.clear()
        if self.watch is not None:
            self.watch.after_fork()
        if self.health is not None:
            self.health.after_fork()

    def close(self) -> None:
        """Lets running calls end, writes the ledger out, closes connections. May be called again."""
        with self._swapping:
            if self.closed:
                return
            self.closed = True
            live = (self.snapshot, *self._retired)
        if self.watch is not None:
            self.watch.stop()
        if self.health is not None:
            self.health.stop()
        self.workers.close()
        self._hedges.close()
        self.opinions.close()
        if self.shared is not None:
            self.shared.close()
        for snapshot in live:
            for transport in snapshot.transports.values():
                transport.close()
        self.ledger.close()

    # ------------------------------------------------------------------------------------------- snapshots

    def enter(self, token: object) -> Snapshot:
        """The snapshot in force, kept whole until `leave` is called with the same token."""
        forks.ensure()
        greenlets.ensure()
        if self.closed:
            raise errors.Error("the client is closed")
        if self.watch is not None:
            self.watch.ensure()  # a forked child has no thread until it is first used
        if self.shared is not None:
            self.shared.ensure()
        health = self.health  # which a reload may take away
        if health is not None:
            health.ensure()
        while True:
            snapshot = self.snapshot
            snapshot.active.add(token)
            if snapshot is self.snapshot:
                return snapshot
            self.leave(snapshot, token)

    def leave(self, snapshot: Snapshot | None, token: object) -> None:
        """Lets go of what `enter` gave, or would have given (None) had it not been interrupted."""
        if snapshot is None:
            for each in (self.snapshot, *self._retired):
                each.active.discard(token)
            return
        snapshot.active.discard(token)
        if snapshot is not self.snapshot and not snapshot.active:
            self._give_up(snapshot)

    def reload(self, source: Source) -> events.ConfigReloaded:
        """Puts the configuration into force as it reads now, or changes nothing and raises."""
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
            log.warning("%s: was changed in %s, but stays as it is until a restart", key, event.source)
        if self.hooks.wanted:
            self.hooks.emit(event)
        return event

    def _reload_unasked(self) -> Sequence[str]:
        """Reloads because of a signal or a changed file; says in the log what came of it."""
        try:
            event = self.reload(None)
            log.info("%s was reloaded; changed: %s", event.source, ", ".join(event.changed) or "nothing")
        except errors.Error as error:
            if not self.closed:
                log.error("the configuration was not reloaded, the one before it stays: %s", error)
        except Exception:
            log.exception("the configuration was not reloaded, the one before it stays")
        return self._files()

    def _replace(self, source: Source) -> events.ConfigReloaded:
        if self.closed:
            raise errors.Error("the client is closed")
        old = self.snapshot
        source, read, keys = _read(source, self._default_state)
        config, kept = lasting(old.config, read)
        new = Snapshot(config, keys, self._around, old)
        if self.shared is not None:
            self._attach(self.shared, new)
        with self._swapping:
            if self.closed:
                raise errors.Error("the client is closed")
            self._retired.add(old)
            self._source = source
            self.snapshot = new
            older = tuple(self._retired)
        for snapshot in older:
            snapshot.state.follow(new.state)
        new.forgive(old)
        self._check_health(config)
        self.line.look()  # a limit may have been raised
        if not old.active:
            self._give_up(old)
        return events.ConfigReloaded(_name_of(source), new.changes(old), kept)

    def _share(self) -> Shared | None:
        config, state = self.snapshot.config, self.snapshot.state
        if not config.over_redis:
            return None
        from fastroute.state.redis import Shared  # nothing else needs it

        shared = Shared(config, state.segment, state.home.path, self.hooks)
        self._attach(shared, self.snapshot)
        return shared

    def _check_health(self, config: Config) -> None:
        """Begins or ends checking endpoints, as the configuration says."""
        before = self.health
        if not config.policy.health_check.enabled:
            self.health = None
            if before is not None:
                before.stop(wait=False)
        elif before is None:
            self.health = HealthChecks(self)
        else:
            before.wake()

    def _attach(self, shared: Shared, snapshot: Snapshot) -> None:
        shared.attach(snapshot.state.cores, snapshot.config.policy.breaker.probe_lease)
        snapshot.budgets.share(shared.bank)

    def _give_up(self, snapshot: Snapshot) -> None:
        """Closes the connections that only a snapshot without calls was using; streams under way finish."""
        with self._swapping:
            if snapshot not in self._retired:
                return
            self._retired.discard(snapshot)
            wanted = {
                id(transport)
                for live in (self.snapshot, *self._retired)
                for transport in live.transports.values()
            }
        for transport in snapshot.transports.values():
            if id(transport) not in wanted:
                transport.close()

    def _files(self) -> tuple[str, ...]:
        source = (self._source,) if isinstance(self._source, str) else ()
        return (*source, *files_of(self.snapshot.config))

    # ----------------------------------------------------------------------------------------------- calls

    def run(self, snapshot: Snapshot, request: Request, timeout: float) -> Completion | Stream:
        """One call, from the cache to its answer."""
        started = time.monotonic()
        deadline = started + timeout
        hooks = self.hooks
        snapshot.state.tend(hooks)
        try:
            answer = self._answer(snapshot, request, started, deadline)
        except errors.Error as error:
            if hooks.wanted:
                hooks.emit(events.CallFinished(None, type(error).__name__))
            raise
        if hooks.wanted and isinstance(answer, Completion):
            hooks.emit(events.CallFinished(answer.route))
        return answer

    def _answer(
        self, snapshot: Snapshot, request: Request, started: float, deadline: float
    ) -> Completion | Stream:
        cache = snapshot.cache
        if cache is None or request.stream or not request.options.cache:
            return self._routed(snapshot, request, started, deadline)
        key = cache.key(request, snapshot.fingerprint)
        if key is None:
            return self._routed(snapshot, request, started, deadline)
        completion = cache.get(key)
        shared = True
        if completion is None:
            completion, shared = cache.through(
                key, lambda: self._routed_whole(snapshot, request, started, deadline), deadline
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

    def _routed(
        self, snapshot: Snapshot, request: Request, started: float, deadline: float
    ) -> Completion | Stream:
        plan = snapshot.planner.plan(request)
        if self._compress is not None:
            room = plan.room()
            if room:
                request = evolve(request, messages=_compressed(self._compress, request.messages, room))
                plan = snapshot.planner.plan(request)
        call = Call(request, plan.estimate, plan.level, plan.explainer(), started, deadline)
        if request.stream:
            return snapshot.dispatcher.stream(call, plan)
        return snapshot.dispatcher.complete(call, plan)

    def _routed_whole(
        self, snapshot: Snapshot, request: Request, started: float, deadline: float
    ) -> Completion:
        answer = self._routed(snapshot, request, started, deadline)
        assert isinstance(answer, Completion)
        return answer


def _compressed(
    compress: Compress, messages: Sequence[Mapping[str, Any]], room: int
) -> Sequence[Mapping[str, Any]]:
    shorter = compress(messages, room)
    if isinstance(shorter, (str, bytes, Mapping)) or not isinstance(shorter, Sequence) or not shorter:
        raise errors.BadRequestError(
            f"compress: a list of messages is wanted from the hook, not {type(shorter).__name__}"
        )
    return shorter


def _read(source: Source, default_state: str) -> tuple[Source, Config, dict[str, Secret | None]]:
    """A configuration and its keys, and where to read it again: a file by its absolute path."""
    file = file_of(source)
    if file is not None:
        source = str(file)
    config = load(source, formats=format_names(), default_state=default_state)
    if config.reload == "change" and file is None:
        raise errors.ConfigError(
            'fastroute.reload: "change" is set, but the configuration does not come from a file; '
            'must come from one, or be "signal" or "off"'
        )
    return source, config, read_keys(config)


def _name_of(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(source)
    if source is None:
        return "environment"
    return "Config" if isinstance(source, Config) else "mapping"
