"""Reads the Redis address in ``state``.

It is the address of a server (``redis://``, ``rediss://``, ``unix://``), or the addresses of sentinels and
the name of a service (``redis+sentinel://``, ``rediss+sentinel://``). Passwords come from the environment.
Messages repeat nothing of an address but the names of its options, because a misplaced password may be
anywhere in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import frozen

from .messages import show

_SERVER = "redis://127.0.0.1:6379/0"
_BEHIND = "redis+sentinel://host1:26379,host2:26379/SERVICE/0"
_SENTINEL_PORT = 26379
_MOST_SENTINELS = 16

_OURS = ("prefix", "timeout", "local")
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# The options after the ?. redis-py takes db and those for TLS; the others are fastroute's own.
_OPTIONS = {
    "redis": (*_OURS, "db"),
    "rediss": (*_OURS, "db", *_TLS),
    "unix": (*_OURS, "db"),
    "redis+sentinel": (*_OURS, "sentinel_username"),
    "rediss+sentinel": (*_OURS, "sentinel_username", *_TLS),
}
# Where each password comes from; the same names with _FILE name a file that contains it.
PASSWORDS = {
    "password": "FASTROUTE_REDIS_PASSWORD",
    "sentinel_password": "FASTROUTE_REDIS_SENTINEL_PASSWORD",
}
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOCAL_STATE = re.compile(r"memory|machine(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?|/.*[^/]")
_TIMEOUT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_DATABASE = re.compile(r"[0-9]{1,9}")


@frozen
class Service:
    """A server whose address sentinels know.

    Attributes:
        name: of the service.
        sentinels: host and port of each.
        user: of the server; empty for its default user.
        db: the number of the database.
        tls: whether the server and the sentinels use TLS.
    """

    name: str
    sentinels: tuple[tuple[str, int], ...]
    user: str
    db: int
    tls: bool


@frozen
class RedisAddress:
    """The parts of an address.

    Attributes:
        url: of a server, for redis-py, without options; empty with a ``service``.
        service: the server whose address sentinels know.
        options: those after the ``?``.
    """

    url: str
    service: Service | None
    options: Mapping[str, str]


def is_redis_url(state: str) -> bool:
    """Whether a ``state`` begins like a Redis address."""
    return state.startswith(tuple(f"{scheme}:" for scheme in _OPTIONS))


def local_part(url: str) -> str:
    """Where a machine keeps its own part of the state: the ``local=`` of the address, or ``memory``."""
    return dict(parse_qsl(url.partition("?")[2])).get("local", "memory")


def read_redis_url(url: str) -> RedisAddress:
    """The parts of an address.

    Raises:
        ValueError: with everything that is wrong with it, and what would be right.
    """
    base, _, query = url.partition("?")
    scheme, separator, place = base.partition("://")
    if not separator or "#" in url:
        raise ValueError(f"is not a valid address; use one like {_SERVER} or {_BEHIND}")
    problems: list[str] = []
    service = None
    if scheme.endswith("+sentinel"):
        service, base = _service(place, scheme.startswith("rediss"), problems), ""
    else:
        _check_server(base, problems)
    options = _options(scheme, query, problems)
    if problems:
        raise ValueError(". It ".join(problems))
    return RedisAddress(base, service, options)


def _check_server(url: str, problems: list[str]) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        problems.append(f"is not a valid address; use one like {_SERVER}")
        return
    if parts.password is not None:
        problems.append(_password(PASSWORDS["password"]))
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.startswith("/"):
            problems.append("names no socket; use an address like unix:///run/redis.sock")
    elif not parts.hostname or port == 0 or not re.fullmatch(r"(/[0-9]*)?", parts.path):
        problems.append(f"is not a valid address; use one like {_SERVER}")


def _service(place: str, tls: bool, problems: list[str]) -> Service:
    authority, _, path = place.partition("/")
    user, _, hosts = authority.rpartition("@")
    if ":" in user or "@" in path:
        problems.append(_password(PASSWORDS["password"]))
    sentinels = [_sentinel(text) for text in hosts.split(",")]
    good = tuple(one for one in sentinels if one is not None)
    if not hosts:
        problems.append(f"names no sentinel; use an address like {_BEHIND}")
    elif None in sentinels:
        bad = ", ".join(str(number) for number, one in enumerate(sentinels, 1) if one is None)
        problems.append(
            f"has an invalid host or port for sentinel {bad} of {len(sentinels)}; "
            "write HOST or HOST:PORT (1 to 65535) for each, separated by commas"
        )
    elif len(set(good)) < len(good) or len(good) > _MOST_SENTINELS:
        problems.append(f"names {len(good)} sentinels; name each once, and at most {_MOST_SENTINELS}")
    name, slash, db = path.partition("/")
    if not _SERVICE.fullmatch(name):
        problems.append(
            'names no service; write its name (letters, digits, ".", "_" and "-") after the sentinels, '
            f"like {_BEHIND}"
        )
    numbered = _DATABASE.fullmatch(db) is not None
    if slash and not numbered:
        problems.append("has an invalid database; write its number after the service, or leave it out")
    return Service(name, good, unquote(user), int(db) if numbered else 0, tls)


def _sentinel(text: str) -> tuple[str, int] | None:
    """Its host and port; None if they are invalid."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    host, port = match["host"], int(match["port"] or _SENTINEL_PORT)
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    return (host, port) if 1 <= port <= 65535 else None


def _options(scheme: str, query: str, problems: list[str]) -> dict[str, str]:
    known = _OPTIONS[scheme]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        problems.append("has invalid options; write them like ?prefix=shop&timeout=0.5")
        return {}
    names = [name for name, _ in pairs]
    passwords = [variable for name, variable in PASSWORDS.items() if name in names]
    problems += map(_password, passwords)
    # Part of a password with an & in it would look like a name.
    for name in dict.fromkeys(names) if not passwords else ():
        if name in _TLS and name not in known:
            problems.append(f"has the option {name}, but does not use TLS; begin the address with rediss")
        elif name not in known or names.count(name) > 1:
            each = ", ".join(sorted(known))
            problems.append(f"has the option {show(name)}; use each of these at most once: {each}")
    options = dict(pairs)
    if not _PREFIX.fullmatch(options.get("prefix", "fastroute")):
        problems.append('has an invalid prefix; use letters, digits, ".", "_" and "-"')
    if not _LOCAL_STATE.fullmatch(options.get("local", "memory")):
        problems.append("has an invalid local; use memory, machine, machine:NAME or the path of a file")
    timeout = options.get("timeout", "1")
    if not _TIMEOUT.fullmatch(timeout) or not 0.01 <= float(timeout) <= 10:
        problems.append("has an invalid timeout; use a number from 0.01 to 10 (seconds)")
    if "db" in known and not _DATABASE.fullmatch(options.get("db", "0")):
        problems.append("has an invalid db; use the number of a database")
    return options


def _password(variable: str) -> str:
    return f"contains a password; set {variable} or {variable}_FILE instead"
