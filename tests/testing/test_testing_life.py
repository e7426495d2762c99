"""The local provider: killed, paused, stopped, forked, and in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import requests
from raw_http import HELLO, STREAM, answer, ask, connect, exchange, read_all, request_bytes

from fastroute.testing import Answer, Fault, Fixed, Lognormal, Provider, Repeat, Uniform

# ----------------------------------------------------------------------------------------------- life


def test_kill_resets_refuses_and_keeps_the_port(provider: Provider) -> None:
    port = provider.port
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        assert sock.recv(10)
        provider.kill()
        sock.settimeout(5)
        assert read_all(sock)[1] == "reset"
        provider.kill()  # twice is once
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
    assert len(provider.requests) == 1
    provider.restart()
    assert provider.port == port
    assert ask(provider)[0] == 200


def test_kill_ends_answers_in_flight(provider: Provider) -> None:
    provider.script(Fault.black_hole())
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        provider.wait_until(lambda p: p.in_flight == 1)
        provider.kill()
        assert read_all(sock) == (b"", "reset")
    provider.wait_until(lambda p: p.in_flight == 0)
    provider.restart()


def test_a_restart_without_a_kill_drops_connections(provider: Provider) -> None:
    with connect(provider) as sock:
        sock.sendall(request_bytes())
        sock.recv(10)
        provider.restart()
        assert read_all(sock)[1] == "reset"
    assert ask(provider)[0] == 200


def test_pause_stops_a_running_stream(provider: Provider) -> None:
    provider.script(Fault.pings(0.001))
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        while b": ping" not in sock.recv(1000):
            pass
        provider.pause()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sock.recv(100_000):  # what was sent before the pause
                pass
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(5)
        provider.resume()
        assert sock.recv(1000)


def test_stop_leaves_no_thread_and_start_begins_anew() -> None:
    before = threading.active_count()
    provider = Provider()
    provider.start()
    port = provider.port
    with connect(provider) as sock:
        sock.sendall(request_bytes(STREAM))
        sock.recv(10)
        with pytest.raises(RuntimeError, match="already running"):
            provider.start()
        provider.stop()
        provider.stop()
        assert read_all(sock)[1] in ("reset", "close")
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(RuntimeError, match="not running"):
        _ = provider.port
    with provider:
        assert ask(provider)[0] == 200
        assert provider.received == 1


def test_a_port_in_use_is_an_error_at_once(provider: Provider) -> None:
    with pytest.raises(OSError, match="in use"):
        Provider(port=provider.port).start()


def test_settings_are_checked_at_once() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"models": "gpt-4.1"}, "models"),
        ({"models": [1]}, "models"),
        ({"format": "smoke"}, "format"),
        ({"latency": -1}, "latency"),
        ({"latency": float("nan")}, "latency"),
        ({"latency": True}, "latency"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"requests_per_minute": 1.5}, "requests_per_minute"),
        ({"fail_rate": 1.5}, "fail_rate"),
        ({"fail_with": []}, "fail_with"),
        ({"answer": True}, "answer"),
        ({"answer": -1}, "answer"),
        ({"answer": [1]}, "answer"),
        ({"log_size": 0}, "log_size"),
    ]
    for arguments, name in bad:
        with pytest.raises((TypeError, ValueError), match=name):
            Provider(**arguments)
    for make in (lambda: Uniform(2, 1), lambda: Lognormal(0), lambda: Fixed(-1)):
        with pytest.raises(ValueError):
            make()


def test_many_threads_may_use_one_provider() -> None:
    with Provider() as provider:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                with requests.Session() as session:
                    for _ in range(20):
                        session.post(provider.base_url + "/chat/completions", json=HELLO, timeout=5)
                        _ = provider.requests, provider.in_flight
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert provider.received == 160
        assert provider.connections == 8


# ------------------------------------------------------------------------------------ a process of its own


def test_everything_works_in_a_process_of_its_own() -> None:
    fault = Fault.status(503, b"\xff\x00", {"x-a": "b"}) | Fault.drip(1, 0.0)
    with Provider(
        ["m"], process=True, latency=Uniform(0, 0.001), answer=Answer("x", (("f", "{}"),))
    ) as provider:
        assert provider.pid != os.getpid()
        provider.script(fault, Fault.raw(b"a", Repeat(b"b", 2), then="reset"))
        assert ask(provider)[2] == b"\xff\x00"
        assert exchange(provider) == (b"abb", "reset")
        received = provider.requests[0]
        assert received.json == HELLO
        assert received.fault == fault.name
        assert received.time <= time.monotonic()
        assert provider.latency == Uniform(0, 0.001)
        provider.latency = 0.0
        provider.answer = 3
        assert answer(provider)["usage"]["completion_tokens"] == 3
        provider.kill()
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
        provider.restart()
        assert ask(provider)[0] == 200
        assert provider.received == 4
        with pytest.raises(TypeError, match="own process"):
            provider.script(lambda request: None)
        with pytest.raises(TypeError, match="own process"):
            provider.configure(latency=lambda rng: 0.0)
        assert ask(provider)[0] == 200


def test_a_process_that_was_killed_is_reported() -> None:
    with Provider(process=True) as provider:
        os.kill(provider.pid, signal.SIGKILL)
        os.waitid(os.P_PID, provider.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeError, match="has ended"):
            _ = provider.received


def test_the_processes_port_errors_come_back(provider: Provider) -> None:
    with pytest.raises(OSError, match="in use"):
        Provider(port=provider.port, process=True).start()


def test_the_command_line_starts_one() -> None:
    command = [sys.executable, "-m", "fastroute.testing", "--model", "m", "--answer", "by hand"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        reply = requests.post(url + "/chat/completions", json=HELLO, timeout=5).json()
        assert reply["choices"][0]["message"]["content"] == "by hand"
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forks_copy_can_neither_command_nor_stop(provider: Provider) -> None:
    with Provider(process=True) as other:
        pid = os.fork()
        if pid == 0:
            refused = 0
            try:
                for copy in (provider, other):
                    try:
                        copy.kill()
                    except RuntimeError:
                        refused += 1
                    copy.stop()
            finally:
                os._exit(refused)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 2
        assert ask(provider)[0] == 200
        assert ask(other)[0] == 200
        assert other.received == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kill_refuses_also_while_a_fork_holds_a_copy_of_the_socket(provider: Provider) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        provider.kill()
        with pytest.raises(ConnectionRefusedError):
            connect(provider)
        provider.restart()
        assert ask(provider)[0] == 200
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_stop_does_not_wait_for_a_client_that_reads_nothing() -> None:
    with Provider(answer="x" * (16 << 20)) as provider, connect(provider) as sock:
        sock.sendall(request_bytes(extra="connection: close\r\n"))
        provider.wait_until(lambda p: p.received == 1)
        provider.kill()
        data, how = read_all(sock)
        assert how == "reset"
        assert len(data) < 16 << 20
