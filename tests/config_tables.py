"""A small configuration that is right, and the problems of one that is not."""

from __future__ import annotations

from typing import Any

from fastroute.config import check

NOTHING: dict[str, str] = {}
KEY = "sk-0123456789abcdefNEVERSHOWN"


def tables(**changes: Any) -> dict[str, Any]:
    """A small configuration that is right, with some of its tables replaced."""
    return {
        "providers": {"one": {"base_url": "https://one.example.com/v1"}},
        "endpoints": [{"provider": "one", "model": "gpt-4.1"}, {"provider": "one", "model": "my-llama"}],
        **changes,
    }


def problems_of(**changes: Any) -> list[str]:
    return list(check(tables(**changes), environ=NOTHING).problems)


def only_problem(**changes: Any) -> str:
    found = problems_of(**changes)
    assert len(found) == 1, found
    return found[0]


def provider(**changes: Any) -> dict[str, Any]:
    return {"one": {"base_url": "https://one.example.com/v1", **changes}}
