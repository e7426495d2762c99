"""The asynchronous half of the OpenAI SDK and of LangChain, with each call in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback
from needs import need

import fastroute
from fastroute.integrations.openai import http_async_client, http_client
from fastroute.testing import Answer, Fault, Provider

openai = need("openai")

Start = Callable[..., Loopback]
HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]


def run(loop: Loopback, work: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    """The result of work with an SDK whose calls the client routes."""

    async def inside() -> Any:
        made = http_async_client(loop.client, **options)
        async with openai.AsyncOpenAI(api_key="unused", http_client=made, max_retries=0) as sdk:
            return await work(sdk)

    return asyncio.run(inside())


def test_a_call_is_routed(start: Start) -> None:
    loop = start(1)

    async def work(sdk: Any) -> Any:
        return await sdk.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"route": {"tags": {"team": "search"}}}
        )

    reply = run(loop, work)
    assert reply.choices[0].message.content == "Say hello"
    assert loop.attempts[-1].tags == {"team": "search"}


def test_calls_run_side_by_side(start: Start) -> None:
    loop = start({"a": Provider(latency=0.3)})
    seen: list[int] = []

    async def work(sdk: Any) -> Any:
        async def one(number: int) -> Any:
            seen.append(threading.get_ident())
            question = [{"role": "user", "content": f"question {number}"}]
            return await sdk.chat.completions.create(model=MODEL, messages=question)

        return await asyncio.gather(*(one(number) for number in range(8)))

    replies = run(loop, work)
    assert [reply.choices[0].message.content for reply in replies] == [f"question {n}" for n in range(8)]
    assert set(seen) == {threading.get_ident()}
    assert loop.provider().peak_in_flight > 1


def test_a_stream_arrives_in_pieces_and_its_figures_are_kept(start: Start) -> None:
    loop = start({"a": Provider(answer=Answer(content="one two three four five six seven"))})

    async def work(sdk: Any) -> Any:
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]

    pieces = run(loop, work)
    assert "".join(pieces) == "one two three four five six seven"
    assert len(pieces) > 2
    assert loop.attempts[-1].outcome == "ok"


def test_the_sdks_stream_helper_works(start: Start) -> None:
    loop = start(1)

    async def work(sdk: Any) -> Any:
        async with sdk.chat.completions.stream(model=MODEL, messages=HELLO) as events:
            return await events.get_final_completion()

    assert run(loop, work).choices[0].message.content == "Say hello"


def test_errors_are_the_sdks_own(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(401), repeat=True)

    async def refused(sdk: Any) -> Any:
        with pytest.raises(openai.AuthenticationError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
        with pytest.raises(openai.NotFoundError, match="embeddings"):
            await sdk.embeddings.create(model=MODEL, input="x")
        return [model.id async for model in sdk.models.list()]

    assert MODEL in run(loop, refused)
    late = start({"a": Provider(latency=5.0)})

    async def timed_out(sdk: Any) -> None:
        with pytest.raises(openai.APITimeoutError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, timeout=0.3)

    run(late, timed_out)


def test_a_cancelled_call_is_abandoned_and_recorded(start: Start) -> None:
    loop = start({"a": Provider(latency=0.6)})

    async def work(sdk: Any) -> None:
        task = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=HELLO))
        await asyncio.to_thread(loop.provider().wait_until, lambda at: at.received == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.attempts, "the task waited for the call"
        await asyncio.to_thread(ended.wait, 10)

    ended = threading.Event()
    loop.client.on(lambda event: ended.set(), fastroute.events.CallFinished)
    run(loop, work)
    assert [attempt.outcome for attempt in loop.attempts] == ["ok"]


def test_a_stream_that_begins_after_its_call_was_cancelled_is_closed(start: Start) -> None:
    loop = start({"a": Provider(latency=0.6, answer=Answer(content="word " * 50))})

    async def work(sdk: Any) -> None:
        task = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
        await asyncio.to_thread(loop.provider().wait_until, lambda at: at.received == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(ended.wait, 10)

    ended = threading.Event()
    loop.client.on(lambda event: ended.set(), fastroute.events.AttemptFinished)
    run(loop, work)
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]


def test_a_stream_whose_reader_is_cancelled_is_closed(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.stream_stall(2))

    async def work(sdk: Any) -> None:
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        begun = asyncio.Event()

        async def read() -> None:
            async with stream:
                async for _ in stream:
                    begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(loop, work)
    assert [attempt.outcome for attempt in loop.attempts] == ["client_cancelled"]


def test_one_client_serves_several_loops_and_few_threads(start: Start) -> None:
    loop = start(1)
    made = http_async_client(loop.client, threads=2)
    for _ in "12":

        async def work() -> Any:
            sdk = openai.AsyncOpenAI(api_key="unused", http_client=made, max_retries=0)
            calls = (sdk.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(6))
            return await asyncio.gather(*calls)

        assert len(asyncio.run(work())) == 6
    asyncio.run(made.aclose())


def test_the_two_clients_are_not_mixed_up(start: Start) -> None:
    loop = start(1)
    wrong: Any = http_client(loop.client)
    with pytest.raises(TypeError, match="AsyncClient"):
        openai.AsyncOpenAI(api_key="unused", http_client=wrong)
    wrong.close()
    made: Any = http_async_client(loop.client)
    with pytest.raises(TypeError, match="Client"):
        openai.OpenAI(api_key="unused", http_client=made)
    asyncio.run(made.aclose())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_is_routed_in_both_halves(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    langchain = need("langchain_openai")
    with Provider() as vendor:
        monkeypatch.setenv("OPENAI_BASE_URL", vendor.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-program")
        loop = start(1)
        with http_client(loop.client) as plain:
            threaded = http_async_client(loop.client)
            chat = langchain.ChatOpenAI(
                model=MODEL, api_key="unused", http_client=plain, http_async_client=threaded, max_retries=0
            )

            async def both() -> tuple[str, str]:
                answer = (await chat.ainvoke("first")).content
                streamed = "".join([piece.content async for piece in chat.astream("second")])
                await threaded.aclose()
                return answer, streamed

            assert chat.invoke("zero").content == "zero"
            assert asyncio.run(both()) == ("first", "second")
        assert vendor.received == 0
    assert loop.provider().received == 3
    keys = {sent.headers.get("authorization") for sent in loop.provider().requests}
    assert "Bearer sk-of-the-program" not in keys
    assert json.loads(loop.provider().requests[0].body)["model"] == MODEL
