"""The time that a gateway adds to a call.

One client calls a local provider directly, through `fastroute serve`, through gunicorn, and through the
litellm proxy, in interleaved rounds. Every gateway is one process, checks a key and has its default settings:
for fastroute limits, breakers, prices and the ledger. The cache is off. The tables show the median and the
difference to the direct call.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastroute.gateway.keys import Caller, KeyFile

from .calls import BODY, is_answer, short
from .side_by_side import NO_OP, Comparison, Contender, MissingError, Operation, need

MASTER_KEY = "sk-benchmark"
_SETTLE = 90.0  # seconds until a gateway must be ready; the litellm proxy needs some twenty


def _operation(stack: ExitStack, port: int, path: str, key: str) -> Operation:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    stack.callback(connection.close)
    connection.connect()
    assert connection.sock is not None
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def call() -> Any:
        try:
            connection.request("POST", path, BODY, headers)
            return connection.getresponse().read()
        except (ConnectionError, http.client.HTTPException):  # idle for too long
            connection.close()
            connection.request("POST", path, BODY, headers)
            return connection.getresponse().read()

    return Operation("call()", {"call": call}, is_answer)


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastroute-bench-")))


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    root = str(Path(__file__).parent.parent)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _await(process: subprocess.Popen[bytes], port: int, path: str, folder: Path) -> None:
    ends = time.monotonic() + _SETTLE
    while time.monotonic() < ends and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    tail = (folder / "log").read_text(errors="replace")[-300:]
    raise MissingError(f"it does not start here: {' '.join(tail.split())}")


# --------------------------------------------------------------------------------------------- the contenders


def direct(stack: ExitStack) -> Operation:
    port = int(re.findall(r":([0-9]+)", short.join(stack))[0])
    return _operation(stack, port, "/v1/chat/completions", "none")


def _prepared(stack: ExitStack) -> tuple[Path, str]:
    """A directory with a configuration and keys of fastroute, and a caller's key."""
    folder = _folder(stack)
    url = short.join(stack)
    (folder / "fastroute.toml").write_text(
        f'[cache]\nenabled = false\n[providers.local]\nbase_url = "{url}"\nrpm = 100_000_000\n'
        'tpm = 1_000_000_000\n[[endpoints]]\nprovider = "local"\nmodel = "gpt-4.1"\n'
    )
    keys = KeyFile(folder / "fastroute-keys.db")
    return folder, keys.create(Caller("bench", rpm=100_000_000))


def serve(stack: ExitStack) -> Operation:
    need("waitress")
    folder, key = _prepared(stack)
    port = _free_port()
    command = [sys.executable, "-m", "fastroute.cli", "serve", "--port", str(port)]
    process = stack.enter_context(_process(command, folder))
    _await(process, port, "/health", folder)
    return _operation(stack, port, "/v1/chat/completions", key)


def gunicorn(stack: ExitStack) -> Operation:
    need("gunicorn")
    folder, key = _prepared(stack)
    port = _free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads", "8"),
        *("--keep-alive", "60"),
        "fastroute.gateway:create_app()",
    ]
    process = stack.enter_context(_process(command, folder))
    _await(process, port, "/health", folder)
    return _operation(stack, port, "/v1/chat/completions", key)


def litellm(stack: ExitStack) -> Operation:
    program = Path(sys.executable).parent / "litellm"
    if not program.exists() or find_spec("fastapi") is None:
        raise MissingError("it is not installed: pip install 'litellm[proxy]'")
    folder, port = _folder(stack), _free_port()
    url = short.join(stack)
    parameters = {"model": "openai/gpt-4.1", "api_base": url, "api_key": "none"}
    settings = {
        "model_list": [{"model_name": "gpt-4.1", "litellm_params": parameters}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": MASTER_KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is valid YAML
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    process = stack.enter_context(
        _process(
            command,
            folder,
            LITELLM_MODE="PRODUCTION",
            LITELLM_LOG="ERROR",
            LITELLM_LOCAL_MODEL_COST_MAP="True",
        )
    )
    _await(process, port, "/health/liveliness", folder)
    return _operation(stack, port, "/v1/chat/completions", MASTER_KEY)


COMPARISONS = (
    Comparison(
        "One call of 600 bytes through a gateway, with a provider without latency",
        (
            NO_OP,
            Contender("direct", direct),
            Contender("fastroute serve (waitress)", serve, ours=True),
            Contender("fastroute under gunicorn, gthread", gunicorn, ours=True),
            Contender("litellm proxy", litellm),
        ),
        base="direct",
        added=True,
        loops=20,
        rounds=21,
        clock=time.perf_counter,
        note="wall-clock time of one client that reuses its connection; every gateway is one process and "
        "checks a key, with its default settings and without a cache",
    ),
)
