"""Whose key a request carries: the keys in memory, kept up with their file.

Owns the look-up and how soon the file and its changes count; the file is `keys.py`. The whole table is in
memory, so a key that is not known costs one hash and one look-up, whoever sends it and however often: there
is no cache of answers that could grow, be poisoned, or keep a revoked key alive.
"""

from __future__ import annotations

import hmac
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from fastroute import errors
from fastroute.platform.files import stamp

from .keys import TOKEN, TOKEN_LENGTH, Caller, KeyFile, Table

log = logging.getLogger("fastroute")

_LOOK_AGAIN = 1.0  # seconds between two looks at the file
_RACY_NS = 2_000_000_000  # a file changed so lately may change again without its stamp telling
_UNREADABLE_FOR = 60.0  # seconds that the last table serves while the file cannot be read
_NOBODY = b"\0" * 32


class KeysUnavailable(errors.Error):
    """The file of keys has not been readable for too long to trust what was read of it."""

    default_status = 503


class Keyring:
    """Finds callers by their keys.

    Args:
        file: where the keys are.
        clock: seconds, for when to look again.
        now: seconds since the epoch, for expiry.

    Raises:
        ConfigError: the file cannot be used.

    Thread safety: all methods, in forked children too. One thread looks at the file, the others go on with
    what was read before.
    """

    def __init__(
        self,
        file: KeyFile,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._clock = clock
        self._now = now
        self._pid = os.getpid()
        self._looking = threading.Lock()
        self._stamp = stamp(file.path)
        self._table: Table = file.read()
        self._looked = self._read_at = clock()

    def find(self, token: bytes) -> Caller | None:
        """The caller with this key; None if it is nobody's, revoked or expired.

        What it does takes as long for a wrong secret as for a public part that nobody has.

        Raises:
            KeysUnavailable: the file cannot be read, and has not been for a minute.
        """
        table = self._current()
        match = TOKEN.fullmatch(token) if len(token) == TOKEN_LENGTH else None
        secret = None if match is None else table.secrets.get(match[1].decode())
        digest = self._file.digest(token[:TOKEN_LENGTH])
        same = hmac.compare_digest(digest, _NOBODY if secret is None else secret.digest)
        if not same or secret is None:
            return None
        if secret.expires is not None and secret.expires <= self._now():
            return None
        caller = table.callers.get(secret.caller)
        return caller if caller is not None and caller.revoked is None else None

    @property
    def callers(self) -> tuple[Caller, ...]:
        """Those who may call at present."""
        return tuple(caller for caller in self._current().callers.values() if caller.revoked is None)

    def _current(self) -> Table:
        at = self._clock()
        if at - self._looked >= _LOOK_AGAIN:
            if self._pid != os.getpid():  # a thread that is not here may hold the lock
                self._looking, self._pid = threading.Lock(), os.getpid()
            if self._looking.acquire(blocking=False):
                try:
                    self._look(at)
                finally:
                    self._looking.release()
        if at - self._read_at > _UNREADABLE_FOR:
            raise KeysUnavailable("the keys cannot be checked at present")
        return self._table

    def _look(self, at: float) -> None:
        import sqlite3

        self._looked = at
        try:
            found = stamp(self._file.path)
            settled = found is not None and self._now() * 1e9 - found.mtime_ns > _RACY_NS
            if found != self._stamp or not settled:
                self._table = self._file.read()
                self._stamp = found
            self._read_at = at
        except (OSError, sqlite3.Error, errors.ConfigError) as error:
            log.error("the keys cannot be read, those known go on for %g s: %s", _UNREADABLE_FOR, error)


class KeyFileWatch:
    """Looks for a file of keys that is not there yet.

    Whoever makes the first key of a gateway that is running means it to count, and a restart would take it
    up too; so from then on callers need one.

    Args:
        file: where the keys would be.
        clock: seconds, for when to look again.

    Thread safety: all methods; two threads may find it at once, and then have a keyring each.
    """

    def __init__(self, file: KeyFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._looked = -math.inf

    def look(self) -> Keyring | None:
        """The keys, once there is a file; looks once a second.

        Raises:
            KeysUnavailable: there is one, and it cannot be used: nobody is served on without keys then.
        """
        at = self._clock()
        if at - self._looked < _LOOK_AGAIN:
            return None
        if os.path.lexists(self._file.path):
            import sqlite3

            try:
                keyring = Keyring(self._file, clock=self._clock)
            except (OSError, sqlite3.Error, errors.ConfigError) as error:
                log.error("the file of keys that was found cannot be used: %s", error)
                raise KeysUnavailable("the keys cannot be checked at present") from None
            log.warning("keys were found in %s: from now on callers need one", self._file.path)
            return keyring
        self._looked = at
        return None


class Throttle:
    """How many wrong keys came from an address lately; bounded in addresses and in what it logs.

    It holds up wrong keys only: a right one is let in from wherever it comes, so nobody can be locked out by
    a neighbour behind the same proxy.

    Args:
        most: wrong keys a minute from one address until the next are told to wait.
        addresses: most remembered; the one unheard of for longest is forgotten.
    """

    def __init__(
        self, most: int = 60, addresses: int = 1024, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._addresses = addresses
        self._clock = clock
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._logged = (clock() - 60.0, 0)

    def wrong(self, address: str) -> float:
        """Takes note of a wrong key; seconds to wait if there were too many, else 0."""
        at = self._clock()
        with self._lock:
            since, count = self._seen.pop(address, (at, 0))
            if at - since >= 60.0:
                since, count = at, 0
            self._seen[address] = (since, count + 1)
            if len(self._seen) > self._addresses:
                self._seen.popitem(last=False)
            told, unsaid = self._logged
            say = at - told >= 60.0
            self._logged = (at, 0) if say else (told, unsaid + 1)
        if say:
            log.warning(
                "a call with a wrong key from %s (and %d more since the last such line)", address, unsaid
            )
        return 0.0 if count < self._most else max(1.0, since + 60.0 - at)

    def __len__(self) -> int:
        return len(self._seen)
