"""The views for the tests of the Flask extension."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import flask

from fastroute.integrations.flask import FastRoute

MODEL = "test-model"
HELLO = [{"role": "user", "content": "Say hello"}]


def add_views(app: Any, extension: FastRoute) -> None:
    @app.get("/ask")
    def ask() -> Any:
        reply = extension.client.chat.completions.create(model=MODEL, messages=HELLO)
        return {"text": reply.text, "pid": os.getpid()}

    @app.get("/stream")
    def stream() -> Any:
        @flask.stream_with_context
        def pieces() -> Iterator[str]:
            with extension.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as chunks:
                for chunk in chunks:
                    yield chunk.choices[0].delta.content or ""

        return flask.Response(pieces(), mimetype="text/plain")

    @app.get("/submit")
    def submit() -> str:
        futures = [extension.client.submit(model=MODEL, messages=HELLO) for _ in range(2)]
        return "".join(future.result().text for future in futures)

    @app.get("/tagged")
    def tagged() -> str:
        client = extension.client.with_options(tags={"team": "x", "user": "option"})
        route = {"tags": {"user": "call"}}
        return str(client.chat.completions.create(model=MODEL, messages=HELLO, route=route).text)

    part = flask.Blueprint("part", __name__)

    @part.get("/part")
    def inside() -> str:
        client = flask.current_app.extensions["fastroute"]
        return str(client.chat.completions.create(model=MODEL, messages=HELLO).text)

    app.register_blueprint(part)
