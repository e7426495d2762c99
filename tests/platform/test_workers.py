"""The pool behind `Client.submit`."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from children import ended, forked
from loopback import nothing_left

from fastroute.errors import Error
from fastroute.platform.workers import Workers


def test_nothing_runs_before_the_first_submission_nor_after_close() -> None:
    before = threading.active_count()
    workers = Workers(2, 2)
    assert threading.active_count() == before
    with nothing_left():
        assert workers.submit(lambda: 42).result(5) == 42
        workers.close()
    workers.close()
    with pytest.raises(Error, match="closed"):
        workers.submit(lambda: 1)


def test_close_drops_what_has_not_begun_and_wakes_who_waits_for_room() -> None:
    workers = Workers(1, 1)
    begun, go = threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        go.wait()
        return "held"

    running = workers.submit(hold)
    begun.wait()
    waiting = workers.submit(lambda: "never")
    refused: list[BaseException] = []

    def third() -> None:
        try:
            workers.submit(lambda: "no room")
        except Error as error:
            refused.append(error)

    blocked = threading.Thread(target=third)
    blocked.start()
    closing = threading.Thread(target=workers.close)
    closing.start()
    blocked.join(5)
    assert len(refused) == 1
    assert waiting.cancelled()
    go.set()
    closing.join(5)
    assert running.result(5) == "held"


def test_what_a_call_raises_is_the_futures() -> None:
    workers = Workers(1, 0)
    assert isinstance(workers.submit(lambda: 1 / 0).exception(5), ZeroDivisionError)
    assert workers.submit(lambda: 2).result(5) == 2  # and its place is free again
    workers.close()


def test_a_child_has_threads_of_its_own() -> None:
    workers = Workers(2, 2)
    workers.submit(lambda: 1).result(5)

    def submit() -> None:
        workers.after_fork()
        assert workers.submit(lambda: 7).result(5) == 7

    assert ended(forked(submit)) == 0
    workers.close()


LATE = """
import threading
from fastroute.errors import Error
from fastroute.platform.workers import Workers
workers = Workers(1, 1)
if {used}:
    workers.submit(int).result()
def late():
    threading.main_thread().join()
    for _ in range(4):  # more than it has room for
        try:
            workers.submit(int)
        except Error as error:
            print(error)
threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("used", [False, True])
def test_a_submission_after_the_end_of_the_main_thread_says_what_to_do(used: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE.format(used=used)], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("submit: no thread can start (")
        assert "client.chat.completions.create in a thread that still runs" in line
