"""Connections to the master that Redis sentinels name, over redis-py's own classes, within one time-out.

The sentinels are asked for every new connection, so a replaced master is found with the next one. A
connection that broke, or whose server has become a replica, is opened again. The sentinel that answered last
is asked first; those that did not answer move to the end of the list, as does one whose master fails. Each
sentinel may take only its part of the time-out, and connecting to the master the rest, so a caller waits no
longer than for a single hanging server.
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
        options: redis-py's options of a connection to it.
        replaced: called when another server has become the master.
    """

    def __init__(self, address: Address, options: dict[str, Any], replaced: Callable[[], None]) -> None:
        service = address.service
        assert service is not None
        # The connection class for the master, and the option of the sentinels' clients, for TLS or not.
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
        """Makes another sentinel the first to be asked, after the master has failed.

        The one that named it may be cut off from the others together with an old master.
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
    """Finds the master by asking the sentinels in turn."""

    replaced: Callable[[], None]
    _master: tuple[str, int] | None = None

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master.

        Raises:
            AwayError: if no sentinel names one; the message says why.
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
                    # A new list, since other threads may be iterating over the old one.
                    self.sentinels = [*asked[number:], *asked[:number]]
                    return state["ip"], state["port"]
                else:
                    known = True
            except (redis.RedisError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                # Unavailable, or not a sentinel. The error's text may contain its address.
                slow = slow or isinstance(error, redis.TimeoutError)
                failures.add(type(error).__name__)
        why = "it is down" if known else ", ".join(sorted(failures))
        raise AwayError(f"no sentinel names a master ({why})", slow=slow)

    def reached(self, master: tuple[str, int]) -> None:
        """Records a connection to this master."""
        before, self._master = self._master, master
        if before not in (None, master):
            self.replaced()


class _SentinelConnection(SentinelManagedConnection):
    """Connects within one time-out, which includes asking the sentinels."""

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
        # Some versions of redis-py would connect to the previous server.
        if not self._sock:
            self.connect()
        super().send_packed_command(command, check_health)


class _SentinelTLSConnection(_SentinelConnection, SentinelManagedSSLConnection):
    """The same over TLS."""
