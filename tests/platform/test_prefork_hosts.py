"""Plain clients under real servers and job queues, none of which says where it counts: one limit for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from apache import PYTHON, apache, needed
from needs import need
from ports import free_port
from redis_server import RedisServer

from fastroute.testing import Provider

LIMIT, CALLS = 10, 24
ROOT = str(Path(__file__).parents[2])

# What each process of a host loads for itself, as programs do that know nothing of other processes.
PLAIN = """
import os
import fastroute

client = fastroute.Client()

def ask(text):
    try:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(text)}])
        return True
    except fastroute.RateLimitError:
        return False
    finally:
        with open(os.environ["STATES"], "a") as file:
            state = client.stats()["state"]
            print(state["kind"], state["path"], file=file)
"""
WEB = """
import plain

def application(environ, start):
    start("200 OK" if plain.ask(environ["QUERY_STRING"]) else "429 Too Many Requests", [])
    return [b""]
"""
CELERY = """
import os
from celery import Celery

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])

@app.task
def ask(text):
    import plain  # in the worker's child, after the fork
    return plain.ask(text)
"""
POOL = """
import multiprocessing, sys

def ask(text):
    import plain  # in the child
    return plain.ask(text)

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        print(sum(pool.map(ask, range(int(sys.argv[2])), chunksize=1)))
"""
MAIN = """
import multiprocessing, sys
from plain import ask  # again in each child, before it knows that it is one

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        print(sum(pool.map(ask, range(int(sys.argv[2])), chunksize=1)))
"""
PROGRAMS = {"plain": PLAIN, "web": WEB, "tasks": CELERY, "pool": POOL, "main": MAIN}


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider with a limit, and the programs in the working directory; their states are removed again."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTROUTE_CONFIG", str(tmp_path / "fastroute.toml"))
    monkeypatch.setenv("STATES", str(tmp_path / "states"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), ROOT)))
    with Provider() as found:
        (tmp_path / "fastroute.toml").write_text(
            f'[fastroute]\nledger = "ledger.db"\n'
            f'[providers.p]\nbase_url = "{found.base_url}"\nmodels = ["m"]\nrpm = 1\nburst = {LIMIT}\n'
            "[cache]\nenabled = false\n[policy]\nqueue_timeout = 0\n"
        )
        try:
            yield found
        finally:
            for path in states(tmp_path):
                for left in (path, f"{path}.lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(left)


def states(folder: Path) -> set[str]:
    """The machine's states that were used; every process must have used one."""
    lines = (folder / "states").read_text().splitlines()
    found = {tuple(line.split()) for line in lines}
    assert {kind for kind, _ in found} == {"machine"}
    return {path for _, path in found}


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    """A server or worker and its children, which are killed with the block."""
    with open("log", "wb") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def one_limit(provider: Provider, folder: Path) -> bool:
    return len(provider.requests) == LIMIT and len(states(folder)) == 1


def one_limit_of(address: str) -> bool:
    """Whether a server at the address lets as many calls through as the limit."""

    def get(number: int) -> int:
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/?{number}", timeout=30) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                return error.code
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):  # else it does not listen yet
                    raise

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, range(CALLS)))
    return (answers.count(200), answers.count(429)) == (LIMIT, CALLS - LIMIT)


@pytest.mark.parametrize("server", ["gunicorn", "uwsgi"])
def test_workers_of_a_server(server: str, provider: Provider, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    need("gunicorn")
    words = {
        "gunicorn": f"-m gunicorn -w 4 -b {address} --no-control-socket web:application",
        "uwsgi": f"--http-socket {address} --master --lazy-apps -p 4 --enable-threads --need-app "
        "--die-on-term --wsgi-file web.py",
    }[server].split()
    if server == "uwsgi":
        words = ["-c", "import sys, os; os.execv(sys.argv[1], sys.argv[1:])", need("uwsgi"), *words]
    with running(*words):
        assert one_limit_of(address)
    assert one_limit(provider, tmp_path)


def test_processes_of_mod_wsgi(provider: Provider, tmp_path: Path) -> None:
    needed()
    daemon = (
        f"WSGIDaemonProcess web processes=4 threads=2 {PYTHON}:{tmp_path}\n"
        "WSGIProcessGroup web\nWSGIApplicationGroup %{GLOBAL}\n"
        f"WSGIScriptAlias / {tmp_path}/web.py\n"
    )
    with apache(tmp_path, dict(os.environ), daemon) as port:
        assert one_limit_of(f"127.0.0.1:{port}")
    assert one_limit(provider, tmp_path)


@pytest.mark.parametrize(("program", "method"), [("pool", "fork"), ("pool", "forkserver"), ("main", "spawn")])
def test_children_of_multiprocessing(program: str, method: str, provider: Provider, tmp_path: Path) -> None:
    assert int(run(f"{program}.py", method, str(CALLS))) == LIMIT
    assert one_limit(provider, tmp_path)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    need("redis")
    server = RedisServer()
    monkeypatch.setenv("BROKER", f"redis+socket://{server.socket}")
    yield server
    server.close()


def test_children_of_a_celery_worker(provider: Provider, tmp_path: Path, broker: RedisServer) -> None:
    need("celery")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    with running("-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "3", *quiet):
        code = (
            "import tasks\n"
            f"found = [tasks.ask.delay(number) for number in range({CALLS})]\n"
            "print(sum(one.get(timeout=80) for one in found))\n"
        )
        assert int(run("-c", code)) == LIMIT
    assert one_limit(provider, tmp_path)


def test_jobs_of_an_rq_worker(provider: Provider, tmp_path: Path, broker: RedisServer) -> None:
    """Each job runs in a child of its own, which loads the program anew."""
    need("rq")
    import redis
    from rq import Queue

    jobs = LIMIT + 3
    with redis.Redis(unix_socket_path=broker.socket) as connection:
        queue = Queue(connection=connection)
        asked = [queue.enqueue("plain.ask", number) for number in range(jobs)]
        worker = "import sys, fastroute.client; from rq.cli import main; sys.argv[0] = 'rq'; main()"
        run("-c", worker, "worker", "--burst", "--url", f"unix://{broker.socket}")
        answers = [job.return_value() for job in asked]
    assert (answers.count(True), answers.count(False)) == (LIMIT, jobs - LIMIT)
    assert one_limit(provider, tmp_path)


# ----------------------------------------------------------------------------------------- what is said of it

SAID = """
import json, logging, multiprocessing, sys
import fastroute
from fastroute.state import segment_file

def said(case):
    folder, settings = case
    segment_file.MEMORY_FOLDER = folder
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.levelname, record.getMessage()))
    logging.getLogger("fastroute").addHandler(handler)
    logging.getLogger("fastroute").setLevel(logging.INFO)
    states = []
    for _ in range(2):
        with fastroute.Client(settings) as client:
            states.append(client.stats()["state"])
    return states, [line for line in lines if line[1].startswith("state: ")]

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(said, json.loads(sys.argv[1]), chunksize=1)))
"""
ALONE = ("the whole of every limit", "multiprocessing", "set [fastroute] state")
CASES: list[tuple[bool, dict[str, Any], dict[str, Any], str, tuple[str, ...]]] = [
    # whether there is shared memory; [fastroute]; [providers.p]; the level of the one line, and words in it
    (True, {}, {}, "INFO", ("multiprocessing runs several processes", "set [fastroute] state")),
    (True, {"state": "memory"}, {}, "", ()),
    (False, {}, {"rpm": 5}, "WARNING", ALONE),
    (False, {}, {"max_in_flight": 5}, "WARNING", ALONE),
    (False, {}, {}, "", ()),
    (False, {"state": "memory"}, {"rpm": 5}, "", ()),
]


def test_it_is_said_once(tmp_path: Path) -> None:
    for usable, folder in ((True, "usable"), (False, "unusable")):
        (tmp_path / folder).mkdir()
        if not usable:
            (tmp_path / folder / f"fastroute-{os.geteuid()}").write_text("not a folder")
    address = {"base_url": "http://127.0.0.1:1/v1", "models": ["m"]}
    given = [
        (
            str(tmp_path / ("usable" if usable else "unusable")),
            {"fastroute": {"ledger": "", **settings}, "providers": {"p": {**address, **limits}}},
        )
        for usable, settings, limits, _, _ in CASES
    ]
    (tmp_path / "said.py").write_text(SAID)
    found = json.loads(run(str(tmp_path / "said.py"), json.dumps(given)))
    for (states, lines), (usable, settings, limits, level, words) in zip(found, CASES, strict=True):
        case = (usable, settings, limits)
        assert [each for each, _ in lines] == ([level] if level else []), case
        assert all(word in lines[0][1] for word in words), case
        machine = not settings
        assert [state["path"] is not None for state in states] == [usable and machine] * 2, case
        assert [state["reason"] is not None for state in states] == [machine and not usable] * 2, case
