"""Calls as a typed program makes them. Not run: ``mypy --strict`` and ``pyright`` read it.

A line with a mistake has an ignore of its own, and both checkers report an ignore that ignores nothing.
"""

from __future__ import annotations

from concurrent.futures import Future

import httpx
import openai
import pydantic
from typing_extensions import assert_type

import fastroute
from fastroute.integrations.openai import http_async_client, http_client

MESSAGES = [{"role": "user", "content": "Hello"}]


def known_parameters(client: fastroute.Client) -> None:
    create = client.chat.completions.create
    create(messages=MESSAGES, temperature=0, max_tokens=20, stop=["\n"], tools=[], top_k=40)
    create(messages=MESSAGES, response_format={"type": "json_object"}, timeout=httpx.Timeout(20.0))
    create(messages=MESSAGES, extra_body={"x": 1}, extra_headers={"x-team": "search"}, max_retries=0)
    reply = create(messages=MESSAGES)
    create(messages=[*MESSAGES, reply.choices[0].message, {"role": "user", "content": "Go on"}])


def mistakes(client: fastroute.Client) -> None:
    create = client.chat.completions.create
    create(messages=MESSAGES, max_token=20)  # type: ignore[call-overload]
    create(messages=MESSAGES, max_cost=0.01)  # type: ignore[call-overload]
    create(messages=MESSAGES, temperature="0")  # type: ignore[call-overload]
    create(messages="Hello")  # type: ignore[arg-type]
    client.submit(messages=MESSAGES, max_token=20)  # type: ignore[call-overload]


def one_of_both(client: fastroute.Client, stream: bool) -> None:
    reply = client.chat.completions.create(messages=MESSAGES, stream=stream)
    assert_type(reply, fastroute.Completion | fastroute.Stream)


class City(pydantic.BaseModel):
    name: str


def parsed(client: fastroute.Client) -> None:
    reply = client.chat.completions.parse(messages=MESSAGES, response_format=City, temperature=0)
    assert_type(reply.choices[0].message.parsed, City | None)


def events(client: fastroute.Client) -> None:
    with client.chat.completions.stream(messages=MESSAGES, response_format=City) as stream:
        for event in stream:
            if event.type == "content.delta":
                assert_type(event.delta, str)
        assert_type(stream.get_final_completion().choices[0].message.parsed, City | None)


def drop_ins(client: fastroute.Client) -> None:
    openai.OpenAI(http_client=http_client(client))
    openai.AsyncOpenAI(http_client=http_async_client(client))
    openai.OpenAI(http_client=http_async_client(client))  # type: ignore[arg-type]


def submitted(client: fastroute.Client) -> None:
    assert_type(client.submit(messages=MESSAGES), Future[fastroute.Completion])
    assert_type(client.submit(messages=MESSAGES, stream=True), Future[fastroute.Stream])
