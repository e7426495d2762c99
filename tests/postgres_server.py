"""A PostgreSQL server of the tests' own, on a loopback port, in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from needs import need
from ports import free_port

PROGRAMS = ("initdb", "postgres")


@contextmanager
def running() -> Iterator[PostgresServer]:
    """A server for as long as the block lasts; the test is skipped where its programs are not installed."""
    for program in PROGRAMS:
        need(program)
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


class PostgresServer:
    """Started by `start`; `kill` and `start` again are a crash and its recovery.

    The server refuses to run as root, so it then runs as the first of two users who are there anyway.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="fastroute-pg-")
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            names = {user.pw_name: user for user in pwd.getpwall()}
            user = names.get("postgres") or names["nobody"]
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        command = ["initdb", "-D", f"{self.folder}/data", "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(
            [*command, "-E", "UTF8", "--locale=C"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self._identity,
        )

    def start(self) -> None:
        import psycopg

        settings = ["fsync=off", "shared_buffers=8MB", "max_connections=60", "listen_addresses=127.0.0.1"]
        command = ["postgres", "-D", f"{self.folder}/data", "-p", str(self.port), "-k", self.folder]
        with open(f"{self.folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *(word for setting in settings for word in ("-c", setting))],
                stdout=log,
                stderr=log,
                cwd="/",
                **self._identity,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.02)

    def url(self, schema: str = "public") -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres?options=-c%20search_path%3D{schema}"

    def new_schema(self) -> str:
        """The address of an empty schema, as good as a database of its own and sooner made."""
        self._schemas += 1
        schema = f"s{os.getpid()}_{self._schemas}"
        self.run(f"CREATE SCHEMA {schema}")
        return self.url(schema)

    def run(self, statement: str, url: str | None = None) -> list[Any]:
        import psycopg

        # Whatever a test has set for its sessions, this one may write.
        own = self.url() + "%20-c%20default_transaction_read_only%3Doff"
        with psycopg.connect(url or own, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """SIGKILL to the server and, by its death, to all of its sessions."""
        assert self._process is not None
        children = [
            int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == self._process.pid
        ]
        self._process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: the folder goes with it
            self._process.wait()
        shutil.rmtree(self.folder)


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
