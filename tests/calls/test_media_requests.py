"""Requests with images, files, audio and video go to models that can read them, and to no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from loopback import MODEL, Loopback
from test_empty_answers import answer

import fastroute
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]

TEXT = ["streaming", "tools", "json_schema"]
PRICES = {"input_price": 1.0, "output_price": 2.0}
DATA = "data:application/pdf;base64,JVBERi0xLjQ="
PARTS: dict[str, dict[str, Any]] = {
    "vision": {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}},
    "file": {"type": "file", "file": {"filename": "x.pdf", "file_data": DATA}},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "video": {"type": "video_url", "video_url": {"url": "https://x.example/y.mp4"}},
}
NATIVE: dict[str, dict[str, Any]] = {
    "file": {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="},
    },
    "audio": {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
    "video": {"fileData": {"mimeType": "video/mp4", "fileUri": "https://x.example/y.mp4"}},
    "vision": {"type": "image", "source": {"type": "url", "url": "https://x.example/y.png"}},
}


def asking(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]


def client_of(*models: tuple[str, list[str]], base_url: str) -> fastroute.Client:
    return fastroute.Client(
        {
            "fastroute": {"ledger": ""},
            "providers": {"p": {"base_url": base_url}},
            "endpoints": [{"provider": "p", "model": name} for name, _ in models],
            "models": {name: {"capabilities": capabilities} for name, capabilities in models},
            "tiers": {"all": [name for name, _ in models]},
        }
    )


@pytest.mark.parametrize("capability", list(PARTS))
@pytest.mark.parametrize("parts", [PARTS, NATIVE], ids=["openai", "native"])
def test_only_models_that_read_it_are_asked(capability: str, parts: dict[str, dict[str, Any]]) -> None:
    models = (("text", TEXT), ("able", [*TEXT, capability]))
    with client_of(*models, base_url="http://127.0.0.1:9/v1") as client:
        plan = client.plan(model="all", messages=asking(parts[capability]))
        verdicts = {each.model: (each.rank, each.verdict) for each in plan.candidates}
        assert verdicts["able"][0] == 0
        assert verdicts["text"] == (None, f"left out: no {capability}")


@pytest.mark.parametrize("capability", list(PARTS))
def test_where_no_model_reads_it_the_error_names_what_is_missing(capability: str) -> None:
    with (
        Provider(models=["text"]) as provider,
        client_of(("text", TEXT), base_url=provider.base_url) as client,
    ):
        with pytest.raises(
            fastroute.NoEndpointError, match=rf"p/text: left out: no {capability}\b"
        ) as raised:
            client.chat.completions.create(model="all", messages=asking(PARTS[capability]))
        assert raised.value.status_code == 400
        assert not provider.requests


@pytest.mark.parametrize("capability", list(PARTS))
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_sent_as_it_is(start: Start, capability: str, stream: bool) -> None:
    loop = start(models={MODEL: {"capabilities": [*TEXT, capability]}}, check=False)
    loop.provider().script(answer("openai", stream, "stop", "read", 1))
    messages = asking(PARTS[capability])
    reply = loop.stream(messages=messages) if stream else loop.ask(messages=messages)
    assert [*reply] if stream else reply.text == "read"
    assert loop.provider().requests[-1].json["messages"] == messages


def test_a_model_with_vision_reads_files_page_by_page() -> None:
    with client_of(("seeing", [*TEXT, "vision"]), base_url="http://127.0.0.1:9/v1") as client:
        plan = client.plan(model="all", messages=asking(PARTS["file"]))
        assert plan.candidates[0].rank == 0


@pytest.mark.parametrize(
    ("part", "learned"), [({"type": "text", "text": "more"}, True), (PARTS["file"], False)]
)
def test_estimates_of_text_learn_nothing_from_files(
    start: Start, part: dict[str, Any], learned: bool
) -> None:
    loop = start(models={MODEL: {**PRICES, "capabilities": [*TEXT, "vision"]}}, check=False)
    usage = {"prompt_tokens": 60, "completion_tokens": 1, "total_tokens": 61}
    choice = {"index": 0, "message": {"role": "assistant", "content": "read"}, "finish_reason": "stop"}
    body = {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    loop.provider().script(Fault.status(200, body))
    text = asking({"type": "text", "text": "x" * 9000})
    before = loop.client.plan(model=MODEL, messages=text).candidates[0].price
    loop.ask(messages=asking(part))
    after = loop.client.plan(model=MODEL, messages=text).candidates[0].price
    assert before is not None
    assert after is not None
    assert (after > before) is learned
