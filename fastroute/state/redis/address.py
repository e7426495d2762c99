"""The configured address of Redis with its passwords, and the error raised while Redis is unavailable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlencode

from attrs import field, frozen

from fastroute.config.redis_url import Service, read_redis_url
from fastroute.config.secrets import read_secret_file


class AwayError(Exception):
    """Redis does not answer, or not as expected; the message says why, without addresses or keys.

    Args:
        slow: whether a time-out passed.
    """

    def __init__(self, reason: str, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.slow = slow


@frozen(repr=False, kw_only=True)
class Address:
    """The address of Redis from ``state = "redis://…"`` or ``"redis+sentinel://…"``.

    Attributes:
        url: the server's URL for redis-py, without a password and without our own options.
        service: the service whose master the sentinels name, used instead of ``url``.
        files: TLS files by redis-py's names, for use with ``service``; ``url`` contains them already.
        prefix: the prefix of every key: programs with the same prefix share their counts.
        timeout: seconds to wait for an answer or a connection.
        password: from FASTROUTE_REDIS_PASSWORD, or the file that FASTROUTE_REDIS_PASSWORD_FILE names.
        sentinel_user: the sentinels' user, or None for their default user.
        sentinel_password: from FASTROUTE_REDIS_SENTINEL_PASSWORD, or the file named by the same with _FILE.
    """

    url: str = ""
    service: Service | None = None
    files: Mapping[str, str] = field(factory=dict)
    prefix: str
    timeout: float
    password: str | None
    sentinel_user: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        return f"<Redis, prefix {self.prefix!r}>"


def address_of(state: str) -> Address:
    """The address in a ``state`` that the configuration has checked.

    Raises:
        ConfigError: if a password's file cannot be read.
    """
    found = read_redis_url(state)
    options = dict(found.options)
    prefix, timeout = options.pop("prefix", "fastroute"), float(options.pop("timeout", "0.25"))
    sentinel_user = options.pop("sentinel_username", "") or None
    options.pop("local", None)
    password = _password("FASTROUTE_REDIS_PASSWORD")
    if found.service is None:
        url = found.url + (f"?{urlencode(options)}" if options else "")
        return Address(url=url, prefix=prefix, timeout=timeout, password=password)
    return Address(
        service=found.service,
        files=options,
        prefix=prefix,
        timeout=timeout,
        password=password,
        sentinel_user=sentinel_user,
        sentinel_password=_password("FASTROUTE_REDIS_SENTINEL_PASSWORD"),
    )


def _password(variable: str) -> str | None:
    """The variable's value, or the content of the file that the variable with _FILE names."""
    password, file = os.environ.get(variable) or None, os.environ.get(f"{variable}_FILE")
    if password is not None or not file:
        return password
    return read_secret_file(f"{variable}_FILE", file, "password").strip() or None
