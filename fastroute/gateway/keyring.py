"""Finds the caller of a key, in a copy of the key file in memory that follows the file's changes.

All keys are in memory, so an unknown key costs one hash and one lookup, however often it is sent. There is no
cache of results that could grow, be poisoned, or keep a revoked key valid.
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

_LOOK_AGAIN = 1.0  # seconds between two checks of the file
_RACY_NS = 2_000_000_000  # age up to which a file may change again within one tick of its time stamp
_UNREADABLE_FOR = 60.0  # seconds that the keys stay valid while the file cannot be read
_CURRENT_FOR = 2.0  # seconds after a check in which the keys in memory are used without waiting for the next
_NOBODY = b"\0" * 32


class KeysUnavailable(errors.Error):
    """The key file has been unreadable for so long that the keys in memory may be outdated."""

    default_status = 503


class Keyring:
    """Finds callers by their keys.

    Args:
        file: the key file.
        clock: seconds that only increase, for the time of the next check.
        now: seconds since the epoch, for expiry.
        patience: seconds to wait for a thread that checks the file, whose wait for SQLite's lock is shorter.

    Raises:
        ConfigError: the file is invalid.

    Thread safety: all methods, in forked children too. While one thread reads the file, the others use the
    keys that were read before.
    """

    def __init__(
        self,
        file: KeyFile,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        patience: float = 2.0,
    ) -> None:
        self._file = file
        self._clock = clock
        self._now = now
        self._patience = patience
        self._pid = os.getpid()
        self._looking = threading.Lock()
        self._stamp = self._tried = stamp(file.path)
        self._table: Table = file.read()
        self._looked = self._read_at = clock()
        self._logged: tuple[str, ...] = ()
        self._log(self._table.problems)

    def find(self, token: bytes) -> Caller | None:
        """The caller with this key; None if the key is unknown, revoked or expired.

        The time that it takes does not depend on whether the public part exists.

        Raises:
            KeysUnavailable: the file has been unreadable for a minute, or what it says of this caller is
                damaged.
        """
        table = self._current()
        caller = self._owner(table, token)
        # A key may be used in the very second in which it was made. The file is read once for each change of
        # it, which no caller can bring about, and whether the public part exists makes no difference.
        if caller is None and stamp(self._file.path) not in (None, self._tried):
            caller = self._owner(self._current(changed=True), token)
        return caller

    def knows(self, token: bytes) -> bool:
        """Whether this is a valid key, as of the last look at the file; never waits."""
        try:
            return self._owner(self._table, token) is not None
        except KeysUnavailable:
            return False

    def _owner(self, table: Table, token: bytes) -> Caller | None:
        match = TOKEN.fullmatch(token) if len(token) == TOKEN_LENGTH else None
        secret = None if match is None else table.secrets.get(match[1].decode())
        digest = self._file.digest(token[:TOKEN_LENGTH])
        same = hmac.compare_digest(digest, _NOBODY if secret is None else secret.digest)
        if not same or secret is None:
            return None
        if secret.expires is not None and secret.expires <= self._now():
            return None
        caller = table.callers.get(secret.caller)
        if caller is None:
            # Its limits are unknown. "Invalid key" would make its owner look for the mistake elsewhere.
            raise KeysUnavailable(
                "the settings of this key are damaged; ask for another key, "
                "or see fastroute keys list on the gateway's machine"
            )
        return caller if caller.revoked is None else None

    @property
    def callers(self) -> tuple[Caller, ...]:
        """The callers that are not revoked."""
        return tuple(caller for caller in self._current().callers.values() if caller.revoked is None)

    def _current(self, changed: bool = False) -> Table:
        at = self._clock()
        if changed or at - self._looked >= _LOOK_AGAIN:
            if self._pid != os.getpid():  # a thread of the parent may have held the lock
                self._looking, self._pid = threading.Lock(), os.getpid()
            # While one thread checks the file, the others use what is in memory. After a quiet time that may
            # be outdated, for example by a revocation, so then they wait for the thread.
            recent = not changed and at - self._looked < _CURRENT_FOR
            if self._looking.acquire(blocking=not recent, timeout=-1 if recent else self._patience):
                try:
                    if changed or at - self._looked >= _LOOK_AGAIN:  # unless the thread before has checked it
                        self._look(at)
                finally:
                    self._looking.release()
        # Only a check that has failed, or that does not end, makes the keys too old.
        if at - self._read_at > _UNREADABLE_FOR:
            raise KeysUnavailable("the keys cannot be checked now; try again later")
        return self._table

    def _look(self, at: float) -> None:
        try:
            found = self._tried = stamp(self._file.path)
            settled = found is not None and self._now() * 1e9 - found.mtime_ns > _RACY_NS
            if found != self._stamp or not settled:
                self._table = self._file.read()
                self._stamp = found
            self._read_at = at
            self._log(self._table.problems)
        except (OSError, errors.ConfigError) as error:
            self._log((f"it cannot be read, so its keys stay valid for {_UNREADABLE_FOR:g} s: {error}",))
        # Last: who sees this time must find the result. An interrupted check does not count as one.
        self._looked = at

    def _log(self, problems: tuple[str, ...]) -> None:
        """Logs what is wrong with the file, once until it changes."""
        known, self._logged = self._logged, problems
        if problems and problems != known:
            log.error(
                "the key file %s: %s; fastroute keys list shows the keys that are intact, "
                "fastroute keys create replaces a damaged one, or restore the file from a copy",
                self._file.path,
                "; ".join(problems),
            )


class KeyFileWatch:
    """Waits for a key file that does not exist yet.

    Once it exists, callers need a key, as they would after a restart.

    Args:
        file: the key file.
        clock: seconds that only increase, for the time of the next check.

    Thread safety: all methods; two threads may find the file at once, and then each gets a keyring.
    """

    def __init__(self, file: KeyFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._looked = -math.inf
        self._logged = ""

    def look(self) -> Keyring | None:
        """The keys once the file exists, otherwise None; checks once a second.

        Raises:
            KeysUnavailable: the file is invalid. Callers without keys are rejected then, too.
        """
        at = self._clock()
        if at - self._looked < _LOOK_AGAIN:
            return None
        if os.path.lexists(self._file.path):
            try:
                keyring = Keyring(self._file, clock=self._clock)
            except (OSError, errors.ConfigError) as error:
                if str(error) != self._logged:
                    log.error("the key file that was found cannot be used: %s", error)
                self._logged = str(error)
                raise KeysUnavailable("the keys cannot be checked now; try again later") from None
            log.warning("found the key file %s: callers need a key from now on", self._file.path)
            return keyring
        self._looked = at
        return None


class Throttle:
    """Limits how often an address may try invalid keys, with bounded memory and logging.

    Valid keys are accepted from every address, so that a caller cannot be locked out by another one behind
    the same proxy.

    Args:
        most: invalid keys per minute and address without a wait.
        addresses: the most addresses to count; the least recent one is dropped.
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
        """Counts an invalid key; seconds to wait if there were too many, otherwise 0."""
        at = self._clock()
        with self._lock:
            since, count = self._seen.pop(address, (at, 0))
            if at - since >= 60.0:
                since, count = at, 0
            self._seen[address] = (since, count + 1)
            if len(self._seen) > self._addresses:
                self._seen.popitem(last=False)
            logged, unlogged = self._logged
            log_now = at - logged >= 60.0
            self._logged = (at, 0) if log_now else (logged, unlogged + 1)
        if log_now:
            log.warning(
                "an invalid key was sent from %s (and %d more since the last such message)", address, unlogged
            )
        return 0.0 if count < self._most else max(1.0, since + 60.0 - at)

    def __len__(self) -> int:
        return len(self._seen)
