"""Counters of many values in few cells: a cell is given away only when its sum can be looked up again."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from pathlib import Path

import pytest
from children import ended, forked

from fastroute import _core
from fastroute._core import OTHER_WINDOW, OVER_LIMIT, Counter, Segment, claim_counter, find_counter

T = 10**15
DAY = 86_400 * 10**9
FAR = T + DAY
CELLS = 32  # of a segment of 64, for values


@pytest.fixture
def segment() -> Segment:
    return Segment(64)


def claim(
    segment: Segment, name: str, *, window: int = 7, now: int = T, spent: int = 0, group: str = ""
) -> Counter | None:
    """The counter, begun with what was spent; None if no cell can be had."""
    counter = claim_counter(segment, name, window, FAR, group=group, now=now)
    if counter is not None and counter.window == 0:
        counter.begin(counter.stamp, window, spent)
    return counter


def spend(counter: Counter, nano: int, *, recorded: bool = True, limit: int = 1000) -> None:
    ticket = counter.reserve(counter.stamp, nano, limit, FAR)
    assert ticket >= 0
    counter.sent(ticket)
    counter.settle(ticket, nano, recorded=recorded)


def test_a_name_has_one_cell_and_finds_it_again(segment: Segment) -> None:
    one, again, other = claim(segment, "a"), claim(segment, "a"), claim(segment, "b")
    assert one is not None
    assert again is not None
    assert other is not None
    spend(one, 5)
    assert (again.committed, other.committed) == (5, 0)
    found = find_counter(segment, "a", 7)
    assert found is not None
    assert found.committed == 5
    assert find_counter(segment, "a", 8) is None
    assert find_counter(segment, "c", 7) is None


def test_a_million_names_take_no_more_cells_than_a_hundred(segment: Segment) -> None:
    for number in range(100):
        counter = claim(segment, str(number), now=T + number)
        assert counter is not None
        spend(counter, 1)
    used = segment.used
    assert used <= CELLS + 1  # and a reservation's
    for number in range(10_000):
        counter = claim(segment, f"x{number}", now=T + number)
        assert counter is not None
        spend(counter, 1)
    assert segment.used == used


def test_a_counter_whose_cell_was_given_away_refuses_everything(segment: Segment) -> None:
    first = claim(segment, "a")
    assert first is not None
    stamp = first.stamp
    for number in range(200):
        assert claim(segment, f"x{number}", now=T + number * 2**31) is not None
    assert first.lost
    assert (first.stamp, first.window) == (0, 0)
    assert first.reserve(stamp, 5, 1000, FAR) == OTHER_WINDOW
    assert not first.begin(stamp, 7, 0)
    assert not first.alert(stamp, 0)
    assert not first.grant(stamp, 5)
    again = claim(segment, "a", now=T + 300 * 2**31, spent=17)
    assert again is not None
    assert (again.committed, again.lost) == (17, False)


@pytest.mark.parametrize(
    "kept", ["reserved", "sent", "late", "killed", "not recorded", "granted", "not granted"], ids=str
)
def test_a_cell_is_kept_while_its_sum_is_nowhere_else(segment: Segment, kept: str) -> None:
    shared = "granted" in kept
    counter = claim_counter(segment, "a", 7, FAR, shared=shared, now=T)
    assert counter is not None
    assert counter.begin(counter.stamp, 7, 0)
    ticket = None
    if kept == "granted":
        counter.grant(counter.stamp, 9)  # and not spent: the bank counts it as this machine's
    elif kept == "not granted":
        spend(counter, 9)  # the bank does not know of it yet
    elif kept == "not recorded":
        spend(counter, 9, recorded=False)
    elif kept == "killed":

        def work() -> None:
            counter.sent(counter.reserve(counter.stamp, 9, 1000, FAR))
            os.kill(os.getpid(), signal.SIGKILL)

        assert ended(forked(work)) == -signal.SIGKILL
        assert segment.reap() == 1
    else:
        ticket = counter.reserve(counter.stamp, 9, 1000, FAR if kept == "reserved" else T)
        if kept != "reserved":
            counter.sent(ticket)
        if kept == "late":
            assert _core.sweep_reservations(segment, T) == 1
    others = [claim(segment, f"x{number}", now=T + number * 2**31) for number in range(300)]
    assert not counter.lost
    assert None not in others
    # Once it is nowhere else only, or the window is over, it may go.
    later = T + 300 * 2**31
    if kept == "granted":
        spend(counter, 9)
    elif kept == "not granted":
        assert counter.grant(counter.stamp, 9)
    elif ticket is not None:
        assert counter.settle(ticket, 3)
    else:
        later = FAR + 2**41
    for number in range(300):
        claim_counter(segment, f"y{number}", 8, later + DAY, now=later + number * 2**31)
    assert counter.lost


def test_a_full_table_refuses_a_new_name_and_serves_the_known_ones(segment: Segment) -> None:
    held = []
    for number in range(400):
        counter = claim(segment, str(number), now=T + number)
        if counter is not None:
            spend(counter, 1, recorded=False)
            held.append(counter)
    assert CELLS // 2 < len(held) <= CELLS
    assert claim(segment, "one more") is None or len(held) < CELLS
    assert not any(counter.lost for counter in held)
    for number in range(400):  # the window has ended
        assert claim(segment, str(number), window=8, now=FAR + 2**41 + number) is not None


def test_one_group_leaves_cells_for_the_others() -> None:
    segment = Segment(1024)
    held = 0
    for number in range(4000):
        counter = claim(segment, f"a{number}", group="a", now=T + number)
        if counter is not None:
            spend(counter, 1, recorded=False)
            held += 1
    assert held < 512
    others = [claim(segment, f"b{number}", group="b", now=T) for number in range(40)]
    assert None not in others


def test_a_group_at_its_share_takes_cells_of_its_own_only() -> None:
    segment = Segment(64)
    theirs = []
    for number in range(100):
        counter = claim(segment, f"b{number}", group="b", now=T)
        assert counter is not None
    for number in range(CELLS):
        counter = claim(segment, f"b{number}", group="b", now=T)
        assert counter is not None
        theirs.append(counter)
    before = sum(not counter.lost for counter in theirs)
    for number in range(1000):
        claim(segment, f"a{number}", group="a", now=T + 2**31 * (1 + number % 60))
    left = sum(not counter.lost for counter in theirs)
    assert before >= left >= 4


class Books:
    """A ledger in shared memory: what each process has recorded for each name."""

    def __init__(self, names: int, processes: int) -> None:
        self.names = names
        self.memory = mmap.mmap(-1, 8 * names * processes)
        self.columns = processes

    def add(self, process: int, name: int, nano: int) -> None:
        place = 8 * (process * self.names + name)
        known = int.from_bytes(self.memory[place : place + 8], "little")
        self.memory[place : place + 8] = (known + nano).to_bytes(8, "little")

    def sum(self, name: int) -> int:
        places = (8 * (process * self.names + name) for process in range(self.columns))
        return sum(int.from_bytes(self.memory[place : place + 8], "little") for place in places)


def patiently(segment: Segment, name: str) -> Counter | None:
    while True:
        try:
            return claim_counter(segment, name, 7, _core.clock() + DAY)
        except BlockingIOError:
            time.sleep(0.0002)


def buy(segment: Segment, books: Books, process: int, name: int, limit: int) -> bool:
    """One call of a value: reserve, record, settle. False if its money is spent."""
    while True:
        counter = patiently(segment, str(name))
        if counter is None:
            continue
        stamp = counter.stamp
        if counter.lost:
            continue
        if stamp >> 24 == 0:
            # The sum is read after the stamp: what is recorded later was reserved under another one.
            counter.begin(stamp, 7, books.sum(name))
            continue
        ticket = counter.reserve(stamp, 1, limit - 1, _core.clock() + DAY)
        if ticket == OTHER_WINDOW:
            continue
        if ticket == OVER_LIMIT:
            return False
        counter.sent(ticket)
        books.add(process, name, 1)
        counter.settle(ticket, 1)
        return True


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_processes_spend_each_limit_to_the_last_nano_while_cells_are_given_away() -> None:
    """Two hundred values of ten calls each, in 32 cells: no call too many, none too few."""
    names, limit, processes = 200, 10, 4
    segment, books = Segment(64), Books(names, processes)

    def work(process: int) -> None:
        draw = random.Random(process)
        left = list(range(names))
        while left:
            name = draw.choice(left)
            if not buy(segment, books, process, name, limit):
                left.remove(name)

    pids = [forked(lambda process=process: work(process)) for process in range(processes)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0] * processes
    assert [books.sum(name) for name in range(names)] == [limit] * names


MOST_WRITES = 60


def test_a_worker_killed_before_any_write_leaves_every_sum_right() -> None:
    """Of a claim that takes the cell of another name, begins its window and spends in it."""
    for write in range(1, MOST_WRITES):
        segment, books = Segment(64), Books(100, 2)
        for name in range(90):
            assert buy(segment, books, 0, name, 5)

        def work(segment: Segment = segment, books: Books = books, write: int = write) -> None:
            _core.die_after(write)
            buy(segment, books, 1, 95, 5)

        killed = ended(forked(work)) != 0
        while segment.reap():
            pass
        # A request that was sent and not settled counts as spent, whether it was recorded or not.
        counter = patiently(segment, "95")
        lost = 0
        if counter is not None and counter.window == 7:
            lost = counter.committed - books.sum(95)
        assert lost in (0, 1)
        for name in (*range(90), 95):
            while buy(segment, books, 0, name, 5):
                pass
            assert books.sum(name) == 5 - (lost if name == 95 else 0)
        if not killed:
            return
    pytest.fail("it never got to its end")


def test_a_worker_that_is_killed_while_it_claims_is_replaced() -> None:
    segment = Segment(64)

    def work() -> None:
        # Killed at its first write, which is inside of the claim.
        _core.die_after(1)
        claim_counter(segment, "a", 7, FAR, now=T)

    assert ended(forked(work)) == -signal.SIGKILL
    counter = claim(segment, "b")
    assert counter is not None
    assert claim(segment, "a") is not None


@pytest.mark.parametrize(
    "word", range(8), ids=["key", "window", "value", "mark", "owner", "use", "grant", "stamp"]
)
def test_damage_costs_one_counter_and_no_crash(tmp_path: Path, word: int) -> None:
    with open(tmp_path / "state", "w+b") as file:
        file.truncate(Segment.size(64))
        segment = Segment.in_file(file.fileno(), True)
        memory = mmap.mmap(file.fileno(), 0)
    names = [str(number) for number in range(20)]
    draw = random.Random(word)

    def work() -> None:
        for value in (0, 255, None):
            for name in names:
                counter = claim(segment, name)
                # A cell whose key is lost is given to nobody, so there are fewer then.
                assert counter is not None or word == 0
                if counter is not None:
                    spend(counter, 1)
            places = [place for place in range(66 * 64, len(memory), 64) if memory[place] & 15 == 10]
            for place in places:
                at = place + 8 * word + draw.randrange(8)
                memory[at] = draw.randrange(256) if value is None else value
                for name in names:
                    counter = claim(segment, name)
                    if counter is not None and counter.window == 7:
                        counter.settle(counter.reserve(counter.stamp, 1, 1000, FAR), 1)
                        counter.figures()
                        assert 0 <= counter.granted <= _core.MOST_NANO
                segment.reap()
                _core.sweep_reservations(segment, T)

    assert ended(forked(work)) == 0
