"""A soak: workers that cancel, time out and are killed leave nothing reserved and nothing in flight."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import fastroute
from fastroute.testing import Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello there"}]
WORKERS = 6
CALLS = 40


def config(provider: Provider) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1, "output_price": 1, "max_output_tokens": 1000}},
        "budgets": [{"name": "all", "limit": 1000, "window": "total"}],
        # The breaker would keep most of the calls from being made.
        "policy": {
            "max_attempts": 2,
            "backoff_base": 0.01,
            "breaker": {"failures": 255, "min_calls": 10_000},
        },
        "cache": {"enabled": False},
    }


def work(client: fastroute.Client, seed: int) -> None:
    rnd = random.Random(seed)
    for place in range(CALLS):
        try:
            if rnd.random() < 0.3:
                with client.chat.completions.create(
                    model="m", messages=MESSAGES, max_tokens=50, stream=True
                ) as stream:
                    next(stream)
            else:
                client.chat.completions.create(
                    model="m", messages=MESSAGES, max_tokens=50, timeout=rnd.choice([0.02, 5, 5, 5])
                )
        except fastroute.Error:
            pass
        if place == CALLS // 2 and seed % 2:
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_workers_that_cancel_time_out_and_are_killed_leave_behind() -> None:
    faults = [Fault.slow(0.05), None, None, Fault.status(503), Fault.truncated(), None, Fault.reset()]
    with Provider(models=["m"], process=True) as provider, fastroute.Client(config(provider)) as client:
        provider.script(*faults, repeat=True)
        children = []
        for seed in range(WORKERS):
            child = os.fork()
            if child == 0:
                try:
                    work(client, seed)
                finally:
                    os._exit(0)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        assert [os.WIFSIGNALED(status) for status in ended] == [bool(seed % 2) for seed in range(WORKERS)]
        provider.clear_script()
        router = client.runtime.generation
        router.state.segment.reap()
        router.budgets.sweep()
        end = client.stats()["budgets"][0]
        assert end.reserved_nano == 0
        assert end.spent_nano > 0
        assert client.stats()["endpoints"]["p/m"]["in_flight"] == 0
        reply = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=50)
        assert reply.route is not None
        assert client.stats()["budgets"][0].spent_nano == end.spent_nano + (reply.route.cost_nano or 0)


def test_the_permits_of_a_killed_worker_come_back_to_the_call_that_waits_for_one() -> None:
    with Provider(models=["m"], process=True) as provider:
        settings = {**config(provider), "budgets": []}
        settings["providers"] = {"p": {"base_url": provider.base_url, "max_in_flight": 2}}
        with fastroute.Client(settings) as client:
            provider.script(Fault.black_hole(), Fault.black_hole())
            child = os.fork()
            if child == 0:
                for _ in range(2):
                    client.submit(model="m", messages=MESSAGES)
                signal.pause()
            provider.wait_until(lambda each: each.in_flight == 2)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            (endpoint,) = client.runtime.generation.state.endpoints
            assert endpoint.core.in_flight == 2  # figures asked for by stats() would look for the dead first
            reply = client.chat.completions.create(model="m", messages=MESSAGES, timeout=20)
            assert reply.route is not None
            assert client.stats()["endpoints"]["p/m"]["in_flight"] == 0
