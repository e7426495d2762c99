"""Real servers with forked workers: one limit for all, preloaded or not, recycled, killed, and uWSGI's."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from needs import need
from served_app import GUNICORN, UWSGI, serving

KILLED = "kills a worker that is busy for 30 s"

WAYS = {
    "gunicorn, preloaded": ([*GUNICORN, "-w", "3", "--preload"], "memory"),
    "gunicorn, each its own": ([*GUNICORN, "-w", "3"], "machine"),
    "uWSGI, preloaded": ([*UWSGI, "--processes", "3", "--harakiri", "30"], "memory"),
    "uWSGI, lazy, threads": ([*UWSGI, "--processes", "2", "--threads", "3", "--lazy-apps"], "machine"),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_workers_together_keep_the_limit_and_every_answer_is_the_right_one(
    way: str, tmp_path: Path
) -> None:
    need("gunicorn")
    need("uwsgi")
    words, state = WAYS[way]
    with serving(tmp_path, words, state, "rpm = 1\nburst = 12") as (server, upstream):
        server.until_two_answer()
        answers = server.many(20)
        assert sorted(status for status, _ in answers) == [200] * 12 + [429] * 8
        for number, (status, body) in enumerate(answers):
            if status == 200:
                assert body["text"] == f"call-{number}"
        workers = {body["pid"] for _, body in answers}
        assert {body["preloaded"] for _, body in answers} == {state == "memory"}
        assert {body["state"]["reason"] for _, body in answers} == {None}
        assert len(workers) <= max(body["state"]["workers"] for _, body in answers) <= 5
        assert len(upstream.requests) == 12
        # All but the last may kill a worker long before the 600 seconds that a call may take.
        assert (KILLED in server.log.read_text()) is (way != "uWSGI, lazy, threads")


def test_recycled_workers_go_on_where_the_others_stood(tmp_path: Path) -> None:
    need("gunicorn")
    words = [*GUNICORN, "-w", "2", "--max-requests", "5"]
    with serving(tmp_path, words, "machine", "rpm = 1\nburst = 12") as (server, upstream):
        answers = server.many(18, threads=3)
        assert len({body["pid"] for _, body in answers if body}) >= 4
        granted = sum(status == 200 for status, _ in answers)
        assert granted == len(upstream.requests) == 12
        assert server.get("stats")[1]["state"]["workers"] <= 5  # of the dead, none


def test_what_a_killed_worker_held_is_there_for_the_others(tmp_path: Path) -> None:
    """Killed in the middle of a call, with SIGKILL: its permit is free again within seconds."""
    need("gunicorn")
    words = [*GUNICORN, "-w", "2", "--threads", "4"]
    with serving(tmp_path, words, "machine", "max_in_flight = 1", latency=30.0) as (server, upstream):
        caller = threading.Thread(target=server.get, args=("slow",))
        caller.start()
        while not upstream.requests:
            time.sleep(0.01)
        status, _ = server.get("refused")
        assert status == 429
        victims = {server.get("stats")[1]["pid"] for _ in range(12)}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        caller.join()
        upstream.configure(latency=0.0)
        begun = time.monotonic()
        while server.get("after")[0] != 200:
            assert time.monotonic() - begun < 15
        assert server.get("stats")[1]["in_flight"] == 0
        assert KILLED not in server.log.read_text()  # a worker with threads is not killed for one request
