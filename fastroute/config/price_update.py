"""Updates the prices of a catalogue file, from the genai-prices package or another file.

An update is all or nothing: every figure is checked against the rules of a catalogue and against the figure
in use, the new text is read back as a whole, and then replaces the old file in one step. Only prices and
context windows change. Qualities, latencies, tiers, aliases, comments, and models that the source does not
know stay, and so do tables without a ``providers`` line, which are the user's own.

The figures of a model are those of the first provider in its table. Of a price that varies over the day, the
highest is used, so that an estimate is never below the bill. A price that grows with the length of the
input is stored as two, with the length above which the higher one applies.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import frozen

from fastroute import errors
from fastroute.platform import files

from .catalog import PRICES, Catalog, CatalogEntry, Model, price_problems
from .messages import quoted
from .reader import parse_toml, read_table, read_text, read_toml

_SIZES = ("context_window", "long_context")
_BASE = tuple(price for price in PRICES if not price.startswith("long_"))
FIGURES = (*_BASE, "long_context", *PRICES[len(_BASE) :], "context_window")
_NEEDED = ("input_price", "output_price")
_LONG = "long_"

# A larger change most likely means that the source uses another unit.
_MOST_TIMES = 100
# Providers that have another name in genai-prices than in a configuration.
_SOURCE_NAMES = {"gemini": "google"}
_PACKAGE = "genai-prices"
# What data of another form than expected raises.
_UNREADABLE = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError)

Figures = Mapping[str, Any]
"""The figures of one model, by the names in `FIGURES`, unchecked."""


@frozen
class PriceSource:
    """A source of new figures.

    Attributes:
        name: for the catalogue's ``source``.
        date: the day of the figures.
        look_up: returns the figures of a model; None if the source does not know it.
        complete: whether it must have the context window of every model whose price it has.
    """

    name: str
    date: date
    look_up: Callable[[Model], Figures | None]
    complete: bool = False


@frozen
class PriceChange:
    """One figure that changed, USD per million tokens or tokens; None is no figure."""

    model: str
    figure: str
    before: float | None
    after: float | None


@frozen(kw_only=True)
class PriceUpdate:
    """What an update did.

    Attributes:
        path: the file written.
        date, source: what the file says now.
        changes: by model, in the catalogue's order.
        updated: models that have the source's figures now.
        unknown: models that the source does not know; they were not changed.
        own: models of the file whose tables name no provider; they were not changed.
    """

    path: str
    date: date
    source: str
    changes: tuple[PriceChange, ...]
    updated: tuple[str, ...]
    unknown: tuple[str, ...]
    own: tuple[str, ...]


def update(path: str | os.PathLike[str], source: PriceSource) -> PriceUpdate:
    """Updates a catalogue file, or makes one.

    Args:
        path: the file; it stays as it is if anything is wrong.
        source: from `from_package` or `from_file`.

    Raises:
        ConfigError: the file or the source is invalid, the source is older than the prices in use, or the
            file cannot be written; with every problem. Nothing was changed.
    """
    target = Path(os.path.realpath(path))
    builtin = Catalog.builtin()
    if target.is_relative_to(Path(__file__).resolve().parent):
        raise errors.ConfigError(f"{path}: belongs to the package; use a file of your own")
    old_text = read_text(target) if target.exists() else ""
    base = builtin.with_file(target) if old_text else builtin
    if source.date < base.date:
        raise errors.ConfigError(
            f"{source.name}: its prices are of {source.date}, older than those in use ({base.date}); "
            "use a newer source"
        )
    tables = parse_toml(old_text).get("models", {}) if old_text else {}
    own = tuple(name for name, table in tables.items() if "providers" not in table)
    problems: list[str] = []
    found: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    changes: list[PriceChange] = []
    for name, model in base.models.items():
        if name in own or not model.providers:
            continue
        try:
            figures = source.look_up(model)
        except _UNREADABLE as error:
            problems.append(
                f"{source.name}: models.{quoted(name)}: cannot be read ({type(error).__name__}); "
                "use another release of the source"
            )
            continue
        if figures is None:
            unknown.append(name)
            continue
        wrong = _problems(
            model, figures, needs_window="context_window" in tables.get(name, ()) or source.complete
        )
        problems += [f"{source.name}: {problem}" for problem in wrong]
        if not wrong:
            found[name] = {key: plain(value) for key, value in figures.items()}
            changes += _changes(model, figures)
    if not found and not problems:
        problems.append(f"{source.name}: has none of the models that may be updated; use another source")
    if problems:
        raise errors.ConfigError(problems)
    text = rewrite(old_text or _HEAD, found, source)
    for name, lines in found.items():
        if name not in tables:
            text += _section(base.models[name], lines)
    _put(target, text, found)
    return PriceUpdate(
        path=str(path),
        date=source.date,
        source=source.name,
        changes=tuple(changes),
        updated=tuple(found),
        unknown=tuple(unknown),
        own=own,
    )


# ------------------------------------------------------------------------------------------------- sources


def from_package() -> PriceSource:
    """The installed genai-prices package, as of today.

    Raises:
        ConfigError: it is not installed, cannot be read, or is older than the source of the built-in prices.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version(_PACKAGE)
        providers = importlib.import_module("genai_prices.data").providers
    except (ImportError, PackageNotFoundError):
        raise errors.ConfigError(
            f"prices: the {_PACKAGE} package is not installed; run pip install {_PACKAGE}, or name a file"
        ) from None
    built_from = Catalog.builtin().source.removeprefix(f"{_PACKAGE} ")
    if _release(installed) < _release(built_from):
        raise errors.ConfigError(
            f"prices: {_PACKAGE} {installed} is older than the built-in catalogue, which is made from "
            f"{built_from}; run pip install --upgrade {_PACKAGE}"
        )
    midnight = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    return package_source(providers, f"{_PACKAGE} {installed}", midnight)


def package_source(providers: Any, name: str, midnight: datetime) -> PriceSource:
    """A source that reads the data of genai-prices.

    Args:
        providers: the package's list of providers.
        name: of the source.
        midnight: the beginning of the day whose prices to use, UTC.
    """
    by_id = {provider.id: provider for provider in providers}

    def look_up(model: Model) -> Figures | None:
        provider, upstream = next(iter(model.providers.items()))
        listed = by_id.get(_SOURCE_NAMES.get(provider, provider))
        known = None
        if listed is not None:
            known = next((entry for entry in listed.models if entry.id == upstream), None)
            known = known or listed.find_model(upstream)
        if known is None:
            return None
        hours = [known.get_prices(midnight + timedelta(hours=hour)) for hour in range(24)]
        found: dict[str, Any] = {}
        lengths: set[int] = set()
        for key, attribute in _ATTRIBUTES.items():
            prices = [price for hour in hours if (price := getattr(hour, attribute, None)) is not None]
            if prices:
                found[key] = _highest([getattr(price, "base", price) for price in prices])
                tiers = [tier for price in prices for tier in getattr(price, "tiers", ())]
                lengths.update(tier.start for tier in tiers)
                if _LONG + key in PRICES:
                    found[_LONG + key] = _highest([found[key], *(tier.price for tier in tiers)])
        if "input_price" not in found:
            return None
        if lengths:
            # With several steps, the highest price applies from the first one on: never below the bill.
            found["long_context"] = min(lengths)
        else:
            found = {key: value for key, value in found.items() if not key.startswith(_LONG)}
        if known.context_window is not None:
            found["context_window"] = known.context_window
        return found

    return PriceSource(name, midnight.date(), look_up)


_ATTRIBUTES = {
    "input_price": "input_mtok",
    "cached_input_price": "cache_read_mtok",
    "cache_write_price": "cache_write_mtok",
    "cache_write_1h_price": "cache_write_1h_mtok",
    "output_price": "output_mtok",
    "audio_input_price": "input_audio_mtok",
    "audio_output_price": "output_audio_mtok",
}


def from_file(path: str | os.PathLike[str]) -> PriceSource:
    """A catalogue file, for example one that many programs share; all of it must be valid.

    Raises:
        ConfigError: with every problem of the file.
    """
    catalog = Catalog.builtin().with_file(path)
    raw = read_toml(Path(path))
    tables: Mapping[str, Mapping[str, Any]] = raw.get("models", {})

    def look_up(model: Model) -> Figures | None:
        table = tables.get(model.name, {})
        found = {key: table[key] for key in FIGURES if key in table}
        return found if "input_price" in found else None

    day = catalog.date if "date" in raw else datetime.now(timezone.utc).date()
    name = catalog.source if raw.get("source") else Path(path).name
    return PriceSource(name, day, look_up, complete=True)


def _highest(prices: list[Any]) -> Any:
    """The highest price; one that is not a number goes first, so that it is reported."""
    for price in prices:
        if not _is_number(price):
            return price
    return max(prices)


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


# -------------------------------------------------------------------------------------------------- checks


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value)


def _problems(model: Model, figures: Figures, *, needs_window: bool) -> list[str]:
    """What is wrong with a source's figures, by themselves and compared with those in use."""
    path = f"models.{quoted(model.name)}"
    problems: list[str] = []
    table = {
        key: float(value) if isinstance(value, Decimal) else value
        for key, value in figures.items()
        if value is not None
    }
    entry = read_table(CatalogEntry, table, path, problems)
    if entry is None:
        return problems
    problems += [f"{path}.{problem}" for problem in price_problems(entry)]
    problems += [f"{path}.{key}: is missing; this figure is required" for key in _NEEDED if key not in table]
    if "context_window" not in table and model.context_window and needs_window:
        problems.append(
            f"{path}.context_window: is missing; this figure is required, because the file has one "
            f"({model.context_window:,})"
        )
    for key in PRICES:
        before, after = _in_use(model, key), table.get(key)
        if not before or after is None:
            continue
        if not before / _MOST_TIMES <= after <= before * _MOST_TIMES:
            problems.append(
                f"{path}.{key}: {after:g} USD per million tokens is more than {_MOST_TIMES} times away from "
                f"{before:g}, perhaps in another unit; if it is right, set it in the file by hand"
            )
    return problems


def _in_use(model: Model, key: str) -> float | None:
    if key in _SIZES:
        return float(getattr(model, key)) or None
    nano: int | None = getattr(model, key)
    return None if nano is None else nano / 1_000_000_000


def _changes(model: Model, figures: Figures) -> list[PriceChange]:
    changes = []
    for key in FIGURES:
        before = _in_use(model, key)
        after = float(figures[key]) if key in figures else None
        if key == "context_window" and after is None:
            continue  # the window in use stays
        if before is None or after is None:
            same = before is after
        else:
            same = math.isclose(before, after, rel_tol=1e-12)
        if not same:
            changes.append(PriceChange(model.name, key, before, after))
    return changes


# --------------------------------------------------------------------------------------------------- text

_HEAD = """\
# Prices and context windows over the built-in catalogue of fastroute, written by `fastroute models --update`.
# An update rewrites these figures in every table that has a providers line, and changes nothing else.

version = 1
date = ""
source = ""
"""

_TABLE = re.compile(
    r"""(?mx) ^\[models\.(?: "(?P<double>[^"\\\n]+)" | '(?P<single>[^'\n]+)' | (?P<bare>[A-Za-z0-9_-]+) )\]
    [^\n]*\n (?P<body> (?: (?!\[) [^\n]*\n )* )"""
)


def rewrite(text: str, found: Mapping[str, Mapping[str, str]], source: PriceSource) -> str:
    """A catalogue's text with new figures in its tables, and a new date and source.

    Args:
        text: TOML.
        found: the figures by model, as TOML values; a discount or surcharge that is not among them is
            removed.
        source: of the name and date to write.
    """
    text = text if text.endswith("\n") else text + "\n"
    text = _with_setting(text, "date", source.date.isoformat())
    text = _with_setting(text, "source", source.name)

    def renewed(table: re.Match[str]) -> str:
        figures = found.get(table["double"] or table["single"] or table["bare"])
        if figures is None:
            return table[0]
        gone = {*figures, *FIGURES} - {"context_window"} | figures.keys()
        body = table["body"].splitlines(keepends=True)
        lines = [line for line in body if line.split("=")[0].strip() not in gone]
        places = [place for place, line in enumerate(lines, 1) if line.split("=")[0].strip() == "providers"]
        at = places[0] if places else 0
        lines[at:at] = [f"{key} = {value}\n" for key, value in _ordered(figures)]
        return table[0][: table.start("body") - table.start()] + "".join(lines)

    return _TABLE.sub(renewed, text)


def _section(model: Model, figures: Mapping[str, str]) -> str:
    providers = ", ".join(f"{_key(name)} = {_quote(upstream)}" for name, upstream in model.providers.items())
    lines = [f"[models.{_quote(model.name)}]", f"providers = {{ {providers} }}"]
    lines += [f"{key} = {value}" for key, value in _ordered(figures)]
    return "\n" + "\n".join(lines) + "\n"


def _ordered(figures: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key, figures[key]) for key in FIGURES if key in figures]


def _with_setting(text: str, key: str, value: str) -> str:
    """The text with a top-level key set to a string."""
    first = re.search(r"(?m)^\[", text)
    head, rest = (text[: first.start()], text[first.start() :]) if first else (text, "")
    line = f"{key} = {_quote(value)}"
    changed, count = re.subn(rf"(?m)^{key}\s*=.*$", lambda _: line, head, count=1)
    return (changed if count else f"{line}\n{head}") + rest


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quote(name)


def plain(value: Any) -> str:
    """A figure as a TOML value: an integer as it is, any other as a decimal fraction without an exponent."""
    if isinstance(value, int):
        return str(value)
    digits = f"{Decimal(repr(value)) if isinstance(value, float) else value:f}"
    return digits if "." in digits else digits + ".0"


# ------------------------------------------------------------------------------------------------- writing


def _put(target: Path, text: str, found: Mapping[str, Mapping[str, str]]) -> None:
    """Replaces the file by a text that was read back, or leaves it as it is."""
    new = target.with_name(f".{target.name}.{os.urandom(8).hex()}.toml")
    try:
        with files.replacing(str(target), str(new)) as fd:
            files.write(fd, text.encode())
            _read_back(new, target, found)
            os.fchmod(fd, target.stat().st_mode & 0o777 if target.exists() else 0o644)
    except OSError as error:
        raise errors.ConfigError(
            f"{target}: cannot be written ({error.strerror}); use a writable file"
        ) from None


def _read_back(new: Path, target: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    """Reads the new file, and checks that it has the new figures.

    Raises:
        ConfigError: it is invalid, or a figure is not the new one.
    """
    try:
        catalog = Catalog.builtin().with_file(new)
    except errors.ConfigError as error:
        raise errors.ConfigError(
            [
                f"{target}: cannot be updated in place: {problem.partition(': ')[2]}"
                for problem in error.problems
            ]
        ) from None
    for name, lines in found.items():
        for key, value in lines.items():
            arrived = _in_use(catalog.models[name], key)
            if arrived is None or not math.isclose(arrived, float(value), rel_tol=1e-9, abs_tol=1e-9):
                raise errors.ConfigError(
                    f"{target}: models.{quoted(name)}.{key} cannot be updated in place; "
                    "write it on a line of its own below a [models.NAME] line"
                )


__all__ = [
    "FIGURES",
    "PriceChange",
    "PriceSource",
    "PriceUpdate",
    "from_file",
    "from_package",
    "package_source",
    "plain",
    "rewrite",
    "update",
]
