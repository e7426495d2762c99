"""The objects that are built from one configuration and serve calls with it: a generation.

A generation has the catalogue, the endpoints, the planner, the connections and the dispatcher. They do not
change once they are built, so a call keeps its configuration even if a reload replaces the generation.
`runtime.py` replaces generations and closes old ones.

A new generation keeps what does not depend on the configuration: the core's counts by endpoint name, what was
learned about models, cached answers, and the connections to every provider with unchanged base URL, TLS and
proxy settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve, fields, frozen

from fastroute import events
from fastroute.budget import Budgets, spent_in
from fastroute.calls.admission import Admission
from fastroute.calls.attempt import Attempts
from fastroute.calls.cache import Cache
from fastroute.calls.dispatch import Dispatcher
from fastroute.calls.hedge import Hedging
from fastroute.calls.queue import WaitQueue
from fastroute.calls.retry import RetryPolicy
from fastroute.calls.settlement import Sinks
from fastroute.calls.upstream import Upstream, target_at, transport_to
from fastroute.config import Config, ProviderConfig, Secret, catalog_of
from fastroute.ledger import Ledger, NullLedger
from fastroute.platform import files
from fastroute.platform.workers import Workers
from fastroute.quality import Rates
from fastroute.routing.function_classifier import FunctionClassifier
from fastroute.routing.learned import LearnedClassifier, classifier_of
from fastroute.routing.planner import Planner
from fastroute.state.endpoints import LiveEndpoint, State
from fastroute.transport import Transport

if TYPE_CHECKING:
    import requests

    from fastroute.config.catalog import Catalog

# Built once for a client; a reload cannot change them while calls use them.
LASTING = (
    "state",
    "ledger",
    "ledger_durability",
    "ledger_journal",
    "ledger_wal",
    "workers",
    "max_pending",
    "reload",
)

# Keys of any table that do not affect the content of answers; all other keys are assumed to.
_NOT_SHAPING = frozenset(
    {
        *LASTING,
        "cache",
        "budgets",
        "timeout",
        "connect_timeout",
        "max_response_bytes",
        "max_response_values",
        "max_body_bytes",
        "max_body_values",
        "max_body_keys",
        "max_bytes_under_way",
        "body_timeout",
        "write_timeout",
        "rpm",
        "tpm",
        "burst",
        "token_burst",
        "max_in_flight",
        "weight",
        "max_attempts",
        "backoff_base",
        "backoff_cap",
        "throttle_base",
        "throttle_cap",
        "max_retry_after",
        "adaptive",
        "queue_timeout",
        "max_queue",
        "timeout_base",
        "timeout_per_1k",
        "idle_timeout",
        "ping_timeout",
        "breaker",
        "health_check",
        "hedging",
    }
)


@frozen(eq=False, kw_only=True)
class Surroundings:
    """The objects that a reload does not replace.

    Attributes:
        ledger: records the attempts.
        hooks: events are emitted to them.
        queue: the calls that wait for a limit.
        function_classifier: the user's function that classifies requests, if there is one.
        session: the user's own session to send through.
        hedges: the threads that hedges run in.
        default_state: where the state is kept if the configuration does not say; None: depends on the host.
    """

    ledger: Ledger | NullLedger
    hooks: events.Hooks
    queue: WaitQueue
    function_classifier: FunctionClassifier
    session: requests.Session | None
    hedges: Workers
    default_state: str | None


class Generation:
    """The objects built from one configuration.

    Args:
        config: the configuration.
        keys: the providers' keys, by name.
        around: the objects that a reload does not replace.
        previous: the generation that this one replaces.

    Attributes:
        active: a token for each call that has entered it; see `runtime/runtime.py`.
        learned: the classifier, if it is the learned one.
        upstreams: each endpoint's format, base URL, key and connections, by its name.
        fingerprint: a hash of everything that affects answers; equal requests with equal fingerprints may
            share an answer.

    Raises:
        ConfigError: it cannot be built; the previous generation is unchanged.

    Thread safety: all methods and attributes.
    """

    def __init__(
        self,
        config: Config,
        keys: Mapping[str, Secret | None],
        around: Surroundings,
        previous: Generation | None = None,
    ) -> None:
        self.config = config
        self.keys = keys
        self.active: set[object] = set()
        catalog = catalog_of(config)
        before = None if previous is None else previous.state
        self.state: State = State(config, catalog, before, around.default_state)
        classifier = classifier_of(config, self.state.segment, around.hooks)
        self.learned = classifier if isinstance(classifier, LearnedClassifier) else None
        self.planner = Planner(
            config, catalog, self.state, classifier, around.function_classifier, hooks=around.hooks
        )
        self._ways = {name: _way(config, provider) for name, provider in config.providers.items()}
        self.transports = {name: self._transport(name, around.session, previous) for name in config.providers}
        policy = config.policy
        retries = RetryPolicy.from_policy(policy)
        self.rates: Rates
        if previous is not None and _drift(previous.config) == _drift(config):
            self.rates = previous.rates
        else:
            self.rates = Rates(config.quality, around.hooks)
        self.budgets: Budgets
        if previous is not None and previous.config.budgets == config.budgets:
            self.budgets = previous.budgets
        else:
            around.ledger.index_tags(
                budget.tag
                for budget in config.budgets
                if budget.tag is not None and budget.window != "request"
            )
            # Spending and reservations are in the segment, by the budget's name, so they are kept.
            spent = spent_in(around.ledger)
            self.budgets = Budgets(
                config.budgets,
                self.state.segment,
                spent,
                around.hooks,
                around.queue.freed,
                recorded=bool(around.ledger.path),
            )
        sinks = Sinks(
            retries=retries,
            ledger=around.ledger,
            hooks=around.hooks,
            outputs=self.state.outputs,
            rates=self.rates,
            budgets=self.budgets if config.budgets else None,
            gate=self.state.gate,
            queue=around.queue,
            affected=self.state.affected,
        )
        self.upstreams: Mapping[str, Upstream] = {
            endpoint.name: self._upstream(endpoint) for endpoint in self.state.endpoints
        }
        self.admission = Admission(
            policy=policy,
            planner=self.planner,
            retries=retries,
            queue=around.queue,
            state=self.state,
            hooks=around.hooks,
        )
        self.dispatcher = Dispatcher(
            quality=config.quality,
            planner=self.planner,
            retries=retries,
            upstreams=self.upstreams,
            attempts=Attempts(policy, sinks),
            admission=self.admission,
            hedging=Hedging(policy.hedging, around.hedges) if policy.hedging.enabled else None,
        )
        self.fingerprint = _fingerprint(config, catalog, self.learned)
        self.cache: Cache | None = None
        if previous is not None and previous.config.cache == config.cache:
            self.cache = previous.cache
        elif config.cache.enabled:
            cache = config.cache
            self.cache = Cache(
                ttl=cache.ttl,
                max_entries=cache.max_entries,
                max_bytes=cache.max_bytes,
                max_entry_bytes=cache.max_entry_bytes,
                scope=cache.scope,
            )

    def changes(self, previous: Generation) -> tuple[str, ...]:
        """The names of the parts that differ from those of the previous generation."""
        old, new = previous.config, self.config
        found: list[str] = []
        for key in (field.name for field in fields(Config)):
            before, after = getattr(old, key), getattr(new, key)
            if key == "endpoints":
                before = {entry.name: entry for entry in before}
                after = {entry.name: entry for entry in after}
            if not isinstance(after, Mapping):
                if before != after:
                    found.append(key)
                continue
            names = dict.fromkeys((*before, *after))
            parts = [f"{key}.{name}" for name in names if before.get(name) != after.get(name)]
            if not parts and list(before) != list(after):
                parts = [key]  # only the order has changed, which says what is cheapest or tried first
            found += parts
        found += [f"providers.{name}" for name in self.keys if not self._same_key(name, previous)]
        if (
            self.learned is not None
            and previous.learned is not None
            and not self.learned.equals(previous.learned)
        ):
            found.append("learned.file")
        return tuple(dict.fromkeys(found))

    def forgive(self, previous: Generation) -> None:
        """Ends the blocks of endpoints whose provider has a new key or base URL.

        Blocks because of a rejected key or a spent quota last long, and the change may have fixed the cause.
        """
        for endpoint in self.state.endpoints:
            name = endpoint.config.provider
            before = previous.config.providers.get(name)
            if before is None:
                continue
            if not self._same_key(name, previous) or before.base_url != endpoint.provider.base_url:
                endpoint.core.unblock()

    def after_fork(self) -> None:
        """In a forked child: drops the calls of the parent, which do not continue here."""
        self.active.clear()
        self.admission.after_fork()
        self.planner.after_fork()
        if self.learned is not None:
            self.learned.after_fork()
        self.rates.after_fork()
        if self.cache is not None:
            self.cache.after_fork()

    def _same_key(self, name: str, previous: Generation) -> bool:
        if name not in previous.keys:
            return False
        before, after = previous.keys[name], self.keys[name]
        if before is None or after is None:
            return before is after
        return before.reveal() == after.reveal()

    def _transport(
        self, name: str, session: requests.Session | None, previous: Generation | None
    ) -> Transport:
        if previous is not None and previous._ways.get(name) == self._ways[name]:
            return previous.transports[name]
        return transport_to(self.config, name, session=session)

    def _upstream(self, endpoint: LiveEndpoint) -> Upstream:
        name = endpoint.config.provider
        target = target_at(
            self.config,
            name,
            self.keys.get(name),
            endpoint=endpoint.name,
            model=endpoint.model.name,
            upstream=endpoint.config.upstream,
            max_output=endpoint.model.max_output_tokens or None,
        )
        default_output = self.config.policy.default_max_tokens or 0
        return Upstream(endpoint, target, self.transports[name], default_output)


def _way(config: Config, provider: ProviderConfig) -> tuple[object, ...]:
    """The settings that connections to a provider depend on; if they are equal, connections are kept."""
    return (
        provider.base_url,
        provider.max_in_flight,
        provider.connect_timeout or config.connect_timeout,
        config.max_response_bytes,
        provider.proxy,
        provider.ca_bundle,
        provider.ca_bundle and files.stamp(provider.ca_bundle),
        provider.allow_private_hosts,
    )


def _drift(config: Config) -> tuple[float | None, ...]:
    quality = config.quality
    return quality.drift, quality.window, quality.min_samples


def _fingerprint(config: Config, catalog: Catalog, learned: LearnedClassifier | None) -> bytes:
    shaping = asdict(config, filter=lambda attribute, _: attribute.name not in _NOT_SHAPING)
    known = ([catalog.model(name) for name in config.served], dict(catalog.aliases))
    text = repr((shaping, known, learned and (learned.digest, learned.header)))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()


def lasting(old: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """The new configuration with the old values of settings that cannot change, and their names."""
    kept = [key for key in LASTING if getattr(old, key) != getattr(new, key)]
    values: dict[str, Any] = {key: getattr(old, key) for key in kept}
    return (evolve(new, **values) if kept else new), tuple(f"fastroute.{key}" for key in kept)


def files_of(config: Config) -> tuple[str, ...]:
    """The files that a configuration names and that are read with it."""
    found = [config.catalog, config.learned.file]
    for provider in config.providers.values():
        found += [provider.api_key_file, provider.ca_bundle or ""]
    return tuple(dict.fromkeys(path for path in found if path))
