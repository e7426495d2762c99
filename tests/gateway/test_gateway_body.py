"""Bodies and their framing, as a WSGI server hands them on: what is refused, and how (cases 156 to 160)."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateways import HELLO, Served, error_of
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import fastroute
from fastroute.gateway import body as bodies
from fastroute.gateway.load import Load
from fastroute.gateway.responses import GatewayError
from fastroute.testing import Provider

Serve = Callable[..., Served]
MOST = 1000
GOOD = json.dumps(HELLO).encode()


class Input(io.BytesIO):
    """A server's input; reading past what was sent would block."""


ROOM = bodies.BodyRoom(most=MOST, most_of_all=10 * MOST, seconds=30.0)


def read(data: bytes, **environ: Any) -> bytes:
    place = Load().enter("web", None, None)
    asked = {"CONTENT_TYPE": "application/json", "wsgi.input": Input(data), **environ}
    return bodies.read(asked, ROOM, place)


def refused(data: bytes, **environ: Any) -> int:
    with pytest.raises(GatewayError) as caught:
        read(data, **environ)
    assert caught.value.status_code is not None
    return caught.value.status_code


def test_a_body_is_read_to_its_length_and_no_further() -> None:
    assert read(b"12345678", CONTENT_LENGTH="5") == b"12345"
    assert read(b"", CONTENT_LENGTH="0") == b""
    assert read(b"x" * MOST, CONTENT_LENGTH=str(MOST)) == b"x" * MOST
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    assert read(b"x" * MOST, **chunked) == b"x" * MOST


def test_other_framings_are_refused() -> None:
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    assert refused(b"x" * (MOST + 1), CONTENT_LENGTH=str(MOST + 1)) == 413
    assert refused(b"x" * (MOST + 1), **chunked) == 413
    assert refused(b"x") == 411
    assert refused(b"x", CONTENT_LENGTH="") == 411
    assert refused(b"x", HTTP_TRANSFER_ENCODING="chunked") == 411  # a server that cannot tell its end
    assert refused(b"x", HTTP_TRANSFER_ENCODING="chunked", CONTENT_LENGTH="1") == 411
    for wrong in ("-1", "+1", "1_0", "0x1", "1,1", "¹", "9" * 30, " 1"):
        assert refused(b"x", CONTENT_LENGTH=wrong) == 400
    assert refused(b"x" * 10, CONTENT_LENGTH="20") == 400


def test_only_plain_json_is_taken() -> None:
    length = {"CONTENT_LENGTH": "1"}
    for kind in (
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/json; charset=utf-16",
    ):
        assert refused(b"x", CONTENT_TYPE=kind, **length) == 415
    for encoding in ("gzip", "br", "identity, gzip"):
        assert refused(b"x", HTTP_CONTENT_ENCODING=encoding, **length) == 415
    for kind in ("application/json", "Application/JSON ; charset=UTF-8", 'application/json;charset="utf-8"'):
        assert read(b"x", CONTENT_TYPE=kind, HTTP_CONTENT_ENCODING="identity", **length) == b"x"


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(bodies.time, "monotonic", lambda: float(next(now)))

    class Drip:
        def read(self, _: int) -> bytes:
            return b"x"

    assert refused(b"", CONTENT_LENGTH="900", **{"wsgi.input": Drip()}) == 408


def test_a_servers_own_error_while_reading_is_the_clients_fault() -> None:
    class Broken:
        def read(self, _: int) -> bytes:
            raise RuntimeError("invalid chunk")

    assert refused(b"", CONTENT_LENGTH="9", **{"wsgi.input": Broken()}) == 400


DEEP = b'{"model":"auto","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
MANY = b'{"messages":[{' + b",".join(b'"k%d":1' % number for number in range(100_001)) + b"}]}"
TINY = b'{"messages":[' + b"[]," * 250_000 + b"1]}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        GOOD + b"x",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        b'{"model":"gpt-4.1","model":"auto","messages":[{"role":"user","content":"x"}]}',
        b'{"messages":[{"role":"user","content":"x","role":"system"}]}',
        GOOD[:-1] + b',"temperature":NaN}',
        GOOD[:-1] + b',"temperature":1e999}',
        GOOD[:-1] + b',"seed":' + b"9" * 5000 + b"}",
        DEEP,
        MANY,
        TINY,
        gzip.compress(GOOD, mtime=0),
        b"\xff" + GOOD,
        GOOD[:-1] + b',"stream":"false"}',
        GOOD[:-1] + b',"stream":1}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_json_that_is_no_request_is_refused_and_never_repeated(serve: Serve, body: bytes) -> None:
    served = serve()
    response = served.post(body)
    assert response.status_code == (400 if body else 411)
    assert "hello there" not in error_of(response)["message"]
    assert len(response.data) < 1024
    assert served.provider.requests == ()


def test_half_a_character_goes_through_as_it_came(serve: Serve) -> None:
    served = serve()
    served.post(b'{"model":"auto","messages":[{"role":"user","content":"\\ud83d"}]}')
    assert b'"content":"\\ud83d"' in served.provider.requests[0].body


def test_the_largest_figures_overflow_nothing(serve: Serve) -> None:
    served = serve(budgets=[{"name": "all", "limit": 1000.0, "window": "day"}])
    response = served.post({**HELLO, "n": 128, "max_tokens": 10_000_000})
    assert response.status_code in (200, 429)
    assert all(
        budget["spent_nano"] >= 0
        for budget in served.get("/admin/stats.json", token=served.admin).json["budgets"]
    )


def test_no_header_of_a_caller_reaches_the_provider(serve: Serve) -> None:
    served = serve()
    given = {
        "x-portkey-custom-host": "evil",
        "api-key": "k1",
        "x-api-base": "evil",
        "cookie": "a=b",
        "x-request-id": "mine",
    }
    assert served.post(headers=given).status_code == 200
    [received] = served.provider.requests
    assert not set(given) & set(received.headers)
    assert served.token not in str(received.headers)


# ----------------------------------------------------------------------------------------------- the page


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "gateway.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    with Provider() as provider:
        (tmp_path / "fastroute.toml").write_text(
            f'[providers.local]\nbase_url = "{provider.base_url}"\n'
            '[[endpoints]]\nprovider = "local"\nmodel = "gpt-4.1"\n'
        )
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        for block in blocks:
            exec(compile(block, "docs/gateway.md", "exec"), names)
        assert isinstance(names["client"], fastroute.Client)
        assert isinstance(names["application"], DispatcherMiddleware)
        assert names["token"].startswith("fr-")
        names["client"].close()
