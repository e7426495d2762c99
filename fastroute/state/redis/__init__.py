"""Shares state between many machines over Redis (or Valkey).

Each machine keeps its ordinary segment, and calls use only that, so the planner and dispatch do not depend on
Redis. These parts are shared:

* limits of requests and tokens, of endpoints and of callers: leased in chunks to each machine (`leases.py`);
* calls in flight: permits leased for ten seconds (`permits.py`);
* open and closed breakers, blocks, and the right to send a probe: published, and read once a second
  (`endpoints.py`);
* budgets: leased in chunks (`money.py`).

A retry budget grows with the calls of its own machine, and its constant share is divided among the machines.
Latencies are not shared, since each machine has its own distance to an endpoint.

One thread in each process sends a heartbeat every second: it registers the machine, reads how many there are
and what they published, renews permits, and returns unused leases. While Redis is unavailable a machine uses
its share of each limit (1/N for the last known number N of machines), and of hard budgets what it has leased.
A script that is sent again changes nothing. No error of Redis reaches a caller.
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
from .answers import items, whole
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
_MOST_MACHINES = 100_000


class Shared:
    """This process's side of the state that machines share if ``state`` is ``redis://…``.

    Args:
        segment: this machine's state.
        path: the segment's file, or None.

    Attributes:
        endpoints: the endpoints that use the shared limits, by name.
        version: the version of the news that this machine has read last; empty before the first heartbeat.

    Raises:
        ConfigError: if the redis package is not installed, or the password's file cannot be read.

    Thread safety: all methods. A forked child gets its own thread and connections with its first call.
    """

    def __init__(self, config: Config, segment: _core.Segment, path: str | None, hooks: events.Hooks) -> None:
        self._hooks = hooks
        self.machine = _machine(path)
        self.connection = RedisConnection(address_of(config.state or ""), segment, self._changed)
        self.bank = RedisBank(self.connection, self.machine)
        self.endpoints: dict[str, SharedEndpoint] = {}
        self._quotas: dict[str, SharedLimits] = {}
        self._count = 1
        self._fewer = 0  # core clock (ns) after which a smaller number of machines is believed
        self.version = ""
        self._first = True  # at the first heartbeat only news that still hold apply; the rest is history
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Drops the parent's connections in a forked child, where its thread does not exist."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self.connection.after_fork()
        self.bank.after_fork()
        for limits in self._all():
            limits.after_fork()

    def attach(self, endpoints: Iterable[_core.Endpoint], probe_lease_s: float) -> None:
        """Makes these endpoints use the shared limits from now on."""
        for endpoint in endpoints:
            self.endpoints[endpoint.name] = SharedEndpoint(
                core=endpoint,
                connection=self.connection,
                machine=self.machine,
                machines=self._machines,
                wake=self._wake_up,
                probe_lease_s=probe_lease_s,
            )

    def attach_quota(self, quota: _core.Quota) -> None:
        """Makes a caller's limits shared from now on."""
        self._quotas[quota.name] = SharedLimits(
            quota, "caller", self.connection, self._machines, self._wake_up
        )

    def unblocked(self, name: str) -> None:
        """Tells the other machines that an endpoint is no longer blocked."""
        self.endpoints[name].unblocked()

    def ensure(self) -> None:
        """Starts this process's thread if it is not running."""
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
        """Registers this machine and applies what the others have published; runs once a second.

        Raises:
            AwayError: if Redis is unavailable.
        """
        connection = self.connection
        keys = [connection.key("machines"), connection.key("news"), connection.key("version")]

        def read(answer: Any) -> tuple[int, int, str, list[str]]:
            found = items(answer, 4)
            news = [str(word) for word in found[4:]]
            if found[3]:
                connection.mended(str(found[3]))
            return whole(found[0]), whole(found[1], 1, _MOST_MACHINES), str(found[2]), news

        now, count, version, news = connection.run(
            BEAT, keys, self.machine, self.version, _MACHINE_LIFE_MS, read=read
        )
        first, self._first = self._first, False
        # The number of machines first: what follows computes this machine's share with it.
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
        """Does what endpoints have asked for since the last heartbeat.

        Raises:
            AwayError: if Redis is unavailable.
        """
        for limits in self._all():
            limits.settle()

    def stats(self) -> dict[str, Any]:
        """Whether Redis is available, why not, and how many machines share, as plain values."""
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
        """Returns all leases and closes the connections. Idempotent."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        # Joined before anything is returned, or its last heartbeat could lease again what is returned here.
        # In a forked child that thread does not exist.
        if thread is not None and self._pid == os.getpid():
            self._wake.set()
            thread.join()
        try:
            self._ask_permits([(one, one.permits.give_up()) for one in self.endpoints.values()])
            for limits in self._all():
                limits.give_back(everything=True)
            self.bank.close()
        except AwayError:
            pass  # leases expire
        self.connection.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def _machines(self) -> int:
        return self._count

    def _count_machines(self, heard: int) -> None:
        """Updates the number of machines. A smaller one is used only after the missing had time to return."""
        # A machine that missed a few heartbeats still uses its share. If the others took more at once, all
        # together would exceed the limit.
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
            # Other machines were refused one: return ours now, not with the next heartbeat.
            self._ask_permits([(one, one.permits.give_up()) for one in endpoints if one.permits.wanted])

    def _ask_permits(self, asked: list[tuple[SharedEndpoint, PermitRequest | None]]) -> bool:
        """Sends all requests in one script; returns whether another machine wants permits."""
        due = [(one.permits, request) for one, request in asked if request is not None]
        if not due:
            return False
        # Before the request: the lease begins later on the server, so it never ends later here than there.
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
            log.warning("state: Redis is available again; limits are shared again")
        else:
            share = f"1/{self._count}" if self._count > 1 else "the whole"
            log.warning("state: %s; until it is available this machine uses %s of each limit", reason, share)
        if self._hooks.wanted:
            self._hooks.emit(events.SharingChanged(there, reason, 1 if there else self._count))


def _beat_until_closed(shared: weakref.ref[Shared], wake: threading.Event) -> None:
    due = 0
    while True:
        owner = shared()
        if owner is None or owner.closed:
            return
        # Before the work, so that what is asked for during it wakes the thread again.
        wake.clear()
        now = _core.clock()
        try:
            owner.settle()
            if now >= due:
                due = now + int(_BEAT_S * 1e9)
                owner.beat()
        except AwayError:
            pass
        except Exception:  # without this thread the machine would share nothing any more
            log.exception("state: sharing over Redis failed; it will be tried again")
        # Drop the reference while waiting, so that an unused owner can be collected.
        del owner
        wake.wait(max(0.0, (due - _core.clock()) / 1e9))


def _machine(path: str | None) -> str:
    """This machine's name: one for all processes that share its file, otherwise unique to this process."""
    if path is None:
        return secrets.token_hex(8)
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = ""
    return hashlib.blake2b(f"{socket.gethostname()}\0{boot}\0{path}".encode(), digest_size=8).hexdigest()
