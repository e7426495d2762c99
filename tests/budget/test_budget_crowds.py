"""Budgets: cancelled calls, kills, forks and many threads leave nothing reserved."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable

import pytest
from budget_clock import NANO, Clock, Make, Spending, budget, figures, run_all
from children import ended, forked

from fastroute import errors


def test_of_128_threads_a_budget_for_ten_admits_ten(make: Make) -> None:
    budgets = make(budget(limit=10), budget("team", 50, per="tag:team"))
    barrier, admitted = threading.Barrier(128), []

    def call() -> None:
        barrier.wait()
        try:
            held = budgets.reserve(NANO, {"team": "red"}, 60)
        except errors.BudgetExceeded:
            return
        held.sent()
        admitted.append(held)

    run_all([threading.Thread(target=call) for _ in range(128)])
    assert len(admitted) == 10
    assert set(figures(budgets).values()) == {(0, 10 * NANO)}
    for held in admitted:
        held.settle(NANO - 1)
    assert set(figures(budgets).values()) == {(10 * NANO - 10, 0)}


def test_a_lease_that_ran_out_forbids_sending(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10), budget("month", 10, "month"))
    held = budgets.reserve(NANO, {}, 60)
    clock.pass_(61)
    budgets.sweep()
    with pytest.raises(errors.DeadlineExceeded):
        held.sent()
    assert set(figures(budgets).values()) == {(0, 0)}


def test_a_late_settle_counts_what_it_cost(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10))
    held = budgets.reserve(5 * NANO, {}, 60)
    held.sent()
    clock.pass_(61)
    budgets.sweep()
    assert figures(budgets) == {("all", None): (5 * NANO, 0)}
    held.settle(NANO)
    held.settle(NANO)
    assert figures(budgets) == {("all", None): (NANO, 0)}


def killed_child(work: Callable[[], object]) -> None:
    def killed() -> None:
        work()
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(killed)) == -signal.SIGKILL


def test_what_a_killed_worker_held_does_not_refuse_a_call(make: Make, clock: Clock) -> None:
    budgets = make(budget(limit=10))
    killed_child(lambda: budgets.reserve(10 * NANO, {}, 3600))
    clock.pass_(2)
    budgets.reserve(4 * NANO, {}, 60).settle(4 * NANO)
    killed_child(lambda: budgets.reserve(3 * NANO, {}, 3600).sent())
    clock.pass_(5)
    budgets.reserve(3 * NANO, {}, 60).settle(0)
    assert figures(budgets) == {("all", None): (7 * NANO, 0)}
    with pytest.raises(errors.BudgetExceeded):
        budgets.reserve(3 * NANO + 1, {}, 60)


def test_a_childs_copy_of_a_reservation_is_without_effect(make: Make) -> None:
    budgets = make(budget(limit=10))
    held = budgets.reserve(5 * NANO, {}, 60)

    def child() -> None:
        held.settle(0)
        held.release()

    killed_child(child)
    assert figures(budgets) == {("all", None): (0, 5 * NANO)}


def test_a_fork_while_a_window_begins_hangs_nobody(make: Make, spending: Spending) -> None:
    budgets = make(budget(limit=10))
    # The lock as a forked child finds it when another thread of the parent was at the ledger.
    with budgets.window_lock():
        killed_child(lambda: budgets.reserve(1, {}, 60))
    assert spending.asked == []


def test_a_soak_of_cancels_time_outs_and_kills_leaves_nothing_reserved(make: Make, clock: Clock) -> None:
    """Calls in threads and children end in every way there is; afterwards only what was spent is there."""
    budgets = make(budget(limit=1e6), budget("team", 1e6, "month", per="tag:team"))
    sums = []

    def calls(seed: int, count: int) -> int:
        chance, spent = random.Random(seed), 0
        for _ in range(count):
            amount, end = chance.randrange(1, 10**6), chance.random()
            held = budgets.reserve(amount, {"team": "red"}, 60)
            if end < 0.02:  # cancelled before it was sent, twice over
                held.release()
                held.release()
                continue
            held.sent()
            if end < 0.03:  # lost: its lease will end it
                spent += amount
            elif end < 0.04:  # timed out: nobody knows what it cost
                held.settle(None)
                spent += amount
            else:
                cost = chance.randrange(0, 2 * amount)
                held.settle(cost)
                spent += cost
        return spent

    threads = [threading.Thread(target=lambda seed=seed: sums.append(calls(seed, 500))) for seed in range(4)]
    run_all(threads)
    for seed in range(4, 12):
        readable, writable = os.pipe()

        def child(seed: int = seed, writable: int = writable) -> None:
            spent = calls(seed, 100)
            budgets.reserve(12345, {"team": "red"}, 60)
            last = budgets.reserve(1000, {"team": "red"}, 60)
            last.sent()
            os.write(writable, str(spent + 1000).encode())

        killed_child(child)
        os.close(writable)
        with open(readable, "rb") as pipe:
            sums.append(int(pipe.read()))
    clock.pass_(61)
    budgets.sweep()
    assert figures(budgets) == {("all", None): (sum(sums), 0), ("team", "red"): (sum(sums), 0)}
