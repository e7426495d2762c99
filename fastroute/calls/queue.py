"""Where calls of this process wait for a limit, in the order of their class and their coming.

There are two kinds of waiting. For a permit (calls in flight) each endpoint has a queue: a permit that is
released wakes its first call, and no later call overtakes it. For a rate there is a time: it is
reserved in the core, so that a call sleeps once; a call of a higher class takes the time of a lower one,
which takes a later time in exchange.

Other processes have lines of their own; the first of a line looks again every 20 ms for what they give back.
`admission.py` decides whether to wait, and for what.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable

from fastroute import _core
from fastroute.types import PRIORITIES

ALL = ""  # the line for a permit of all endpoints together
RANKS = {name: rank for rank, name in enumerate(PRIORITIES)}

POLL_INTERVAL = 0.02
"""Seconds after which the first of a queue looks again: another process may have freed a permit."""
_REAP = 1.0  # seconds between two looks for what killed workers held


class Waiter:
    """A call that waits, in any number of queues at once."""

    __slots__ = ("_turn", "key", "names")

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.names: tuple[str, ...] = ()
        self._turn = threading.Event()

    def __lt__(self, other: Waiter) -> bool:
        return self.key < other.key

    def wake(self) -> None:
        self._turn.set()

    @property
    def awake(self) -> bool:
        """Whether it was woken and has not slept since."""
        return self._turn.is_set()

    def sleep(self, seconds: float) -> bool:
        """Sleeps until it is woken or the time is over; whether it was woken."""
        woken = self._turn.wait(seconds)
        self._turn.clear()
        return woken


class ReservedTime:
    """A reserved time and the call that it belongs to."""

    __slots__ = ("due", "paid", "tokens", "waiter")

    def __init__(self, waiter: Waiter, due: float, tokens: int) -> None:
        self.waiter = waiter
        self.due = due
        self.tokens = tokens  # what its owner needs
        self.paid = tokens  # what has been reserved with the time

    def __lt__(self, other: ReservedTime) -> bool:
        return self.due < other.due


class ReservedTimes:
    """The reserved times of one endpoint, the next first.

    Attributes:
        credit: tokens paid with the times that are gone, less what those who took them needed.
    """

    __slots__ = ("credit", "entries")

    def __init__(self) -> None:
        self.entries: list[ReservedTime] = []
        self.credit = 0

    def insert(self, new: ReservedTime) -> None:
        """Adds a call; calls of lower classes move back."""
        insort(self.entries, new)
        first = next((each for each in self.entries if each is new or each.waiter.key > new.waiter.key), new)
        if first is not new:
            self._exchange()

    def withdraw(self, entry: ReservedTime, away: bool) -> None:
        """Takes a call out, if it is among them.

        Args:
            away: it does not go in, but gets its payment back: others move up.
        """
        if entry not in self.entries:
            return
        if away:
            self._exchange(entry)
        else:
            self.entries.remove(entry)
            self.credit += entry.paid - entry.tokens

    def _exchange(self, gone: ReservedTime | None = None) -> None:
        """Gives the times out anew, by class and coming.

        At none of them more has gone in than was paid until then, of requests and of tokens: a call for which
        too little was paid yet is passed over.

        Args:
            gone: whose owner goes away and gets its payment back: the last of the times goes with it, which
                is the one that the bucket has again.
        """
        times = [(entry.due, entry.paid) for entry in self.entries]
        left = sorted(
            (entry for entry in self.entries if entry is not gone), key=lambda entry: entry.waiter.key
        )
        found: list[ReservedTime] = []
        free, since = self.credit, 0  # since: paid after the time of the last one found
        for last, (due, paid) in enumerate(times):
            free += paid
            since += paid
            while len(found) <= last:
                place = next((place for place, entry in enumerate(left) if entry.tokens <= free), None)
                if place is None:
                    break
                entry = left.pop(place)
                free -= entry.tokens
                moved = entry.due != due
                entry.due, entry.paid, since = due, since, 0
                found.append(entry)
                if moved:
                    entry.waiter.wake()
        for entry in left:  # in debt for one that went before
            entry.due, entry.paid, since = times[-1][0], since, 0
            found.append(entry)
            entry.waiter.wake()
        self.entries = found
        if gone is not None:
            self.credit += since - gone.tokens


class WaitQueue:
    """The calls of this process that wait for a limit, whatever configuration each began under.

    Args:
        clock: seconds, monotonic.

    Attributes:
        waiting: how many there are.
        waiters: the calls that wait for a permit, by endpoint, in the order in which they get one.
        times: the reserved times, by endpoint. Both hold only endpoints that are waited for.

    Thread safety: all methods. Nothing is called while the lock is held but the core.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: no call waits."""
        self.waiting = 0
        self._waiting: set[Waiter] = set()
        self._lock = threading.Lock()
        self._orders = itertools.count()
        self.waiters: dict[str, list[Waiter]] = {}
        self.times: dict[str, ReservedTimes] = {}
        self._reaped = 0.0

    # ------------------------------------------------------------------------------------- permits

    def waiter(self, rank: int) -> Waiter:
        """One for a call that is going to wait."""
        return Waiter((rank, next(self._orders)))

    def enter(self, waiter: Waiter) -> Waiter:
        """Begins to wait there; `leave` must follow, even where this is interrupted."""
        with self._lock:
            self._waiting.add(waiter)
            self.waiting = len(self._waiting)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leaves all queues and wakes who is first there now. Idempotent."""
        with self._lock:
            self._waiting.discard(waiter)
            self.waiting = len(self._waiting)
            self._stand(waiter, ())

    def is_behind(self, name: str, rank: int, waiter: Waiter | None) -> bool:
        """Whether another call, here before this one or of a higher class, waits for one of its permits."""
        queue = self.waiters.get(name)
        if not queue:
            return False
        with self._lock:
            if not queue:
                return False
            first = queue[0]
            if waiter is not None:
                return first is not waiter and first.key < waiter.key
            return first.key[0] <= rank

    def wait(self, waiter: Waiter, names: Iterable[str], core: _core.Endpoint, seconds: float) -> None:
        """Waits until one of the endpoints may have a permit, ``seconds`` at most.

        Returns at once when it joins a queue: a permit released before that woke no call.

        Args:
            names: whose permits would do.
            core: any endpoint of the segment, to take back what killed workers held.
        """
        wanted = tuple(names)
        with self._lock:
            joins = not set(wanted).issubset(waiter.names)
            self._stand(waiter, wanted)
            if joins:
                return
            leads = any(self.waiters[name][0] is waiter for name in waiter.names)
        if leads:
            self._reap(core)
            seconds = min(seconds, POLL_INTERVAL)
        waiter.sleep(seconds)

    def freed(self, name: str) -> None:
        """Tells the first who waits for it that a permit of the endpoint was given back."""
        if not self.waiting:
            return
        with self._lock:
            for queue in (self.waiters.get(name), self.waiters.get(ALL)):
                if queue:
                    queue[0].wake()

    def look(self) -> None:
        """Tells everybody to look again: limits have changed."""
        with self._lock:
            for queue in self.waiters.values():
                for waiter in queue:
                    waiter.wake()

    def _stand(self, waiter: Waiter, names: tuple[str, ...]) -> None:
        """Leaves its queues and joins others; the first of each queue that it left is woken."""
        if names == waiter.names:
            return
        for name in waiter.names:
            if name not in names:
                queue = self.waiters.get(name, [])
                if waiter in queue:  # it is not where an interrupt came before the end of this
                    queue.remove(waiter)
                if queue:
                    queue[0].wake()
                else:
                    self.waiters.pop(name, None)
        waiter.names = names  # set first: after an interrupt it leaves those it has joined
        for name in names:
            queue = self.waiters.setdefault(name, [])
            if waiter not in queue:
                insort(queue, waiter)

    def _reap(self, core: _core.Endpoint) -> None:
        now = self._clock()
        if now >= self._reaped + _REAP:
            self._reaped = now
            core.segment.reap()

    # --------------------------------------------------------------------------------------- rates

    def reserved(self, name: str) -> float:
        """Seconds until the last reserved time of the endpoint; 0 without one.

        While there is one, a call that comes would be refused: it can reserve at once.
        """
        times = self.times.get(name)
        if times is None:
            return 0.0
        with self._lock:
            entries = times.entries
            return max(entries[-1].due - self._clock(), 1e-9) if entries else 0.0

    def sleep(
        self,
        waiter: Waiter,
        name: str,
        core: _core.Endpoint,
        tokens: int,
        patience: float,
        go_in: Callable[[], int],
    ) -> int:
        """Reserves a request and its tokens, waits for their time and goes in.

        Args:
            patience: seconds to wait at most.
            go_in: ``core.admit`` with what was reserved; keeps the ticket where an interrupt cannot lose it.

        Returns:
            As `_core.Endpoint.admit`: a ticket, or a refusal with nothing reserved any more.
        """
        wait = core.reserve(tokens, int(patience * 1e9))
        if wait <= 0:
            return wait or self._go_in(core, tokens, go_in)
        mine = ReservedTime(waiter, self._clock() + wait / 1e9, tokens)
        try:
            limit = self._clock() + patience
            with self._lock:
                self.times.setdefault(name, ReservedTimes()).insert(mine)
            while (left := mine.due - self._clock()) > 0 and mine.due <= limit:
                waiter.sleep(left)
            self._withdraw(name, mine, left > 0)
        except BaseException:
            self._withdraw(name, mine, True)
            core.unreserve(tokens)
            raise
        if left > 0:  # a higher class has taken its time
            core.unreserve(tokens)
            return -(int(left * 1e9) << 3 | _core.REQUESTS)
        return self._go_in(core, tokens, go_in)

    def _go_in(self, core: _core.Endpoint, tokens: int, go_in: Callable[[], int]) -> int:
        ticket = go_in()
        if ticket < 0:
            core.unreserve(tokens)
        return ticket

    def _withdraw(self, name: str, entry: ReservedTime, away: bool) -> None:
        """See `ReservedTimes.withdraw`."""
        with self._lock:
            times = self.times.get(name)
            if times is None:
                return
            times.withdraw(entry, away)
            if not times.entries:
                self.times.pop(name, None)
