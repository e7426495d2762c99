"""A Flask extension: one client an application, and every call in the ledger under the request that made it.

    routes = FastRoute()                       # or FastRoute(app)

    def create_app():
        app = Flask(__name__)
        app.config["FASTROUTE_CONFIG"] = "fastroute.toml"
        routes.init_app(app)
        return app

    routes.client.chat.completions.create(messages=…)       # in a view

Owns where the configuration comes from, and the tags of a request. The extension object holds nothing of any
application: all of it is under ``app.extensions["fastroute"]``.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from fastroute import errors
from fastroute.client import Chat, Client
from fastroute.config import Source, check, load
from fastroute.providers import names as format_names
from fastroute.types import RouteOptions

try:
    import click
    import flask
    from flask.cli import AppGroup
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the Flask extension needs Flask: pip install 'fastroute[flask]'", name=error.name
    ) from error

EXTENSION = "fastroute"
_CONFIG = "FASTROUTE_CONFIG"
_PREFIX = "FASTROUTE_"

UserOf = Callable[[], object]


class FlaskClient(Client):
    """A client whose calls carry the tags of the Flask request that they are made in.

    The tags are ``endpoint``, ``blueprint`` (where there is one) and ``user`` (where it is known); tags of
    `with_options` go over them, and tags of a call over both. A call outside of a request has none of them.

    Thread safety: as a `Client`'s.
    """

    _user: UserOf | None = None

    @classmethod
    def around(cls, client: Client, user: UserOf | None) -> FlaskClient:
        """One that shares everything with ``client``; closing either closes both."""
        other = cls.__new__(cls)
        other.__dict__.update(client.__dict__)
        other._user = user
        other.chat = Chat(other)
        return other

    def with_options(self, **options: Any) -> FlaskClient:
        """As `Client.with_options`; the calls of the result carry their requests' tags, too."""
        return FlaskClient.around(super().with_options(**options), self._user)

    def submit(self, **call: Any) -> Future[Any]:
        """As `Client.submit`; with the tags of the request in which it was submitted."""
        # A thread of the pool may run it when the request is over, so its tags are settled now.
        tags = {**self.request_tags(), **self._options.get("tags", {})}
        return super().with_options(tags=tags).submit(**call)

    def request_tags(self) -> dict[str, str]:
        """The tags of the request under way; none outside of one."""
        if not flask.has_request_context():
            return {}
        found: dict[str, object] = {
            "endpoint": flask.request.endpoint,
            "blueprint": flask.request.blueprint,
            "user": None if self._user is None else self._user(),
        }
        return {name: str(value) for name, value in found.items() if value is not None}

    def _route_options(self, route: Mapping[str, Any] | None) -> RouteOptions:
        tags = self.request_tags()
        given = (route or {}).get("tags", {})
        if tags and isinstance(given, Mapping):
            route = {**(route or {}), "tags": {**tags, **self._options.get("tags", {}), **given}}
        return super()._route_options(route)


class FastRoute:
    """The extension: gives each application it is set up for a client of its own.

    The configuration is what ``app.config["FASTROUTE_CONFIG"]`` says: a path, a mapping, a `Config`; without
    it what `Client` finds by itself. Other ``FASTROUTE_…`` keys of ``app.config`` go over it, named as their
    environment variables are, such as ``FASTROUTE_POLICY__STRATEGY``; the environment goes over both.

    The client is made in `init_app`, so that a wrong configuration stops the application from starting, and
    workers forked after it share limits and budgets. It has no thread before its first call. It is closed at
    the end of the process, or when the application is collected.

    Args:
        app: an application to set up at once.
        user: called in a request, returns whom its calls are for, or None; becomes the tag ``user``. What it
            raises, the call raises.

    Thread safety: `init_app` is for the time before requests are served; the rest is for all threads.
    """

    def __init__(self, app: flask.Flask | None = None, *, user: UserOf | None = None) -> None:
        self._user = user
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask, *, client: Client | None = None) -> None:
        """Sets an application up: its client under ``app.extensions["fastroute"]``, and ``flask fastroute``.

        Args:
            app: whose ``app.config`` is read now.
            client: one made elsewhere to be used instead, such as one that several applications share; it is
                not closed by the extension.

        Raises:
            ConfigError: with every problem of the configuration.
            RuntimeError: the application is set up already.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"fastroute is already set up for the application {app.name!r}")
        if client is None:
            # A server loads the application in each worker unless told otherwise: they should count together.
            state = "memory" if app.testing else "machine"
            client = Client(_source(app.config), default_state=state)
            weakref.finalize(app, client.runtime.close)
        app.extensions[EXTENSION] = FlaskClient.around(client, self._user)
        app.cli.add_command(_commands)

    @property
    def client(self) -> FlaskClient:
        """The current application's client.

        Raises:
            RuntimeError: there is no current application, or it is not set up.
        """
        return _current_client()


def _current_client() -> FlaskClient:
    if not flask.has_app_context():
        raise RuntimeError(
            "fastroute: there is no current Flask application; use app.extensions['fastroute'], or "
            "app.app_context() around this code"
        )
    client: FlaskClient | None = flask.current_app.extensions.get(EXTENSION)
    if client is None:
        raise RuntimeError(
            f"fastroute is not set up for the application {flask.current_app.name!r}: call init_app(app)"
        )
    return client


# -------------------------------------------------------------------------------------------- configuration


def _source(settings: Mapping[str, Any]) -> Source:
    source: Source = settings.get(_CONFIG)
    keys = {
        name: _written(name, value)
        for name, value in settings.items()
        if name.startswith(_PREFIX) and name != _CONFIG
    }
    if not keys:
        return source
    return load(source, environ={**keys, **os.environ}, formats=format_names())


def _written(name: str, value: Any) -> str:
    """A value as an environment variable would have it: text, or TOML."""
    return value if isinstance(value, str) else _toml(name, value)


def _toml(name: str, value: Any) -> str:
    if isinstance(value, (bool, int, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        items = (
            f"{json.dumps(str(key), ensure_ascii=False)} = {_toml(name, part)}" for key, part in value.items()
        )
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(name, part) for part in value) + "]"
    raise errors.ConfigError(
        f"{name}: a {type(value).__name__} cannot be a value of the configuration, must be text, a number, "
        "True or False, a list or a mapping"
    )


# ------------------------------------------------------------------------------------------------- commands

_commands = AppGroup("fastroute", help="Ask fastroute about this application's configuration.")


@_commands.command("check")
def _check() -> None:
    """Say what this application's client is configured to do, and what may surprise."""
    config = _current_client().config
    for warning in check(config, formats=format_names()).warnings:
        click.echo(f"warning  {warning}")
    click.echo(f"ok: models {', '.join(config.served)}")
    for tier, models in config.tiers.items():
        click.echo(f"  tier {tier}: {', '.join(models)}")
