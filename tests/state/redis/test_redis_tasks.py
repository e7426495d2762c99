"""The page's Celery and Dask examples: several worker processes are let in as often as the limit says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import need
from redis_server import RedisServer

from fastroute.testing import Provider

need("redis")
PAGE = Path(__file__).parents[3] / "docs" / "machines.md"
LIMIT, CALLS = 25, 60


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def environ(redis: RedisServer, tmp_path: Path) -> Iterator[tuple[dict[str, str], Provider]]:
    """The examples' files in a folder, and a configuration in the environment."""
    for name, text in re.findall(
        r"```python (\S+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    ):
        (tmp_path / name).write_text(text)
    with redis.connect() as connection:
        connection.flushall()
    with Provider() as provider:
        (tmp_path / "fastroute.toml").write_text(
            f'[fastroute]\nledger = ""\nstate = "unix://{redis.socket}"\n'
            f'[providers.local]\nbase_url = "{provider.base_url}"\nrpm = 1\nburst = {LIMIT}\n'
            '[[endpoints]]\nprovider = "local"\nmodel = "m"\n'
            '[tiers]\nall = ["m"]\n'
            "[cache]\nenabled = false\n[policy]\nqueue_timeout = 0\n"
        )
        broker = f"redis+socket://{redis.socket}"
        yield {**os.environ, "FASTROUTE_CONFIG": str(tmp_path / "fastroute.toml"), "BROKER": broker}, provider


def run(code: list[str], environ: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *code], env=environ, cwd=folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_celery_workers_share_a_limit(environ: tuple[dict[str, str], Provider], tmp_path: Path) -> None:
    need("celery")
    variables, provider = environ
    command = ["-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "3", "-l", "ERROR"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(
        [sys.executable, *command, *quiet],
        env=variables,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = (
            "import tasks\n"
            f"found = [tasks.ask.delay(str(i)) for i in range({CALLS})]\n"
            "answers = [one.get(timeout=80) for one in found]\n"
            "print(sum(answer is not None for answer in answers))\n"
        )
        assert int(run(["-c", code], variables, tmp_path)) == LIMIT
        assert len(provider.requests) == LIMIT
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_dask_workers_share_a_limit(environ: tuple[dict[str, str], Provider], tmp_path: Path) -> None:
    need("distributed")
    variables, provider = environ
    assert run(["cluster.py"], variables, tmp_path).split() == [str(LIMIT), "of", str(CALLS)]
    assert len(provider.requests) == LIMIT
