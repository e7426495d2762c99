"""Money counters: never over the limit, settled once, nothing left by a kill between any two writes."""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ended, forked
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import _core
from fastroute._core import MOST_NANO, OTHER_WINDOW, OVER_LIMIT, Counter, Segment, SegmentFullError

T = 10**15  # a time on the core's clock, ns
HOUR = 3600 * 10**9
FAR = T + HOUR


@pytest.fixture
def segment() -> Segment:
    return Segment(256)


def begun(segment: Segment, spent: int = 0, name: str = "a") -> Counter:
    counter = Counter(segment, name)
    assert counter.begin(0, 7, spent)
    return counter


def reserve(counter: Counter, amount: int, limit: int, lease: int = FAR) -> int:
    return counter.reserve(counter.stamp, amount, limit - amount, lease)


class Model:
    """The same in plain Python: one counter, what is held against it, and nothing that could be torn."""

    def __init__(self) -> None:
        self.window, self.begun, self.committed, self.alerts = 0, 0, 0, 0
        self.held: dict[int, dict[str, int]] = {}  # by ticket

    def begin(self, window: int, spent: int, alerts: int) -> None:
        self.window, self.begun, self.committed, self.alerts = window, self.begun + 1, spent, alerts

    def reserve(self, begun: int, amount: int, most: int) -> int:
        if begun != self.begun:
            return OTHER_WINDOW
        if self.committed > most:
            return OVER_LIMIT
        self.committed += amount
        return 0

    def keep(self, ticket: int, amount: int, lease: int) -> None:
        self.held[ticket] = {
            "amount": amount,
            "lease": lease,
            "begun": self.begun,
            "sent": False,
            "late": False,
        }

    def sent(self, ticket: int) -> bool:
        entry = self.held.get(ticket)
        if entry is None or entry["late"]:
            return False
        entry["sent"] = True
        return True

    def settle(self, ticket: int, cost: int) -> bool:
        entry = self.held.pop(ticket, None)
        if entry is None:
            return False
        if entry["begun"] == self.begun and cost >= 0:
            self.committed += cost - entry["amount"]
        return True

    def sweep(self, now: int) -> int:
        swept = 0
        for ticket, entry in list(self.held.items()):
            if entry["lease"] > now:
                continue
            if not entry["sent"]:
                self.settle(ticket, 0)
                swept += 1
            elif not entry["late"]:
                entry["late"] = True
                swept += 1
            elif now - entry["lease"] > HOUR:
                del self.held[ticket]
        return swept

    def alert(self, begun: int, bit: int) -> bool:
        if begun != self.begun or self.alerts >> bit & 1:
            return False
        self.alerts |= 1 << bit
        return True

    def figures(self) -> tuple[int, int]:
        reserved = sum(
            entry["amount"]
            for entry in self.held.values()
            if entry["begun"] == self.begun and not entry["late"]
        )
        return self.committed - reserved, reserved


AMOUNTS = st.integers(0, 500)
TICKETS = st.integers(0, 30)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(1, 2**32 - 1), AMOUNTS, st.integers(0, 255)),
        st.tuples(st.just("reserve"), AMOUNTS, st.integers(-10, 1500), st.integers(0, 100)),
        st.tuples(st.just("reserve"), AMOUNTS, st.integers(500, 5000), st.integers(50, 200)),
        st.tuples(st.just("sent"), TICKETS),
        st.tuples(st.just("settle"), TICKETS, st.integers(-1, 600)),
        st.tuples(st.just("sweep"), st.sampled_from([40, 80, 120, 240, HOUR + 150])),
        st.tuples(st.just("alert"), st.integers(0, 1), st.integers(0, 7)),
        st.tuples(st.just("stale"), AMOUNTS),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(OPERATIONS)
def test_any_sequence_agrees_with_plain_python(operations: list[tuple[str, int, int, int]]) -> None:
    segment = Segment(64)
    counter, model = Counter(segment, "a"), Model()
    counter.begin(0, 7, 0)
    model.begin(7, 0, 0)
    tickets: list[int] = []
    for name, *values in operations:
        if name == "begin":
            assert counter.begin(counter.stamp, *values)
            model.begin(*values)
        elif name == "reserve":
            amount, most, lease = values
            found = counter.reserve(counter.stamp, amount, most, T + lease)
            expected = model.reserve(model.begun, amount, most)
            assert min(found, 0) == expected
            if found >= 0:
                assert found not in tickets
                model.keep(found, amount, T + lease)
                tickets.append(found)
        elif name == "stale":
            assert counter.reserve(counter.stamp - 1, values[0], MOST_NANO, FAR) == OTHER_WINDOW
        elif name == "sweep":
            assert _core.sweep_reservations(segment, T + values[0]) == model.sweep(T + values[0])
        elif name == "alert":
            old, bit = values
            assert counter.alert(counter.stamp - old, bit) == model.alert(model.begun - old, bit)
        elif tickets:
            ticket = tickets[values[0] % len(tickets)]
            if name == "sent":
                assert counter.sent(ticket) == model.sent(ticket)
            else:
                assert counter.settle(ticket, values[1]) == model.settle(ticket, values[1])
        assert counter.figures() == model.figures()
        assert (counter.committed, counter.window) == (model.committed, model.window)


class TestLimits:
    def test_exactly_the_limit_is_allowed_and_one_more_is_not(self, segment: Segment) -> None:
        counter = begun(segment, 40)
        assert reserve(counter, 61, 100) == OVER_LIMIT
        assert reserve(counter, 60, 100) >= 0
        assert reserve(counter, 1, 100) == OVER_LIMIT
        assert reserve(counter, 0, 100) >= 0
        assert counter.figures() == (40, 60)

    def test_a_cost_above_the_estimate_is_owned_up_to(self, segment: Segment) -> None:
        counter = begun(segment)
        assert counter.settle(reserve(counter, 60, 100), 150)
        assert counter.figures() == (150, 0)
        assert reserve(counter, 0, 100) == OVER_LIMIT

    def test_sums_beyond_a_word_stay_at_its_end(self, segment: Segment) -> None:
        counter = begun(segment, MOST_NANO)
        tickets = [counter.reserve(counter.stamp, MOST_NANO, 2**63 - 1, FAR) for _ in range(20)]
        assert counter.committed == 2**63 - 1
        assert counter.reserve(counter.stamp, 1, 2**63 - 2, FAR) == OVER_LIMIT
        assert all(counter.settle(ticket, 0) for ticket in tickets)
        assert counter.committed == 0

    @pytest.mark.parametrize("amount", [-1, MOST_NANO + 1, 2**63 - 1])
    def test_impossible_amounts_are_refused(self, segment: Segment, amount: int) -> None:
        counter = begun(segment)
        calls: list[Callable[[], object]] = [
            lambda: counter.reserve(counter.stamp, amount, 0, FAR),
            lambda: counter.begin(counter.stamp, 8, amount),
            lambda: counter.settle(reserve(counter, 1, 10), amount if amount > 0 else -2),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="nano-dollars"):
                call()

    @pytest.mark.parametrize("amount", [2**63, 2**80])
    def test_more_than_a_word_is_refused(self, segment: Segment, amount: int) -> None:
        with pytest.raises(OverflowError):
            begun(segment).reserve(1, amount, 0, FAR)

    @pytest.mark.parametrize("amount", [1.0, "1", None])
    def test_only_integers_are_money(self, segment: Segment, amount: object) -> None:
        with pytest.raises(TypeError):
            begun(segment).reserve(1, amount, 0, FAR)  # type: ignore[arg-type]

    def test_windows_and_alerts_have_their_range(self, segment: Segment) -> None:
        counter = Counter(segment, "a")
        with pytest.raises(ValueError, match="window"):
            counter.begin(0, 0, 0)
        with pytest.raises(ValueError, match="alerts"):
            counter.begin(0, 1, 0, 256)
        with pytest.raises(ValueError, match="bit"):
            counter.alert(0, 8)
        with pytest.raises(ValueError, match="not a ticket"):
            counter.settle(OVER_LIMIT)

    def test_a_full_segment_says_so(self) -> None:
        segment = Segment(64)
        counter = begun(segment)
        held = [reserve(counter, 1, 100) for _ in range(63)]
        with pytest.raises(SegmentFullError, match="no room for one more reservation"):
            reserve(counter, 1, 100)
        assert counter.figures() == (0, 63)
        assert counter.settle(held.pop(), 0)
        assert reserve(counter, 1, 100) >= 0


class TestTickets:
    def test_settled_once_and_only_once(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100)
        assert counter.settle(ticket, 10)
        assert not counter.settle(ticket, 20)
        assert not counter.sent(ticket)
        again = reserve(counter, 60, 100)
        assert not counter.settle(ticket, 0)
        assert counter.figures() == (10, 60)
        assert counter.settle(again)
        assert counter.figures() == (70, 0)

    def test_what_is_no_ticket_changes_nothing(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100)
        cell_of_counter = next(cell for cell in range(256) if cell != ticket & 0xFFFFFF)
        for other in (0, 2**56, 2**63 - 1, ticket + (1 << 24), cell_of_counter | 1 << 24):
            assert not counter.settle(other, 0)
            assert not counter.sent(other)
        assert counter.figures() == (0, 60)

    def test_a_ticket_is_worth_nothing_in_another_process(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100)

        def child() -> None:
            segment.slot()
            assert not counter.sent(ticket)
            assert not counter.settle(ticket, 0)

        assert ended(forked(child)) == 0
        assert counter.settle(ticket, 5)

    def test_a_late_settle_takes_the_place_of_the_estimate(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100, T + 10)
        assert counter.sent(ticket)
        assert _core.sweep_reservations(segment, T + 9) == 0
        assert _core.sweep_reservations(segment, T + 10) == 1
        assert counter.figures() == (60, 0)
        assert not counter.sent(ticket)
        assert counter.settle(ticket, 25)
        assert counter.figures() == (25, 0)
        assert not counter.settle(ticket, 0)

    def test_too_late_the_estimate_stands(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100, T)
        counter.sent(ticket)
        for now in (T, T + HOUR + 1):
            _core.sweep_reservations(segment, now)
        assert not counter.settle(ticket, 25)
        assert counter.figures() == (60, 0)

    def test_unsent_it_is_given_back(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 60, 100, T)
        assert _core.sweep_reservations(segment, T) == 1
        assert not counter.sent(ticket)
        assert counter.figures() == (0, 0)


class TestWindows:
    def test_only_the_first_begins_a_window(self, segment: Segment) -> None:
        one, other = Counter(segment, "a"), Counter(segment, "a")
        before = other.stamp
        assert one.begin(before, 7, 10)
        assert not other.begin(before, 7, 20)
        assert other.figures() == (10, 0)
        assert (one.window, other.window) == (7, 7)

    def test_calls_over_the_boundary_leave_the_new_window_alone(self, segment: Segment) -> None:
        counter = begun(segment)
        old = [reserve(counter, 10, 1000) for _ in range(50)]
        assert all(counter.sent(ticket) for ticket in old[::2])
        assert counter.begin(counter.stamp, 9, 30)
        new = [reserve(counter, 10, 1000) for _ in range(50)]
        assert all(counter.settle(ticket, 7) for ticket in old)
        assert counter.figures() == (30, 500)
        assert all(counter.settle(ticket, 7) for ticket in new)
        assert counter.figures() == (380, 0)

    def test_the_same_window_begun_again_is_another(self, segment: Segment) -> None:
        counter = begun(segment)
        ticket = reserve(counter, 10, 1000)
        for window in (9, 7):
            assert counter.begin(counter.stamp, window, 5)
        assert counter.settle(ticket, 100)
        assert counter.figures() == (5, 0)

    def test_an_alert_is_given_once_a_window(self, segment: Segment) -> None:
        counter = begun(segment)
        stamp = counter.stamp
        assert [counter.alert(stamp, bit) for bit in (0, 7, 0, 7)] == [True, True, False, False]
        assert counter.begin(stamp, 8, 0, alerts=0b10)
        assert not counter.alert(stamp, 3)
        assert [counter.alert(counter.stamp, bit) for bit in (0, 1)] == [True, False]


# ------------------------------------------------------------------------------------------------- at once


def test_of_128_threads_ten_get_a_share_of_ten(segment: Segment) -> None:
    counter = begun(segment)
    barrier = threading.Barrier(128)
    found: list[int] = []

    def ask() -> None:
        barrier.wait()
        found.append(reserve(counter, 10, 100))

    threads = [threading.Thread(target=ask) for _ in range(128)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ticket >= 0 for ticket in found) == 10
    assert counter.figures() == (0, 100)


def test_two_that_settle_at_once_settle_once(segment: Segment) -> None:
    counter = begun(segment)
    for _ in range(50):
        ticket = reserve(counter, 10, 10**6)
        barrier = threading.Barrier(4)
        settled: list[int] = []

        def settle(cost: int, ticket: int, barrier: threading.Barrier, settled: list[int]) -> None:
            barrier.wait()
            if counter.settle(ticket, cost):
                settled.append(cost)

        before = counter.committed - 10
        threads = [
            threading.Thread(target=settle, args=(cost, ticket, barrier, settled)) for cost in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(settled) == 1
        assert counter.committed == before + settled[0]


def test_processes_together_never_pass_the_limit_and_leave_exact_sums(segment: Segment) -> None:
    counter = begun(segment)
    seen = segment.slot()
    limit, sums = 1000, []
    for number in range(4):
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            random.seed(number)
            spent, over = 0, 0
            for _ in range(3000):
                amount = random.randrange(400)
                ticket = reserve(counter, amount, limit)
                over += counter.committed > limit
                if ticket >= 0:
                    cost = random.choice((0, 0, amount, 1)) if spent < 200 else 0
                    cost = min(cost, amount)
                    spent += cost * counter.settle(ticket, cost)
            os.write(writable, b"%d %d" % (spent, over))
            os._exit(0)
        os.close(writable)
        sums.append((readable, pid))
    total = 0
    for readable, pid in sums:
        with open(readable, "rb") as pipe:
            spent, over = map(int, pipe.read().split())
        os.waitpid(pid, 0)
        assert over == 0
        total += spent
    assert counter.figures() == (total, 0)
    assert segment.slot() == seen


# -------------------------------------------------------------------------------------- killed between writes

MOST_WRITES = 40


def die_at(write: int, work: Callable[[], object]) -> bool:
    """Runs ``work`` in a child killed before its n-th write; whether it was killed."""

    def armed() -> None:
        _core.die_after(write)
        work()

    status = ended(forked(armed))
    assert status in (0, -signal.SIGKILL)
    return status != 0


def reserve_only(counter: Counter) -> None:
    reserve(counter, 60, 100)


def reserve_and_send(counter: Counter) -> None:
    counter.sent(reserve(counter, 60, 100))


def settle_sent(counter: Counter) -> None:
    ticket = reserve(counter, 60, 100)
    counter.sent(ticket)
    counter.settle(ticket, 25)


def release(counter: Counter) -> None:
    counter.settle(reserve(counter, 60, 100), 0)


def settle_late(counter: Counter) -> None:
    ticket = reserve(counter, 60, 100, T)
    counter.sent(ticket)
    _core.sweep_reservations(counter.segment, T)
    counter.settle(ticket, 25)


def swept(counter: Counter) -> None:
    reserve(counter, 60, 100, T)
    _core.sweep_reservations(counter.segment, T)


# What may be spent afterwards, by what the child did: nothing, the estimate, or the cost.
WORK: dict[Callable[[Counter], None], set[int]] = {
    reserve_only: {0},
    reserve_and_send: {0, 60},
    settle_sent: {0, 60, 25},
    release: {0},
    settle_late: {0, 60, 25},
    swept: {0},
}


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("others", ["nobody", "reserve", "settle"])
def test_a_kill_before_any_write_leaves_nothing_reserved(
    segment: Segment, work: Callable[[Counter], None], others: str
) -> None:
    """Others may come across the half-done change before anybody has cleaned up, in either way."""
    ends: dict[Callable[[Counter], None], int] = {settle_sent: 25, settle_late: 25, reserve_and_send: 60}
    last = None
    for write in range(1, MOST_WRITES):
        counter = begun(segment, 0, f"{work.__name__} {write}")
        stamp = counter.stamp
        ticket = counter.reserve(stamp, 30, 30, FAR) if others == "settle" else -1
        killed = die_at(write, lambda counter=counter: work(counter))  # type: ignore[misc]
        if others == "reserve":
            ticket = counter.reserve(stamp, 30, 10**6, FAR)
        if ticket >= 0:
            assert counter.settle(ticket, 3)
        segment.reap()
        spent, reserved = counter.figures()
        spent -= 3 * (others != "nobody")
        assert reserved == 0
        assert spent in WORK[work]
        assert reserve(counter, 5, 10**6) >= 0
        assert counter.figures()[1] == 5
        last = spent
        if not killed:
            break
    else:
        pytest.fail("it never got to its end")
    assert write > 4
    assert last == ends.get(work, 0)


def test_once_sent_a_kill_never_gives_it_back_unasked(segment: Segment) -> None:
    """Whenever it dies, what was sent is spent: the estimate, or the cost once that is written down."""
    spent = []
    for write in range(1, MOST_WRITES):
        counter = begun(segment, 0, f"{write}")

        def child(counter: Counter = counter, write: int = write) -> None:
            ticket = reserve(counter, 60, 100)
            counter.sent(ticket)
            _core.die_after(write)
            counter.settle(ticket, 25)

        status = ended(forked(child))
        segment.reap()
        spent.append(counter.figures())
        if status == 0:
            break
    assert set(spent) == {(60, 0), (25, 0)}
    assert spent == sorted(spent, reverse=True)


@pytest.mark.parametrize("stage", [3, 6, 8, 9, 10, 11, 12, 13])
def test_whoever_cleans_up_may_be_killed_too(segment: Segment, stage: int) -> None:
    for write in range(1, MOST_WRITES):
        counter = begun(segment, 0, f"{stage} {write}")
        die_at(stage, lambda counter=counter: settle_sent(counter))  # type: ignore[misc]
        killed = die_at(write, segment.reap)
        segment.reap()
        spent, reserved = counter.figures()
        assert reserved == 0
        assert spent in WORK[settle_sent]
        if not killed:
            return
    pytest.fail("it never got to its end")


def test_a_window_half_begun_is_finished_by_the_next(segment: Segment) -> None:
    for write in range(1, MOST_WRITES):
        counter = begun(segment, 90, f"{write}")
        old = reserve(counter, 5, 1000)
        stamp = counter.stamp
        killed = die_at(write, lambda counter=counter, stamp=stamp: counter.begin(stamp, 9, 11, 1))  # type: ignore[misc]
        if counter.window == 9:
            assert counter.figures() == (11, 0)
            assert not counter.alert(counter.stamp, 0)
            assert reserve(counter, 5, 100) >= 0
            assert counter.settle(old, 50)
            assert counter.figures() == (11, 5)
        else:
            assert counter.figures() == (90, 5)
            assert counter.begin(stamp, 9, 11, 1)
        if not killed:
            return
    pytest.fail("it never got to its end")


def test_many_kills_at_once_leave_exact_sums(segment: Segment) -> None:
    """Children die somewhere in their work while others go on; what was not sent comes back whole."""
    counter = begun(segment)
    pids = []
    for number in range(40):
        pid = os.fork()
        if pid == 0:
            _core.die_after(17 + 7 * number)
            while True:
                ticket = reserve(counter, 10, 10**6)
                counter.settle(ticket, 0)
        pids.append(pid)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    while segment.reap():
        pass
    assert counter.figures() == (0, 0)
    assert counter.committed == 0


# What something else may have written into a file's cells: kind of the cell, word, value. Each names a cell
# that is not there: bits 2-25 of a mark, and word 5 of a reservation.
STRAY = {
    "mark of a reservation": (10, 3, 5 << 26 | 0xFFFFFF << 2 | 1),
    "mark of a settlement": (10, 3, 5 << 26 | 0xFFFFFF << 2 | 2),
    "counter of a reservation": (11, 5, 1 << 40),
}


@pytest.mark.parametrize("stray", STRAY)
def test_an_index_beyond_the_table_does_not_lead_out_of_the_mapping(tmp_path: Path, stray: str) -> None:
    kind, word, value = STRAY[stray]
    with open(tmp_path / "state", "w+b") as file:
        file.truncate(Segment.size(256))
        segment = Segment.in_file(file.fileno(), True)
        memory = mmap.mmap(file.fileno(), 0)

    def work() -> None:
        counter = begun(segment, 40)
        ticket = reserve(counter, 10, 100)
        for place in range(Segment.size(256) - 256 * 64, Segment.size(256), 64):
            if memory[place] & 15 == kind:
                struct.pack_into("<Q", memory, place + 8 * word, value)
        counter.settle(ticket, 5)
        counter.figures()
        _core.sweep_reservations(segment, FAR + 1)
        assert counter.damaged == (kind == 10)
        assert not counter.damaged or counter.begin(counter.stamp, 7, 40)
        assert reserve(counter, 10, 100) >= 0

    assert ended(forked(work)) == 0


def cells_of(memory: mmap.mmap, kind: int) -> list[int]:
    """Where the cells of a kind are in a segment's file."""
    return [place for place in range(66 * 64, len(memory), 64) if memory[place] & 15 == kind]


def each_byte(first: int, end: int) -> list[tuple[int, int]]:
    """Every byte of a cell from one to another, with each value that it is changed to: 0, 255 and any."""
    other = random.Random(7)
    return [(byte, value) for byte in range(first, end) for value in (0, 255, other.randrange(256))]


@pytest.fixture
def memory(tmp_path: Path) -> mmap.mmap:
    with open(tmp_path / "state", "w+b") as file:
        file.truncate(Segment.size(256))
        return mmap.mmap(file.fileno(), 0)


def in_memory(memory: mmap.mmap, tmp_path: Path) -> Segment:
    memory[:] = bytes(len(memory))
    with open(tmp_path / "state", "r+b") as file:
        return Segment.in_file(file.fileno(), True)


class TestDamage:
    """One byte of a counter, or of a reservation, is changed by something else."""

    @pytest.mark.parametrize("held", [10, 0])
    def test_a_counter_never_has_more_room_than_before(
        self, memory: mmap.mmap, tmp_path: Path, held: int
    ) -> None:
        damaged = 0
        for byte, value in each_byte(8, 64):
            segment = in_memory(memory, tmp_path)
            counter = begun(segment, 40)
            ticket = reserve(counter, held, 100) if held else -1
            (cell,) = cells_of(memory, 10)
            memory[cell + byte] = value
            if counter.damaged:
                damaged += 1
                assert counter.window == 0
                assert counter.begin(counter.stamp, 7, 40)
                assert not counter.damaged
            assert counter.committed == 40 + held, (byte, value)
            assert reserve(counter, 61 - held, 100) == OVER_LIMIT
            if held:
                assert counter.settle(ticket, 5)
                assert counter.committed in (45, 50)  # under the stamp of before nothing is given back
            assert reserve(counter, 40, 100) >= 0
        assert damaged > 20

    def test_a_reservation_that_has_ended_does_not_come_back(self, memory: mmap.mmap, tmp_path: Path) -> None:
        for byte, value in [(8, value) for value in range(256)] + each_byte(8, 64):
            segment = in_memory(memory, tmp_path)
            counter = begun(segment, 40)
            ticket = reserve(counter, 30, 100)
            assert counter.settle(ticket, 20)
            memory[66 * 64 + (ticket & 0xFFFFFF) * 64 + byte] = value
            assert counter.figures() == (60, 0), (byte, value)
            _core.sweep_reservations(segment, FAR + 1)
            segment.reap()
            assert counter.committed == 60, (byte, value)

    @pytest.mark.parametrize("sent", [True, False])
    def test_a_reservation_takes_nothing_but_itself(
        self, memory: mmap.mmap, tmp_path: Path, sent: bool
    ) -> None:
        for byte, value in each_byte(0, 64):
            segment = in_memory(memory, tmp_path)
            counter, other = begun(segment, 40), begun(segment, 7, "b")
            ticket, beside = reserve(counter, 30, 100), reserve(other, 5, 100)
            assert not sent or counter.sent(ticket)
            memory[66 * 64 + (ticket & 0xFFFFFF) * 64 + byte] = value
            counter.settle(ticket, 10)
            _core.sweep_reservations(segment, FAR + 1)
            assert counter.committed in (40, 50, 70), (byte, value)
            assert counter.committed >= (50 if sent else 40)
            assert reserve(counter, 30, 100) >= 0
            assert other.figures() == (7, 0)
            assert not other.settle(beside, 5)
