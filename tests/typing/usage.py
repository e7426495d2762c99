"""The public names as a typed program uses them. Not run: ``mypy --strict`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import requests
from typing_extensions import assert_type

import fastroute
from fastroute import events
from fastroute.testing import Answer, Fault, Provider

MESSAGES = [{"role": "user", "content": "Hello"}]


def plain(client: fastroute.Client) -> str:
    reply = client.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=200, temperature=0)
    assert_type(reply, fastroute.Completion)
    assert_type(reply.choices[0].message.content, str | None)
    if reply.usage is not None:
        assert_type(reply.usage.prompt_tokens, int)
    if reply.route is not None:
        assert_type(reply.route.cost, float | None)
        assert_type(reply.route.attempts, tuple[fastroute.Attempt, ...])
    assert_type(reply.to_dict(), dict[str, Any])
    return reply.text


def streamed(client: fastroute.Client) -> str:
    text = ""
    with client.chat.completions.create(messages=MESSAGES, stream=True, route={"tags": {"a": "b"}}) as stream:
        assert_type(stream, fastroute.Stream)
        for chunk in stream:
            assert_type(chunk, fastroute.Chunk)
            text += chunk.choices[0].delta.content or ""
    assert_type(stream.usage, fastroute.Usage | None)
    assert_type(stream.route, fastroute.Route)
    return text


def either(client: fastroute.Client, stream: bool) -> None:
    assert_type(client.probe("openai/gpt-4.1", max_tokens=1), fastroute.Completion)
    assert_type(client.probe("openai/gpt-4.1", stream=stream), fastroute.Completion | fastroute.Stream)
    plan = client.plan(model="auto", messages=MESSAGES, stream=stream)
    assert_type(plan, fastroute.Plan)
    assert_type(plan.classification, fastroute.Classification)
    future: Future[Any] = client.submit(messages=MESSAGES)
    future.cancel()


def made() -> fastroute.Client:
    with fastroute.Client() as first:
        first.with_options(timeout=3.0, tags={"team": "red"}, cache=False).close()
    fastroute.Client(api_key="unused")  # type: ignore[arg-type]  # as at run time, it is refused
    table: Mapping[str, Any] = {"providers": {}}
    with fastroute.Client(table, session=requests.Session()) as second:
        remove = second.on(print, events.AttemptFinished)
        remove()
        config: fastroute.Config = second.config
    return fastroute.Client(config)


def left(client: fastroute.Client) -> float | None:
    reply = client.chat.completions.create(messages=MESSAGES)
    route = reply.route
    assert route is not None
    for budget in (*client.budgets(), *client.budgets({"team": "red"}), *route.budgets):
        assert_type(budget, fastroute.BudgetStatus)
        assert_type(budget.name, str)
        assert_type(budget.value, str | None)
        assert_type((budget.window, budget.period), tuple[str, str])
        assert_type(budget.limit, float)
        assert_type((budget.spent, budget.reserved), tuple[float | None, float | None])
        assert_type(budget.left, float | None)
        assert_type((budget.limit_nano, budget.left_nano), tuple[int, int | None])
        assert_type(budget.resets_at, float | None)
    for attempt in route.attempts:
        assert_type(attempt.estimated, bool)
        assert_type(attempt.budget_nano, int | None)
        assert_type(attempt.score, float | None)
    return client.budgets()[0].left


def failed(client: fastroute.Client) -> float | None:
    try:
        plain(client)
    except fastroute.RateLimitError as error:
        return error.retry_after
    except fastroute.StreamInterrupted as error:
        assert_type(error.partial_text, str)
    except fastroute.Error as error:
        assert_type(error.attempts, tuple[fastroute.Attempt, ...])
        assert_type(error.status_code, int | None)
    return None


def local() -> None:
    with Provider(models=["m"], answer=Answer(content="x")) as provider:
        provider.script(Fault.status(503), None)
        assert_type(provider.base_url, str)
