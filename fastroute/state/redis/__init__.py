"""State that many machines share over Redis (or Valkey).

Owns what of the local state is shared, and going on when Redis is away. Each machine keeps its ordinary
segment, of one process and its forks or of the whole machine; calls work on that and on nothing else, so plan
and dispatch do not know of Redis. Shared are

* limits of requests and tokens, of endpoints and of callers: leased in chunks to each machine (`limits.py`);
* calls at once: leased for ten seconds (`permits.py`);
* breakers that open and close, blocks, and who may send a probe: told, and learned once a second
  (`endpoints.py`);
* budgets: leased in chunks too (`money.py`).

A retry budget grows with the calls of its own machine, and its constant share is divided among the machines.
Latencies stay each machine's own: they tell how far away an endpoint is from there.

One thread in each process beats once a second: it says that the machine is at work, hears how many are,
learns of breakers, renews its permits, and gives back what nobody took. While Redis is away a machine goes on
with its part of each limit, one in as many as were last heard of, and hard budgets with what was leased; a
script sent again changes nothing, and no error of Redis ever reaches a caller.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from fastroute import _core, events
from fastroute.config import Config

from .address import AwayError, address_of
from .connection import RedisConnection
from .endpoints import SharedEndpoint
from .leases import SharedLimits
from .money import RedisBank
from .permits import PermitRequest, ask
from .scripts import BEAT

__all__ = ["RedisBank", "Shared"]

log = logging.getLogger("fastroute")

_BEAT_S = 1.0
_MACHINE_LIFE_MS = 10_000


class Shared:
    """This process's part in what many machines share, as a ``state`` of ``redis://…`` asks for.

    Args:
        segment: this machine's state.
        path: its file, or None.

    Attributes:
        endpoints: the endpoints that draw on the shared limits, by name.
        version: of the news that this machine has read last; empty before the first beat.

    Raises:
        ConfigError: the redis package is not there, or the password's file cannot be read.

    Thread safety: all methods. A forked child has a thread and connections of its own from its first call.
    """

    def __init__(self, config: Config, segment: _core.Segment, path: str | None, hooks: events.Hooks) -> None:
        self._hooks = hooks
        self.machine = _machine(path)
        self.connection = RedisConnection(address_of(config.state), segment, self._changed)
        self.bank = RedisBank(self.connection, segment, self.machine)
        self.endpoints: dict[str, SharedEndpoint] = {}
        self._quotas: dict[str, SharedLimits] = {}
        self._count = 1
        self._fewer = 0  # ns from which on a smaller number of machines is believed
        self.version = ""
        self._first = True  # what was told before this process came is not news, but for what still holds
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: no thread yet, and none of the parent's connections."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self.connection.after_fork()
        self.bank.after_fork()
        for limits in self._all():
            limits.after_fork()

    def attach(self, endpoints: Iterable[_core.Endpoint], probe_lease_s: float) -> None:
        """Has these endpoints draw on the shared limits from now on."""
        for endpoint in endpoints:
            self.endpoints[endpoint.name] = SharedEndpoint(
                endpoint, self.connection, self.machine, self._machines, self._wake_up, probe_lease_s
            )

    def attach_quota(self, quota: _core.Quota) -> None:
        """Has a caller's limits be shared from now on."""
        self._quotas[quota.name] = SharedLimits(
            quota, "caller", self.connection, self._machines, self._wake_up
        )

    def unblocked(self, name: str) -> None:
        """Has the other machines ask an endpoint again that was blocked."""
        self.endpoints[name].unblocked()

    def ensure(self) -> None:
        """Starts this process's thread if it does not run."""
        if self._thread is not None and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            self.after_fork()
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=_beat_until_closed,
                    args=(weakref.ref(self), self._wake),
                    name="fastroute-shared",
                    daemon=True,
                )
                self._thread.start()

    def beat(self) -> None:
        """Once a second: says that this machine is at work, and learns what the others have told.

        Raises:
            AwayError: Redis is away.
        """
        connection = self.connection
        keys = [connection.key("machines"), connection.key("news"), connection.key("version")]
        answer = connection.run(BEAT, keys, self.machine, self.version, _MACHINE_LIFE_MS)
        try:
            now, count, version = int(answer[0]), int(answer[1]), str(answer[2])
            news = [str(word) for word in answer[3:]]
        except (ValueError, TypeError, IndexError):
            raise AwayError("Redis answered with something else") from None
        first, self._first = self._first, False
        self._count_machines(count)
        self.version = version or self.version
        for field, value in zip(news[::2], news[1::2]):
            named = self.endpoints.get(field.partition(":")[2])
            if named is not None:
                named.learn(field, value, now, first)
        self._renew_permits()
        for limits in self._all():
            limits.give_back()
        self.bank.beat()

    def settle(self) -> None:
        """Between two beats: what endpoints have asked for.

        Raises:
            AwayError: Redis is away.
        """
        for limits in self._all():
            limits.settle()

    def stats(self) -> dict[str, Any]:
        """Plain figures: whether Redis is there, why not, how many machines share."""
        connection = self.connection
        return {
            "there": connection.there,
            "reason": connection.reason or None,
            "machine": self.machine,
            "machines": self._count,
            "share": 1.0 if connection.there else 1.0 / self._count,
            "failovers": connection.failovers,
            "warnings": list(connection.warnings),
        }

    def close(self) -> None:
        """Gives back what is leased, and closes the connections. May be called again."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None and self._pid == os.getpid():
            self._wake.set()
            thread.join()
        try:
            self._ask_permits([(one, one.permits.give_up()) for one in self.endpoints.values()])
            for limits in self._all():
                limits.give_back(everything=True)
            self.bank.close()
        except AwayError:
            pass  # leases pass with their time
        self.connection.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def _machines(self) -> int:
        return self._count

    def _count_machines(self, heard: int) -> None:
        """So many are at work. Fewer is believed once those that are missing have had time to come back."""
        now = _core.clock()
        if heard >= self._count:
            self._count, self._fewer = max(1, heard), now + _MACHINE_LIFE_MS * 1_000_000
        elif now >= self._fewer:
            self._count = max(1, heard)
        for endpoint in tuple(self.endpoints.values()):
            endpoint.lease.part(self._count)

    def _all(self) -> tuple[SharedLimits, ...]:
        return (*self.endpoints.values(), *self._quotas.values())

    def _renew_permits(self) -> None:
        endpoints = tuple(self.endpoints.values())
        if self._ask_permits([(one, one.permits.due()) for one in endpoints]):
            # Others were refused one: they should not wait for the next beat.
            self._ask_permits([(one, one.permits.give_up()) for one in endpoints if one.permits.wanted])

    def _ask_permits(self, asked: list[tuple[SharedEndpoint, PermitRequest | None]]) -> bool:
        """Asks for all of them at once; whether another machine wants some."""
        due = [(one.permits, request) for one, request in asked if request is not None]
        if not due:
            return False
        begun = _core.clock()
        try:
            keys, requests = [permits.key for permits, _ in due], [request for _, request in due]
            answers = ask(self.connection, self.machine, keys, requests)
        except AwayError:
            for permits, _ in due:
                permits.away()
            raise
        for (permits, request), answer in zip(due, answers):
            permits.take(request, answer, begun)
        return any(permits.wanted for permits, _ in due)

    def _wake_up(self) -> None:
        self.ensure()
        self._wake.set()

    def _changed(self, there: bool, reason: str) -> None:
        if there:
            log.warning("state: Redis is back; limits are shared again")
        else:
            share = f"one share in {self._count}" if self._count > 1 else "the whole"
            log.warning("state: %s; going on with %s of every limit", reason, share)
        if self._hooks.wanted:
            self._hooks.emit(events.SharingChanged(there, reason, 1 if there else self._count))


def _beat_until_closed(shared: weakref.ref[Shared], wake: threading.Event) -> None:
    due = 0
    while True:
        owner = shared()
        if owner is None or owner.closed:
            return
        wake.clear()
        now = _core.clock()
        try:
            owner.settle()
            if now >= due:
                due = now + int(_BEAT_S * 1e9)
                owner.beat()
        except AwayError:
            pass
        except Exception:
            log.exception("sharing state over Redis failed; it is tried again")
        # An owner that nobody else holds must be able to go.
        del owner
        wake.wait(max(0.0, (due - _core.clock()) / 1e9))


def _machine(path: str | None) -> str:
    """This machine's name among all: one for those who share its file, and its own for any other state."""
    if path is None:
        return secrets.token_hex(8)
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = ""
    return hashlib.blake2b(f"{socket.gethostname()}\0{boot}\0{path}".encode(), digest_size=8).hexdigest()
