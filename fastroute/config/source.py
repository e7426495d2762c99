"""Loads a configuration from a file, a mapping, the environment, or provider keys alone.

Environment variables override the file, and the file overrides the defaults. Each table is read by itself,
so that all problems are reported at once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from fastroute import errors
from fastroute.platform.notices import notice

from .advice import advice, operation_problems
from .catalog import Catalog
from .consistency import find_problems
from .environment import CONFIG_VARIABLE, overlay
from .known_providers import complete, join, key_variables, missing_address, other_keys
from .messages import hides_secret, quoted, show
from .reader import attributes_of, read_entries, read_key, read_table, read_toml, unknown_key
from .rules import RuleSet, RuleSetTable
from .secrets import Secret, read_keys
from .tables import LISTS, SETTINGS, TABLES, Config, LearnedConfig
from .urls import url_problem
from .usable import usable

Source = str | os.PathLike[str] | Mapping[str, Any] | Config | None

DEFAULT_FILE = "fastroute.toml"
FORMATS = ("openai", "anthropic", "gemini", "azure")


@frozen
class Findings:
    """What was found in a configuration.

    Attributes:
        problems: what must be corrected before it can be used.
        warnings: what may be a mistake, such as a key that is not set on this machine.
        config: the configuration, if there are no problems.
        missing: the providers whose key is not set on this machine.
        file: where the configuration was read; None if it does not come from a file.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    config: Config | None = None
    missing: frozenset[str] = frozenset()
    file: str | None = None

    @property
    def ok(self) -> bool:
        return not self.problems


@frozen
class _Read:
    """What could be read of a configuration, and what is wrong with the rest."""

    config: Config
    problems: list[str]
    warnings: list[str]
    provenance: Mapping[str, str] = {}
    file: str = ""


def load(
    source: Source = None,
    *,
    environ: Mapping[str, str] | None = None,
    formats: Collection[str] = FORMATS,
) -> Config:
    """The configuration, checked as a whole.

    Args:
        source: a TOML file, a mapping in the shape of one, a `Config` (checked again), or None for the file
            that FASTROUTE_CONFIG names, else ``./fastroute.toml``, else the provider keys in the environment.
        environ: the environment; by default that of the process. Its ``FASTROUTE_…`` variables override a
            file or mapping, but not a `Config`.
        formats: the wire formats that are available.

    Raises:
        ConfigError: with every problem and its path.
    """
    read = _read(source, os.environ if environ is None else environ, formats)
    if read.problems:
        raise errors.ConfigError(read.problems, read.file)
    _log(read.warnings)
    return read.config


def load_with_keys(
    source: Source = None,
    *,
    environ: Mapping[str, str] | None = None,
    formats: Collection[str] = FORMATS,
) -> tuple[Config, dict[str, Secret | None]]:
    """The configuration as far as it can be used here, and the keys of its providers by name.

    The endpoints of a provider whose key is missing are left out, with a warning. Arguments as for `load`.

    Raises:
        ConfigError: with every problem of the configuration and of the keys, and if no endpoint is left.
    """
    environ = os.environ if environ is None else environ
    read = _read(source, environ, formats)
    try:
        keys = read_keys(read.config, environ)
    except errors.ConfigError as error:
        raise errors.ConfigError([*read.problems, *error.problems], read.file) from None
    if read.problems:
        raise errors.ConfigError(read.problems, read.file)
    if not keys.missing:
        _log(read.warnings)
        return read.config, keys.found
    config = usable(read.config, keys.missing, catalog_of)
    _log(read.warnings)
    _log(f"{problem}; until then no calls go to this provider" for problem in keys.missing.values())
    return config, keys.found


def _log(warnings: Iterable[str]) -> None:
    for warning in warnings:
        notice(warning)


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
        read = _read(source, environ, formats)
    except errors.ConfigError as error:
        return Findings(error.problems)
    problems, warnings, missing = read.problems, read.warnings, dict[str, str]()
    try:
        missing = read_keys(read.config, environ).missing
    except errors.ConfigError as error:
        problems += error.problems
    warnings += missing.values()
    if source is None and not read.file:
        warnings += other_keys(environ, formats)
    if not problems:
        more = advice(read.config, catalog_of(read.config), environ)
        warnings += [_with_provenance(warning, read.provenance) for warning in more]
        if missing and all(entry.provider in missing for entry in read.config.endpoints):
            warnings.append("no endpoint has its key on this machine, so a client would not start here")
    return Findings(
        tuple(problems),
        tuple(warnings),
        None if problems else read.config,
        frozenset(missing),
        read.file or None,
    )


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


def _read(source: Source, environ: Mapping[str, str], formats: Collection[str]) -> _Read:
    warnings = _environment_warnings(environ)
    file = None if isinstance(source, (Mapping, Config)) else _path(source, environ)
    if isinstance(source, Config):
        read = _Read(source, _relation_problems(source, formats), warnings)
    else:
        given = source if isinstance(source, Mapping) else {} if file is None else read_toml(file)
        read = _from_tables(
            given,
            # Absolute, so that a file gives the same paths from every working directory.
            Path() if file is None else file.absolute().parent,
            environ,
            formats,
            warnings,
            found=source is not None or file is not None,
            # An empty file is a mistake, or half-written: it must not turn into all that the keys allow.
            joined=bool(given) or file is None,
        )
    if read.config.reload == "change" and file is None:
        read.problems.append(
            'fastroute.reload: "change" needs a configuration from a file; use a file, or "signal" or "off"'
        )
    read.warnings.extend(
        _with_provenance(problem, read.provenance) for problem in operation_problems(read.config)
    )
    return read if file is None else attrs.evolve(read, file=str(file.absolute()))


def _path(source: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    if source is not None:
        if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
            raise errors.ConfigError(
                f"config: must be a path, a mapping, a Config or None, not {show(source)}"
            )
        path = Path(source)
        if hides_secret(path.name) and path.name == str(path) and not path.suffix and not path.exists():
            raise errors.ConfigError(
                "config: looks like an API key, not like the path of a file; set the key in the environment, "
                "such as OPENAI_API_KEY, and leave config out"
            )
        return path
    named = environ.get(CONFIG_VARIABLE)
    if named:
        if not Path(named).exists():
            raise errors.ConfigError(
                f"{CONFIG_VARIABLE}: {show(named)} does not exist; "
                "set it to the path of a TOML file, or unset it"
            )
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


def _nothing_configured(
    found: bool, joined: bool, environ: Mapping[str, str], formats: Collection[str]
) -> list[str]:
    """The problem of a configuration without providers and endpoints, and hints; arguments as there."""
    if not joined:
        return [
            "endpoints: none are defined, because the file is empty; name a provider in it, such as "
            "[providers.openai], or remove it"
        ]
    keys = ", ".join(key_variables(formats))
    if found:
        problem = (
            f"endpoints: none are defined; set one of {keys} to an API key, or name a provider and its "
            'models: [providers.openai] models = ["gpt-4.1"]'
        )
    else:
        problem = (
            f"no configuration found; set one of {keys} to an API key, set FASTROUTE_CONFIG to a file, or "
            f"create ./{DEFAULT_FILE} (fastroute init writes one)"
        )
    return [problem, *other_keys(environ, formats)]


# ---------------------------------------------------------------------------------------- reading tables


def _from_tables(
    given: Mapping[str, Any],
    directory: Path,
    environ: Mapping[str, str],
    formats: Collection[str],
    warnings: list[str],
    *,
    found: bool,
    joined: bool,
) -> _Read:
    problems: list[str] = []
    tables: dict[str, Any] = copy.deepcopy(dict(given))
    listed: set[tuple[str, str]] = set()
    if joined:
        join(tables, environ, formats, warnings)
    # Before the environment's own keys, so that they find the endpoints, and after them for what they add.
    provenance = complete(tables, environ, directory, listed)
    provenance |= overlay(tables, environ, problems, warnings)
    provenance |= complete(tables, environ, directory, listed)

    for key in tables:
        if key != "fastroute" and key not in TABLES:
            problems.append(f"{quoted(key)}: {_unknown_table(key)}")
    parts: dict[str, Any] = _read_settings(tables.get("fastroute", {}), problems)
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

    config = Config(**parts)
    warnings += _ledgers_left(config.ledger, directory)
    config = _with_paths_from(directory, config, problems)
    if not (tables["providers"] or tables["endpoints"]):
        problems += _nothing_configured(found, joined, environ, formats)
        places = []
    elif any(not isinstance(table, dict) or "models" in table for table in _tables_in(tables["providers"])):
        places = places or []  # the endpoints are there, but could not be read
    problems = [missing_address(problem) for problem in problems]
    problems += _relation_problems(config, formats, tables, places)
    problems = [_with_provenance(problem, provenance) for problem in dict.fromkeys(problems)]
    return _Read(config, problems, warnings, provenance)


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


def _with_paths_from(directory: Path, config: Config, problems: list[str]) -> Config:
    """Paths in a configuration are relative to its directory or, with a ``~``, to a home directory."""

    def placed(key: str, path: str) -> str:
        whole = os.path.expanduser(path)
        if path.startswith("~") and not os.path.isabs(whole):
            # As a relative path it would be a folder of the name ~.
            problems.append(f"{key}: no home directory is known for {show(path)}; use an absolute path")
        return str(directory / whole) if path else path

    ledger = config.ledger

    providers = {
        name: attrs.evolve(
            provider,
            api_key_file=placed(f"providers.{quoted(name)}.api_key_file", provider.api_key_file),
            ca_bundle=placed(f"providers.{quoted(name)}.ca_bundle", provider.ca_bundle)
            if provider.ca_bundle
            else None,
        )
        for name, provider in config.providers.items()
    }
    return attrs.evolve(
        config,
        catalog=placed("fastroute.catalog", config.catalog),
        ledger=ledger if ledger is None or "://" in ledger else placed("fastroute.ledger", ledger),
        ledger_journal=placed("fastroute.ledger_journal", config.ledger_journal),
        learned=attrs.evolve(config.learned, file=placed("learned.file", config.learned.file)),
        providers=providers,
    )


def _ledgers_left(ledger: str | None, directory: Path) -> Iterable[str]:
    """A warning if the ledger would begin anew, and one of its name is in the working directory.

    Earlier versions had it there. What it says was spent would be missed by budgets and reports.
    """
    if not ledger or "://" in ledger or os.path.isabs(ledger):
        return
    there, here = directory / ledger, Path(ledger).absolute()
    if here.exists() and not there.exists():
        yield (
            f"fastroute.ledger: {show(ledger)} is relative to the configuration file, so {here} is not used; "
            f"move it to {there}, or set its absolute path"
        )


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
        # A table with problems is left out as a whole, and each of its problems is reported already.
        unread_learned=config.learned == LearnedConfig()
        and bool(_names(tables.get("learned")) & {"file", "share"}),
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


def _tables_in(providers: Any) -> Iterable[Any]:
    return providers.values() if isinstance(providers, Mapping) else (providers,)


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
