"""Runs scripts in Redis over one connection pool per process, with a breaker for the time it is unavailable.

The scripts are in `scripts.py`; their callers decide what to do without Redis.

A time-out opens the breaker at once, since each one costs a caller that time. Quick errors open it after
five. It stays open for a random time between 2.5 and 5 seconds, and then one process of the machine tries
again.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastroute import _core, errors

from .address import Address, AwayError
from .answers import UnexpectedAnswerError

log = logging.getLogger("fastroute")

FAILURES = 5
OPEN_S = 5.0
"""The longest time (seconds) that the breaker stays open; each opening lasts a random half to all of it."""
_WORST_POLICIES = "allkeys"
_MOST_MENDED = 1000  # keys that are named in the log
# What redis-py raises where a server does not speak its protocol. Not `Exception`: what a signal handler of
# the program raises here must reach the program.
_MISREAD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
T = TypeVar("T")


class RedisConnection:
    """Runs scripts in Redis, or raises at once while it is unavailable.

    Args:
        segment: the machine's state, through which its processes share the breaker.
        changed: called with whether Redis is available, and why not, when that changes.

    Thread safety: all methods. A forked child opens its own connections.
    """

    def __init__(
        self, address: Address, segment: _core.Segment, changed: Callable[[bool, str], None]
    ) -> None:
        try:
            import redis
        except ImportError:
            raise errors.ConfigError(
                "fastroute.state: redis:// needs the redis package: pip install 'fastroute[redis]'"
            ) from None
        self._redis = redis
        self.address = address
        self._changed = changed
        self._breaker = _core.Breaker(
            segment,
            "shared\0redis",
            failures=FAILURES,
            open_s=OPEN_S,
            max_open_s=OPEN_S,
            probes_to_close=1,
            probe_lease_s=max(1.0, 4 * address.timeout),
            ramp_s=0.0,
            rate=1.0,
        )
        self.there = True  # the last result of this process
        self.reason = ""
        self.warnings: tuple[str, ...] = ()
        self._mended: set[str] = set()
        self.failovers = 0  # changes of the master that this process has followed
        self.after_fork()
        self._connections()  # so that an address that redis-py refuses raises now and not at the first call

    def after_fork(self) -> None:
        """Drops the parent's connections in a forked child."""
        self._scripts: _Scripts | None = None
        self._pid = os.getpid()
        self._making = threading.Lock()
        self._name = secrets.token_hex(8)
        self._count = itertools.count(1)
        self._checked = False

    def key(self, *parts: str) -> str:
        """A key of ours; the braces are a hash tag, which puts all keys of a prefix on one cluster node."""
        return ":".join((f"{{{self.address.prefix}}}", *parts))

    def request_id(self) -> str:
        """An id that is unique among all processes."""
        return f"{self._name}-{next(self._count)}"

    @property
    def rest_ns(self) -> int:
        """How long (ns) the breaker stays open, so that no process sends anything; 0 if it is closed."""
        return self._breaker.reopens_in()

    @property
    def pool(self) -> Any:
        """This process's redis-py connection pool; None before its first script."""
        return None if self._scripts is None else self._scripts.pool

    def run(self, script: str, keys: Sequence[str], *words: object, read: Callable[[Any], T]) -> T:
        """The script's answer.

        Args:
            read: makes the result of the answer; raises UnexpectedAnswerError for what no script answers.

        Raises:
            AwayError: if Redis is unavailable, or answered with an error or with what `read` refuses; the
                caller continues without it.
        """
        ticket = self._breaker.allow()
        if ticket < 0:
            raise AwayError(self.reason or "another process found Redis unavailable")
        try:
            answer = read(self._client().eval_script(script, keys, words))
        except (self._redis.RedisError, AwayError, OSError, *_MISREAD) as error:
            self._failed(ticket, error)
            raise AwayError(self.reason) from None
        except BaseException:
            # Ctrl-C, or a greenlet that was killed. A probe that never reports would keep all others waiting.
            self._breaker.record(ticket, _core.IGNORED)
            raise
        self._breaker.record(ticket, _core.OK)
        if not self.there:
            self.there, self.reason = True, ""
            self._changed(True, "")
        return answer

    def mended(self, key: str) -> None:
        """Logs, once for each key, that what was there was damaged."""
        if key not in self._mended and len(self._mended) < _MOST_MENDED:
            self._mended.add(key)
            log.error(
                "state: Redis had an impossible value in %s; it was discarded, and counting begins anew; "
                "check which other program writes keys that begin with {%s}",
                key,
                self.address.prefix,
            )

    def _failed(self, ticket: int, error: BaseException) -> None:
        self.reason = _reason(error)
        # The breaker opens after FAILURES failures in a row: a time-out counts for all of them at once.
        slow = isinstance(error, (self._redis.TimeoutError, TimeoutError)) or getattr(error, "slow", False)
        scripts = self._scripts
        if scripts is not None and self.address.service is not None:
            scripts.pool.doubt()
        for _ in range(FAILURES if slow else 1):
            self._breaker.record(ticket, _core.FAILURE)
        if self.there:
            self.there = False
            self._changed(False, self.reason)

    def _client(self) -> _Scripts:
        if self._pid != os.getpid():
            self.after_fork()
        with self._making:
            if self._scripts is None:
                self._scripts = _Scripts(self._redis, self._connections())
            scripts = self._scripts
        if not self._checked:
            self._checked = True
            self._look(scripts)
        return scripts

    def _connections(self) -> Any:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        address = self.address
        # A connection that the server closed is opened again, once; a time-out is not tried again.
        retry = Retry(NoBackoff(), 1, supported_errors=(self._redis.ConnectionError,))
        options: dict[str, Any] = {
            "socket_timeout": address.timeout,
            "socket_connect_timeout": address.timeout,
            "retry": retry,
            "retry_on_error": [self._redis.ConnectionError],  # redis-py 5 retries nothing without it
            "protocol": 2,
            "decode_responses": True,
            "encoding_errors": "replace",
        }
        if address.password is not None:
            options["password"] = address.password
        if address.service is not None:
            from .sentinels import SentinelPool

            return SentinelPool(address, options, self._replaced)
        return self._redis.ConnectionPool.from_url(address.url, **options)

    def _replaced(self) -> None:
        self.failovers += 1
        log.warning(
            "state: another Redis server is the master now; the last grants of the old one may be given again"
        )

    def _look(self, scripts: _Scripts) -> None:
        """Warns, once per process, if the server may evict our keys while they are in use."""
        try:
            policy = str(scripts.client.config_get("maxmemory-policy").get("maxmemory-policy", ""))
        except self._redis.ResponseError:
            return  # a hosted server that refuses the command
        if policy.startswith(_WORST_POLICIES):
            text = (
                f"Redis may evict counters that are in use (maxmemory-policy {policy}); set it to noeviction"
            )
            self.warnings = (text,)
            log.warning("state: %s", text)

    def close(self) -> None:
        """Closes this process's connections. Idempotent."""
        scripts, self._scripts = self._scripts, None
        if self._pid == os.getpid() and scripts is not None:
            scripts.pool.disconnect()


class _Scripts:
    """A client that runs scripts by their digest and sends the text if the server does not know it."""

    def __init__(self, redis: Any, pool: Any) -> None:
        self._redis = redis
        self.pool = pool
        self.client = redis.Redis(connection_pool=pool)

    def eval_script(self, script: str, keys: Sequence[str], words: Sequence[object]) -> Any:
        arguments = (len(keys), *keys, *words)
        try:
            return self.client.evalsha(_digest(script), *arguments)
        except self._redis.exceptions.NoScriptError:
            return self.client.eval(script, *arguments)


_digests: dict[str, str] = {}


def _digest(script: str) -> str:
    known = _digests.get(script)
    if known is None:
        from hashlib import sha1

        known = _digests[script] = sha1(script.encode(), usedforsecurity=False).hexdigest()
    return known


def _reason(error: BaseException) -> str:
    """The kind of failure, never its text, which may contain addresses and keys."""
    if isinstance(error, AwayError):
        return str(error)
    if isinstance(error, UnexpectedAnswerError):
        return f"Redis sent an unexpected answer ({error}); is another program using its keys?"
    word = str(error).split(" ", 1)[0]
    if word.isupper() and word.isalpha() and len(word) < 20:
        return f"Redis answered {word}"
    return f"Redis is unavailable ({type(error).__name__})"
