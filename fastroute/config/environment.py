"""Puts environment variables such as ``FASTROUTE_POLICY__STRATEGY`` over the tables of a file.

Two underscores separate a table from its key. Case is ignored, and ``_`` stands for any character that a
variable's name cannot have: ``FASTROUTE_MODELS__GPT_4_1__QUALITY`` is ``models."gpt-4.1".quality``. A value
that is valid TOML (a number, true, a list) is read as TOML; any other is a string.

A variable that looks like a misspelt key is a problem, because a setting that was meant would have no effect.
Any other unknown one is a warning: programs have variables of their own with this prefix. Kubernetes sets
variables for each Service, here one whose name begins with ``fastroute``; these are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .catalog import Catalog
from .known_providers import known_providers
from .messages import near, quoted, show
from .policy import Policy
from .reader import attributes_of, parse_toml
from .redis_url import PASSWORDS
from .rules import CLASSIFIERS
from .tables import LISTS, SETTINGS, TABLES, CacheConfig, QualityConfig

PREFIX = "FASTROUTE_"
CONFIG_VARIABLE = "FASTROUTE_CONFIG"  # names the file to read
# The other variables that are not keys: three that setup.py reads, and the passwords of Redis.
NOT_KEYS = frozenset(
    {
        CONFIG_VARIABLE,
        "FASTROUTE_ASAN",
        "FASTROUTE_TRACE",
        "FASTROUTE_ANNOTATE",
        *PASSWORDS.values(),
        *(f"{variable}_FILE" for variable in PASSWORDS.values()),
    }
)
# Of a Service NAME, with "fastroute" or "fastroute-…" as its name: NAME_SERVICE_HOST, NAME_SERVICE_PORT and
# NAME_SERVICE_PORT_HTTP, NAME_PORT, NAME_PORT_8080_TCP and NAME_PORT_8080_TCP_ADDR, _PORT and _PROTO.
_OF_A_SERVICE = re.compile(
    r"FASTROUTE(?:_[A-Z0-9_]+)?_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)"
)
_SERVICE_PORT = re.compile(r"FASTROUTE(?:_[A-Z0-9_]+)?_PORT")
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")
# The tables whose keys are sometimes written without the table: FASTROUTE_STRATEGY.
_PLAIN_TABLES: Mapping[str, Any] = {"policy": Policy, "cache": CacheConfig, "quality": QualityConfig}
_NEAR = 0.75
_NOT_IN_VARIABLE = re.compile(r"[^a-z0-9]+")


def overlay(
    tables: dict[str, Any], environ: Mapping[str, str], problems: list[str], warnings: list[str]
) -> dict[str, str]:
    """Puts the variables into ``tables``, in place.

    Returns:
        The path of each value set, and the variable it came from.
    """
    provenance: dict[str, str] = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX) and name not in NOT_KEYS):
        words = variable.removeprefix(PREFIX).split("__")
        if words[0].lower() in SETTINGS:
            words.insert(0, "fastroute")
        elif words[0].lower() not in ("fastroute", *TABLES):
            if not _of_a_service(variable, environ[variable]):
                _report_unknown(variable, words, problems, warnings)
            continue
        path = _place(tables, words, variable, problems)
        if path is None:
            continue
        target, key, written = path
        target[key] = _value(environ[variable])
        provenance[written] = variable
    return provenance


def _of_a_service(variable: str, value: str) -> bool:
    """Whether Kubernetes has set the variable for a Service."""
    if _OF_A_SERVICE.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_ADDRESS.match(value))


def _report_unknown(variable: str, words: list[str], problems: list[str], warnings: list[str]) -> None:
    known = {name: PREFIX + name.upper() for name in (*SETTINGS, *TABLES, "config")}
    for table, kind in _PLAIN_TABLES.items():
        for key in attributes_of(kind):
            for written in (key, f"{table}_{key}"):
                known.setdefault(written, f"{PREFIX}{table.upper()}__{key.upper()}")
    matches = near(words[0], known, cutoff=_NEAR)
    if matches:
        meant = "__".join((known[matches[0]], *words[1:]))
        problems.append(
            f"{variable}: names no key (did you mean {meant}?); use a key of docs/configuration.md, "
            "or another prefix for a variable of your own"
        )
        return
    right = "use a key of docs/configuration.md, or another prefix for a variable of your own"
    plain = variable.removeprefix(PREFIX)
    if any(plain in known.api_key_env for known in known_providers().values()):
        right = f"set {plain} to the API key"
    warnings.append(f"{variable}: names no key and is ignored; {right}")


def _place(
    tables: dict[str, Any], words: list[str], variable: str, problems: list[str]
) -> tuple[Any, Any, str] | None:
    """The container and key that a variable names, and the path for messages."""
    table = words[0].lower()
    if any(not word for word in words):
        problems.append(f"{variable}: has an empty part; write two underscores only between two names")
        return None
    if len(words) == 1:
        return tables, table, table
    target: Any = tables.setdefault(table, [] if table in LISTS else {})
    written = table
    for depth, word in enumerate(words[1:], 1):
        if isinstance(target, list):
            number = _entry(target, word)
            if number is None:
                problems.append(
                    f"{variable}: unknown {table.removesuffix('s')} {show(word)}; "
                    "use the number or name of one in the file"
                )
                return None
            key: Any = number
            written += f"[{number}]"
        elif isinstance(target, dict):
            key = _match(word, _known_names(tables, table, target, depth))
            written += f".{quoted(key)}"
        else:
            problems.append(f"{variable}: {written} is not a table; name a key")
            return None
        if depth == len(words) - 1:
            return target, key, written
        if isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            target = target[key]
    return None


def _known_names(
    tables: Mapping[str, Any], table: str, target: Mapping[str, Any], depth: int
) -> Iterable[str]:
    """The names that a word may stand for at this place, those of the file first."""
    names = [name for name in target if isinstance(name, str)]
    if table == "models" and depth == 1:
        endpoints = tables.get("endpoints")
        for endpoint in endpoints if isinstance(endpoints, list) else ():
            if isinstance(endpoint, dict) and isinstance(endpoint.get("model"), str):
                names.append(endpoint["model"])
        names += Catalog.builtin().models
    elif table == "policy" and depth == 2:
        names += [level for levels in CLASSIFIERS.values() for level in levels]
        own = tables.get("classifiers")
        for rules in own.values() if isinstance(own, dict) else ():
            levels = rules.get("levels") if isinstance(rules, dict) else None
            names += [level for level in levels if isinstance(level, str)] if isinstance(levels, list) else []
    return names


def _match(word: str, names: Iterable[str]) -> str:
    plain = _plain(word)
    for name in names:
        if _plain(name) == plain:
            return name
    return word.lower()


def _entry(entries: list[Any], word: str) -> int | None:
    if word.isdecimal():
        return int(word) if int(word) < len(entries) else None
    for number, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = entry.get("name", f"{entry.get('provider')}/{entry.get('model')}")
            if _plain(str(name)) == _plain(word):
                return number
    return None


def _plain(name: str) -> str:
    return _NOT_IN_VARIABLE.sub("_", name.lower())


def _value(text: str) -> Any:
    try:
        read = parse_toml(f"value = {text}")
    except ValueError:
        return text
    # With a line break in it, the value could contain more keys.
    return read["value"] if read.keys() == {"value"} else text
