"""What is known of each model: prices, windows, capabilities, quality, and the names it goes by.

Owns the built-in data (``data/catalog.toml``), files that users lay over it, and aliases. Which endpoints
serve a model, and what the configuration file says, is `config`; live latencies are the core's. Catalogues
are immutable: a change gives a new one, and a broken file gives a `ConfigError` while the one in force stays.

Money in memory is in whole nano-dollars per million tokens. An unknown price is None, never 0 and never the
price of another model; an unknown window is 0.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from attrs import field, frozen

from fastroute import errors
from fastroute.types import TokenPrices, usd_to_nano

from .messages import did_you_mean, near, quoted, show
from .reader import read_toml
from .validators import mapping_of, number, one_of, sequence_of, text, whole

log = logging.getLogger("fastroute")

STREAMING, TOOLS, VISION, JSON_SCHEMA = 1, 2, 4, 8
# Whether temperature and the like may be set: at all, and where the model is told not to reason.
SAMPLING, SAMPLING_WITHOUT_REASONING = 16, 32
CAPABILITIES: Mapping[str, int] = MappingProxyType(
    {"streaming": STREAMING, "tools": TOOLS, "vision": VISION, "json_schema": JSON_SCHEMA}
)
# A model nobody has described is taken to do what nearly every server does; images are the exception.
ASSUMED_CAPABILITIES = STREAMING | TOOLS | JSON_SCHEMA | SAMPLING | SAMPLING_WITHOUT_REASONING
_SAMPLING: Mapping[bool | str, int] = {
    True: SAMPLING | SAMPLING_WITHOUT_REASONING,
    "without-reasoning": SAMPLING_WITHOUT_REASONING,
    False: 0,
}
ASSUMED_QUALITY = 0.5

TIERS = ("ultra-budget", "budget", "standard", "premium")
ASSUMED_TIER = "standard"

LAYOUT = 1
_MOST_TOKENS = 1_000_000_000


_price_range = number(least=0, most=100_000, unit="USD per million tokens")


def _price(instance: Any, attribute: Any, value: Any) -> None:
    _price_range(instance, attribute, value)
    if 0 < value < 1e-9:
        raise ValueError(
            f"{show(value)} is less than a nano-dollar per million tokens, must be 0 or at least 1e-09"
        )


def _optional(check: Any) -> Any:
    return attrs.validators.optional(check)


def _sampling(instance: Any, attribute: Any, value: Any) -> None:
    if not (isinstance(value, bool) or value == "without-reasoning"):
        raise ValueError(f'{show(value)} is not known here, must be true, false or "without-reasoning"')


# The keys by which one model leads to others.
CHAINS = ("fallbacks", "context_fallbacks", "content_fallbacks")


@frozen(kw_only=True)
class ModelOverride:
    """What a file says of one model; None where it says nothing.

    Attributes:
        input_price, output_price, cached_input_price: USD per million tokens.
        cache_write_price, cache_write_1h_price: USD per million input tokens written to the provider's cache,
            for minutes and for an hour.
        long_context: input tokens above which the ``long_…`` prices are those of the whole request.
        context_window: most tokens of input and output together.
        max_output_tokens: most tokens of output; requests are clamped to it.
        capabilities: some of ``streaming``, ``tools``, ``vision``, ``json_schema``.
        sampling: whether ``temperature``, ``top_p`` and ``top_k`` may be set to anything but their defaults;
            ``without-reasoning``: only with ``reasoning_effort = "none"``.
        quality: 0 (worst) to 1, relative to the other models.
        latency: seconds a medium answer typically takes, until measured.
        tier: the tier it belongs to when a configuration defines none.
        fallbacks: models to try, in order, when this one cannot be had.
        context_fallbacks: models to try instead when the input is too long for this one.
        content_fallbacks: models to try instead when this one's content filter refuses.
    """

    input_price: float | None = field(default=None, validator=_optional(_price))
    output_price: float | None = field(default=None, validator=_optional(_price))
    cached_input_price: float | None = field(default=None, validator=_optional(_price))
    cache_write_price: float | None = field(default=None, validator=_optional(_price))
    cache_write_1h_price: float | None = field(default=None, validator=_optional(_price))
    long_context: int | None = field(default=None, validator=_optional(whole(least=1, most=_MOST_TOKENS)))
    long_input_price: float | None = field(default=None, validator=_optional(_price))
    long_output_price: float | None = field(default=None, validator=_optional(_price))
    long_cached_input_price: float | None = field(default=None, validator=_optional(_price))
    long_cache_write_price: float | None = field(default=None, validator=_optional(_price))
    long_cache_write_1h_price: float | None = field(default=None, validator=_optional(_price))
    context_window: int | None = field(default=None, validator=_optional(whole(least=1, most=_MOST_TOKENS)))
    max_output_tokens: int | None = field(
        default=None, validator=_optional(whole(least=1, most=_MOST_TOKENS))
    )
    capabilities: tuple[str, ...] | None = field(
        default=None, validator=_optional(sequence_of(one_of(CAPABILITIES)))
    )
    sampling: bool | str | None = field(default=None, validator=_optional(_sampling))
    quality: float | None = field(default=None, validator=_optional(number(least=0, most=1)))
    latency: float | None = field(
        default=None, validator=_optional(number(above=0, most=3600, unit="seconds"))
    )
    tier: str | None = field(default=None, validator=_optional(one_of(TIERS)))
    fallbacks: tuple[str, ...] | None = field(default=None, validator=_optional(sequence_of(text())))
    context_fallbacks: tuple[str, ...] | None = field(default=None, validator=_optional(sequence_of(text())))
    content_fallbacks: tuple[str, ...] | None = field(default=None, validator=_optional(sequence_of(text())))


@frozen
class CatalogEntry(ModelOverride):
    """What a catalogue file says of one model.

    Attributes:
        providers: the name each provider knows the model by; in a configuration, endpoints say it.
    """

    providers: Mapping[str, str] | None = field(default=None, validator=_optional(mapping_of(text())))


@frozen(kw_only=True)
class Model:
    """One model, as known.

    Attributes:
        name: what callers ask for.
        input_price, output_price, cached_input_price, cache_write_price, cache_write_1h_price: nano-dollars
            per million tokens; None is unknown.
        long_context: input tokens above which the ``long_…`` prices hold; 0: there is no such length.
        prices: all of that for working out costs; None if the price of input or output is unknown.
        context_window, max_output_tokens: tokens; 0 is unknown.
        capabilities: bits of `STREAMING`, `TOOLS`, `VISION`, `JSON_SCHEMA`, `SAMPLING`,
            `SAMPLING_WITHOUT_REASONING`.
        quality: 0 to 1.
        latency: typical seconds before anything is measured; 0 is unknown.
        tier: the tier it belongs to by default.
        fallbacks, context_fallbacks, content_fallbacks: models to try when it cannot be had, when the input
            is too long for it, when its content filter refuses.
        providers: the name each provider knows it by.
        known: whether the catalogue or the user says anything of it.
    """

    name: str
    input_price: int | None = None
    output_price: int | None = None
    cached_input_price: int | None = None
    cache_write_price: int | None = None
    cache_write_1h_price: int | None = None
    long_context: int = 0
    long_input_price: int | None = None
    long_output_price: int | None = None
    long_cached_input_price: int | None = None
    long_cache_write_price: int | None = None
    long_cache_write_1h_price: int | None = None
    context_window: int = 0
    max_output_tokens: int = 0
    capabilities: int = ASSUMED_CAPABILITIES
    quality: float = ASSUMED_QUALITY
    latency: float = 0.0
    tier: str | None = None
    fallbacks: tuple[str, ...] = ()
    context_fallbacks: tuple[str, ...] = ()
    content_fallbacks: tuple[str, ...] = ()
    providers: Mapping[str, str] = field(factory=dict)
    known: bool = False
    prices: TokenPrices | None = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # Worked out once: every attempt is priced.
        object.__setattr__(self, "prices", _prices_of(self))

    def chained(self) -> Iterator[tuple[str, str]]:
        """Every chain that leads on from this model, as (chain, model)."""
        for chain in CHAINS:
            for target in getattr(self, chain):
                yield chain, target

    @property
    def sampling(self) -> bool | str:
        """Whether sampling parameters may be set, as a file would say it."""
        found = self.capabilities & _SAMPLING[True]
        return next(said for said, bits in _SAMPLING.items() if bits == found)

    @property
    def capability_names(self) -> tuple[str, ...]:
        return tuple(name for name, bit in CAPABILITIES.items() if self.capabilities & bit)

    def over(self, override: ModelOverride) -> Model:
        """This model with what the override says in place of what was known."""
        changes: dict[str, Any] = {
            key: value for key, value in attrs.asdict(override, recurse=False).items() if value is not None
        }
        for price in PRICES:
            if price in changes:
                changes[price] = usd_to_nano(changes[price])
        sampling = self.capabilities & _SAMPLING[True]
        if "sampling" in changes:
            sampling = _SAMPLING[changes.pop("sampling")]
        mask = capability_mask(changes["capabilities"]) if "capabilities" in changes else self.capabilities
        changes["capabilities"] = mask & ~_SAMPLING[True] | sampling
        if "input_price" in changes:
            # Discounts and surcharges belong to the price they were told with.
            for dependent in _BY_INPUT:
                changes.setdefault(dependent, 0 if dependent == "long_context" else None)
        return attrs.evolve(self, **changes, known=True)


PRICES = (
    "input_price",
    "output_price",
    "cached_input_price",
    "cache_write_price",
    "cache_write_1h_price",
    "long_input_price",
    "long_output_price",
    "long_cached_input_price",
    "long_cache_write_price",
    "long_cache_write_1h_price",
)
_BY_INPUT = ("long_context", *(price for price in PRICES if price not in ("input_price", "output_price")))


def _prices_of(model: Model) -> TokenPrices | None:
    if model.input_price is None or model.output_price is None:
        return None
    long = None
    if model.long_context and model.long_input_price is not None:
        long = TokenPrices(
            model.long_input_price,
            model.output_price if model.long_output_price is None else model.long_output_price,
            model.long_cached_input_price,
            model.long_cache_write_price,
            model.long_cache_write_1h_price,
        )
    return TokenPrices(
        input=model.input_price,
        output=model.output_price,
        cached_input=model.cached_input_price,
        cache_write=model.cache_write_price,
        cache_write_1h=model.cache_write_1h_price,
        long_context=model.long_context if long is not None else 0,
        long=long,
    )


def sampling_bit(params: Mapping[str, Any]) -> int:
    """The capability that a request with sampling parameters needs."""
    return SAMPLING_WITHOUT_REASONING if params.get("reasoning_effort") == "none" else SAMPLING


def capability_mask(names: Iterable[str]) -> int:
    """The bits of the capabilities named.

    Raises:
        KeyError: for a name that is none of `CAPABILITIES`.
    """
    mask = 0
    for name in names:
        mask |= CAPABILITIES[name]
    return mask


@frozen(kw_only=True)
class Catalog:
    """All models known, and the names they go by. Immutable, so any thread may use it.

    Attributes:
        models: by name.
        aliases: other names, each for a model or another alias.
        successors: for models that some providers have given up, what they serve in their place; it stands
            for the model where nothing serves that and something serves this.
        version: of the data's layout.
        date: the day of the prices.
        source: where they come from.
    """

    models: Mapping[str, Model]
    aliases: Mapping[str, str] = field(factory=dict)
    successors: Mapping[str, str] = field(factory=dict)
    version: int = LAYOUT
    date: datetime.date = datetime.date.min
    source: str = ""

    @staticmethod
    def builtin() -> Catalog:
        """The catalogue that comes with the package, read once when first asked for."""
        return _builtin()

    def with_file(self, path: str | os.PathLike[str]) -> Catalog:
        """This catalogue with a file's models and aliases over it.

        Raises:
            ConfigError: if anything in the file is wrong; all of it is listed and nothing is taken over.
        """
        return _over(self, read_toml(Path(path)), str(path))

    def with_overrides(
        self,
        models: Mapping[str, ModelOverride],
        aliases: Mapping[str, str] | None = None,
        *,
        served: Iterable[str] = (),
    ) -> Catalog:
        """This catalogue with a configuration's models and aliases over it.

        Args:
            models: what the configuration says of models, known or new.
            aliases: names of the user's own; one wins over a model of the same name that nothing serves.
            served: every model that has an endpoint. One that nobody has described becomes a model of
                unknown price in its own right, even where an alias of the same name exists.
        """
        merged = dict(self.models)
        for name, override in models.items():
            merged[name] = merged.get(name, Model(name=name)).over(override)
        served = tuple(served)
        for name in served:
            merged.setdefault(name, Model(name=name))
        gone = {
            name: successor
            for name, successor in self.successors.items()
            if name not in served and name not in models and successor in served
        }
        names = {**gone, **(aliases or {})}
        for name in names:
            if name not in served:
                merged.pop(name, None)
        catalog = attrs.evolve(self, models=merged, aliases={**self.aliases, **names})
        for name, model in merged.items():
            # Written as aliases or not, chains are followed by the models' own names.
            chains: dict[str, Any] = {
                chain: tuple(map(catalog._own_name, getattr(model, chain))) for chain in CHAINS
            }
            if any(chains.values()):
                merged[name] = attrs.evolve(model, **chains)
        return catalog

    def resolve(self, name: str) -> str:
        """The name of the model meant: the name itself, or what its alias stands for.

        Raises:
            ModelNotFoundError: if there is no such model or alias; it carries near names.
        """
        meant = self._own_name(name)
        if meant in self.models:
            return meant
        suggestions = near(name, [*self.models, *self.aliases], 3)
        hint = f"; near names are {', '.join(suggestions)}" if suggestions else ""
        raise errors.ModelNotFoundError(
            f"no model is called {show(name)}{hint}", suggestions=suggestions, param="model"
        )

    def _own_name(self, name: str) -> str:
        # An alias may stand for another; loops are refused on reading, and bounded here all the same.
        meant = name
        for _ in range(len(self.aliases) + 1):
            if meant in self.models or meant not in self.aliases:
                return meant
            meant = self.aliases[meant]
        return name

    def model(self, name: str) -> Model:
        """The model of that name or alias.

        Raises:
            ModelNotFoundError: if there is none.
        """
        return self.models[self.resolve(name)]

    def default_tiers(self, models: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The tiers of these models where a configuration defines none, cheapest first, empty ones left out.

        A model of which no tier is known counts as standard.
        """
        tiers: dict[str, list[str]] = {tier: [] for tier in TIERS}
        for name in dict.fromkeys(models):
            known = self.models.get(name)
            tiers[(known.tier if known else None) or ASSUMED_TIER].append(name)
        return {tier: tuple(names) for tier, names in tiers.items() if names}

    def served_by(self, provider: str) -> dict[str, str]:
        """The models known to be served by a provider: name to the provider's own name."""
        return {
            name: model.providers[provider]
            for name, model in self.models.items()
            if provider in model.providers
        }


def replace(current: Catalog, path: str | os.PathLike[str]) -> Catalog:
    """``current`` with a file over it; if the file is broken, ``current`` itself, and the log says why."""
    try:
        return current.with_file(path)
    except errors.ConfigError as error:
        log.error("the catalogue of %s stays in force: %s", current.date.isoformat(), error)
        return current


# -------------------------------------------------------------------------------------- reading files


@lru_cache(maxsize=1)
def _builtin() -> Catalog:
    path = Path(__file__).parent / "data" / "catalog.toml"
    return _over(Catalog(models={}), read_toml(path), path.name)


def _over(base: Catalog, raw: Mapping[str, Any], where: str) -> Catalog:
    """The base with the raw tables over it, or every problem they have."""
    problems: list[str] = []
    known = ("version", "date", "source", "models", "aliases", "successors")
    problems += [
        f"{key}: unknown key{did_you_mean(key, known)}, must be one of {', '.join(known)}"
        for key in raw
        if key not in known
    ]
    if raw.get("version", LAYOUT) != LAYOUT:
        problems.append(
            f"version: {show(raw['version'])} is not a layout this version reads, must be {LAYOUT}"
        )
    day = _day(raw.get("date", base.date), problems)
    source = raw.get("source", base.source)
    if not isinstance(source, str):
        problems.append(f"source: {show(source)} is not text, must be a string in quotes")

    overrides = {}
    for name, table in _table(raw, "models", problems).items():
        override = read_override(table, f"models.{quoted(name)}", problems)
        if override is not None:
            overrides[name] = override
    aliases, successors = (_names(raw, key, problems) for key in ("aliases", "successors"))
    if not problems:
        merged = base.with_overrides(overrides, aliases)
        problems += alias_problems(aliases, merged.aliases, merged.models)
        for name, successor in successors.items():
            for which in (name, successor):
                if which not in merged.models:
                    hint = did_you_mean(which, merged.models)
                    problems.append(f"successors.{quoted(name)}: no model is called {show(which)}{hint}")
        for name in overrides:
            for chain, target in merged.models[name].chained():
                path = f"models.{quoted(name)}.{chain}"
                if target == name:
                    problems.append(f"{path}: names the model itself")
                elif target not in merged.models:
                    hint = did_you_mean(target, merged.models)
                    problems.append(f"{path}: no model is called {show(target)}{hint}")
        if not problems:
            successors = {**base.successors, **successors}
            return attrs.evolve(merged, successors=successors, version=LAYOUT, date=day, source=source)
    raise errors.ConfigError([f"{where}: {problem}" for problem in problems])


def read_override(table: Any, path: str, problems: list[str]) -> CatalogEntry | None:
    """One model's table, checked key by key; what is wrong is added to ``problems``."""
    if not isinstance(table, Mapping):
        problems.append(f"{path}: {show(table)} is not a table, must be a table of the model's figures")
        return None
    before = len(problems)
    attributes = attrs.fields_dict(CatalogEntry)
    values: dict[str, Any] = {}
    for key, value in table.items():
        attribute = attributes.get(key)
        if attribute is None:
            problems.append(
                f"{path}.{quoted(key)}: unknown key{did_you_mean(key, attributes)}, "
                f"must be one of {', '.join(attributes)}"
            )
            continue
        values[key] = tuple(value) if isinstance(value, list) else value
        try:
            assert attribute.validator is not None
            attribute.validator(None, attribute, values[key])
        except ValueError as error:
            problems.append(f"{path}.{key}: {error}")
    if len(problems) != before:
        return None
    problems += [f"{path}.{problem}" for problem in price_problems(values)]
    return CatalogEntry(**values) if len(problems) == before else None


def price_problems(told: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one table's prices beside each other, each with its key."""
    if "long_context" in told and "long_input_price" not in told:
        yield "long_context: has no effect alone, must stand beside long_input_price"
    for key in told:
        if key.startswith("long_") and key.endswith("_price") and "long_context" not in told:
            yield f"{key}: has no effect alone, must stand beside long_context"
    if "long_input_price" in told and "input_price" not in told:
        yield "long_input_price: must stand beside input_price, whose surcharge it is"


def alias_problems(
    own: Mapping[str, str], aliases: Mapping[str, str], models: Mapping[str, Any]
) -> list[str]:
    """What is wrong with ``own`` aliases, as part of all ``aliases``: loops and targets nobody knows."""
    problems = []
    reported: set[str] = set()
    for name in own:
        chain = [name]
        while True:
            target = aliases[chain[-1]]
            if target in models:
                break
            if target in chain:
                if target in chain[1:] or any(word in reported for word in chain):
                    break  # it runs into a circle that is reported where it begins
                reported.update(chain)
                problems.append(
                    f"aliases.{quoted(name)}: goes round in a circle ({' → '.join([*chain, target])}), "
                    "must end at a model"
                )
                break
            if target not in aliases:
                hint = did_you_mean(target, [*models, *aliases])
                problems.append(f"aliases.{quoted(name)}: no model is called {show(target)}{hint}")
                break
            chain.append(target)
    return problems


def _table(raw: Mapping[str, Any], key: str, problems: list[str]) -> Mapping[str, Any]:
    table = raw.get(key, {})
    if isinstance(table, Mapping):
        return table
    problems.append(f"{key}: {show(table)} is not a table, must be a table")
    return {}


def _names(raw: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, str]:
    """A table from names to models' names."""
    found: dict[str, str] = {}
    for name, target in _table(raw, key, problems).items():
        if isinstance(target, str) and target:
            found[name] = target
        else:
            problems.append(f"{key}.{quoted(name)}: {show(target)} is no model's name, must be a string")
    return found


def _day(value: Any, problems: list[str]) -> datetime.date:
    try:
        return value if type(value) is datetime.date else datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        problems.append(f'date: {show(value)} is not a day, must be like "2026-01-31"')
        return datetime.date.min
