"""Another configuration while calls run: as a whole, at once for limits, never in the middle of a call."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import SLACK, nothing_left, open_files

import fastroute
from fastroute import Client, errors, events
from fastroute import reload as watching
from fastroute.reload import Changes, Watch
from fastroute.testing import Fault, Provider

MESSAGES = [{"role": "user", "content": "Say hello"}]
POLICY = (
    'strategy = "ordered"\nbackoff_base = 0.001\nbackoff_cap = 0.002\ntimeout_base = 20\nqueue_timeout = 20'
)


def text(
    url: str,
    *,
    top: str = "",
    provider: str = "",
    endpoint: str = "",
    model: str = "test-model",
    policy: str = "",
    tables: str = "",
) -> str:
    return f"""
[fastroute]
ledger = ""
timeout = 20
default_model = "{model}"
{top}
[cache]
enabled = false
[providers.a]
base_url = "{url}"
{provider}
[[endpoints]]
provider = "a"
model = "{model}"
{endpoint}
[models."{model}"]
input_price = 1
output_price = 2
[policy]
{POLICY}
{policy}
{tables}
"""


class Served:
    """A provider, a file, and a client made from it."""

    def __init__(self, path: Path, provider: Provider, /, **keys: str) -> None:
        self.path = path
        self.provider = provider
        self.write(**keys)
        self.client = Client(path)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client.on(self.events.put, events.ConfigReloaded)
        self.client.on(self.events.put, events.ConfigRefused)

    def write(self, **keys: str) -> None:
        self.put(text(self.provider.base_url, **keys))

    def put(self, content: str) -> None:
        """As a careful editor would: another file by the same name, from one moment to the next."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(content, encoding="utf-8")
        fresh.replace(self.path)

    def ask(self, **params: Any) -> Any:
        return self.client.chat.completions.create(messages=MESSAGES, **params)

    def event(self) -> Any:
        return self.events.get(timeout=10)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a provider and a client whose file can be written anew; nothing may be left open."""
    made: list[Served] = []
    with nothing_left():

        def begin(provider: Provider | None = None, /, **keys: str) -> Served:
            served = Served(tmp_path / f"{len(made)}.toml", (provider or Provider()).start(), **keys)
            made.append(served)
            return served

        yield begin
        for served in made:
            served.client.close()
            served.provider.wait_until(lambda known: known.open_connections == 0, SLACK)
            served.provider.stop()


def in_threads(count: int, work: Callable[[], object]) -> tuple[list[threading.Thread], list[BaseException]]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, failed


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
    with pytest.raises(errors.ConfigError, match="no room"):
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


# ------------------------------------------------------------------------------------------------ the switch

TWO = '[[endpoints]]\nprovider = "a"\nmodel = "big"\n[tiers]\nbudget = ["test-model"]\npremium = ["big"]'


def test_one_setting_turns_routing_off(serve: Serve) -> None:
    served = serve(tables=TWO)
    assert served.ask(model="test-model").route.model == "test-model"
    served.write(tables=TWO, policy='fixed_model = "big"')
    served.client.reload()
    for asked in ("auto", "test-model", "budget", "big", "never-heard-of", None):
        route = served.ask(model=asked).route
        assert route.model == "big"
        assert route.classification.level == "trivial"
    assert served.ask(model="auto", route={"tier": "budget"}).route.model == "big"
    plan = served.client.plan(messages=MESSAGES, model="auto")
    assert "fixed_model" in str(plan)
    assert {candidate.model for candidate in plan.candidates} == {"big"}
    served.write(tables=TWO)
    served.client.reload()
    assert served.ask(model="budget").route.model == "test-model"


def test_one_variable_turns_routing_off_and_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tables=TWO)
    monkeypatch.setenv("FASTROUTE_POLICY__FIXED_MODEL", "big")
    served.client.reload()
    assert served.ask(model="budget").route.model == "big"
    served.write(tables=TWO, policy='fixed_model = "big"')
    monkeypatch.setenv("FASTROUTE_POLICY__FIXED_MODEL", "")
    served.client.reload()
    assert served.ask(model="budget").route.model == "test-model"


def test_without_routing_there_is_failover_among_endpoints_but_not_to_other_models(serve: Serve) -> None:
    more = (
        '[[endpoints]]\nprovider = "a"\nmodel = "big"\nupstream = "first"\nname = "one"\n'
        '[[endpoints]]\nprovider = "a"\nmodel = "big"\nupstream = "second"\nname = "two"\n'
        '[models.big]\nfallbacks = ["test-model"]\n'
    )
    served = serve(tables=more, policy='fixed_model = "big"')
    served.provider.script(Fault.status(500))
    assert served.ask(model="test-model").route.endpoint == "two"
    served.provider.script(*(Fault.status(500) for _ in range(9)))
    with pytest.raises(fastroute.InternalServerError):
        served.ask()
    assert {received.json["model"] for received in served.provider.requests} == {"first", "second"}


@pytest.mark.parametrize("name", ["nobody", "auto", "budget"])
def test_a_fixed_model_must_have_an_endpoint(serve: Serve, name: str) -> None:
    served = serve(tables=TWO)
    served.write(tables=TWO, policy=f'fixed_model = "{name}"')
    with pytest.raises(errors.ConfigError, match=r"policy\.fixed_model"):
        served.client.reload()


# ----------------------------------------------------------------------------------------- a change of files


def test_a_change_counts_once_it_stands_still(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    changes = Changes([str(file)])
    assert not changes.look()
    file.write_text("three")
    assert not changes.look()
    assert changes.moving
    file.write_text("seventeen")
    assert not changes.look()
    assert changes.look()
    assert not changes.moving
    assert not changes.look()
    file.unlink()
    assert not changes.look()
    assert changes.look()


def test_a_change_while_the_file_is_read_is_not_lost(tmp_path: Path) -> None:
    file, more = tmp_path / "f", tmp_path / "g"
    file.write_text("one")
    changes = Changes([str(file)])
    file.write_text("three")
    assert [changes.look(), changes.look()] == [False, True]
    file.write_text("seventeen")  # after it was looked at, before the reading of it is over
    changes.follow([str(file), str(more)])
    assert [changes.look(), changes.look()] == [False, True]
    more.write_text("new")
    assert [changes.look(), changes.look()] == [False, True]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL", 0.005)
    monkeypatch.setattr(watching, "SETTLE", 0.005)


@pytest.mark.usefixtures("quick")
def test_a_changed_file_is_read(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(top='reload = "change"')
    served.write(top='reload = "change"', policy="max_attempts = 2")
    assert served.event().changed == ("policy",)
    assert served.client.config.policy.max_attempts == 2
    good = served.path.read_text()
    served.put(good[: len(good) // 2])
    assert isinstance(served.event(), events.ConfigRefused)
    assert served.client.config.policy.max_attempts == 2
    served.ask()
    served.write(top='reload = "change"', policy="max_attempts = 4")
    assert served.event().changed == ("policy",)
    served.client.close()
    assert [record.levelno for record in caplog.records if "was not reloaded" in record.getMessage()] == [
        logging.ERROR
    ]


@pytest.mark.usefixtures("quick")
def test_a_forked_child_watches_for_itself(serve: Serve) -> None:
    served = serve(top='reload = "change"')
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            served.ask()
            os.write(write, b"!")
            event = served.event()
            code = 0 if served.client.config.policy.max_attempts == 2 and event.changed else 2
        finally:
            os._exit(code)
    try:
        assert os.read(read, 1) == b"!"
        served.write(top='reload = "change"', policy="max_attempts = 2")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(read)
        os.close(write)
    assert served.event().changed == ("policy",)  # and so does the parent


def test_only_a_file_can_be_watched(serve: Serve) -> None:
    served = serve()
    tables = {
        "fastroute": {"ledger": "", "reload": "change"},
        "providers": {"a": {"base_url": served.provider.base_url}},
        "endpoints": [{"provider": "a", "model": "test-model"}],
    }
    with pytest.raises(errors.ConfigError, match=r"fastroute\.reload"):
        Client(tables)


def test_a_watch_ends_with_what_it_watches_for() -> None:
    class Owner:
        def act(self) -> tuple[str, ...]:
            return ()

    owner = Owner()
    watch = Watch("change", (), owner.act)
    watch.ensure()
    thread = watch._thread
    assert thread is not None
    del owner
    thread.join(10)
    assert not thread.is_alive()


# ---------------------------------------------------------------------------------------------- the signal

SIGNALLED = """
import os, queue, signal, sys
import fastroute
from fastroute import events
heard = []
signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
client = fastroute.Client(sys.argv[1])
seen = queue.SimpleQueue()
client.on(seen.put, events.ConfigReloaded)
print("ready", flush=True)
sys.stdin.readline()
while not heard:
    signal.pause()
event = seen.get(timeout=20)
print(event.changed, heard == [signal.SIGHUP], client.config.policy.max_attempts, flush=True)
client.close()
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""

DEAF = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have it ignored
import fastroute
client = fastroute.Client(sys.argv[1])
client.close()
print("ready", flush=True)
sys.stdin.readline()
"""


def python(code: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_hang_up_signal_reloads_and_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text("http://127.0.0.1:9/v1", top='reload = "signal"'))
    with python(SIGNALLED, path) as process:
        path.write_text(text("http://127.0.0.1:9/v1", top='reload = "signal"', policy="max_attempts = 2"))
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate("\n", timeout=30)
    assert out == "('policy',) True 2\n"
    assert process.returncode == 0


def test_once_nobody_listens_the_signal_ends_the_program_as_before(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text("http://127.0.0.1:9/v1", top='reload = "signal"'))
    with python(DEAF, path) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == -signal.SIGHUP


def test_signals_need_the_main_thread(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text("http://127.0.0.1:9/v1", top='reload = "signal"'))
    threads, failed = in_threads(1, lambda: Client(path))
    threads[0].join()
    assert [type(error) for error in failed] == [errors.ConfigError]
    assert "main thread" in str(failed[0])


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parent.parent / "docs" / "reload.md"


def test_the_pages_examples_run(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(model="gpt-4.1")
    monkeypatch.chdir(tmp_path)
    tables = "".join(re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert tables.count('reload = "change"') == tables.count('fixed_model = "gpt-4.1"') == 1
    other = text(served.provider.base_url, model="gpt-4.1", policy='fixed_model = "gpt-4.1"')
    (tmp_path / "other.toml").write_text(other)
    names: dict[str, Any] = {"client": served.client, "fastroute": fastroute}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if "event." in block:
            assert names["client"].config.policy.fixed_model == "gpt-4.1"
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["event"].changed == ()
