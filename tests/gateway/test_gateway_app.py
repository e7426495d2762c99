"""The gateway's routes as a caller meets them: calls, models, health, figures, errors."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gateways import CHAT, HELLO, Served, configuration, error_of
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client as WsgiClient

from fastroute import Client, errors
from fastroute.gateway.app import Gateway
from fastroute.gateway.keys import Caller
from fastroute.gateway.responses import disclosed, error_response
from fastroute.testing import Answer, Fault, Provider

Serve = Callable[..., Served]
ROUTES = {
    CHAT: "POST",
    "/v1/models": "GET",
    "/v1/models/auto": "GET",
    "/health": "GET",
    "/health/live": "GET",
    "/health/ready": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    "/admin/stats.json": "GET",
}


def events_of(text: str) -> list[Any]:
    return [
        json.loads(part.removeprefix("data: "))
        for part in text.split("\n\n")
        if part and "[DONE]" not in part and not part.startswith(":")
    ]


# -------------------------------------------------------------------------------------------------- calls


def test_a_call_is_routed_and_says_how(serve: Serve) -> None:
    served = serve()
    response = served.post()
    assert response.status_code == 200
    assert response.json["object"] == "chat.completion"
    assert response.json["choices"][0]["message"]["content"] == "hello there"
    headers = response.headers
    assert headers["x-fastroute-model"] == "gpt-4.1-mini"
    assert headers["x-fastroute-endpoint"] == "local/gpt-4.1-mini"
    assert headers["x-fastroute-class"] == "trivial"
    assert headers["x-fastroute-attempts"] == "1"
    assert 0 < float(headers["x-fastroute-cost"]) < 0.01
    assert 0 < float(headers["x-fastroute-time"]) < 20
    [entry] = served.app.client.ledger.entries()
    assert entry.tags == {"key": "web"}


def test_a_stream_comes_as_events_and_ends_with_done(serve: Serve) -> None:
    served = serve(answer=Answer("one two three"))
    response = served.post({**HELLO, "stream": True})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-fastroute-model"] == "gpt-4.1-mini"
    *_, comment, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    figures = dict(line.removeprefix(": ").split(": ") for line in comment.split("\n"))
    assert set(figures) == {"x-fastroute-cost", "x-fastroute-time"}
    [entry] = served.app.client.ledger.entries()
    assert float(figures["x-fastroute-cost"]) == entry.cost_nano / 1e9
    assert 0 < float(figures["x-fastroute-time"]) < 20
    chunks = events_of(response.text)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "one two three"
    assert not any(chunk.get("usage") for chunk in chunks)


def test_usage_comes_with_a_stream_where_it_was_asked_for(serve: Serve) -> None:
    response = serve().post({**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    last = events_of(response.text)[-1]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] > 0


def test_an_error_before_the_first_token_of_a_stream_keeps_its_status(serve: Serve) -> None:
    served = serve()
    served.provider.script(*[Fault.status(500)] * 9)
    response = served.post({**HELLO, "stream": True})
    assert response.status_code == 502
    assert error_of(response)["type"] == "server_error"
    assert response.headers["x-should-retry"] == "false"
    assert int(response.headers["x-fastroute-attempts"]) > 1


def test_a_stream_that_breaks_ends_with_the_error_and_without_done(serve: Serve) -> None:
    served = serve(answer=Answer("one two three four five six seven eight"))
    served.provider.script(Fault.reset(after=800, part="body"))
    text = served.post({**HELLO, "stream": True}).text
    assert "[DONE]" not in text
    assert set(events_of(text)[-1]["error"]) == {"message", "type", "param", "code"}
    assert "local" not in text.rpartition("data: ")[2]


def test_a_client_that_goes_away_ends_the_upstreams_stream(serve: Serve) -> None:
    served = serve(answer=Answer("word " * 500), policy={"idle_timeout": 20.0})
    served.provider.tokens_per_second = 50
    response = served.post({**HELLO, "stream": True}, buffered=False)
    events = response.iter_encoded()
    assert next(iter(events)).startswith(b"data: ")
    response.close()
    served.provider.wait_until(lambda provider: provider.open_connections == 0, 5)
    [entry] = served.app.client.ledger.entries()
    assert entry.outcome == "client_cancelled"
    assert all(not at["in_flight"] for at in served.app.client.stats()["endpoints"].values())


@pytest.mark.parametrize("where", ["body", "header"])
def test_routing_words_come_in_the_body_or_in_a_header(serve: Serve, where: str) -> None:
    words = {"tier": "premium", "tags": {"job": "nightly"}}
    served = serve(Caller("web", allowed_tags={"job": None}))
    if where == "body":
        response = served.post({**HELLO, "route": words})
    else:
        response = served.post(headers={"x-fastroute-route": json.dumps(words)})
    assert response.headers["x-fastroute-model"] == "gpt-4.1"
    [entry] = served.app.client.ledger.entries()
    assert entry.tags == {"job": "nightly", "key": "web"}


@pytest.mark.parametrize(
    "words",
    [
        {"force_premium": True},
        {"validate": "x"},
        {"priority": 9},
        {"tags": {"job": "a\r\nx-evil: 1"}},
        {"tags": "x"},
        {"deadline": 0},
        {"cache": "no"},
    ],
)
def test_other_routing_words_are_refused(serve: Serve, words: dict[str, Any]) -> None:
    response = serve().post(headers={"x-fastroute-route": json.dumps(words)})
    assert response.status_code == 400
    assert (error_of(response)["param"] or "").startswith("route")


def test_a_caller_cannot_take_on_tags_that_are_not_its_own(serve: Serve) -> None:
    served = serve(Caller("web", tags={"team": "blue"}, allowed_tags={"job": None}))
    tags = {"key": "boss", "team": "red", "client_request_id": "x", "job": "j"}
    assert served.post({**HELLO, "route": {"tags": tags}}).status_code == 200
    [entry] = served.app.client.ledger.entries()
    assert entry.tags == {"key": "web", "team": "blue", "job": "j"}


@pytest.mark.parametrize(
    ("tags", "refused"),
    [
        ({"job": "nightly"}, None),
        ({"plan": "free", "job": ""}, None),
        ({"plan": "gold"}, ("route.tags.plan", "the key may not set this value; it may set free, paid")),
        ({"user": "u1"}, ("route.tags.user", "the key may not set this tag; it may set job, plan")),
        ({"job": "nightly", "user": "u1"}, ("route.tags.user", "")),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["body", "header"])
def test_a_tag_counts_only_if_the_key_may_set_it(
    serve: Serve, where: str, tags: dict[str, str], refused: tuple[str, str] | None
) -> None:
    served = serve(Caller("web", allowed_tags={"job": None, "plan": ("free", "paid")}))
    words = {"tags": tags}
    if where == "body":
        response = served.post({**HELLO, "route": words})
    else:
        response = served.post(headers={"x-fastroute-route": json.dumps(words)})
    if refused is None:
        assert response.status_code == 200
        [entry] = served.app.client.ledger.entries()
        assert entry.tags == {**tags, "key": "web"}
        return
    param, text = refused
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "tag_not_allowed", param)
    assert text in error["message"]
    assert not served.provider.requests


def test_a_key_without_the_setting_sets_no_tags(serve: Serve) -> None:
    response = serve().post({**HELLO, "route": {"tags": {"job": "nightly"}}})
    assert response.status_code == 400
    assert "the key may not set this tag; it may set none" in error_of(response)["message"]


def test_callers_without_keys_set_no_tags(tmp_path: Path) -> None:
    with Provider() as provider, Client(configuration(provider.base_url, tmp_path)) as client:
        app = Gateway(client, None, keyless=True)
        body = json.dumps({**HELLO, "route": {"tags": {"job": "nightly"}}})
        answer = WsgiClient(app).post(
            CHAT, data=body, content_type="application/json", environ_base={"REMOTE_ADDR": "127.0.0.1"}
        )
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "route.tags.job"


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.Z_9", True), ("a b", False), ("x" * 129, False), ("ä", False)]
)
def test_a_clients_request_id_is_echoed_and_a_tag(serve: Serve, given: str, kept: bool) -> None:
    served = serve()
    response = served.post(headers={"x-request-id": given})
    echoed = response.headers["x-request-id"]
    assert echoed == given if kept else echoed.startswith("req_")
    [entry] = served.app.client.ledger.entries()
    assert entry.tags.get("client_request_id") == (given if kept else None)
    assert given not in str(served.provider.requests[-1].headers)


def test_an_answer_from_the_cache_costs_nothing_and_is_not_shared_between_keys(serve: Serve) -> None:
    served = serve(cache={"enabled": True})
    other = served.keys.create(Caller("other"))
    assert served.post().headers["x-fastroute-cached"] == "false"
    again = served.post()
    assert again.headers["x-fastroute-cached"] == "true"
    assert float(again.headers["x-fastroute-cost"]) == 0
    served.clock.ahead += 10  # the file has changed since: look again
    assert served.post(token=other).headers["x-fastroute-cached"] == "false"


# ------------------------------------------------------------------------------------ paths and methods (165)


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "GET", "POST", "BREW"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_another_method_is_refused_with_what_is_allowed(serve: Serve, path: str, method: str) -> None:
    if method == ROUTES[path]:
        return
    response = serve().web.open(path, method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == ROUTES[path]
    assert bool(response.data) is (method != "HEAD")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/models/", "/v1/chat/completions/", "/admin/../health", "/v1/\xff", "/x" * 4000]
)
def test_other_paths_are_not_found(serve: Serve, path: str) -> None:
    response = serve().get(path)
    assert response.status_code == 404
    error_of(response)


def test_every_answer_is_kept_out_of_caches_and_frames(serve: Serve) -> None:
    served = serve()
    for path, method in ROUTES.items():
        response = served.web.open(path, method=method)
        assert response.headers["Cache-Control"] == "no-store", path
        assert response.headers["Vary"] == "Authorization", path
        assert response.headers["X-Content-Type-Options"] == "nosniff", path
        assert response.headers["x-request-id"].startswith("req_"), path


def test_it_works_below_a_prefix_of_another_app(serve: Serve) -> None:
    served = serve()

    def outer(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b"outer"]

    web = WsgiClient(DispatcherMiddleware(outer, {"/llm": served.app}))
    assert web.get("/").data == b"outer"
    response = web.get("/llm/v1/models", headers={"Authorization": f"Bearer {served.token}"})
    assert [model["id"] for model in response.json["data"]] == [
        "auto",
        "budget",
        "premium",
        "gpt-4.1-mini",
        "gpt-4.1",
    ]


# -------------------------------------------------------------------------------------------------- models


def test_a_key_sees_and_gets_its_own_models_only(serve: Serve) -> None:
    served = serve(Caller("web", models=("gpt-4.1-mini", "budget")))
    assert [model["id"] for model in served.get("/v1/models").json["data"]] == ["budget", "gpt-4.1-mini"]
    assert served.get("/v1/models/gpt-4.1-mini").json["owned_by"] == "local"
    assert served.get("/v1/models/gpt-4.1").status_code == 404
    assert served.post({**HELLO, "model": "gpt-4.1-mini"}).status_code == 200
    assert served.post({**HELLO, "model": "budget"}).status_code == 200
    for model in ("gpt-4.1", "auto", "premium", "gpt-4"):  # gpt-4 is another name of gpt-4.1
        response = served.post({**HELLO, "model": model})
        assert (response.status_code, error_of(response)["code"]) == (403, "model_not_allowed")
    response = served.post({"messages": HELLO["messages"]})
    assert response.status_code == 403  # nothing is asked for, and that means auto
    response = served.post({**HELLO, "model": "budget", "route": {"tier": "premium"}})
    assert response.status_code == 403
    assert len(served.provider.requests) == 2


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("../admin", 400),
        ("gpt-4%0d%0aX:", 400),
        ("gpt-4\r\nX: 1", 400),
        ("x" * 10_000, 400),
        ("", 400),
        (7, 400),
        ("gpt-99", 404),
        ("claude-3-opus", 200),
    ],
)
def test_names_of_models_are_checked(serve: Serve, model: Any, status: int) -> None:
    served = serve(aliases={"claude-3-opus": "gpt-4.1"})
    response = served.post({**HELLO, "model": model})
    assert response.status_code == status
    assert len(served.provider.requests) == (status == 200)


def test_an_unknown_tier_is_not_found(serve: Serve) -> None:
    response = serve().post({**HELLO, "route": {"tier": "gold"}})
    assert (response.status_code, error_of(response)["param"]) == (404, "route.tier")


# -------------------------------------------------------------------------------------- health and figures


def test_health_tells_readiness_and_no_names(serve: Serve) -> None:
    served = serve(policy={"breaker": {"failures": 1, "open": 60.0}})
    assert served.web.get("/health").json == {
        "status": "ok",
        "endpoints": 2,
        "available": 2,
        "ledger": "ok",
        "budgets": "ok",
    }
    served.provider.script(*[Fault.status(500)] * 9)
    for model in ("gpt-4.1", "gpt-4.1-mini"):
        served.post({**HELLO, "model": model})
    response = served.web.get("/health/ready")
    assert (response.status_code, response.json["available"]) == (503, 0)
    assert served.web.get("/health/live").status_code == 200
    refused = served.post()
    assert refused.status_code in (502, 503)  # where all are down, one call a second finds out whether still
    assert "local" not in refused.text


def test_metrics_name_endpoints_and_nobody_else(serve: Serve) -> None:
    served = serve(Caller("secret-tenant"))
    served.post()
    text = served.web.get("/metrics").text
    labels = 'endpoint="local/gpt-4.1-mini",model="gpt-4.1-mini"'
    assert f"fastroute_attempts_succeeded_total{{{labels}}} 1" in text
    assert f'fastroute_streams_forgiven_total{{{labels},kind="missing_done"}} 0' in text
    assert 'fastroute_breaker_state{endpoint="local/gpt-4.1",model="gpt-4.1"} 0' in text
    assert "secret-tenant" not in text
    assert "usd" not in text.lower()


def test_a_ledger_that_cannot_be_written_shows(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroute.ledger.sqlite.LOCK_SECONDS", 0.02)
    served = serve()
    served.post()
    ledger = served.app.client.ledger
    ledger.flush()
    assert "fastroute_ledger_ok 1\n" in served.web.get("/metrics").text
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert served.post().status_code == 200
        with pytest.raises(errors.LedgerError):
            ledger.flush(0.5)
        found = served.web.get("/metrics").text.splitlines()
        assert {"fastroute_ledger_ok 0", "fastroute_ledger_entries_waiting 1"} <= set(found)
        assert {"fastroute_ledger_entries_lost_total 0", "fastroute_ledger_entries_rejected_total 0"} <= set(
            found
        )
        assert served.web.get("/health").json["ledger"] == "degraded"
        other.execute("ROLLBACK")


def test_the_figures_are_for_admins_and_hold_no_prompt(serve: Serve) -> None:
    served = serve(Caller("web", budgets={"day": 5.0, "month": 50.0}))
    prompt = "a very secret prompt"
    served.post({**HELLO, "messages": [{"role": "user", "content": prompt}]})
    response = served.get("/admin/stats.json", token=served.admin)
    figures = response.json
    assert figures["totals"]["range"]["calls"] == 1
    assert [group["model"] for group in figures["models"]] == ["gpt-4.1-mini"]
    assert [group["class"] for group in figures["classes"]] == ["trivial"]
    assert {budget["window"] for budget in figures["budgets"]} == {
        time.strftime(f, time.gmtime()) for f in ("%Y-%m-%d", "%Y-%m")
    }
    assert all(budget["spent_nano"] > 0 for budget in figures["budgets"])
    assert sum(point["succeeded"] for point in figures["latency"]) == 1
    assert len(figures["latency"]) == 60
    assert [at["state"] for at in figures["endpoints"]] == ["closed", "closed"]
    [call] = figures["recent"]
    assert (call["key"], call["outcome"]) == ("web", "ok")
    assert prompt not in response.text
    assert served.token not in response.text
    assert served.get("/admin/stats.json").status_code == 403
    assert served.post(token=served.admin).status_code == 403
    assert served.web.get("/admin/stats.json").status_code == 401
    assert served.web.get("/admin/stats.json", auth=("", served.admin)).status_code == 200
    assert served.web.get("/admin/stats.json", auth=("", served.token)).status_code == 403
    assert served.web.get("/admin/stats.json", headers={"Authorization": "Basic %%%"}).status_code == 401


# -------------------------------------------------------------------------------------------- errors (168)


def test_a_bug_shows_nothing_of_the_inside(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the secret is sk-123")

    monkeypatch.setattr("fastroute.integrations.wire_openai.answer_bytes", broken)
    response = served.post()
    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "internal_error"
    assert "sk-123" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert served.token not in caplog.text
    assert "hello there" not in caplog.text


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.status(401), 502),
        (Fault.status(403), 502),
        (Fault.status(404), 502),
        (Fault.status(400), 400),
        (Fault.status(422), 422),
        (Fault.status(413), 413),
        (Fault.status(500), 502),
        (Fault.html(), 502),
        (Fault.error("insufficient_quota"), 503),
        (Fault.status(429), 429),
    ],
    ids=str,
)
def test_a_providers_errors_have_a_callers_status(serve: Serve, fault: Fault, status: int) -> None:
    served = serve()
    served.provider.script(*[fault] * 9)
    response = served.post({**HELLO, "model": "gpt-4.1"})
    assert response.status_code == status
    error_of(response)
    assert response.headers["x-should-retry"] == "false"


INSIDE = "secret-endpoint"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoEndpointError(INSIDE), 503),
        (errors.RequestTooLargeForLimit(INSIDE), 413),
        (errors.DeadlineExceeded(INSIDE), 504),
        (errors.BudgetExceeded(INSIDE, budget="all"), 429),
        (errors.AuthenticationError(INSIDE), 502),
        (errors.PermissionDeniedError(INSIDE), 502),
        (errors.NotFoundError(INSIDE), 502),
        (errors.QuotaExceededError(INSIDE), 503),
        (errors.InternalServerError(INSIDE), 502),
        (errors.APIStatusError(INSIDE, status_code=302), 502),
        (errors.APITimeoutError(INSIDE), 504),
        (errors.TLSError(INSIDE), 502),
        (errors.StreamStalled(INSIDE), 502),
        (errors.ValidationError(INSIDE), 502),
        (errors.Error(INSIDE), 500),
        (errors.ConfigError(INSIDE), 500),
        (ValueError(INSIDE), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_is_inside_stays_inside(error: Exception, status: int) -> None:
    answer = error_response(error)
    assert answer.status == status
    assert isinstance(answer.body, bytes)
    assert INSIDE.encode() not in answer.body
    assert dict(answer.headers)["x-should-retry"] == "false"


def test_who_finds_nothing_to_serve_it_is_told_when_to_come_back() -> None:
    assert dict(error_response(errors.NoEndpointError("x")).headers)["retry-after"] == "1"
    assert dict(error_response(errors.NoEndpointError("x", retry_after=7.2)).headers)["retry-after"] == "8"


def test_what_the_caller_can_mend_is_told() -> None:
    wrong = errors.BadRequestError("temperature: must be from 0 to 2", param="temperature")
    assert disclosed(wrong) is wrong
    own = errors.BudgetExceeded("key-day is spent", budget="key-day")
    assert disclosed(own, key_budgets=True) is own
