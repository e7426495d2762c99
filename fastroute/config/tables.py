"""The configuration as frozen values: every key with its type, default, validator and meaning.

Times are in seconds, money is in USD, sizes are in bytes. The ``[policy]`` table is in `policy`; rules over
more than one key are in `consistency`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from attrs import field, frozen
from attrs.validators import optional

from fastroute.platform.state_folder import state_folder

from .catalog import ModelOverride
from .policy import MOST_IN_FLIGHT, Policy
from .redis_url import local_part
from .rules import CLASSIFIERS, LEARNED, LEARNED_LEVELS, RuleSet
from .validators import (
    azure_version,
    budget_per,
    cache_scope,
    classifier_names,
    extra_headers,
    flag,
    integer,
    ledger_location,
    mapping_of,
    model_name,
    number,
    one_of,
    origin,
    parameter_name,
    priority_shares,
    proxy_url,
    seconds,
    sequence_of,
    state_location,
    text,
    time_zone,
    variable_name,
)

BUDGET_WINDOWS = ("request", "day", "month", "total")
ON_BREACH = ("refuse", "downgrade")
DURABILITIES = ("process", "power")
LEDGER_WALS = ("auto", "on", "off")
RELOADS = ("off", "signal", "change")
AUTO = "auto"

_MOST = 2**31 - 1
_MOST_PER_MINUTE = 1_000_000_000


def _limit(most: int = _MOST_PER_MINUTE) -> Any:
    # 0 is allowed: it lets nothing through.
    return field(default=None, validator=optional(integer(least=0, most=most)))


# ------------------------------------------------------------------------------------------------- tables


@frozen(kw_only=True)
class CacheConfig:
    """``[cache]``: answers stored for equal requests.

    Attributes:
        enabled: whether the cache is used.
        ttl: seconds that an answer is stored.
        max_entries: most answers stored.
        max_bytes: most bytes of all answers together.
        max_entry_bytes: larger answers are not stored.
        scope: the tags that are part of the cache key: ``all`` of a call's tags, or a list of names.
    """

    enabled: bool = field(default=True, validator=flag)
    ttl: float = field(default=3600.0, validator=seconds(most=31_536_000))
    max_entries: int = field(default=10_000, validator=integer(least=1, most=_MOST))
    max_bytes: int = field(default=64 * 1024 * 1024, validator=integer(least=1, most=2**40))
    max_entry_bytes: int = field(default=1024 * 1024, validator=integer(least=1, most=2**40))
    scope: tuple[str, ...] | str = field(default="all", validator=cache_scope)


@frozen(kw_only=True)
class ProviderConfig:
    """``[providers.NAME]``: an account at a base URL.

    Attributes:
        base_url: the API's URL, without the path of a single operation.
        models: the names of models that have an endpoint here without a table of their own in [[endpoints]].
        format: the wire format.
        api_version: the version of Azure's API, where its URLs name one.
        api_key_env: the environment variable that contains the key; without it and a file, no key is sent.
        api_key_file: a file that contains the key and nothing else.
        rpm: requests a minute, for each endpoint without an rpm of its own.
        tpm: tokens a minute, in the same way.
        burst: requests at once; by default a sixth of rpm.
        token_burst: tokens at once; by default tpm.
        max_in_flight: most calls at once at each endpoint.
        headers: sent with every request; never a key.
        proxy: the URL of an HTTP proxy, or ``environment`` for those that HTTPS_PROXY and the like name;
            default: a direct connection.
        ca_bundle: a file of certificates to trust; default: those that REQUESTS_CA_BUNDLE and the like
            name, else the usual ones. Verifying cannot be turned off.
        allow_http: permits plain HTTP to other hosts than this machine.
        allow_private_hosts: permits hosts in private networks.
        timeout: most seconds for one attempt, and for a stream until it begins; overrides [policy].
        connect_timeout: most seconds for connecting; overrides [fastroute].
    """

    base_url: str = field(validator=text())
    models: tuple[str, ...] = field(default=(), validator=sequence_of(model_name))
    format: str = field(default="openai", validator=text())
    api_version: str | None = field(default=None, validator=optional(azure_version))
    api_key_env: str = field(default="", validator=variable_name)
    api_key_file: str = field(default="", validator=text(empty=True))
    rpm: int | None = _limit()
    tpm: int | None = _limit()
    burst: int | None = _limit()
    token_burst: int | None = _limit()
    max_in_flight: int = field(default=200, validator=integer(least=0, most=MOST_IN_FLIGHT))
    headers: Mapping[str, str] = field(factory=dict, validator=extra_headers, repr=False)
    proxy: str | None = field(default=None, validator=optional(proxy_url), repr=False)
    ca_bundle: str | None = field(default=None, validator=optional(text()))
    allow_http: bool = field(default=False, validator=flag)
    allow_private_hosts: bool = field(default=False, validator=flag)
    timeout: float | None = field(default=None, validator=optional(seconds()))
    connect_timeout: float | None = field(default=None, validator=optional(seconds()))

    @property
    def key_source(self) -> str:
        """Where its key comes from, in words."""
        if self.api_key_env:
            return f"the environment variable {self.api_key_env}"
        return f"the file {self.api_key_file}" if self.api_key_file else "nowhere, because none is configured"


@frozen(kw_only=True)
class EndpointConfig:
    """``[[endpoints]]``: one model served at one provider.

    Attributes:
        provider: a name from [providers].
        model: the name that callers use.
        upstream: the provider's name of the model; by default the one in the catalogue, else the same.
        name: unique among endpoints; by default ``provider/model``.
        weight: its share of calls, for strategies that use weights; with 0 it is used last.
        rpm, tpm, burst, token_burst, max_in_flight: override the provider's.
    """

    provider: str = field(validator=text())
    model: str = field(validator=model_name)
    upstream: str = field(validator=text())
    name: str = field(validator=text())
    weight: float = field(default=1.0, validator=number(least=0, most=1_000_000))
    rpm: int | None = _limit()
    tpm: int | None = _limit()
    burst: int | None = _limit()
    token_burst: int | None = _limit()
    max_in_flight: int | None = _limit(MOST_IN_FLIGHT)

    @upstream.default
    def _upstream_is_model(self) -> str:
        return self.model

    @name.default
    def _name_from_both(self) -> str:
        return f"{self.provider}/{self.model}"


@frozen
class Limits:
    """An endpoint's limits, its own over its provider's; None is unlimited.

    Attributes:
        rpm, tpm: requests and tokens a minute.
        burst, token_burst: requests and tokens at once; None where the rate is None.
        max_in_flight: calls at once.
    """

    rpm: int | None
    tpm: int | None
    burst: int | None
    token_burst: int | None
    max_in_flight: int


@frozen(kw_only=True)
class BudgetConfig:
    """``[[budgets]]``: how much may be spent.

    Attributes:
        name: unique among budgets.
        limit: USD in each window.
        window: what the limit applies to: each ``request``, a calendar ``day`` or ``month``, or ``total``.
        timezone: the time zone of days and months.
        per: empty: all calls together; ``tag:NAME``: each value of that tag by itself, and the calls
            without the tag together.
        on_breach: ``refuse`` the call, or ``downgrade`` it to the cheapest tier.
        hard: True: a call is admitted only if its worst case fits. False: it is admitted while anything is
            left.
        alerts: shares of the limit at which an alert is emitted, once each in a window.
        shares: by class of priority, the share of the limit up to which its calls are admitted; classes not
            named may use all of it.
    """

    name: str = field(validator=model_name)
    limit: float = field(validator=number(least=0, most=1e9, smallest=1e-9, unit="USD"))
    window: str = field(validator=one_of("window", BUDGET_WINDOWS))
    timezone: str = field(default="UTC", validator=time_zone)
    per: str = field(default="", validator=budget_per)
    on_breach: str = field(default="refuse", validator=one_of("on_breach", ON_BREACH))
    hard: bool = field(default=True, validator=flag)
    alerts: tuple[float, ...] = field(
        default=(0.5, 0.75, 0.9, 1.0),
        validator=sequence_of(number(above=0, most=1, unit="a share, 0.5 is half"), most=8),
    )
    shares: Mapping[str, float] = field(factory=dict, validator=priority_shares)

    @property
    def limit_nano(self) -> int:
        """The limit in nano-dollars, rounded down."""
        return int(Decimal(repr(self.limit)) * 1_000_000_000)

    @property
    def tag(self) -> str | None:
        """The tag whose values are counted separately."""
        return self.per.removeprefix("tag:") or None


@frozen(kw_only=True)
class QualityConfig:
    """``[quality]``: what happens when an answer fails its validation, and what counts as drift of a rate.

    Attributes:
        drift: the difference between a rate and its baseline; 0.05 is five percentage points.
        window: how many of the newest results make the rate; the ten windows before them make the baseline.
        min_samples: results that rate and baseline must each have before they are compared; None: ``window``.
        retries: most further answers requested after one failed.
        escalate: whether they come from the next more expensive tier, if the call was routed by tier.
        feedback: whether the model is told why its answer failed.
        lengthen: whether an answer that was cut off at ``max_tokens`` is requested again with twice as
            many, up to the model's limit; at the limit it is not requested again.
    """

    drift: float = field(default=0.05, validator=number(above=0, most=1))
    window: int = field(default=500, validator=integer(least=10, most=100_000))
    min_samples: int | None = field(default=None, validator=optional(integer(least=1, most=100_000)))
    retries: int = field(default=2, validator=integer(least=0, most=20))
    escalate: bool = field(default=True, validator=flag)
    feedback: bool = field(default=True, validator=flag)
    lengthen: bool = field(default=True, validator=flag)


@frozen(kw_only=True)
class LearnedConfig:
    """``[learned]``: the classifier ``learned``, which chooses between two levels by a score.

    Attributes:
        file: a router file that ``fastroute calibrate`` wrote; empty for the shipped prior.
        share: the share of the calls that are to be ``strong``; None: the file's.
        hold: whether the threshold follows the scores of the calls, so that the share stays.
        unfamiliar: what serves requests that the score says nothing about: the level ``strong``, or the
            ``default`` tier.
    """

    file: str = field(default="", validator=text(empty=True))
    share: float | None = field(default=None, validator=optional(number(least=0, most=1)))
    hold: bool = field(default=False, validator=flag)
    unfamiliar: str = field(default="strong", validator=one_of("unfamiliar", ("strong", "default")))


@frozen(kw_only=True)
class GatewayConfig:
    """``[gateway]``: what the gateway takes from its callers, and who may read its answers.

    Attributes:
        parameters: names of further parameters that callers may send; they go to the provider unchecked.
        cors_origins: origins (``https://app.example``) whose pages may call the gateway from a browser;
            ``*``: all.
        keyless: whether everyone who can reach the gateway, also through a proxy, is served without a key.
        max_in_flight: calls at once in each worker process, of all keys together; None: as many as the server
            has threads for.
        max_body_bytes: size of a request's body.
        max_body_values, max_body_keys: JSON values of all kinds, and keys of all objects, in a body.
        max_bytes_under_way: bytes of the bodies of all requests that a worker process has at once.
        body_timeout: seconds in which a body must arrive, where the server does not receive it by itself.
        write_timeout: seconds after which a response ends of which the client has taken nothing.
    """

    parameters: tuple[str, ...] = field(default=(), validator=sequence_of(parameter_name), converter=tuple)
    cors_origins: tuple[str, ...] = field(default=(), validator=sequence_of(origin), converter=tuple)
    keyless: bool = field(default=False, validator=flag)
    max_in_flight: int | None = field(default=None, validator=optional(integer(least=1, most=_MOST)))
    max_body_bytes: int = field(default=10 * 1024 * 1024, validator=integer(least=1000, most=2**40))
    max_body_values: int = field(default=250_000, validator=integer(least=100, most=2**40))
    max_body_keys: int = field(default=100_000, validator=integer(least=100, most=2**40))
    max_bytes_under_way: int = field(default=256 * 1024 * 1024, validator=integer(least=1000, most=2**50))
    body_timeout: float = field(default=30.0, validator=seconds(most=3600))
    write_timeout: float = field(default=60.0, validator=seconds(most=86_400))


@frozen(kw_only=True)
class Config:
    """The whole configuration; the keys of ``[fastroute]`` are attributes of this class.

    Attributes:
        default_model: the model of a call that names none: ``auto``, a tier, a model or an alias.
        state: which processes share limits, breakers, latencies and budgets. ``memory``: this one and its
            forks; ``machine``: all of this user and configuration (``machine:NAME``: of that name); a path:
            all of this user that open that file; ``redis://…``: those of many machines. None: ``memory``, or
            ``machine`` where several processes usually serve one program (`state/segment_file.py`).
        ledger: the SQLite file or PostgreSQL database that records attempts; empty for none. None: a file in
            the user's state folder, which all programs without a ledger of their own share.
        ledger_durability: what an entry survives: ``process``: any end of the process; ``power``: a power
            cut too.
        ledger_journal: for PostgreSQL, the local directory that stores entries until the server has them.
        ledger_wal: whether SQLite uses a write-ahead log: ``on``, ``off``, or ``auto`` by the file system.
        timeout: most seconds for a whole call.
        connect_timeout: most seconds for connecting.
        max_response_bytes: larger answers are refused.
        max_response_values: answers with more JSON values are refused.
        workers: threads for submitted calls.
        max_pending: submitted calls that may wait for a thread; beyond that, submitting blocks.
        catalog: a file of models, prices and aliases over the built-in catalogue; empty for none.
        reload: when a running client reads the configuration again: ``off``, ``signal`` (SIGHUP) or
            ``change``.
        cache: ``[cache]``.
        providers: ``[providers.NAME]``, by name.
        endpoints: ``[[endpoints]]``, in the file's order.
        models: ``[models."NAME"]``, by name.
        aliases: ``[aliases]``: other names for models.
        tiers: ``[tiers]``: models by tier, cheapest tier first; empty leaves them to the catalogue.
        policy: ``[policy]``.
        quality: ``[quality]``.
        budgets: ``[[budgets]]``, in the file's order.
        classifiers: ``[classifiers.NAME]``: rule sets beside the built-in ones, by name.
        learned: ``[learned]``.
        gateway: ``[gateway]``.
    """

    default_model: str = field(default=AUTO, validator=text())
    state: str | None = field(default=None, validator=optional(state_location))
    ledger: str | None = field(default=None, validator=optional(ledger_location))
    ledger_durability: str = field(default="process", validator=one_of("durability", DURABILITIES))
    ledger_journal: str = field(default="", validator=text(empty=True))
    ledger_wal: str = field(default="auto", validator=one_of("ledger_wal", LEDGER_WALS))
    timeout: float = field(default=600.0, validator=seconds())
    connect_timeout: float = field(default=5.0, validator=seconds(most=3600))
    max_response_bytes: int = field(default=32 * 1024 * 1024, validator=integer(least=1, most=2**40))
    max_response_values: int = field(default=2_000_000, validator=integer(least=100, most=2**40))
    workers: int = field(default=32, validator=integer(least=1, most=4096))
    max_pending: int = field(default=1000, validator=integer(least=0, most=_MOST))
    catalog: str = field(default="", validator=text(empty=True))
    reload: str = field(default="off", validator=one_of("reload", RELOADS))
    cache: CacheConfig = field(factory=CacheConfig)
    providers: Mapping[str, ProviderConfig] = field(factory=dict)
    endpoints: tuple[EndpointConfig, ...] = field(default=(), converter=tuple)
    models: Mapping[str, ModelOverride] = field(factory=dict)
    aliases: Mapping[str, str] = field(factory=dict, validator=mapping_of(text()))
    tiers: Mapping[str, tuple[str, ...]] = field(factory=dict, validator=mapping_of(sequence_of(text())))
    policy: Policy = field(factory=Policy)
    quality: QualityConfig = field(factory=QualityConfig)
    budgets: tuple[BudgetConfig, ...] = field(default=(), converter=tuple)
    classifiers: Mapping[str, RuleSet] = field(factory=dict, validator=classifier_names)
    learned: LearnedConfig = field(factory=LearnedConfig)
    gateway: GatewayConfig = field(factory=GatewayConfig)

    @property
    def over_redis(self) -> bool:
        """Whether many machines share the state."""
        return "://" in (self.state or "")

    @property
    def local_state(self) -> str | None:
        """Where this machine's part of the state is kept: ``state``, or the ``local=`` of a Redis address."""
        return local_part(self.state) if self.state is not None and self.over_redis else self.state

    @property
    def ledger_place(self) -> str:
        """The ledger's file or address: as configured, or the default one; empty for none."""
        if self.ledger is not None:
            return self.ledger
        folder = state_folder()
        return "" if folder is None else os.path.join(folder, "fastroute.db")

    @property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """The levels of each classifier, cheapest first."""
        own = {name: rules.levels for name, rules in self.classifiers.items()}
        return {**CLASSIFIERS, LEARNED: LEARNED_LEVELS, **own}

    @property
    def served(self) -> tuple[str, ...]:
        """Every model that has an endpoint, once, in the order of the endpoints."""
        return tuple(dict.fromkeys(endpoint.model for endpoint in self.endpoints))

    def limits(self, endpoint: EndpointConfig) -> Limits:
        """The endpoint's limits, with its provider's where it has none of its own.

        A burst belongs to the rate of the same table: an endpoint with its own rate does not use its
        provider's burst.
        """
        provider = self.providers[endpoint.provider]
        rpm, burst = _rate(endpoint.rpm, endpoint.burst, provider.rpm, provider.burst)
        tpm, token_burst = _rate(endpoint.tpm, endpoint.token_burst, provider.tpm, provider.token_burst)
        if rpm is not None and burst is None:
            burst = max(1, rpm // 6)
        if tpm is not None and token_burst is None:
            # A whole minute's tokens: with less, a long prompt that the provider accepts could never be sent.
            token_burst = tpm
        in_flight = endpoint.max_in_flight
        return Limits(
            rpm, tpm, burst, token_burst, provider.max_in_flight if in_flight is None else in_flight
        )


def _rate(
    own: int | None, own_burst: int | None, shared: int | None, shared_burst: int | None
) -> tuple[int | None, int | None]:
    if own is not None:
        return own, own_burst
    return shared, shared_burst if own_burst is None else own_burst


# The keys of [fastroute], and the other tables.
SETTINGS = (
    "default_model",
    "state",
    "ledger",
    "ledger_durability",
    "ledger_journal",
    "ledger_wal",
    "timeout",
    "connect_timeout",
    "max_response_bytes",
    "max_response_values",
    "workers",
    "max_pending",
    "catalog",
    "reload",
)
TABLES = (
    "cache",
    "providers",
    "endpoints",
    "models",
    "aliases",
    "tiers",
    "policy",
    "quality",
    "budgets",
    "classifiers",
    "learned",
    "gateway",
)
# The tables that are written [[…]].
LISTS = ("endpoints", "budgets")
