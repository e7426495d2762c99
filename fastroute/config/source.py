"""Where a configuration comes from: a file, a mapping, the environment, or nothing but provider keys.

Owns the order of precedence (environment over file over defaults), reading table by table so that all
problems come out at once, and zero configuration. What keys mean is `models`; what fits what is `relations`.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import frozen

from fastroute import errors

from .catalog import Catalog, ModelOverride
from .consistency import find_problems
from .environment import overlay
from .messages import did_you_mean, quoted, show
from .policy import Policy
from .reader import read_table, read_toml, unknown_key
from .rules import RuleSet
from .secrets import read_keys
from .tables import (
    SETTINGS,
    TABLES,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    ProviderConfig,
    QualityConfig,
)
from .urls import url_problem
from .validators import mapping_of, sequence_of, text

log = logging.getLogger("fastroute")

T = TypeVar("T")

Source = str | os.PathLike[str] | Mapping[str, Any] | Config | None

DEFAULT_FILE = "fastroute.toml"
_CLASSIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
FORMATS = ("openai", "anthropic", "gemini", "azure")


@frozen
class _Preset:
    """A provider that is configured by its key alone."""

    name: str
    variable: str
    format: str
    base_url: str


_PRESETS = (
    _Preset("openai", "OPENAI_API_KEY", "openai", "https://api.openai.com/v1"),
    _Preset("deepseek", "DEEPSEEK_API_KEY", "openai", "https://api.deepseek.com/v1"),
    _Preset("openrouter", "OPENROUTER_API_KEY", "openai", "https://openrouter.ai/api/v1"),
    _Preset("anthropic", "ANTHROPIC_API_KEY", "anthropic", "https://api.anthropic.com"),
    _Preset("gemini", "GEMINI_API_KEY", "gemini", "https://generativelanguage.googleapis.com/v1beta"),
)


@frozen
class Findings:
    """What there is to say of a configuration.

    Attributes:
        problems: what must be mended before it can be used.
        warnings: what may surprise, such as a key that is not set here.
        config: the configuration, if there are no problems.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    config: Config | None = None

    @property
    def ok(self) -> bool:
        return not self.problems


def load(
    source: Source = None,
    *,
    environ: Mapping[str, str] | None = None,
    formats: Collection[str] = FORMATS,
    default_state: str = "memory",
) -> Config:
    """The configuration, whole and consistent.

    Args:
        source: a TOML file, a mapping in the shape of one, a `Config` (checked again), or None for the file
            that FASTROUTE_CONFIG names, else ``./fastroute.toml``, else whatever provider keys are in the
            environment.
        environ: the environment; by default the process's own. Its ``FASTROUTE_…`` variables go over a file
            or mapping; a `Config` is taken as it is.
        formats: the wire formats that can be spoken.
        default_state: ``[fastroute] state`` where neither file nor environment says; a `Config` always does.

    Raises:
        ConfigError: with every problem there is, each with its path.
    """
    findings = _find(source, os.environ if environ is None else environ, formats, default_state)
    if findings.config is None:
        raise errors.ConfigError(findings.problems)
    for warning in findings.warnings:
        log.warning("%s", warning)
    return findings.config


def check(
    source: Source = None,
    *,
    environ: Mapping[str, str] | None = None,
    formats: Collection[str] = FORMATS,
) -> Findings:
    """Everything there is to say of a configuration; never raises for what is in it.

    Keys and a ledger's directory that are missing here are warnings, because a file is often checked where
    they are not.
    """
    environ = os.environ if environ is None else environ
    try:
        findings = _find(source, environ, formats)
    except errors.ConfigError as error:
        return Findings(error.problems)
    config = findings.config
    if config is None:
        return findings
    warnings = list(findings.warnings)
    try:
        read_keys(config, environ)
    except errors.ConfigError as error:
        warnings += error.problems
    if config.ledger and "://" not in config.ledger and not Path(config.ledger).absolute().parent.is_dir():
        warnings.append(
            f"fastroute.ledger: there is no directory {Path(config.ledger).absolute().parent}, must be there"
        )
    return attrs.evolve(findings, warnings=tuple(warnings))


def file_of(source: Source = None, *, environ: Mapping[str, str] | None = None) -> Path | None:
    """The file that `load` would read, as an absolute path; None where it would read none.

    Raises:
        ConfigError: if the source is nothing that a configuration can come from.
    """
    if isinstance(source, (Mapping, Config)):
        return None
    path = _path(source, os.environ if environ is None else environ)
    return None if path is None else path.absolute()


def catalog_of(config: Config) -> Catalog:
    """The catalogue in force under a configuration: built-in, its file, its models and aliases.

    Raises:
        ConfigError: if the catalogue file it names is broken.
    """
    return _base_catalog(config).with_overrides(config.models, config.aliases, served=config.served)


def tiers_of(config: Config, catalog: Catalog) -> dict[str, tuple[str, ...]]:
    """The tiers in force, cheapest first: the configured ones, else the catalogue's."""
    return dict(config.tiers) or catalog.default_tiers(config.served)


# ------------------------------------------------------------------------------------------- finding one


def _find(
    source: Source, environ: Mapping[str, str], formats: Collection[str], default_state: str = "memory"
) -> Findings:
    warnings = _environment_warnings(environ)
    if isinstance(source, Config):
        problems = _relation_problems(source, formats)
        return Findings(tuple(problems), tuple(warnings), None if problems else source)
    if isinstance(source, Mapping):
        return _from_tables(source, Path(), environ, formats, warnings, default_state)
    path = _path(source, environ)
    if path is not None:
        return _from_tables(read_toml(path), path.parent, environ, formats, warnings, default_state)
    tables = _zero(environ, formats, warnings)
    return _from_tables(tables, Path(), environ, formats, warnings, default_state)


def _path(source: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    if source is not None:
        if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
            raise errors.ConfigError(
                f"{show(source)} is no configuration, must be a path, a mapping, a Config or nothing"
            )
        return Path(source)
    named = environ.get("FASTROUTE_CONFIG")
    if named:
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def _environment_warnings(environ: Mapping[str, str]) -> list[str]:
    if environ.get("SSLKEYLOGFILE"):
        return [
            "SSLKEYLOGFILE: is set, so the TLS library writes down what is needed to read every call; "
            "unset it outside of debugging"
        ]
    return []


def _zero(environ: Mapping[str, str], formats: Collection[str], warnings: list[str]) -> dict[str, Any]:
    """Tables for every provider whose key is in the environment, with the models known to be there."""
    catalog = Catalog.builtin()
    providers: dict[str, Any] = {}
    endpoints: list[dict[str, Any]] = []
    for preset in _PRESETS:
        if not environ.get(preset.variable):
            continue
        if preset.format not in formats:
            warnings.append(
                f"{preset.variable}: is set, but the {preset.format} format is not spoken here, "
                "so the key is not used"
            )
            continue
        providers[preset.name] = {
            "format": preset.format,
            "base_url": preset.base_url,
            "api_key_env": preset.variable,
        }
        endpoints += [
            {"provider": preset.name, "model": model, "upstream": upstream}
            for model, upstream in catalog.served_by(preset.name).items()
        ]
    if not providers:
        usable = ", ".join(preset.variable for preset in _PRESETS if preset.format in formats)
        raise errors.ConfigError(
            [
                f"there is no configuration: set one of {usable} to a key, or FASTROUTE_CONFIG to a file, "
                f"or write ./{DEFAULT_FILE}",
                *warnings,
            ]
        )
    return {"providers": providers, "endpoints": endpoints}


# ---------------------------------------------------------------------------------------- reading tables


def _from_tables(
    given: Mapping[str, Any],
    directory: Path,
    environ: Mapping[str, str],
    formats: Collection[str],
    warnings: list[str],
    default_state: str,
) -> Findings:
    problems: list[str] = []
    tables: dict[str, Any] = copy.deepcopy(dict(given))
    provenance = overlay(tables, environ, problems)

    for key in tables:
        if key != "fastroute" and key not in TABLES:
            problems.append(f"{quoted(key)}: {_unknown_table(key)}")
    parts: dict[str, Any] = {}
    _read_settings(tables.get("fastroute", {}), parts, problems)
    parts.setdefault("state", default_state)
    for key, kind in (("cache", CacheConfig), ("policy", Policy), ("quality", QualityConfig)):
        if key in tables:
            table = read_table(kind, tables[key], key, problems)
            if table is not None:
                parts[key] = table
    parts["providers"] = _read_named(ProviderConfig, tables, "providers", problems)
    parts["models"] = _read_named(ModelOverride, tables, "models", problems)
    endpoints = _read_list(EndpointConfig, tables, "endpoints", problems)
    budgets = _read_list(BudgetConfig, tables, "budgets", problems)
    parts["classifiers"] = _read_classifiers(tables.get("classifiers", {}), problems)
    parts["endpoints"] = () if endpoints is None else tuple(endpoints.values())
    parts["budgets"] = () if budgets is None else tuple(budgets.values())
    for key, validator in (
        ("aliases", mapping_of(text())),
        ("tiers", mapping_of(sequence_of(text()))),
    ):
        parts[key] = _read_entries(tables.get(key, {}), key, validator, problems)

    config = _with_paths_from(directory, Config(**parts))
    all_read = endpoints is not None and len(endpoints) == len(tables.get("endpoints", ()))
    places = None if all_read else list(endpoints or ())
    problems += _relation_problems(config, formats, tables, places)
    problems = [_with_provenance(problem, provenance) for problem in dict.fromkeys(problems)]
    return Findings(tuple(problems), tuple(warnings), None if problems else config)


def _read_settings(raw: Any, parts: dict[str, Any], problems: list[str]) -> None:
    if not isinstance(raw, Mapping):
        problems.append(f"fastroute: {show(raw)} is not a table, must be a table")
        return
    for key in raw:
        if key not in SETTINGS:
            hint = f"unknown key, must stand in a table [{key}] of its own"
            said = hint if key in TABLES else unknown_key(key, SETTINGS)
            problems.append(f"fastroute.{quoted(key)}: {said}")
    # Each on its own, so that a bad one leaves the others to be checked against the rest.
    for key in SETTINGS:
        if key in raw:
            found = read_table(Config, {key: raw[key]}, "fastroute", problems)
            if found is not None:
                parts[key] = getattr(found, key)


def _read_named(kind: type[Any], tables: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    raw = tables.get(key, {})
    if not isinstance(raw, Mapping):
        problems.append(f"{key}: {show(raw)} is not a table, must hold a table [{key}.NAME] for each")
        return {}
    found = {}
    for name, table in raw.items():
        if not isinstance(name, str) or not name:
            problems.append(f"{key}: {show(name)} is no name, must be a string that is not empty")
            continue
        value = read_table(kind, table, f"{key}.{quoted(name)}", problems)
        if value is not None:
            found[name] = value
    return found


def _read_list(
    kind: type[T], tables: Mapping[str, Any], key: str, problems: list[str]
) -> dict[int, T] | None:
    """Those that could be read, by their place; None if there is no list of them at all."""
    raw = tables.get(key, ())
    if not isinstance(raw, (list, tuple)):
        problems.append(f"{key}: {show(raw)} is not a list, must be [[{key}]] for each")
        return None
    read = {number: read_table(kind, table, f"{key}[{number}]", problems) for number, table in enumerate(raw)}
    return {number: entry for number, entry in read.items() if entry is not None}


def _read_classifiers(raw: Any, problems: list[str]) -> dict[str, RuleSet]:
    if not isinstance(raw, Mapping):
        problems.append(
            f"classifiers: {show(raw)} is not a table, must hold a table [classifiers.NAME] for each"
        )
        return {}
    found = {}
    for name, table in raw.items():
        if not isinstance(name, str) or not _CLASSIFIER.fullmatch(name):
            problems.append(f"classifiers: {show(name)} is no name, must be letters, digits, - and _")
            continue
        try:
            found[name] = RuleSet.from_mapping(name, table)
        except errors.ConfigError as error:
            problems += error.problems
    return found


def _read_entries(raw: Any, key: str, validator: Any, problems: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{key}: {show(raw)} is not a table, must be a table")
        return {}
    found: dict[str, Any] = {}
    for name, value in raw.items():
        value = tuple(value) if isinstance(value, list) else value
        try:
            validator(None, None, {name: value})
        except ValueError as error:
            problems.append(f"{key}.{quoted(name)}: {str(error).removeprefix(f'{show(name)}: ')}")
        else:
            found[name] = value
    return found


def _with_paths_from(directory: Path, config: Config) -> Config:
    """Files that belong to the configuration are found from where it stands, not from where we run."""

    def placed(path: str) -> str:
        return str(directory / path) if path else path

    providers = {
        name: attrs.evolve(
            provider,
            api_key_file=placed(provider.api_key_file),
            ca_bundle=placed(provider.ca_bundle) if provider.ca_bundle else None,
        )
        for name, provider in config.providers.items()
    }
    return attrs.evolve(config, catalog=placed(config.catalog), providers=providers)


def _base_catalog(config: Config) -> Catalog:
    catalog = Catalog.builtin()
    return catalog.with_file(config.catalog) if config.catalog else catalog


def _relation_problems(
    config: Config,
    formats: Collection[str],
    tables: Mapping[str, Any] | None = None,
    places: Sequence[int] | None = None,
) -> list[str]:
    problems: list[str] = []
    try:
        catalog = _base_catalog(config)
    except errors.ConfigError as error:
        problems += [f"fastroute.catalog: {problem}" for problem in error.problems]
        catalog = Catalog.builtin()
    tables = tables or {}
    problems += _unread_urls(config, tables)
    endpoints = tables.get("endpoints", ())
    endpoint_tables = endpoints if isinstance(endpoints, (list, tuple)) else ()
    models = {
        table["model"]
        for table in endpoint_tables
        if isinstance(table, Mapping) and isinstance(table.get("model"), str)
    }
    return problems + find_problems(
        config,
        catalog,
        formats,
        places=places,
        unread_providers=_names(tables.get("providers")) - config.providers.keys(),
        unread_models=models - set(config.served),
        unread_tiers=_names(tables.get("tiers")) - config.tiers.keys(),
        unread_classifiers=_names(tables.get("classifiers")) - config.classifiers.keys(),
    )


def _unread_urls(config: Config, tables: Mapping[str, Any]) -> list[str]:
    """What is wrong with the addresses of providers whose tables are wrong elsewhere."""
    providers = tables.get("providers")
    problems = []
    for name, table in providers.items() if isinstance(providers, Mapping) else ():
        if name not in config.providers and isinstance(table, Mapping) and "base_url" in table:
            problem = url_problem(
                table["base_url"],
                allow_http=table.get("allow_http") is True,
                allow_private_hosts=table.get("allow_private_hosts") is True,
            )
            if problem:
                problems.append(f"providers.{quoted(name)}.base_url: {problem}")
    return problems


def _names(table: Any) -> set[str]:
    return {name for name in table if isinstance(name, str)} if isinstance(table, Mapping) else set()


def _unknown_table(key: str) -> str:
    if key in SETTINGS:
        return "unknown key here, must stand in [fastroute]"
    return f"unknown key{did_you_mean(key, TABLES)}, must be one of fastroute, {', '.join(TABLES)}"


def _with_provenance(problem: str, provenance: Mapping[str, str]) -> str:
    path, _, rest = problem.partition(": ")
    variable = provenance.get(path)
    return f"{path} (from {variable}): {rest}" if variable else problem
