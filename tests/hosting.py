"""The hosts of docs/hosting.md: runs fastroute under each and prints the page's table.

    python tests/hosting.py                 # all, in a few minutes
    python tests/hosting.py gunicorn uWSGI  # those with one of the words in their name
    python tests/hosting.py --write         # all, and writes the table into the page

Each host serves or works off 20 calls against a limit of 12, in as many processes as it is given: exactly 12
must be answered, each with its own answer, and the ledger must have 12 entries once the host has ended. Hosts
that are reloaded or upgraded are so under load: no call may be lost, and each must be in the ledger.

It needs Linux, root, `pip install '.[hosts]'`, and the Debian packages that CONTRIBUTING lists and
libapache2-mod-passenger. A host that is not installed is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache import MODULES, PYTHON, apache
from redis_server import RedisServer
from served_app import GUNICORN, UWSGI, Server, configure, get, serving

from fastroute.ledger import Ledger
from fastroute.testing import Provider

PAGE = Path(__file__).parent.parent / "docs" / "hosting.md"
BURST, CALLS = 12, 20
LIMIT = f"rpm = 1\nburst = {BURST}"
PATIENCE = 60.0

Get = Callable[[str], tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Host:
    """One line of the page: a host, the setting it needs, and what shows that it works."""

    name: str
    setting: str
    run: Callable[[Path], str]
    package: str = ""
    """The distribution or Debian package whose version the table shows."""
    quick: bool = False
    """Whether it is also run by the tests."""


# -------------------------------------------------------------------------------------- what must hold


def limited(answers: list[tuple[int, dict[str, Any]]], provider: Provider) -> int:
    """Checks that the limit was kept over all answers; how many processes gave them."""
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200] * BURST + [429] * (CALLS - BURST), statuses
    for number, (status, body) in enumerate(answers):
        assert status == 429 or body["text"] == f"call-{number}", body
    assert len(provider.requests) == BURST
    return len({body["pid"] for _, body in answers})


def recorded(folder: Path, least: int, most: int | None = None) -> None:
    """Checks how many entries the ledger has, with those in the journals of killed processes."""
    with Ledger(folder / "ledger.db") as ledger:
        attempts = ledger.totals().attempts
    assert least <= attempts <= (least if most is None else most), f"{attempts} entries, not {least}"


def exact(processes: int) -> str:
    return f"limit exact over {processes} process{'es' if processes > 1 else ''}"


# ---------------------------------------------------------------------------------------- HTTP servers


def server(words: list[str], least: int = 1, paths: tuple[str, ...] = ("/",)) -> Callable[[Path], str]:
    """A server that is given its socket (see `served_app.Server`)."""

    def run(folder: Path) -> str:
        with serving(folder, words, "", LIMIT) as (served, provider):
            if least > 1:
                served.until_two_answer()
            answers = many(lambda text: served.get(text, paths[len(text) % len(paths)]))
            processes = limited(answers, provider)
        recorded(folder, BURST)
        return exact(processes)

    return run


def script(code: str) -> list[str]:
    """A server that is a few lines of Python, and ends in order by SIGTERM."""
    orderly = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    return ["-W", "ignore", "-c", orderly + code]


def changed_under_load(words: list[str], change: Callable[[Server, Path], None]) -> Callable[[Path], str]:
    """A server that is told to replace its workers while eight threads call it."""

    def run(folder: Path) -> str:
        with serving(folder, words, "", "rpm = 6000000\nburst = 100000", latency=0.02) as (served, _):
            served.until_two_answer()
            old = {body["pid"] for _, body in served.many(24) if body}
            answers: list[tuple[int, dict[str, Any]]] = []
            over = threading.Event()

            def load() -> None:
                while not over.is_set():
                    answers.append(served.get("call"))

            threads = [threading.Thread(target=load) for _ in range(8)]
            for thread in threads:
                thread.start()
            try:
                change(served, folder)
                until(lambda: len(answers) > 40 and not old & {body.get("pid") for _, body in answers[-40:]})
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            lost = [status for status, _ in answers if status != 200]
            assert not lost, f"{len(lost)} of {len(answers)} calls lost: {lost[:10]}"
            assert served.get("stats")[1]["in_flight"] == 0
        recorded(folder, len(answers) + 24)
        return "no call lost"

    return run


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def told(number: signal.Signals) -> Callable[[Server, Path], None]:
    """Tells the server's first process."""
    return lambda served, _: served.process.send_signal(number)


def upgraded(served: Server, folder: Path) -> None:
    """gunicorn's upgrade: a second master beside the first, which is ended once the new workers serve."""
    served.process.send_signal(signal.SIGUSR2)
    until(lambda: (folder / "pid.2").exists() and (folder / "pid.2").read_text() != "")
    new = int((folder / "pid.2").read_text())
    until(lambda: _parent(served.get("stats")[1].get("pid", 0)) == new)
    served.process.terminate()  # it waits for its workers, and they for their calls
    served.process.wait(20)
    served.process = _Adopted(new)  # type: ignore[assignment]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class _Adopted:
    """A process that is no child of this one, with the methods that `Server.stop` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> None:
        until(lambda: not Path(f"/proc/{self.pid}").exists() or _is_zombie(self.pid))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def frozen(folder: Path) -> str:
    """A worker is stopped, and the other one serves alone; both are stopped in the middle of a call."""
    words = [*GUNICORN, "-w", "2", "--threads", "4", "--timeout", "600"]
    with serving(folder, words, "", "max_in_flight = 2") as (served, provider):
        served.until_two_answer()
        workers = {body["pid"] for _, body in served.many(40) if body}
        victim, other = workers
        os.kill(victim, signal.SIGSTOP)
        answered: list[int] = []

        def eight_answered() -> bool:
            # A connection that the stopped worker has accepted already gets no answer.
            status, body = get(served.port, "alone", timeout=1)
            answered.extend([body["pid"]] * (status == 200))
            return len(answered) >= 8

        until(eight_answered)
        assert set(answered) == {other}
        os.kill(victim, signal.SIGCONT)
        until(lambda: served.get("thawed")[1].get("pid") == victim)

        results: list[tuple[int, dict[str, Any]]] = []
        provider.pause()
        before = len(provider.requests)
        caller = threading.Thread(target=lambda: results.append(served.get("frozen")))
        caller.start()
        until(lambda: len(provider.requests) > before)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        provider.resume()
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        caller.join()
        assert [(status, body["text"]) for status, body in results] == [(200, "frozen")]
        until(lambda: served.get("stats")[1]["in_flight"] == 0)
    return "the others continue, and so does it"


# -------------------------------------------------------------------------------------- Apache and nginx


def mod_wsgi(configuration: str, *paths: str) -> Callable[[Path], str]:
    """Scripts under Apache, called in turns at these paths or virtual hosts."""

    def run(folder: Path) -> str:
        with Provider() as provider:
            environ = configure(folder, provider, "", LIMIT)
            with apache(folder, environ, configuration.replace("FOLDER", str(folder))) as port:
                ways = paths or ("/",)
                until(lambda: all(get(port, "stats", path)[0] == 200 for path in ways))
                seen: set[int] = set()
                until(lambda: seen.update(_pids(port, ways[0])) or len(seen) > 1)
                answers = many(lambda text: get(port, text, ways[len(text) % len(ways)]))
            remove_state(*(body["state"]["path"] for _, body in answers if body))
            processes = limited(answers, provider)
            log = (folder / "apache.log").read_text()
            assert "UserWarning" not in log, log
        recorded(folder, BURST)
        return exact(processes)

    return run


def _pids(port: int, path: str) -> set[int]:
    """Of the processes that answer eight calls at once."""
    with ThreadPoolExecutor(8) as pool:
        return {body["pid"] for _, body in pool.map(lambda _: get(port, "stats", path), range(8)) if body}


def remove_state(*paths: str | None) -> None:
    """Removes what a host has left for the next start of its program."""
    for path in {path for path in paths if path is not None}:
        for name in (path, f"{path}.lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def many(ask: Get) -> list[tuple[int, dict[str, Any]]]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, (f"call-{number}" for number in range(CALLS))))


HOME, PATH = re.findall(r"=(\S+)", PYTHON)
DAEMON = f"""
WSGIDaemonProcess apps processes=2 threads=4 {PYTHON}
WSGIProcessGroup apps
"""
GLOBAL = "WSGIApplicationGroup %{GLOBAL}\n"
EMBEDDED = f"WSGIPythonHome {HOME}\nWSGIPythonPath {PATH}\nStartServers 2\n"
PASSENGER = f"""
LoadModule env_module {MODULES}/mod_env.so
LoadModule passenger_module {MODULES}/mod_passenger.so
PassengerRoot /usr/lib/ruby/vendor_ruby/phusion_passenger/locations.ini
PassengerInstanceRegistryDir FOLDER
PassengerUserSwitching off
PassengerDisableSecurityUpdateCheck on
PassengerMinInstances 2
PassengerMaxPoolSize 2
PassengerPython {sys.executable}
PassengerAppType wsgi
PassengerStartupFile app.py
PassengerAppRoot FOLDER
PassengerLogFile FOLDER/passenger.log
DocumentRoot FOLDER
PassengerEnabled on
"""


def graceful(folder: Path) -> str:
    """Apache's graceful restart under load."""
    with Provider(latency=0.02) as provider:
        environ = configure(folder, provider, "", "rpm = 6000000\nburst = 100000")
        text = DAEMON + GLOBAL + f"WSGIScriptAlias / {folder}/app.py\n"
        with apache(folder, environ, text) as port:
            until(lambda: get(port, "stats")[0] == 200)
            old = {get(port, "stats")[1]["pid"] for _ in range(12)}
            answers: list[tuple[int, dict[str, Any]]] = []
            over = threading.Event()

            def load() -> None:
                while not over.is_set():
                    answers.append(get(port, "call"))

            threads = [threading.Thread(target=load) for _ in range(8)]
            for thread in threads:
                thread.start()
            try:
                os.kill(int((folder / "apache.pid").read_text()), signal.SIGUSR1)
                until(lambda: len(answers) > 40 and not old & {body.get("pid") for _, body in answers[-40:]})
            finally:
                over.set()
                for thread in threads:
                    thread.join()
    remove_state(*(body["state"]["path"] for _, body in answers if body))
    answered = sum(status == 200 for status, _ in answers)
    recorded(folder, answered, len(answers))
    # Apache itself drops some that wait for a daemon which ends.
    assert answered > 0.8 * len(answers)
    return "each answered call is in the ledger"


def behind_nginx(folder: Path) -> str:
    sys.path.insert(0, str(Path(__file__).parent / "gateway"))
    from reverse_proxy import in_front_of

    with serving(folder, [*GUNICORN, "-w", "2", "--threads", "4"], "", LIMIT) as (served, provider):
        served.until_two_answer()
        with in_front_of(f"127.0.0.1:{served.port}", folder / "nginx") as address:
            port = int(address.rpartition(":")[2])
            processes = limited(many(lambda text: get(port, text)), provider)
    recorded(folder, BURST)
    return exact(processes)


# ---------------------------------------------------------------------------------------- task queues

ASK = """
import json, os, threading
import fastroute
client, once = None, threading.Lock()
def ask(text):
    global client
    with once:
        if client is None:  # in the process that works, not in the one that loads this
            client = fastroute.Client(os.environ["CONFIGURATION"])
    try:
        messages = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model="m", messages=messages).text
    except fastroute.RateLimitError:
        answer = None
    line = json.dumps([os.getpid(), text, answer, client.stats()["state"]["path"]]) + "\\n"
    number = os.open(os.environ["RESULTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(number, line.encode())
    os.close(number)
TEXTS = [f"call-{number}" for number in range(20)]
"""
ALL = "if __name__ == '__main__':\n    "


def tasks(
    code: str,
    enqueue: str = "",
    *workers: str,
    redis: bool = False,
    prefix: str = "",
    environ: dict[str, str] | None = None,
    wrapped: tuple[str, ...] = (),
    state: str = "",
) -> Callable[[Path], str]:
    """Work in processes of a queue or pool.

    Args:
        code: the module ``work``, which begins with `ASK`.
        enqueue: what puts the work into the queue.
        workers: commands of the workers, which run until all work is done. Without any, ``code`` runs itself.
        redis: whether a Redis is needed; its address is in the environment.
        prefix: what comes before `ASK`, such as patches.
        environ: variables beside; an empty one is removed.
        wrapped: the command that runs Python.
        state: the name of a state file in the folder. Default: the state is left to the host.
    """

    def run(folder: Path) -> str:
        with contextlib.ExitStack() as stack:
            provider = stack.enter_context(Provider())
            variables = configure(folder, provider, str(folder / state) if state else "", LIMIT)
            variables["RESULTS"] = str(folder / "results")
            for name, value in (environ or {}).items():
                if value:
                    variables[name] = value
                else:
                    variables.pop(name, None)
            if redis:
                broker = RedisServer()
                stack.callback(broker.close)
                variables["BROKER"] = broker.socket
            (folder / "work.py").write_text(prefix + ASK + code)
            os.chmod(folder, 0o777)
            log = stack.enter_context(open(folder / "log", "wb"))
            if not workers:
                words = [*(wrapped or (sys.executable,)), "work.py"]
                subprocess.run(
                    words, cwd=folder, env=variables, stdout=log, stderr=log, check=True, timeout=PATIENCE
                )
            else:
                here = os.path.dirname(sys.executable)
                for words in workers:
                    program, *rest = words.replace("BROKER", variables.get("BROKER", "")).split()
                    command = [sys.executable, program if program == "-m" else f"{here}/{program}", *rest]
                    process = subprocess.Popen(
                        command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
                    )
                    stack.callback(_end, process)
                words = [sys.executable, "-c", enqueue]
                subprocess.run(
                    words, cwd=folder, env=variables, stdout=log, stderr=log, check=True, timeout=PATIENCE
                )
                until(lambda: (folder / "results").exists() and len(_results(folder)) >= CALLS)
            served = len(provider.requests)
        results = _results(folder)
        remove_state(*(path for _, _, _, path in results))
        assert sorted(text for _, text, _, _ in results) == sorted(
            f"call-{number}" for number in range(CALLS)
        )
        answered = [(text, answer) for _, text, answer, _ in results if answer is not None]
        assert len(answered) == BURST == served, f"{len(answered)} answered"
        assert all(text == answer for text, answer in answered)
        recorded(folder, BURST)
        return exact(len({pid for pid, _, _, _ in results}))

    return run


def _results(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "results").read_text().splitlines()]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


CELERY = """
from celery import Celery
app = Celery("work", broker="redis+socket://" + os.environ["BROKER"])
task = app.task(ask, name="ask")
"""
EACH_DELAYED = "import work\nfor text in work.TEXTS: work.task.delay(text)"
RQ = "import redis, rq\nqueue = rq.Queue(connection=redis.Redis(unix_socket_path=os.environ['BROKER']))\n"
DRAMATIQ = """
import dramatiq, redis
from dramatiq.brokers.redis import RedisBroker
dramatiq.set_broker(RedisBroker(client=redis.Redis(unix_socket_path=os.environ["BROKER"])))
task = dramatiq.actor(ask)
"""
HUEY = """
from huey import SqliteHuey
huey = SqliteHuey(filename=os.path.join(os.path.dirname(os.environ["RESULTS"]), "huey.db"))
task = huey.task()(ask)
"""
SCHEDULER = """
    import threading
    from apscheduler.events import EVENT_JOB_EXECUTED
    from apscheduler.executors.pool import {kind}
    from apscheduler.schedulers.background import BackgroundScheduler
    from work import ask, TEXTS
    scheduler = BackgroundScheduler(executors={{"default": {kind}(4)}})
    done = threading.Semaphore(0)
    scheduler.add_listener(lambda _: done.release(), EVENT_JOB_EXECUTED)
    scheduler.start()
    for text in TEXTS:
        scheduler.add_job(ask, args=[text], misfire_grace_time=None)
    for _ in TEXTS:
        assert done.acquire(timeout=30)
    scheduler.shutdown()
"""
WORKERS = """
    import concurrent.futures, multiprocessing
    from work import ask, TEXTS
    {pool}
"""
POOL = "with multiprocessing.get_context('{}').Pool(3) as pool: pool.map(ask, TEXTS, 1)"
EXECUTOR = "with concurrent.futures.{} as pool: list(pool.map(ask, TEXTS))"
IN_A_ROW = ALL + "for text in TEXTS: ask(text)\n"
# It hands on a socket of its own, but none that it was given; started by `-m` it would find its own `app`.
UPGRADABLE = [
    os.path.join(os.path.dirname(sys.executable), "gunicorn"),
    *("-b", "127.0.0.1:PORT", "-w", "2", "--threads", "4", "--pid", "pid", "app:application"),
]
# The page's own box: no root's rights, but those to read what the tests have, which may lie anywhere.
NOBODY = (
    *("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)
# multiprocessing has its semaphores in /dev/shm too.
APART = (
    ALL
    + """import subprocess, sys
    code = "import work, sys\\nfor text in work.TEXTS[int(sys.argv[1])::3]: work.ask(text)"
    parts = [subprocess.Popen([sys.executable, "-c", code, str(place)]) for place in range(3)]
    sys.exit(max(part.wait() for part in parts))
"""
)
NO_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh")


def in_box(folder: Path) -> str:
    """As a user without a name and a home: nothing is left behind but the configured files."""
    before = set(os.listdir(folder))
    shown = tasks(IN_A_ROW, environ={"HOME": "", "XDG_STATE_HOME": ""}, wrapped=(*NOBODY, sys.executable))(
        folder
    )
    left = set(os.listdir(folder)) - before
    known = {"app.py", "work.py", "results", "log", "fastroute.toml", "__pycache__"}
    assert {name for name in left - known if not name.startswith(("ledger.db", "state"))} == set(), left
    return shown


# ------------------------------------------------------------------------------------------- the table

HOSTS = [
    Host(
        "Apache, mod_wsgi, daemon mode",
        "`WSGIApplicationGroup %{GLOBAL}`",
        mod_wsgi(DAEMON + GLOBAL + "WSGIScriptAlias / FOLDER/app.py\n"),
        "libapache2-mod-wsgi-py3",
    ),
    Host(
        "Apache, mod_wsgi, two applications in one daemon",
        "`WSGIApplicationGroup %{GLOBAL}`",
        mod_wsgi(
            DAEMON + GLOBAL + "WSGIScriptAlias /a FOLDER/app.py\nWSGIScriptAlias /b FOLDER/app.py\n",
            "/a",
            "/b",
        ),
        "libapache2-mod-wsgi-py3",
    ),
    Host(
        "Apache, mod_wsgi, embedded mode",
        "`WSGIApplicationGroup %{GLOBAL}`",
        mod_wsgi(EMBEDDED + GLOBAL + "WSGIScriptAlias / FOLDER/app.py\n"),
        "libapache2-mod-wsgi-py3",
    ),
    Host("Apache, graceful restart under load", "`WSGIApplicationGroup %{GLOBAL}`", graceful, "apache2"),
    Host("Apache, Passenger", "none", mod_wsgi(PASSENGER), "libapache2-mod-passenger"),
    Host("nginx before gunicorn", "none", behind_nginx, "nginx"),
    Host(
        "uWSGI, preloaded",
        "`--enable-threads`",
        server([*UWSGI, "--processes", "3"], 2),
        "pyuwsgi",
    ),
    Host(
        "uWSGI, lazy, threads",
        "`--enable-threads`",
        server([*UWSGI, "--processes", "2", "--threads", "3", "--lazy-apps"], least=2),
        "pyuwsgi",
    ),
    Host(
        "uWSGI, two mounts",
        "`--enable-threads`, `--single-interpreter`",
        server(
            [
                *UWSGI[: UWSGI.index("--wsgi-file")],
                *("--mount", "/=app.py", "--mount", "/b=app.py", "--single-interpreter", "--processes", "2"),
            ],
            paths=("/", "/b"),
        ),
        "pyuwsgi",
    ),
    Host(
        "uWSGI, chain reload under load",
        "`--enable-threads`, `--lazy-apps`",
        changed_under_load(
            [
                *UWSGI,
                *("--processes", "2", "--threads", "4", "--lazy-apps"),
                *("--touch-chain-reload", "app.py"),
            ],
            lambda _, folder: (folder / "app.py").touch(),
        ),
        "pyuwsgi",
    ),
    Host("gunicorn, sync", "`--timeout 630`", server([*GUNICORN, "-w", "3"], least=2), "gunicorn"),
    Host(
        "gunicorn, threads",
        "none",
        server([*GUNICORN, "-w", "2", "--threads", "4"], least=2),
        "gunicorn",
    ),
    Host(
        "gunicorn, gevent",
        "none",
        server([*GUNICORN, "-w", "2", "-k", "gevent"], least=2),
        "gevent",
    ),
    Host("gunicorn, preloaded", "none", server([*GUNICORN, "-w", "3", "--preload"], 2), "gunicorn"),
    Host(
        "gunicorn, reload by SIGHUP under load",
        "none",
        changed_under_load([*GUNICORN, "-w", "2", "--threads", "4"], told(signal.SIGHUP)),
        "gunicorn",
    ),
    Host(
        "gunicorn, upgrade by SIGUSR2 under load",
        "none",
        changed_under_load(UPGRADABLE, upgraded),
        "gunicorn",
    ),
    Host("a worker that is frozen and thawed (SIGSTOP)", "none", frozen, "gunicorn"),
    Host(
        "waitress",
        "none",
        server(
            script(
                "import socket, waitress\nfrom app import application\n"
                "waitress.serve(application, sockets=[socket.socket(fileno=FD)], threads=8)"
            ),
        ),
        "waitress",
        quick=True,
    ),
    Host(
        "cheroot",
        "none",
        server(
            [
                "-c",  # SIGTERM kills it, because its own end waits for its threads for seconds
                "import os\nfrom cheroot import wsgi\nfrom app import application\n"
                "os.dup2(FD, 3); os.environ['LISTEN_PID'] = str(os.getpid())\n"
                "wsgi.Server(('127.0.0.1', 0), application).start()",
            ],
        ),
        "cheroot",
        quick=True,
    ),
    Host(
        "Werkzeug (`flask run`)",
        "none",
        server(
            script(
                "from werkzeug.serving import make_server\nfrom app import application\n"
                "make_server('127.0.0.1', 0, application, threaded=True, fd=FD).serve_forever()"
            ),
        ),
        "werkzeug",
    ),
    Host(
        "gevent.pywsgi",
        "patches first",
        server(
            [
                "-c",
                "from gevent import monkey; monkey.patch_all()\nimport socket\n"
                "from gevent.pywsgi import WSGIServer\n"
                "from app import application\nlistener = socket.socket(fileno=FD)\n"
                "WSGIServer(listener, application).serve_forever()",
            ],
        ),
        "gevent",
    ),
    Host(
        "eventlet.wsgi",
        "patches first",
        server(
            [
                *("-W", "ignore", "-c"),
                "import eventlet; eventlet.monkey_patch()\nimport socket\nimport eventlet.wsgi\n"
                "from app import application\neventlet.wsgi.server(socket.socket(fileno=FD), application)",
            ],
        ),
        "eventlet",
    ),
    Host(
        "Celery, prefork",
        "none",
        tasks(CELERY, EACH_DELAYED, "celery -A work worker -c 3", redis=True),
        "celery",
    ),
    Host(
        "Celery, threads",
        "none",
        tasks(CELERY, EACH_DELAYED, "celery -A work worker -P threads -c 3", redis=True),
        "celery",
    ),
    Host(
        "Celery, gevent",
        "none",
        tasks(CELERY, EACH_DELAYED, "celery -A work worker -P gevent -c 8", redis=True),
        "celery",
    ),
    Host(
        "RQ (forks for each job)",
        "none",
        tasks(
            RQ,
            "import work\nfor text in work.TEXTS: work.queue.enqueue('work.ask', text)",
            *["rq worker --url unix://BROKER"] * 2,
            redis=True,
        ),
        "rq",
    ),
    Host(
        "Dramatiq",
        "none",
        tasks(
            DRAMATIQ,
            "import work\nfor text in work.TEXTS: work.task.send(text)",
            "dramatiq work -p 2 -t 2",
            redis=True,
        ),
        "dramatiq",
    ),
    Host(
        "Huey, processes",
        "none",
        tasks(
            HUEY,
            "import work\nfor text in work.TEXTS: work.task(text)",
            "-m huey.bin.huey_consumer work.huey -w 3 -k process",
        ),
        "huey",
    ),
    Host(
        "APScheduler, threads",
        "none",
        tasks(ALL.rstrip(" ") + SCHEDULER.format(kind="ThreadPoolExecutor")),
        "apscheduler",
        quick=True,
    ),
    Host(
        "APScheduler, processes",
        "none",
        tasks(ALL.rstrip(" ") + SCHEDULER.format(kind="ProcessPoolExecutor")),
        "apscheduler",
    ),
    *(
        Host(
            f"multiprocessing.Pool, {method}",
            "none",
            tasks(ALL.rstrip(" ") + WORKERS.format(pool=POOL.format(method))),
        )
        for method in ("fork", "spawn", "forkserver")
    ),
    Host(
        "ProcessPoolExecutor",
        "none",
        tasks(ALL.rstrip(" ") + WORKERS.format(pool=EXECUTOR.format("ProcessPoolExecutor(3)"))),
    ),
    Host(
        "ThreadPoolExecutor",
        "none",
        tasks(ALL.rstrip(" ") + WORKERS.format(pool=EXECUTOR.format("ThreadPoolExecutor(8)"))),
        quick=True,
    ),
    Host("a user without a name and HOME", "`ledger` names a file", in_box, quick=True),
    Host(
        "a read-only /dev/shm",
        "`state` names a file on a local disk",
        tasks(APART, state="state", wrapped=(*NO_SHM, sys.executable)),
    ),
    Host(
        "a tracer (`sys.settrace`, `sys.setprofile`)",
        "none",
        tasks(
            IN_A_ROW,
            prefix="import sys, threading\ndef trace(*_): return trace\n"
            "sys.settrace(trace); threading.settrace(trace); sys.setprofile(lambda *_: None)\n",
        ),
        quick=True,
    ),
    Host(
        "the debugger (`python -m pdb`)",
        "none",
        tasks(IN_A_ROW, wrapped=(sys.executable, "-m", "pdb", "-c", "continue", "-c", "quit")),
    ),
    Host(
        "coverage (`coverage run`)",
        "none",
        tasks(IN_A_ROW, wrapped=(sys.executable, "-m", "coverage", "run", "--concurrency=thread")),
        "coverage",
        quick=True,
    ),
]


def version(package: str) -> str:
    if not package:
        return "Python " + ".".join(map(str, sys.version_info[:3]))
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        shown = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
        )
        (number,) = re.findall(r"^(?:\d+:)?([\d.]*\d)", shown.stdout) or ["is not installed"]
        return f"{package} {number}"


def row(host: Host, shown: str) -> str:
    return f"| {host.name} | {host.setting} | {shown} | {version(host.package)} |"


HEAD = ["| host | needs | shown | tested with |", "|---|---|---|---|"]


def tried(host: Host) -> str | None:
    folder = Path(tempfile.mkdtemp(prefix="fastroute-host-"))
    try:
        shown = host.run(folder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        for log in ("log", "apache.log", "passenger.log"):
            if (folder / log).exists():
                print(f"--- {log}\n" + (folder / log).read_text(errors="replace")[-4000:], file=sys.stderr)
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return shown


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("words", nargs="*", help="run only hosts with one of these words in their name")
    arguments.add_argument("--write", action="store_true", help="write the table into docs/hosting.md")
    given = arguments.parse_args()
    rows, failed = [], 0
    print("\n".join(HEAD), flush=True)
    for host in HOSTS:
        if given.words and not any(word.lower() in host.name.lower() for word in given.words):
            continue
        shown = tried(host)
        failed += shown is None
        rows.append(row(host, shown or "FAILED"))
        print(rows[-1], flush=True)
    if given.write and not failed:
        text = PAGE.read_text(encoding="utf-8")
        table = "\n".join(["<!--hosts-->", *HEAD, *rows, "<!--/hosts-->"])
        PAGE.write_text(
            re.sub(r"<!--hosts-->.*<!--/hosts-->", lambda _: table, text, flags=re.DOTALL), encoding="utf-8"
        )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
