"""The response cache: keys, bounds, and one call for equal requests in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from children import ended, forked
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors
from fastroute.calls.cache import Cache
from fastroute.types import Choice, Completion, Message, Request, RouteOptions, Usage

MESSAGES = [{"role": "user", "content": "How deep is the Mariana Trench?"}]


OPTIONS = ("tags", "tier", "quality", "max_cost", "max_latency", "validate")


def request(**changes: Any) -> Request:
    options = RouteOptions(**{name: changes.pop(name) for name in OPTIONS if name in changes})
    model = changes.pop("model", "gpt-4.1")
    messages = changes.pop("messages", MESSAGES)
    return Request(model, messages, changes, False, options)


def completion(text: str = "10,935 m", finish: str = "stop", usage: Usage | None = None) -> Completion:
    raw = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": finish}]}
    return Completion(
        id="id",
        created=1,
        model="gpt-4.1",
        choices=(Choice(0, Message("assistant", text), finish),),
        usage=usage or Usage(9, 4),
        route=None,
        raw=raw,
    )


def soon() -> float:
    return time.monotonic() + 10


# --------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt-4.1-mini"},
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 1.0},
        {"temperature": True},
        {"seed": 7},
        {"max_tokens": 100},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"name": "a"}, {"name": "b"}]},
        {"tools": [{"name": "b"}, {"name": "a"}]},
        {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]},
        {"messages": [{"role": "user", "content": "caf\u00e9"}]},
        {"messages": [{"role": "user", "content": "cafe\u0301"}]},
        {"tags": {"tenant": "a"}},
        {"tags": {"tenant": "b"}},
        {"tier": "premium"},
        {"quality": 0.9},
        {"max_cost": 0.1},
        {"max_latency": 3.0},
        {"validate": {"type": "object"}},
    ],
    ids=lambda other: repr(other)[:60],
)
def test_whatever_shapes_the_answer_shapes_the_key(other: dict[str, Any]) -> None:
    cache = Cache()
    everything = [request(), request(temperature=0.5), request(temperature=0), request(temperature=1)]
    different = request(**other)
    same = [known for known in everything if known == different and repr(known) == repr(different)]
    keys = {cache.key(known) for known in everything if known not in same}
    assert cache.key(different) not in keys


def test_one_and_one_point_nought_and_true_are_three_keys() -> None:
    cache = Cache()
    assert len({cache.key(request(temperature=value)) for value in (1, 1.0, True)}) == 3


def test_the_order_of_keys_does_not_matter() -> None:
    cache = Cache()
    one = Request("m", [{"role": "user", "content": "x"}], {"a": 1, "b": {"c": 1, "d": 2}})
    two = Request("m", [{"content": "x", "role": "user"}], {"b": {"d": 2, "c": 1}, "a": 1})
    assert cache.key(one) == cache.key(two)


def test_the_scope_can_be_narrowed_to_the_tags_that_matter() -> None:
    cache = Cache(scope=("tenant",))
    one = request(tags={"tenant": "a", "page": "1"})
    assert cache.key(one) == cache.key(request(tags={"tenant": "a", "page": "2"}))
    assert cache.key(one) != cache.key(request(tags={"tenant": "b", "page": "1"}))


def test_a_requests_own_id_is_no_part_of_the_scope_unless_it_is_named() -> None:
    one, two = request(tags={"client_request_id": "1"}), request(tags={"client_request_id": "2"})
    assert Cache().key(one) == Cache().key(two) == Cache().key(request())
    named = Cache(scope=("client_request_id",))
    assert named.key(one) != named.key(two)


def test_another_configuration_has_other_keys() -> None:
    assert Cache().key(request(), b"a") != Cache().key(request(), b"b")


def test_lone_surrogates_have_a_key_and_what_is_no_json_has_none() -> None:
    cache = Cache()
    assert cache.key(request(messages=[{"role": "user", "content": "\ud83d"}])) is not None
    assert cache.key(request(extra=object())) is None


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_scopes_and_contents_run_together(a: str, b: str, c: str, d: str) -> None:
    cache = Cache()
    one = request(messages=[{"role": "user", "content": b}], tags={"t": a})
    two = request(messages=[{"role": "user", "content": d}], tags={"t": c})
    assert (cache.key(one) == cache.key(two)) == ((a, b) == (c, d))


# ----------------------------------------------------------------------------------------- keeping, dropping


@pytest.mark.parametrize(
    "answer",
    [
        completion(finish="length"),
        completion(finish="content_filter"),
        completion(text=""),
        completion(usage=Usage(9, 4, source="estimated")),
    ],
    ids=["cut", "filtered", "empty", "guessed usage"],
)
def test_only_whole_answers_are_kept(answer: Completion) -> None:
    cache = Cache()
    assert cache.through(b"k", lambda: answer, soon()) == (answer, False)
    assert cache.get(b"k") is None


def test_an_answer_ends_with_its_time_to_live_give_or_take_a_tenth() -> None:
    now = [0.0]
    cache = Cache(ttl=100.0, timer=lambda: now[0])
    for number in range(200):
        cache.through(b"%d" % number, completion, soon())
    ends = []
    for number in range(200):
        now[0] = 0.0
        while cache.get(b"%d" % number) is not None:
            now[0] += 0.5
        ends.append(now[0])
        now[0] = 0.0
    # Entries were read while others were already gone: only the first can be trusted to the half second.
    assert 90.0 <= ends[0] <= 111.0


def test_entries_and_bytes_are_bounded() -> None:
    cache = Cache(max_entries=10)
    for number in range(50):
        cache.through(b"%d" % number, completion, soon())
    assert cache.stats()["entries"] == 10
    assert cache.get(b"49") is not None
    assert cache.get(b"0") is None

    small = Cache(max_bytes=2000)
    for number in range(50):
        small.through(b"%d" % number, lambda: completion("x" * 100), soon())
    assert 0 < small.stats()["bytes"] <= 2000

    picky = Cache(max_entry_bytes=500)
    picky.through(b"k", lambda: completion("x" * 600), soon())
    assert picky.stats()["entries"] == 0


def test_what_a_caller_does_to_an_answer_stays_with_that_caller() -> None:
    cache = Cache()
    first, _ = cache.through(b"k", completion, soon())
    first.to_dict()["choices"][0]["message"]["content"] = "changed"
    first.choices[0].to_dict()["index"] = 9
    second = cache.get(b"k")
    assert second is not None
    assert second.to_dict()["choices"][0]["message"]["content"] == "10,935 m"
    with pytest.raises(AttributeError):
        second.choices[0].message.content = "changed"  # type: ignore[misc]


# ------------------------------------------------------------------------------------------- single flight


def in_threads(count: int, work: Any) -> list[Any]:
    results: list[Any] = [None] * count

    def run(place: int) -> None:
        try:
            results[place] = work()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_equal_requests_in_flight_share_one_call() -> None:
    cache = Cache()
    calls = []
    inside = threading.Event()
    go = threading.Event()

    def make() -> Completion:
        calls.append(1)
        inside.set()
        go.wait(10)
        return completion()

    def follow() -> Any:
        return cache.through(b"k", make, soon())

    leader = threading.Thread(target=follow)
    leader.start()
    assert inside.wait(10)
    release = threading.Timer(0.05, go.set)
    release.start()
    results = in_threads(20, follow)
    leader.join(10)
    release.join(10)
    assert len(calls) == 1
    assert [shared for _, shared in results] == [True] * 20


def test_when_the_leader_fails_one_follower_leads_and_the_rest_get_errors_of_their_own() -> None:
    cache = Cache()
    calls = []
    gate = threading.Barrier(2)
    first = threading.Event()

    def make() -> Completion:
        calls.append(1)
        if len(calls) == 1:
            gate.wait(10)
            first.wait(10)
        raise errors.InternalServerError("down", status_code=500)

    def follow() -> Any:
        return cache.through(b"k", make, soon())

    results: list[Any] = []
    leader = threading.Thread(target=lambda: results.extend(in_threads(1, follow)))
    leader.start()
    gate.wait(10)
    release = threading.Timer(0.2, first.set)
    release.start()
    followers = in_threads(30, follow)
    leader.join(10)
    release.join(10)
    everything = [*results, *followers]
    assert all(isinstance(error, errors.InternalServerError) for error in everything)
    assert len({id(error) for error in everything}) == len(everything)
    assert len(calls) <= 3  # the leader, its successor, and whoever came when both were gone


def test_a_follower_keeps_its_own_deadline() -> None:
    cache = Cache()
    inside = threading.Event()
    go = threading.Event()

    def make() -> Completion:
        inside.set()
        go.wait(10)
        return completion()

    leader = threading.Thread(target=lambda: cache.through(b"k", make, soon()))
    leader.start()
    assert inside.wait(10)
    with pytest.raises(errors.DeadlineExceeded):
        cache.through(b"k", make, time.monotonic() + 0.01)
    go.set()
    leader.join(10)


@pytest.mark.parametrize("fails", [False, True])
def test_a_follower_that_gives_up_leaves_the_flight_to_the_others(fails: bool) -> None:
    cache = Cache()
    inside, go = threading.Event(), threading.Event()
    made: list[str] = []

    def lead() -> Completion:
        made.append("leader")
        inside.set()
        assert go.wait(10)
        if fails:
            raise errors.InternalServerError("down", status_code=500)
        return completion()

    def follow() -> Completion:
        made.append("follower")
        return completion()

    leader = threading.Thread(target=lambda: in_threads(1, lambda: cache.through(b"k", lead, soon())))
    leader.start()
    assert inside.wait(10)
    flight = cache.flights[b"k"]
    results: list[Any] = []
    patient = threading.Thread(
        target=lambda: results.extend(in_threads(3, lambda: cache.through(b"k", follow, soon())))
    )
    patient.start()
    end = soon()
    while len(flight.heirs) < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    with pytest.raises(errors.DeadlineExceeded):
        cache.through(b"k", follow, time.monotonic() + 0.01)
    assert len(flight.heirs) == 3
    assert cache.flights == {b"k": flight}
    go.set()
    leader.join(10)
    patient.join(10)
    assert made == (["leader", "follower"] if fails else ["leader"])
    assert [answer.text for answer, _ in results] == ["10,935 m"] * 3
    assert sum(not shared for _, shared in results) == fails
    assert cache.flights == {}


class Deadline(float):
    """A deadline that does something when it is looked at, which a call does just before it waits."""

    def __new__(cls, looked: Callable[[], None]) -> Deadline:
        made = super().__new__(cls, soon())
        made.looked = looked
        return made

    looked: Callable[[], None]

    def __sub__(self, other: float) -> float:
        self.looked()
        return float(self) - other


def test_who_gives_up_after_the_leader_has_failed_leaves_the_next_flight_to_those_who_wait() -> None:
    cache = Cache()
    made: list[str] = []
    inside, fail = threading.Event(), threading.Event()
    waits, goes_on = threading.Event(), threading.Event()
    leads, answer = threading.Event(), threading.Event()

    def lead() -> Completion:
        inside.set()
        assert fail.wait(10)
        raise errors.InternalServerError("down", status_code=500)

    def take_over() -> Completion:
        made.append("heir")
        leads.set()
        assert answer.wait(10)
        return completion()

    def stay() -> None:
        waits.set()
        assert goes_on.wait(10)

    def give_up() -> None:
        fail.set()
        leader.join(10)
        raise KeyboardInterrupt

    leader = threading.Thread(target=lambda: in_threads(1, lambda: cache.through(b"k", lead, soon())))
    heir = threading.Thread(
        target=lambda: in_threads(1, lambda: cache.through(b"k", take_over, Deadline(stay)))
    )
    leader.start()
    assert inside.wait(10)
    heir.start()
    assert waits.wait(10)
    with pytest.raises(KeyboardInterrupt):
        cache.through(b"k", completion, Deadline(give_up))
    goes_on.set()
    assert leads.wait(10)
    newcomer: list[Any] = []

    def come() -> Completion:
        made.append("newcomer")
        return completion()

    late = threading.Thread(
        target=lambda: newcomer.extend(in_threads(1, lambda: cache.through(b"k", come, Deadline(answer.set))))
    )
    late.start()
    late.join(10)
    answer.set()
    heir.join(10)
    assert made == ["heir"]
    assert [shared for _, shared in newcomer] == [True]
    assert cache.flights == {}


def test_a_call_made_from_within_its_own_making_does_not_wait_for_itself() -> None:
    cache = Cache()

    def outer() -> Completion:
        inner, shared = cache.through(b"k", completion, soon())
        assert not shared
        return inner

    assert cache.through(b"k", outer, soon())[0].text == "10,935 m"


def test_an_interrupted_leader_leaves_no_flight_behind() -> None:
    cache = Cache()

    def interrupted() -> Completion:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.through(b"k", interrupted, soon())
    assert cache.through(b"k", completion, soon())[1] is False


# --------------------------------------------------------------------------------------------------- fork


def test_a_fork_while_an_answer_is_being_stored_leaves_the_child_a_cache_that_expires() -> None:
    now = 0.0
    cache = Cache(ttl=10.0, timer=lambda: now)
    made, storing, go_on = False, threading.Event(), threading.Event()

    class Halting(bytes):
        """A key that holds up its thread when the store looks it up to store its answer."""

        def __hash__(self) -> int:
            if made and not cache.flights:
                storing.set()
                assert go_on.wait(10)
            return super().__hash__()

    def make() -> Completion:
        nonlocal made
        made = True
        return completion()

    cache.through(b"old", completion, soon())
    thread = threading.Thread(target=cache.through, args=(Halting(b"new"), make, soon()))
    thread.start()
    assert storing.wait(10)

    def child() -> None:
        nonlocal now
        cache.after_fork()
        cache.through(b"other", completion, soon())
        assert cache.get(b"other") is not None
        now = 1000.0
        assert cache.get(b"old") is None
        assert cache.get(b"other") is None

    pid = forked(child)
    go_on.set()
    thread.join()
    assert ended(pid) == 0
