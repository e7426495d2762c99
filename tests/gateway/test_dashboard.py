"""The dashboard in a real browser, in front of a real gateway; and the figures that it shows."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from dashboards import BOARD, NUDGE, enter, tile
from gateways import HELLO, Served
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client as WsgiClient

from fastroute import _core
from fastroute.gateway import page as pages
from fastroute.gateway.keys import Caller
from fastroute.gateway.stats import CachedStats
from fastroute.state.endpoints import BlockReason

Serve = Callable[..., Served]
STATE = "document.querySelector('#state').innerText"
KEPT = "sessionStorage.length"


# -------------------------------------------------------------------------------------------- the files


def test_the_page_holds_no_figures_and_may_load_nothing_from_elsewhere(serve: Serve) -> None:
    served = serve()
    served.post()
    for path in pages.PATHS:
        answer = served.web.get(path)  # without any key
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
        assert "gpt-4.1" not in answer.text
        assert served.web.post(path).headers["Allow"] == "GET"
    assert not re.search(r"<style|style=|<script(?![^>]*src)|\son\w+=", served.web.get("/admin").text)
    script = served.web.get("/admin/dashboard.js").text + served.web.get("/admin/figures.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", script)


def test_the_page_finds_its_files_below_a_prefix(serve: Serve) -> None:
    def nothing(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [])
        return []

    mounted = WsgiClient(DispatcherMiddleware(nothing, {"/llm": serve().app}))
    text = mounted.get("/llm/admin").text
    found = re.findall(r'(?:href|src)="(?!data:)([^"]+)"', text)
    found += re.findall(r'fetch\("([^"]+)"', mounted.get("/llm/admin/dashboard.js").text)
    # As a browser takes them, from a page without a slash at its end.
    assert [mounted.get(f"/llm/{path}").status_code for path in found] == [200, 200, 401]
    imports = re.findall(r'from "\./([^"]+)"', mounted.get("/llm/admin/dashboard.js").text)
    assert [mounted.get(f"/llm/admin/{path}").status_code for path in imports] == [200]


# ---------------------------------------------------------------------------------------------- the key


def test_the_key_is_asked_for_and_stays_in_the_tab(dashboard: Any) -> None:
    web, page = dashboard(key=False)
    refused = "document.querySelector('#refused').innerText"
    enter(page, "fr-wrong-" + "x" * 43)
    assert "missing or invalid" in page.until(refused)
    page.run("document.querySelector('#key').focus()")
    enter(page, web.served.token)
    page.until(f"{refused}.includes('Only an admin key')")
    assert page.run(f"{BOARD} || {KEPT}") == 0
    enter(page, web.served.admin)
    page.until(BOARD)
    text = page.text()
    for empty in (
        "No budget is configured",
        "No successful request in this range",
        "No call in this range",
    ):
        assert empty in text
    places = (
        "[...Object.values(sessionStorage), localStorage.length, document.cookie, location.href].join(' ')"
    )
    assert page.run(places) == f"{web.served.admin} 0  {web.url}"
    page.ask("Page.reload")
    page.until(f"{STATE} === 'Live'")  # without being asked again
    page.run("document.querySelector('#forget').click()")
    assert page.run(f"{BOARD} || {KEPT}") == 0
    assert all("401" in text or "403" in text for text in page.complaints())


# -------------------------------------------------------------------------------------------- the life


def test_new_calls_show_by_themselves_and_a_gateway_gone_is_said(dashboard: Any) -> None:
    web, page = dashboard(Caller("web", budgets={"day": 5.0}))
    assert page.run(tile("Calls")) == "0"
    web.served.post()
    page.until(f"{tile('Calls')} === '1'")
    web.served.post({**HELLO, "model": "gpt-4.1"})
    page.run(NUDGE)
    page.until(f"{tile('Calls')} === '2'")
    text = page.text()
    assert "key web, day" in text
    assert re.search(r"\$0\.0\d+ of \$5\.00", text)
    rows = page.run("[...document.querySelectorAll('#models tbody th')].map((at) => at.innerText)")
    assert sorted(rows) == ["gpt-4.1", "gpt-4.1-mini"]
    assert page.run("document.querySelectorAll('#recent tbody tr').length") == 2
    # A point alone is a circle; two calls in neighbouring seconds are a line.
    page.until("document.querySelectorAll('#latency circle, #latency path').length")
    assert page.run(STATE) == "Live"

    web.end()
    page.run(NUDGE)
    page.until(f"{STATE} === 'Out of date' && document.title.startsWith('(out of date)')")
    assert "cannot be reached" in page.text()
    assert page.run(tile("Calls")) == "2"  # what is known stays
    web.begin()
    page.run(NUDGE)
    page.until(f"{STATE} === 'Live' && document.querySelector('#trouble').hidden")


def test_a_page_that_nobody_sees_asks_for_nothing(dashboard: Any) -> None:
    _, page = dashboard()
    page.run(
        """{
        const [begin, end, ask] = [setTimeout, clearTimeout, fetch];
        window.waiting = new Set(); window.asked = 0; window.asking = 0;
        window.setTimeout = (what, ...rest) => {
            const id = begin(() => { waiting.delete(id); what(); }, ...rest);
            waiting.add(id);
            return id;
        };
        window.clearTimeout = (id) => { waiting.delete(id); end(id); };
        window.fetch = (...rest) => {
            asked += 1; asking += 1;
            return ask(...rest).finally(() => asking -= 1);
        };
        window.hide = (hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        };
        }"""
    )
    page.until("asked && waiting.size")
    for stop, go_on in (
        ("hide(true)", "hide(false)"),
        *[("document.querySelector('#pause').click()",) * 2],
    ):
        page.run(stop)
        page.until("!asking && !waiting.size")  # so nothing is left that could ask
        before = page.run("asked")
        page.run(go_on)
        page.until(f"asked > {before}")


# ---------------------------------------------------------------------------------------- what it shows


def test_names_are_shown_and_never_run(dashboard: Any) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    web, page = dashboard(
        Caller("web", allowed_tags={"job": None}),
        budgets=[{"name": "job", "limit": 1.0, "window": "day", "per": "tag:job"}],
        endpoints=[
            {"provider": "local", "model": name, "name": name + hostile}
            for name in ("gpt-4.1-mini", "gpt-4.1")
        ],
    )
    answer = web.served.post({**HELLO, "route": {"tags": {"job": hostile}}})
    assert answer.status_code == 200
    page.until(f"{tile('Calls')} === '1'")
    text = page.text()
    assert f"job: {hostile}" in text
    assert f"gpt-4.1-mini{hostile}" in text
    assert page.run("document.querySelectorAll('img, iframe, script:not([src])').length") == 0
    assert page.run("document.title") == "fastroute"
    assert page.complaints() == []
    # And if the script had a hole, the policy would close it.
    with pytest.raises(Exception, match="TrustedHTML"):
        page.run("document.querySelector('#foot').innerHTML = '<b>x</b>'")


CONTRASTS = """(() => {
    const parse = (text) => (text.match(/[0-9.]+/g) ?? []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (at) => {
        for (; at; at = at.parentElement) {
            const found = parse(getComputedStyle(at).backgroundColor);
            if (found.length === 3 || found[3] > 0) return found;
        }
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const poor = []; let seen = 0;
    while (walker.nextNode()) {
        const at = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !at.getClientRects().length) continue;
        const style = getComputedStyle(at);
        const [a, b] = [light(parse(at instanceof SVGElement ? style.fill : style.color)), light(ground(at))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        seen += 1;
        if (contrast < 4.5) poor.push([walker.currentNode.textContent, contrast]);
    }
    return [seen, poor];
})()"""
OUTSIDE = """[...document.querySelectorAll('body *')].filter((at) => {
    const { left, right, width } = at.getBoundingClientRect();
    return width && getComputedStyle(at.closest('thead') ?? at).position !== 'absolute'
        && (right > innerWidth + 0.5 || left < -0.5);
}).map((at) => at.outerHTML.slice(0, 80))"""
UNNAMED = """[
    ...[...document.querySelectorAll('input')].filter((at) => !at.labels.length),
    ...[...document.querySelectorAll('table')].filter((at) => !at.caption?.textContent.trim()),
    ...[...document.querySelectorAll('main > section')].filter((at) => !at.querySelector('h2, caption')),
].map((at) => at.outerHTML.slice(0, 80))"""


def test_many_endpoints_on_a_phone_and_in_the_dark(dashboard: Any) -> None:
    endpoints = [
        {
            "provider": "local",
            "model": ("gpt-4.1-mini", "gpt-4.1")[n % 2],
            "name": f"region-{n:03}/" + "long" * 12,
            "rpm": 60,
        }
        for n in range(200)
    ]
    web, page = dashboard(
        Caller("web", budgets={"day": 5.0}), endpoints=endpoints, look={"width": 390, "height": 844}
    )
    blocked = web.served.app.client.runtime.generation.state.endpoints[150].core
    blocked.block(_core.clock() + 10**12, BlockReason.RETRY_AFTER)
    web.served.post()
    names = "[...document.querySelectorAll('#endpoints tbody th')].map((at) => at.innerText)"
    page.until(f"{tile('Calls')} === '1' && {names}[0].startsWith('region-150')")  # trouble comes first
    assert page.run(f"{names}.length") == 20
    assert "retry after" in page.text()
    assert page.run(tile("Endpoints")) == "199 / 200"
    page.run("document.querySelector('#endpoints .more').click()")
    assert page.run(f"{names}.length") == 200
    for width in (390, 1200):
        page.resize(width, 844)
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(OUTSIDE) == []
    page.run(
        "{ const at = document.querySelector('#endpoints input'); at.value = 'REGION-17';"
        " at.dispatchEvent(new Event('input')) }"
    )
    assert page.run(f"{names}.length") == 10

    for scheme in ("light", "dark"):
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        seen, poor = page.run(CONTRASTS)
        assert seen > 100
        assert poor == []
        ground = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (max(ground) < 60) is (scheme == "dark")
    assert page.run(UNNAMED) == []


def test_the_charts_can_be_read_with_the_keyboard(dashboard: Any) -> None:
    web, page = dashboard(key=False)
    web.served.post()
    enter(page, web.served.admin)
    page.until(BOARD)
    for _ in range(20):
        page.press("Tab")
        if page.run("document.activeElement.parentElement.id") == "latency":
            break
    legend = "document.querySelector('#latency .legend').innerText"
    assert "latest" in page.run(legend)
    page.press("ArrowLeft")
    assert re.search(r"p99 ([\d.]+ (µs|ms|s)|–)\nat \d\d:\d\d", page.run(legend))
    assert page.run("document.querySelectorAll('#latency .at').length") == 1
    first = page.run(legend)
    page.press("ArrowLeft")
    assert page.run(legend) != first


# ------------------------------------------------------------------------------------------- the figures


def test_figures_that_take_long_are_gathered_by_a_tenth_of_a_thread() -> None:
    now, gathered = [100.0], []

    def gather() -> dict[str, Any]:
        gathered.append(now[0])
        now[0] += 2.0
        return {"n": len(gathered)}

    kept = CachedStats(gather, lambda: now[0])
    kept.value().clear()  # what a caller does with it changes nothing
    assert kept.value() == {"n": 1}
    now[0] = 119.9
    assert kept.value() == {"n": 1}
    now[0] = 120.0
    assert kept.value() == {"n": 2}


def test_others_do_not_wait_while_one_gathers() -> None:
    begun, go_on = threading.Event(), threading.Event()
    found: list[Any] = []
    count = iter(range(9))

    def gather() -> dict[str, Any]:
        n = next(count)
        if n:
            begun.set()
            go_on.wait(30)
        return {"n": n}

    kept = CachedStats(gather, lambda: 1.0)
    assert kept.value() == {"n": 0}
    thread = threading.Thread(target=lambda: found.append(kept.value()))
    thread.start()
    assert begun.wait(30)
    assert kept.value() == {"n": 0}
    go_on.set()
    thread.join()
    assert found == [{"n": 1}]
