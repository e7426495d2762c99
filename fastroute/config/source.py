"""Loads a configuration from a file, a mapping, the environment, or provider keys alone.

Environment variables override the file, and the file overrides the defaults. Each table is read by itself,
so that all problems are reported at once.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from fastroute import errors

from .catalog import Catalog
from .consistency import find_problems
from .environment import CONFIG_VARIABLE, overlay
from .messages import quoted, show
from .reader import attributes_of, read_entries, read_key, read_table, read_toml, unknown_key
from .rules import RuleSet, RuleSetTable
from .secrets import read_keys
from .tables import LISTS, SETTINGS, TABLES, Config
from .urls import url_problem

log = logging.getLogger("fastroute")

Source = str | os.PathLike[str] | Mapping[str, Any] | Config | None

DEFAULT_FILE = "fastroute.toml"
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
    """What was found in a configuration.

    Attributes:
        problems: what must be corrected before it can be used.
        warnings: what may be a mistake, such as a key that is not set on this machine.
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
    """The configuration, checked as a whole.

    Args:
        source: a TOML file, a mapping in the shape of one, a `Config` (checked again), or None for the file
            that FASTROUTE_CONFIG names, else ``./fastroute.toml``, else the provider keys in the environment.
        environ: the environment; by default that of the process. Its ``FASTROUTE_…`` variables override a
            file or mapping, but not a `Config`.
        formats: the wire formats that are available.
        default_state: ``[fastroute] state`` if neither file nor environment sets it.

    Raises:
        ConfigError: with every problem and its path.
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
    """Everything that is wrong or doubtful in a configuration; never raises for its content.

    Missing keys and a missing ledger directory are warnings, because a file is often checked on another
    machine.
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
        directory = Path(config.ledger).absolute().parent
        warnings.append(f"fastroute.ledger: the directory {directory} does not exist; create it")
    return attrs.evolve(findings, warnings=tuple(warnings))


def file_of(source: Source = None, *, environ: Mapping[str, str] | None = None) -> Path | None:
    """The file that `load` would read, as an absolute path; None if it would read none.

    Raises:
        ConfigError: if the source has the wrong type.
    """
    if isinstance(source, (Mapping, Config)):
        return None
    path = _path(source, os.environ if environ is None else environ)
    return None if path is None else path.absolute()


def catalog_of(config: Config) -> Catalog:
    """The catalogue of a configuration: the built-in one, its file, its models and its aliases.

    Raises:
        ConfigError: if its catalogue file is invalid.
    """
    return _base_catalog(config).with_overrides(config.models, config.aliases, served=config.served)


def tiers_of(config: Config, catalog: Catalog) -> dict[str, tuple[str, ...]]:
    """The tiers, cheapest first: the configured ones, else those of the catalogue."""
    return dict(config.tiers) or catalog.default_tiers(config.served)


# ------------------------------------------------------------------------------------------------ sources


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
                f"config: must be a path, a mapping, a Config or None, not {show(source)}"
            )
        return Path(source)
    named = environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def _environment_warnings(environ: Mapping[str, str]) -> list[str]:
    if environ.get("SSLKEYLOGFILE"):
        return [
            "SSLKEYLOGFILE: is set, so the TLS library writes the keys of every connection to that file; "
            "unset it except for debugging"
        ]
    return []


def _zero(environ: Mapping[str, str], formats: Collection[str], warnings: list[str]) -> dict[str, Any]:
    """Tables for every provider whose key is in the environment, with the catalogue's models there."""
    catalog = Catalog.builtin()
    providers: dict[str, Any] = {}
    endpoints: list[dict[str, Any]] = []
    for preset in _PRESETS:
        if not environ.get(preset.variable):
            continue
        if preset.format not in formats:
            warnings.append(
                f"{preset.variable}: is ignored, because the {preset.format} format is not available here"
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
                f"no configuration found; set one of {usable} to an API key, set FASTROUTE_CONFIG to a file, "
                f"or create ./{DEFAULT_FILE}",
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
    parts: dict[str, Any] = {"state": default_state, **_read_settings(tables.get("fastroute", {}), problems)}
    attributes = attributes_of(Config)
    places: list[int] | None = None
    for key in (key for key in TABLES if key in tables):
        attribute, raw = attributes[key], tables[key]
        if attribute.type is not None and attrs.has(attribute.type):
            table = read_table(attribute.type, raw, key, problems)
            if table is not None:
                parts[key] = table
        elif key == "classifiers":
            attribute = attribute.evolve(type=Mapping[str, RuleSetTable])
            parts[key] = _rule_sets(read_entries(attribute, raw, "", problems), problems)
        elif key in LISTS:
            entries = read_entries(attribute, raw, "", problems)
            parts[key] = tuple(entries.values())
            if key == "endpoints" and not (isinstance(raw, (list, tuple)) and len(entries) == len(raw)):
                places = list(entries)
        else:
            parts[key] = read_entries(attribute, raw, "", problems)

    config = _with_paths_from(directory, Config(**parts))
    problems += _relation_problems(config, formats, tables, places)
    problems = [_with_provenance(problem, provenance) for problem in dict.fromkeys(problems)]
    return Findings(tuple(problems), tuple(warnings), None if problems else config)


def _read_settings(raw: Any, problems: list[str]) -> dict[str, Any]:
    """The keys of ``[fastroute]`` that could be read."""
    if not isinstance(raw, Mapping):
        problems.append(f"fastroute: must be a table, not {show(raw)}")
        return {}
    for key in raw:
        if key in TABLES:
            problems.append(f"fastroute.{key}: is not a key of [fastroute]; write it as [{key}]")
        elif key not in SETTINGS:
            problems.append(f"fastroute.{quoted(key)}: {unknown_key(str(key), SETTINGS)}")
    attributes = attributes_of(Config)
    found = {
        key: read_key(attributes[key], raw[key], "fastroute", problems) for key in SETTINGS if key in raw
    }
    return {key: value for key, value in found.items() if value is not None}


def _rule_sets(tables: Mapping[str, RuleSetTable], problems: list[str]) -> dict[str, RuleSet]:
    found = {}
    for name, table in tables.items():
        try:
            found[name] = RuleSet.from_table(name, table)
        except errors.ConfigError as error:
            problems += error.problems
    return found


def _with_paths_from(directory: Path, config: Config) -> Config:
    """Paths in a configuration are relative to its directory, not to the working directory."""

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
    """Problems of the URLs of providers whose tables could not be read for another reason."""
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
        return "is not a table; move it into [fastroute]"
    return unknown_key(str(key), ("fastroute", *TABLES))


def _with_provenance(problem: str, provenance: Mapping[str, str]) -> str:
    """The problem, with the environment variable that set the value."""
    path, _, rest = problem.partition(": ")
    for place, variable in provenance.items():
        if path == place or path.startswith((f"{place}.", f"{place}[")):
            return f"{path} (from {variable}): {rest}"
    return problem
