"""Leases parts of budgets that many machines spend from.

Redis stores only what each machine was granted. `fastroute.budget` counts in the local segment what is
committed against the grant. So all machines together never commit more than the limit, and the reservation of
a killed worker is settled on its own machine.

A lease is one per cent of the limit, or what a call needs if that is more. What was not spent for a second is
returned: first it is committed locally, then subtracted from the machine's grant in Redis. In this order
nothing can be spent twice. What a killed machine had leased counts as spent until the window ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from fastroute import _core
from fastroute.budget import AWAY, GRANTED, REFUSED, Window

from .address import AwayError
from .answers import UnexpectedAnswerError, whole, words
from .connection import RedisConnection
from .scripts import MONEY

_PATIENCE = 0.25
_DAY_MS = 86_400_000
_TOTAL_MS = 400 * _DAY_MS  # a budget without an end is forgotten after this time without spending
_MISSING, _DAMAGED = "missing", "damaged"
_ANSWERS = (_MISSING, _DAMAGED, "granted", "refused")
_MOST_TOTAL = 10**24  # nano-dollars of all machines together
_SHARE = 100  # a lease is the limit divided by this


class _Account:
    """One window of a budget, for one value of its tag, as known to this process."""

    __slots__ = ("counter", "idle", "life", "limit", "name", "number", "total", "until_ms", "used")

    def __init__(self, name: str, number: int, counter: _core.Counter) -> None:
        self.name = name
        self.number = number
        self.counter = counter
        self.life = ""
        self.total = -1  # granted to all machines, by the last answer
        self.limit = 0
        self.until_ms = _TOTAL_MS
        self.used = True
        self.idle = -1  # committed at the last heartbeat

    @property
    def grant(self) -> int:
        """Nano-dollars that this machine may commit in the window. They are in the counter's own cell."""
        return self.counter.granted if self.counter.window == self.number else 0

    def add(self, nano: int) -> None:
        """Raises the grant, unless another window, or value, has the cell by now: then it stays unspent."""
        stamp = self.counter.stamp
        if nano and stamp >> 24 == self.number:
            self.counter.grant(stamp, nano)


class RedisBank:
    """Keeps and leases what this machine may commit of each budget.

    The grants are in the counters of the machine's state, so its processes share them.

    Thread safety: all methods.
    """

    def __init__(self, connection: RedisConnection, machine: str) -> None:
        self._connection = connection
        self._machine = machine
        self._accounts: dict[tuple[str, int], _Account] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """Replaces the lock in a forked child, where the thread that may hold it does not exist."""
        self._pid = os.getpid()
        self._asking = threading.Lock()

    def grant(self, name: str, window: Window, counter: _core.Counter) -> int:
        """Nano-dollars that this machine may commit, including what is spent and what was returned."""
        return self._account(name, window, counter).grant

    def elsewhere(self, name: str, window: Window, counter: _core.Counter) -> int:
        """Nano-dollars that, added to what is committed here, make what all machines may have spent."""
        account = self._account(name, window, counter)
        return account.total - account.grant if account.total >= 0 else 0

    def lease(
        self,
        name: str,
        window: Window,
        counter: _core.Counter,
        limit: int,
        need: int,
        now: float,
        spent: Callable[[bool], int],
    ) -> str:
        """Leases enough to commit ``need`` nano-dollars more.

        Args:
            now: seconds since the epoch.
            spent: called only if Redis does not know the window, with whether what it knows is damaged;
                returns what is to count as spent in it.

        Returns:
            GRANTED: read the grant again. REFUSED: the budget is spent. AWAY: Redis is unavailable.
        """
        account = self._account(name, window, counter)
        account.limit, account.used = limit, True
        account.until_ms = _TOTAL_MS
        if window.end - now < _TOTAL_MS / 1000:
            account.until_ms = int(max(0.0, window.end - now) * 1000) + _DAY_MS
        asking = self._asking
        locked = asking.acquire(timeout=_PATIENCE)
        try:
            # Computed under the lock: the thread before may have leased enough for both.
            lacking = counter.committed + need - account.grant
            if lacking <= 0:
                return GRANTED  # another thread has leased it
            lacking = min(lacking, limit + 1)
            return self._ask(account, lacking, max(lacking, limit // _SHARE), 0, spent)
        except AwayError:
            return AWAY
        finally:
            if locked:
                asking.release()

    def beat(self) -> None:
        """Reads what all machines have spent and returns what is not used here; runs once a second.

        Raises:
            AwayError: if Redis is unavailable.
        """
        for key, account in tuple(self._accounts.items()):
            # The window is over. What is left of its grant is not returned: nobody can use it any more.
            if account.counter.window != account.number:
                self._accounts.pop(key, None)
                continue
            committed = account.counter.committed
            still = committed == account.idle
            if not account.life or (still and not account.used and account.grant <= committed):
                continue
            back = self._set_aside(account) if still else 0
            account.idle, account.used = account.counter.committed, False
            self._ask(account, 0, 0, -back, None)

    def close(self) -> None:
        """Returns all that is not spent.

        Raises:
            AwayError: if Redis is unavailable; it then counts as spent until the window ends.
        """
        for account in tuple(self._accounts.values()):
            if account.life:
                back = self._set_aside(account)
                if back:
                    self._ask(account, 0, 0, -back, None)

    # ------------------------------------------------------------------------------------------ inside

    def _account(self, name: str, window: Window, counter: _core.Counter) -> _Account:
        key = (name, window.number)
        found = self._accounts.get(key)
        if found is None or found.counter.lost:
            found = self._accounts[key] = _Account(name, window.number, counter)
        return found

    def _set_aside(self, account: _Account) -> int:
        """Commits what is left of the grant, so that it can be returned to Redis; returns the amount."""
        counter, stamp = account.counter, account.counter.stamp
        rest = account.grant - counter.committed
        if rest <= 0 or counter.window != account.number:
            return 0
        ticket = counter.reserve(stamp, rest, account.grant - rest, _core.clock() + 60 * 10**9)
        if ticket < 0:
            return 0  # a call has begun to spend it
        counter.settle(ticket)
        return rest

    def _ask(
        self, account: _Account, need: int, want: int, charge: int, spent: Callable[[bool], int] | None
    ) -> str:
        connection = self._connection
        digest = blake2b(account.name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        key = connection.key("money", digest, str(account.number))
        # Costs above their estimates may have been committed without a grant: they are charged in any case.
        over = max(0, account.counter.committed - account.grant)
        # The part of the grant that the ledger does not have yet: not committed, or only reserved.
        held = max(0, account.grant - account.counter.figures()[0])
        base = -1
        need, want = max(0, need - over), max(0, want - over)

        def read(text: Any) -> tuple[str, int, int, str]:
            word, granted, total, life = words(text, 4)
            give = whole(granted)
            if word not in _ANSWERS or give > max(need, want):
                raise UnexpectedAnswerError("more than was asked for")
            return word, give, whole(total, most=_MOST_TOTAL), life

        while True:
            word, give, all_of_them, life = connection.run(
                MONEY,
                [key, connection.key("done", connection.request_id())],
                self._machine,
                account.life,
                base,
                held,
                charge + over,
                account.limit,
                need,
                want,
                account.until_ms,
                connection.request_id(),
                read=read,
            )
            if word not in (_MISSING, _DAMAGED):
                break
            if base >= 0 or spent is None:
                return REFUSED
            # Redis does not know the window (new, lost or damaged): only then is the ledger read.
            base = spent(word == _DAMAGED)
        account.life, account.total = life, all_of_them
        # After the grant is in Redis. If this process is killed in between, that part stays unspent.
        account.add(give + over)
        return GRANTED if word == "granted" else REFUSED
