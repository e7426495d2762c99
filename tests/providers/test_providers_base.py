"""The registry of formats, and what the content type of an answer means."""

from __future__ import annotations

from typing import Any

import pytest

from fastroute import errors
from fastroute.providers import Format, base, check_content_type, get, names, register

# --------------------------------------------------------------------------------------------- content types


@pytest.mark.parametrize(
    ("kind", "plain", "streamed"),
    [
        ("application/json", "json", "json"),
        ("application/json; charset=utf-8", "json", "json"),
        ("application/problem+json", "json", "json"),
        ("text/event-stream; charset=utf-8", None, "events"),
        ("", "json", "events"),
        ("text/plain", "json", "events"),
        ("text/html; charset=utf-8", None, None),
        ("image/png", None, None),
        ("\x00rubbish", None, None),
    ],
)
def test_content_types(kind: str, plain: str | None, streamed: str | None) -> None:
    for stream, expected in ((False, plain), (True, streamed)):
        if expected is None:
            with pytest.raises(errors.UpstreamProtocolError):
                check_content_type({"content-type": kind}, stream)
        else:
            assert check_content_type({"content-type": kind}, stream) == expected
    assert check_content_type({}, False) == "json"


# ------------------------------------------------------------------------------------------------- registry


class Mine:
    name = "mine"
    url = headers = encode = decode = decode_error = stream = staticmethod(lambda *_: None)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "registered", {})


@pytest.mark.usefixtures("registry")
def test_formats_can_be_added() -> None:
    mine: Any = Mine()
    before = names()
    register(mine)
    register(mine)
    assert get("mine") is mine
    assert set(names()) == {*before, "mine"}
    with pytest.raises(ValueError, match="already registered"):
        register(Mine())  # type: ignore[arg-type]
    other: Any = Mine()
    register(other, replace=True)
    assert get("mine") is other


@pytest.mark.usefixtures("registry")
def test_formats_that_are_refused() -> None:
    class Half:
        name = "half"
        url = staticmethod(lambda *_: "")

    with pytest.raises(TypeError, match="lacks headers, encode"):
        register(Half())  # type: ignore[arg-type]
    odd: Any = Mine()
    odd.name = "Not A Name"
    with pytest.raises(ValueError, match="lower-case"):
        register(odd)
    odd.name = "openai"
    with pytest.raises(ValueError, match="already registered"):
        register(odd)


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(errors.ConfigError, match=r"unknown format 'opena1'; use one of .*openai"):
        get("opena1")


def test_the_built_in_format_is_one_object() -> None:
    found: Format = get("openai")
    assert found is get("openai")
    assert found.name == "openai"
