"""The vendors' own SDKs are the oracle: what they make of a stream's bytes comes out of every door.

The same bytes, from the local provider and from bare sockets, are read by the SDK of the vendor whose format
they have, by the library, and by the OpenAI SDK over the drop-in and over the gateway, chunk by chunk and
with its own ``.stream()``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from needs import need
from raw_server import RawServer, Say
from vendor_streams import ANSWERS, STREAMS, Told, VendorStream

from fastroute import Client, types
from fastroute.gateway.app import create_app
from fastroute.integrations.openai import http_client
from fastroute.providers import Target, get, sse
from fastroute.testing import Fault, Provider

openai = need("openai")
HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
ANTHROPIC_REASONS = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
GEMINI_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "OTHER": "length",
}


class Doors:
    """A server of given bytes, and all that can be asked to read them.

    Args:
        stack: ends it all.
        raw: whether the server is one of bare sockets, and not the local provider.
    """

    def __init__(self, stack: ExitStack, raw: bool) -> None:
        self._server = stack.enter_context(RawServer(parallel=4) if raw else Provider())
        self.base_url = self._server.base_url
        self.url = self.base_url.removesuffix("/v1")
        self.client = stack.enter_context(
            Client(
                {
                    "fastroute": {"ledger": ""},
                    "cache": {"enabled": False},
                    "providers": {
                        "openai": {"base_url": self.base_url},
                        "anthropic": {"format": "anthropic", "base_url": self.url},
                        "gemini": {"format": "gemini", "base_url": self.url},
                    },
                    "endpoints": [
                        {"provider": name, "model": name} for name in ("openai", "anthropic", "gemini")
                    ],
                }
            )
        )
        self.drop_in = stack.enter_context(
            openai.OpenAI(api_key="unused", http_client=http_client(self.client), max_retries=0)
        )
        app = create_app(client=self.client)
        stack.callback(app.close)
        server = need("waitress.server").create_server(app, map={}, host="127.0.0.1", port=0, threads=4)
        thread = threading.Thread(target=server.run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.task_dispatcher.shutdown)
        stack.callback(server.close)
        self.gateway = stack.enter_context(
            openai.OpenAI(
                api_key="unused", base_url=f"http://127.0.0.1:{server.effective_port}/v1", max_retries=0
            )
        )

    def serve(self, body: bytes, kind: str = "text/event-stream") -> None:
        """Answers all requests from now on with this body."""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode()
        if isinstance(self._server, Provider):
            self._server.clear_script()
            self._server.script(Fault.raw(head, body), repeat=True)
        else:
            self._server.say = Say(head + body, "cut")

    def by_vendor(self, stream: VendorStream) -> Told:
        return {"openai": self._by_openai, "anthropic": self._by_anthropic, "gemini": self._by_gemini}[
            stream.format
        ](stream)

    def _by_openai(self, stream: VendorStream) -> Told:
        with openai.OpenAI(api_key="unused", base_url=self.base_url, max_retries=0) as sdk:
            return by_sdk_stream(sdk, stream, door=False)

    def _by_anthropic(self, stream: VendorStream) -> Told:
        anthropic = need("anthropic")
        with (
            anthropic.Anthropic(api_key="unused", base_url=self.url, max_retries=0) as sdk,
            sdk.messages.stream(model="m", max_tokens=9, messages=HELLO) as events,
        ):
            whole = events.get_final_message()
        blocks = [block.to_dict() for block in whole.content]
        kinds = {
            kind: [block for block in blocks if block["type"] in kind]
            for kind in (("text",), ("tool_use",), ("thinking",), ("thinking", "redacted_thinking"))
        }
        text, tools, thoughts, thinking = kinds.values()
        return Told(
            "".join(block["text"] for block in text),
            "".join(block["thinking"] for block in thoughts),
            tuple((block["name"], block["input"]) for block in tools),
            ANTHROPIC_REASONS[whole.stop_reason],
            chosen({"content_blocks": blocks, "thinking_blocks": thinking}, stream),
        )

    def _by_gemini(self, stream: VendorStream) -> Told:
        genai = need("google.genai")
        options = genai.types.HttpOptions(base_url=self.url)
        client = genai.Client(api_key="unused", http_options=options)
        answers = list(client.models.generate_content_stream(model="m", contents="Say hello"))
        client.close()
        parts = [part for answer in answers for part in answer.candidates[0].content.parts or ()]
        shown = [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in parts]
        images = [
            {"type": "image_url", "image_url": {"url": f"data:{data['mimeType']};base64,{data['data']}"}}
            for part in shown
            if (data := part.get("inlineData"))
        ]
        reasons = [answer.candidates[0].finish_reason for answer in answers]
        return Told(
            "".join(part.text for part in parts if part.text and not part.thought),
            "".join(part.text for part in parts if part.text and part.thought),
            tuple((part.function_call.name, part.function_call.args) for part in parts if part.function_call),
            "tool_calls"
            if any(part.function_call for part in parts)
            else GEMINI_REASONS[[reason.value for reason in reasons if reason][-1]],
            chosen({"content_parts": shown, "images": images}, stream),
        )


def chosen(fields: Mapping[str, Any], stream: VendorStream) -> dict[str, Any]:
    """The fields that the stream is compared by, without the indices that lists have in streams."""
    return {name: bare(fields.get(name)) for name in stream.fields}


def bare(value: Any) -> Any:
    if isinstance(value, list):
        return [bare(item) for item in value]
    if isinstance(value, Mapping):
        return {
            name: bare(item) for name, item in value.items() if name != "index" and item not in (None, [])
        }
    return value


def told(message: Mapping[str, Any], finish: str | None, stream: VendorStream) -> Told:
    """A message in OpenAI's shape."""
    calls = []
    for call in message.get("tool_calls") or ():
        if call["type"] == "custom":
            calls.append((call["custom"]["name"], call["custom"]["input"]))
        else:
            calls.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
    return Told(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        tuple(calls),
        finish,
        chosen(message, stream),
    )


def by_sdk_stream(sdk: Any, stream: VendorStream, *, door: bool = True) -> Told:
    """Put together by the OpenAI SDK's own ``.stream()``."""
    with sdk.chat.completions.stream(model=stream.format, messages=HELLO) as events:
        for _ in events:
            pass
        (choice,) = events.current_completion_snapshot.choices
    # Over our doors only: of a server that sends the role with every chunk the SDK makes assistantassistant.
    assert not door or choice.message.role in ("assistant", None)
    return told(choice.message.to_dict(), choice.finish_reason, stream)


def by_chunks(chunks: Iterable[Any], stream: VendorStream) -> Told:
    """Put together from chunks as programs do it: text and calls by index, all else from its last chunk."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = None
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.to_dict()
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for fragment in delta.get("tool_calls") or ():
                add(message["tool_calls"], fragment)
            finish = choice.finish_reason or finish
    return told(message, finish, stream)


def add(calls: list[Any], fragment: dict[str, Any]) -> None:
    kind = "custom" if "custom" in fragment else "function"
    if fragment["index"] == len(calls):
        calls.append(
            {"type": kind, "custom": {"name": "", "input": ""}, "function": {"name": "", "arguments": ""}}
        )
    known = calls[fragment["index"]][kind]
    for name, text in fragment[kind].items():
        known[name] += text or ""


@pytest.fixture(scope="module", params=[False, True], ids=["testing", "raw"])
def doors(request: pytest.FixtureRequest) -> Iterator[Doors]:
    with ExitStack() as stack:
        yield Doors(stack, request.param)


def named(stream: VendorStream) -> str:
    return f"{stream.format}-{stream.name.replace(' ', '-')}"


@pytest.mark.parametrize("stream", STREAMS, ids=named)
def test_every_door_gives_what_the_vendors_sdk_gives(doors: Doors, stream: VendorStream) -> None:
    doors.serve(stream.body)
    wanted = stream.wanted or doors.by_vendor(stream)
    with doors.client.chat.completions.create(model=stream.format, messages=HELLO, stream=True) as heard:
        plain = by_chunks(heard, stream)
    whole = heard.completion().choices[0]
    answers = {"the library": told(whole.message.to_dict(), whole.finish_reason, stream)}
    for name, sdk in (("the drop-in", doors.drop_in), ("the gateway", doors.gateway)):
        answers[f"{name}, .stream()"] = by_sdk_stream(sdk, stream)
        answers[f"{name}, by chunk"] = by_chunks(
            sdk.chat.completions.create(model=stream.format, messages=HELLO, stream=True), stream
        )
    answers["the library, by chunk"] = plain
    for name, answer in answers.items():
        expected = wanted
        if "by chunk" in name:
            expected = Told(wanted.text, wanted.thoughts, wanted.calls, wanted.finish, answer.fields)
        if "library" in name and answer.finish == "other":
            # Gemini's own word, which only the doors must not pass on.
            expected = Told(wanted.text, wanted.thoughts, wanted.calls, "other", answer.fields)
        assert answer == expected, name


def target_of(stream: VendorStream) -> Target:
    return Target(
        endpoint="a/m",
        provider="a",
        model="m",
        upstream="gemini-2.5-flash" if stream.format == "gemini" else "up",
        base_url="http://127.0.0.1/v1",
    )


CALLING = [stream for stream in STREAMS if " call" in f" {stream.name}" and "old" not in stream.name]


@pytest.mark.parametrize("stream", CALLING, ids=named)
def test_langchain_builds_the_same_calls(doors: Doors, stream: VendorStream) -> None:
    chat = need("langchain_openai").ChatOpenAI
    doors.serve(stream.body)
    wanted = stream.wanted or doors.by_vendor(stream)
    model = chat(model=stream.format, api_key="unused", http_client=http_client(doors.client), max_retries=0)
    first, *rest = model.stream([("user", "Say hello")])
    for chunk in rest:
        first += chunk
    assert tuple((call["name"], call["args"]) for call in first.tool_calls) == wanted.calls


def in_one_piece(doors: Doors, stream: VendorStream) -> dict[str, Any]:
    """The body of the same answer, if it had not been streamed."""
    if stream.format == "anthropic":
        doors.serve(stream.body)
        with (
            need("anthropic").Anthropic(api_key="unused", base_url=doors.url, max_retries=0) as sdk,
            sdk.messages.stream(model="m", max_tokens=9, messages=HELLO) as events,
        ):
            made: dict[str, Any] = events.get_final_message().to_dict()
        return made
    events = [json.loads(line[6:]) for line in stream.body.splitlines() if line.startswith(b"data: ")]
    candidates = [event["candidates"][0] for event in events]
    parts = [part for candidate in candidates for part in candidate["content"]["parts"]]
    (*_, reason) = [candidate["finishReason"] for candidate in candidates if "finishReason" in candidate]
    whole = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": reason}
    return {**events[-1], "candidates": [whole]}


@pytest.mark.parametrize("stream", [each for each in STREAMS if each.format != "openai"], ids=named)
def test_a_plain_answer_is_the_streamed_one(doors: Doors, stream: VendorStream) -> None:
    doors.serve(stream.body)
    wanted = doors.by_vendor(stream)
    doors.serve(json.dumps(in_one_piece(doors, stream)).encode(), "application/json")
    for door in (doors.client, doors.drop_in, doors.gateway):
        choice = door.chat.completions.create(model=stream.format, messages=HELLO).choices[0]
        reason = "length" if choice.finish_reason == "other" else choice.finish_reason
        assert told(choice.message.to_dict(), reason, stream) == wanted


RETURNING = {
    "anthropic": [stream for stream in STREAMS if stream.format == "anthropic"],
    "gemini": [
        stream
        for stream in STREAMS
        if stream.format == "gemini" and (stream.fields or "calls" in stream.name)
    ],
}


def returned(doors: Doors, stream: VendorStream) -> Any:
    """What goes back to the format of an answer that the OpenAI SDK put together over the drop-in."""
    doors.serve(stream.body)
    with doors.drop_in.chat.completions.stream(model=stream.format, messages=HELLO) as events:
        for _ in events:
            pass
        said = events.current_completion_snapshot.choices[0].message.to_dict()
    request = types.Request("m", [*HELLO, said, {"role": "user", "content": "Go on."}])
    return json.loads(get(stream.format).encode(request, target_of(stream)))


@pytest.mark.parametrize("stream", RETURNING["anthropic"], ids=named)
def test_claudes_answer_goes_back_as_it_came(doors: Doors, stream: VendorStream) -> None:
    sent = returned(doors, stream)["messages"][1]["content"]
    anthropic = need("anthropic")
    with (
        anthropic.Anthropic(api_key="unused", base_url=doors.url, max_retries=0) as sdk,
        sdk.messages.stream(model="m", max_tokens=9, messages=HELLO) as events,
    ):
        whole = [block.to_dict() for block in events.get_final_message().content]
    if isinstance(sent, str):
        sent = [{"type": "text", "text": sent}]
    assert all("index" not in block for block in sent)
    assert bare(sent) == bare(whole)


@pytest.mark.parametrize("stream", RETURNING["gemini"], ids=named)
def test_geminis_answer_goes_back_as_it_came(doors: Doors, stream: VendorStream) -> None:
    sent = returned(doors, stream)["contents"][1]["parts"]
    events = [json.loads(line[6:]) for line in stream.body.splitlines() if line.startswith(b"data: ")]
    parts = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    for part in sent:
        part.get("functionCall", {}).pop("id", None)  # which the decoder gave it
    assert sent == parts


@pytest.mark.parametrize("name", ANSWERS)
def test_every_door_passes_an_answer_on(doors: Doors, name: str) -> None:
    body, message, reason = ANSWERS[name]
    doors.serve(json.dumps(body).encode(), "application/json")
    ask = {"model": "openai", "messages": HELLO}
    with openai.OpenAI(api_key="unused", base_url=doors.base_url, max_retries=0) as sdk:
        direct = sdk.chat.completions.create(**ask).choices[0]
    wanted = message or direct.message.to_dict()
    for door in (doors.drop_in, doors.gateway):
        choice = door.chat.completions.create(**ask).choices[0]
        assert bare(choice.message.to_dict()) == bare({"role": "assistant", **wanted})
        assert choice.finish_reason == (reason or direct.finish_reason)
        assert reason is None or choice.stop_reason == direct.finish_reason
    ours = doors.client.chat.completions.create(**ask).choices[0]
    assert bare(ours.message.to_dict()) == bare({"role": "assistant", **wanted})
    assert ours.finish_reason == direct.finish_reason


@pytest.mark.parametrize("stream", STREAMS, ids=named)
def test_a_cut_anywhere_changes_nothing(stream: VendorStream) -> None:
    format, target = get(stream.format), target_of(stream)

    def read(*pieces: bytes) -> Told:
        source, decoder = sse.Decoder(), format.stream(types.Request("m", HELLO, {}, True), target)
        for event in [event for piece in pieces for event in source.feed(piece)] + source.end():
            decoder.feed(event)
        decoder.end()
        return told(decoder.message().to_dict(), decoder.finish_reason, stream)

    whole = read(stream.body)
    assert whole.finish
    for place in range(1, len(stream.body)):
        assert read(stream.body[:place], stream.body[place:]) == whole, place
    assert read(*(stream.body[place : place + 1] for place in range(len(stream.body)))) == whole
