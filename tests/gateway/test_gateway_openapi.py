"""The OpenAPI document and the gateway say the same: schemathesis holds one to the other, all checks on."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from gateways import HELLO, configuration
from needs import need

from fastroute import errors
from fastroute.gateway.app import Gateway, create_app
from fastroute.gateway.keys import Caller, KeyFile
from fastroute.gateway.openapi import document
from fastroute.gateway.request_schema import COMPONENTS, checker
from fastroute.testing import Provider

CONFIGURATION = """
[checks.positive_data_acceptance]
# A price cap that nothing fits under is a limit reached, and says so with a 429.
expected-statuses = ["2xx", "404", "429"]
"""


class Agreeable(BaseHTTPRequestHandler):
    """A provider that takes whatever it is sent: what one would refuse is not the gateway's to know."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    ANSWER = (
        b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
    )
    STREAM = (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
        b'"delta":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )

    def do_POST(self) -> None:
        streamed = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("stream") is True
        body = self.STREAM if streamed else self.ANSWER
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def agreeable() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Agreeable) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def from_many(app: Gateway) -> Callable[..., Any]:
    """The app, each of its requests from an address of its own: the checks send many wrong keys."""
    numbers = itertools.count()

    def asked(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, "REMOTE_ADDR": str(ip_address(next(numbers)))}, start_response)

    return asked


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str, Path]]:
    """A gateway on waitress: its address, a caller's key, an admin's, and a folder with the configuration."""
    server = need("waitress.server")
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    with ExitStack() as stack:
        upstream = stack.enter_context(agreeable())
        keys = KeyFile(folder / "keys.db")
        token = keys.create(Caller("web", allowed_tags={"*": None}))
        admin = keys.create(Caller("boss", admin=True))
        # The document cannot say what each model is capable of, so this one can do all.
        able = {"capabilities": ["streaming", "tools", "vision", "json_schema", "file", "audio", "video"]}
        models = dict.fromkeys(("gpt-4.1", "gpt-4.1-mini"), able)
        app = create_app(configuration(upstream, folder, models=models), keys=keys.path)
        stack.callback(app.close)
        sockets: dict[int, Any] = {}
        running = server.create_server(from_many(app), map=sockets, host="127.0.0.1", port=0, threads=4)
        thread = threading.Thread(target=running.run)
        thread.start()
        yield f"http://127.0.0.1:{running.effective_port}", token, admin, folder
        running.close()
        running.task_dispatcher.shutdown()
        thread.join()


@pytest.mark.parametrize("paths", ["^/(v1|health|metrics|openapi)", "^/admin"])
def test_the_gateway_keeps_to_its_document(address: tuple[str, str, str, Path], paths: str) -> None:
    need("schemathesis")
    url, token, admin, folder = address
    key = admin if "admin" in paths else token
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--include-path-regex", paths),
            *("--header", f"Authorization: Bearer {key}"),
            *("--checks", "all"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "40" if key is token else "5"),
            *("--seed", "1"),
            "--generation-deterministic",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout.partition("= FAILURES =")[2][:3000] + run.stderr[-2000:]


def test_every_path_of_the_gateway_is_in_the_document(tmp_path: Path) -> None:
    with Provider() as provider:
        for metrics in (True, False):
            app = create_app(configuration(provider.base_url, tmp_path), metrics=metrics)
            paths = {*app.routes, "/v1/models/{id}", "/models/{id}"}
            assert set(document(keys=False, metrics=metrics)["paths"]) == paths
            app.close()


def test_the_document_says_who_may() -> None:
    with_keys, without = document(keys=True, metrics=True), document(keys=False, metrics=True)
    guarded = {
        path for path, methods in with_keys["paths"].items() for word in methods.values() if word["security"]
    }
    calls = {"/chat/completions", "/models", "/models/{id}"}
    assert guarded == {*calls, *(f"/v1{path}" for path in calls), "/admin/stats.json"}
    assert not any(word["security"] for methods in without["paths"].values() for word in methods.values())


# ----------------------------------------------------------------------------- the checks made of the schema


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: list[dict[str, Any]] = [
    HELLO,
    user("x"),
    user(
        [
            {"type": "text", "text": "x"},
            {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}},
        ]
    ),
    user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]),
    {
        **HELLO,
        "temperature": 0,
        "top_p": 1.0,
        "n": 1,
        "max_tokens": 0,
        "stop": ["a"],
        "seed": -5,
        "user": "ü",
    },
    {
        **HELLO,
        "temperature": None,
        "stop": None,
        "tools": None,
        "tool_choice": None,
        "reasoning_effort": None,
    },
    {**HELLO, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"anything": [1]}}}]},
    {**HELLO, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
    {**HELLO, "metadata": {"a": "b"}, "logit_bias": {"50256": -100}},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}], "cache_control": {}},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]
    },
    {**HELLO, "route": {"tier": "premium", "quality": 1, "max_cost": 0, "cache": False, "tags": {"a": "b"}}},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [HELLO["messages"][0]] * 2001}, "messages"),  # type: ignore[index]
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (user([]), "messages[0].content"),
    (user([{"type": "video", "url": "x"}]), "messages[0].content[0].type"),
    (user([{"type": "text"}]), "messages[0].content[0].text"),
    (
        user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        "messages[0].content[0].image_url.url",
    ),
    (
        user([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]),
        "messages[0].content[0].image_url.url",
    ),
    (user([{"type": "image_url", "image_url": {"url": "https://"}}]), "messages[0].content[0].image_url.url"),
    ({**HELLO, "n": 10_000}, "n"),
    ({**HELLO, "n": True}, "n"),
    ({**HELLO, "n": 1.5}, "n"),
    ({**HELLO, "max_tokens": 10**9}, "max_tokens"),
    ({**HELLO, "max_tokens": -1}, "max_tokens"),
    ({**HELLO, "temperature": "x"}, "temperature"),
    ({**HELLO, "temperature": True}, "temperature"),
    ({**HELLO, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({**HELLO, "stop": [1]}, "stop[0]"),
    ({**HELLO, "user": "a\r\nb"}, "user"),
    ({**HELLO, "user": "a\n"}, "user"),
    ({**HELLO, "user": "x" * 129}, "user"),
    ({**HELLO, "metadata": {"a\n": "b"}}, "metadata (one of its keys)"),
    ({**HELLO, "metadata": {"a": "b\n"}}, "metadata.a"),
    ({**HELLO, "reasoning_effort": "huge"}, "reasoning_effort"),
    ({**HELLO, "tool_choice": "x"}, "tool_choice"),
    ({**HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    ({**HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({**HELLO, "route": {"force_premium": True}}, "route.force_premium"),
    ({**HELLO, "route": {"tags": {"a b": "c"}}}, "route.tags (one of its keys)"),
    *(
        ({**HELLO, name: "x"}, name)
        for name in (
            "api_base",
            "base_url",
            "api_key",
            "extra_headers",
            "extra_body",
            "headers",
            "mock_response",
        )
    ),
]


@pytest.mark.parametrize("body", GOOD, ids=lambda body: ",".join(body)[:60])
def test_what_openai_takes_passes(body: dict[str, Any]) -> None:
    checker("Request")(body, "")


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.BadRequestError) as caught:
        checker("Request")(body, "")
    assert caught.value.param == param
    assert str(caught.value).startswith(param)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_keyword_of_the_document_has_an_effect(component: str) -> None:
    checker(component)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "date"},
        {"$ref": "#/components/schemas/Tool", "maxLength": 5},
        {"anyOf": [{"type": "string"}], "minimum": 1},
        {"enum": ["a"], "type": "string"},
        {"type": "array", "items": {"type": "integer", "multipleOf": 2}},
    ],
    ids=str,
)
def test_a_keyword_without_one_is_a_mistake(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPONENTS, "Mistaken", schema)
    with pytest.raises(ValueError, match=r"not compiled: (format|maxLength|minimum|type|multipleOf)"):
        checker("Mistaken")


def test_the_check_agrees_with_a_validator_that_is_not_ours() -> None:
    jsonschema = need("jsonschema")
    schema = {**COMPONENTS["Request"], "components": {"schemas": COMPONENTS}}
    validator = jsonschema.Draft202012Validator(schema)
    for body in GOOD:
        assert validator.is_valid(body), body
    for body, param in BAD:
        # A pattern's $ is the end of the text in JSON Schema; Python's also matches before a last line break.
        if not param.startswith(("user", "metadata")):
            assert not validator.is_valid(body), param
