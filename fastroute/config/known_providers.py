"""The providers that are known by name, and what a configuration may leave out because of that.

`join` gives a configuration without providers and endpoints the providers whose key is in the environment.
`complete` fills in addresses, formats, the keys' variables, the endpoints that a provider lists as
``models``, and the names that the catalogue has for models at a provider. Both change tables as a file gives
them; values of a wrong type are left to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from fastroute import errors

from .catalog import Catalog
from .messages import near
from .reader import read_shipped, read_table
from .validators import is_model_name, sequence_of, text

_words = sequence_of(text())


@frozen(kw_only=True)
class KnownProvider:
    """A provider that is configured by its name alone; ``data/providers.toml`` explains the keys."""

    base_url: str = field(validator=text(empty=True))
    api_key_env: tuple[str, ...] = field(validator=_words)
    format: str = field(default="openai", validator=text())
    hosts: tuple[str, ...] = field(default=(), validator=_words)
    base_url_env: tuple[str, ...] = field(default=(), validator=_words)
    path: str = field(default="", validator=text(empty=True))
    api_version_env: str = field(default="", validator=text(empty=True))

    def key_variable(self, environ: Mapping[str, str]) -> str:
        """The variable that holds its key: the first one that is set, else the first; "" if it wants none."""
        found = next((name for name in self.api_key_env if environ.get(name)), None)
        return found or next(iter(self.api_key_env), "")

    def address(self, environ: Mapping[str, str]) -> tuple[str, str]:
        """Its base URL, and the variable that it comes from ("" if from none)."""
        for variable in self.base_url_env:
            url = environ.get(variable, "").strip()
            if url:
                bare = url.rstrip("/")
                return (url if bare.endswith(self.path) else bare + self.path), variable
        return self.base_url, ""

    def is_at(self, url: object) -> bool:
        """Whether a URL leads to one of its own hosts, or to a regional host below one."""
        if not self.api_key_env:
            return False  # any server may be on this machine
        try:
            host = urlsplit(url).hostname if isinstance(url, str) else None
        except ValueError:
            return False
        own = (urlsplit(self.base_url).hostname, *self.hosts)
        return host is not None and any(each and (host == each or host.endswith("." + each)) for each in own)


@lru_cache(maxsize=1)
def known_providers() -> Mapping[str, KnownProvider]:
    """The known providers by name; they are read once, at the first call."""
    problems: list[str] = []
    found = {
        name: read_table(KnownProvider, raw, name, problems)
        for name, raw in read_shipped("providers.toml").items()
    }
    assert not problems, problems
    return {name: known for name, known in found.items() if known is not None}


def key_variables(formats: Collection[str]) -> list[str]:
    """The variables whose keys suffice as a configuration, because the catalogue has models there."""
    catalog = Catalog.builtin()
    return [
        known.api_key_env[0]
        for name, known in known_providers().items()
        if known.format in formats and known.api_key_env and catalog.served_by(name)
    ]


def other_keys(environ: Mapping[str, str], formats: Collection[str]) -> Iterator[str]:
    """Hints for an environment without a usable key: keys that need a file, and misspelt variables."""
    usable = key_variables(formats)
    for name, known in known_providers().items():
        variable = known.key_variable(environ)
        if environ.get(variable) and variable not in usable and not Catalog.builtin().served_by(name):
            yield (
                f"{variable}: is set, but the catalogue has no models of {name}; "
                f'name them in a file: [providers.{name}] models = ["…"]'
            )
    for variable in sorted(environ):
        if environ[variable] and variable not in usable and variable.upper().endswith(("KEY", "TOKEN")):
            meant = [name for name in near(variable, usable) if not environ.get(name)]
            if meant and _vendor(variable) == _vendor(meant[0]):
                yield f"{variable}: is not read; did you mean {meant[0]}?"


def missing_address(problem: str) -> str:
    """A problem of the reader; if it is that a provider has no base URL, with what would be right for it."""
    found = re.fullmatch(r"(providers\.(\S+)\.base_url: is missing); must be a string", problem)
    if found is None:
        return problem
    name = found[2].strip('"')
    known = known_providers().get(name)
    if known is not None:  # it has no public address
        return f"{found[1]}; set it, or set {known.base_url_env[0]}"
    meant = near(name, known_providers())
    hint = f" (did you mean [providers.{meant[0]}]?)" if meant else ""
    return f"{found[1]}{hint}; set it to the URL of the API, like https://api.example.com/v1"


def _vendor(variable: str) -> str:
    """``openai`` of OPENAI_API_KEY and OPEN_AI_KEY."""
    plain = variable.lower().replace("_", "")
    for ending in ("key", "token", "api"):
        plain = plain.removesuffix(ending)
    return plain


# ----------------------------------------------------------------------------------------- filling in tables


def join(
    tables: dict[str, Any], environ: Mapping[str, str], formats: Collection[str], warnings: list[str]
) -> None:
    """Adds every provider whose key is set and of which the catalogue has models, if the tables name none."""
    if any(tables.get(key) not in (None, {}, []) for key in ("providers", "endpoints")):
        return
    found: dict[str, Any] = {}
    for name, known in known_providers().items():
        variable = known.key_variable(environ)
        if not environ.get(variable) or not Catalog.builtin().served_by(name):
            continue
        if known.format in formats:
            found[name] = {}
        else:
            warnings.append(
                f"{variable}: is ignored, because the {known.format} format is not available here"
            )
    if found:
        tables["providers"] = found


def complete(
    tables: dict[str, Any], environ: Mapping[str, str], directory: Path, listed: set[tuple[str, str]]
) -> dict[str, str]:
    """Fills in what known providers and the catalogue say.

    Args:
        tables: changed in place. What they say themselves stays.
        environ: where the variables of known providers are looked up.
        directory: the configuration's, which the path of a catalogue file starts from.
        listed: providers and models that have become endpoints. It is called before and after the environment
            is put over the tables; an endpoint that the environment removes must not come back.

    Returns:
        The path of each value that comes from a variable, and the variable.
    """
    providers, given = tables.setdefault("providers", {}), tables.setdefault("endpoints", [])
    if not isinstance(providers, dict):
        return {}
    endpoints: list[Any] = []
    if isinstance(given, (list, tuple)):
        endpoints = tables["endpoints"] = list(given)
    known = known_providers()
    named = [entry["provider"] for entry in endpoints if isinstance(entry, dict) and "provider" in entry]
    for name in named:
        if isinstance(name, str) and name in known:
            providers.setdefault(name, {})
    catalog = _catalog(tables, directory)
    provenance: dict[str, str] = {}
    for name, table in providers.items():
        if not isinstance(table, dict) or not isinstance(name, str):
            continue
        if name in known:
            elsewhere = "base_url" in table
            provenance |= _fill(name, table, known[name], environ)
            if not (elsewhere or "models" in table or name in named):
                served = list(catalog.served_by(_vendor_of(name, table) or name))
                if served:
                    table["models"] = served
        _list_models(name, table, endpoints, listed)
    for entry in endpoints:
        if isinstance(entry, dict) and "upstream" not in entry:
            upstream = _upstream(entry, providers, catalog)
            if upstream is not None:
                entry["upstream"] = upstream
    return provenance


def _fill(
    name: str, table: dict[str, Any], known: KnownProvider, environ: Mapping[str, str]
) -> dict[str, str]:
    provenance: dict[str, str] = {}
    if "base_url" not in table:
        url, variable = known.address(environ)
        if url:
            table["base_url"] = url
        if variable:
            provenance[f"providers.{name}.base_url"] = variable
        keyed = True
    else:
        # A key goes to the vendor's hosts and to where the user's own variable points, and nowhere else.
        keyed = known.is_at(table["base_url"])
    if keyed and known.api_key_env and not ("api_key_env" in table or "api_key_file" in table):
        table["api_key_env"] = known.key_variable(environ)
    table.setdefault("format", known.format)
    version = environ.get(known.api_version_env) if known.api_version_env else None
    if version and "api_version" not in table:
        table["api_version"] = version
        provenance[f"providers.{name}.api_version"] = known.api_version_env
    return provenance


def _list_models(
    name: str, table: dict[str, Any], endpoints: list[Any], listed: set[tuple[str, str]]
) -> None:
    """An endpoint for each of a provider's ``models``, unless it has one."""
    models = table.get("models")
    if not isinstance(models, (list, tuple)):
        return
    there = {
        entry["model"]
        for entry in endpoints
        if isinstance(entry, dict) and entry.get("provider") == name and isinstance(entry.get("model"), str)
    }
    for model in models:
        if not is_model_name(model):
            continue
        if model not in there and (name, model) in listed:
            table.pop("models", None)  # the environment has replaced the endpoints
        elif model not in there:
            endpoints.append({"provider": name, "model": model})
            there.add(model)
        listed.add((name, model))


def _upstream(entry: Mapping[str, Any], providers: Mapping[str, Any], catalog: Catalog) -> str | None:
    """The catalogue's name of an endpoint's model at its provider."""
    name, model = entry.get("provider"), entry.get("model")
    table = providers.get(name) if isinstance(name, str) else None
    if not (isinstance(table, dict) and isinstance(name, str) and isinstance(model, str)):
        return None
    if model not in catalog.models:
        return None
    names = catalog.models[model].providers
    return names.get(_vendor_of(name, table) or name)


def _vendor_of(name: str, table: Mapping[str, Any]) -> str | None:
    """The known provider whose names of models a provider uses."""
    known = known_providers()
    for vendor, each in known.items():
        if each.is_at(table.get("base_url")):
            return vendor
    if name in known:
        return name
    # A format that only one vendor has; OpenAI's is that of many.
    format = table.get("format")
    return format if isinstance(format, str) and format in known and format != "openai" else None


def _catalog(tables: Mapping[str, Any], directory: Path) -> Catalog:
    """The built-in catalogue, with the configured file over it if that is valid."""
    settings = tables.get("fastroute")
    path = settings.get("catalog") if isinstance(settings, dict) else None
    if isinstance(path, str) and path:
        try:
            return Catalog.builtin().with_file(directory / path)
        except errors.ConfigError:
            pass
    return Catalog.builtin()
