"""The client's errors, logs, events and figures: none holds a key or a prompt."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from client_setups import Start

from fastroute import errors
from fastroute.testing import Fault, Provider

PROMPT = "canary-prompt-b7c1"
KEY = "sk-canary-key-9f3e2d1c0b"


def provocations() -> list[Any]:
    quoting = {"error": {"message": f"Incorrect API key provided: {KEY}", "type": "invalid_request_error"}}
    return [
        *(
            Fault.status(code)
            for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 529, 999, 204, 299)
        ),
        Fault.status(401, quoting),
        Fault.status(400, quoting),
        Fault.status(500, KEY),
        Fault.html(f"<html>{KEY}"),
        Fault.error("context_length_exceeded"),
        Fault.error("content_filter"),
        Fault.error("insufficient_quota"),
        Fault.error_in_200(),
        Fault.reset(),
        Fault.black_hole(),
        Fault.truncated(),
        Fault.cut_headers(27),
        Fault.bad_gzip(),
        Fault.redirect(302, f"http://127.0.0.1:1/?key={KEY}"),
        Fault.stream_error(3),
        Fault.stream_cut(3),
        Fault.stream_stall(3),
        Fault.malformed_event(3),
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_no_error_log_event_or_figure_holds_a_key_or_a_prompt(
    start: Start, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CANARY_KEY", KEY)
    raised: set[str] = set()
    texts: list[str] = []
    provider = Provider(answer="an answer of some length")
    loop = start(
        {"a": provider},
        providers={"a": {"api_key_env": "CANARY_KEY", "timeout": 0.2}},
        policy={"max_attempts": 1, "idle_timeout": 0.1},
    )
    questions = [{"role": "user", "content": PROMPT}]
    calls: list[Callable[[], Any]] = [
        lambda: loop.ask(messages=questions, model="unknown"),
        lambda: loop.ask(messages=questions, response_format=object()),
        lambda: loop.ask(messages=[*questions, {"role": "user", "content": {1, 2}}]),
        lambda: loop.ask(messages=questions, route={"tier": "none"}),
        lambda: loop.ask(messages=questions, route={"max_cost": 0.0}),
    ]
    for fault in provocations():
        provider.clear_script()
        provider.script(fault)
        for endpoint in loop.client.runtime.generation.state.endpoints:
            endpoint.core.unblock()
        try:
            if stream:
                list(loop.stream(messages=questions))
            else:
                loop.ask(messages=questions)
        except errors.Error as error:
            raised.add(type(error).__name__)
            texts += shown(error)
    for call in calls:
        with pytest.raises(errors.Error) as caught:
            call()
        raised.add(type(caught.value).__name__)
        texts += shown(caught.value)
    texts += [repr(event) for event in loop.events]
    texts += [
        repr(loop.client.stats()),
        repr(loop.client.config),
        repr(loop.client),
        repr(loop.client.ledger.entries()),
    ]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith("fastroute")]
    assert len(raised) >= 12
    for text in texts:
        assert KEY not in text
        assert PROMPT not in text


def shown(error: BaseException) -> list[str]:
    """All that printing the error and what it was raised from would show."""
    found = []
    seen: BaseException | None = error
    while seen is not None:
        found += [str(seen), repr(seen), repr(seen.args), "".join(traceback.format_exception_only(seen))]
        found.append(json.dumps(getattr(seen, "__dict__", {}), default=repr))
        found.append(repr(pickle.dumps(seen)) if isinstance(seen, errors.Error) else "")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return found
