"""The cause of a failure: which endpoint is tried next, which are blocked, and which error is raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from loopback import MODEL, Loopback
from ports import free_port

import fastroute
from fastroute import events
from fastroute.testing import Fault, Provider

Start = Callable[..., Loopback]
MESSAGES = [{"role": "user", "content": "Hello there"}]
QUICK = {"backoff_base": 0.001, "backoff_cap": 0.002, "strategy": "ordered"}
KEY = Fault.error("invalid_api_key")
GONE = Fault.error("model_not_found")
BLOCKED_PAGE = Fault.html("<!DOCTYPE html><title>Attention Required!</title>", 403)
SAFETY = Fault.status(403, {"code": "no permission", "error": "Content violates usage guidelines."})


def refusal(status: int, message: str, **fields: Any) -> Fault:
    return Fault.status(status, {"error": {"message": message, **fields}})


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Makes a client: ``serve({"a": (provider, "m1", "m2")}, **tables)``; a port stands for a closed one."""
    with ExitStack() as stack:

        def make(places: dict[str, tuple[Any, ...]], **tables: Any) -> fastroute.Client:
            providers, endpoints = {}, []
            for name, (server, *models) in places.items():
                if isinstance(server, Provider):
                    stack.callback(server.stop)
                address = server if isinstance(server, str) else server.base_url
                providers[name] = {"base_url": address}
                endpoints += [{"provider": name, "model": model} for model in models]
            config = {
                "fastroute": {"ledger": ""},
                "cache": {"enabled": False},
                "providers": providers,
                "endpoints": endpoints,
                "policy": {**QUICK, **tables.pop("policy", {})},
                **tables,
            }
            return stack.enter_context(fastroute.Client(config))

        yield make


def ask(client: fastroute.Client, model: str = MODEL, **words: Any) -> fastroute.Completion:
    return client.chat.completions.create(model=model, messages=MESSAGES, **words)


def asked_of(reply: fastroute.Completion) -> list[str]:
    assert reply.route is not None
    return [attempt.endpoint for attempt in reply.route.attempts]


# ------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    "gone",
    [
        GONE,
        Fault.status(404),
        Fault.status(410),
        refusal(400, "The model `m` has been decommissioned", code="model_decommissioned"),
        refusal(403, "Project `p` does not have access to model `m`", code="model_not_found"),
        refusal(400, "Model Not Exist", code="invalid_request_error"),
    ],
    ids=["404", "bare-404", "410", "decommissioned", "403", "400"],
)
def test_a_model_that_is_not_served_is_asked_for_elsewhere_and_left_alone(start: Start, gone: Fault) -> None:
    loop = start(2)
    loop.provider("a").script(gone, repeat=True)
    assert asked_of(loop.ask()) == [f"a/{MODEL}", f"b/{MODEL}"]
    for _ in range(3):
        assert asked_of(loop.ask()) == [f"b/{MODEL}"]
    assert 290 < loop.endpoint("a")["blocked_s"] <= 300
    (blocked,) = loop.of(events.EndpointBlocked)
    assert (blocked.endpoint, blocked.reason) == (f"a/{MODEL}", "it does not serve the model")


def served_by_the_largest(question: Any) -> Fault | None:
    return None if question.json["model"] == "m4" else GONE


def test_a_tier_whose_models_are_not_served_leads_to_the_dearer_ones(serve: Any) -> None:
    provider = Provider().start()
    provider.script(served_by_the_largest)
    tiers = {"one": ["m1"], "two": ["m2"], "three": ["m3"], "four": ["m4"]}
    client = serve({"a": (provider, "m1", "m2", "m3", "m4")}, tiers=tiers, policy={"max_attempts": 2})
    for model in ("auto", "one", "two"):
        reply = ask(client, model)
        assert reply.route is not None
        assert (reply.route.model, reply.route.tier) == ("m4", "four")
    assert [request.json["model"] for request in provider.requests] == ["m1", "m2", "m3", "m4", "m4", "m4"]
    plan = client.plan(model="one", messages=MESSAGES)
    assert [candidate.model for candidate in plan.candidates if candidate.rank is not None] == ["m4"]


def test_a_model_that_the_caller_named_is_not_replaced(serve: Any) -> None:
    provider = Provider().start()
    provider.script(served_by_the_largest)
    client = serve({"a": (provider, "m1", "m4")}, tiers={"one": ["m1"], "two": ["m4"]})
    with pytest.raises(fastroute.NotFoundError):
        ask(client, "m1")
    assert len(provider.requests) == 1


@pytest.mark.parametrize("setting", [{"cascade": False}, {"max_cost": 0.01}], ids=["cascade", "max_cost"])
def test_dearer_tiers_are_held_to_the_callers_limits(serve: Any, setting: dict[str, Any]) -> None:
    provider = Provider().start()
    provider.script(served_by_the_largest)
    models = {"m1": {"input_price": 1, "output_price": 1}, "m4": {"input_price": 9000, "output_price": 9000}}
    tiers = {"one": ["m1"], "two": ["m4"]}
    client = serve({"a": (provider, "m1", "m4")}, models=models, tiers=tiers, policy=setting)
    with pytest.raises(fastroute.NotFoundError):
        ask(client, "one")
    assert len(provider.requests) == 1


def test_other_failures_do_not_lead_to_dearer_tiers(serve: Any) -> None:
    first, second = Provider().start(), Provider().start()
    first.script(Fault.status(503), repeat=True)
    client = serve({"a": (first, "m1"), "b": (second, "m2")}, tiers={"one": ["m1"], "two": ["m2"]})
    with pytest.raises(fastroute.InternalServerError):
        ask(client, "one")
    assert not second.requests


@pytest.mark.parametrize(
    "fault",
    [
        refusal(400, "Unsupported parameter: 'logprobs' is not supported with this model."),
        refusal(422, "body.store: Extra inputs are not permitted", type="extra_forbidden"),
        refusal(404, "No endpoints found that support tool use."),
        Fault.status(412),
        Fault.status(418),
        refusal(402, "This request requires more credits: you can only afford 12 tokens."),
    ],
    ids=["parameter", "extra", "ability", "412", "418", "can-only-afford"],
)
def test_what_one_endpoint_refuses_another_may_take(start: Start, fault: Fault) -> None:
    loop = start(2)
    loop.provider("a").script(fault, fault)
    assert asked_of(loop.ask()) == [f"a/{MODEL}", f"b/{MODEL}"]
    assert loop.endpoint("a")["blocked_s"] == 0
    assert asked_of(loop.ask()) == [f"a/{MODEL}", f"b/{MODEL}"]
    assert asked_of(loop.ask()) == [f"a/{MODEL}"]


# ----------------------------------------------------------------------------------------- accounts and hosts

FALLBACKS = {"m1": {"fallbacks": ["m2", "m3", "m4"]}}


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (KEY, 300),
        (Fault.status(401), 300),
        (refusal(400, "API key not valid. Please pass a valid API key."), 300),
        (refusal(403, "Country, region, or territory not supported"), 300),
        (refusal(400, "Access denied, check that your account is in good standing.", code="Arrearage"), 900),
        (Fault.status(402), 900),
        (Fault.error("insufficient_quota"), 900),
    ],
    ids=["key", "401", "400-key", "region", "arrears", "402", "quota"],
)
def test_what_holds_for_an_account_is_asked_of_one_of_its_endpoints(
    serve: Any, fault: Fault, seconds: int
) -> None:
    dead, good = Provider().start(), Provider().start()
    dead.script(fault, repeat=True)
    client = serve({"a": (dead, "m1", "m2", "m3"), "b": (good, "m4", "m5")}, models=FALLBACKS)
    blocked: list[events.EndpointBlocked] = []
    client.on(blocked.append, events.EndpointBlocked)
    assert asked_of(ask(client, "m1")) == ["a/m1", "b/m4"]
    assert sorted(event.endpoint for event in blocked) == ["a/m1", "a/m2", "a/m3"]
    assert {event.seconds for event in blocked} == {seconds}
    assert asked_of(ask(client, "m5")) == ["b/m5"]
    with pytest.raises(fastroute.NoEndpointError, match="blocked"):
        ask(client, "m2")
    dead.clear_script()
    client.unblock("a/m2")  # the account has been put right, so all of its endpoints are
    assert asked_of(ask(client, "m3")) == ["a/m3"]


def test_another_account_at_the_same_host_is_another(serve: Any) -> None:
    provider = Provider().start()
    provider.script(KEY)
    client = serve({"a": (provider, "m1"), "b": (provider, "m1")})
    assert asked_of(ask(client, "m1")) == ["a/m1", "b/m1"]


def test_a_host_that_cannot_be_reached_is_asked_once_by_a_call(serve: Any) -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    client = serve(
        {"a": (address, "m1", "m2"), "other": (address, "m3"), "b": (Provider().start(), "m4")},
        models=FALLBACKS,
        policy={"max_attempts": 2},
    )
    assert asked_of(ask(client, "m1")) == ["a/m1", "b/m4"]
    figures = client.stats()["endpoints"]
    assert [figures[name]["blocked_s"] > 0 for name in ("a/m1", "a/m2", "other/m3", "b/m4")] == [
        False,
        True,
        True,
        False,
    ]


def test_where_nobody_else_is_left_a_host_that_was_unreachable_is_asked_all_the_same(serve: Any) -> None:
    provider = Provider().start()
    address = provider.base_url
    client = serve({"a": (address, "m1", "m2")}, policy={"max_attempts": 1})
    provider.stop()
    with pytest.raises(fastroute.APIConnectionError):
        ask(client, "m1")
    assert client.stats()["endpoints"]["a/m2"]["blocked_s"] > 0
    with pytest.raises(fastroute.APIConnectionError):  # not a NoEndpointError: it was asked
        ask(client, "m2")


# ------------------------------------------------------------------------------------------ the request alone


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (SAFETY, fastroute.ContentFilterError),
        (refusal(403, "You do not have permission to access the File x or it may not exist."), None),
        (refusal(404, "No such File object: file-1"), fastroute.NotFoundError),
        (Fault.status(400), fastroute.BadRequestError),
        (Fault.status(422), fastroute.UnprocessableEntityError),
    ],
    ids=["content-403", "file-403", "file-404", "400", "422"],
)
def test_what_holds_for_a_request_is_its_callers_to_know(
    start: Start, fault: Fault, kind: type[fastroute.Error] | None
) -> None:
    loop = start(2)
    loop.provider("a").script(fault, fault, fault)
    for _ in range(3):
        with pytest.raises(kind or fastroute.NotFoundError) as caught:
            loop.ask()
        assert [attempt.provider for attempt in caught.value.attempts] == ["a"]
    assert asked_of(loop.ask()) == [f"a/{MODEL}"]
    assert loop.provider("b").received == 0
    figures = loop.endpoint("a")
    assert (figures["blocked_s"], figures["success_rate"], figures["health"]) == (0, 1, 100)


@pytest.mark.parametrize("fault", [BLOCKED_PAGE, Fault.status(403)], ids=["firewall", "bare"])
def test_a_403_without_a_reason_leaves_an_endpoint_out_after_three_in_a_row(
    start: Start, fault: Fault
) -> None:
    loop = start(2)
    loop.provider("a").script(fault, fault, None, fault, fault, fault)
    for times, asked in enumerate(["ab", "ab", "a", "ab", "ab", "ab", "b"]):
        assert asked_of(loop.ask()) == [f"{name}/{MODEL}" for name in asked], times
    assert 290 < loop.endpoint("a")["blocked_s"] <= 300
    assert loop.endpoint("a")["failed"] == 0


# ------------------------------------------------------------------------------------------ the first failure


def chain_of(error: BaseException) -> list[int | None]:
    found, cause = [], error.__cause__
    while cause is not None:
        found.append(getattr(cause, "status_code", None))
        cause = cause.__cause__
    return found


@pytest.mark.parametrize(
    ("scripts", "raised", "chained", "asked"),
    [
        ("503 400", 503, [400, 503], "aba"),
        ("503 404 422", 503, [404, 422, 503], "abca"),
        ("529 500 503", 529, [500, 503], "abc"),
        ("404 400", 404, [400], "ab"),
        ("401 503 400", 401, [503, 400], "abc"),
        ("400 503", 400, [], "a"),
    ],
)
def test_the_error_of_the_first_endpoint_is_raised_with_the_others_chained(
    start: Start, scripts: str, raised: int, chained: list[int], asked: str
) -> None:
    faults = [Fault.status(int(status)) for status in scripts.split()]
    loop = start(len(faults), policy={"max_attempts": 3})
    for name, fault in zip("abc", faults):
        loop.provider(name).script(fault, repeat=True)
    with pytest.raises(fastroute.APIStatusError) as caught:
        loop.ask()
    assert caught.value.status_code == raised
    assert caught.value.endpoint == f"a/{MODEL}"
    assert "".join(attempt.provider for attempt in caught.value.attempts) == asked
    assert chain_of(caught.value) == chained


def test_the_first_endpoint_is_asked_again_after_a_later_one_refused_the_request(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(503))
    loop.provider("b").script(Fault.status(400))
    assert asked_of(loop.ask()) == [f"a/{MODEL}", f"b/{MODEL}", f"a/{MODEL}"]


def test_its_own_refusal_ends_the_call(start: Start) -> None:
    loop = start(1)
    loop.provider("a").script(Fault.status(503), Fault.status(400))
    with pytest.raises(fastroute.BadRequestError) as caught:
        loop.ask()
    assert chain_of(caught.value) == [503]


@pytest.mark.parametrize(
    ("fault", "chain"),
    [(Fault.error("context_length_exceeded"), "context"), (Fault.error("content_filter"), "content")],
)
def test_a_later_candidates_chain_is_asked_and_then_the_plan_goes_on(
    serve: Any, fault: Fault, chain: str
) -> None:
    servers = [Provider().start() for _ in range(4)]
    servers[0].script(Fault.status(503))
    servers[1].script(fault)
    servers[3].script(Fault.status(500))
    models = {"m1": {"fallbacks": ["m2", "m3"]}, "m2": {f"{chain}_fallbacks": ["m4"]}, "m3": {}, "m4": {}}
    places = {f"p{place}": (server, f"m{place}") for place, server in enumerate(servers, 1)}
    client = serve(places, models=models, policy={"max_attempts": 5})
    assert asked_of(ask(client, "m1")) == ["p1/m1", "p2/m2", "p4/m4", "p3/m3"]


# -------------------------------------------------------------------------------------------- other spellings


def refuses(refused: str, body: dict[str, Any], status: int = 400) -> Callable[[Any], Any]:
    def script(question: Any) -> Fault | None:
        return Fault.status(status, body) if refused in question.json else None

    return script


MISTRAL = {"object": "error", "type": "invalid_request_error"}


def forbidden(*place: str) -> dict[str, Any]:
    item = {"type": "extra_forbidden", "loc": ["body", *place], "msg": "Extra inputs are not permitted"}
    return {**MISTRAL, "message": {"detail": [item]}}


OPENAI = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
}


@pytest.mark.parametrize(
    ("refused", "wanted", "body", "status"),
    [
        ("max_tokens", "max_completion_tokens", OPENAI, 400),
        ("max_completion_tokens", "max_tokens", forbidden("max_completion_tokens"), 422),
    ],
)
@pytest.mark.parametrize("attempts", [1, 3])
def test_the_output_limit_is_given_the_name_that_the_endpoint_takes(
    start: Start, refused: str, wanted: str, body: dict[str, Any], status: int, attempts: int
) -> None:
    loop = start(2, policy={"max_attempts": attempts})
    loop.provider("a").script(refuses(refused, body, status))
    for _ in range(2):
        assert loop.ask(**{refused: 100}).route.endpoint == f"a/{MODEL}"  # type: ignore[union-attr]
    sent = [request.json for request in loop.provider("a").requests]
    assert [(each.get(refused), each.get(wanted)) for each in sent] == [(100, None), (None, 100), (None, 100)]
    assert loop.endpoint("a")["success_rate"] == 1
    assert loop.provider("b").received == 0


def test_a_cap_on_the_output_is_remembered(start: Start) -> None:
    text = "max_tokens is too large: 12000. This model supports at most 4096 completion tokens."
    loop = start(2)
    loop.provider("a").script(
        lambda question: refusal(400, text) if question.json["max_tokens"] > 4096 else None
    )
    for most in (12_000, 12_000, 100):
        loop.ask(max_tokens=most)
    assert [request.json["max_tokens"] for request in loop.provider("a").requests] == [12000, 4096, 4096, 100]
    assert loop.provider("b").received == 0


def test_developers_messages_are_the_systems_where_there_is_no_such_role(start: Start) -> None:
    text = "messages[0].role: unknown variant `developer`, expected one of `system`, `user`, `assistant`"

    def script(question: Any) -> Fault | None:
        roles = [message["role"] for message in question.json["messages"]]
        return refusal(422, text) if "developer" in roles else None

    loop = start(1)
    loop.provider("a").script(script)
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    for _ in range(2):
        loop.ask(messages=messages)
    roles = [request.json["messages"][0]["role"] for request in loop.provider("a").requests]
    assert roles == ["developer", "system", "system"]


def test_a_refusal_that_another_spelling_does_not_mend_is_a_refusal(start: Start) -> None:
    loop = start(2)
    loop.provider("a").script(Fault.status(400, OPENAI), repeat=True)
    assert asked_of(loop.ask(max_tokens=5)) == [f"a/{MODEL}", f"a/{MODEL}", f"b/{MODEL}"]


def test_one_endpoint_alone_is_asked_in_another_spelling_too(start: Start) -> None:
    loop = start(1)
    loop.provider("a").script(refuses("max_tokens", OPENAI))
    assert loop.client.probe(f"a/{MODEL}", max_tokens=5).route is not None
    assert loop.provider("a").received == 2
