"""The compress hook is called only if a request is too long for all models."""

from __future__ import annotations

from typing import Any

import pytest

import fastroute
from fastroute.testing import Provider

LONG = [{"role": "user", "content": "words " * 2000}]


def config(provider: Provider) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "small"}, {"provider": "p", "model": "large"}],
        "models": {"small": {"context_window": 1000}, "large": {"context_window": 2000}},
        "tiers": {"only": ["small", "large"]},
    }


def test_it_is_told_how_much_room_there_is_and_its_messages_are_sent() -> None:
    rooms: list[int] = []

    def shorten(messages: Any, room: int) -> Any:
        rooms.append(room)
        return [{**message, "content": message["content"][:3000]} for message in messages]

    with Provider(models=["small", "large"]) as provider:
        with fastroute.Client(config(provider), compress=shorten) as client:
            reply = client.chat.completions.create(model="only", messages=LONG, max_tokens=100)
        assert reply.route is not None
        assert reply.route.model == "large"
        assert rooms == [1900]
        assert len(provider.requests[0].json["messages"][0]["content"]) == 3000


def test_it_is_left_alone_while_anybody_has_room() -> None:
    def never(messages: Any, room: int) -> Any:
        raise AssertionError("asked for nothing")

    with (
        Provider(models=["small", "large"]) as provider,
        fastroute.Client(config(provider), compress=never) as client,
    ):
        client.chat.completions.create(
            model="only", messages=[{"role": "user", "content": "words " * 700}], max_tokens=100
        )


def test_without_it_and_with_one_that_does_not_help_the_refusal_has_the_figures() -> None:
    with Provider(models=["small", "large"]) as provider:
        for hook in (None, lambda messages, room: messages):
            with (
                fastroute.Client(config(provider), compress=hook) as client,
                pytest.raises(fastroute.ContextLengthExceeded, match="window 2000"),
            ):
                client.chat.completions.create(model="only", messages=LONG, max_tokens=100)
        assert not provider.requests


def test_what_is_no_list_of_messages_is_refused() -> None:
    with (
        Provider(models=["small", "large"]) as provider,
        fastroute.Client(config(provider), compress=lambda messages, room: "shorter") as client,
        pytest.raises(fastroute.BadRequestError, match="compress"),
    ):
        client.chat.completions.create(model="only", messages=LONG, max_tokens=100)
