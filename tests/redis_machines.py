"""Clients that share a Redis server, each as on a machine of its own."""

from __future__ import annotations

import time
from typing import Any

from redis_server import PATIENCE, RedisServer

import fastroute
from fastroute import _core
from fastroute.shared import Shared
from fastroute.shared.server import AwayError


class Machines:
    """Makes them, beats for them, and lets time pass where they wait for it.

    Attributes:
        clients: all that were made and not taken away again.
    """

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self.clients: list[fastroute.Client] = []

    def client(self, **tables: Any) -> fastroute.Client:
        self.clients.append(fastroute.Client(self._redis.config(**{"timeout": 5.0, **tables})))
        return self.clients[-1]

    def core(self, **tables: Any) -> _core.Endpoint:
        return self.core_of(self.client(**tables))

    @staticmethod
    def core_of(client: fastroute.Client) -> _core.Endpoint:
        return client._router.snapshot.state.endpoints[0].core

    @property
    def shared(self) -> list[Shared]:
        return [client._router.shared for client in self.clients if client._router.shared is not None]

    @property
    def leases(self) -> list[_core.Lease]:
        return [endpoint.lease for shared in self.shared for endpoint in shared._endpoints.values()]

    def beat(self) -> None:
        for shared in self.shared:
            shared.beat()

    def beat_if_there(self) -> None:
        for shared in self.shared:
            try:
                shared.beat()
            except AwayError:
                pass

    def pass_time(self) -> None:
        """Whoever was refused a permit asks again."""
        for lease in self.leases:
            lease.full(0)

    def grow_old(self) -> None:
        """All machines have had the time to say what they have in use."""
        with self._redis.connect() as connection:
            for key in connection.keys("*:permits:*"):
                connection.hdel(key, "new")

    def expire(self, lease: _core.Lease) -> None:
        """The lease of permits has ended."""
        leased, _, turn, _, alone = lease.permits()
        assert lease.lease_permits(turn, leased, _core.clock(), alone=alone)

    def until_back(self) -> None:
        """Until all of them have found Redis again."""
        end = time.monotonic() + PATIENCE
        while True:
            self.beat_if_there()
            if all(shared.server.there for shared in self.shared):
                return
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self) -> None:
        for client in self.clients:
            client.close()
