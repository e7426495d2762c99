"""`Client.probe` calls one endpoint, and no other one if it fails."""

from __future__ import annotations

import pytest
from health_looks import Start
from loopback import MODEL, Loopback

from fastroute import Completion, Stream, errors
from fastroute.testing import Fault
from fastroute.types import Attempt


def last(loop: Loopback) -> Attempt:
    return loop.attempts[-1]


def test_one_endpoint_is_asked_and_no_other(start: Start) -> None:
    loop = start(2)
    loop.provider("b").script(Fault.status(500))
    with pytest.raises(errors.InternalServerError) as caught:
        loop.client.probe(f"b/{MODEL}", max_tokens=5)
    assert [attempt.endpoint for attempt in caught.value.attempts] == [f"b/{MODEL}"]
    assert (loop.provider("a").received, loop.provider("b").received) == (0, 1)
    reply = loop.client.probe(f"b/{MODEL}", max_tokens=5)
    assert isinstance(reply, Completion)
    assert reply.route is not None
    assert reply.route.endpoint == f"b/{MODEL}"
    assert last(loop).tags == {"probe": "call"}
    assert loop.endpoint("b")["p50_s"] is None
    assert last(loop).latency > 0


def test_a_stream_of_one_endpoint(start: Start) -> None:
    loop = start(2)
    stream = loop.client.probe(f"b/{MODEL}", stream=True, route={"tags": {"probe": "mine"}})
    assert isinstance(stream, Stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert last(loop).ttft is not None
    assert last(loop).tags == {"probe": "mine"}


def test_a_provider_that_knows_no_stream_options_is_asked_again_without(start: Start) -> None:
    loop = start()
    refusal = {"error": {"message": "Unknown parameter: 'stream_options'", "param": "stream_options"}}
    loop.provider().script(Fault.status(400, refusal))
    for _ in range(2):
        with loop.client.probe(f"a/{MODEL}", stream=True) as stream:
            assert list(stream)
    assert ["stream_options" in request.json for request in loop.provider().requests] == [True, False, False]


def test_a_name_that_no_endpoint_has(start: Start) -> None:
    loop = start(2)
    with pytest.raises(errors.NoEndpointError, match=f"did you mean a/{MODEL}"):
        loop.client.probe("a/test-modle")
    with pytest.raises(errors.NoEndpointError, match="use one of a/"):
        loop.client.probe("xyz")
    with pytest.raises(errors.BadRequestError, match=r"route\.validate"):
        loop.client.probe(f"a/{MODEL}", route={"validate": "x"})


def test_an_endpoint_that_is_asked_waits_for_its_limit(start: Start) -> None:
    loop = start(2, providers={"a": {"rpm": 600, "burst": 1}})
    for _ in range(3):
        loop.client.probe(f"a/{MODEL}")
    assert (loop.provider("a").received, loop.provider("b").received) == (3, 0)
    assert last(loop).outcome == "ok"
    assert loop.client.runtime.queue.waiting == 0


def test_an_endpoint_that_is_blocked_is_not_asked(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(401))
    with pytest.raises(errors.AuthenticationError):
        loop.client.probe(f"a/{MODEL}")
    with pytest.raises(errors.NoEndpointError, match="blocked") as caught:
        loop.client.probe(f"a/{MODEL}")
    assert caught.value.attempts == ()
    assert (loop.provider("a").received, loop.provider("b").received) == (1, 0)
