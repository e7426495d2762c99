"""``fastroute serve``: runs the gateway on waitress, and shuts it down without losing running calls."""

from __future__ import annotations

import ipaddress
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from .access_log import AccessLog, Application
from .group import config_option, refuse
from .output import dim

_HEADER_BYTES = 32 * 1024
_BODY_BYTES = 10 * 1024 * 1024
_UNSENT_BYTES = 1024 * 1024  # buffered for a slow client before its stream is paused
_CONNECTIONS = 2000
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
    help="The callers' keys. [default: fastroute-keys.db, if there is one]",
)
@click.option("--pepper-env", metavar="NAME", help="Environment variable with the keys' pepper.")
@click.option(
    "--allow-anonymous", is_flag=True, help="Without keys, serve everyone who can reach this address."
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
    allow_anonymous: bool,
    metrics: bool,
    grace: float,
    config: str | None,
) -> None:
    """Serve an OpenAI-compatible API over HTTP.

    Callers need a key made by "fastroute keys create". Without any keys, only programs on this machine are
    served. SIGTERM ends the server after the running calls; a second one ends it at once.

    \b
    Examples:
      fastroute serve --port 8080
      fastroute serve --host 0.0.0.0 --access-log json
    """
    if find_spec("waitress") is None:
        refuse("fastroute serve needs waitress: pip install 'fastroute[gateway]'")
    from fastroute.gateway import create_app

    app = create_app(
        config, keys=keys, pepper_env=pepper_env, allow_anonymous=allow_anonymous, metrics=metrics
    )
    try:
        if not (app.needs_keys or allow_anonymous or is_loopback(host)):
            refuse(
                f"--host: {host} can be reached from other machines, and there are no keys; make one with "
                "fastroute keys create, or add --allow-anonymous"
            )
        served = app if access_log is None else AccessLog(app, access_log == "json")
        serve(served, host, port, threads, grace, ready=announce)
    finally:
        app.close()


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
            # The headers are kept but not trusted: without keys, a forwarded call is refused.
            clear_untrusted_proxy_headers=False,
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
