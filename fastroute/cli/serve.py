"""``fastroute serve``: runs the gateway on waitress, and shuts it down without losing running calls."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from fastroute.errors import ConfigError

from .access_log import AccessLog, Application
from .group import config_option, refuse
from .output import dim

_HEADER_BYTES = 32 * 1024
_BODY_BYTES = 10 * 1024 * 1024
_UNSENT_BYTES = 1024 * 1024  # buffered for a slow client before its stream is paused
_CONNECTIONS = 2000
_FIRST = "default"  # the name of the key that the first start makes
_TICK = 0.5  # seconds between two checks for a signal


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65_535),
    default=8080,
    envvar="PORT",
    show_envvar=True,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--access-log",
    type=click.Choice(["text", "json"]),
    help="Print a line about each request on standard output.",
)
@click.option(
    "--threads", type=click.IntRange(1, 4096), default=64, show_default=True, help="Calls served at once."
)
@click.option(
    "--keys",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The callers' keys. [default: fastroute-keys.db; it is made, with one key, if it does not exist]",
)
@click.option("--pepper-env", metavar="NAME", help="Environment variable with the keys' pepper.")
@click.option(
    "--keyless", is_flag=True, help="Serve everyone who can reach this address or a proxy before it."
)
@click.option("--metrics/--no-metrics", default=True, show_default=True, help="Serve /metrics.")
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to wait for running calls after SIGTERM.",
)
@config_option
def command(
    host: str,
    port: int,
    access_log: str | None,
    threads: int,
    keys: str | None,
    pepper_env: str | None,
    keyless: bool,
    metrics: bool,
    grace: float,
    config: str | None,
) -> None:
    """Serve an OpenAI-compatible API over HTTP.

    Callers need a key made by "fastroute keys create". If there are no keys, the first start makes one and
    prints it, once. SIGTERM ends the server after the running calls; a second one ends it at once.

    \b
    Examples:
      fastroute serve --port 8080
      fastroute serve --host 0.0.0.0 --access-log json
    """
    if find_spec("waitress") is None:
        refuse("fastroute serve needs waitress: pip install 'fastroute[gateway]'")
    from fastroute.client import Client
    from fastroute.gateway import create_app

    client = Client(config, default_state="machine")
    try:
        # The configuration may say keyless, so it is read before a key is made.
        token = None if keyless or client.config.gateway.keyless else first_key(keys, pepper_env)
        app = create_app(client=client, keys=keys, pepper_env=pepper_env, keyless=keyless, metrics=metrics)
        served = app if access_log is None else AccessLog(app, access_log == "json")
        shown: list[str] = []

        def ready(address: str, bound: int) -> None:
            announce(address, bound)
            if token is not None and not shown:  # called once for each address
                shown.append(token)
                show_key(token)

        serve(served, host, port, threads, grace, ready=ready)
    finally:
        client.close()


def first_key(keys: str | None, pepper_env: str | None) -> str | None:
    """A key in a new default key file; None if there is a file of keys already, or another one was named."""
    from fastroute.gateway.keys import DEFAULT_FILE, Caller, KeyFile

    if keys is not None or os.path.lexists(DEFAULT_FILE):
        return None
    try:
        return KeyFile(DEFAULT_FILE, pepper_env=pepper_env).create(Caller(_FIRST))
    except ConfigError as error:
        refuse(
            f"there are no keys, and none can be made: {error}; name a key file with --keys FILE, which "
            "fastroute keys create NAME --file FILE makes"
        )


def show_key(token: str) -> None:
    """Prints the first key: the key itself on standard output, and what to know of it beside."""
    dim(f"There were no keys, so a key named {_FIRST} was made. It is not shown again:")
    click.echo(token)
    dim('callers send it as "Authorization: Bearer KEY"; fastroute keys create NAME makes more')
    if not sys.stdout.isatty():
        dim(f"if this output is kept, replace the key: fastroute keys rotate {_FIRST} --overlap 0")


def announce(host: str, port: int) -> None:
    """Prints the addresses of the API and of the admin page."""
    shown = f"[{host}]" if ":" in host else host
    dim(f"serving http://{shown}:{port}/v1 (Ctrl-C to stop)")
    dim(f"figures http://{shown}:{port}/admin (for the key of fastroute keys create NAME --admin)")


def serve(
    app: Application,
    host: str,
    port: int,
    threads: int,
    grace: float,
    *,
    ready: Callable[[str, int], object] = lambda host, port: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running calls end.

    Args:
        threads: calls served at once; more calls wait.
        grace: seconds to wait for running calls.
        ready: called with host and port once the server listens.
    """
    from waitress import wasyncore
    from waitress.server import BaseWSGIServer, create_server

    sockets: dict[int, Any] = {}
    try:
        server: Any = create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            threads=threads,
            max_request_header_size=_HEADER_BYTES,
            max_request_body_size=_BODY_BYTES,
            outbuf_high_watermark=_UNSENT_BYTES,
            connection_limit=_CONNECTIONS,
            asyncore_use_poll=True,
            ident=None,
        )
    except OSError as error:
        refuse(f"cannot listen on {host}:{port}: {error.strerror}")
    for listener in [known for known in sockets.values() if isinstance(known, BaseWSGIServer)]:
        listener.channel_class = _channel_class()
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for address, bound in getattr(server, "effective_listen", None) or [
            (server.effective_host, server.effective_port)
        ]:
            ready(address, int(bound))
        while not asked:
            wasyncore.loop(timeout=_TICK, use_poll=True, map=sockets, count=1)
        _drain(sockets, time.monotonic() + grace)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(sockets, ignore_all=True)


def _channel_class() -> Any:
    """Waitress's connection class that also refuses a request with both a length and chunks.

    If a proxy in front of it uses the other of the two, one of them reads a second request in the first one's
    body (request smuggling).
    """
    from waitress.channel import HTTPChannel
    from waitress.parser import HTTPRequestParser, ParsingError

    class Parser(HTTPRequestParser):
        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            if self.chunked and "CONTENT_LENGTH" in self.headers:
                raise ParsingError("Content-Length and Transfer-Encoding in one request")

    class Channel(HTTPChannel):
        parser_class = Parser

    return Channel


def _drain(sockets: dict[int, Any], ends: float) -> None:
    """Accepts no more connections, and serves the open ones until their calls are answered."""
    from waitress import wasyncore
    from waitress.channel import HTTPChannel
    from waitress.server import BaseWSGIServer

    listeners: list[Any] = [known for known in sockets.values() if isinstance(known, BaseWSGIServer)]
    for listener in listeners:
        listener.del_channel(sockets)
        listener.socket.close()
    while time.monotonic() < ends:
        channels = [known for known in sockets.values() if isinstance(known, HTTPChannel)]
        for channel in channels:
            if not channel.requests and not channel.total_outbufs_len and channel.request is None:
                channel.handle_close()
        if not any(isinstance(known, HTTPChannel) for known in sockets.values()):
            return
        wasyncore.loop(timeout=0.05, use_poll=True, map=sockets, count=1)
