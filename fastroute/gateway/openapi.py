"""The OpenAPI document of the gateway: paths, responses and security.

The request's schema is the one of `request_schema.py`, by which requests are checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastroute import __version__

from .refusals import MOST_HOURS
from .request_schema import COMPONENTS, Json, request_with

_TEXT: Json = {"type": "string"}
_IN_NO_ID = str.maketrans("", "", "/{}")
_NUMBER: Json = {"type": ["number", "null"]}


def _of(description: str, schema: Json, headers: Json | None = None, kind: str = "application/json") -> Json:
    found: Json = {"description": description, "content": {kind: {"schema": schema}}}
    if headers:
        found["headers"] = headers
    return found


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_RETRY: Json = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ALLOW: Json = {"Allow": {"description": "The allowed method.", "schema": _TEXT}}


def _errors(*statuses: int) -> Json:
    meanings: dict[int, tuple[str, Json]] = {
        400: ("The request is invalid; `param` names the field.", {}),
        401: ("The key is missing or invalid.", {"WWW-Authenticate": {"schema": _TEXT}}),
        403: ("The key does not permit this.", {}),
        404: ("The model is unknown.", {}),
        405: ("The method is not allowed.", _ALLOW),
        408: ("The body or the provider took too long.", {}),
        409: ("The provider reports a conflict with another request.", {}),
        411: ("Content-Length is missing.", {}),
        413: ("The body or the request is too large.", {}),
        415: ("The body is not application/json, or is compressed.", {}),
        422: ("The provider cannot process the request.", {}),
        429: ("A limit or a budget is reached.", _RETRY),
        500: ("The gateway failed.", {}),
        502: ("The provider failed.", {}),
        503: ("No endpoint can serve the request now.", _RETRY),
        504: ("The request was not completed within its deadline.", {}),
    }
    return {
        str(status): _of(meanings[status][0], _ref("Error"), meanings[status][1] or None)
        for status in statuses
    }


def _object(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


_ANSWERS: dict[str, Json] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "message",
                "type",
                "param",
                "code",
            )
        },
        "error",
    ),
    "Completion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": _TEXT,
            "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
            "usage": {"type": ["object", "null"]},
        },
        "id",
        "object",
        "created",
        "model",
        "choices",
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "pricing": {
                "description": "US dollars per million tokens; null is unknown.",
                **_object(dict.fromkeys(("input", "output", "cached_input"), _NUMBER)),
            },
            "context_window": {"description": "Tokens.", "type": ["integer", "null"]},
            "max_output_tokens": {"description": "Tokens.", "type": ["integer", "null"]},
            "capabilities": {"type": "array", "items": _TEXT},
            "p95_s": {"description": "Measured 95th percentile of the latency, seconds.", **_NUMBER},
        },
        "id",
        "object",
        "created",
        "owned_by",
    ),
    "Models": _object(
        {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}, "object", "data"
    ),
    "Health": _object({"status": {"enum": ["ok", "unavailable"]}}, "status"),
    "Stats": _object(
        {
            "time": {"type": "number"},
            "range_s": {"description": "Seconds that sums and latencies are of.", "type": "number"},
            "totals": {"type": "object"},
            "refused": {"description": "Refused calls of the range by reason.", "type": "object"},
            **{
                name: {"type": "array", "items": {"type": "object"}}
                for name in ("budgets", "models", "classes", "latency", "endpoints", "recent")
            },
        },
        "time",
        "totals",
        "budgets",
        "models",
        "classes",
        "latency",
        "endpoints",
        "recent",
    ),
}

_ROUTED: Json = {
    f"x-fastroute-{name}": {"description": text, "schema": _TEXT}
    for name, text in {
        "model": "The model that served the request.",
        "endpoint": "The endpoint that served it.",
        "class": "The class of the request.",
        "tier": "The tier that the model was chosen from.",
        "cost": "US dollars; for a stream in a comment before its last event.",
        "attempts": "Requests sent to providers.",
        "time": "Seconds; for a stream in a comment before its last event.",
        "cached": "true if the response came from the cache.",
    }.items()
}
_COMMON = (405, 500)


# Other names of the same paths: for clients whose base URL has no /v1, and for probes.
_ALIASES = {
    "/chat/completions": "/v1/chat/completions",
    "/models": "/v1/models",
    "/models/{id}": "/v1/models/{id}",
    "/health": "/health/ready",
    "/healthz": "/health/ready",
    "/readyz": "/health/ready",
    "/livez": "/health/live",
}


def document(*, keys: bool, metrics: bool, parameters: Iterable[str] = ()) -> Json:
    """The document, for a gateway with or without keys and metrics.

    Args:
        parameters: further parameters that a request may have.
    """
    guarded = (401, 403, 429, 503) if keys else (403,)
    caller: list[Json] = [{"key": []}] if keys else []
    paths: Json = {
        "/v1/chat/completions": {
            "post": {
                "operationId": "createChatCompletion",
                "summary": "Routes one chat completion.",
                "security": caller,
                "parameters": [
                    {
                        "name": "x-fastroute-route",
                        "in": "header",
                        "description": "The routing options as JSON, if they are not in the body.",
                        "required": False,
                        "content": {"application/json": {"schema": _ref("Route")}},
                    }
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _ref("Request")}},
                },
                "responses": {
                    "200": {
                        "description": "The completion, or its events if `stream` is true.",
                        "headers": _ROUTED,
                        "content": {
                            "application/json": {"schema": _ref("Completion")},
                            "text/event-stream": {"schema": _TEXT},
                        },
                    },
                    **_errors(400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 422, 429, 500, 502, 503, 504),
                },
            }
        },
        "/v1/models": {
            "get": {
                "operationId": "listModels",
                "summary": "Lists the models, the tiers and auto, as far as the key may use them.",
                "security": caller,
                "responses": {
                    "200": _of("The models.", _ref("Models")),
                    **_errors(*guarded, *_COMMON),
                },
            }
        },
        "/v1/models/{id}": {
            "get": {
                "operationId": "getModel",
                "summary": "One model of the list.",
                "security": caller,
                "parameters": [
                    {
                        "name": "id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "minLength": 1},
                    }
                ],
                "responses": {"200": _of("The model.", _ref("Model")), **_errors(*guarded, 404, *_COMMON)},
            }
        },
        "/health/live": _health("live", "Whether the process responds."),
        "/health/ready": _health("ready", "Whether an endpoint can take a call now."),
        "/openapi.json": {
            "get": {
                "operationId": "getDocument",
                "summary": "This document.",
                "security": [],
                "responses": {"200": _of("The document.", {"type": "object"}), **_errors(*_COMMON)},
            }
        },
        "/admin/stats.json": {
            "get": {
                "operationId": "getStats",
                "summary": "Spending, traffic, latencies, breakers, limits and the latest calls.",
                "security": [{"key": []}, {"password": []}] if keys else [],
                "parameters": [
                    {
                        "name": "hours",
                        "in": "query",
                        "required": False,
                        "schema": {"type": "integer", "minimum": 1, "maximum": MOST_HOURS, "default": 1},
                    }
                ],
                "responses": {"200": _of("The figures.", _ref("Stats")), **_errors(400, *guarded, *_COMMON)},
            }
        },
    }
    for path, kind, name in (
        ("/admin", "text/html", "Page"),
        ("/admin/dashboard.css", "text/css", "Style"),
        ("/admin/dashboard.js", "text/javascript", "Script"),
        ("/admin/figures.js", "text/javascript", "Formatting"),
    ):
        paths[path] = {
            "get": {
                "operationId": f"getDashboard{name}",
                "summary": f"The dashboard's {name.lower()}, without figures.",
                "security": [],
                "responses": {"200": _of("The file.", _TEXT, kind=kind), **_errors(*_COMMON)},
            }
        }
    for alias, path in _ALIASES.items():
        operations = {
            method: {
                **operation,
                "operationId": operation["operationId"] + alias.title().translate(_IN_NO_ID),
                "summary": f"As {path}.",
            }
            for method, operation in paths[path].items()
        }
        paths[alias] = operations
    if metrics:
        paths["/metrics"] = {
            "get": {
                "operationId": "getMetrics",
                "summary": "Counts, breakers and limits of the endpoints, for Prometheus.",
                "security": [],
                "responses": {
                    "200": _of("The Prometheus text format.", _TEXT, kind="text/plain"),
                    **_errors(*_COMMON),
                },
            }
        }
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastroute gateway",
            "version": __version__,
            "description": "OpenAI's chat completions, routed. `model: auto` chooses the model.",
        },
        "paths": paths,
        "components": {"schemas": {**COMPONENTS, "Request": request_with(parameters), **_ANSWERS}},
    }
    if keys:
        found["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic"},
        }
    return found


def _health(name: str, summary: str) -> Json:
    return {
        "get": {
            "operationId": f"health_{name}",
            "summary": summary,
            "security": [],
            "responses": {
                "200": _of("Ok.", _ref("Health")),
                "503": _of("No endpoint is available now.", _ref("Health"), _RETRY),
                **_errors(*_COMMON),
            },
        }
    }


__all__ = ["document"]
