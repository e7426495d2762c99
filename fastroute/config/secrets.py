"""Reads API keys from the environment or a file, into `Secret` values that do not show them.

No message repeats any part of a key, not even of an invalid one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import field, frozen

from fastroute import errors
from fastroute.platform import files
from fastroute.platform.notices import notice

from .messages import quoted

if TYPE_CHECKING:
    from .tables import Config, ProviderConfig


_MASK = "***"
_LARGEST_FILE = 64 * 1024


class Secret:
    """A string that is shown as ``***``; only `reveal` returns it.

    Copying returns the same object. Pickling drops the value, and `reveal` raises after unpickling, so that
    keys do not reach other processes or files by accident.

    Thread safety: immutable.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value: str | None = value

    def reveal(self) -> str:
        """The value.

        Raises:
            ValueError: if this secret was unpickled.
        """
        if self.__value is None:
            raise ValueError("this secret was unpickled, which drops its value; read the key again")
        return self.__value

    def __repr__(self) -> str:
        return _MASK

    __str__ = __repr__
    # The Sentry SDK uses this name to show local variables.
    __sentry_repr__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: Any) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_value, ()

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_Secret__value" or hasattr(self, name):
            raise AttributeError("a Secret is immutable; make a new one")
        object.__setattr__(self, name, value)

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret is not iterable; use reveal()")


def _without_value() -> Secret:
    secret = Secret.__new__(Secret)
    object.__setattr__(secret, "_Secret__value", None)
    return secret


class MissingKeyError(errors.ConfigError):
    """A key that is configured is not on this machine: no variable, an empty one, or no file."""


@frozen
class ProviderKeys:
    """The keys of a configuration, by the provider's name.

    Attributes:
        found: the keys; None for a provider without a key.
        missing: for each provider whose key is not here, where it was looked for and how to set it.
    """

    found: dict[str, Secret | None] = field(factory=dict)
    missing: dict[str, str] = field(factory=dict)


def read_key(name: str, provider: ProviderConfig, environ: Mapping[str, str] | None = None) -> Secret | None:
    """The key of the provider ``name``; None if none is configured.

    Raises:
        MissingKeyError: the key is missing where it is configured.
        ConfigError: it cannot be a key, or its file cannot be read.
    """
    environ = os.environ if environ is None else environ
    if provider.api_key_env:
        path = f"providers.{quoted(name)}.api_key_env"
        value = environ.get(provider.api_key_env)
        if value is None:
            raise MissingKeyError(
                f"{path}: the environment variable {provider.api_key_env} is not set; set it to the API key"
            )
        if not value.strip():
            raise MissingKeyError(
                f"{path}: the key in {provider.api_key_env} is empty; set it to the API key "
                "(for a server without keys, leave api_key_env out)"
            )
    elif provider.api_key_file:
        path = f"providers.{quoted(name)}.api_key_file"
        if not Path(provider.api_key_file).exists():
            raise MissingKeyError(
                f"{path}: {provider.api_key_file} cannot be read, because it does not exist; "
                "create it with the API key alone"
            )
        value = read_secret_file(path, provider.api_key_file, "key")
    else:
        return None
    value, stripped = _without_newline(value)
    problem = key_problem(value)
    if problem:
        raise errors.ConfigError(f"{path}: the key {problem}")
    if stripped:
        notice(f"{path}: the key ends with a newline, which is removed; store the key alone")
    return Secret(value)


def read_keys(config: Config, environ: Mapping[str, str] | None = None) -> ProviderKeys:
    """The keys of all providers.

    Raises:
        ConfigError: with every key that is invalid.
    """
    keys = ProviderKeys()
    problems: list[str] = []
    for name, provider in config.providers.items():
        try:
            keys.found[name] = read_key(name, provider, environ)
        except MissingKeyError as error:
            keys.missing[name] = error.problems[0]
        except errors.ConfigError as error:
            problems += error.problems
    if problems:
        raise errors.ConfigError(problems)
    return keys


def key_problem(value: str) -> str | None:
    """What is wrong with a key and what would be right, or None."""
    if not value:
        return "is empty; set it to the provider's key (for a server without keys, leave api_key_env out)"
    if value[0] == "\ufeff":
        return "begins with a byte order mark; store the key alone"
    if value[0] in "\"'`" or value[-1] in "\"'`":
        return "is in quotes; store the key alone"
    if any(char.isspace() for char in value):
        return "contains white space; store the key alone"
    if any(not "!" <= char <= "~" for char in value):
        return "contains characters that a header cannot carry; use printable ASCII characters"
    return None


def _without_newline(value: str) -> tuple[str, bool]:
    for ending in ("\r\n", "\n"):
        if value.endswith(ending):
            return value[: -len(ending)], True
    return value, False


def read_secret_file(path: str, file: str, what: str) -> str:
    """The text of a file that holds a secret; a file that every user may read is logged.

    Args:
        path: the setting that names the file, for messages.
        what: ``key`` or ``password``.

    Raises:
        ConfigError: it cannot be read, or is more than 64 KiB or no text.
    """
    try:
        # Container platforms mount secrets as links, and readable by more than one user.
        with files.closing(files.open_file(file, os.O_RDONLY, private=False, follow=True)) as fd:
            mode = os.fstat(fd).st_mode
            data = os.read(fd, _LARGEST_FILE + 1)
    except OSError as error:
        raise errors.ConfigError(
            f"{path}: {file} cannot be read ({error.strerror}); use a readable file that contains the {what}"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise errors.ConfigError(f"{path}: {file} is too large for a {what}; store the {what} alone")
    if mode & stat.S_IROTH:
        notice(f"{path}: every user of this machine may read {file}; run chmod 600 on it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.ConfigError(f"{path}: {file} is not text; store the {what} alone") from None
