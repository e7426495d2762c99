"""Leases of shared limits: taken completely, never twice, and valid for a time."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute._core import (
    BREAKER,
    BUSY,
    CLOSED,
    FAILURE,
    HALF_OPEN,
    OK,
    OPEN,
    REQUESTS,
    TOKENS,
    TOO_LARGE,
    Endpoint,
    Lease,
    Limited,
    Quota,
    Segment,
)

S = 1_000_000_000
NOW = 1_000 * S
MINUTE = {"rpm": 60, "request_burst": 10, "tpm": 60, "token_burst": 100}


class Source:
    """Answers as told, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def answer(*words: Any) -> Any:
            self.asked.append((name, *words))
            found = self.answers.get(name, 0)
            return found(*words) if callable(found) else found

        return answer

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.asked]


def shared(source: Any = None, **rules: Any) -> tuple[Endpoint, Lease, Any]:
    endpoint = Endpoint(Segment(256), "e", **{**MINUTE, **rules})
    source = Source() if source is None else source
    return endpoint, Lease(endpoint, source), source


def test_a_call_takes_from_the_pool_and_asks_nobody() -> None:
    endpoint, lease, source = shared()
    lease.grant(2, 30, NOW + S, NOW)
    ticket = endpoint.admit(10, NOW)
    assert ticket >= 0
    assert lease.balance(NOW) == (1, 20)
    endpoint.finish(ticket, OK, 0.1, 5, NOW)
    assert lease.balance(NOW) == (1, 15)
    endpoint.undo(endpoint.admit(10, NOW), 10, NOW)
    assert lease.balance(NOW) == (1, 15)
    assert source.names == []


def test_an_empty_pool_asks_and_takes_what_was_brought() -> None:
    endpoint, lease, source = shared()

    def bring(tokens: int, now: int) -> int:
        lease.grant(1, tokens, now + S, now)
        return 0

    source.answers["supply"] = bring
    assert endpoint.admit(7, NOW) >= 0
    assert source.asked == [("supply", 7, NOW)]
    assert lease.balance(NOW) == (0, 0)


def test_others_may_be_quicker_but_not_for_ever() -> None:
    endpoint, _, source = shared()
    assert -endpoint.admit(1, NOW) == REQUESTS  # always told that there is some, and never finds it
    assert source.names == ["supply"] * 16


def test_a_refusal_of_the_source_is_the_answer() -> None:
    endpoint, _, source = shared()
    source.answers["supply"] = -(5 * S << 3 | TOKENS)
    assert endpoint.admit(1, NOW) == -(5 * S << 3 | TOKENS)
    assert endpoint.in_flight == 0


def test_by_what_was_heard_last_a_call_is_refused_without_asking() -> None:
    endpoint, lease, source = shared()
    lease.heard(12 * S, 0, NOW)  # ten at once, one a second: the next one in three seconds
    assert endpoint.admit(1, NOW) == -(3 * S << 3 | REQUESTS)
    lease.grant(1, 0, NOW + S, NOW)
    lease.heard(0, 110 * S, NOW)
    assert endpoint.admit(1, NOW) == -(11 * S << 3 | TOKENS)
    assert lease.balance(NOW) == (1, 0)  # the request that came along is still there
    assert source.names == []


def test_a_lease_ends_and_is_not_added_to_the_next() -> None:
    _, lease, _ = shared()
    lease.grant(5, 50, NOW + S, NOW)
    assert lease.balance(NOW + S - 1) == (5, 50)
    assert lease.balance(NOW + S) == (0, 0)
    lease.grant(2, 20, NOW + 3 * S, NOW + 2 * S)
    assert lease.balance(NOW + 2 * S) == (2, 20)


def test_a_debt_does_not_end() -> None:
    endpoint, lease, _ = shared()
    lease.grant(1, 10, NOW + S, NOW)
    endpoint.finish(endpoint.admit(10, NOW), OK, 0.1, 25, NOW)
    assert lease.balance(NOW + 5 * S) == (0, -25)
    lease.grant(1, 30, NOW + 6 * S, NOW + 5 * S)
    assert lease.balance(NOW + 5 * S) == (1, 5)


def test_what_is_drained_is_good_or_nothing() -> None:
    _, lease, _ = shared()
    lease.grant(5, 50, NOW + S, NOW)
    assert lease.drain(2, 60, NOW) == (3, 0)
    assert lease.balance(NOW) == (2, 50)
    assert lease.drain(0, 0, NOW + S) == (0, 0)
    assert lease.balance(NOW) == (0, 0)


@given(st.integers(1, 12), st.integers(0, 40))
def test_a_share_is_the_limit_divided(machines: int, tokens: int) -> None:
    endpoint, lease, _ = shared()
    granted = 0
    while lease.share(tokens, machines, NOW + S, NOW) == 0 and endpoint.admit(tokens, NOW) >= 0:
        granted += 1
    by_tokens = 100 // min(tokens * machines, 100) if tokens else 1000
    assert granted == min(10 // min(machines, 10), by_tokens)


def test_a_share_begins_from_what_was_heard() -> None:
    _, lease, _ = shared()
    lease.heard(10 * S, 0, NOW)
    assert lease.share(0, 2, NOW + S, NOW) == -(2 * S << 3 | REQUESTS)
    assert lease.share_ahead(0, 2, 10 * S, NOW) == 2 * S
    assert lease.share_ahead(0, 2, S, NOW) == -(4 * S << 3 | REQUESTS)
    assert lease.share_ahead(101, 2, S, NOW) == -TOO_LARGE


def test_waiting_goes_to_the_source() -> None:
    endpoint, _, source = shared()
    source.answers["reserve"] = 7
    assert endpoint.reserve(5, 100, NOW) == 7
    endpoint.unreserve(5, NOW)
    assert endpoint.admit(5, NOW, True) >= 0  # it was paid for
    assert source.asked == [("reserve", 5, 100, NOW), ("unreserve", 5, NOW)]


def test_running_low_is_said() -> None:
    endpoint, lease, source = shared()
    lease.marks(2, 0)
    lease.grant(3, 30, NOW + S, NOW)
    endpoint.admit(1, NOW)
    assert source.names == []
    endpoint.admit(1, NOW)
    assert source.names == ["low"]


def test_the_providers_word_empties_the_pool_and_is_passed_on() -> None:
    endpoint, lease, source = shared()
    lease.grant(8, 80, NOW + S, NOW)
    endpoint.tighten(3, -1, NOW)
    assert lease.balance(NOW) == (3, 80)
    assert source.asked == [("tightened", 3, -1)]
    endpoint.tighten(3, -1, NOW)
    assert len(source.asked) == 1  # nothing new


def test_a_probe_is_asked_for_and_its_end_is_told() -> None:
    endpoint, lease, source = shared(failures=1, open_s=1.0, max_open_s=1.0, probes_to_close=1)
    lease.grant(9, 90, NOW + 9 * S, NOW)
    assert endpoint.finish(endpoint.admit(0, NOW), FAILURE, 0.1, 0, NOW) == 1
    later = NOW + 2 * S
    source.answers["probe"] = 3 * S
    assert endpoint.admit(0, later) == -(3 * S << 3 | BREAKER)
    assert endpoint.state(later) == HALF_OPEN
    source.answers["probe"] = 0
    ticket = endpoint.admit(0, later)
    assert endpoint.finish(ticket, OK, 0.1, 0, later) == 2
    assert source.asked == [("judged", 1), ("probe", later), ("probe", later), ("judged", 2)]


def test_a_probe_that_finds_no_permit_is_given_back() -> None:
    endpoint, lease, source = shared(failures=1, open_s=1.0, max_open_s=1.0)
    lease.grant(1, 0, NOW + 9 * S, NOW)
    endpoint.finish(endpoint.admit(0, NOW), FAILURE, 0.1, 0, NOW)
    source.asked.clear()
    lease.heard(20 * S, 0, NOW)
    assert -endpoint.admit(0, NOW + 2 * S) & 7 == REQUESTS
    assert source.names == []  # nobody was asked for a probe that could not be sent


def test_a_breaker_follows_another_machines() -> None:
    endpoint, lease, _ = shared()
    lease.grant(5, 50, NOW + 9 * S, NOW)
    late = endpoint.admit(0, NOW)
    assert lease.open(NOW + 3 * S, NOW)
    assert not lease.open(NOW + 9 * S, NOW)
    assert endpoint.state(NOW) == OPEN
    assert endpoint.reopens_in(NOW) == 3 * S
    assert endpoint.finish(late, OK, 0.1, 0, NOW) == 0  # of an earlier epoch
    assert endpoint.state(NOW) == OPEN
    assert lease.close(NOW)
    assert not lease.close(NOW)
    assert endpoint.state(NOW) == CLOSED
    assert not lease.open(NOW, NOW)  # over already


def test_without_a_source_the_limits_are_its_own_again() -> None:
    endpoint, _, _ = shared()
    Lease(endpoint, None)
    assert [endpoint.admit(0, NOW) >= 0 for _ in range(11)] == [True] * 10 + [False]


def test_a_limit_that_is_not_there_is_never_asked_for() -> None:
    endpoint, lease, source = shared(rpm=-1, tpm=-1)
    assert endpoint.admit(10**9, NOW) >= 0
    assert lease.limits() == (-1, 0, -1, 0)
    assert source.names == []


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_threads_and_processes_take_a_lease_exactly_once() -> None:
    segment = Segment(1024)
    endpoint = Endpoint(segment, "e", rpm=6_000, request_burst=4_000, max_in_flight=64)
    lease = Lease(endpoint, Source())
    end = 1 << 60
    lease.grant(3_000, 0, end)
    lease.heard(10**15, 0)
    taken: list[int] = []

    def work() -> None:
        count = 0
        while (ticket := endpoint.admit(0)) >= 0:
            endpoint.finish(ticket, OK, 0.1)
            count += 1
        taken.append(count)

    read, write = os.pipe()
    child = os.fork()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if child == 0:
        os.write(write, str(sum(taken)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        theirs = int(answer.read())
    os.waitpid(child, 0)
    assert sum(taken) + theirs == 3_000


def test_bad_values_are_refused() -> None:
    endpoint, lease, _ = shared()
    for wrong in (-1, 1 << 62):
        with pytest.raises((ValueError, OverflowError)):
            lease.grant(wrong, 0, NOW, NOW)
        with pytest.raises((ValueError, OverflowError)):
            lease.heard(wrong, 0, NOW)
    with pytest.raises(ValueError, match="machines"):
        lease.share(1, 0, NOW, NOW)
    with pytest.raises(TypeError):
        Lease(None, None)  # type: ignore[arg-type]
    assert lease.endpoint is endpoint


# ------------------------------------------------------------------------------------------------- permits


def leasing(source: Any = None, **rules: Any) -> tuple[Endpoint, Lease, Any]:
    endpoint = Endpoint(Segment(256), "e", max_in_flight=8, **rules)
    source = Source() if source is None else source
    return endpoint, Lease(endpoint, source, permits=True), source


def test_no_more_calls_at_once_than_are_leased() -> None:
    endpoint, lease, source = leasing()
    assert lease.lease_permits(0, 3, NOW + S)
    source.answers["permit"] = -BUSY
    tickets = [endpoint.admit(0, NOW) for _ in range(5)]
    assert [ticket >= 0 for ticket in tickets] == [True] * 3 + [False] * 2
    assert lease.permits(NOW) == (3, 3, 1, S, False)
    endpoint.finish(tickets[0], OK, 0.1, 0, NOW)
    assert endpoint.admit(0, NOW) >= 0
    assert source.names == ["permit"] * 2


def test_a_lease_of_permits_that_has_ended_is_nothing() -> None:
    endpoint, lease, source = leasing()
    lease.lease_permits(0, 3, NOW + S)
    source.answers["permit"] = -BUSY
    assert endpoint.admit(0, NOW + S) == -BUSY
    assert lease.permits(NOW + S)[0] == 0


def test_a_call_takes_what_was_brought_for_it() -> None:
    endpoint, lease, source = leasing()

    def bring(now: int) -> int:
        leased, held, turn, _, _ = lease.permits(now)
        assert held >= leased
        assert lease.lease_permits(turn, held + 1, now + S)
        return 0

    source.answers["permit"] = bring
    assert all(endpoint.admit(0, NOW) >= 0 for _ in range(8))
    asked = len(source.asked)
    assert -endpoint.admit(0, NOW) & 7 == BUSY
    assert len(source.asked) == asked  # nobody can have more than there are


def test_a_process_that_was_told_that_there_are_none_does_not_ask() -> None:
    endpoint, lease, source = leasing()
    lease.full(NOW + S)
    assert endpoint.wait(0, NOW) == -BUSY
    assert endpoint.admit(0, NOW) == -BUSY
    assert source.names == []
    source.answers["permit"] = -BUSY
    assert endpoint.admit(0, NOW + S) == -BUSY
    assert source.names == ["permit"]


def test_a_lease_changes_only_at_its_turn() -> None:
    _, lease, _ = leasing()
    assert lease.lease_permits(0, 3, NOW + S)
    assert not lease.lease_permits(0, 5, NOW + S)
    assert lease.lease_permits(1, 2, NOW + S, alone=True, after=7)
    assert lease.permits(NOW) == (2, 0, 8, S, True)
    for many in (-1, 4097):
        with pytest.raises(ValueError, match="many"):
            lease.lease_permits(8, many, NOW)


@settings(deadline=None)
@given(turns=st.lists(st.booleans(), max_size=60), leased=st.integers(0, 8))
def test_permits_are_counted_as_they_are_taken(turns: list[bool], leased: int) -> None:
    endpoint, lease, source = leasing()
    source.answers["permit"] = -BUSY
    lease.lease_permits(0, leased, NOW + S)
    held: list[int] = []
    for take in turns:
        if take:
            ticket = endpoint.admit(0, NOW)
            assert (ticket >= 0) == (len(held) < leased)
            held += [ticket] if ticket >= 0 else []
        elif held:
            endpoint.finish(held.pop(0), OK, 0.1, 0, NOW)
        assert lease.permits(NOW)[1] == len(held)


@pytest.mark.parametrize("most", [1, 27, 28, 29, 200, 4096])
def test_permits_are_counted_in_every_cell(most: int) -> None:
    endpoint = Endpoint(Segment(1024), "e", max_in_flight=most)
    lease = Lease(endpoint, Source(), permits=True)
    lease.lease_permits(0, most, NOW + S)
    assert [endpoint.admit(0, NOW) >= 0 for _ in range(most)] == [True] * most
    assert lease.permits(NOW)[1] == most


# -------------------------------------------------------------------------------------------------- quotas


def test_a_quota_takes_requests_and_tokens_together() -> None:
    quota = Quota(Segment(64), "k", rpm=60, request_burst=3, tpm=60, token_burst=100)
    assert quota.pay(60, NOW) == 0
    assert (quota.available_requests(NOW), quota.available_tokens(NOW)) == (2, 40)
    answer = quota.pay(60, NOW)
    assert -answer & 7 == TOKENS
    assert -answer >> 3 == 20 * S
    assert [quota.pay(0, NOW) for _ in range(2)] == [0, 0]  # the refused one has cost no request
    assert -quota.pay(0, NOW) & 7 == REQUESTS
    assert quota.pay(101, NOW) == -TOO_LARGE
    quota.settle(-60, NOW)
    assert quota.pay(100, NOW + S) == 0
    quota.settle(50, NOW + S)
    assert -quota.pay(1, NOW + 2 * S) >> 3 == 50 * S


def test_two_quotas_of_one_name_are_one() -> None:
    segment = Segment(64)
    first, second = (Quota(segment, "k", rpm=6, request_burst=2) for _ in range(2))
    assert first.pay(5, NOW) == second.pay(5, NOW) == 0
    assert first.pay(5, NOW) < 0


def test_a_quota_that_is_shared_takes_from_the_pool_and_asks_when_that_is_empty() -> None:
    quota = Quota(Segment(64), "k", **MINUTE)
    source = Source()
    lease = Lease(quota, source)
    lease.marks(1, 10)
    lease.grant(2, 30, NOW + S, NOW)
    assert quota.pay(10, NOW) == 0
    assert source.names == []
    assert quota.pay(15, NOW) == 0
    assert source.names == ["low"]
    source.answers["supply"] = -(5 * S << 3 | REQUESTS)
    assert quota.pay(5, NOW) == -(5 * S << 3 | REQUESTS)
    quota.settle(-3, NOW)
    assert lease.balance(NOW) == (0, 8)


@pytest.mark.parametrize("rules", [{"rpm": 10**12}, {"tpm": -(2**70)}, {"rpm": 1.5}])
def test_a_quota_refuses_what_is_no_limit(rules: Any) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        Quota(Segment(64), "k", **rules)
    with pytest.raises(TypeError):
        Limited()


def test_a_machines_part_of_the_retry_budget() -> None:
    endpoint, lease, _ = leasing()
    lease.part(5)
    allowed = sum(endpoint.withdraw(NOW) for _ in range(30))
    assert allowed == 2  # ten seconds of one a second, divided by five
    with pytest.raises(ValueError, match="machines"):
        lease.part(0)
