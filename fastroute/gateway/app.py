"""The gateway: an OpenAI-compatible WSGI app in front of a client.

A request for a completion passes through these steps::

    path, method    404, or 405 with Allow
    caller          401                                                         keyring.py
    load            429 or 503 if too many calls are under way                  load.py
    limits          429 if no request, token or money is left of the key's      limits.py
    body            size, type, strict JSON, the allow-list of fields           body.py, request_schema.py
    model           404 if it is unknown, 403 if the key may not use it         models.py
    tags            400 for a tag or value that the key may not set             keys.py
    tokens          429 if the key has fewer left than the request needs        limits.py
    call            client.chat.completions.create
    response        a completion or events                                      responses.py

What needs no body is asked before it is read. An error has its own status until the first event of a stream
has been sent. A client that takes nothing of its response is disconnected (connection.py).
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import os
import re
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from typing import Any

from attrs import evolve

from fastroute import errors
from fastroute.budget import spent_in
from fastroute.calls.stream import Stream
from fastroute.client import Client
from fastroute.config import AUTO, Config
from fastroute.integrations import wire_openai
from fastroute.platform import forks
from fastroute.platform.notices import notice
from fastroute.platform.peers import is_own_connection
from fastroute.types import REQUEST_ID_TAG, Completion

from . import body as bodies
from . import page, stats
from .body import BodyRoom
from .connection import Connection, WatchedBody
from .departures import departure
from .keyring import KeyFileWatch, Keyring, Throttle
from .keys import DEFAULT_FILE, RESERVED_TAGS, Caller, KeyFile
from .limits import KeyAllowance, KeyBudgets, KeyLimits, Permit, tokens_of
from .load import Load, Place
from .models import ServedModels
from .refusals import MOST_HOURS, Refusals
from .request_schema import INTEGERS
from .responses import (
    EventStream,
    GatewayError,
    Response,
    completion_response,
    error_response,
    json_response,
    stream_response,
)

log = logging.getLogger("fastroute")

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Any]

# A client whose base URL lacks /v1 asks without it; probes have the names that Kubernetes uses too.
COMPLETIONS = ("/v1/chat/completions", "/chat/completions")
MODELS = ("/v1/models", "/models")
READY = ("/health", "/health/ready", "/healthz", "/readyz")
LIVE = ("/health/live", "/livez")
HEALTH = frozenset((*READY, *LIVE))
_MODEL = re.compile(r"(?:/v1)?/models/(.+)")
_BEARER = re.compile(r"(?i:bearer) +([!-~]{1,200})")
_BASIC = re.compile(r"(?i:basic) +([A-Za-z0-9+/=]{1,400})")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_RANGE = re.compile(r"(?:hours=([1-9][0-9]{0,2}))?")
_BEARER_SCHEME = 'Bearer realm="fastroute"'
_LEASE_SLACK = 30.0  # seconds from a call's deadline until its reservation in the key's budget ends

_READABLE = (
    ("Vary", "Origin"),
    (
        "Access-Control-Expose-Headers",
        "x-request-id, retry-after, "
        + ", ".join(
            f"x-fastroute-{name}"
            for name in ("model", "endpoint", "class", "attempts", "cached", "cost", "time")
        )
        + ", "
        + ", ".join(
            f"x-ratelimit-{what}-{of}"
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens")
        ),
    ),
)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9, -]{1,2000}")

# Without keys: this very process could set any tag by the client itself, everybody else may set none.
_OURSELVES = Caller("", allowed_tags={"*": None})
_ANYBODY = Caller("")


class Gateway:
    """The WSGI app; `create_app` makes it.

    Attributes:
        client: the client that makes the calls.
        routes: method and handler by path.
        limits, budgets: those of the callers' keys.
        refusals: counts of the calls that were refused.

    Thread safety: any number of threads may call it, in forked children too.
    """

    def __init__(
        self,
        client: Client,
        keys: KeyFile | None,
        *,
        keyless: bool = False,
        metrics: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self._clock = clock
        self._keys: Keyring | KeyFileWatch = (
            KeyFileWatch(KeyFile(DEFAULT_FILE), clock=clock) if keys is None else Keyring(keys, clock=clock)
        )
        self._keyless = keyless
        segment = client.runtime.generation.state.segment
        shared = client.runtime.shared
        client.ledger.index_tags(("key",))  # by which the budgets of keys are counted
        self.limits = KeyLimits(segment, shared)
        bank = None if shared is None else shared.bank
        self.budgets = KeyBudgets(
            segment,
            spent_in(client.ledger),
            client.runtime.hooks,
            client.runtime.queue.freed,
            bank,
            recorded=bool(client.ledger.path),
        )
        self.refusals = Refusals(segment)
        self._served: ServedModels | None = None
        completions, models = ("POST", self._completions), ("GET", self._models)
        self.after_fork()
        self.routes: dict[str, tuple[str, Callable[[Environ, str], Response]]] = {
            **dict.fromkeys(COMPLETIONS, completions),
            **dict.fromkeys(MODELS, models),
            **dict.fromkeys(READY, ("GET", self._ready)),
            **dict.fromkeys(LIVE, ("GET", self._live)),
            "/openapi.json": ("GET", self._document),
            "/admin/stats.json": ("GET", self._stats),
            **dict.fromkeys(page.PATHS, ("GET", self._page)),
        }
        if metrics:
            self.routes["/metrics"] = ("GET", self._metrics)
        _gateways.add(self)

    def after_fork(self) -> None:
        """In a forked child: replaces what a thread of the parent may have locked."""
        self._throttle = Throttle(clock=self._clock)
        self.load = Load()
        self._collector = stats.StatsCollector(self.client)

    @property
    def keyless(self) -> bool:
        """Whether everyone is served without a key: only if that is asked for and there is no key file."""
        asked_for = self._keyless or self.client.config.gateway.keyless
        return asked_for and not isinstance(self._keys, Keyring)

    @property
    def has_keys(self) -> bool:
        """Whether there is a key file."""
        return self._keyring() is not None

    def knows(self, authorization: str) -> bool:
        """Whether the key in a header is valid, as far as it is known without waiting.

        For a server that decides how much of a request it receives.
        """
        keys, match = self._keys, _BEARER.fullmatch(authorization)
        if isinstance(keys, Keyring):
            return match is not None and keys.knows(match[1].encode())
        return self.keyless

    def close(self) -> None:
        """Closes the client."""
        self.client.close()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        forks.ensure()
        # A caller's own id is the answer's too, so that both sides' logs have the same.
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if not _CLIENT_ID.fullmatch(request_id):
            request_id = "req_" + secrets.token_hex(12)
        try:
            response = self._handle(environ)
        except errors.Error as error:
            response = error_response(error)
        except Exception as error:
            # The traceback contains lines of code and no values, so no prompt.
            log.exception("request %s failed", request_id)
            response = error_response(error)
        status, headers = response.head(request_id)
        headers += self._cross_origin(environ)
        stream = response.body if isinstance(response.body, EventStream) else None
        body = WatchedBody(
            b"" if environ.get("REQUEST_METHOD") == "HEAD" else response.body,
            Connection.of(environ),
            self.client.config.gateway.write_timeout,
            math.inf if stream is None else stream.deadline,
            response.closed,
        )
        try:
            start_response(status, headers)
        except BaseException:
            body.close()
            raise
        return body

    def _cross_origin(self, environ: Environ) -> list[tuple[str, str]]:
        """The headers that let a page of an allowed origin read the response; none for other origins."""
        allowed, asking = self.client.config.gateway.cors_origins, environ.get("HTTP_ORIGIN", "")
        if not asking or not (asking in allowed or "*" in allowed):
            return []
        return [("Access-Control-Allow-Origin", asking), *_READABLE]

    def _handle(self, environ: Environ) -> Response:
        try:
            path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8")
        except UnicodeError:
            path = ""
        known = self.routes.get(path)
        if known is None and _MODEL.fullmatch(path):
            known = ("GET", self._model)
        if known is None:
            raise GatewayError(404, "unknown path; /openapi.json lists the paths", "unknown_path")
        method, handler = known
        if environ.get("REQUEST_METHOD") == "OPTIONS" and self._cross_origin(environ):
            return Response(204, b"", headers=_preflight(environ))
        if environ.get("REQUEST_METHOD") != method:
            raise GatewayError(405, f"the method must be {method}", "method_not_allowed", [("Allow", method)])
        return handler(environ, path)

    # ------------------------------------------------------------------------------------------- callers

    def _keyring(self) -> Keyring | None:
        """The keys; None while there is no key file."""
        if isinstance(self._keys, KeyFileWatch):
            self._keys = self._keys.look() or self._keys
        return self._keys if isinstance(self._keys, Keyring) else None

    def _caller(self, environ: Environ, *, admin: bool = False) -> Caller:
        """The caller by its key. The body has not been read yet."""
        keyring = None if self.keyless else self._keyring()
        if keyring is None:
            if admin:
                cure = "; unset keyless first" if self.keyless else ""
                raise GatewayError(
                    403,
                    f"an admin key is required; fastroute keys create NAME --admin makes one{cure}",
                    "no_keys",
                )
            if self.keyless:
                return _ANYBODY
            if _is_from_here(environ):
                return _OURSELVES
            raise GatewayError(
                401,
                "this gateway has no keys yet, so it serves nobody; on its machine, "
                "fastroute keys create NAME makes one",
                "no_keys",
                [("WWW-Authenticate", _BEARER_SCHEME)],
            )
        header = environ.get("HTTP_AUTHORIZATION", "")
        match = _BEARER.fullmatch(header)
        token = match[1].encode() if match else b""
        if admin and match is None:
            token = _password(header)
        caller = keyring.find(token)
        if caller is None:
            wait = self._throttle.wrong(str(environ.get("REMOTE_ADDR", ""))) if header else 0.0
            if wait:
                raise GatewayError(
                    429,
                    "too many invalid keys from this address; wait before the next one",
                    "too_many_wrong_keys",
                    retry_after=wait,
                )
            scheme = 'Basic realm="fastroute", charset="UTF-8"' if admin else _BEARER_SCHEME
            raise GatewayError(
                401,
                "the key is missing or invalid; send Authorization: Bearer KEY",
                "invalid_api_key",
                [("WWW-Authenticate", scheme)],
            )
        if caller.admin is not admin:
            what = "an admin key cannot make calls" if caller.admin else "only an admin key may read this"
            raise GatewayError(403, what, "wrong_kind_of_key")
        environ["fastroute.key"] = caller.name  # for access logs around this application
        return caller

    # --------------------------------------------------------------------------------------------- calls

    def _completions(self, environ: Environ, path: str) -> Response:
        try:
            caller = self._caller(environ)
        except errors.Error as error:
            self.refusals.record(error)
            raise
        try:
            response = self._completion(environ, caller)
        except errors.Error as error:
            self.refusals.record(error)
            response = error_response(error, key_budgets=bool(caller.budgets))
        left = self.limits.headers(caller)
        return evolve(response, headers=(*response.headers, *left)) if left else response

    def _completion(self, environ: Environ, caller: Caller) -> Response:
        served = self._models_served()
        place = self.load.enter(caller.name, caller.max_in_flight, served.config.gateway.max_in_flight)
        permit: Permit | None = None
        try:
            permit = self.limits.admit(caller)
            # A model that costs nothing may be meant, which a budget that is used up does not exclude.
            if not served.free:
                self.budgets.check(caller)
            call = self._call(environ, caller, served, place)
            if caller.tpm is not None:
                permit.take(tokens_of(call.messages, call.params))
            client, gone = self._client_for(caller), departure(environ)
            answer = call.run(client if gone is None else client.with_options(cancelled=gone))
        except BaseException as error:
            if permit is not None:
                permit.settle(_tokens(error.attempts) if isinstance(error, errors.Error) else 0)
            place.leave()
            raise
        # A client that takes its response slowly occupies a thread, so the place is left when that is sent.
        if isinstance(answer, Stream):
            return evolve(stream_response(answer, partial(_settle, permit)), closed=place.leave)
        _settle(permit, answer)
        return evolve(completion_response(answer), closed=place.leave)

    def _call(
        self, environ: Environ, caller: Caller, served: ServedModels, place: Place
    ) -> wire_openai.ParsedCall:
        """The call in a request's body."""
        settings, own = served.config.gateway, caller.max_body_bytes
        room = BodyRoom(
            most=settings.max_body_bytes if own is None else min(own, settings.max_body_bytes),
            most_of_all=settings.max_bytes_under_way,
            seconds=settings.body_timeout,
        )
        body = bodies.read(environ, room, place)
        # Types and ranges are checked by `request_schema.py`, as the OpenAPI document shows them.
        asked = wire_openai.parse(body, served.limits, route=environ.get("HTTP_X_FASTROUTE_ROUTE"))
        served.check(_whole(asked), "")
        params = _tidied(asked)
        name = AUTO if params.pop("auto_model_select", False) else asked.model
        model = served.asked_for(name or self.client.config.default_model, caller)
        route = self._route(environ, asked.route or {}, caller)
        if "tier" in route:
            served.tier_asked_for(route["tier"], caller)
        return evolve(asked, model=model, route=route, params=params)

    def _client_for(self, caller: Caller) -> Client:
        budgets = self.budgets.of(caller)
        if budgets is None:
            return self.client
        lease = self.client.config.timeout + _LEASE_SLACK
        return self.client.with_options(budget=KeyAllowance(budgets, caller.name, lease))

    def _route(self, environ: Environ, words: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """The caller's routing options, with the tags that only the gateway sets."""
        found = {name: value for name, value in words.items() if value is not None}
        tags: dict[str, str] = {}
        for name, value in found.pop("tags", {}).items():
            # What the gateway or the key sets replaces what the caller sent.
            if name in RESERVED_TAGS or name in caller.tags:
                continue
            # Each value may be a budget of its own, so the owner of the key decides which ones there are.
            problem = caller.tag_problem(name, value)
            if problem is not None:
                raise GatewayError(
                    400, f"route.tags.{name}: {problem}", "tag_not_allowed", param=f"route.tags.{name}"
                )
            tags[name] = value
        client_id = environ.get("HTTP_X_REQUEST_ID", "")
        if _CLIENT_ID.fullmatch(client_id):
            tags[REQUEST_ID_TAG] = client_id
        tags.update(caller.tags)
        if caller.name:
            tags["key"] = caller.name
        return {**found, "tags": tags} if tags else found

    # ----------------------------------------------------------------------------------------- other requests

    def _models_served(self) -> ServedModels:
        known, config = self._served, self.client.config
        if known is None or known.config is not config:
            known = self._served = ServedModels(config)
        return known

    def _models(self, environ: Environ, path: str) -> Response:
        caller = self._caller(environ)
        models = self._models_served().listed(caller, stats.latencies(self.client))
        return json_response({"object": "list", "data": models})

    def _model(self, environ: Environ, path: str) -> Response:
        caller = self._caller(environ)
        match = _MODEL.fullmatch(path)
        wanted = "" if match is None else match[1]
        for model in self._models_served().listed(caller, stats.latencies(self.client)):
            if model["id"] == wanted:
                return json_response(model)
        raise GatewayError(
            404, "unknown model; /v1/models lists the models", "model_not_found", param="model"
        )

    def _live(self, environ: Environ, path: str) -> Response:
        return json_response({"status": "ok"})

    def _ready(self, environ: Environ, path: str) -> Response:
        available, endpoints = stats.available(self.client)
        ready = available > 0
        value = {
            "status": "ok" if ready else "unavailable",
            "endpoints": endpoints,
            "available": available,
            "ledger": "ok" if self.client.ledger.health.ok else "degraded",
            "budgets": "degraded" if stats.crowding(self.client) else "ok",
        }
        return json_response(value, 200 if ready else 503, [] if ready else [("Retry-After", "1")])

    def _metrics(self, environ: Environ, path: str) -> Response:
        text = stats.prometheus(self.client, self.refusals.totals())
        return Response(200, text, "text/plain; version=0.0.4; charset=utf-8")

    def _document(self, environ: Environ, path: str) -> Response:
        from .openapi import document

        parameters = self.client.config.gateway.parameters
        return json_response(
            document(keys=not self.keyless, metrics="/metrics" in self.routes, parameters=parameters)
        )

    def _page(self, environ: Environ, path: str) -> Response:
        return page.file(page.PATHS[path])

    def _stats(self, environ: Environ, path: str) -> Response:
        self._caller(environ, admin=True)
        keyring = self._keyring()
        callers = () if keyring is None else keyring.callers
        match = _RANGE.fullmatch(environ.get("QUERY_STRING", ""))
        hours = int(match[1] or 1) if match is not None else 0
        if not 1 <= hours <= MOST_HOURS:
            raise GatewayError(
                400,
                f"hours: must be an integer from 1 to {MOST_HOURS}, the only parameter of this path",
                "bad_query",
                param="hours",
            )
        seconds = 3600.0 * hours
        figures = self._collector.collect(self.budgets.snapshot(callers), seconds)
        return json_response({**figures, "refused": self.refusals.lately(seconds)})


def _is_from_here(environ: Environ) -> bool:
    """Whether this very process has sent the request: a test, or a notebook, that serves and calls.

    Such a program could use the client itself. Nothing that the request says counts here, because a proxy on
    this machine sends only the headers that it is configured to send.
    """
    try:
        port, server_port = int(environ.get("REMOTE_PORT", 0)), int(environ.get("SERVER_PORT", 0))
    except ValueError:
        return False
    return is_own_connection(str(environ.get("REMOTE_ADDR", "")), port, server_port)


def _preflight(environ: Environ) -> list[tuple[str, str]]:
    """What a page may send: any header, since SDKs have their own. Keys come in a header and not in a cookie,
    so credentials are not allowed.
    """
    wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
    return [
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization"),
        ("Access-Control-Max-Age", "7200"),
    ]


def _password(header: str) -> bytes:
    """The admin key from a browser's password dialog, which sends HTTP Basic authentication."""
    match = _BASIC.fullmatch(header)
    try:
        return base64.b64decode(match[1], validate=True).partition(b":")[2] if match else b""
    except binascii.Error:
        return b""


def _tidied(call: wire_openai.ParsedCall) -> dict[str, Any]:
    """The parameters as providers accept them: integers as int, stream_options only for streams."""
    params = dict(call.params)
    for name in INTEGERS:
        if type(params.get(name)) is float:
            params[name] = int(params[name])
    if not call.stream:
        params.pop("stream_options", None)
    return params


def _whole(call: wire_openai.ParsedCall) -> dict[str, Any]:
    """The body as received, for the schema, with the routing options of body and header."""
    whole = {"messages": call.messages, "model": call.model, **call.params}
    return whole if call.route is None else {**whole, "route": call.route}


def _settle(permit: Permit, ended: Completion | Stream) -> None:
    """Settles a call that was answered."""
    permit.settle(_tokens(ended.route.attempts) if ended.route is not None else 0)


def _tokens(attempts: Iterable[Any]) -> int:
    return sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in attempts)


# ---------------------------------------------------------------------------------------------- create_app

_KEYLESS = (
    "the gateway is keyless: everyone who can reach it makes calls at your expense. Behind a proxy, such as "
    "nginx or a tunnel, that is everyone who can reach the proxy. To serve only the owners of keys, unset "
    "keyless and run: fastroute keys create NAME"
)
_NO_KEYS = (
    f"the gateway has no keys, so it refuses all calls until {DEFAULT_FILE} exists in its working directory; "
    "fastroute keys create NAME makes it ([gateway] keyless = true serves everyone without keys)"
)

_gateways: weakref.WeakSet[Gateway] = weakref.WeakSet()


def _after_fork() -> None:
    for gateway in list(_gateways):
        gateway.after_fork()


forks.in_child(_after_fork)


def create_app(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
    client: Client | None = None,
    *,
    keys: str | os.PathLike[str] | None = None,
    pepper_env: str | None = None,
    keyless: bool = False,
    metrics: bool = True,
) -> Gateway:
    """Makes the gateway as a WSGI app, for gunicorn, uWSGI, waitress, or to be mounted in another app.

    Args:
        config: as for `fastroute.Client`.
        client: a client to use instead of ``config``; the caller closes it.
        keys: the file of caller keys that ``fastroute keys`` makes. Default: ``fastroute-keys.db`` in the
            working directory, as soon as it exists.
        pepper_env: the environment variable with the keys' pepper, if it is not in ``KEYS.pepper``.
        keyless: serve everyone without keys, as ``[gateway] keyless`` does. Without it and without keys, all
            calls are refused, except those of this very process, until the key file exists.
        metrics: whether to serve ``/metrics``.

    Raises:
        ConfigError: the configuration or the key file is invalid.
    """
    if client is not None and config is not None:
        raise errors.ConfigError("create_app: config and client are both given; give one of them")
    if keys is None and os.path.lexists(DEFAULT_FILE):
        keys = DEFAULT_FILE
    if keys is None and pepper_env is not None:
        raise errors.ConfigError("create_app: pepper_env is given without keys; give the key file too")
    file = None if keys is None else KeyFile(keys, pepper_env=pepper_env)
    if file is not None:
        file.read()  # an invalid file is an error before the client starts anything
    made = Client(config, default_state="machine") if client is None else client
    try:
        if file is not None and (keyless or made.config.gateway.keyless):
            raise errors.ConfigError(
                f"gateway.keyless: is set, but there are keys in {file.path}; remove that file to serve "
                "everyone, or unset keyless to serve the owners of keys"
            )
        app = Gateway(made, file, keyless=keyless, metrics=metrics)
        if app.keyless:
            notice(_KEYLESS)
        elif not app.has_keys:
            notice(_NO_KEYS)
        return app
    except BaseException:
        if client is None:
            made.close()
        raise


__all__ = ["Gateway", "create_app"]
