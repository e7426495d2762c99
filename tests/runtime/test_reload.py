"""Reloading while calls run: as a whole, at once for limits, never in the middle of a call."""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from loopback import SLACK, open_files
from served import MESSAGES, Serve, in_threads, text

import fastroute
from fastroute import Client, errors, events
from fastroute.testing import Fault, Provider

# ------------------------------------------------------------------------------------------ what takes effect


def test_a_reload_says_what_changed(serve: Serve) -> None:
    served = serve()
    assert served.client.reload().changed == ()
    served.event()
    served.write(provider="rpm = 60", policy="max_attempts = 2")
    event = served.client.reload()
    assert event == events.ConfigReloaded(str(served.path), ("providers.a", "policy"), ())
    assert served.event() == event
    assert served.client.config.providers["a"].rpm == 60


def test_copies_of_a_client_follow(serve: Serve) -> None:
    served = serve()
    copy = served.client.with_options(tags={"team": "search"})
    served.write(endpoint='upstream = "other"')
    served.client.reload()
    assert copy.config is served.client.config
    copy.chat.completions.create(messages=MESSAGES)
    assert served.provider.requests[-1].json["model"] == "other"


def test_086_half_the_limit_with_calls_in_flight(serve: Serve) -> None:
    served = serve(provider="max_in_flight = 8")
    served.provider.pause()
    threads, failed = in_threads(8, served.ask)
    served.provider.wait_until(lambda known: known.received == 8, 10)
    served.write(provider="max_in_flight = 4", policy="max_queue = 0")
    served.client.reload()
    endpoint = served.client.stats()["endpoints"]["a/test-model"]
    assert endpoint["in_flight"] == 8  # nothing was forgotten, and nobody was thrown out
    with pytest.raises(fastroute.RateLimitError):
        served.ask()
    served.provider.resume()
    for thread in threads:
        thread.join()
    assert failed == []
    served.ask()
    assert served.provider.received == 9


def test_086_a_call_that_waits_under_the_old_limit_waits_for_the_new_one(serve: Serve) -> None:
    served = serve(provider="max_in_flight = 2")
    served.provider.pause()
    threads, failed = in_threads(3, served.ask)
    served.provider.wait_until(lambda known: known.received == 2 and served.client.stats()["queued"] == 1, 10)
    served.write(provider="max_in_flight = 3")
    served.client.reload()
    served.provider.wait_until(lambda known: known.received == 3, 10)  # though nobody has left
    served.provider.resume()
    for thread in threads:
        thread.join()
    assert failed == []


def test_086_used_requests_stay_used(serve: Serve) -> None:
    served = serve(provider="rpm = 1\nburst = 10", policy="max_queue = 0")
    for _ in range(6):
        served.ask()
    served.write(provider="rpm = 1\nburst = 7", policy="max_queue = 0")
    served.client.reload()
    assert served.client.stats()["endpoints"]["a/test-model"]["available_requests"] == 1
    served.ask()
    with pytest.raises(fastroute.RateLimitError):
        served.ask()


def test_latencies_and_breakers_go_on(serve: Serve) -> None:
    served = serve(policy="max_attempts = 1", tables="[policy.breaker]\nfailures = 2\nopen = 60")
    served.ask()
    served.provider.script(Fault.status(500), Fault.status(500))
    for _ in range(2):
        with pytest.raises(fastroute.InternalServerError):
            served.ask()
    before = served.client.stats()["endpoints"]["a/test-model"]
    assert before["state"] == "open"
    served.write(endpoint='upstream = "other"', tables="[policy.breaker]\nfailures = 2\nopen = 60")
    served.client.reload()
    after = served.client.stats()["endpoints"]["a/test-model"]
    assert after["state"] == "open"
    assert after["window_s"] == before["window_s"] > 0


def test_a_key_that_was_replaced_is_tried_at_once(serve: Serve, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("wrong")
    key.chmod(0o600)
    served = serve(Provider(api_keys=["right"]), provider=f'api_key_file = "{key}"')
    with pytest.raises(fastroute.AuthenticationError):
        served.ask()
    with pytest.raises(errors.Error):
        served.ask()
    assert served.provider.received == 1  # the endpoint is left alone for now
    key.write_text("right")
    assert served.client.reload().changed == ("providers.a",)
    assert served.ask().choices[0].message.content


def test_settings_for_life_stay_and_are_named(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    served.write(top="workers = 5\nmax_pending = 7", provider="rpm = 60")
    event = served.client.reload()
    assert event.kept == ("fastroute.workers", "fastroute.max_pending")
    assert event.changed == ("providers.a",)
    assert served.client.config.workers == 32
    assert "fastroute.workers" in caplog.text


def test_the_environment_still_goes_over_the_file(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROUTE_POLICY__MAX_ATTEMPTS", "7")
    served = serve(policy="max_attempts = 2")
    served.write(policy="max_attempts = 3", provider="rpm = 60")
    assert served.client.reload().changed == ("providers.a",)
    assert served.client.config.policy.max_attempts == 7
    monkeypatch.delenv("FASTROUTE_POLICY__MAX_ATTEMPTS")
    served.client.reload()
    assert served.client.config.policy.max_attempts == 3


def test_the_file_is_found_again_from_another_directory(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    served = serve()
    with Client(served.path.name) as client:
        monkeypatch.chdir("/")
        served.write(policy="max_attempts = 4")
        client.reload()
        assert client.config.policy.max_attempts == 4


def test_a_new_source_is_the_source_from_then_on(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    other = tmp_path / "other.toml"
    other.write_text(text(served.provider.base_url, policy="max_attempts = 4"))
    served.client.reload(other)
    other.write_text(text(served.provider.base_url, policy="max_attempts = 5"))
    assert served.client.reload().source == str(other)
    assert served.client.config.policy.max_attempts == 5
    with pytest.raises(errors.ConfigError):
        served.client.reload(tmp_path / "missing.toml")
    assert served.client.reload().source == str(other)


# ------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        pytest.param("[fastroute", ["not valid TOML"], id="half-written"),
        pytest.param("", ["endpoints"], id="empty"),
        pytest.param(
            '[fastroute]\ntimeout = "soon"\n[policy]\nstrategie = "latency"',
            ["fastroute.timeout", "policy.strategie", "endpoints"],
            id="wrong",
        ),
    ],
)
def test_177_a_bad_file_changes_nothing_and_says_why(serve: Serve, content: str, problems: list[str]) -> None:
    served = serve()
    before = served.client.config
    served.put(content)
    with pytest.raises(errors.ConfigError) as caught:
        served.client.reload()
    assert served.client.config is before
    for problem in problems:
        assert problem in str(caught.value)
    assert served.event() == events.ConfigRefused(str(served.path), caught.value.problems)
    served.ask()
    served.write(policy="max_attempts = 2")
    served.client.reload()
    assert served.client.config.policy.max_attempts == 2


def test_177_a_bad_catalogue_changes_nothing_and_says_why(serve: Serve) -> None:
    served = serve()
    catalogue = served.path.with_name("prices.toml")
    catalogue.write_text("models.test-model.quality = 0.75", encoding="utf-8")
    served.write(top='catalog = "prices.toml"')
    served.client.reload()
    before = served.client.config
    catalogue.write_text("models.test-model.quality = 75", encoding="utf-8")
    with pytest.raises(errors.ConfigError, match=r"quality: must be a number"):
        served.client.reload()
    assert served.client.config is before
    served.ask()


def test_177_a_key_that_is_not_there_changes_nothing(serve: Serve) -> None:
    served = serve()
    before = served.client.config
    served.write(provider='api_key_env = "A_TEST_NO_SUCH_KEY"')
    with pytest.raises(errors.ConfigError, match="A_TEST_NO_SUCH_KEY"):
        served.client.reload()
    assert served.client.config is before
    served.ask()


def test_a_segment_without_room_changes_nothing(serve: Serve) -> None:
    served = serve()
    before = served.client.config
    many = "".join(f'[[endpoints]]\nprovider = "a"\nmodel = "m{number}"\n' for number in range(3000))
    served.write(tables=many)
    with pytest.raises(errors.ConfigError, match="fit into the state"):
        served.client.reload()
    assert served.client.config is before
    served.ask()


def test_a_closed_client_is_not_reloaded(serve: Serve) -> None:
    served = serve()
    served.client.close()
    with pytest.raises(errors.Error, match="closed"):
        served.client.reload()


# ------------------------------------------------------------------------------------------------ under load


def test_177_a_hundred_reloads_under_load(serve: Serve) -> None:
    """Each configuration names another model, another upstream and another header: a mixture would show."""
    served = serve(Provider(process=True), provider='headers = {x-config = "one"}', model="one")
    url = served.provider.base_url
    texts = [
        text(
            url,
            model=name,
            provider=f'headers = {{x-config = "{name}"}}\nconnect_timeout = {4 + place}',
            tables=f'[[endpoints]]\nprovider = "a"\nmodel = "twin"\nupstream = "{name}"',
        )
        for place, name in enumerate(("one", "two"))
    ]
    served.ask()
    before = len(open_files())
    over = threading.Event()
    asked = itertools.count()

    def work() -> None:
        while not over.is_set():
            served.ask()
            next(asked)

    threads, failed = in_threads(8, work)
    for number in range(100):
        served.put(texts[number % 2])
        served.client.reload()
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert next(asked) > 100
    seen = {(received.headers["x-config"], received.json["model"]) for received in served.provider.requests}
    assert seen == {("one", "one"), ("two", "two")}
    assert len(open_files()) <= before + 8  # a connection for each thread
    served.provider.wait_until(lambda known: known.open_connections <= 8, SLACK)


def test_unchanged_providers_keep_their_connections(serve: Serve) -> None:
    served = serve()
    for attempts in (1, 2, 3):
        served.write(policy=f"max_attempts = {attempts}")
        served.client.reload()
        served.ask()
    assert {received.connection for received in served.provider.requests} == {1}


def test_a_call_keeps_the_configuration_it_began_with(serve: Serve) -> None:
    """Its provider is taken away before it is answered with an error: it asks there again all the same."""
    with Provider() as other:
        served = serve()
        served.provider.pause()
        served.provider.script(Fault.status(500))
        threads, failed = in_threads(1, served.ask)
        served.provider.wait_until(lambda known: known.received == 1, 10)
        served.put(text(other.base_url))
        served.client.reload()
        served.ask()
        assert other.received == 1
        served.provider.resume()
        for thread in threads:
            thread.join()
        assert failed == []
        assert served.provider.received == 2
        served.provider.wait_until(lambda known: known.open_connections == 0, SLACK)
        served.client.close()


def test_a_reload_in_the_middle_of_beginning_a_call_does_not_mix(serve: Serve) -> None:
    """It comes when the call has its configuration, but neither a model nor a plan."""
    served = serve(model="one")

    class Messages(list[dict[str, str]]):
        def __bool__(self) -> bool:
            served.write(model="two", top="connect_timeout = 4")
            served.client.reload()
            return True

    reply = served.client.chat.completions.create(messages=Messages(MESSAGES))
    assert reply.route is not None
    assert reply.route.model == "one"
    assert served.ask().route.model == "two"


def test_a_stream_ends_under_the_configuration_it_began_with(serve: Serve) -> None:
    served = serve(Provider(answer=40, tokens_per_second=400))
    with Provider() as other:
        stream = served.ask(stream=True)
        first = next(stream)
        served.put(text(other.base_url, model="other-model"))
        served.client.reload()
        served.ask()
        assert other.received == 1
        rest = list(stream)
        assert first is not None
        assert rest
        assert stream.usage.completion_tokens == 40
        assert stream.route.model == "test-model"
        served.provider.wait_until(lambda known: known.open_connections == 0, SLACK)
        served.client.close()


@pytest.mark.parametrize(
    ("keys", "served_again"),
    [
        pytest.param({"provider": "rpm = 600000"}, False, id="a-limit"),
        pytest.param({"endpoint": 'upstream = "other"'}, True, id="another-upstream"),
        pytest.param({"provider": 'headers = {x-tier = "flex"}'}, True, id="a-header"),
        pytest.param({"policy": 'fixed_model = "test-model"'}, True, id="the-switch"),
    ],
)
def test_kept_answers_go_on_unless_they_would_be_others(
    serve: Serve, keys: dict[str, str], served_again: bool
) -> None:
    served = serve()
    served.put(text(served.provider.base_url).replace("enabled = false", "enabled = true"))
    served.client.reload()
    served.ask()
    assert served.ask().route.cached
    served.put(text(served.provider.base_url, **keys).replace("enabled = false", "enabled = true"))
    served.client.reload()
    assert served.ask().route.cached is not served_again
    assert served.provider.received == 1 + served_again


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parent.parent.parent / "docs" / "reload.md"


def test_the_pages_examples_run(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(model="gpt-4.1")
    monkeypatch.chdir(tmp_path)
    tables = "".join(re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert tables.count('reload = "change"') == tables.count('fixed_model = "gpt-4.1"') == 1
    other = text(served.provider.base_url, model="gpt-4.1", policy='fixed_model = "gpt-4.1"')
    (tmp_path / "other.toml").write_text(other)
    (tmp_path / "fastroute.toml").write_text(text(served.provider.base_url, model="gpt-4.1"))
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if "event." in block:
            assert names["client"].config.policy.fixed_model == "gpt-4.1"
        exec(compile(block, str(PAGE), "exec"), names)
    names["client"].close()
    assert names["event"].changed == ()
