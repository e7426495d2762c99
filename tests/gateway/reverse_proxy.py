"""The real nginx with the settings of its documentation: it passes requests on and adds no header."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from needs import need
from ports import free_port

CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://{upstream};
        }}
    }}
}}
"""


@contextlib.contextmanager
def in_front_of(upstream: str, folder: Path) -> Iterator[str]:
    """The address of an nginx before ``HOST:PORT`` or ``unix:PATH``, until the block ends."""
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(CONFIGURATION.format(port=port, upstream=upstream))
    command = [need("nginx"), "-p", str(folder), "-c", "nginx.conf"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            await_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def await_port(port: int, process: subprocess.Popen[str]) -> None:
    """Returns once the process listens at the port; fails if it ends before that."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise AssertionError(process.stderr.read() if process.stderr else "it has ended")
