"""OpenAI's interface as bytes: what a body may say, and what answers, chunks and errors become."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import MODEL, OTHER, Loopback

from fastroute import errors, types
from fastroute.integrations import wire_openai
from fastroute.integrations.wire_openai import STRANGERS, TRUSTED, BodyLimits
from fastroute.testing import Answer, Fault

Start = Callable[..., Loopback]
HELLO = [{"role": "user", "content": "Say hello"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": HELLO, **fields}).encode()


# ------------------------------------------------------------------------------------------------- reading


def test_a_body_becomes_a_call() -> None:
    call = wire_openai.parse(body(stream=True, temperature=0, route={"tier": "cheap"}, new_thing=[1]))
    assert call.messages == HELLO
    assert (call.model, call.stream, call.route) == (MODEL, True, {"tier": "cheap"})
    assert call.params == {"temperature": 0, "new_thing": [1]}


def test_routing_words_of_the_header_lie_under_those_of_the_body() -> None:
    call = wire_openai.parse(body(route={"tier": "dear"}), route='{"tier": "cheap", "cache": false}')
    assert call.route == {"tier": "dear", "cache": False}
    assert wire_openai.parse(body(), route='{"cache": false}').route == {"cache": False}


@pytest.mark.parametrize("words", ["cheap", "[]", "{", '{"tier": NaN}', "{}ö", "\u20ac"])
def test_routing_words_that_are_none_are_refused(words: str) -> None:
    with pytest.raises(errors.BadRequestError, match="x-fastroute-route") as caught:
        wire_openai.parse(body(), route=words)
    assert caught.value.param == "route"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b'{"messages": [', "stops before its end"),
        (b"[]", "array"),
        (b"3", "number"),
        (b"null", "null"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"model": "ü"}'.encode("latin-1"), "UTF-8"),
        ('{"model": "m"}'.encode("utf-16"), "UTF-8"),
        (b'{"temperature": NaN}', "not JSON"),
        (b'{"temperature": Infinity}', "not JSON"),
        (b'{"temperature": 1e999}', "invalid"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid"),
        (b"{} {}", "not JSON"),
        (b"{}", "messages: is required"),
        (b'{"messages": null}', "messages: is required"),
        (b'{"messages": []}', "at least one"),
        (b'{"messages": "hello"}', "at least one"),
        (b'{"messages": ["hello"]}', r"messages\[0\]"),
        (b'{"messages": [{}], "model": ""}', "model"),
        (b'{"messages": [{}], "model": 4}', "model"),
        (b'{"messages": [{}], "stream": "false"}', "stream: must be true or false"),
        (b'{"messages": [{}], "route": "cheap"}', "route: must be an object"),
        (b'{"messages": [{}], "timeout": 3}', "timeout"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("limits", [TRUSTED, STRANGERS], ids=["trusted", "strangers"])
def test_157_what_is_no_call_is_refused(limits: BodyLimits, text: bytes, says: str) -> None:
    with pytest.raises(errors.BadRequestError, match=says) as caught:
        wire_openai.parse(text, limits)
    assert wire_openai.error_status(caught.value) == 400


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 + 1, -(10**30), 10**300])
def test_whole_numbers_stay_exact(number: int) -> None:
    assert wire_openai.parse(body(seed=number)).params["seed"] == number


def test_text_stays_as_it_is() -> None:
    text = '{"messages": [{"role": "user", "content": "half \\ud83d of it"}]}'
    assert wire_openai.parse(text.encode()).messages[0]["content"] == "half \ud83d of it"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"model": "a", "model": "b", "messages": []}', "same key twice"),
        (b'{"messages": [{"role": "user", "role": "system", "content": ""}]}', "same key twice"),
        (b'{"messages": [{"role": "user", "content": "x"}], "x": %s}' % (b"[" * 70 + b"]" * 70), "70|64"),
        (json.dumps({"metadata": dict.fromkeys(map(str, range(100_001)))}).encode(), "100000 keys"),
        (b'{"messages": [%s1]}' % (b"[]," * 250_000), "250000 values"),
        (b'{"messages": [{"%s": 1}]}' % (b"k" * 65_537), "a key of more than 65536 bytes"),
    ],
    ids=["twice", "twice-inside", "deep", "keys", "values", "a long key"],
)
def test_157_a_strangers_body_is_held_to_more(text: bytes, says: str) -> None:
    with pytest.raises(errors.BadRequestError, match=says):
        wire_openai.parse(text, STRANGERS)


def test_156_a_body_too_long_is_413() -> None:
    with pytest.raises(errors.RequestTooLargeError, match="the limit is 20"):
        wire_openai.parse(body(), BodyLimits(max_bytes=20))


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers", "extra_body"])
def test_160_a_stranger_cannot_say_where_it_is_sent(name: str) -> None:
    with pytest.raises(errors.BadRequestError, match=name) as caught:
        wire_openai.parse(body(**{name: "http://169.254.169.254/"}), STRANGERS)
    assert "169.254" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _JSON, max_size=5))
def test_any_parameter_arrives_as_it_was_sent(params: dict[str, Any]) -> None:
    params = {f"x-{name}": value for name, value in params.items()}
    assert wire_openai.parse(body(**params)).params == params


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_call_or_a_clear_error(text: bytes) -> None:
    for limits in (TRUSTED, STRANGERS):
        try:
            wire_openai.parse(text, limits)
        except errors.BadRequestError as error:
            status, _, answer = wire_openai.error_response(error)
            assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")


# -------------------------------------------------------------------------------------------------- answers


def test_an_answer_is_what_the_provider_sent(start: Start) -> None:
    loop = start(1)
    completion = loop.ask(logprobs=True)
    sent = completion.to_dict()
    got = json.loads(wire_openai.answer_bytes(completion))
    assert got["choices"][0]["message"]["content"] == "Say hello"
    assert {**sent, "choices": 0, "usage": 0} == {**got, "choices": 0, "usage": 0}
    assert got["usage"]["total_tokens"] == sent["usage"]["total_tokens"]


def test_a_stream_is_what_the_provider_sent(start: Start) -> None:
    loop = start(1)
    events = list(wire_openai.events(loop.stream(stream_options={"include_usage": True})))
    assert events[-1] == wire_openai.DONE
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1]) == "Say hello"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    unasked = b"".join(wire_openai.events(loop.stream()))
    assert b'"usage":{' not in unasked


def test_another_formats_answer_is_written_in_openais() -> None:
    call = types.ToolCall("id-1", "function", types.FunctionCall("f", "{}"))
    usage = types.Usage(10, 5, 4, 3)
    raw = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}
    choice = types.Choice(0, types.Message("assistant", "hi", (call,), None, raw), "tool_calls", raw)
    completion = types.Completion(
        id="msg-1", created=7, model="claude", choices=(choice,), usage=usage, route=None, raw=raw
    )
    assert json.loads(wire_openai.answer_bytes(completion)) == {
        "id": "msg-1",
        "object": "chat.completion",
        "created": 7,
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "hi",
                    "refusal": None,
                    "tool_calls": [
                        {"id": "id-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                "finish_reason": "tool_calls",
                "logprobs": None,
            }
        ],
        "usage": usage.to_dict(),
    }


def test_what_a_provider_wants_back_with_a_call_stays_with_it() -> None:
    call = types.ToolCall("id-1", "function", types.FunctionCall("f", "{}"))
    signed = {"id": "id-1", "extra_content": {"google": {"thought_signature": "abc"}}}
    raw = {"tool_calls": [signed]}
    choice = types.Choice(
        0, types.Message("assistant", None, (call,), None, raw), "tool_calls", {"parts": []}
    )
    completion = types.Completion(
        id="x",
        created=7,
        model="gemini",
        choices=(choice,),
        usage=types.Usage(1, 1),
        route=None,
        raw={"candidates": []},
    )
    (written,) = json.loads(wire_openai.answer_bytes(completion))["choices"][0]["message"]["tool_calls"]
    assert written["extra_content"] == signed["extra_content"]


def test_fragments_of_tool_calls_keep_their_places() -> None:
    fragment = types.ToolCall(None, None, types.FunctionCall(None, '{"a'), 2)
    delta = types.Delta(tool_calls=(fragment,))
    chunk = types.Chunk(id="c", created=1, model="m", choices=(types.ChunkChoice(0, delta),))
    (choice,) = json.loads(wire_openai.event_bytes(chunk).removeprefix(b"data: "))["choices"]
    assert choice["delta"] == {"tool_calls": [{"function": {"arguments": '{"a'}, "index": 2}]}


def test_44_half_a_character_does_not_break_the_writing() -> None:
    delta = types.Delta(content="\ud83d")
    event = wire_openai.event_bytes(
        types.Chunk(id="c", created=1, model="m", choices=(types.ChunkChoice(0, delta),))
    )
    assert b"\\ud83d" in event
    assert b"\n" not in event[:-2]


# --------------------------------------------------------------------------------------------------- errors


def test_48_a_stream_that_breaks_ends_with_an_error_and_without_done(start: Start) -> None:
    loop = start(1, answer="one two three four five six")
    loop.provider().script(Fault.stream_cut(after=3))
    events = list(wire_openai.events(loop.stream()))
    assert wire_openai.DONE not in events
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert error["code"] == "stream_interrupted"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.BadRequestError("x: y", param="x"), 400, None),
        (errors.ContextLengthExceeded("x", code="string_above_max"), 400, "string_above_max"),
        (errors.AuthenticationError("x"), 401, "invalid_api_key"),
        (errors.ModelNotFoundError("x"), 404, "model_not_found"),
        (errors.RateLimitError("x"), 429, "rate_limit_exceeded"),
        (errors.QuotaExceededError("x"), 429, "insufficient_quota"),
        (errors.BudgetExceeded("x"), 429, "budget_exceeded"),
        (errors.NoEndpointError("x"), 503, "no_endpoint"),
        (errors.DeadlineExceeded("x"), 504, "deadline_exceeded"),
        (errors.APITimeoutError("x"), 504, "upstream_timeout"),
        (errors.APIConnectionError("x"), 502, "upstream_unavailable"),
        (errors.UpstreamProtocolError("x", status_code=299), 502, "upstream_unavailable"),
        (errors.APIStatusError("x", status_code=302), 502, None),
        (errors.InternalServerError("x", status_code=529), 529, None),
        (errors.Error("the client is closed"), 500, None),
        (errors.ConfigError("x"), 500, None),
        (ZeroDivisionError("sk-secret"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_have_openais_shape(error: Exception, status: int, code: str | None) -> None:
    got, headers, text = wire_openai.error_response(error)
    assert got == status
    assert headers["x-should-retry"] == "false"
    told = json.loads(text)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["code"] == code
    assert "sk-secret" not in text.decode()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "conflict_error"),
        (413, "invalid_request_error"),
        (418, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (529, "server_error"),
    ],
)
def test_the_type_of_an_error_follows_its_status(status: int, kind: str) -> None:
    error = errors.for_status(status)("x", status_code=status)
    for behind in (False, True):  # also at the gateway, where nothing was sent to a provider
        text = wire_openai.error_response(error, behind_gateway=behind)[2]
        assert json.loads(text)["error"]["type"] == kind


def test_an_error_says_when_to_come_back() -> None:
    error = errors.RateLimitError("x", retry_after=1.2345, request_id="req-1")
    _, headers, _ = wire_openai.error_response(error)
    assert headers["retry-after"] == "2"
    assert headers["retry-after-ms"] == "1235"
    assert headers["x-request-id"] == "req-1"
    for wait in (float("inf"), float("nan"), -1.0, None):
        assert (
            "retry-after" not in wire_openai.error_response(errors.RateLimitError("x", retry_after=wait))[1]
        )
    assert "x-request-id" not in wire_openai.error_response(errors.Error("x", request_id="a\r\nb"))[1]


def test_a_gateways_caller_is_not_told_that_its_own_key_is_wrong(start: Start) -> None:
    loop = start(1)
    loop.provider().script(Fault.status(401))
    with pytest.raises(errors.AuthenticationError) as caught:
        loop.ask()
    assert wire_openai.error_response(caught.value)[0] == 401
    status, _, text = wire_openai.error_response(caught.value, behind_gateway=True)
    assert (status, json.loads(text)["error"]["type"]) == (502, "server_error")


# -------------------------------------------------------------------------------------------------- headers


def test_headers_say_how_a_call_was_routed(start: Start) -> None:
    loop = start(2, answer=Answer(content="hi", prompt_tokens=1000, cached_tokens=0))
    loop.provider("a").script(Fault.status(500))
    headers = wire_openai.route_headers(loop.ask().route)
    assert headers["x-fastroute-model"] == MODEL
    assert headers["x-fastroute-endpoint"] == f"b/{MODEL}"
    assert headers["x-fastroute-attempts"] == "2"
    assert float(headers["x-fastroute-cost"]) >= 0.001
    assert headers["x-fastroute-class"]
    with loop.stream() as stream:
        running = wire_openai.route_headers(stream.route, running=True)
    assert "x-fastroute-cost" not in running
    assert running["x-fastroute-attempts"] == "1"
    assert wire_openai.route_headers(None) == {}


def test_a_header_never_holds_what_it_cannot() -> None:
    route = types.Route(model="mödel", endpoint="a\r\nb", provider="p")
    assert set(wire_openai.route_headers(route)) == {
        "x-fastroute-attempts",
        "x-fastroute-cached",
        "x-fastroute-cost",
    }


# --------------------------------------------------------------------------------------------------- models


def test_models_are_what_a_call_may_name(start: Start) -> None:
    tables = {
        "more_endpoints": [{"provider": "a", "model": OTHER}],
        "models": {OTHER: {"input_price": 1.0, "output_price": 1.0}, MODEL: {}},
        "tiers": {"cheap": [MODEL], "dear": [OTHER]},
    }
    loop = start(1, **tables)
    listed = json.loads(wire_openai.models_bytes(loop.client))
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == {"auto", "cheap", "dear", MODEL, OTHER}
    assert json.loads(wire_openai.model_bytes(loop.client, MODEL))["owned_by"] == "a"
    with pytest.raises(errors.ModelNotFoundError):
        wire_openai.model_bytes(loop.client, "sk-some-key")
