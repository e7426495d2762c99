"""Apache with mod_wsgi as a child of a test, on a port of its own."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import need
from ports import free_port

import fastroute

MODULES = Path("/usr/lib/apache2/modules")
PREAMBLE = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
WSGISocketPrefix {folder}/wsgi
Listen 127.0.0.1:{port}
<Directory />
Require all granted
</Directory>
"""
PYTHON = f"python-home={sys.prefix} python-path={Path(fastroute.__file__).parent.parent}"
"""The options of WSGIDaemonProcess for the interpreter that runs the tests."""
# Apache serves as no superuser. A test that runs as root may have its files where nobody else can read.
UNPRIVILEGED = [
    *("setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]


def needed() -> None:
    """Skips, or fails in CI, without an Apache whose module has the Python that runs the tests."""
    need("apache2")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if (MODULES / "mod_wsgi.so").exists() and not (MODULES / f"mod_wsgi.so-{version}").exists():
        pytest.skip(f"the installed mod_wsgi is not for Python {version}")
    home = Path(sys.prefix)
    closed = [each for each in (home, *home.parents) if not each.stat().st_mode & stat.S_IXOTH]
    if os.geteuid() == 0 and closed:  # mod_wsgi asks as its own user whether it may use it
        missing = f"needs an environment that every user can enter; {closed[-1]} is closed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


@contextmanager
def apache(folder: Path, environ: dict[str, str], configuration: str) -> Iterator[int]:
    """Apache with that configuration, once it listens; its port. Its log is ``apache.log`` in the folder."""
    port = free_port()
    text = PREAMBLE.format(folder=folder, modules=MODULES, port=port) + configuration
    (folder / "apache.conf").write_text(text)
    command = ["apache2", "-f", str(folder / "apache.conf"), "-DFOREGROUND"]
    if os.geteuid() == 0:
        command = [*UNPRIVILEGED, *command]
        os.chmod(folder, 0o777)
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "apache.log"
    try:
        while not listens(port):
            assert server.poll() is None, log.read_text()
            time.sleep(0.01)
        yield port
    except BaseException:
        print(log.read_text() if log.exists() else "no log")
        raise
    finally:
        server.terminate()
        server.wait(20)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
