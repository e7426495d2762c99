"""The queue of this process's calls that wait for a limit, ordered by priority and arrival.

There are two kinds of waiting for an endpoint. For a permit (calls in flight) each endpoint has a queue: a
permit that is released wakes the first call, and no later call overtakes it. For a rate a call reserves a
time in the core, so that it sleeps once. A call of a higher class takes the reserved time of a lower one,
which gets a later time in exchange.

For money that is only reserved for other calls there is a queue for each budget and value of its tag. Their
names contain a NUL, so they cannot be an endpoint's.

Each process has queues of its own. Nothing tells it when another process releases something, so the first
call of a queue looks again every 20 ms. `admission.py` decides whether to wait, and for what.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable

from fastroute import _core
from fastroute.types import PRIORITIES

ALL = ""  # the queue for a permit of all endpoints together
RANKS = {name: rank for rank, name in enumerate(PRIORITIES)}

POLL_INTERVAL = 0.02
"""Seconds after which the first of a queue looks again: another process may have freed a permit."""
_REAP = 1.0  # seconds between two searches for permits of killed workers


class Waiter:
    """A call that waits; it may be in several queues at once."""

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
        """Sleeps until it is woken or the time is over; returns whether it was woken."""
        # An event, so that a wake between two sleeps is not lost. Cleared only after the sleep: whatever woke
        # it is looked at next.
        woken = self._turn.wait(seconds)
        self._turn.clear()
        return woken


class ReservedTime:
    """A reserved time and its call."""

    __slots__ = ("due", "paid", "tokens", "waiter")

    def __init__(self, waiter: Waiter, due: float, tokens: int) -> None:
        self.waiter = waiter
        self.due = due
        self.tokens = tokens  # what the call needs
        self.paid = tokens  # what was reserved together with the time

    def __lt__(self, other: ReservedTime) -> bool:
        return self.due < other.due


class ReservedTimes:
    """The reserved times of one endpoint, the next first.

    Attributes:
        credit: tokens paid with times that have passed, minus what the calls that used these times needed.
    """

    __slots__ = ("credit", "entries")

    def __init__(self) -> None:
        self.entries: list[ReservedTime] = []
        self.credit = 0

    def insert(self, new: ReservedTime) -> None:
        """Adds a call; calls of lower classes move back."""
        # Times are exchanged only if a call of a lower class has an earlier one than the new call.
        insort(self.entries, new)
        first = next((each for each in self.entries if each is new or each.waiter.key > new.waiter.key), new)
        if first is not new:
            self._exchange()

    def withdraw(self, entry: ReservedTime, away: bool) -> None:
        """Removes a call, if it is in the list.

        Args:
            away: the call gives its reservation back instead of using it: others move up.
        """
        if entry not in self.entries:
            return
        if away:
            self._exchange(entry)
        else:
            self.entries.remove(entry)
            self.credit += entry.paid - entry.tokens

    def _exchange(self, gone: ReservedTime | None = None) -> None:
        """Assigns the times anew, by class and arrival.

        At no time may more requests or tokens have been admitted than were paid by then. So a call that needs
        more tokens than that is passed over until a later time.

        Args:
            gone: the entry whose call gives its reservation back. The last time is removed with it, since
            that
                is the part that the bucket gets back.
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
        for entry in left:  # an earlier call has used more than was paid: these wait for the last time
            entry.due, entry.paid, since = times[-1][0], since, 0
            found.append(entry)
            entry.waiter.wake()
        self.entries = found
        if gone is not None:
            self.credit += since - gone.tokens


class WaitQueue:
    """The calls of this process that wait for a limit, across reloads of the configuration.

    Args:
        clock: seconds, monotonic.

    Attributes:
        waiting: the number of calls. Read without the lock: nearly always it is 0, and then a call that does
            not wait costs nothing here.
        waiters: the calls that wait for a permit, by endpoint, in the order in which they get one.
        times: the reserved times, by endpoint. Both contain only endpoints with calls that wait.

    Thread safety: all methods. While the lock is held, nothing outside is called.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Empties the queue in a forked child, where no call waits."""
        self.waiting = 0
        self._waiting: set[Waiter] = set()
        # Reentrant: a garbage collection while it is held may drop a stream, which releases its permit.
        self._lock = threading.RLock()
        self._orders = itertools.count()
        self.waiters: dict[str, list[Waiter]] = {}
        self.times: dict[str, ReservedTimes] = {}
        self._reaped = 0.0

    # ------------------------------------------------------------------------------------- permits

    def waiter(self, rank: int) -> Waiter:
        """A new waiter of this rank, behind all earlier ones of the same rank."""
        return Waiter((rank, next(self._orders)))

    def enter(self, waiter: Waiter) -> Waiter:
        """Counts the call as waiting. `leave` must follow, even if this is interrupted."""
        with self._lock:
            self._waiting.add(waiter)
            self.waiting = len(self._waiting)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leaves all queues and wakes the call that is now first in each. Idempotent."""
        with self._lock:
            self._waiting.discard(waiter)
            self.waiting = len(self._waiting)
            self._stand(waiter, ())

    def is_behind(self, name: str, rank: int, waiter: Waiter | None) -> bool:
        """Whether a call before this one, by class or arrival, waits for a permit of the endpoint."""
        # Once without the lock, for the usual case that no call waits.
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
        """Waits until one of the endpoints may have a permit, at most ``seconds``.

        Returns at once when it has joined a queue, so that the caller looks again: a permit that was released
        before it joined has woken no call.

        Args:
            names: the endpoints whose permits are wanted.
            core: any endpoint of the segment, for taking back permits of killed workers.
        """
        wanted = tuple(names)
        with self._lock:
            joins = not set(wanted).issubset(waiter.names)
            self._stand(waiter, wanted)
            if joins:
                return
            leads = any(self.waiters[name][0] is waiter for name in waiter.names)
        # Only the first of a queue polls, so the cost does not grow with the number of calls that wait.
        if leads:
            self._reap(core)
            seconds = min(seconds, POLL_INTERVAL)
        waiter.sleep(seconds)

    def wait_until(self, waiter: Waiter, name: str, ready: Callable[[], bool], seconds: float) -> bool:
        """Waits until the call is the first in a queue and ``ready`` returns True. It stays in the queue.

        Args:
            ready: called again whenever `freed` is called for the queue, and every 20 ms, because other
                processes wake no call here. Must be quick; it is called without the lock.
            seconds: the longest wait.

        Returns:
            Whether it was ready in time.
        """
        with self._lock:
            self._stand(waiter, (name,))
        end = self._clock() + seconds
        while True:
            with self._lock:
                first = self.waiters[name][0] is waiter
            # Called only after the call has joined the queue: a release before that wakes no call, and a
            # later one sets the waiter's event, so that the next sleep returns at once.
            if first and ready():
                return True
            left = end - self._clock()
            if left <= 0:
                return False
            waiter.sleep(min(left, POLL_INTERVAL) if first else left)

    def freed(self, name: str) -> None:
        """Wakes the first call that waits there: for a permit of the endpoint or of all, or for money."""
        if not self.waiting:
            return
        with self._lock:
            for queue in (self.waiters.get(name), self.waiters.get(ALL)):
                if queue:
                    queue[0].wake()

    def look(self) -> None:
        """Wakes all calls that wait for a permit, since limits have changed."""
        with self._lock:
            for queue in self.waiters.values():
                for waiter in queue:
                    waiter.wake()

    def _stand(self, waiter: Waiter, names: tuple[str, ...]) -> None:
        """Leaves its queues and joins others; wakes the first call of each queue that it left."""
        # Woken, because this call may have been woken for a permit that it does not take.
        if names == waiter.names:
            return
        for name in waiter.names:
            if name not in names:
                queue = self.waiters.get(name, [])
                if waiter in queue:  # it may not be, if an interrupt cut this short the time before
                    queue.remove(waiter)
                if queue:
                    queue[0].wake()
                else:
                    self.waiters.pop(name, None)
        waiter.names = names  # before it joins them: after an interrupt it leaves those that it has joined
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

        While there is one, the core would refuse a new call, so the call can reserve at once.
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
        """Reserves a request and its tokens, waits until the reserved time and is admitted.

        Args:
            patience: seconds to wait at most.
            go_in: calls ``core.admit`` with the reservation and keeps the ticket where an interrupt cannot
                lose it.

        Returns:
            As `_core.Endpoint.admit`: a ticket, or a refusal; then nothing is reserved any more.
        """
        wait = core.reserve(tokens, int(patience * 1e9))
        if wait <= 0:
            return wait or self._go_in(core, tokens, go_in)
        mine = ReservedTime(waiter, self._clock() + wait / 1e9, tokens)
        try:
            limit = self._clock() + patience
            with self._lock:
                self.times.setdefault(name, ReservedTimes()).insert(mine)
            # A call of a higher class may change `due` at any time, and wakes this one.
            while (left := mine.due - self._clock()) > 0 and mine.due <= limit:
                waiter.sleep(left)
            self._withdraw(name, mine, left > 0)
        except BaseException:
            self._withdraw(name, mine, True)
            core.unreserve(tokens)
            raise
        if left > 0:  # calls of a higher class have moved its time beyond its patience
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
