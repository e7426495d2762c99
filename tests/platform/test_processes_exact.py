"""Several processes: limits are exact, and what killed processes held is released."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from client_processes import SECOND, ask, forked, tables
from loopback import core_of

from fastroute import Client, _core
from fastroute.testing import Provider

# ---------------------------------------------------------------------------------------------- exact limits

HERD = """
import os, sys, threading
from fastroute import _core
path, moment, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
segment = _core.Segment.in_file(fd)
endpoint = _core.Endpoint(segment, "e", rpm=1, request_burst=1000, max_in_flight=4096, probes_to_close=1)
granted = []
barrier = threading.Barrier(65)
def body():
    barrier.wait()
    granted.append(sum(endpoint.admit(0, moment) >= 0 for _ in range(tries)))
threads = [threading.Thread(target=body) for _ in range(64)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.readline()
barrier.wait()
for thread in threads: thread.join()
print(sum(granted), flush=True)
sys.stdin.readline()
"""


def herd(path: Path, moment: int, tries: int) -> list[int]:
    """8 processes of 64 threads that have only the file in common; what each was granted."""
    run = [sys.executable, "-c", HERD, str(path), str(moment), str(tries)]
    processes = [
        subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(8)
    ]
    found = []
    for step in ("ready", "granted"):
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            found += [int(line)] if step == "granted" else []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    return found


def forked_herd(endpoint: _core.Endpoint, moment: int, tries: int) -> list[int]:
    """The same with processes that have a parent in common."""
    readable, writable = os.pipe()

    def child() -> int:
        os.close(writable)
        barrier = threading.Barrier(65)
        granted: list[int] = []

        def body() -> None:
            barrier.wait()
            granted.append(sum(endpoint.admit(0, moment) >= 0 for _ in range(tries)))

        threads = [threading.Thread(target=body) for _ in range(64)]
        for thread in threads:
            thread.start()
        os.read(readable, 1)  # ends when the parent closes its end
        barrier.wait()
        for thread in threads:
            thread.join()
        return sum(granted)

    children = [forked(child) for _ in range(8)]
    os.close(writable)
    found = [result() for result in children]
    os.close(readable)
    return found


@pytest.mark.parametrize("way", ["file", "fork"])
class TestExact:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "segment"
        with open(path, "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, _core.Segment.size(1024))
            self.segment = _core.Segment.in_file(file.fileno(), True)
        self.endpoint = _core.Endpoint(
            self.segment, "e", rpm=1, request_burst=1000, max_in_flight=4096, probes_to_close=1
        )
        return path

    def grants(self, way: str, path: Path, moment: int, tries: int) -> list[int]:
        return herd(path, moment, tries) if way == "file" else forked_herd(self.endpoint, moment, tries)

    def test_a_limit_of_1000_grants_1000(self, way: str, path: Path) -> None:
        now = _core.clock() + 3600 * SECOND
        assert sum(self.grants(way, path, now, 4)) == 1000
        assert self.endpoint.available_requests(now) == 0
        self.segment.reap()
        assert self.endpoint.in_flight == 0

    def test_at_the_instant_of_the_probe_one_gets_it(self, way: str, path: Path) -> None:
        now = _core.clock() + 3600 * SECOND
        for _ in range(5):
            self.endpoint.finish(self.endpoint.admit(0, now), _core.FAILURE, 0.0, 0, now)
        now += self.endpoint.reopens_in(now)
        assert sorted(self.grants(way, path, now, 1)) == [0] * 7 + [1]
        # Its owner has ended without a word, so after reaping the next one probes.
        self.segment.reap()
        assert [self.endpoint.admit(0, now) >= 0 for _ in range(2)] == [True, False]


# --------------------------------------------------------------------------------------------- looking after


class TestTending:
    def test_whoever_lives_looks_every_half_second_and_only_one_of_them(self) -> None:
        segment = _core.Segment(256)
        endpoint = _core.Endpoint(segment, "e", max_in_flight=4)
        now = _core.clock()
        assert segment.tend(now) == 0

        def die() -> None:
            endpoint.admit(0, now)
            os.kill(os.getpid(), signal.SIGKILL)

        half = SECOND // 2
        for turn in (1, 2):
            pid = os.fork()
            if pid == 0:
                die()
            os.waitpid(pid, 0)
            assert segment.tend(now + turn * half - 1) == 0
            assert endpoint.in_flight == 1
            assert forked(lambda at=turn: segment.tend(now + at * half))() == 1  # type: ignore[misc]
            assert endpoint.in_flight == 0
            assert segment.tend(now + turn * half) == 0

    def test_workers_recycled_for_ever_leave_no_slots_behind(self) -> None:
        segment = _core.Segment(64)
        segment.slot()
        most = 0
        for number in range(60):
            assert forked(segment.slot)() > 0
            most = max(most, segment.workers_known)
            segment.tend(_core.clock() + number * SECOND // 2)
        assert most < 10

    def test_the_entry_of_a_call_does_it(self, tmp_path: Path) -> None:
        with Provider(process=True) as provider:
            settings = tables(provider.base_url, tmp_path, provider={"max_in_flight": 2})
            with Client(settings) as client:
                core = core_of(client)
                pid = os.fork()
                if pid == 0:
                    core.admit(0)
                    os.kill(os.getpid(), signal.SIGKILL)
                os.waitpid(pid, 0)
                assert core.in_flight == 1
                ask(client)
                assert core.in_flight == 0
