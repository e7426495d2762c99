"""Streams of the OpenAI format: events to chunks, and what the chunks add up to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import need

from fastroute import errors, types
from fastroute.providers import Target, base, get, sse

SDK: Any = need("openai.lib.streaming.chat")
SDKChunk: Any = need("openai.types.chat").ChatCompletionChunk
OPENAI = get("openai")
TARGET = Target(
    endpoint="openai/gpt",
    provider="openai",
    model="gpt",
    upstream="gpt-2025",
    base_url="https://api.example.com/v1",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def ask(**params: Any) -> types.Request:
    return types.Request("gpt", [{"role": "user", "content": "hello"}], params, True)


# --------------------------------------------------------------------------------------------------- stream


def chunk(
    *, choices: list[dict[str, Any]] | None = None, finish: str | None = None, index: int = 0, **delta: Any
) -> str:
    if choices is None:
        choices = [{"index": index, "delta": delta, "finish_reason": finish}]
    return json.dumps({"id": "c1", "created": 5, "model": "gpt-2025-04", "choices": choices})


USAGE = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'


def run(*data: str, **params: Any) -> tuple[base.StreamDecoder, list[types.Chunk]]:
    decoder = OPENAI.stream(ask(**params), TARGET)
    chunks = [made for text in data for made in decoder.feed(sse.ServerSentEvent(data=text))]
    return decoder, chunks


def test_a_stream() -> None:
    decoder, chunks = run(
        chunk(role="assistant", content=""),
        chunk(content="he"),
        chunk(content="llo"),
        chunk(finish="stop"),
        USAGE,
        "[DONE]",
    )
    decoder.end()
    assert [made.choices[0].delta.content for made in chunks] == ["", "he", "llo", None]
    assert decoder.text == "hello"
    assert decoder.output_chars == 5
    assert decoder.finish_reason == "stop"
    assert decoder.done
    assert decoder.finished
    assert decoder.usage == types.Usage(5, 2)
    reply = decoder.completion()
    assert (reply.id, reply.created, reply.model, reply.text) == ("c1", 5, "gpt-2025-04", "hello")
    assert reply.usage == types.Usage(5, 2)
    assert reply.to_dict()["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    ]


def test_usage_is_shown_to_those_who_asked() -> None:
    hidden = json.loads(chunk(content="a"))
    hidden["usage"] = None
    _, chunks = run(json.dumps(hidden), chunk(finish="stop"), USAGE, stream_options={"include_usage": True})
    assert chunks[-1].usage == types.Usage(5, 2)
    assert chunks[-1].choices == ()
    assert "usage" in chunks[0].to_dict()
    _, chunks = run(json.dumps(hidden), chunk(finish="stop"), USAGE)
    assert [made.usage for made in chunks] == [None, None]
    assert "usage" not in chunks[0].to_dict()


def test_the_last_usage_counts_and_none_is_summed() -> None:
    def with_usage(prompt: int | None) -> str:
        body = json.loads(chunk(content="a"))
        body["usage"] = prompt and {"prompt_tokens": prompt, "completion_tokens": 1}
        return json.dumps(body)

    decoder, _ = run(with_usage(5), with_usage(6), with_usage(None))
    assert decoder.usage == types.Usage(6, 1)


def test_the_end_mark_may_be_missing_but_not_the_reason() -> None:
    decoder, _ = run(chunk(content="a"), chunk(finish="stop"))
    decoder.end()
    assert (decoder.finished, decoder.done) == (True, False)
    for data in ([chunk(content="a")], [chunk(content="a"), "[DONE]"], []):
        decoder, _ = run(*data)
        with pytest.raises(errors.UpstreamTruncated) as caught:
            decoder.end()
        assert caught.value.maybe_billed
    decoder, _ = run("[DONE]")
    with pytest.raises(errors.EmptyResponse):
        decoder.end()


def test_every_choice_must_have_ended() -> None:
    decoder, _ = run(chunk(content="a"), chunk(content="b", index=1), chunk(finish="stop", index=1))
    assert not decoder.finished
    with pytest.raises(errors.UpstreamTruncated):
        decoder.end()
    decoder.feed(sse.ServerSentEvent(data=chunk(finish="length")))
    decoder.end()
    assert [choice.message.content for choice in decoder.completion().choices] == ["a", "b"]
    assert [choice.finish_reason for choice in decoder.completion().choices] == ["length", "stop"]


def test_nothing_counts_after_the_end_mark() -> None:
    decoder, chunks = run(
        chunk(content="a"), chunk(finish="stop"), "[DONE]", chunk(content="b"), "[DONE]", "rubbish"
    )
    assert len(chunks) == 2
    assert decoder.text == "a"


def call(
    index: int | None, id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    made: dict[str, Any] = {"id": id, "function": {"name": name, "arguments": arguments}}
    if index is not None:
        made["index"] = index
    return made


def test_tool_calls_are_put_together_by_their_index() -> None:
    decoder, chunks = run(
        chunk(tool_calls=[call(0, "a", "f", '{"x":"\\u')]),
        chunk(tool_calls=[call(1, "b", "g", "{}")]),
        chunk(tool_calls=[call(0, "", None, '00e9"}')]),
        chunk(finish="tool_calls"),
    )
    decoder.end()
    message = decoder.message()
    assert message.content is None
    assert message.tool_calls == (
        types.ToolCall("a", "function", types.FunctionCall("f", '{"x":"\\u00e9"}')),
        types.ToolCall("b", "function", types.FunctionCall("g", "{}")),
    )
    assert json.loads(message.to_dict()["tool_calls"][0]["function"]["arguments"]) == {"x": "\xe9"}
    assert chunks[0].choices[0].delta.tool_calls == (
        types.ToolCall("a", None, types.FunctionCall("f", '{"x":"\\u'), 0),
    )


def test_tool_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    decoder, _ = run(
        chunk(tool_calls=[call(None, "a", "f", "{}"), call(None, "b", "g", "{}")]), chunk(finish="tool_calls")
    )
    assert [made.id for made in decoder.message().tool_calls or ()] == ["a", "b"]


# One row: fragments (index, id, name, arguments), and the calls (id, name, arguments) that they are.
READINGS: dict[str, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]] = {
    "by the book": (
        [(0, "a", "f", ""), (1, "b", "g", ""), (0, None, None, "{}"), (1, None, None, "[]")],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "all at index 0, each with an id (Ollama)": (
        [(0, "a", "f", "{}"), (0, "b", "f", "[]")],
        [("a", "f", "{}"), ("b", "f", "[]")],
    ),
    "all at index 0, in fragments with their ids": (
        [(0, "a", "f", ""), (0, "b", "g", ""), (0, "a", None, "{}"), (0, "b", None, "[]")],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "all at index 0, the second one in fragments": (
        [(0, "a", "f", "{}"), (0, "b", "g", ""), (0, None, None, "[]")],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "another id with every fragment": (
        [(0, "a", "f", "{"), (0, "b", None, "}"), (1, "c", "g", "["), (1, "d", "", "]")],
        [("a", "f", "{}"), ("c", "g", "[]")],
    ),
    "another id with every fragment, no index": (
        [(None, "a", "f", "{"), (None, "b", None, "}"), (None, "c", "g", "[]")],
        [("a", "f", "{}"), ("c", "g", "[]")],
    ),
    "the id and the name with every fragment": (
        [(0, "a", "f", "{"), (0, "a", "f", "}"), (1, "b", "f", "[]")],
        [("a", "f", "{}"), ("b", "f", "[]")],
    ),
    "indices from 1": ([(1, "a", "f", "{}"), (2, "b", "g", "[]")], [("a", "f", "{}"), ("b", "g", "[]")]),
    "no index": ([(None, "a", "f", "{}"), (None, "b", "g", "[]")], [("a", "f", "{}"), ("b", "g", "[]")]),
    "no index, in fragments with ids": (
        [(None, "a", "f", ""), (None, "b", "g", "["), (None, "a", None, "{}"), (None, "b", None, "]")],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "no id": (
        [(0, None, "f", "{"), (0, None, None, "}"), (1, "", "g", "[]")],
        [("", "f", "{}"), ("", "g", "[]")],
    ),
    "no id, all at index 0": (
        [(0, None, "f", '{"a":1}'), (0, None, "f", '{"a":2}'), (0, None, "g", "{}")],
        [("", "f", '{"a":1}'), ("", "f", '{"a":2}'), ("", "g", "{}")],
    ),
    "no id, the name with every fragment": ([(0, None, "f", "{"), (0, None, "f", "}")], [("", "f", "{}")]),
    "neither index nor id": (
        [(None, None, "f", ""), (None, None, None, "{}"), (None, None, "g", "[]")],
        [("", "f", "{}"), ("", "g", "[]")],
    ),
    "neither, the same function twice": (
        [(None, None, "f", '{"a":1}'), (None, None, "f", '{"a":2}')],
        [("", "f", '{"a":1}'), ("", "f", '{"a":2}')],
    ),
    "a name in pieces": (
        [(0, "a", "wea", ""), (0, None, "ther", ""), (0, None, None, "{}")],
        [("a", "weather", "{}")],
    ),
}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("together", [False, True], ids=["a-chunk-each", "in-one-chunk"])
def test_057_fragments_have_one_reading(name: str, together: bool) -> None:
    fragments, wanted = READINGS[name]
    written = [call(*each) for each in fragments]
    said = [chunk(tool_calls=written)] if together else [chunk(tool_calls=[each]) for each in written]
    decoder, chunks = run(*said, chunk(finish="tool_calls"))
    decoder.end()
    calls = decoder.message().tool_calls or ()
    assert [(made.function.name, made.function.arguments) for made in calls] == [each[1:] for each in wanted]
    for made, (identity, *_) in zip(calls, wanted):
        assert made.id == identity if identity else (made.id or "").startswith("call_")
    assert len({made.id for made in calls}) == len(calls)
    # And so they are for one who adds the chunks up as the OpenAI SDK does.
    state = SDK.ChatCompletionStreamState()
    for each in chunks:
        state.handle_chunk(SDKChunk.model_validate({"object": each.object, **each.to_dict()}))
    theirs = state.get_final_completion().choices[0].message.tool_calls
    assert [(each.id, each.function.name, each.function.arguments) for each in theirs] == [
        (made.id, made.function.name, made.function.arguments) for made in calls
    ]
    assert [each.index for each in theirs] == list(range(len(calls)))


STYLES = ("by the book", "all at index 0", "no index", "another id each time", "the id each time", "from 7")


@given(
    st.lists(
        st.tuples(st.sampled_from(["f", "g"]), st.dictionaries(st.text(max_size=3), JSON, max_size=2)),
        max_size=4,
    ),
    st.sampled_from(STYLES),
    st.integers(1, 9),
)
def test_057_calls_in_any_style_and_in_any_pieces_are_the_same(
    calls: list[tuple[str, dict[str, Any]]], style: str, size: int
) -> None:
    wanted = [(f"id{place}", name, json.dumps(given)) for place, (name, given) in enumerate(calls)]
    fragments = []
    for place, (identity, name, text) in enumerate(wanted):
        index = {"all at index 0": 0, "no index": None, "from 7": 7 + place}.get(style, place)
        fragments.append(call(index, identity, name))
        for start in range(0, len(text), size):
            again = {"another id each time": f"{identity}-{start}", "the id each time": identity}.get(style)
            fragments.append(call(index, again, None, text[start : start + size]))
    decoder, chunks = run(*(chunk(tool_calls=[each]) for each in fragments), chunk(finish="tool_calls"))
    decoder.end()
    found = decoder.message().tool_calls or ()
    assert [(made.id, made.function.name, made.function.arguments) for made in found] == wanted
    shown = [each for made in chunks for choice in made.choices for each in choice.delta.tool_calls or ()]
    assert [each.index for each in shown if each.id] == list(range(len(calls)))


def test_fields_unknown_here_pass_through() -> None:
    body = json.loads(chunk(content="a", reasoning_content="why", refusal="no", odd=[1]))
    body["obfuscation"] = "xyz"
    decoder, chunks = run(json.dumps(body), chunk(finish="stop"))
    assert chunks[0].to_dict() == body
    assert chunks[0].obfuscation == "xyz"
    assert chunks[0].choices[0].delta.reasoning_content == "why"
    assert decoder.message().to_dict() == {
        "role": "assistant", "content": "a", "refusal": "no", "reasoning_content": "why", "odd": [1],
    }  # fmt: skip
    assert decoder.output_chars == 6


@pytest.mark.parametrize(
    ("thoughts", "chars"),
    [
        (["hm", "m"], 3),
        ([[{"type": "text", "text": "hm"}], [{"type": "text", "text": "m"}]], 3),
        ([["hm", {"text": None}, {"text": [{"text": "m"}]}, 5]], 3),
        ([[]], 0),
        ([{"text": "hm"}], 0),
        ([7], 0),
    ],
)
def test_thoughts_count_as_written_whether_they_are_text_or_parts(thoughts: list[Any], chars: int) -> None:
    """An answer that is cut off is charged by what the model wrote."""
    decoder, _ = run(*(chunk(reasoning_content=thought) for thought in thoughts), chunk(content="42"))
    assert decoder.output_chars == chars + 2


def test_half_a_surrogate_pair_in_each_of_two_chunks() -> None:
    decoder, chunks = run(
        '{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}',
        '{"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}',
    )
    assert [made.choices[0].delta.content for made in chunks] == ["\ud83d", "\ude00"]
    assert decoder.text == "\ud83d\ude00"


@pytest.mark.parametrize(
    "data",
    [
        "rubbish",
        "[]",
        "3",
        '{"choices":5}',
        '{"choices":["x"]}',
        '{"choices":[{"delta":5}]}',
        "[1,2",
        '{"choices":[{"index":-1,"delta":{}}]}',
        '{"choices":[{"index":99999999,"delta":{}}]}',
        '{"choices":[{"index":"0"}]}',
        '{"choices":[{"delta":{"content":5}}]}',
        '{"choices":[{"delta":{"tool_calls":{}}}]}',
        '{"choices":[NaN]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":-1}]}}]}',
    ],
)
def test_events_that_are_no_chunks(data: str) -> None:
    with pytest.raises(errors.UpstreamProtocolError) as caught:
        run(data)
    assert caught.value.maybe_billed


def test_an_event_cut_off_by_the_end_of_the_stream() -> None:
    with pytest.raises(errors.UpstreamTruncated):
        run('{"choices":[{"index":0,"de')


@pytest.mark.parametrize(
    "data", ["", " ", "{}", '{"choices":[]}', '{"choices":null}', '{"choices":[],"prompt_filter_results":[]}']
)
def test_events_that_bring_nothing(data: str) -> None:
    decoder, chunks = run(data)
    assert chunks == []
    assert not decoder.finished


def test_an_error_event_by_its_name() -> None:
    decoder = OPENAI.stream(ask(), TARGET)
    with pytest.raises(errors.InternalServerError, match="overloaded"):
        decoder.feed(sse.ServerSentEvent("error", '{"type":"overloaded_error","message":"overloaded"}'))
    with pytest.raises(errors.InternalServerError, match="went down"):
        OPENAI.stream(ask(), TARGET).feed(sse.ServerSentEvent("error", "went down"))


@given(JSON)
def test_no_event_raises_anything_unexpected(value: Any) -> None:
    try:
        run(json.dumps(value), chunk(choices=[{"delta": value}]), chunk(choices=[value]))
    except errors.APIError:
        pass
