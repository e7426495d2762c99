"""What makes a running client read its file again: a change of it, or a signal."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from children import ended, forked
from served import Serve, in_threads, text

from fastroute import Client, errors, events
from fastroute.runtime import reload as watching
from fastroute.runtime.reload import Changes, FileWatch

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

    def watch() -> None:
        served.ask()
        os.write(write, b"!")
        event = served.event()
        assert served.client.config.policy.max_attempts == 2
        assert event.changed

    child = forked(watch)
    try:
        assert os.read(read, 1) == b"!"
        served.write(top='reload = "change"', policy="max_attempts = 2")
        assert ended(child) == 0
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
    before = set(threading.enumerate())
    watch = FileWatch("change", (), owner.act)
    watch.ensure()
    (thread,) = set(threading.enumerate()) - before
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
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a client of another test may have installed ours
    try:
        threads, failed = in_threads(1, lambda: Client(path))
        threads[0].join()
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert [type(error) for error in failed] == [errors.ConfigError]
    assert "main thread" in str(failed[0])
