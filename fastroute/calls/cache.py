"""The response cache, its keys, and single-flight: equal requests that run at the same time are sent once.

A key is the SHA-256 of length-prefixed parts: the configuration's fingerprint, the scope (the caller's tags,
so that tenants do not share answers) and the request as canonical JSON. Requests have the same key only if
they differ in nothing but the order of JSON keys: 1, 1.0 and true differ, and so do the two Unicode forms of
one letter.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import cachetools

from fastroute import errors, json_codec
from fastroute.platform.latch import Latch
from fastroute.types import REQUEST_ID_TAG, Completion, Request

_KEPT_REASONS = frozenset({"stop", "tool_calls", "function_call"})
_MAX_LEADERS = 2  # failed leaders after which a follower gives up too


class Flight:
    """One call that equal calls (its followers) wait for.

    If it fails, all followers move to ``successor``, which the first of them leads. So only one of them makes
    the call again, however many there are.
    """

    __slots__ = ("completion", "done", "error", "heirs", "leader", "successor")

    def __init__(self, leader: int | None) -> None:
        self.leader = leader
        self.heirs: set[object] = set()  # followers that would take over
        self.done = Latch()
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.successor: Flight | None = None


class Cache:
    """Completions by key, bounded in entries, bytes and time.

    Args:
        ttl: seconds that an answer is kept, randomly up to a tenth more or less, so that entries that were
            stored together do not expire together.
        max_entries, max_bytes: bounds; the least recently used entries are dropped first.
        max_entry_bytes: larger answers are not stored.
        scope: the tags that separate answers, or ``all`` for all tags except that of a request's id.

    Attributes:
        flights: calls in progress that identical calls wait for, by key.

    Thread safety: all methods; the lock is never held while a call is made.
    """

    def __init__(
        self,
        *,
        ttl: float = 3600.0,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        max_entry_bytes: int = 1024 * 1024,
        scope: tuple[str, ...] | str = "all",
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_entry_bytes = min(max_entry_bytes, max_bytes)
        self._scope = scope
        self._timer = timer
        self._random = random.Random()
        self._store = self._empty_store()
        self.flights: dict[bytes, Flight] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.joined = 0
        self.misses = 0

    def key(self, request: Request, fingerprint: bytes = b"") -> bytes | None:
        """The request's key; None if it is not JSON, or its answer is validated by a rule without a key.

        Args:
            fingerprint: a hash of everything in the configuration that affects answers.
        """
        options = request.options
        try:
            tags = self._tags(options.tags) if options.tags else None
            scope = _canonical(tags) if tags else b""
            body = _canonical(
                [
                    request.model,
                    request.messages,
                    request.params,
                    options.tier,
                    options.quality,
                    options.max_cost,
                    options.max_latency,
                    _rule(options.validate),
                    None if request.extras is None else request.extras.scope,
                ]
            )
        except (TypeError, ValueError, RecursionError):
            return None
        parts = b"%d:%b%d:%b%b" % (len(fingerprint), fingerprint, len(scope), scope, body)
        return hashlib.sha256(parts).digest()

    def get(self, key: bytes) -> Completion | None:
        """The stored answer for the key, or None."""
        with self._lock:
            try:
                entry = self._store[key]  # not `get`, which looks up the key and the time twice
            except KeyError:
                return None
            self.hits += 1
        return entry[0]

    def through(self, key: bytes, make: Callable[[], Completion], deadline: float) -> tuple[Completion, bool]:
        """The answer for the key: from the store, from an equal call in flight, or made now.

        Args:
            make: makes the answer; runs in this thread, with no lock held.
            deadline: time.monotonic until which to wait for another caller's answer.

        Returns:
            The completion, and whether it was made by another call.

        Raises:
            Exception: whatever ``make`` raises; after two failed leaders a copy of the last one's error.
            errors.DeadlineExceeded: waiting took too long.
        """
        led: list[Flight] = []
        awaited: list[Flight] = []
        heir = object()
        try:
            return self._through(key, make, deadline, led, awaited, heir)
        except BaseException:  # an interrupt may come at any point, also during this cleanup
            try:
                self._let_go(key, led, awaited, heir)
            except BaseException:
                self._let_go(key, led, awaited, heir)
                raise
            raise

    def _let_go(self, key: bytes, led: list[Flight], awaited: list[Flight], heir: object) -> None:
        """Releases everyone who waits for this call's flights. Idempotent."""
        for flight in led:
            if not flight.done.is_open:
                self._land(key, flight)
        for flight in awaited:
            self._leave(key, flight, heir)

    def _through(
        self,
        key: bytes,
        make: Callable[[], Completion],
        deadline: float,
        led: list[Flight],
        awaited: list[Flight],
        heir: object,
    ) -> tuple[Completion, bool]:
        failed = 0
        failure: Flight | None = None
        while True:
            takes_over = failed + 1 < _MAX_LEADERS
            # A call that has waited for one failed leader may lead itself; after the second it raises the
            # error. Otherwise a question that always fails would be sent once for each call that waits.
            flight, leads, kept = self._join(key, failure, led, awaited, heir if takes_over else None)
            if kept is not None:
                return kept, True
            if leads:
                return self._lead(key, flight, make), False
            if flight.leader == threading.get_ident():
                return make(), False  # called by its own `make`: waiting would never end
            if not flight.done.wait(max(0.0, deadline - time.monotonic())):
                raise errors.DeadlineExceeded("the deadline passed while an equal request was in flight")
            if flight.completion is not None:
                with self._lock:
                    self.joined += 1
                return flight.completion, True
            # A leader that its own program has given up says nothing about the question.
            failed += not isinstance(flight.error, errors.CallCancelled)
            if failed >= _MAX_LEADERS:
                if isinstance(flight.error, Exception):
                    raise copy.copy(flight.error) from None
                raise errors.Error("the call that this one shared was interrupted")
            failure = flight

    def _join(
        self,
        key: bytes,
        failure: Flight | None,
        led: list[Flight],
        awaited: list[Flight],
        heir: object | None,
    ) -> tuple[Flight, bool, Completion | None]:
        """The flight, whether this call leads it, and the answer if it is stored already."""
        # Store and flights under one lock: an answer that lands in between would be seen in neither.
        me = threading.get_ident()
        with self._lock:
            entry = self._store.get(key)
            flight = failure.successor if failure is not None else self.flights.get(key)
            if entry is not None:
                self.hits += 1
                return flight or Flight(me), False, entry[0]
            # Entered in `led` before anything else: if an interrupt comes next, `_let_go` ends the flight,
            # for which other calls may wait by then.
            if flight is None:
                flight = Flight(me)
                led.append(flight)
                self.flights[key] = flight
                self.misses += 1
                return flight, True, None
            if flight.leader is None:
                led.append(flight)
                flight.leader = me
                self.misses += 1
                return flight, True, None
            if flight.leader != me and heir is not None:
                awaited.append(flight)
                flight.heirs.add(heir)
            return flight, False, None

    def _leave(self, key: bytes, flight: Flight, heir: object) -> None:
        with self._lock:
            flight.heirs.discard(heir)
            successor = flight.successor
            abandoned = not flight.heirs and successor is not None and successor.leader is None
            if abandoned and self.flights.get(key) is successor:
                del self.flights[key]  # all followers have given up

    def _lead(self, key: bytes, flight: Flight, make: Callable[[], Completion]) -> Completion:
        try:
            completion = flight.completion = make()
        except BaseException as error:
            flight.error = error
            raise
        finally:
            self._land(key, flight)
        return completion

    def _land(self, key: bytes, flight: Flight) -> None:
        """Ends a flight: stores its answer, or creates a successor for its followers."""
        # The waiting calls are woken after that, so they find the answer or the successor, of which the first
        # to come becomes the leader. All others wait for it: after a failure only one sends the question
        # again.
        with self._lock:
            if self.flights.get(key) is flight:
                del self.flights[key]
            if flight.completion is not None:
                self._keep(key, flight.completion)
            elif flight.heirs and flight.successor is None:
                flight.successor = self.flights[key] = Flight(None)
        flight.done.open()

    def stats(self) -> dict[str, int]:
        """Stored entries and bytes, hits, misses, and calls that shared the answer of another call."""
        with self._lock:
            return {
                "entries": len(self._store),
                "bytes": int(self._store.currsize),
                "hits": self.hits,
                "joined": self.joined,
                "misses": self.misses,
            }

    def after_fork(self) -> None:
        """In a forked child: drops the flights, since the parent's calls never end here."""
        # A thread of the parent was changing the store: what it had not finished stays so here. Its clock,
        # for example, may stand still.
        if self._lock.locked():
            self._store = self._empty_store()
        self._lock = threading.Lock()
        self.flights = {}
        self._random = random.Random()

    def _empty_store(self) -> cachetools.TLRUCache[bytes, tuple[Completion, int]]:
        return cachetools.TLRUCache(self._max_bytes, self._expiry, timer=self._timer, getsizeof=_size)

    def _tags(self, tags: Mapping[str, str]) -> Mapping[str, str]:
        if self._scope == "all":
            # With an id that is unique to a call in the key, there would never be a hit.
            return (
                {name: tags[name] for name in tags if name != REQUEST_ID_TAG}
                if REQUEST_ID_TAG in tags
                else tags
            )
        return {name: tags[name] for name in self._scope if name in tags}

    def _keep(self, key: bytes, completion: Completion) -> None:
        if not _worth_keeping(completion):
            return
        size = len(_canonical(completion._raw)) + len(key)
        if size > self._max_entry_bytes:
            return
        self._store[key] = (completion, size)
        while len(self._store) > self._max_entries:
            self._store.popitem()

    def _expiry(self, _key: bytes, _entry: tuple[Completion, int], now: float) -> float:
        # Spread, so that answers stored together do not all have to be made again at the same time.
        return now + self._ttl * self._random.uniform(0.9, 1.1)


def _size(entry: tuple[Completion, int]) -> int:
    return entry[1]


def _worth_keeping(completion: Completion) -> bool:
    """Whether to store an answer: it is complete, not filtered or empty, and has the provider's usage."""
    if completion.usage is None or completion.usage.source != "provider":
        return False
    return all(
        choice.finish_reason in _KEPT_REASONS and (choice.message.content or choice.message.tool_calls)
        for choice in completion.choices
    )


def _rule(rule: Any) -> Any:
    """A validation rule as JSON: a schema or pattern itself, otherwise its ``key``."""
    if rule is None or isinstance(rule, (dict, str)):
        return rule
    key = getattr(rule, "key", None)
    if not isinstance(key, str) or not key:
        raise TypeError("the rule has no key")
    return [key]


def _canonical(value: Any) -> bytes:
    try:
        return json_codec.dumps(value, option=json_codec.OPT_SORT_KEYS)
    except TypeError:
        # For lone surrogates, which orjson rejects. Values that are not JSON are rejected here too.
        return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False).encode("ascii")
