"""The segment: cells, names, worker slots, and what a killed worker leaves behind."""

import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastroute import _core
from fastroute._core import Bucket, Endpoint, Segment, SegmentFullError

T = 10**15  # a time on the core's clock, ns


def in_child(work: Callable[[], bytes], end: str = "exit") -> bytes:
    """Runs ``work`` in a forked child, which then exits, is killed, or stays a zombie; returns its answer."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writable, work())
            if end != "exit":
                os.kill(os.getpid(), signal.SIGKILL)
        except BaseException as error:
            os.write(writable, b"!" + repr(error).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    if end == "zombie":
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _zombies.append(pid)
    else:
        os.waitpid(pid, 0)
    assert not answer.startswith(b"!"), answer
    return answer


_zombies: list[int] = []


def collect() -> None:
    """Reaps the zombies that `in_child` left; other children are not its own."""
    while _zombies:
        os.waitpid(_zombies.pop(), 0)


class TestCells:
    @pytest.mark.parametrize(("asked", "made"), [(64, 64), (65, 128), (1000, 1024), (4096, 4096)])
    def test_their_number_is_rounded_up_to_a_power_of_two(self, asked: int, made: int) -> None:
        assert Segment(asked).cells == made

    @pytest.mark.parametrize("cells", [63, 0, -1, 2**24 + 1, 2**80])
    def test_impossible_numbers_are_refused(self, cells: int) -> None:
        with pytest.raises(ValueError, match="cells must be 64 to 16777216"):
            Segment(cells)

    @pytest.mark.parametrize("cells", [64.0, "64", None, True])
    def test_other_types_are_refused(self, cells: object) -> None:
        with pytest.raises(TypeError, match="cells"):
            Segment(cells)  # type: ignore[arg-type]

    def test_one_name_is_one_state(self) -> None:
        segment = Segment(64)
        first, same, other = (Bucket(segment, name, 60, 1) for name in ("a", "a", "b"))
        assert segment.used == 2
        assert first.acquire(1, T) == 0
        assert same.acquire(1, T) > 0
        assert other.acquire(1, T) == 0

    def test_kinds_of_one_name_do_not_meet(self) -> None:
        segment = Segment(256)
        bucket = Bucket(segment, "a", 60, 1)
        breaker = _core.Breaker(segment, "a", failures=1, min_calls=1)
        endpoint = Endpoint(segment, "a", rpm=60, request_burst=1, failures=1)
        latency = _core.Latency(segment, "a")
        assert breaker.record(breaker.allow(T), _core.FAILURE, T) == _core.OPEN
        latency.record(_core.OK, 1.0, T)
        assert (endpoint.state(T), endpoint.latencies(), bucket.available(T)) == (_core.CLOSED, [], 1)
        assert endpoint.finish(endpoint.admit(0, T), _core.OK, 2.0, 0, T) == 0
        assert (latency.samples(), bucket.available(T)) == ([1.0], 1)

    def test_a_full_segment_says_so_and_keeps_what_it_has(self) -> None:
        segment = Segment(64)
        buckets = [Bucket(segment, f"bucket {i}", 60, 1) for i in range(64)]
        with pytest.raises(SegmentFullError, match=r"all 64 cells .* Segment\(cells=128\)"):
            Bucket(segment, "one too many", 60)
        assert issubclass(SegmentFullError, MemoryError)
        assert [bucket.acquire(1, T) for bucket in buckets] == [0] * 64
        assert Bucket(segment, "bucket 7", 60, 1).acquire(1, T) > 0

    @pytest.mark.parametrize("name", ["\ud800", "\0", "é", "x" * 10_000])
    def test_any_text_is_a_name(self, name: str) -> None:
        assert Bucket(Segment(64), name, 60).name == name

    def test_what_is_no_name_is_refused(self) -> None:
        segment = Segment(64)
        with pytest.raises(ValueError, match="name"):
            Bucket(segment, "", 60)
        with pytest.raises(TypeError):
            Bucket(segment, None, 60)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            Bucket(None, "a", 60)  # type: ignore[arg-type]
        assert segment.used == 0

    def test_threads_that_claim_one_name_get_one_cell(self) -> None:
        segment = Segment(4096)
        barrier = threading.Barrier(8)

        def claim() -> None:
            barrier.wait()
            for i in range(200):
                Bucket(segment, f"bucket {i}", 60)

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert segment.used == 200

    def test_memory_outlives_the_segment_object(self) -> None:
        bucket = Bucket(Segment(64), "a", 60, 2)
        assert [bucket.acquire(1, T) for _ in range(3)][:2] == [0, 0]


class TestFork:
    def test_a_child_works_on_the_same_cells(self) -> None:
        segment = Segment(64)
        bucket = Bucket(segment, "a", 60, 10)

        def take() -> bytes:
            inherited = sum(bucket.acquire(1, T) == 0 for _ in range(3))
            named_later = Bucket(segment, "a", 60, 10)
            Bucket(segment, "made by the child", 60, 5).acquire(4, T)
            return str(inherited + (named_later.acquire(2, T) == 0) * 2).encode()

        assert in_child(take) == b"5"
        assert bucket.available(T) == 5
        assert Bucket(segment, "made by the child", 60, 5).available(T) == 1

    def test_every_process_has_its_own_slot(self) -> None:
        segment = Segment(64)
        mine = segment.slot()

        def grandchild_and_child() -> bytes:
            own = segment.slot()
            return b"%d %d %s" % (own, segment.slot(), in_child(lambda: b"%d" % segment.slot()))

        child, again, grandchild = map(int, in_child(grandchild_and_child).split())
        assert child == again
        assert len({mine, child, grandchild}) == 3
        assert segment.slot() == mine
        assert all(1 <= slot <= 255 for slot in (mine, child, grandchild))

    def test_slots_of_the_dead_are_used_again_when_all_are_taken(self) -> None:
        """In a process of its own, where a fork costs a twentieth of what it costs in that of the tests."""
        code = (
            "import os; from fastroute._core import Segment\n"
            "segment = Segment(64)\n"
            "mine, seen = segment.slot(), set()\n"
            "for _ in range(300):\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            "        os._exit(segment.slot())\n"
            "    seen.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
            "assert len(seen) == 254\n"
            "assert seen == set(range(1, 256)) - {mine}\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_a_ticket_is_worth_nothing_in_another_process(self) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "a", max_in_flight=4)
        ticket = endpoint.admit(0, T)

        def finish() -> bytes:
            endpoint.finish(ticket, _core.FAILURE, 0.0, 0, T)
            endpoint.undo(ticket, 0, T)
            segment.slot()
            endpoint.finish(ticket, _core.FAILURE, 0.0, 0, T)
            return b"%d" % endpoint.in_flight

        assert in_child(finish) == b"1"
        assert endpoint.counts == (0, 0)
        endpoint.finish(ticket, _core.OK, 1.0, 0, T)
        assert (endpoint.in_flight, endpoint.counts) == (0, (1, 0))


class TestReap:
    @pytest.mark.parametrize("end", ["killed", "zombie"])
    def test_permits_of_a_killed_worker_come_back(self, end: str) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "a", max_in_flight=40)
        mine = [endpoint.admit(0, T) for _ in range(5)]

        def hold() -> bytes:
            taken = sum(endpoint.admit(0, T) >= 0 for _ in range(50))
            return b"%d" % taken

        assert in_child(hold, end) == b"35"
        assert endpoint.in_flight == 40
        assert endpoint.admit(0, T) == -_core.BUSY
        assert segment.reap() == 1
        assert endpoint.in_flight == 5
        assert segment.reap() == 0
        collect()
        tickets = [endpoint.admit(0, T) for _ in range(36)]
        assert min(tickets[:35]) >= 0
        assert tickets[35] == -_core.BUSY
        for ticket in mine + tickets[:35]:
            endpoint.finish(ticket, _core.IGNORED, 0.0, 0, T)
        assert endpoint.in_flight == 0

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
    def test_a_pid_that_is_anothers_by_now_is_not_the_dead_workers(self, tmp_path: Path) -> None:
        with open(tmp_path / "segment", "w+b") as file:
            file.truncate(Segment.size(256))
            segment = Segment.in_file(file.fileno(), True)
            memory = mmap.mmap(file.fileno(), 0)
        endpoint = Endpoint(segment, "a", max_in_flight=3)

        def hold() -> bytes:
            assert endpoint.admit(0, T) >= 0
            return b"%d" % segment.slot()

        place = 128 + 16 * int(in_child(hold, "killed"))  # after the header: each worker's pid and start
        owner, started = struct.unpack_from("<QQ", memory, place)
        living = os.getppid()
        its_start = int(Path(f"/proc/{living}/stat").read_text().rpartition(")")[2].split()[19])
        assert its_start != started
        struct.pack_into("<QQ", memory, place, owner >> 32 << 32 | living, its_start)
        assert segment.reap() == 0  # were it that process, it would live
        assert endpoint.in_flight == 1
        struct.pack_into("<QQ", memory, place, owner >> 32 << 32 | living, started)
        assert segment.reap() == 1
        assert endpoint.in_flight == 0
        memory.close()

    def test_the_living_keep_theirs(self) -> None:
        segment = Segment(256)
        endpoint = Endpoint(segment, "a", max_in_flight=3)
        ticket = endpoint.admit(0, T)

        def hold_and_reap() -> bytes:
            own = endpoint.admit(0, T)
            reaped = segment.reap()
            state = b"%d %d" % (reaped, endpoint.in_flight)
            endpoint.finish(own, _core.OK, 1.0, 0, T)
            return state

        assert in_child(hold_and_reap) == b"0 2"
        assert endpoint.in_flight == 1
        endpoint.finish(ticket, _core.OK, 1.0, 0, T)
        assert endpoint.in_flight == 0

    def test_all_endpoints_and_many_dead(self) -> None:
        segment = Segment(4096)
        endpoints = [Endpoint(segment, f"endpoint {i}", max_in_flight=64) for i in range(20)]
        for _ in range(5):
            in_child(lambda: b"%d" % sum(e.admit(0, T) for e in endpoints), "killed")
        assert [e.in_flight for e in endpoints] == [5] * 20
        assert segment.reap() == 5
        assert [e.in_flight for e in endpoints] == [0] * 20

    def test_a_worker_killed_anywhere_harms_nothing(self) -> None:
        """A child that admits and finishes without pause is killed from outside, wherever it is."""
        segment = Segment(256)
        endpoint = Endpoint(segment, "a", max_in_flight=8, rpm=10**9, tpm=10**9, token_burst=10**8)
        for _ in range(10):
            readable, writable = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(writable, b".")
                held = []
                while True:
                    held.append(endpoint.admit(10))
                    if len(held) > 4:
                        endpoint.finish(held.pop(0), _core.OK, 0.1, 5)
            os.close(writable)
            assert os.read(readable, 1) == b"."
            os.close(readable)
            while endpoint.in_flight < 4:
                os.sched_yield()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert segment.reap() == 1
            assert endpoint.in_flight == 0
            tickets = [endpoint.admit() for _ in range(9)]
            assert [t >= 0 for t in tickets] == [True] * 8 + [False]
            for ticket in tickets[:8]:
                endpoint.finish(ticket, _core.OK, 0.1)
            assert endpoint.state() == _core.CLOSED
        assert endpoint.in_flight == 0


def test_importing_the_core_makes_nothing() -> None:
    code = (
        "import os, threading, fastroute._core; "
        "maps = open('/proc/self/maps').read() if os.path.exists('/proc/self/maps') else ''; "
        "assert '/dev/zero' not in maps; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clock_is_pythons_monotonic_clock() -> None:
    import time

    assert time.monotonic_ns() <= _core.clock() <= time.monotonic_ns()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_many_who_only_seem_to_live_each_is_found_in_its_turn() -> None:
    segment = Segment(256)
    endpoint = _core.Endpoint(segment, "e", max_in_flight=30)
    segment.slot()
    children = []
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            endpoint.admit(0)
            os._exit(0)
        children.append(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    # Nobody has asked after them: their pids are still there, and one look asks the system about a few only.
    assert endpoint.in_flight == 12
    found = [segment.reap() for _ in range(5)]
    assert sum(found) == 12
    assert max(found) < 12
    assert endpoint.in_flight == 0
    for pid in children:
        os.waitpid(pid, 0)


def test_one_look_buries_a_few_of_many_dead() -> None:
    segment = Segment(256)
    endpoint = _core.Endpoint(segment, "e", max_in_flight=60)
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            endpoint.admit(0)
            os._exit(0)
        os.waitpid(pid, 0)
    found = [segment.reap() for _ in range(4)]
    assert sum(found) == 40
    assert max(found) < 40
    assert endpoint.in_flight == 0
