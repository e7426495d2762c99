"""The client between threads and over a fork."""

from __future__ import annotations

import contextvars
import gc
import pickle
import threading

import pytest
from children import ended, forked
from client_setups import Start
from loopback import MODEL

import fastroute
from fastroute import events
from fastroute.testing import Fault, Provider

# ---------------------------------------------------------------------------------------------------- threads

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_submit_runs_in_the_submitters_context(start: Start) -> None:
    loop = start(1)
    heard: list[tuple[str, str]] = []
    loop.client.on(
        lambda event: heard.append((WHO.get(), threading.current_thread().name)), events.CallFinished
    )
    WHO.set("me")
    future = loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert future.result(5).text == "hi"
    assert heard[0][0] == "me"
    assert heard[0][1] != threading.current_thread().name
    failing = loop.client.submit(model="unknown", messages=[{"role": "user", "content": "hi"}])
    assert isinstance(failing.exception(5), fastroute.ModelNotFoundError)
    loop.client.close()
    with pytest.raises(fastroute.Error, match="closed"):
        loop.client.submit(model=MODEL, messages=[])


def test_submit_is_bounded(start: Start) -> None:
    loop = start(1, fastroute={"workers": 2, "max_pending": 1})
    provider = loop.provider()
    provider.pause()
    futures = [
        loop.client.submit(model=MODEL, messages=[{"role": "user", "content": f"{number}"}])
        for number in range(3)
    ]
    entered = threading.Event()
    done = threading.Event()

    def fourth() -> None:
        entered.set()
        futures.append(loop.client.submit(model=MODEL, messages=[{"role": "user", "content": "3"}]))
        done.set()

    submitter = threading.Thread(target=fourth)
    submitter.start()
    entered.wait()
    provider.wait_until(lambda known: known.in_flight == 2)
    assert not done.is_set()
    provider.resume()
    submitter.join(5)
    assert sorted(future.result(5).text for future in futures) == ["0", "1", "2", "3"]
    assert provider.peak_in_flight == 2


def test_close_ends_everything_and_may_be_repeated(start: Start) -> None:
    loop = start(1)
    loop.ask()
    loop.client.close()
    loop.client.close()
    with pytest.raises(fastroute.Error, match="closed"):
        loop.ask()
    loop.provider().wait_until(lambda provider: provider.open_connections == 0)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(loop.client)


def test_sixteen_threads_share_one_pool(start: Start) -> None:
    loop = start(1)
    wrong: list[str] = []

    def ask(thread: int) -> None:
        for turn in range(10):
            text = f"question {thread} {turn}"
            if loop.ask(text).text != text:
                wrong.append(text)

    workers = [threading.Thread(target=ask, args=(thread,)) for thread in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert loop.provider().received == 160
    assert loop.provider().connections <= 16


# ------------------------------------------------------------------------------------------------------- fork


def test_parent_and_child_never_get_each_others_answers(start: Start) -> None:
    loop = start({"a": Provider(process=True)}, check=False)

    def ask_many(who: str) -> None:
        for turn in range(100):
            text = f"{who} asks {turn}"
            assert loop.ask(text).text == text

    ask_many("the parent before the fork")
    child = forked(lambda: ask_many("the child"))
    ask_many("the parent")
    assert ended(child) == 0
    assert loop.endpoint()["in_flight"] == 0
    assert loop.provider().received == 300
    loop.client.ledger.flush()
    assert loop.client.ledger.totals().attempts == 300


def test_a_stream_survives_its_copy_in_a_child(start: Start) -> None:
    loop = start({"a": Provider(process=True)})
    loop.provider().script(Fault.stream_stall(3, 0.5))
    holder = [loop.stream("a text of several tokens")]
    got = next(holder[0]).choices[0].delta.content or ""

    def drop() -> None:
        holder[0].close()
        holder.clear()
        gc.collect()

    assert ended(forked(drop)) == 0
    assert loop.endpoint()["in_flight"] == 1
    got += "".join(chunk.choices[0].delta.content or "" for chunk in holder[0] if chunk.choices)
    assert got == "a text of several tokens"
