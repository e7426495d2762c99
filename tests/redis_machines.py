"""Clients that share a Redis server, each as on a machine of its own."""

from __future__ import annotations

import time
from typing import Any

from loopback import core_of
from redis_server import PATIENCE, RedisServer, admitted

import fastroute
from fastroute import _core, events
from fastroute.state.redis import Shared
from fastroute.state.redis.address import AwayError
from fastroute.testing import Provider

# The burst is all there is for as long as a test takes.
SLOW = {"rpm": 6, "burst": 300, "max_in_flight": 8}


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
        return core_of(self.client(**tables))

    @property
    def shared(self) -> list[Shared]:
        return [client.runtime.shared for client in self.clients if client.runtime.shared is not None]

    @property
    def leases(self) -> list[_core.Lease]:
        return [endpoint.lease for shared in self.shared for endpoint in shared.endpoints.values()]

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
            if all(shared.connection.there for shared in self.shared):
                return
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self) -> None:
        for client in self.clients:
            client.close()


class Watched:
    """A client on a server, and what its hooks have heard."""

    def __init__(self, redis: RedisServer, provider: Provider, **more: Any) -> None:
        self.machines = Machines(redis)
        tables = {"limits": SLOW, "base_url": provider.base_url, "timeout": 5.0, **more}
        self.client = self.machines.client(**tables)
        self.heard: list[events.SharingChanged] = []
        self.client.on(self.heard.append, events.SharingChanged)
        self.core = core_of(self.client)

    def ask(self) -> str:
        reply = self.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        )
        return reply.route.endpoint

    @property
    def there(self) -> bool:
        return bool(self.client.stats()["redis"]["there"])

    @property
    def reason(self) -> str:
        return str(self.client.stats()["redis"]["reason"])

    def goes_on(self, *reasons: str) -> None:
        """Calls are answered, from the whole limit, and what is wrong is said."""
        for _ in range(3):
            assert self.ask() == "a/m"
        self.machines.beat_if_there()
        assert admitted(self.core, 200) == 200
        assert not self.there
        assert any(reason in self.reason for reason in reasons), self.reason
        assert [event.shared for event in self.heard] == [False]
        assert self.heard[0].machines == 1
        assert self.client.stats()["endpoints"]["a/m"]["in_flight"] == 0

    def comes_back(self) -> None:
        self.machines.until_back()
        assert self.ask() == "a/m"
        assert self.there
        assert [event.shared for event in self.heard] == [False, True]

    def close(self) -> None:
        self.machines.close()


def numbers_are_whole(redis: RedisServer) -> None:
    with redis.connect() as connection:
        for key in connection.scan_iter("*limit*"):
            assert all(float(value) >= 0 for value in connection.hgetall(key).values())
        for key in connection.scan_iter("*permits*"):
            assert all(int(word) >= 0 for value in connection.hgetall(key).values() for word in value.split())
