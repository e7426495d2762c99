"""Answers already paid for, and questions already in flight.

The response cache (cachetools), its keys, and single-flight: equal requests that run at the same time are
sent once.

A key is SHA-256 over length-prefixed parts: the configuration's fingerprint, the scope (the caller's tags, so
that tenants never meet) and the request as canonical JSON. Requests that differ in anything but the order of
keys get different keys: 1, 1.0 and true differ, and so do the two Unicode forms of one letter.
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
import orjson

from fastroute import errors
from fastroute.types import REQUEST_ID_TAG, Completion, Request

_KEPT_REASONS = frozenset({"stop", "tool_calls", "function_call"})
_MAX_LEADERS = 2  # failed leaders that one follower sees before it gives up itself


class Flight:
    """One call that others wait for.

    When it fails, its followers move on together to ``successor``, which the first of them leads: however
    many they are, one of them calls again.
    """

    __slots__ = ("completion", "done", "error", "heirs", "leader", "successor")

    def __init__(self, leader: int | None) -> None:
        self.leader = leader
        self.heirs: set[object] = set()  # followers that would take over
        self.done = threading.Event()
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.successor: Flight | None = None


class Cache:
    """Completions by key, bounded in entries, bytes and time.

    Args:
        ttl: seconds an answer stays, give or take a tenth, so that entries made together do not end together.
        max_entries, max_bytes: bounds; the least recently used go first.
        max_entry_bytes: a larger answer is not kept.
        scope: the tags that keep answers apart, or ``all`` but that of a request's id.

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
        self._max_entry_bytes = min(max_entry_bytes, max_bytes)
        self._scope = scope
        self._random = random.Random()
        self._store: cachetools.TLRUCache[bytes, tuple[Completion, int]] = cachetools.TLRUCache(
            max_bytes, self._expiry, timer=timer, getsizeof=_size
        )
        self.flights: dict[bytes, Flight] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.joined = 0
        self.misses = 0

    def key(self, request: Request, fingerprint: bytes = b"") -> bytes | None:
        """The request's key, or None if it has none: it is no JSON, or its answer is judged by a rule that
        nothing tells from others.

        Args:
            fingerprint: of everything in the configuration that shapes an answer.
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
                ]
            )
        except (TypeError, ValueError, RecursionError):
            return None
        parts = b"%d:%b%d:%b%b" % (len(fingerprint), fingerprint, len(scope), scope, body)
        return hashlib.sha256(parts).digest()

    def get(self, key: bytes) -> Completion | None:
        """The answer kept for the key."""
        with self._lock:
            try:
                entry = self._store[key]  # not its `get`, which looks for the key and the time twice
            except KeyError:
                return None
            self.hits += 1
        return entry[0]

    def through(self, key: bytes, make: Callable[[], Completion], deadline: float) -> tuple[Completion, bool]:
        """The answer for the key: kept, or shared with an equal call in flight, or made now.

        Args:
            make: makes the answer; runs in this thread, with no lock held.
            deadline: time.monotonic until which to wait for another caller's answer.

        Returns:
            The completion, and whether somebody else had made it.

        Raises:
            Exception: whatever ``make`` raises; after two failed leaders a copy of the last one's error.
            errors.DeadlineExceeded: waiting took too long.
        """
        led: list[Flight] = []
        awaited: list[Flight] = []
        heir = object()
        try:
            return self._through(key, make, deadline, led, awaited, heir)
        except BaseException:  # an interrupt may have come at any point, and may come now
            try:
                self._let_go(key, led, awaited, heir)
            except BaseException:
                self._let_go(key, led, awaited, heir)
                raise
            raise

    def _let_go(self, key: bytes, led: list[Flight], awaited: list[Flight], heir: object) -> None:
        """Releases all that wait for it. Idempotent."""
        for flight in led:
            if not flight.done.is_set():
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
            flight, leads, kept = self._join(key, failure, led, awaited, heir if takes_over else None)
            if kept is not None:
                return kept, True
            if leads:
                return self._lead(key, flight, make), False
            if flight.leader == threading.get_ident():
                return make(), False  # called from within its own making: waiting would never end
            if not flight.done.wait(max(0.0, deadline - time.monotonic())):
                raise errors.DeadlineExceeded("the deadline passed while an equal request was in flight")
            if flight.completion is not None:
                with self._lock:
                    self.joined += 1
                return flight.completion, True
            failed += 1
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
        """The flight to wait for or to lead, or the answer that is already kept."""
        me = threading.get_ident()
        with self._lock:
            entry = self._store.get(key)
            flight = failure.successor if failure is not None else self.flights.get(key)
            if entry is not None:
                self.hits += 1
                return flight or Flight(me), False, entry[0]
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
                del self.flights[key]  # those that would have taken over have given up

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
        """Ends a flight: keeps its answer, or leaves it to the first of those who waited."""
        with self._lock:
            if self.flights.get(key) is flight:
                del self.flights[key]
            if flight.completion is not None:
                self._keep(key, flight.completion)
            elif flight.heirs and flight.successor is None:
                flight.successor = self.flights[key] = Flight(None)
        flight.done.set()

    def clear(self) -> None:
        """Forgets all answers; calls in flight go on."""
        with self._lock:
            self._store.clear()

    def stats(self) -> dict[str, int]:
        """Entries and bytes held, hits, misses, and calls that shared another's answer."""
        with self._lock:
            return {
                "entries": len(self._store),
                "bytes": int(self._store.currsize),
                "hits": self.hits,
                "joined": self.joined,
                "misses": self.misses,
            }

    def after_fork(self) -> None:
        """In a forked child: no call of the parent's threads will ever end here."""
        self._lock = threading.Lock()
        self.flights = {}
        self._random = random.Random()

    def _tags(self, tags: Mapping[str, str]) -> Mapping[str, str]:
        if self._scope == "all":
            # An id that every call has of its own would make each of them a miss.
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
        return now + self._ttl * self._random.uniform(0.9, 1.1)


def _size(entry: tuple[Completion, int]) -> int:
    return entry[1]


def _worth_keeping(completion: Completion) -> bool:
    """Only whole answers with the provider's own usage: nothing cut, filtered, empty or guessed."""
    if completion.usage is None or completion.usage.source != "provider":
        return False
    return all(
        choice.finish_reason in _KEPT_REASONS and (choice.message.content or choice.message.tool_calls)
        for choice in completion.choices
    )


def _rule(rule: Any) -> Any:
    """What an answer is held to, as JSON: a schema or pattern itself, any other by its ``key``."""
    if rule is None or isinstance(rule, (dict, str)):
        return rule
    key = getattr(rule, "key", None)
    if not isinstance(key, str) or not key:
        raise TypeError("the rule has no key")
    return [key]


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Lone surrogates, which orjson refuses; what is no JSON at all is refused here as well.
        return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False).encode("ascii")
