"""Stack, memory, descriptors and disk run out at each point of a call, and nothing is held or lost."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import exhaustion
import pytest
import samples
from needs import need
from raw_server import RawServer

from fastroute import _core
from fastroute.calls.stream import Stream

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD and /proc")


@pytest.mark.parametrize("kind", ["plain", "stream"])
def test_the_stack_ends_at_each_depth(tmp_path: Path, kind: str) -> None:
    counts = exhaustion.run(kind, "stack", tmp_path)
    assert counts["hit"] > 50
    assert counts["served"] == 2  # those after the last depth that is too deep


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="needs CPython's _testcapi")
@pytest.mark.parametrize(("kind", "every"), [("plain", 11), ("stream", 61), ("failover", 61)])
def test_an_allocation_fails(tmp_path: Path, kind: str, every: int) -> None:
    counts = exhaustion.run(
        kind, "memory", tmp_path, every=every, seed=samples.first(every, f"memory {kind}")
    )
    assert counts["calls"] > 300 / every


@linux
@pytest.mark.parametrize("fault", ["descriptors", "limit", "disk", "full"])
def test_no_descriptor_is_left_or_the_disk_is_full(tmp_path: Path, fault: str) -> None:
    need("gcc")
    counts = exhaustion.run("stream" if fault in ("limit", "full") else "plain", fault, tmp_path)
    assert counts["hit"] >= 8


@pytest.mark.parametrize("kind", exhaustion.KINDS)
def test_a_call_takes_half_of_the_room_that_it_asks_for(tmp_path: Path, kind: str) -> None:
    """`check_stack` asks for 100 frames: what it lets in, and what gives back, never runs out of them."""
    with RawServer(parallel=8) as a, RawServer(parallel=8) as b:
        a.say, b.say = exhaustion.answers(kind)
        subject = exhaustion.Subject(kind, [a.base_url, b.base_url], tmp_path / "ledger.db")
        try:
            deepest = [exhaustion.frames_of(subject) for _ in range(2)]  # the first opens everything
        finally:
            subject.client.close()
    assert 5 < max(deepest) <= 50


def test_a_stream_dropped_without_room_is_settled_all_the_same(tmp_path: Path) -> None:
    with RawServer(parallel=2) as server:
        server.say = exhaustion.STREAM
        subject = exhaustion.Subject("plain", [server.base_url] * 2, tmp_path / "ledger.db")
        kept: list[Stream] = []

        def without_room() -> None:
            with pytest.raises(RecursionError, match="frames are left on the stack"):
                list(kept[0])
            with pytest.raises(RecursionError):
                kept[0].close()
            kept.clear()  # its finalizer has no room either, so the timer thread closes it

        create = subject.client.chat.completions.create
        stream = create(model="m", messages=[{"role": "user", "content": "Good day"}], stream=True)
        kept.append(stream)
        del stream
        exhaustion.at_the_limit(60, without_room)
        assert subject.left() == {}
        assert len(subject.acknowledged) == 1
        assert subject.close() == {}


def test_without_room_nothing_is_done() -> None:
    _core.check_stack()
    with pytest.raises(RecursionError, match=r"raise sys\.setrecursionlimit"):
        exhaustion.at_the_limit(30, _core.check_stack)
