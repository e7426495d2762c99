"""Rules over more than one key of a configuration: names that must exist, circular chains, unique names.

Rules of a single key are its validators, in `tables` and `policy`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import fields

from fastroute import errors

from .catalog import CHAINS, Catalog, alias_problems, price_problems
from .known_providers import known_providers
from .messages import did_you_mean, quoted, show, unknown
from .rules import CLASSIFIERS, LEARNED, UNFAMILIAR
from .tables import AUTO, BudgetConfig, Config, EndpointConfig, ProviderConfig
from .urls import url_problem


def find_problems(
    config: Config,
    catalog: Catalog,
    formats: Collection[str],
    *,
    places: Sequence[int] | None = None,
    unread_providers: Collection[str] = (),
    unread_models: Collection[str] = (),
    unread_tiers: Collection[str] = (),
    unread_classifiers: Collection[str] = (),
    unread_learned: bool = False,
) -> list[str]:
    """Everything that does not fit together, each problem with its path.

    Args:
        config: the parts that could be read.
        catalog: the built-in one, with the configured file over it.
        formats: the wire formats that are available.
        places: the place of each endpoint in the source, if some of the source's could not be read.
        unread_providers, unread_models, unread_tiers, unread_classifiers: names whose own tables could not be
            read. References to them are not reported.
        unread_learned: whether ``[learned]`` could not be read.
    """
    served = dict.fromkeys([*config.served, *unread_models])
    known = catalog.with_overrides(config.models, served=served)
    tiers = {*config.tiers, *unread_tiers} or set(known.default_tiers(served))
    return [
        *_timeouts(config),
        *_providers(config, formats),
        *_endpoints(config, {*config.providers, *unread_providers}, places),
        *_models(config, known, served),
        *_aliases(config, known, served),
        *_tiers(config, known, served),
        *_default_model(config, known, served, tiers),
        *_fixed_model(config, known, served),
        *_classifiers(config),
        *_policy(config, tiers, unread_classifiers),
        *_learned(config, tiers, unread_learned),
        *_quality(config),
        *_budgets(config),
        *_gateway(config),
    ]


def _timeouts(config: Config) -> Iterable[str]:
    if config.connect_timeout > config.timeout:
        yield (
            f"fastroute.connect_timeout: must be at most timeout ({config.timeout:g} s), "
            f"not {config.connect_timeout:g}"
        )
    for name, provider in config.providers.items():
        total = config.timeout if provider.timeout is None else provider.timeout
        connect = config.connect_timeout if provider.connect_timeout is None else provider.connect_timeout
        if provider.timeout is not None and provider.timeout > config.timeout:
            yield (
                f"providers.{quoted(name)}.timeout: must be at most fastroute.timeout "
                f"({config.timeout:g} s), not {provider.timeout:g}"
            )
        own = provider.timeout is not None or provider.connect_timeout is not None
        if own and connect > total:
            yield (
                f"providers.{quoted(name)}.connect_timeout: must be at most timeout ({total:g} s), "
                f"not {connect:g}"
            )
    cache = config.cache
    if cache.max_entry_bytes > cache.max_bytes:
        yield (
            f"cache.max_entry_bytes: must be at most max_bytes ({cache.max_bytes:,}), "
            f"not {cache.max_entry_bytes:,}"
        )


def _providers(config: Config, formats: Collection[str]) -> Iterable[str]:
    for name, provider in config.providers.items():
        path = f"providers.{quoted(name)}"
        if provider.format not in formats:
            yield f"{path}.format: {unknown('format', provider.format, formats)}"
        if provider.api_version is not None and provider.format != "azure":
            yield f'{path}.api_version: has no effect with format = "{provider.format}"; leave it out'
        problem = url_problem(
            provider.base_url,
            allow_http=provider.allow_http,
            allow_private_hosts=provider.allow_private_hosts,
        )
        if problem:
            yield f"{path}.base_url: {problem}"
        if provider.api_key_env and provider.api_key_file:
            yield f"{path}.api_key_file: api_key_env is set too; set only one of the two"
        yield from _bursts(path, provider, provider.rpm, provider.tpm)
        served = {entry.model for entry in config.endpoints if entry.provider == name}
        for model in provider.models:
            if model not in served:  # a file's list has become endpoints
                yield f"{path}.models: {show(model)} has no endpoint; add an EndpointConfig for it"


def _endpoints(config: Config, providers: set[str], places: Sequence[int] | None) -> Iterable[str]:
    if not config.endpoints and places is None:
        yield (
            "endpoints: none are defined; add [[endpoints]] with a provider and a model, "
            'or models = ["…"] to the table of a provider'
        )
    names: dict[str, int] = {}
    weights: dict[str, float] = {}
    for number, endpoint in zip(places or range(len(config.endpoints)), config.endpoints):
        path = f"endpoints[{number}]"
        if endpoint.provider not in providers:
            hint = did_you_mean(endpoint.provider, [*sorted(providers), *known_providers()])
            known = f"use one of {', '.join(sorted(providers))}, or " if providers else ""
            yield (
                f"{path}.provider: unknown provider {show(endpoint.provider)}{hint}; {known}"
                f"add [providers.{quoted(endpoint.provider)}] with its base_url"
            )
        if endpoint.name in names:
            yield (
                f"{path}.name: {show(endpoint.name)} is the name of endpoints[{names[endpoint.name]}] too; "
                "use a unique name"
            )
        names.setdefault(endpoint.name, number)
        weights[endpoint.model] = weights.get(endpoint.model, 0.0) + endpoint.weight
        provider = config.providers.get(endpoint.provider)
        if provider is not None:
            limits = config.limits(endpoint)
            yield from _bursts(path, endpoint, limits.rpm, limits.tpm)
    for model, weight in weights.items():
        if weight == 0:
            yield f"endpoints: all endpoints of {show(model)} have weight 0; set one above 0"


def _bursts(
    path: str, table: ProviderConfig | EndpointConfig, rpm: int | None, tpm: int | None
) -> Iterable[str]:
    if table.burst is not None and rpm is None:
        yield f"{path}.burst: has no effect without rpm; set rpm too"
    if table.token_burst is not None and tpm is None:
        yield f"{path}.token_burst: has no effect without tpm; set tpm too"


def _models(config: Config, known: Catalog, served: Mapping[str, None]) -> Iterable[str]:
    aliases = {**known.aliases, **config.aliases}
    for name, override in config.models.items():
        path = f"models.{quoted(name)}"
        if name not in served and not known.models[name].providers:
            hint = did_you_mean(name, [*served, *known.models.keys() - {name}])
            yield f"{path}: no endpoint serves this model{hint}; add an endpoint, or remove this table"
        for problem in price_problems(override):
            yield f"{path}.{problem}"
        for chain in CHAINS:
            for target in getattr(override, chain) or ():
                if target == name:
                    yield f"{path}.{chain}: names the model itself; name other models"
                elif _resolved(target, aliases, served) not in served:
                    yield f"{path}.{chain}: {_not_served(target, known, served)}"
    for chain in CHAINS:
        yield from _circles(chain, [*config.models, *known.models], known, aliases, served)


def _circles(
    chain: str,
    starts: Iterable[str],
    known: Catalog,
    aliases: Mapping[str, str],
    served: Collection[str],
) -> Iterable[str]:
    edges = {
        name: [_resolved(target, aliases, served) for target in getattr(model, chain)]
        for name, model in known.models.items()
    }
    done: set[str] = set()
    for start in starts:
        # Depth first, with a stack of its own: a chain may be longer than Python's recursion limit.
        path: list[str] = []
        stack: list[tuple[str, bool]] = [(start, True)]
        while stack:
            name, entering = stack.pop()
            if not entering:
                path.pop()
                done.add(name)
            elif name in path:
                circle = [*path[path.index(name) :], name]
                if len(circle) > 2:  # a model that names itself is reported elsewhere
                    yield (
                        f"models.{quoted(name)}.{chain}: is circular ({' → '.join(circle)}); "
                        "remove one of these links"
                    )
            elif name not in done:
                path.append(name)
                stack.append((name, False))
                stack += [(target, True) for target in edges.get(name, ())]


def _aliases(config: Config, known: Catalog, served: Mapping[str, None]) -> Iterable[str]:
    for alias in config.aliases:
        if alias in served:
            yield (f"aliases.{quoted(alias)}: is the name of a model that has an endpoint; use another name")
        elif alias == AUTO:
            yield "aliases.auto: auto is reserved for routing by complexity; use another name"
    own = {alias: target for alias, target in config.aliases.items() if alias not in served}
    models = {name for name in known.models if name not in own}
    yield from alias_problems(own, {**known.aliases, **own}, dict.fromkeys(models))


def _tiers(config: Config, known: Catalog, served: Mapping[str, None]) -> Iterable[str]:
    aliases = {**known.aliases, **config.aliases}
    for tier, models in config.tiers.items():
        path = f"tiers.{quoted(tier)}"
        if tier in served or tier in config.aliases or tier == AUTO:
            yield f"{path}: is the name of a model or alias too; use another name"
        if not models:
            yield f"{path}: is empty; list at least one model"
        for model in models:
            if model not in served:
                target = _resolved(model, aliases, served)
                if target in served:
                    yield f"{path}: {show(model)} is an alias; use the model's own name {target}"
                else:
                    yield f"{path}: {_not_served(model, known, served)}"


def _default_model(
    config: Config, known: Catalog, served: Mapping[str, None], tiers: Collection[str]
) -> Iterable[str]:
    name = config.default_model
    if name == AUTO or name in tiers:
        return
    if _resolved(name, {**known.aliases, **config.aliases}, served) not in served:
        yield f"fastroute.default_model: {_not_served(name, known, served)}"


def _fixed_model(config: Config, known: Catalog, served: Mapping[str, None]) -> Iterable[str]:
    name = config.policy.fixed_model
    if name and _resolved(name, {**known.aliases, **config.aliases}, served) not in served:
        yield f"policy.fixed_model: {_not_served(name, known, served)}"


def _classifiers(config: Config) -> Iterable[str]:
    for name, rules in config.classifiers.items():
        path = f"classifiers.{quoted(name)}"
        if name in CLASSIFIERS or name == LEARNED:
            yield f"{path}: is the name of a built-in classifier; use another name"
        if rules.name != name:
            yield f"{path}: the rule set's own name is {show(rules.name)}; use the same name for both"
        if rules.tiers:
            yield f"{path}.tiers: has no effect here; use [policy.classes]"
        if rules.unsure is not None:
            yield f"{path}.unsure: has no effect here; leave it out"


def _policy(config: Config, tiers: Collection[str], unread_classifiers: Collection[str]) -> Iterable[str]:
    policy = config.policy
    known = config.levels
    levels = known.get(policy.classifier)
    if levels is None and policy.classifier not in unread_classifiers:
        yield f"policy.classifier: {unknown('classifier', policy.classifier, known)}"
    for level, tier in policy.classes.items():
        path = f"policy.classes.{quoted(level)}"
        if levels is not None and level not in levels:
            yield f"{path}: {unknown('level', level, levels)} (the levels of {policy.classifier})"
        if tier not in tiers:
            yield f"{path}: {unknown('tier', tier, sorted(tiers) or ['those in [tiers]'])}"
    for base, cap in (("backoff_base", "backoff_cap"), ("throttle_base", "throttle_cap")):
        if getattr(policy, base) > getattr(policy, cap):
            yield f"policy.{base}: must be at most {cap}"
    if policy.breaker.open > policy.breaker.max_open:
        yield "policy.breaker.open: must be at most max_open"
    if policy.health_check.timeout > policy.health_check.interval:
        yield "policy.health_check.timeout: must be at most interval"
    if policy.hedging.enabled and policy.max_attempts < 2:
        yield "policy.hedging.enabled: a hedge is a second attempt; set policy.max_attempts to 2 or more"


def _learned(config: Config, tiers: Collection[str], unread: bool) -> Iterable[str]:
    learned = config.learned
    lacking = not learned.file and learned.share is None
    if config.policy.classifier == LEARNED and lacking and not unread:
        yield (
            "learned.share: is required without learned.file; set it to the share of the calls that are to "
            "go to strong, such as 0.4, or set file to one that fastroute calibrate wrote"
        )
    if learned.unfamiliar == "default" and UNFAMILIAR in tiers:
        yield (
            f'tiers.{UNFAMILIAR}: is the name of a level with learned.unfamiliar = "default"; '
            "use another name for the tier"
        )


def _quality(config: Config) -> Iterable[str]:
    quality = config.quality
    if (quality.min_samples or 0) > quality.window:
        yield f"quality.min_samples: must be at most window ({quality.window}), not {quality.min_samples}"


def _gateway(config: Config) -> Iterable[str]:
    gateway = config.gateway
    if gateway.max_bytes_under_way < gateway.max_body_bytes:
        yield (
            f"gateway.max_bytes_under_way: must be at least max_body_bytes ({gateway.max_body_bytes}), or a "
            "large body could never be sent"
        )


def _budgets(config: Config) -> Iterable[str]:
    names: set[str] = set()
    usual = {field.name: field.default for field in fields(BudgetConfig)}
    for budget in config.budgets:
        path = f"budgets.{quoted(budget.name)}"
        if budget.name in names:
            yield f"{path}.name: is the name of another budget too; use a unique name"
        names.add(budget.name)
        if budget.window in ("request", "total") and budget.timezone != usual["timezone"]:
            yield f'{path}.timezone: has no effect with window = "{budget.window}"; leave it out'
        if budget.window == "request":
            if not budget.hard:
                yield f'{path}.hard: must be true with window = "request", not false'
            for key in ("per", "alerts"):
                if getattr(budget, key) != usual[key]:
                    yield f'{path}.{key}: has no effect with window = "request"; leave it out'


def _resolved(name: str, aliases: Mapping[str, str], served: Collection[str]) -> str:
    for _ in range(len(aliases) + 1):
        if name in served or name not in aliases:
            break
        name = aliases[name]
    return name


def _not_served(name: str, known: Catalog, served: Mapping[str, None]) -> str:
    hint = did_you_mean(name, served)
    try:
        known.resolve(name)
    except errors.ModelNotFoundError:
        return f"unknown model {show(name)}{hint}; use a model that has an endpoint"
    return f"no endpoint serves {show(name)}{hint}; use a model that has an endpoint"
