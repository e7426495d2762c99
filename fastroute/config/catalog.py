"""The catalogue of models: prices, context windows, capabilities, quality and aliases.

The built-in data is in ``data/catalog.toml``; a user's file and the configuration's ``[models]`` and
``[aliases]`` override it. Catalogues are immutable.

Prices in memory are integers, nano-dollars per million tokens. An unknown price is None, never 0 and never
the price of another model; an unknown window is 0.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from attrs import field, frozen
from attrs.validators import optional

from fastroute import errors
from fastroute.types import PRICE_MODIFIERS, TokenPrices, usd_to_nano

from .messages import did_you_mean, near, quoted, show
from .reader import read_shipped, read_table, read_toml
from .validators import InvalidValue, integer, mapping_of, number, one_of, sequence_of, text

STREAMING, TOOLS, VISION, JSON_SCHEMA = 1, 2, 4, 8
# Whether temperature, top_p and top_k may be set: always, and with reasoning_effort = "none" only.
SAMPLING, SAMPLING_WITHOUT_REASONING = 16, 32
REASONING = 64  # the model reasons before it answers, unless it is told not to
FILE, AUDIO, VIDEO = 128, 256, 512  # what it can read besides text and images
CAPABILITIES: Mapping[str, int] = MappingProxyType(
    {
        "streaming": STREAMING,
        "tools": TOOLS,
        "vision": VISION,
        "json_schema": JSON_SCHEMA,
        "reasoning": REASONING,
        "file": FILE,
        "audio": AUDIO,
        "video": VIDEO,
    }
)
# A model without a description is assumed to support what nearly every server does, which excludes images.
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
_LONGEST_CHAIN = 32  # aliases from a name to its model
_MOST_PROBLEMS = 100  # each looks for near names, which takes milliseconds among thousands
_price = number(least=0, most=100_000, smallest=1e-9, unit="USD per million tokens")
_search_price = number(least=0, most=100_000, smallest=1e-6, unit="USD per 1,000 searches")
_tokens = integer(least=1, most=1_000_000_000)
_factors = mapping_of(mapping_of(number(least=0, most=1000)))
_models = sequence_of(text())


def _sampling(instance: Any, attribute: Any, value: Any) -> None:
    if not (isinstance(value, bool) or value == "without-reasoning"):
        raise InvalidValue(attribute.name, f'must be true, false or "without-reasoning", not {show(value)}')


def _price_factors(instance: Any, attribute: Any, value: Any) -> None:
    _factors(instance, attribute, value)
    for name in value:
        if name not in PRICE_MODIFIERS:
            hint = did_you_mean(name, PRICE_MODIFIERS)
            raise InvalidValue(
                attribute.name,
                f"unknown parameter {show(name)}{hint}; use one of {', '.join(PRICE_MODIFIERS)}",
            )


def _layout(instance: Any, attribute: Any, value: Any) -> None:
    if value != LAYOUT:
        raise InvalidValue(attribute.name, f"must be {LAYOUT}, the only layout known, not {show(value)}")


def _day(instance: Any, attribute: Any, value: Any) -> None:
    if type(value) is not datetime.date:
        try:
            datetime.date.fromisoformat(value)
        except (TypeError, ValueError):
            raise InvalidValue(attribute.name, f'must be like "2026-01-31", not {show(value)}') from None


# The keys by which one model leads to others.
CHAINS = ("fallbacks", "context_fallbacks", "content_fallbacks")


@frozen(kw_only=True)
class ModelOverride:
    """What a configuration sets for one model; None where it sets nothing.

    Attributes:
        input_price, output_price, cached_input_price: USD per million tokens.
        cache_write_price, cache_write_1h_price: USD per million input tokens written to the provider's cache,
            to be stored for minutes and for an hour.
        audio_input_price, audio_output_price: USD per million tokens of audio.
        search_price: USD per thousand web searches that the provider makes for a request.
        price_factors: for a parameter and its value (``service_tier``, ``flex``), the factor by which it
            multiplies the prices of all tokens.
        long_context: input tokens above which the ``long_…`` prices apply to the whole request.
        context_window: most tokens of input and output together.
        max_output_tokens: most tokens of output; larger requests are reduced to it.
        capabilities: some of ``streaming``, ``tools``, ``vision``, ``json_schema``, ``reasoning``, ``file``,
            ``audio``, ``video``; ``vision`` includes ``file``.
        sampling: whether ``temperature``, ``top_p`` and ``top_k`` may differ from their defaults;
            ``without-reasoning``: with ``reasoning_effort = "none"`` only.
        quality: 0 (worst) to 1, relative to the other models.
        latency: typical seconds for a medium answer, until it is measured.
        tier: its tier when a configuration defines no tiers.
        fallbacks: models to try, in order, when this one is unavailable.
        context_fallbacks: models to try when the input is too long for this one.
        content_fallbacks: models to try when this one's content filter refuses.
    """

    input_price: float | None = field(default=None, validator=optional(_price))
    output_price: float | None = field(default=None, validator=optional(_price))
    cached_input_price: float | None = field(default=None, validator=optional(_price))
    cache_write_price: float | None = field(default=None, validator=optional(_price))
    cache_write_1h_price: float | None = field(default=None, validator=optional(_price))
    audio_input_price: float | None = field(default=None, validator=optional(_price))
    audio_output_price: float | None = field(default=None, validator=optional(_price))
    search_price: float | None = field(default=None, validator=optional(_search_price))
    price_factors: Mapping[str, Mapping[str, float]] | None = field(
        default=None, validator=optional(_price_factors)
    )
    long_context: int | None = field(default=None, validator=optional(_tokens))
    long_input_price: float | None = field(default=None, validator=optional(_price))
    long_output_price: float | None = field(default=None, validator=optional(_price))
    long_cached_input_price: float | None = field(default=None, validator=optional(_price))
    long_cache_write_price: float | None = field(default=None, validator=optional(_price))
    long_cache_write_1h_price: float | None = field(default=None, validator=optional(_price))
    context_window: int | None = field(default=None, validator=optional(_tokens))
    max_output_tokens: int | None = field(default=None, validator=optional(_tokens))
    capabilities: tuple[str, ...] | None = field(
        default=None, validator=optional(sequence_of(one_of("capability", CAPABILITIES)))
    )
    sampling: bool | str | None = field(default=None, validator=optional(_sampling))
    quality: float | None = field(default=None, validator=optional(number(least=0, most=1)))
    latency: float | None = field(
        default=None, validator=optional(number(above=0, most=3600, unit="seconds"))
    )
    tier: str | None = field(default=None, validator=optional(one_of("tier", TIERS)))
    fallbacks: tuple[str, ...] | None = field(default=None, validator=optional(_models))
    context_fallbacks: tuple[str, ...] | None = field(default=None, validator=optional(_models))
    content_fallbacks: tuple[str, ...] | None = field(default=None, validator=optional(_models))


@frozen
class CatalogEntry(ModelOverride):
    """What a catalogue file says of one model.

    Attributes:
        providers: the model's name at each provider; in a configuration, endpoints have it.
    """

    providers: Mapping[str, str] | None = field(default=None, validator=optional(mapping_of(text())))


@frozen
class _CatalogFile:
    """A catalogue file; the keys are described in `Catalog`."""

    version: int = field(default=LAYOUT, validator=_layout)
    date: datetime.date | str | None = field(default=None, validator=optional(_day))
    source: str | None = field(default=None, validator=optional(text(empty=True)))
    models: Mapping[str, CatalogEntry] = field(factory=dict)
    aliases: Mapping[str, str] = field(factory=dict, validator=mapping_of(text()))
    successors: Mapping[str, str] = field(factory=dict, validator=mapping_of(text()))


@frozen(kw_only=True)
class Model:
    """One model of a catalogue.

    Attributes:
        name: the name that callers use.
        input_price, output_price, cached_input_price, cache_write_price, cache_write_1h_price: nano-dollars
            per million tokens; None is unknown.
        audio_input_price, audio_output_price: the same for tokens of audio; None: as of text.
        search_price: nano-dollars per thousand web searches; None is unknown.
        price_factors: as in `ModelOverride`.
        long_context: input tokens above which the ``long_…`` prices apply; 0 if they never do.
        prices: the same, for computing costs; None if the price of input or output is unknown.
        context_window, max_output_tokens: tokens; 0 is unknown.
        capabilities: bits of `STREAMING`, `TOOLS`, `VISION`, `JSON_SCHEMA`, `REASONING`, `FILE`, `AUDIO`,
            `VIDEO`, `SAMPLING`, `SAMPLING_WITHOUT_REASONING`.
        quality: 0 to 1.
        latency: typical seconds, until it is measured; 0 is unknown.
        tier: its tier when a configuration defines no tiers.
        fallbacks, context_fallbacks, content_fallbacks: models to try when it is unavailable, when the
            input is too long for it, when its content filter refuses.
        providers: its name at each provider.
        known: whether the catalogue or the configuration describes it.
    """

    name: str
    input_price: int | None = None
    output_price: int | None = None
    cached_input_price: int | None = None
    cache_write_price: int | None = None
    cache_write_1h_price: int | None = None
    audio_input_price: int | None = None
    audio_output_price: int | None = None
    search_price: int | None = None
    price_factors: Mapping[str, Mapping[str, float]] = field(factory=dict)
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
        # Computed once, because every attempt uses it.
        object.__setattr__(self, "prices", _prices_of(self))

    def chained(self) -> Iterator[tuple[str, str]]:
        """Every model that this one names in a chain, as (chain, model)."""
        for chain in CHAINS:
            for target in getattr(self, chain):
                yield chain, target

    @property
    def sampling(self) -> bool | str:
        """Whether sampling parameters may be set, as in a file."""
        found = self.capabilities & _SAMPLING[True]
        return next(setting for setting, bits in _SAMPLING.items() if bits == found)

    @property
    def reads(self) -> int:
        """The capabilities with what follows from them: who sees images reads files, page by page."""
        return self.capabilities | FILE if self.capabilities & VISION else self.capabilities

    @property
    def capability_names(self) -> tuple[str, ...]:
        return tuple(name for name, bit in CAPABILITIES.items() if self.capabilities & bit)

    def over(self, override: ModelOverride) -> Model:
        """This model with the values of the override in place of its own."""
        changes: dict[str, Any] = {
            key: value for key, value in attrs.asdict(override, recurse=False).items() if value is not None
        }
        for price in (*PRICES, "search_price"):
            if price in changes:
                changes[price] = usd_to_nano(changes[price])
        sampling = self.capabilities & _SAMPLING[True]
        if "sampling" in changes:
            sampling = _SAMPLING[changes.pop("sampling")]
        mask = capability_mask(changes["capabilities"]) if "capabilities" in changes else self.capabilities
        changes["capabilities"] = mask & ~_SAMPLING[True] | sampling
        if "input_price" in changes:
            # Discounts and surcharges belong to the price of the same table.
            for dependent in _BY_INPUT:
                changes.setdefault(dependent, 0 if dependent == "long_context" else None)
        return attrs.evolve(self, **changes, known=True)


PRICES = (
    "input_price",
    "cached_input_price",
    "cache_write_price",
    "cache_write_1h_price",
    "output_price",
    "audio_input_price",
    "audio_output_price",
    "long_input_price",
    "long_cached_input_price",
    "long_cache_write_price",
    "long_cache_write_1h_price",
    "long_output_price",
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
        audio_input=model.audio_input_price,
        audio_output=model.audio_output_price,
    )


def sampling_bit(params: Mapping[str, Any]) -> int:
    """The capability bit that a request with sampling parameters needs."""
    return SAMPLING_WITHOUT_REASONING if params.get("reasoning_effort") == "none" else SAMPLING


def capability_mask(names: Iterable[str]) -> int:
    """The bits of these capabilities.

    Raises:
        KeyError: for a name that is not in `CAPABILITIES`.
    """
    mask = 0
    for name in names:
        mask |= CAPABILITIES[name]
    return mask


@frozen(kw_only=True)
class Catalog:
    """All known models and their aliases. Immutable, so any thread may use it.

    Attributes:
        models: by name.
        aliases: other names, each of a model or of another alias.
        successors: for a model that some providers no longer offer, the model that they serve instead. It
            is used where an endpoint serves the successor and none serves the model.
        version: of the file's layout.
        date: the day of the prices.
        source: where the prices come from.
    """

    models: Mapping[str, Model]
    aliases: Mapping[str, str] = field(factory=dict)
    successors: Mapping[str, str] = field(factory=dict)
    version: int = LAYOUT
    date: datetime.date = datetime.date.min
    source: str = ""

    @staticmethod
    def builtin() -> Catalog:
        """The catalogue of the package; it is read once, at the first call."""
        return _builtin()

    def with_file(self, path: str | os.PathLike[str]) -> Catalog:
        """This catalogue with a file's models and aliases over it.

        Raises:
            ConfigError: with every problem of the file.
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
            models: overrides of known models, and new models.
            aliases: the user's own; each hides a model of the same name that has no endpoint.
            served: every model that has an endpoint. One without a description becomes a model of unknown
                price, even if there is an alias of the same name.
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
            # Chains may name aliases; the router follows them by the models' own names.
            chains: dict[str, Any] = {
                chain: tuple(map(catalog._own_name, getattr(model, chain))) for chain in CHAINS
            }
            if any(chains.values()):
                merged[name] = attrs.evolve(model, **chains)
        return catalog

    def resolve(self, name: str) -> str:
        """The model's own name, for a model or an alias.

        Raises:
            ModelNotFoundError: if there is no such model or alias; it has the near names.
        """
        meant = self._own_name(name)
        if meant in self.models:
            return meant
        suggestions = near(name, [*self.models, *self.aliases], 3)
        right = f"near names are {', '.join(suggestions)}" if suggestions else "use a model of the catalogue"
        raise errors.ModelNotFoundError(
            f"model: unknown model {show(name)}; {right}", suggestions=suggestions, param="model"
        )

    def _own_name(self, name: str) -> str:
        # Circular aliases are refused when a file is read; the bound is for catalogues made in Python.
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
        """The tiers of these models when a configuration defines none: cheapest first, without empty ones.

        A model of unknown tier counts as standard.
        """
        tiers: dict[str, list[str]] = {tier: [] for tier in TIERS}
        for name in dict.fromkeys(models):
            known = self.models.get(name)
            tiers[(known.tier if known else None) or ASSUMED_TIER].append(name)
        return {tier: tuple(names) for tier, names in tiers.items() if names}

    def served_by(self, provider: str) -> dict[str, str]:
        """The models that a provider serves, each with its name there."""
        return {
            name: model.providers[provider]
            for name, model in self.models.items()
            if provider in model.providers
        }


# -------------------------------------------------------------------------------------- reading files


@lru_cache(maxsize=1)
def _builtin() -> Catalog:
    name = "catalog.toml"
    return _over(Catalog(models={}), read_shipped(name), name)


def _over(base: Catalog, raw: Mapping[str, Any], where: str) -> Catalog:
    """The base with a file's tables over it.

    Raises:
        ConfigError: with every problem of the tables.
    """
    problems: list[str] = []
    file = read_table(_CatalogFile, raw, "", problems)
    if file is None:
        raise errors.ConfigError([f"{where}: {problem}" for problem in problems])
    merged = base.with_overrides(file.models, file.aliases)
    problems += alias_problems(file.aliases, merged.aliases, merged.models)
    for name, successor in file.successors.items():
        problems += [
            f"successors.{quoted(name)}: {unknown_model(which, merged.models)}"
            for which in (name, successor)
            if which not in merged.models
        ]
        if len(problems) >= _MOST_PROBLEMS:
            break
    for name, entry in file.models.items():
        if len(problems) >= _MOST_PROBLEMS:
            problems.append("models: there may be more problems; correct these first")
            break
        path = f"models.{quoted(name)}"
        problems += [f"{path}.{problem}" for problem in price_problems(entry)]
        for chain, target in merged.models[name].chained():
            if target == name:
                problems.append(f"{path}.{chain}: names the model itself; name other models")
            elif target not in merged.models and len(problems) < _MOST_PROBLEMS:
                problems.append(f"{path}.{chain}: {unknown_model(target, merged.models)}")
    if problems:
        raise errors.ConfigError([f"{where}: {problem}" for problem in problems])
    day = datetime.date.fromisoformat(file.date) if isinstance(file.date, str) else file.date
    return attrs.evolve(
        merged,
        successors={**base.successors, **file.successors},
        version=LAYOUT,
        date=day or base.date,
        source=base.source if file.source is None else file.source,
    )


def unknown_model(name: str, known: Iterable[str]) -> str:
    """The message for a name that is not in the catalogue or the configuration."""
    hint = did_you_mean(name, known)
    return f"unknown model {show(name)}{hint}; use a known model, or describe it in [models]"


def price_problems(override: ModelOverride) -> Iterator[str]:
    """Prices of one table that do not fit each other, each with its key."""
    given = {key for key, value in attrs.asdict(override, recurse=False).items() if value is not None}
    if "long_context" in given and "long_input_price" not in given:
        yield "long_context: has no effect alone; set long_input_price too"
    for key in PRICES:
        if key.startswith("long_") and key in given and "long_context" not in given:
            yield f"{key}: has no effect alone; set long_context too"
    if "long_input_price" in given and "input_price" not in given:
        yield "long_input_price: is a surcharge on input_price; set input_price too"


def alias_problems(
    own: Mapping[str, str], aliases: Mapping[str, str], models: Mapping[str, Any]
) -> list[str]:
    """Problems of ``own`` aliases among all ``aliases``: circular ones and unknown targets."""
    problems: list[str] = []
    reported: set[str] = set()
    for name in own:
        if len(problems) >= _MOST_PROBLEMS:
            problems.append("aliases: there may be more problems; correct these first")
            break
        chain = [name]
        while True:
            target = aliases[chain[-1]]
            if target in models:
                break
            if target in chain:
                if target in chain[1:] or any(word in reported for word in chain):
                    break  # it leads to a circular alias that is reported by itself
                reported.update(chain)
                problems.append(
                    f"aliases.{quoted(name)}: is circular ({' → '.join([*chain, target])}); end it at a model"
                )
                break
            if target not in aliases:
                problems.append(f"aliases.{quoted(name)}: {unknown_model(target, [*models, *aliases])}")
                break
            chain.append(target)
            if len(chain) > _LONGEST_CHAIN:
                problems.append(
                    f"aliases.{quoted(name)}: leads through more than {_LONGEST_CHAIN} aliases; "
                    "name the model itself"
                )
                break
    return problems
