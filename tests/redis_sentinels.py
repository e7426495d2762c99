"""Real sentinels of a test's own, and a master with its replica that they watch."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from needs import need
from ports import free_port
from redis_server import PATIENCE, RedisServer, path_of, until

SERVICE = "shop"
# Shorter, and on a busy machine a replica that is well counts as down: then none is fit to take over, and
# that is tried again after twice the time that a fail-over may take. A promotion is seen after a second.
_DOWN_AFTER_MS, _FAILOVER_MS = 300, 1500
_NEVER_MS = 600_000
_SYNC_AT_ONCE = ("--repl-diskless-sync-delay", "0")
# Sentinels look this often, in milliseconds, where they would look every one, two and ten seconds.
_OFTEN = {"ping-period": 100, "ask-period": 100, "publish-period": 100, "info-period": 300}


class Sentinel:
    """Started at once; `close` ends it.

    Args:
        folder: where its files may be.
        watched: the master's port.
        lines: of its configuration.
        port: its own, or any.
        quorum: how many must find the master down; 0 for one that never finds it down.
        connection: how to connect to it, for redis-py.
    """

    def __init__(
        self,
        folder: Path,
        watched: int,
        *lines: str,
        port: int = 0,
        quorum: int = 0,
        program: str = "redis-server",
        **connection: Any,
    ) -> None:
        self.port = port or free_port()
        self._quorum = quorum
        self._connection = {"port": self.port, **connection}
        folder = folder / str(self.port)
        folder.mkdir()
        file = folder / "sentinel.conf"
        file.write_text("\n".join((f"dir {folder}", *(lines or (f"port {self.port}",)), "")))
        command = [path_of(program), str(file), "--sentinel"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._until_up()
        self.ask("DEBUG", *(word for pair in _OFTEN.items() for word in pair))
        self.watch(watched)

    def connect(self) -> Any:
        return need("redis").Redis(decode_responses=True, **self._connection)

    def ask(self, word: str, *words: Any) -> Any:
        with self.connect() as connection:
            return connection.execute_command(f"SENTINEL {word}", *words)

    def watch(self, port: int, *, service: str = SERVICE) -> None:
        """Has it watch this master, whatever it watched before."""
        with self.connect() as connection:
            known = connection.sentinel_masters()
        if service in known:
            self.ask("REMOVE", service)
        self.ask("MONITOR", service, "127.0.0.1", port, self._quorum or 1)
        down_after = _DOWN_AFTER_MS if self._quorum else _NEVER_MS
        self.ask("SET", service, "down-after-milliseconds", down_after, "failover-timeout", _FAILOVER_MS)

    @property
    def state(self) -> dict[str, Any]:
        """What it says of the master."""
        with self.connect() as connection:
            return dict(connection.sentinel_masters()[SERVICE])

    @property
    def replicas(self) -> int:
        """How many are fit to take over."""
        with self.connect() as connection:
            found = connection.sentinel_slaves(SERVICE)
        return sum(
            "slave" in one["flags"] and not one["is_sdown"] and one["master-link-status"] == "ok"
            for one in found
        )

    def _until_up(self) -> None:
        redis = need("redis")
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with self.connect() as connection:
                    connection.ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "the sentinel did not start"
                assert time.monotonic() < end, "the sentinel did not answer"
                time.sleep(0.01)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Replicated:
    """A master, its replica, and three sentinels that agree on them.

    The last sentinel is the one that calls for an election: of two at once each may get one vote.

    Attributes:
        address: for a configuration's ``state``, without options.
    """

    def __init__(self, folder: Path, program: str = "redis-server") -> None:
        self.servers = [
            RedisServer("--port", str(free_port()), *_SYNC_AT_ONCE, program=program) for _ in range(2)
        ]
        master, replica = self.servers
        with replica.connect() as connection:
            connection.replicaof("127.0.0.1", master.port)
        self.sentinels = [
            Sentinel(folder, master.port, quorum=quorum, program=program) for quorum in (0, 0, 1)
        ]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.address = f"redis+sentinel://{hosts}/{SERVICE}"
        self.until_whole()

    @property
    def master(self) -> RedisServer:
        port = int(self.sentinels[-1].state["port"])
        return next(server for server in self.servers if server.port == port)

    def kill_master(self) -> RedisServer:
        """Kills it once its replica has what was written until then; returns the replica."""
        old = self.master
        old.until_replicated()
        old.kill()
        return next(server for server in self.servers if server is not old)

    def until_whole(self) -> None:
        """Until one could take over from the other."""
        until(lambda: all(one.state["num-other-sentinels"] == 2 and one.replicas for one in self.sentinels))

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for server in self.servers:
            server.close()
