"""The OpenAPI document of the gateway.

Owns paths, answers and who may; the request's form is `schema.py`'s, as it is checked.
"""

from __future__ import annotations

from fastroute import __version__

from .schema import COMPONENTS, Json

_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": ["number", "null"]}


def _of(description: str, schema: Json, headers: Json | None = None, kind: str = "application/json") -> Json:
    found: Json = {"description": description, "content": {kind: {"schema": schema}}}
    if headers:
        found["headers"] = headers
    return found


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_RETRY: Json = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ALLOW: Json = {"Allow": {"description": "What is known here.", "schema": _TEXT}}


def _errors(*statuses: int) -> Json:
    meanings: dict[int, tuple[str, Json]] = {
        400: ("The request is not one that can be passed on; `param` says where.", {}),
        401: ("No valid key.", {"WWW-Authenticate": {"schema": _TEXT}}),
        403: ("The key is not for this.", {}),
        404: ("There is no such model.", {}),
        405: ("Another method is wanted.", _ALLOW),
        408: ("The body, or the upstream, took too long.", {}),
        409: ("The upstream says that the request conflicts with another.", {}),
        411: ("A Content-Length is needed.", {}),
        413: ("The body, or what it asks for, is too large.", {}),
        415: ("Only application/json, not compressed.", {}),
        422: ("The upstream cannot process the request.", {}),
        429: ("A limit or a budget is reached.", _RETRY),
        500: ("The gateway failed.", {}),
        502: ("The upstream failed.", {}),
        503: ("No endpoint can serve this at present.", _RETRY),
        504: ("The time for the request is up.", {}),
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
        {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT},
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
            "totals": {"type": "object"},
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
        "model": "The model that answered.",
        "endpoint": "Where it was asked.",
        "class": "The class of the request.",
        "tier": "The tier it was chosen from.",
        "cost": "US dollars; not of a stream, which has cost nothing yet when its headers are sent.",
        "attempts": "Requests sent upstream.",
        "time": "Seconds, likewise not of a stream.",
        "cached": "true, if the answer came from the cache.",
    }.items()
}
_COMMON = (405, 500)


def document(*, keys: bool, metrics: bool) -> Json:
    """The document, for a gateway with or without keys and metrics."""
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
                        "description": "The routing words as JSON, where they are not in the body.",
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
                        "description": "The answer, or its events where `stream` is true.",
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
                "summary": "Lists what may be asked for: models, tiers and auto.",
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
                "summary": "One of them.",
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
        "/health/live": _health("Whether the process answers."),
        "/health/ready": _health("Whether an endpoint would take a call now."),
        "/health": _health("The same."),
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
                "summary": "Spending, traffic, latencies, breakers and limits, and the calls of late.",
                "security": [{"key": []}, {"password": []}] if keys else [],
                "responses": {"200": _of("The figures.", _ref("Stats")), **_errors(*guarded, *_COMMON)},
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
                "summary": f"The dashboard's {name.lower()}, which holds no figures.",
                "security": [],
                "responses": {"200": _of("The file.", _TEXT, kind=kind), **_errors(*_COMMON)},
            }
        }
    if metrics:
        paths["/metrics"] = {
            "get": {
                "operationId": "getMetrics",
                "summary": "Counts, breakers and limits of the endpoints, for Prometheus.",
                "security": [],
                "responses": {
                    "200": _of("Prometheus' text form.", _TEXT, kind="text/plain"),
                    **_errors(*_COMMON),
                },
            }
        }
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastroute gateway",
            "version": __version__,
            "description": "OpenAI's chat completions, routed. `model: auto` picks one by the request.",
        },
        "paths": paths,
        "components": {"schemas": {**COMPONENTS, **_ANSWERS}},
    }
    if keys:
        found["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic"},
        }
    return found


def _health(summary: str) -> Json:
    name = summary.split()[-1].strip(".").lower()
    return {
        "get": {
            "operationId": f"health_{name}",
            "summary": summary,
            "security": [],
            "responses": {
                "200": _of("It is well.", _ref("Health")),
                "503": _of("It cannot serve at present.", _ref("Health"), _RETRY),
                **_errors(*_COMMON),
            },
        }
    }


__all__ = ["document"]
