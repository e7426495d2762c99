"""Calls that the gateway refuses are counted, and shown on the page, in its figures and in the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser import Page
from dashboards import Web, tile
from gateways import CHAT, HELLO, Served

from fastroute.gateway.keys import Caller
from fastroute.testing import Fault

Serve = Callable[..., Served]


def counted(served: Served, query: str = "") -> dict[str, int]:
    response = served.get(f"/admin/stats.json{query}", token=served.admin)
    assert response.status_code == 200
    refused = response.json["refused"]
    assert {name: n for name, n in served.app.refusals.totals().items() if n} == {
        name: n for name, n in refused.items() if n
    }
    return {name: n for name, n in refused.items() if n}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
WITHOUT_EYES = {name: {"capabilities": ["streaming"]} for name in ("gpt-4.1", "gpt-4.1-mini")}
# By reason: the caller, tables of the configuration, and a request that is refused.
REFUSED: dict[str, tuple[Caller, dict[str, Any], dict[str, Any]]] = {
    "key_limit": (Caller("web", rpm=0), {}, HELLO),
    "budget": (Caller("web", budgets={"day": 1e-9}), {}, HELLO),
    "endpoint_limit": (Caller("web"), {}, HELLO),
    "invalid": (Caller("web"), {}, {**HELLO, "top_k": "many"}),
    "invalid: not capable": (
        Caller("web"),
        {"models": WITHOUT_EYES},
        {**HELLO, "messages": [{"role": "user", "content": [IMAGE]}]},
    ),
    "unauthorized: the model": (Caller("web", models=("gpt-4.1",)), {}, HELLO),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_call_is_counted_by_its_reason(serve: Serve, reason: str) -> None:
    caller, tables, body = REFUSED[reason]
    served = serve(caller, **tables)
    if reason == "endpoint_limit":
        for endpoint in served.app.client.runtime.generation.state.endpoints:
            endpoint.core.configure(rpm=6, request_burst=1)
            assert endpoint.core.admit(1) > 0
    for _ in range(3):
        assert 400 <= served.post(body).status_code < 504
    assert counted(served) == {reason.partition(":")[0]: 3}
    assert not served.provider.requests
    name = f'fastroute_calls_refused_total{{reason="{reason.partition(":")[0]}"}} 3'
    assert name in served.web.get("/metrics").text


def test_wrong_keys_are_counted(serve: Serve) -> None:
    served = serve()
    served.post(token="fr-wrong")
    served.web.post(CHAT, json=HELLO)
    assert counted(served) == {"unauthorized": 2}


def test_what_a_provider_answered_is_no_refusal(serve: Serve) -> None:
    served = serve()
    served.provider.script(*[Fault.status(400)] * 9)
    assert served.post().status_code == 400
    assert served.post({**HELLO, "model": "gpt-4.1"}).status_code == 400
    assert counted(served) == {}


def test_a_range_of_hours_can_be_asked_for(serve: Serve) -> None:
    served = serve()
    served.post()
    served.post({**HELLO, "top_k": "many"})
    for hours in (1, 6, 24, 168):
        figures = served.get(f"/admin/stats.json?hours={hours}", token=served.admin).json
        assert figures["range_s"] == hours * 3600
        assert figures["totals"]["range"]["calls"] == 1
        assert len(figures["latency"]) == 60
        assert sum(point["succeeded"] for point in figures["latency"]) == 1
        assert figures["refused"]["invalid"] == 1
    for wrong in ("hours=0", "hours=169", "hours=x", "hours=1&hours=2", "days=1"):
        response = served.get(f"/admin/stats.json?{wrong}", token=served.admin)
        assert response.status_code == 400
        assert response.json["error"]["param"] == "hours"


def test_an_endpoint_without_any_permits_is_not_in_service(serve: Serve) -> None:
    served = serve()
    served.app.client.runtime.generation.state.endpoints[0].core.configure(tpm=0)
    figures = served.get("/admin/stats.json", token=served.admin).json
    assert [endpoint["available"] for endpoint in figures["endpoints"]] == [False, True]
    assert served.web.get("/health").json["available"] == 1


def test_the_page_shows_refused_calls_and_another_range(dashboard: Callable[..., tuple[Web, Page]]) -> None:
    web, page = dashboard(Caller("web", rpm=0))
    for _ in range(4):
        web.served.post()
    page.until(f"{tile('Refused')} === '4'")
    assert "a key\u2019s limit: 4".replace("\u2019", "'") in page.text()
    assert "last hour" in page.text()
    page.run(
        "{ const range = document.querySelector('#range'); range.value = '168';"
        " range.dispatchEvent(new Event('change')) }"
    )
    page.until("document.querySelector('#tiles').innerText.includes('last 7 days')")
    page.until(f"{tile('Refused')} === '4'")
    assert page.complaints() == []


def test_no_line_of_the_endpoints_wraps_on_a_laptop(dashboard: Callable[..., tuple[Web, Page]]) -> None:
    names = ("europe-west/gpt-4.1", "gpt-4.1-mini, second region")
    endpoints = [
        {"provider": "local", "model": model, "name": name, "rpm": 6000, "tpm": 2_000_000}
        for model, name in zip(("gpt-4.1", "gpt-4.1-mini"), names)
    ]
    web, page = dashboard(Caller("web"), endpoints=endpoints, look={"width": 1400, "height": 900})
    web.served.post()
    page.until(f"{tile('Calls')} === '1'")
    heights = page.run("[...document.querySelectorAll('#endpoints tbody tr')].map((at) => at.offsetHeight)")
    assert len(heights) == 2
    assert max(heights) < 50
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
