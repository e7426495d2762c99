"""A Flask extension: one client for each application, and calls tagged with the request that made them.

    routes = FastRoute()                       # or FastRoute(app)

    def create_app():
        app = Flask(__name__)
        app.config["FASTROUTE_CONFIG"] = "fastroute.toml"
        routes.init_app(app)
        return app

    routes.client.chat.completions.create(messages=…)       # in a view

The extension object keeps nothing of an application; that is under ``app.extensions["fastroute"]``.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import Any

from fastroute import errors, events
from fastroute.client import Chat, Client
from fastroute.config import Source, check, load
from fastroute.platform import forks
from fastroute.providers import names as format_names
from fastroute.runtime.runtime import Runtime
from fastroute.state.segment_file import describe
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
    """A client that tags its calls with the current Flask request.

    The tags are ``endpoint``, ``blueprint`` (if there is one) and ``user`` (if known). Tags of `with_options`
    take precedence over them, and tags of a call over both. A call outside of a request has none of them.

    Thread safety: as of `Client`.
    """

    _user: UserOf | None = None
    _waiting: Runtime | None = None
    _default_state: Callable[[], str] = staticmethod(lambda: "machine")

    @cached_property
    def runtime(self) -> Runtime:  # type: ignore[override]
        """The client's runtime, started at its first use."""
        forks.ensure()
        # The lock under which no fork happens, so that none leaves it locked in a child.
        with forks.blocked():
            assert self._waiting is not None
            return self._waiting.start(self._default_state())

    @classmethod
    def around_unstarted(
        cls, runtime: Runtime, default_state: Callable[[], str], user: UserOf | None
    ) -> FlaskClient:
        """A `FlaskClient` whose first use asks for the default of ``[fastroute] state`` and starts it."""
        other = cls.__new__(cls)
        other.__dict__.update(_waiting=runtime, _default_state=default_state, _user=user)
        other.chat = Chat(other)
        return other

    def on(
        self, hook: Callable[[Any], object], kind: type[events.Event] = events.Event
    ) -> Callable[[], None]:
        """As `Client.on`; an application may register hooks before it knows whether it is tested."""
        return (self._waiting or self.runtime).hooks.add(hook, kind)

    def close(self) -> None:
        """As `Client.close`; a client that was never used is closed without being started."""
        forks.ensure()
        (self._waiting or self.runtime).close()

    @classmethod
    def around(cls, client: Client, user: UserOf | None) -> FlaskClient:
        """A `FlaskClient` that shares everything with ``client``; closing either closes both."""
        other = cls.__new__(cls)
        other.__dict__.update(client.__dict__, _user=user)
        other.chat = Chat(other)
        return other

    def with_options(self, **options: Any) -> FlaskClient:
        """As `Client.with_options`; the calls of the result have their requests' tags too."""
        return FlaskClient.around(super().with_options(**options), self._user)

    def submit(self, **call: Any) -> Future[Any]:
        """As `Client.submit`, with the tags of the request in which it was submitted."""
        # A thread of the pool may run it after the end of the request, so the tags are read now.
        tags = {**self.request_tags(), **self._options.get("tags", {})}
        self.runtime  # noqa: B018 - started, because the client below cannot do that
        return super().with_options(tags=tags).submit(**call)

    def request_tags(self) -> dict[str, str]:
        """The tags of the current request; empty outside of one."""
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
        words = route or {}
        # What is not a mapping is refused below, with the message that every client has.
        if tags and isinstance(words, Mapping) and isinstance(given := words.get("tags", {}), Mapping):
            route = {**words, "tags": {**tags, **self._options.get("tags", {}), **given}}
        return super()._route_options(route)


class FastRoute:
    """The extension: gives each application that it is set up for its own client.

    The configuration is ``app.config["FASTROUTE_CONFIG"]`` (a path, a mapping or a `Config`), or what
    `Client` finds by itself. Other ``FASTROUTE_…`` keys of ``app.config`` override it; they are named as
    environment variables, such as ``FASTROUTE_POLICY__STRATEGY``. The environment overrides both.

    The configuration is read and the ledger opened in `init_app`, so that a mistake in them stops the
    application from starting. Where the state is kept is decided when the client is first used, if the
    configuration does not say it: ``memory`` if ``app.testing`` is set then, otherwise ``machine``. The
    client is closed at the end of the process, or when the application is garbage collected.

    Args:
        app: an application to set up at once.
        user: called in a request; returns the user for the tag ``user``, or None. An exception that it
            raises is raised by the call.

    Thread safety: call `init_app` before requests are served; the rest may be used from all threads.
    """

    def __init__(self, app: flask.Flask | None = None, *, user: UserOf | None = None) -> None:
        self._user = user
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask, *, client: Client | None = None) -> None:
        """Sets an application up: its client under ``app.extensions["fastroute"]``, and ``flask fastroute``.

        Args:
            app: the application; its ``app.config`` is read now.
            client: a client to use instead of a new one, such as one that several applications share; the
                extension does not close it.

        Raises:
            ConfigError: with every problem of the configuration.
            RuntimeError: if the application is already set up.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"fastroute is already set up for the application {app.name!r}; call init_app once"
            )
        if client is None:
            made = self._made(app)
        else:
            made = FlaskClient.around(client, self._user)
        app.extensions[EXTENSION] = made
        app.cli.add_command(_commands)

    def _made(self, app: flask.Flask) -> FlaskClient:
        runtime = Runtime(_source(app.config), None)
        weakref.finalize(app, runtime.close)
        owner = weakref.ref(app)

        def default_state() -> str:
            # Servers usually load the application in each worker; the workers should share their limits.
            # A test should leave nothing behind, and sets app.testing after it has made the application.
            asking = owner()
            return "memory" if asking is not None and asking.testing else "machine"

        made = FlaskClient.around_unstarted(runtime, default_state, self._user)
        if runtime.state_is_configured:
            made.runtime  # noqa: B018 - now, so that workers forked later share its memory
        return made

    @property
    def client(self) -> FlaskClient:
        """The current application's client.

        Raises:
            RuntimeError: if there is no current application, or it is not set up.
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
            f"fastroute is not set up for the application {flask.current_app.name!r}; call init_app(app)"
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
    """A value as the text of an environment variable: unchanged text, or TOML."""
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
        f"{name}: must be text, a number, True or False, a list or a mapping, not {type(value).__name__}"
    )


# ------------------------------------------------------------------------------------------------- commands

_commands = AppGroup("fastroute", help="Show fastroute's configuration of this application.")


@_commands.command("check")
def _check() -> None:
    """Show the models and tiers of this application's client, and warnings."""
    config = _current_client().config
    for warning in check(config, formats=format_names()).warnings:
        click.echo(f"warning  {warning}")
    click.echo(f"ok: models {', '.join(config.served)}")
    click.echo(f"  state: {describe(config, 'memory' if flask.current_app.testing else 'machine')}")
    for tier, models in config.tiers.items():
        click.echo(f"  tier {tier}: {', '.join(models)}")
