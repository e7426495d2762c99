"""Azure OpenAI: its addresses, key header, and what Azure adds to OpenAI's answers and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from loopback import Loopback

import fastroute
from fastroute import errors, types
from fastroute.providers import Target, get
from fastroute.providers.limit_headers import parse_limits
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]


class Secret:
    def reveal(self) -> str:
        return "local-secret-key"


AZURE = get("azure")
TARGET = Target(
    endpoint="azure/gpt",
    provider="azure",
    model="gpt",
    upstream="my deployment/4",
    base_url="https://x.openai.azure.com",
    key=Secret(),
)
OLD = "https://x.openai.azure.com/openai/deployments/my%20deployment%2F4/chat/completions"


@pytest.mark.parametrize(
    ("base_url", "version", "url"),
    [
        ("https://x.openai.azure.com", None, f"{OLD}?api-version=2024-10-21"),
        ("https://x.openai.azure.com/", "2025-04-01-preview", f"{OLD}?api-version=2025-04-01-preview"),
        ("https://x.openai.azure.com/openai", "2024-06-01", f"{OLD}?api-version=2024-06-01"),
        (
            "https://x.openai.azure.com/openai/v1",
            None,
            "https://x.openai.azure.com/openai/v1/chat/completions",
        ),
        (
            "https://x.openai.azure.com/openai/v1/",
            "preview",
            "https://x.openai.azure.com/openai/v1/chat/completions?api-version=preview",
        ),
    ],
)
def test_url(base_url: str, version: str | None, url: str) -> None:
    target = attrs.evolve(TARGET, base_url=base_url, api_version=version)
    assert AZURE.url(target, False) == AZURE.url(target, True) == url


@pytest.mark.parametrize("upstream", ["", ".", ".."])
def test_a_deployment_s_name_leads_nowhere_else(upstream: str) -> None:
    with pytest.raises(errors.ConfigError, match="deployment"):
        AZURE.url(attrs.evolve(TARGET, upstream=upstream), False)


def test_the_key_has_its_own_header() -> None:
    headers = AZURE.headers(TARGET, True)
    assert headers["api-key"] == "local-secret-key"
    assert "Authorization" not in headers
    assert headers["Accept-Encoding"] == "identity"


def test_the_body_is_openai_s_and_names_the_deployment() -> None:
    request = types.Request("gpt", [{"role": "user", "content": "x"}], {"temperature": 0}, stream=True)
    body = json.loads(AZURE.encode(request, TARGET))
    assert body["model"] == "my deployment/4"
    assert body["stream_options"] == {"include_usage": True}
    assert body["temperature"] == 0


FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering the content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
        },
    }
}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, FILTERED, errors.ContentFilterError),
        (
            403,
            {"error": {"code": "x", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            errors.ContentFilterError,
        ),
        (404, {"error": {"code": "DeploymentNotFound", "message": "not there"}}, errors.NotFoundError),
        (
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid key"}},
            errors.AuthenticationError,
        ),
        (429, {"statusCode": 429, "message": "Rate limit is exceeded."}, errors.RateLimitError),
        (
            400,
            {"error": {"code": "context_length_exceeded", "message": "x", "type": "invalid_request_error"}},
            errors.ContextLengthExceeded,
        ),
    ],
)
def test_errors(status: int, body: Any, error: type[errors.APIError]) -> None:
    headers = {"apim-request-id": "abc", "Retry-After": "7"}
    found = AZURE.decode_error(status, headers, json.dumps(body).encode(), TARGET)
    assert type(found) is error
    assert (found.request_id, found.retry_after) == ("abc", 7)


def test_022_the_content_filter_is_no_failure_of_the_endpoint(start: Start) -> None:
    loop = start(2, format="azure", policy={"breaker": {"failures": 1}})
    loop.provider("a").script(Fault.status(400, FILTERED))
    with pytest.raises(fastroute.ContentFilterError):
        loop.ask()
    assert loop.provider("b").received == 0
    assert (loop.endpoint("a")["state"], loop.endpoint("a")["failed"]) == ("closed", 0)


@pytest.mark.parametrize("left", ["-1", "0"])
def test_072_limits_that_azure_does_not_know_limit_nothing(start: Start, left: str) -> None:
    headers = {"x-ratelimit-remaining-requests": left, "x-ratelimit-remaining-tokens": left}
    limits = parse_limits(headers)
    assert limits is None or all(
        each is None or each.remaining is None for each in (limits.requests, limits.tokens)
    )
    loop = start(1, format="azure")
    loop.provider().script(Fault.headers(headers), repeat=True)
    for _ in range(3):
        assert loop.ask("hello").text == "hello"
    assert loop.endpoint()["succeeded"] == 3


@pytest.mark.parametrize("base", ["", "/openai", "/openai/v1"])
def test_answers_with_azure_s_notes(start: Start, base: str) -> None:
    with Provider(format="azure") as provider:
        config = {
            "fastroute": {"ledger": ""},
            "providers": {"azure": {"format": "azure", "base_url": provider.url + base}},
            "endpoints": [{"provider": "azure", "model": "gpt-4.1", "upstream": "mine"}],
        }
        with fastroute.Client(config) as client:
            create = client.chat.completions.create
            messages = [{"role": "user", "content": "hello there"}]
            reply = create(model="gpt-4.1", messages=messages)
            assert reply.text == "hello there"
            assert reply.choices[0].content_filter_results["hate"] == {"filtered": False, "severity": "safe"}
            assert reply.prompt_filter_results[0]["prompt_index"] == 0
            with create(model="gpt-4.1", messages=messages, stream=True) as stream:
                chunks = list(stream)
            assert all(chunk.choices for chunk in chunks)  # the notes on the prompt come without any
            assert stream.text == "hello there"
            assert stream.usage == attrs.evolve(reply.usage)
        assert provider.requests[-1].json["model"] == "mine"


def test_a_choice_with_notes_and_without_a_delta_is_taken(start: Start) -> None:
    loop = start(1, format="azure")
    notes = {"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 44}}
    event = {"id": "", "object": "", "created": 0, "model": "", "choices": [notes]}
    loop.provider().script(Fault.insert_event(event, after=3))
    with loop.stream("the first words") as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "the first words"
