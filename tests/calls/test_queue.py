"""Waiting for limits: the order, the wake-ups, and that nothing is lost if a waiter leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import _core
from fastroute.calls.queue import ReservedTime, ReservedTimes, Waiter, WaitQueue

HIGH, NORMAL, LOW = range(3)


CORE = _core.Endpoint(_core.Segment(64), "a", max_in_flight=1)


def stand(queue: WaitQueue, rank: int, *names: str) -> Waiter:
    """One that has joined these queues and does not sleep yet."""
    waiter = queue.enter(queue.waiter(rank))
    queue.wait(waiter, names, CORE, 10)  # returns at once, because it joins
    return waiter


class TestPermits:
    def test_the_first_who_came_is_woken_and_the_next_when_it_leaves(self) -> None:
        queue = WaitQueue()
        first, second = stand(queue, NORMAL, "a"), stand(queue, NORMAL, "a")
        queue.freed("b")
        assert not first.awake
        queue.freed("a")
        assert first.awake
        assert not second.awake
        queue.leave(first)
        assert second.awake
        queue.leave(second)
        assert (queue.waiting, queue.waiters) == (0, {})

    def test_a_higher_class_goes_first(self) -> None:
        queue = WaitQueue()
        low, normal, high = stand(queue, LOW, "a"), stand(queue, NORMAL, "a"), stand(queue, HIGH, "a")
        order = []
        while queue.waiting:
            queue.freed("a")
            waiter = next(each for each in (low, normal, high) if each.names and each.awake)
            order.append(waiter)
            queue.leave(waiter)
        assert order == [high, normal, low]

    def test_nobody_overtakes_but_by_class(self) -> None:
        queue = WaitQueue()
        waiting = stand(queue, NORMAL, "a")
        assert queue.is_behind("a", NORMAL, None)
        assert queue.is_behind("a", LOW, None)
        assert not queue.is_behind("a", HIGH, None)
        assert not queue.is_behind("b", LOW, None)
        assert not queue.is_behind("a", NORMAL, waiting)
        later = stand(queue, NORMAL, "b")
        assert queue.is_behind("a", NORMAL, later)
        queue.leave(waiting)
        assert not queue.is_behind("a", NORMAL, later)

    def test_a_waiter_follows_what_it_waits_for(self) -> None:
        queue = WaitQueue()
        mover, other = stand(queue, NORMAL, "a", "b"), stand(queue, NORMAL, "a")
        queue.wait(mover, ["b"], CORE, 0)
        assert other.awake
        queue.freed("b")
        assert mover.awake
        queue.leave(mover)
        queue.leave(other)
        assert queue.waiters == {}

    def test_all_look_again_when_limits_change(self) -> None:
        queue = WaitQueue()
        waiters = [stand(queue, NORMAL, "a"), stand(queue, NORMAL, "a"), stand(queue, LOW, "b")]
        queue.look()
        assert all(waiter.awake for waiter in waiters)

    def test_who_joins_a_line_asks_once_more_before_it_sleeps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []
        monkeypatch.setattr(Waiter, "sleep", lambda waiter, seconds: slept.append(seconds))
        core = _core.Endpoint(_core.Segment(64), "a", max_in_flight=1)
        queue = WaitQueue()
        waiter = queue.enter(queue.waiter(NORMAL))
        queue.freed("a")  # between a refusal and the line: nobody stands there to be woken
        queue.wait(waiter, ["a"], core, 10)
        assert slept == []
        queue.wait(waiter, ["a"], core, 10)
        assert len(slept) == 1
        queue.wait(waiter, ["a", "b"], core, 10)
        assert len(slept) == 1
        queue.wait(waiter, ["b"], core, 10)
        assert len(slept) == 2
        queue.leave(waiter)

    @pytest.mark.parametrize("limit", [1, 3])
    def test_threads_get_every_permit_and_none_more(self, limit: int) -> None:
        core = _core.Endpoint(_core.Segment(64), "a", max_in_flight=limit)
        queue = WaitQueue()
        under, most, done = [0], [0], []
        counting = threading.Lock()

        def work(rank: int) -> None:
            for _ in range(20):
                waiter = queue.enter(queue.waiter(rank))
                while queue.is_behind("a", rank, waiter) or (ticket := core.admit()) < 0:
                    queue.wait(waiter, ["a"], core, 10)
                queue.leave(waiter)
                with counting:
                    under[0] += 1
                    most[0] = max(most[0], under[0])
                with counting:
                    under[0] -= 1
                core.finish(ticket, _core.OK)
                queue.freed("a")
            done.append(rank)

        workers = [threading.Thread(target=work, args=(rank % 3,)) for rank in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert sorted(done) == [0, 0, 0, 1, 1, 1, 2, 2]
        assert most[0] <= limit
        assert (queue.waiting, queue.waiters, core.in_flight) == (0, {}, 0)


class Watched(Waiter):
    """One whose sleep is the test's."""

    def __init__(self, queue: WaitQueue, rank: int, sleep: Callable[[Waiter], None]) -> None:
        super().__init__(queue.enter(queue.waiter(rank)).key)
        self._sleep = sleep

    def sleep(self, seconds: float) -> None:
        self._sleep(self)


class TestTimes:
    def add(self, times: ReservedTimes, *entries: tuple[int, float, int]) -> list[ReservedTime]:
        """Entries of (class, due, tokens) in the order of their coming."""
        made = []
        for rank, due, tokens in entries:
            made.append(ReservedTime(Waiter((rank, int(due))), due, tokens))
            times.insert(made[-1])
        return made

    def test_equals_keep_their_order(self) -> None:
        times = self.add(ReservedTimes(), (NORMAL, 1, 5), (NORMAL, 2, 5), (NORMAL, 3, 5))
        assert [time.due for time in times] == [1, 2, 3]

    def test_a_higher_class_takes_the_first_time_of_a_lower_which_all_move_back_by_one(self) -> None:
        reserved = ReservedTimes()
        times = self.add(reserved, (LOW, 1, 5), (HIGH, 2, 5), (LOW, 3, 5), (NORMAL, 4, 5))
        low, high, last, normal = (time.due for time in times)
        assert (high, normal, low, last) == (1, 2, 3, 4)
        assert reserved.entries == sorted(times, key=lambda time: time.due)

    def test_a_time_that_too_little_was_paid_for_is_not_taken(self) -> None:
        small, large = self.add(ReservedTimes(), (LOW, 1, 5), (HIGH, 2, 50))
        assert (small.due, large.due) == (1, 2)

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(0, 9), st.none() | st.just("goes in") | st.integers(0, 11)
            ),
            min_size=1,
            max_size=12,
        )
    )
    def test_at_no_time_more_has_gone_in_than_was_paid(self, calls: list[tuple[int, int, Any]]) -> None:
        reserved = ReservedTimes()
        used = paid = gone = returned = 0
        waiting: list[ReservedTime] = []
        for due, (rank, tokens, what) in enumerate(calls):
            waiting += self.add(reserved, (rank, due, tokens))
            if what == "goes in":  # the first, before the next one comes
                first = reserved.entries[0]
                reserved.withdraw(first, False)
                waiting.remove(first)
                used += first.tokens
                gone += 1
            elif what is not None:  # gets its payment back
                away = waiting.pop(what % len(waiting))
                before = {id(time): time.due for time in waiting}
                reserved.withdraw(away, True)
                returned += away.tokens
                if len({tokens for _, tokens, _ in calls}) == 1:
                    assert all(time.due <= before[id(time)] for time in waiting)
            if not reserved.entries:
                reserved = ReservedTimes()  # as the queue does
        total = sum(tokens for _, tokens, _ in calls)
        assert sum(time.tokens for time in waiting) == total - used - returned
        for due, (_, tokens, _) in enumerate(calls):
            paid += tokens
            now = [time for time in waiting if time.due <= due]
            assert gone + len(now) <= max(due + 1, gone)
            if now:
                assert used + sum(time.tokens for time in now) <= paid
        assert all(time.due < len(calls) for time in waiting)
        assert reserved.credit + sum(time.paid for time in waiting) == sum(time.tokens for time in waiting)
        assert [time.due for time in reserved.entries] == sorted(time.due for time in waiting)

    def test_who_gives_up_delays_nobody_behind(self) -> None:
        reserved = ReservedTimes()
        times = self.add(reserved, (NORMAL, 1, 5), (NORMAL, 2, 5), (LOW, 3, 5), (NORMAL, 4, 5))
        reserved.withdraw(times[0], True)
        assert [time.due for time in times[1:]] == [1, 3, 2]
        assert all(time.waiter.awake for time in times[1:])
        reserved.withdraw(times[0], True)  # again, as after an interrupt: nothing more
        assert [time.due for time in times[1:]] == [1, 3, 2]

    def test_the_last_reserved_time_says_how_long_the_line_is(self) -> None:
        now = [100.0]
        queue = WaitQueue(lambda: now[0])
        assert queue.reserved("a") == 0.0
        times = queue.times["a"] = ReservedTimes()
        assert queue.reserved("a") == 0.0
        self.add(times, (NORMAL, 103, 5), (NORMAL, 107, 5), (HIGH, 110, 5))
        assert queue.reserved("a") == 10.0
        assert queue.reserved("b") == 0.0
        now[0] = 109.0
        assert queue.reserved("a") == 1.0
        now[0] = 111.0  # it is due, and its call has not gone in yet
        assert 0 < queue.reserved("a") < 1e-6

    def test_a_call_pays_sleeps_once_and_goes_in(self) -> None:
        core = _core.Endpoint(_core.Segment(64), "a", rpm=60_000, request_burst=1)
        queue = WaitQueue()
        waiter = queue.enter(queue.waiter(NORMAL))
        assert core.admit() >= 0
        assert queue.reserved("a") == 0
        assert queue.sleep(waiter, "a", core, 0, 10, lambda: core.admit(0, 0, True)) >= 0
        queue.leave(waiter)
        assert queue.times == {}

    def test_longer_than_its_patience_is_refused_with_the_time_it_would_take(self) -> None:
        core = _core.Endpoint(_core.Segment(64), "a", rpm=1, request_burst=1)
        queue = WaitQueue()
        waiter = queue.enter(queue.waiter(NORMAL))
        core.admit()
        answer = queue.sleep(waiter, "a", core, 0, 1, lambda: core.admit(0, 0, True))
        assert -answer & 7 == _core.REQUESTS
        assert 58e9 < -answer >> 3 <= 60e9
        assert core.available_requests() == 0

    def test_one_pushed_beyond_its_patience_gets_its_payment_back(self) -> None:
        now = [0.0]
        core = _core.Endpoint(_core.Segment(64), "a", rpm=60, request_burst=1)
        queue = WaitQueue(lambda: now[0])
        core.admit()

        def push(waiter: Waiter) -> None:
            queue.times["a"].insert(ReservedTime(queue.enter(queue.waiter(HIGH)), 60.0, 0))
            assert waiter.awake

        low = Watched(queue, LOW, push)
        free = core.available_requests()
        answer = queue.sleep(low, "a", core, 0, 5.0, lambda: core.admit(0, 0, True))
        assert answer < 0
        assert -answer & 7 == _core.REQUESTS
        assert core.available_requests() == free

    def test_an_interrupted_sleep_gives_its_payment_back(self) -> None:
        core = _core.Endpoint(_core.Segment(64), "a", rpm=60, request_burst=1)
        queue = WaitQueue()
        core.admit()
        before = core.wait()

        def interrupted(waiter: Waiter) -> None:
            raise KeyboardInterrupt

        waiter = Watched(queue, NORMAL, interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.sleep(waiter, "a", core, 0, 5.0, lambda: core.admit(0, 0, True))
        assert queue.times == {}
        assert (-core.wait() >> 3) <= (-before >> 3)
