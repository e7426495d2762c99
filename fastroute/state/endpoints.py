"""The live endpoints and the core's state of each, by endpoint name.

Where the state is kept is in `segment_file.py`; choosing an endpoint is in `routing/planner.py`.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from fastroute import _core, errors, events
from fastroute.config import Config, EndpointConfig, ProviderConfig
from fastroute.config.catalog import Catalog, Model
from fastroute.config.messages import did_you_mean, show
from fastroute.figures import percentile
from fastroute.platform import forks

from .segment_file import Home, open_home
from .tokens import OutputHistory

_LAST_RESORT = 1e-9  # the weight of an endpoint that is configured with 0, so that it ranks last
STATE_NAMES = {_core.CLOSED: "closed", _core.OPEN: "open", _core.HALF_OPEN: "half-open"}


_counting = threading.Lock()


def _after_fork() -> None:
    """Replaces the lock in a forked child: a thread that does not exist there may have held it."""
    global _counting
    _counting = threading.Lock()


forks.in_child(_after_fork)


class BlockReason(enum.IntEnum):
    """Why an endpoint is blocked for a time; the core stores the number."""

    NONE = 0
    KEY_REFUSED = 1
    QUOTA_SPENT = 2
    RETRY_AFTER = 3
    TLS = 4
    MODEL_GONE = 5
    HOST_DOWN = 6
    REFUSALS = 7

    @classmethod
    def _missing_(cls, value: object) -> BlockReason:
        return cls.NONE  # a number that nothing here has written into the shared state

    @property
    def words(self) -> str:
        return _BLOCK_WORDS.get(self) or self.name.lower().replace("_", " ")


# Blocks whose cause lies with an account or a host, and so holds for all its endpoints.
_SHARED_BLOCKS = {
    int(BlockReason.KEY_REFUSED): errors.Blame.ACCOUNT,
    int(BlockReason.QUOTA_SPENT): errors.Blame.ACCOUNT,
    int(BlockReason.TLS): errors.Blame.HOST,
}
_BLOCK_WORDS = {
    BlockReason.MODEL_GONE: "model not served",
    BlockReason.HOST_DOWN: "host unreachable",
    BlockReason.REFUSALS: "refuses all requests",
}


@frozen(eq=False, kw_only=True)
class LiveEndpoint:
    """One model at one provider.

    Attributes:
        core: its limits, breaker, latency and in-flight count, shared with forked workers.
        calibration: the ratio of this model's real input tokens to the estimate.
        forgiven: tolerated defects of its complete streams, counted by kind in this process.
        whole, begun: the latencies of the last minutes, of plain answers and of streams to the first token
            (divided by `plan.Estimate.prompt_scale`); None if calls are not hedged.
    """

    name: str
    config: EndpointConfig
    provider: ProviderConfig
    model: Model
    core: _core.Endpoint
    calibration: _core.Calibration
    forgiven: dict[str, int]
    whole: _core.Tail | None = None
    begun: _core.Tail | None = None

    def tail(self, stream: bool) -> _core.Tail | None:
        """The latencies of streams to their first token, or of plain answers."""
        return self.begun if stream else self.whole

    @property
    def model_gone(self) -> bool:
        """Whether it is left out because its provider does not serve the model."""
        return self.core.blocked()[1] == BlockReason.MODEL_GONE

    @property
    def host_down(self) -> bool:
        """Whether it is left out because another endpoint found its host unreachable."""
        return self.core.blocked()[1] == BlockReason.HOST_DOWN

    def forgive(self, kind: str) -> None:
        """Counts a tolerated defect of a complete stream; see `events.StreamForgiven`."""
        with _counting:
            self.forgiven[kind] += 1


class State:
    """All endpoints of one configuration.

    Args:
        default_state: where the state is kept if the configuration does not say.
        previous: the state of the previous configuration. Counts are kept for endpoints of the same name, and
            calibrations for the same model; limits and rules are the new ones at once.

    Attributes:
        home: where the state is kept, and why it is shared less than configured, if so.
        outputs: the lengths of each model's answers.
        gate: permits for all endpoints together; None without such a limit.
        panic: limits early probes while every breaker is open, to one a second over all processes.
        untold: whether `tell` has an event to emit, because the state is shared less than configured.

    Raises:
        ConfigError: if the segment has no room for all endpoints, or its file cannot be used.

    Thread safety: everything may be read from any thread; the core's numbers need no lock.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        previous: State | None = None,
        default_state: str | None = None,
    ) -> None:
        # A reload keeps the segment: calls of the previous generation hold permits in it until they end.
        self.home: Home = open_home(config, default_state) if previous is None else previous.home
        self.segment: _core.Segment = self.home.segment
        # Emitted later: while the client is being made, no hook can be registered yet.
        self.untold = previous is None and self.home.reason is not None
        self.outputs: OutputHistory = OutputHistory() if previous is None else previous.outputs
        known = previous.endpoints if previous is not None else ()
        calibrations = {endpoint.model.name: endpoint.calibration for endpoint in known}
        forgiven = {endpoint.name: endpoint.forgiven for endpoint in known}
        self._rules: dict[str, dict[str, Any]] = {}
        endpoints: list[LiveEndpoint] = []
        for entry in config.endpoints:
            provider = config.providers[entry.provider]
            model = catalog.model(entry.model)
            rules = self._rules[entry.name] = _rules(config, entry)
            # The core finds an endpoint's cells by its name, so counts survive reloads, and processes with
            # their endpoints in another order share them.
            with self._room(f"only {len(endpoints)} of {len(config.endpoints)} fit into"):
                core = _core.Endpoint(self.segment, entry.name, **rules)
                kinds = ("whole", "begun") if config.policy.hedging.enabled else ()
                tails = {kind: _core.Tail(self.segment, f"{entry.name} {kind}") for kind in kinds}
            # One for each model and not for each endpoint: all of them count tokens in the same way.
            calibration = calibrations.setdefault(model.name, _core.Calibration())
            counts = forgiven.get(entry.name) or dict.fromkeys(("missing_done", "invalid_utf8"), 0)
            endpoints.append(
                LiveEndpoint(
                    name=entry.name,
                    config=entry,
                    provider=provider,
                    model=model,
                    core=core,
                    calibration=calibration,
                    forgiven=counts,
                    **tails,
                )
            )
        self.endpoints: tuple[LiveEndpoint, ...] = tuple(endpoints)
        self.gate: _core.Endpoint | None = None
        # Names with a NUL, which no configured name can contain.
        with self._room(f"{len(endpoints)} leave no room for the counters of all together in"):
            self.panic: _core.Bucket = _core.Bucket(self.segment, "panic\0", 60, 1)
            if config.policy.max_in_flight is not None:
                self.gate = _core.Endpoint(self.segment, "all\0", max_in_flight=config.policy.max_in_flight)
        by_model: dict[str, list[LiveEndpoint]] = {}
        by_host: dict[str, list[LiveEndpoint]] = {}
        for endpoint in endpoints:
            by_model.setdefault(endpoint.model.name, []).append(endpoint)
            by_host.setdefault(_host(endpoint), []).append(endpoint)
        self._by_host = {host: tuple(group) for host, group in by_host.items()}
        self.by_model: Mapping[str, tuple[LiveEndpoint, ...]] = {
            name: tuple(group) for name, group in by_model.items()
        }

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """Raises for a full segment how many endpoints it holds and what to do."""
        try:
            yield
        except _core.SegmentFullError:
            removed = f" after removing {self.home.path}" if self.home.path else ""
            raise errors.ConfigError(
                f"endpoints: {what} the state of {self.segment.cells} cells (an endpoint takes 8, one for "
                "each 28 of its max_in_flight, and 32 if calls are hedged); configure fewer or lower their "
                f"limits, or, if others were configured before, restart the program{removed}"
            ) from None

    def named(self, name: str) -> LiveEndpoint:
        """The endpoint of that name.

        Raises:
            NoEndpointError: if there is none; the message has near names.
        """
        for endpoint in self.endpoints:
            if endpoint.name == name:
                return endpoint
        names = [endpoint.name for endpoint in self.endpoints]
        hint = did_you_mean(name, names) or f"; use one of {', '.join(names)}"
        raise errors.NoEndpointError(f"unknown endpoint {show(name)}{hint}", status_code=404)

    def affected(self, endpoint: LiveEndpoint, blame: errors.Blame) -> tuple[LiveEndpoint, ...]:
        """The endpoints that a failure of this one holds for, itself among them."""
        if blame is errors.Blame.HOST:
            return self._by_host[_host(endpoint)]
        if blame is errors.Blame.ACCOUNT:
            provider = endpoint.config.provider
            return tuple(other for other in self.endpoints if other.config.provider == provider)
        return (endpoint,)

    def left_out_with(self, endpoint: LiveEndpoint) -> tuple[LiveEndpoint, ...]:
        """This endpoint and those that are left out for the same fault of its account or host."""
        reason = endpoint.core.blocked()[1]
        blame = _SHARED_BLOCKS.get(reason)
        if blame is None:
            return (endpoint,)
        others = self.affected(endpoint, blame)
        return tuple(other for other in others if other is endpoint or other.core.blocked()[1] == reason)

    @property
    def cores(self) -> tuple[_core.Endpoint, ...]:
        """Everything that admits calls: each endpoint's core, and the gate of all of them together."""
        gate = () if self.gate is None else (self.gate,)
        return (*(endpoint.core for endpoint in self.endpoints), *gate)

    def follow(self, newer: State) -> None:
        """Applies a newer configuration's limits and rules to calls that began under this one.

        Limits belong to an endpoint and not to a call, so a call that is waiting waits for the new ones.
        """
        for endpoint in self.endpoints:
            rules = newer._rules.get(endpoint.name)
            if rules is not None:
                endpoint.core.configure(**rules)
        if self.gate is not None and newer.gate is not None:
            self.gate.configure(max_in_flight=newer.gate.max_in_flight)

    def tell(self, hooks: events.Hooks) -> None:
        """Emits `events.StateDegraded`, once."""
        if hooks.wanted:
            self.untold = False
            hooks.emit(events.StateDegraded(self.home.reason or ""))

    def sharing(self) -> dict[str, Any]:
        """Where the state is kept, and how many processes use it, as plain values."""
        home = self.home
        self.segment.reap()  # so that processes that have died are not counted
        return {
            "kind": home.kind,
            "path": home.path,
            "workers": self.segment.workers_known,
            "reason": home.reason,
            "cells": self.segment.cells,
            "cells_used": self.segment.used,
        }

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The numbers of every endpoint as plain values, by name."""
        now = _core.clock()
        found = {}
        for endpoint in self.endpoints:
            figures = dict(endpoint.core.snapshot(now))
            latencies = endpoint.core.latencies()
            for percent in (50, 95, 99):
                figures[f"p{percent}_s"] = percentile(latencies, percent) if latencies else None
            figures["state"] = STATE_NAMES[endpoint.core.state(now)]
            figures["model"] = endpoint.model.name
            figures["provider"] = endpoint.config.provider
            tails = [tail for tail in (endpoint.whole, endpoint.begun) if tail is not None]
            figures["hedges"] = sum(tail.hedges(now) for tail in tails) if tails else None
            figures["streams_forgiven"] = dict(endpoint.forgiven)
            found[endpoint.name] = figures
        return found


def _host(endpoint: LiveEndpoint) -> str:
    """Host and port of the endpoint's address."""
    return urlsplit(endpoint.provider.base_url).netloc


def _rules(config: Config, entry: EndpointConfig) -> dict[str, Any]:
    """An endpoint's limits and breaker rules, as keyword arguments of the core."""
    limits = config.limits(entry)
    breaker = config.policy.breaker
    return {
        "rpm": _limit(limits.rpm),
        "request_burst": limits.burst or 0,
        "tpm": _limit(limits.tpm),
        "token_burst": limits.token_burst or 0,
        "max_in_flight": limits.max_in_flight,
        "adaptive": config.policy.adaptive,
        "weight": max(entry.weight, _LAST_RESORT),  # loads are divided by it
        "failures": breaker.failures,
        "rate": breaker.rate,
        "min_calls": breaker.min_calls,
        "window_s": breaker.window,
        "open_s": breaker.open,
        "max_open_s": breaker.max_open,
        "reset_s": breaker.reset,
        "probe_lease_s": breaker.probe_lease,
        "probes_to_close": breaker.probes_to_close,
        "ramp_s": breaker.ramp,
    }


def _limit(configured: int | None) -> int:
    return -1 if configured is None else configured
