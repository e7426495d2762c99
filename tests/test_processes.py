"""One client and many processes: forked with or without Python's hooks, locks held, spawned, and exact."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from needs import need

import fastroute
from fastroute import Attempt, Client, Completion, _core, forks
from fastroute.ledger import Ledger
from fastroute.ledger import locks as ledger_locks
from fastroute.testing import Provider

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

SECOND = 10**9


def tables(base_url: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "fastroute": {"ledger": str(tmp_path / "ledger.db"), "timeout": 20.0, **more.pop("fastroute", {})},
        "cache": {"enabled": False},
        "providers": {"p": {"base_url": base_url, **more.pop("provider", {})}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1.0, "output_price": 1.0}},
        "policy": {"queue_timeout": 5.0, "max_attempts": 1},
        **more,
    }


def ask(client: Client, text: str = "hello", **params: Any) -> Completion:
    reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **params)
    assert isinstance(reply, Completion)
    return reply


def forked(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Callable[[], Any]:
    """Starts ``work`` in a forked child, which ends after 20 s at most; the result waits for its answer."""
    readable, writable = os.pipe()
    pid = fork()
    if pid == 0:
        signal.alarm(20)
        try:
            answer = {"answer": work()}
        except BaseException as error:
            answer = {"error": repr(error)}
        with os.fdopen(writable, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writable)

    def result() -> Any:
        with open(readable) as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert text, f"the child ended with {os.waitstatus_to_exitcode(status)}"
        found = json.loads(text)
        assert "error" not in found, found["error"]
        return found["answer"]

    return result


def unheard_fork() -> int:
    """As by a server that forks below Python: nothing of fastroute's is done (Python's own is)."""
    actions, forks._actions = forks._actions, []
    mutex, ledger_locks._mutex = ledger_locks._mutex, threading.RLock()
    try:
        pid = os.fork()
    finally:
        forks._actions, ledger_locks._mutex = actions, mutex
    if pid == 0:
        forks._done = 0
    return pid


FORKS = pytest.mark.parametrize("fork", [os.fork, unheard_fork], ids=["heard", "unheard"])


# ----------------------------------------------------------------------------------------------- connections


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for 127.0.0.1."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return key, cert


class TlsDoor:
    """Speaks TLS on one side and passes on what was said on the other."""

    def __init__(self, port: int, key: Path, cert: Path) -> None:
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, socket.create_connection(("127.0.0.1", self._target)) as inner:
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                return
            with outer:
                back = threading.Thread(target=self._copy, args=(inner, outer), daemon=True)
                back.start()
                self._copy(outer, inner)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A provider that echoes, in a process of its own: its address and what a client needs to trust it."""
    with Provider(process=True) as provider:
        if request.param == "http":
            yield {"base_url": provider.base_url}
            return
        key, cert = certificate(tmp_path)
        door = TlsDoor(int(provider.base_url.rsplit(":", 1)[1].split("/")[0]), key, cert)
        yield {"base_url": door.url, "ca_bundle": str(cert)}
        door.close()


@FORKS
def test_nobody_gets_anothers_answer(
    upstream: dict[str, Any], fork: Callable[[], int], tmp_path: Path
) -> None:
    """A client with open connections is forked; all use it at once, and every answer fits its question."""

    def talk(name: str) -> dict[str, Any]:
        ids = []
        with ThreadPoolExecutor(2) as pool:
            questions = [f"{name} {number}" for number in range(12)]
            for question, reply in zip(
                questions, pool.map(lambda text: ask(client, text), questions), strict=True
            ):
                assert reply.choices[0].message.content == question
                assert reply.route is not None
                ids += [attempt.id for attempt in reply.route.attempts]
        for number in range(4):
            text = f"{name} stream {number}"
            with client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], stream=True
            ) as stream:
                assert (
                    "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == text
                )
        assert client.submit(model="m", messages=[{"role": "user", "content": name}]).result(20)
        client.ledger.flush()
        return {"ids": ids, "random": client._router.snapshot.dispatcher._random.random()}

    base = dict(upstream)
    with Client(tables(base.pop("base_url"), tmp_path, provider=base)) as client:
        talk("before")
        children = [forked(lambda name=name: talk(name), fork) for name in ("one", "two", "three")]  # type: ignore[misc]
        talks = [talk("parent"), *(child() for child in children)]
        ids = [name for one in talks for name in one["ids"]]
        assert len(set(ids)) == len(ids)
        assert len({name.split("-")[0] for name in ids}) == 4
        assert len({one["random"] for one in talks}) == 4
        client.ledger.flush()
        rows = [row.id for row in client.ledger.entries(None)]
        assert len(set(rows)) == len(rows) == 5 * 17
        stats = client.stats()
        assert stats["endpoints"]["p/m"]["in_flight"] == 0
        assert stats["endpoints"]["p/m"]["succeeded"] == 5 * 17
        assert stats["state"]["workers"] == 1  # the children are gone, and counted no more


def test_a_child_of_a_child_goes_on_too(tmp_path: Path) -> None:
    with Provider(process=True) as provider, Client(tables(provider.base_url, tmp_path)) as client:

        def child() -> list[str]:
            ask(client, "child")
            grandchild = forked(lambda: ask(client, "grandchild").choices[0].message.content)
            return [ask(client, "child").choices[0].message.content or "", grandchild()]

        ask(client, "parent")
        assert forked(child)() == ["child", "grandchild"]


# ----------------------------------------------------------------------------------------------------- locks


def locks_of(*roots: object) -> list[Any]:
    """Every lock that fastroute's objects refer to, found from its modules and the roots."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    seen: set[int] = set()
    found: list[Any] = []
    todo: list[object] = list(roots)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "fastroute" and "testing" not in name:
            todo += [value for value in vars(module).values() if not isinstance(value, types.ModuleType)]
    while todo:
        at = todo.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, kinds):
            found.append(at)
        ours = type(at).__module__.split(".")[0] in ("fastroute", "builtins", "threading", "queue", "weakref")
        if ours and not isinstance(at, (type, types.ModuleType, types.FunctionType, threading.Thread)):
            todo += gc.get_referents(at)
            if isinstance(at, types.MethodType):
                todo.append(at.__self__)
    return found


@contextmanager
def every_lock_held(fork: Callable[[], int], *roots: object) -> Iterator[int]:
    """Another thread holds what it can get of the locks; so many they are."""
    held, go = threading.Event(), threading.Event()
    kept: list[Any] = []
    # The ledger's mutex is held over a fork that is heard: `os.fork` waits for whoever holds it.
    spared = ledger_locks._mutex if fork is os.fork else None

    def hold() -> None:
        for lock in locks_of(*roots):
            if lock is not spared and lock.acquire(blocking=False):
                kept.append(lock)
        held.set()
        go.wait()
        for lock in kept:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert (spared is None) == (ledger_locks._mutex in kept)
        yield len(kept)
    finally:
        go.set()
        holder.join()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Client]:
    """A client that has been used, with all that has locks."""
    with Provider(process=True) as provider:
        settings = tables(
            provider.base_url,
            tmp_path,
            cache={"enabled": True},
            budgets=[{"name": "all", "window": "day", "limit": 100.0}],
        )
        with Client(settings) as client:
            ask(client, "before")
            client.submit(model="m", messages=[{"role": "user", "content": "before too"}]).result(20)
            client.ledger.flush()
            yield client


@FORKS
def test_a_fork_while_another_thread_holds_every_lock(busy: Client, fork: Callable[[], int]) -> None:
    copy = busy.with_options(budget=5.0)
    ask(copy, "before")

    def child() -> str | None:
        answer = ask(copy, "child")
        busy.on(lambda event: None)
        busy.submit(model="m", messages=[{"role": "user", "content": "pool"}]).result(10)
        busy.stats()
        busy.ledger.flush()
        busy.close()
        return answer.choices[0].message.content

    with every_lock_held(fork, busy, copy) as count:
        assert count > 8
        result = forked(child, fork)
    assert result() == "child"
    assert ask(busy, "parent").choices[0].message.content == "parent"


FIRST: dict[str, Callable[[Client], object]] = {
    "plan": lambda client: client.plan(model="m", messages=[{"role": "user", "content": "hello"}]),
    "submit": lambda client: client.submit(model="m", messages=[{"role": "user", "content": "hello"}]).result(
        9
    ),
    "stats": lambda client: client.stats(),
    "on": lambda client: client.on(print),
    "reload": lambda client: client.reload(client.config),
    "flush": lambda client: client.ledger.flush(),
    "totals": lambda client: client.ledger.totals(),
    "append": lambda client: client.ledger.append(client.ledger.entries(1)[0]),
    "health": lambda client: client.ledger.health,
    "close": lambda client: client.close(),
}


def test_whatever_a_child_that_nobody_heard_of_does_first(busy: Client) -> None:
    for first in FIRST.values():
        with every_lock_held(unheard_fork, busy):
            result = forked(lambda do=first: bool(do(busy)) or busy.ledger.health.ok, unheard_fork)  # type: ignore[misc]
        assert result()
    ask(busy, "parent")
    rows = busy.ledger.entries(None)
    assert len(rows) == len({row.id for row in rows}) == 4  # two before, one by a child's pool, one now


BELOW = """
import ctypes, json, os, signal, sys, threading
from fastroute import Attempt, Client
from fastroute.ledger import locks
client = Client(json.loads(sys.argv[1]))
client.ledger.append(Attempt("before", "call", 1e9, "p/m", "p", "m", cost_nano=1))
client.ledger.flush()
writer = client.ledger._writer
while writer._awake: pass  # now its thread waits for a word, and is not in Python
held, go = threading.Event(), threading.Event()
def hold():
    with locks._mutex, writer._starting, client._router.workers._lock, client._router.line._lock:
        held.set()
        go.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
# Not CDLL, which would let go of the interpreter: a thread that has it is not in the child.
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    signal.alarm(20)
    message = [{"role": "user", "content": "child"}]
    client.submit(model="m", messages=message).result(10)
    print(client.chat.completions.create(model="m", messages=message).choices[0].message.content, flush=True)
    client.close()
    os._exit(0)
go.set()
holder.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(len(client.ledger.entries(None)))
client.close()
"""


def test_a_fork_below_python_while_another_thread_holds_locks(tmp_path: Path) -> None:
    """With the system's own fork, and no other thread at work in Python: its own locks know no better."""
    with Provider(process=True) as provider:
        words = [sys.executable, "-c", BELOW, json.dumps(tables(provider.base_url, tmp_path))]
        run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert run.stdout == "child\n3\n", run.stderr


def test_a_ledger_closed_before_the_fork_takes_a_childs_entry(tmp_path: Path) -> None:
    def entry(name: str) -> Attempt:
        return Attempt(name, "call", 1e9, "p/m", "p", "m", cost_nano=1)

    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.append(entry("before"))

    with every_lock_held(unheard_fork, ledger):
        result = forked(lambda: ledger.append(entry("child")), unheard_fork)
    result()
    with Ledger(path) as ledger:
        assert sorted(row.id for row in ledger.entries()) == ["before", "child"]


def test_a_gateway_goes_on_in_a_child_that_nobody_heard_of(busy: Client) -> None:
    need("flask")
    from fastroute.gateway import create_app

    app = create_app(client=busy, allow_anonymous=True)

    def get(path: str) -> str:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1"}
        b"".join(app(environ, lambda status, headers: said.append(status)))
        return said[0]

    before = get("/metrics")
    with every_lock_held(unheard_fork, app):
        result = forked(lambda: [get("/metrics"), get("/health")], unheard_fork)
    assert result() == [before, "200 OK"]


# ---------------------------------------------------------------------------------------------- exact limits

HERD = """
import os, sys, threading
from fastroute import _core
path, moment, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
segment = _core.Segment.in_file(fd)
endpoint = _core.Endpoint(segment, "e", rpm=1, request_burst=1000, max_in_flight=4096, probes_to_close=1)
granted = []
barrier = threading.Barrier(65)
def body():
    barrier.wait()
    granted.append(sum(endpoint.admit(0, moment) >= 0 for _ in range(tries)))
threads = [threading.Thread(target=body) for _ in range(64)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.readline()
barrier.wait()
for thread in threads: thread.join()
print(sum(granted), flush=True)
sys.stdin.readline()
"""


def herd(path: Path, moment: int, tries: int) -> list[int]:
    """8 processes of 64 threads that have only the file in common; what each was granted."""
    run = [sys.executable, "-c", HERD, str(path), str(moment), str(tries)]
    processes = [
        subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(8)
    ]
    found = []
    for step in ("ready", "granted"):
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            found += [int(line)] if step == "granted" else []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    return found


def forked_herd(endpoint: _core.Endpoint, moment: int, tries: int) -> list[int]:
    """The same with processes that have a parent in common."""
    readable, writable = os.pipe()

    def child() -> int:
        os.close(writable)
        barrier = threading.Barrier(65)
        granted: list[int] = []

        def body() -> None:
            barrier.wait()
            granted.append(sum(endpoint.admit(0, moment) >= 0 for _ in range(tries)))

        threads = [threading.Thread(target=body) for _ in range(64)]
        for thread in threads:
            thread.start()
        os.read(readable, 1)  # ends when the parent closes its end
        barrier.wait()
        for thread in threads:
            thread.join()
        return sum(granted)

    children = [forked(child) for _ in range(8)]
    os.close(writable)
    found = [result() for result in children]
    os.close(readable)
    return found


@pytest.mark.parametrize("way", ["file", "fork"])
class TestExact:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "segment"
        with open(path, "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, _core.Segment.size(1024))
            self.segment = _core.Segment.in_file(file.fileno(), True)
        self.endpoint = _core.Endpoint(
            self.segment, "e", rpm=1, request_burst=1000, max_in_flight=4096, probes_to_close=1
        )
        return path

    def grants(self, way: str, path: Path, moment: int, tries: int) -> list[int]:
        return herd(path, moment, tries) if way == "file" else forked_herd(self.endpoint, moment, tries)

    def test_a_limit_of_1000_grants_1000(self, way: str, path: Path) -> None:
        now = _core.clock() + 3600 * SECOND
        assert sum(self.grants(way, path, now, 4)) == 1000
        assert self.endpoint.available_requests(now) == 0
        self.segment.reap()
        assert self.endpoint.in_flight == 0

    def test_at_the_instant_of_the_probe_one_gets_it(self, way: str, path: Path) -> None:
        now = _core.clock() + 3600 * SECOND
        for _ in range(5):
            self.endpoint.finish(self.endpoint.admit(0, now), _core.FAILURE, 0.0, 0, now)
        now += self.endpoint.reopens_in(now)
        assert sorted(self.grants(way, path, now, 1)) == [0] * 7 + [1]
        # Its owner has ended without a word, so after reaping the next one probes.
        self.segment.reap()
        assert [self.endpoint.admit(0, now) >= 0 for _ in range(2)] == [True, False]


# --------------------------------------------------------------------------------------------- looking after


class TestTending:
    def test_whoever_lives_looks_every_half_second_and_only_one_of_them(self) -> None:
        segment = _core.Segment(256)
        endpoint = _core.Endpoint(segment, "e", max_in_flight=4)
        now = _core.clock()
        assert segment.tend(now) == 0

        def die() -> None:
            endpoint.admit(0, now)
            os.kill(os.getpid(), signal.SIGKILL)

        half = SECOND // 2
        for turn in (1, 2):
            pid = os.fork()
            if pid == 0:
                die()
            os.waitpid(pid, 0)
            assert segment.tend(now + turn * half - 1) == 0
            assert endpoint.in_flight == 1
            assert forked(lambda at=turn: segment.tend(now + at * half))() == 1  # type: ignore[misc]
            assert endpoint.in_flight == 0
            assert segment.tend(now + turn * half) == 0

    def test_workers_recycled_for_ever_leave_no_slots_behind(self) -> None:
        segment = _core.Segment(64)
        segment.slot()
        most = 0
        for number in range(60):
            assert forked(segment.slot)() > 0
            most = max(most, segment.workers_known)
            segment.tend(_core.clock() + number * SECOND // 2)
        assert most < 10

    def test_the_entry_of_a_call_does_it(self, tmp_path: Path) -> None:
        with Provider(process=True) as provider:
            settings = tables(provider.base_url, tmp_path, provider={"max_in_flight": 2})
            with Client(settings) as client:
                core = client._router.snapshot.state.endpoints[0].core
                pid = os.fork()
                if pid == 0:
                    core.admit(0)
                    os.kill(os.getpid(), signal.SIGKILL)
                os.waitpid(pid, 0)
                assert core.in_flight == 1
                ask(client)
                assert core.in_flight == 0


# ---------------------------------------------------------------------------------------------- other starts


def served(settings: dict[str, Any], text: str) -> str | None:
    with Client(settings) as client:
        return ask(client, text).choices[0].message.content


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_makes_a_client_of_the_configuration(method: Any, tmp_path: Path) -> None:
    with Provider(process=True) as provider:
        state = {"state": str(tmp_path / "state")}
        settings = tables(
            provider.base_url,
            tmp_path,
            fastroute=state,
            provider={"rpm": 1, "burst": 3},
            policy={"queue_timeout": 0.01},
        )
        with multiprocessing.get_context(method).Pool(1 if method == "spawn" else 2) as pool:
            assert pool.starmap(served, [(settings, "one"), (settings, "two")]) == ["one", "two"]
        assert served(settings, "three") == "three"
        with pytest.raises(fastroute.RateLimitError):
            served(settings, "four")


def test_a_client_is_not_pickled(tmp_path: Path) -> None:
    with Client(tables("http://127.0.0.1:1/v1", tmp_path)) as client:
        for value in (client, client.with_options(timeout=1), client.chat.completions):
            with pytest.raises(TypeError, match="pickle its config"):
                pickle.dumps(value)
        assert pickle.loads(pickle.dumps(client.config)) == client.config


def test_seeds_differ_after_a_fork(tmp_path: Path) -> None:
    """Even where the program seeded its own generator: retries of forked workers must not come in step."""
    random.seed(1)
    with Client(tables("http://127.0.0.1:1/v1", tmp_path)) as client:
        dispatcher = client._router.snapshot.dispatcher
        children = [forked(lambda: client._router.snapshot.dispatcher._random.random()) for _ in range(3)]
        assert len({dispatcher._random.random(), *(child() for child in children)}) == 4


# ------------------------------------------------------------------------------------- what doors begin with


def kind_of(client: Client) -> str:
    state = client.stats()["state"]
    if state["path"] is not None:
        os.unlink(state["path"])
    return str(state["kind"])


@pytest.mark.parametrize(
    ("said", "kind"), [({}, "machine"), ({"state": "memory"}, "memory")], ids=["unsaid", "said"]
)
def test_what_servers_load_anew_in_each_worker_counts_with_the_others(
    said: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    flask = need("flask")
    need("werkzeug")
    from fastroute.gateway import create_app
    from fastroute.integrations.flask import EXTENSION, FastRoute

    config = tables("http://127.0.0.1:9/v1", tmp_path, fastroute=said)
    with Client(config, default_state="machine") as client:
        assert kind_of(client) == kind
    with Client(config) as client:
        assert kind_of(client) == "memory"
    gateway = create_app(config, allow_anonymous=True)
    assert kind_of(gateway.client) == kind
    gateway.close()
    for testing, expected in ((False, kind), (True, "memory")):
        app = flask.Flask("app")
        app.config.update(FASTROUTE_CONFIG=config, TESTING=testing)
        FastRoute(app)
        made = app.extensions[EXTENSION]
        assert kind_of(made) == expected
        made.close()
