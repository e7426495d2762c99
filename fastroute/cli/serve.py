"""``fastroute serve``: runs the gateway on waitress, with a key for its first callers."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import click

from fastroute.errors import ConfigError

from .access_log import AccessLog
from .group import config_option, refuse
from .output import dim

_FIRST = "default"  # the name of the key that the first start makes


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
    "--connections",
    type=click.IntRange(10, 1_000_000),
    default=2000,
    show_default=True,
    help="Connections open at once.",
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
    connections: int,
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
    from fastroute.gateway.app import HEALTH

    from .http_server import ServerLimits, serve

    client = Client(config, default_state="machine")
    try:
        # The configuration may say keyless, so it is read before a key is made.
        token = None if keyless or client.config.gateway.keyless else first_key(keys, pepper_env)
        app = create_app(client=client, keys=keys, pepper_env=pepper_env, keyless=keyless, metrics=metrics)
        served = app if access_log is None else AccessLog(app, access_log == "json")
        shown: list[str] = []

        def ready(address: str, bound: int) -> None:
            announce(address, bound, figures=not app.keyless)
            if token is not None and not shown:  # called once for each address
                shown.append(token)
                show_key(token)

        gateway = client.config.gateway
        limits = ServerLimits(
            threads=threads,
            connections=connections,
            body_bytes=gateway.max_body_bytes,
            bytes_under_way=gateway.max_bytes_under_way,
            read_timeout=gateway.body_timeout,
            write_timeout=gateway.write_timeout,
            reserved=HEALTH,
            known=app.knows,
        )
        serve(served, host, port, limits, grace, ready=ready)
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


def announce(host: str, port: int, figures: bool = True) -> None:
    """Prints the addresses of the API and of the admin page, which is of no use without keys."""
    shown = f"[{host}]" if ":" in host else host
    dim(f"serving http://{shown}:{port}/v1 (Ctrl-C to stop)")
    if figures:
        dim(f"figures http://{shown}:{port}/admin (for the key of fastroute keys create NAME --admin)")
