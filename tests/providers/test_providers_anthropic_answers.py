"""The Anthropic format: what is made of answers and of the events of a stream."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors, types
from fastroute.providers import StreamDecoder, Target, get, sse

ANTHROPIC = get("anthropic")
TARGET = Target(
    endpoint="anthropic/claude",
    provider="anthropic",
    model="claude",
    upstream="claude-5",
    base_url="https://api.anthropic.com",
)
TEXT: dict[str, Any] = {"type": "text", "text": "hello"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
THOUGHT = {"type": "thinking", "thinking": "Let me think.", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "ZW5j"}
USAGE = {"input_tokens": 5, "output_tokens": 2}
JSON_WANTED = {"response_format": {"type": "json_object"}}


def ask(stream: bool = False, **params: Any) -> types.Request:
    return types.Request("claude", [{"role": "user", "content": "hi"}], params, stream)


def answer(*blocks: Any, stop: Any = "end_turn", usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    shape = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-5-1"}
    return {**shape, "content": list(blocks), "stop_reason": stop, "usage": usage, **more}


def decode(value: Any, **params: Any) -> types.Completion:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return ANTHROPIC.decode(body, ask(**params), TARGET)


# ---------------------------------------------------------------------------------------------- plain answers


def test_an_answer() -> None:
    reply = decode(answer(TEXT))
    assert (reply.id, reply.model, reply.text) == ("msg_1", "claude-5-1", "hello")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].stop_reason == "end_turn"
    assert reply.usage == types.Usage(5, 2)
    assert abs(reply.created - time.time()) < 3600  # it says when, though the format does not
    assert reply.to_dict() == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": reply.created,
        "model": "claude-5-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
                "stop_reason": "end_turn",
            }
        ],
        "usage": types.Usage(5, 2).to_dict(),
    }


def test_calls_and_thoughts() -> None:
    second = {**CALL, "id": "toolu_2", "input": {}}
    message = decode(answer(THOUGHT, HIDDEN, TEXT, CALL, second, stop="tool_use")).choices[0].message
    assert message.content == "hello"
    assert message.reasoning_content == "Let me think."
    assert message.thinking_blocks == [THOUGHT, HIDDEN]
    assert message.tool_calls == (
        types.ToolCall("toolu_1", "function", types.FunctionCall("weather", '{"city":"Rome"}')),
        types.ToolCall("toolu_2", "function", types.FunctionCall("weather", "{}")),
    )
    raw = message.to_dict()
    assert [call["id"] for call in raw["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert decode(answer(CALL, stop="tool_use")).choices[0].message.content is None


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("something_new", "something_new"),
    ],
)
def test_stop_reasons(stop: str, reason: str) -> None:
    reply = decode(answer(TEXT, CALL, stop=stop, stop_sequence="END"))
    assert reply.choices[0].finish_reason == reason
    assert (reply.choices[0].stop_reason, reply.choices[0].stop_sequence) == (stop, "END")
    decoder = run(*events(answer(TEXT, CALL, stop=stop)))
    assert decoder.finish_reason == reason


def test_a_refusal_says_why() -> None:
    why = {"type": "refusal", "category": "cyber", "explanation": "No."}
    reply = decode(answer(stop="refusal", stop_details=why))
    message = reply.choices[0].message
    assert (message.content, message.refusal) == (None, "No.")
    assert reply.choices[0].stop_details == why
    assert run(*events(answer(stop="refusal", stop_details=why))).message().refusal == "No."


def test_an_answer_may_be_empty() -> None:
    assert decode(answer()).choices[0].message.content == ""


@pytest.mark.parametrize(
    "blocks",
    [
        [TEXT, THOUGHT, CALL],
        [{**TEXT, "citations": [{"type": "char_location"}]}],
        [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, TEXT],
        [{"type": "of_the_future", "x": 1}],
    ],
    ids=["another-order", "citations", "the-provider-s-own-tool", "unknown"],
)
def test_what_openai_s_shape_cannot_hold_stays_reachable(blocks: list[Any]) -> None:
    message = decode(answer(*blocks)).choices[0].message
    assert message.content_blocks == blocks


@pytest.mark.parametrize("blocks", [[THOUGHT, TEXT, CALL], [TEXT, THOUGHT, CALL], [CALL], [HIDDEN, TEXT]])
def test_an_answer_can_be_sent_back_as_it_came(blocks: list[Any]) -> None:
    message: Any = decode(answer(*blocks)).choices[0].message
    for sent_back in (message, message.to_dict()):
        request = types.Request("claude", [{"role": "user", "content": "hi"}, sent_back])
        body = json.loads(ANTHROPIC.encode(request, TARGET))
        assert body["messages"][1] == {"role": "assistant", "content": blocks}


def test_json_without_a_schema_comes_by_a_tool() -> None:
    body = json.loads(ANTHROPIC.encode(ask(**JSON_WANTED), TARGET))
    (tool,) = body["tools"]
    assert body["tool_choice"] == {"type": "tool", "name": tool["name"], "disable_parallel_tool_use": True}
    value = answer({**CALL, "name": tool["name"]}, stop="tool_use")
    for message, reason in (
        (
            decode(value, **JSON_WANTED).choices[0].message,
            decode(value, **JSON_WANTED).choices[0].finish_reason,
        ),
        (run(*events(value), **JSON_WANTED).message(), run(*events(value), **JSON_WANTED).finish_reason),
    ):
        assert json.loads(message.content or "") == {"city": "Rome"}
        assert message.tool_calls is None
        assert reason == "stop"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", errors.EmptyResponse),
        (b'{"id": "msg_1", "cont', errors.UpstreamTruncated),
        (b"<html>", errors.UpstreamProtocolError),
        (b"[]", errors.UpstreamProtocolError),
        (b"{}", errors.EmptyResponse),
        (answer(TEXT, content=None), errors.EmptyResponse),
        (answer(TEXT, content="hello"), errors.UpstreamProtocolError),
        (answer("hello"), errors.UpstreamProtocolError),
        (answer({"type": "text", "text": None}), errors.UpstreamProtocolError),
        (answer({**CALL, "input": "{}"}), errors.UpstreamProtocolError),
        (answer({**CALL, "id": 5}), errors.UpstreamProtocolError),
        (answer(TEXT, stop=None), errors.UpstreamProtocolError),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            errors.InternalServerError,
        ),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "x"}}, errors.RateLimitError),
    ],
)
def test_what_is_no_answer(body: Any, kind: type[errors.Error]) -> None:
    with pytest.raises(kind) as caught:
        decode(body)
    assert type(caught.value) is kind


COUNT = st.integers(0, 10**6)


@given(COUNT, COUNT, COUNT, COUNT, COUNT)
def test_the_parts_of_the_usage_make_its_total(
    fresh: int, written: int, read: int, out: int, thought: int
) -> None:
    given_usage = {
        "input_tokens": fresh,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - written // 3,
            "ephemeral_1h_input_tokens": written // 3,
        },
        "output_tokens": out,
        "output_tokens_details": {"thinking_tokens": min(thought, out)},
    }
    usage = decode(answer(TEXT, usage=given_usage)).usage
    if fresh + written + read + out == 0:
        assert usage is None
        return
    prompt = fresh + written + read
    assert usage == types.Usage(
        prompt, out, read, min(thought, out), cache_write_tokens=written, cache_write_1h_tokens=written // 3
    )
    assert usage.total_tokens == fresh + written + read + out
    assert run(*events(answer(TEXT, usage=given_usage))).usage == usage


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"input_tokens": 5},
        {"output_tokens": 5},
        {"input_tokens": -1, "output_tokens": 5},
        {"input_tokens": "5", "output_tokens": 5},
        {"input_tokens": 5.0, "output_tokens": 5},
        {"input_tokens": True, "output_tokens": 5},
        {"input_tokens": 1 << 60, "output_tokens": 5},
        {"input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": "2"},
        {"input_tokens": 0, "output_tokens": 0},
    ],
)
def test_usage_that_cannot_be_relied_on_is_none(usage: Any) -> None:
    assert decode(answer(TEXT, usage=usage)).usage is None


# --------------------------------------------------------------------------------------------------- streams


def event(kind: str, **fields: Any) -> sse.ServerSentEvent:
    return sse.ServerSentEvent(kind, json.dumps({"type": kind, **fields}))


def delta(index: int, kind: str, **fields: Any) -> sse.ServerSentEvent:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def opened(usage: Any = USAGE) -> sse.ServerSentEvent:
    started = {**answer(usage={**usage, "output_tokens": 1} if usage else usage), "stop_reason": None}
    return event("message_start", message=started)


def block_events(index: int, block: dict[str, Any], size: int) -> list[sse.ServerSentEvent]:
    """The events of one block, its text in pieces of so many characters."""
    kind = block["type"]
    whole, name, bare = {
        "text": (block.get("text"), "text", {"text": ""}),
        "thinking": (block.get("thinking"), "thinking", {"thinking": "", "signature": ""}),
        "tool_use": (json.dumps(block.get("input"), ensure_ascii=False), "partial_json", {"input": {}}),
    }.get(kind, ("", "", {}))
    kinds = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
    made = [event("content_block_start", index=index, content_block={**block, **bare})]
    for place in range(0, len(whole or ""), size):
        made.append(delta(index, kinds[kind], **{name: str(whole)[place : place + size]}))
    if kind == "thinking":
        made.append(delta(index, "signature_delta", signature=block["signature"]))
    return [*made, event("content_block_stop", index=index)]


def events(value: dict[str, Any], size: int = 3) -> list[sse.ServerSentEvent]:
    """The stream that brings the same answer."""
    made = [opened(), sse.ServerSentEvent("ping", '{"type": "ping"}')]
    for index, block in enumerate(value["content"]):
        made += block_events(index, block, size)
    said = {name: value.get(name) for name in ("stop_reason", "stop_sequence", "stop_details")}
    return [*made, event("message_delta", delta=said, usage=value["usage"]), event("message_stop")]


def run(*given_events: sse.ServerSentEvent, **params: Any) -> StreamDecoder:
    decoder = ANTHROPIC.stream(ask(True, **params), TARGET)
    for each in given_events:
        decoder.feed(each)
    decoder.end()
    return decoder


def chunks(*given_events: sse.ServerSentEvent, **params: Any) -> list[types.Chunk]:
    decoder = ANTHROPIC.stream(ask(True, **params), TARGET)
    return [chunk for each in given_events for chunk in decoder.feed(each)]


def test_a_stream() -> None:
    made = chunks(*events(answer(TEXT)))
    assert [chunk.choices[0].delta.content for chunk in made] == ["", "hel", "lo", None]
    assert [chunk.choices[0].finish_reason for chunk in made] == [None, None, None, "stop"]
    assert {(chunk.id, chunk.model) for chunk in made} == {("msg_1", "claude-5-1")}
    assert [chunk.has_content for chunk in made] == [False, True, True, False]
    assert made[1].to_dict()["choices"] == [{"index": 0, "delta": {"content": "hel"}, "finish_reason": None}]
    assert made[3].choices[0].stop_reason == "end_turn"
    (*_, last) = chunks(*events(answer(TEXT)), stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ((), types.Usage(5, 2))


TEXTS = st.text(max_size=12)
BLOCKS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    TEXTS.map(lambda text: {"type": "thinking", "thinking": text, "signature": "c2ln"}),
    st.just(HIDDEN),
    st.builds(
        lambda number, city: {**CALL, "id": f"toolu_{number}", "input": {"city": city} if city else {}},
        st.integers(0, 9),
        TEXTS,
    ),
)


def calls_of(message: types.Message) -> list[Any]:
    found = [(call.id, call.function) for call in message.tool_calls or ()]
    return [(identity, function.name, json.loads(function.arguments)) for identity, function in found]


@given(st.lists(BLOCKS, max_size=5), st.integers(1, 9))
def test_a_streamed_answer_is_the_plain_one(blocks: list[dict[str, Any]], size: int) -> None:
    value = answer(*blocks)
    plain = decode(value).choices[0].message
    decoder = run(*events(value, size))
    streamed = decoder.completion().choices[0].message
    assert (streamed.content or "") == (plain.content or "")
    assert calls_of(streamed) == calls_of(plain)
    shown, expected = streamed.to_dict(), plain.to_dict()
    for name in ("reasoning_content", "thinking_blocks"):
        assert shown.get(name) == expected.get(name)
    assert decoder.usage == types.Usage(5, 2)


def test_a_call_whose_input_comes_whole_or_not_at_all() -> None:
    for given_input in ({}, {"city": "Rome"}):
        block = {**CALL, "input": given_input}
        parts = [
            event("content_block_start", index=0, content_block=block),
            event("content_block_stop", index=0),
        ]
        end = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 1})
        decoder = run(opened(), *parts, end, event("message_stop"))
        (call,) = decoder.message().tool_calls or ()
        assert json.loads(call.function.arguments) == given_input


def test_055_later_counts_take_the_place_of_earlier_ones() -> None:
    start = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1}
    decoder = ANTHROPIC.stream(ask(True), TARGET)
    decoder.feed(opened(start))
    # What is counted so far is its input.
    assert decoder.usage == types.Usage(15, 0, 4, source="estimated", cache_write_tokens=1)
    for out in (3, 7):
        decoder.feed(event("message_delta", delta={}, usage={"output_tokens": out, "input_tokens": None}))
        assert decoder.usage == types.Usage(15, out, 4, cache_write_tokens=1)
    decoder.feed(event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}))
    decoder.feed(event("message_stop"))
    assert decoder.usage == types.Usage(15, 9, 4, cache_write_tokens=1)
    decoder.end()


def test_050_a_stream_cut_off_has_used_its_input_and_what_has_come() -> None:
    decoder = ANTHROPIC.stream(ask(True, stream_options={"include_usage": True}), TARGET)
    for each in (opened({"input_tokens": 10, "cache_read_input_tokens": 90}), START):
        decoder.feed(each)
    decoder.feed(delta(0, "text_delta", text="hello"))
    assert decoder.usage == types.Usage(100, 2, 90, source="estimated")
    # Nor is an estimate shown for the provider's own count.
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": -1})
    (finish,) = decoder.feed(end)
    assert finish.usage is None
    assert decoder.feed(event("message_stop")) == ()
    assert decoder.usage == types.Usage(100, 2, 90, source="estimated")


def other_message() -> sse.ServerSentEvent:
    return sse.ServerSentEvent("message_start", opened().data.replace("msg_1", "msg_2"))


def test_what_relays_send_twice_counts_once() -> None:
    whole = events(answer(TEXT))
    (stop,) = [each for each in whole if each.event == "content_block_stop"]
    assert run(whole[0], *whole).text == "hello"
    assert run(*whole[:-2], stop, *whole[-2:]).text == "hello"
    assert len(chunks(whole[0], *whole[:-2], stop, *whole[-2:])) == len(chunks(*whole))


START = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
STOP = event("content_block_stop", index=0)


@pytest.mark.parametrize(
    "given_events",
    [
        pytest.param([START], id="block-before-message"),
        pytest.param([delta(0, "text_delta", text="x")], id="delta-before-message"),
        pytest.param([opened(), delta(0, "text_delta", text="x")], id="delta-before-block"),
        pytest.param([opened(), START, delta(1, "text_delta", text="x")], id="delta-of-another-block"),
        pytest.param([opened(), START, STOP, delta(0, "text_delta", text="x")], id="delta-after-its-block"),
        pytest.param([opened(), START, START], id="index-twice"),
        pytest.param(
            [opened(), event("content_block_start", index=1, content_block=TEXT)], id="index-left-out"
        ),
        pytest.param([opened(), other_message()], id="two-messages"),
        pytest.param([event("message_stop")], id="end-first"),
        pytest.param([event("message_start")], id="no-message"),
        pytest.param([opened(), event("content_block_start", index=0)], id="no-block"),
        pytest.param([opened(), START, event("content_block_delta", index=0)], id="no-delta"),
        pytest.param([opened(), START, delta(0, "text_delta", text=5)], id="text-is-a-number"),
        pytest.param([opened(), START, delta(True, "text_delta", text="x")], id="index-is-no-number"),
        pytest.param([opened(), event("message_delta", usage={})], id="no-message-delta"),
        pytest.param([sse.ServerSentEvent("message_start", "[1]")], id="no-object"),
        pytest.param([sse.ServerSentEvent("message_start", "{]")], id="no-json"),
    ],
)
def test_055_events_out_of_order_or_shape_are_refused(given_events: list[sse.ServerSentEvent]) -> None:
    with pytest.raises(errors.UpstreamProtocolError):
        run(*given_events)


def test_055_unknown_events_and_what_comes_after_the_end_are_passed_over() -> None:
    whole = events(answer(TEXT))
    odd = [
        sse.ServerSentEvent("of_the_future", '{"type": "of_the_future"}'),
        sse.ServerSentEvent("message", ""),
        sse.ServerSentEvent("message", '{"type": 5}'),
        sse.ServerSentEvent("ping", '{"type": "ping"}'),
    ]
    mixed = [*odd, whole[0], *odd, whole[2], delta(0, "delta_of_the_future", x=1), *whole[3:], whole[0]]
    assert run(*mixed).text == "hello"


def test_055_a_stream_without_its_end_is_cut_short() -> None:
    with pytest.raises(errors.UpstreamTruncated, match="without message_stop"):
        run(*events(answer(TEXT))[:-1])
    with pytest.raises(errors.UpstreamTruncated, match="without a finish reason"):
        run(opened(), START, STOP, event("message_stop"))
    with pytest.raises(errors.UpstreamTruncated):
        run(sse.ServerSentEvent("content_block_delta", '{"type": "content_blo'))


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, errors.InternalServerError, 529),
        ({"type": "api_error", "message": "x"}, errors.InternalServerError, 500),
        ({"type": "rate_limit_error", "message": "x"}, errors.RateLimitError, 429),
        ({"type": "invalid_request_error", "message": "x"}, errors.BadRequestError, 400),
        ({"type": "authentication_error", "message": "x"}, errors.AuthenticationError, 401),
        ({"type": "timeout_error", "message": "x"}, errors.InternalServerError, 504),
    ],
)
def test_047_an_error_event_is_the_error_that_its_status_would_be(
    error: dict[str, str], kind: type[errors.APIStatusError], status: int
) -> None:
    for name in ("error", "message"):
        with pytest.raises(kind) as caught:
            run(opened(), sse.ServerSentEvent(name, json.dumps({"type": "error", "error": error})))
        assert type(caught.value) is kind
        assert caught.value.status_code == status
    with pytest.raises(errors.InternalServerError):
        run(sse.ServerSentEvent("error", "not even JSON"))


def test_other_blocks_and_citations() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    cited = {"type": "char_location", "cited_text": "x"}
    made = [
        opened(),
        event("content_block_start", index=0, content_block=search),
        delta(0, "input_json_delta", partial_json='{"q": 1}'),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": "he"}),
        delta(1, "citations_delta", citation=cited),
        delta(1, "text_delta", text="llo"),
        delta(1, "citations_delta", citation=cited),
        event("content_block_stop", index=1),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
        event("message_stop"),
    ]
    whole = [
        {**search, "input": {"q": 1}},
        {"type": "text", "text": "hello", "citations": [cited, cited]},
    ]
    found = chunks(*made)
    assert [chunk.choices[0].delta.to_dict() for chunk in found[1:]] == [
        {"content": "he"},
        {"citations": [{**cited, "index": 0}]},
        {"content": "llo"},
        {"citations": [{**cited, "index": 1}]},
        {"content_blocks": [{**block, "index": index} for index, block in enumerate(whole)]},
    ]
    message = run(*made).message()
    assert (message.content_blocks, message.citations) == (whole, [cited, cited])
    assert decode(answer(*whole)).choices[0].message.content_blocks == whole


# ------------------------------------------------------------------------------------------------- anything

WORDS = st.sampled_from(
    [
        "type",
        "index",
        "delta",
        "content_block",
        "message",
        "usage",
        "text",
        "thinking",
        "partial_json",
        "input",
        "id",
        "name",
        "stop_reason",
        "content",
        "error",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "text_delta",
        "input_json_delta",
        "thinking_delta",
        "signature_delta",
        "tool_use",
        "end_turn",
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(ANYTHING)
def test_whatever_comes_is_an_answer_or_an_error_of_ours(value: Any) -> None:
    try:
        decode(value)
    except errors.APIError:
        pass
    ANTHROPIC.decode_error(400, {}, json.dumps(value).encode(), TARGET)


KINDS = ["content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]


@given(
    st.lists(
        st.builds(
            lambda kind, fields: sse.ServerSentEvent(kind, json.dumps({**fields, "type": kind})),
            st.sampled_from(KINDS),
            st.fixed_dictionaries(
                {"index": st.sampled_from([0, 1]) | ANYTHING},
                optional={"delta": ANYTHING, "content_block": ANYTHING, "usage": ANYTHING},
            ),
        )
        | st.just(START)
        | st.builds(lambda value: sse.ServerSentEvent("x", json.dumps(value)), ANYTHING),
        max_size=6,
    )
)
def test_whatever_is_streamed_is_an_answer_or_an_error_of_ours(
    given_events: list[sse.ServerSentEvent],
) -> None:
    try:
        run(opened(), *given_events).completion()
    except errors.APIError:
        pass
