"""The server that sentinels name: who it is now, and connections to it.

Owns asking sentinels, over redis-py's own classes for them, within one time-out. Whoever makes a connection
asks, so a server that was replaced is found with the next one: a connection that broke, or whose server has
become a replica, is made anew. Of several sentinels the one that answered last is asked first; those that did
not answer go to the end, as does one whose server fails. One that hangs is waited for its part of the
time-out only, and a connection has what is left of it: so a caller waits no longer than for one server that
hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from .address import Address, AwayError


class SentinelPool(SentinelConnectionPool):
    """Connections to the server that is the master now.

    Args:
        options: of a connection to it, for redis-py.
        replaced: called when another server has become the master.
    """

    def __init__(self, address: Address, options: dict[str, Any], replaced: Callable[[], None]) -> None:
        service = address.service
        assert service is not None
        # What a connection to the master, and a client of a sentinel, must be told to use TLS.
        connection, tls = (
            (_SentinelTLSConnection, {"ssl": True}) if service.tls else (_SentinelConnection, {})
        )
        timeout = address.timeout / (len(service.sentinels) + 1)
        sentinels = _Sentinels(
            service.sentinels,
            sentinel_kwargs={
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
                "protocol": 2,
                "username": address.sentinel_user,
                "password": address.sentinel_password,
                **tls,
                **address.files,
            },
        )
        sentinels.replaced = replaced
        super().__init__(
            service.name,
            sentinels,
            connection_class=connection,
            username=service.user or None,
            db=service.db,
            **address.files,
            **options,
        )

    def doubt(self) -> None:
        """The server has failed: another sentinel is asked who the master is.

        For the one that named this one may be cut off from the others together with an old master.
        """
        self.disconnect(inuse_connections=False)
        first, *others = self.sentinel_manager.sentinels
        self.sentinel_manager.sentinels = [*others, first]

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Closes idle connections, or all of them and those to the sentinels too."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.connection_pool.disconnect()


class _Sentinels(Sentinel):
    """Says who the master is."""

    replaced: Callable[[], None]
    _master: tuple[str, int] | None = None

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master.

        Raises:
            AwayError: no sentinel names one; it says why. Those that hung were waited for.
        """
        asked = self.sentinels
        failures: set[str] = set()
        slow = known = False
        for number, sentinel in enumerate(asked):
            try:
                masters: Any = sentinel.sentinel_masters()
                state = masters.get(service_name)
                if state is None:
                    failures.add("service unknown")
                elif self.check_master_state(state, service_name):
                    # Other threads may be at the old list: it is not changed.
                    self.sentinels = [*asked[number:], *asked[:number]]
                    return state["ip"], state["port"]
                else:
                    known = True
            except (redis.RedisError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                # It is away, or no sentinel at all. Its text may carry its address.
                slow = slow or isinstance(error, redis.TimeoutError)
                failures.add(type(error).__name__)
        why = "it is down" if known else ", ".join(sorted(failures))
        raise AwayError(f"no sentinel names a master ({why})", slow=slow)

    def reached(self, master: tuple[str, int]) -> None:
        """A connection to this one was made."""
        before, self._master = self._master, master
        if before not in (None, master):
            self.replaced()


class _SentinelConnection(SentinelManagedConnection):
    """Connects within one time-out, asking the sentinels included."""

    _until = 0.0

    def connect(self) -> None:
        whole: Any = self.socket_timeout
        self._until = time.monotonic() + whole
        super().connect()

    def connect_to(self, address: tuple[str, int]) -> None:
        whole = self.socket_timeout
        left = self._until - time.monotonic()
        if left <= 0:
            raise redis.TimeoutError
        self.socket_connect_timeout = self.socket_timeout = left
        try:
            super().connect_to(address)
        finally:
            self.socket_timeout = whole
        socket: Any = self._sock
        socket.settimeout(whole)
        self.connection_pool.sentinel_manager.reached(address)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # Some versions of redis-py would connect to the same server as before.
        if not self._sock:
            self.connect()
        super().send_packed_command(command, check_health)


class _SentinelTLSConnection(_SentinelConnection, SentinelManagedSSLConnection):
    """The same over TLS."""
