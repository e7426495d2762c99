"""Checks the arguments of a call, and reads those that only the OpenAI SDK's callers write.

A call whose parameters are all in `PLAIN` needs nothing of this. Anything else is read by `read`: the SDK's
marks for "not given", ``extra_body``, ``extra_headers``, ``extra_query``, ``max_retries``, pydantic models,
and mistakes. The parameters themselves are in `parameters.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from attrs import evolve, fields_dict

from fastroute.config.messages import did_you_mean, near, quoted
from fastroute.config.validators import InvalidValue, extra_headers
from fastroute.errors import BadRequestError
from fastroute.quality import Validator
from fastroute.types import PRIORITIES, Extras, RouteOptions

from . import parsing
from .parameters import LIMITS, PARAMETERS

ROUTE_WORDS = tuple(fields_dict(RouteOptions))

PLAIN = frozenset((name, type_) for name, kind in PARAMETERS.items() for type_ in (*kind.types, type(None)))
"""The pairs of a parameter's name and the type of its value that need no further look."""
CONTENTS = frozenset({str, type(None)})
"""The types of a message's content that need no further look."""

# Names that code for other libraries passes to a call, and what to write instead.
_ELSEWHERE = {
    "api_key": "keys belong to the configuration: set api_key_env of the provider",
    "api_base": "set base_url of the provider in the configuration",
    "base_url": "set base_url of the provider in the configuration",
    "api_type": "set format of the provider in the configuration",
    "api_version": "set api_version of the provider in the configuration",
    "default_headers": "write extra_headers={...}, or set headers of the provider in the configuration",
    "headers": "write extra_headers={...}",
    "engine": "write model=",
    "deployment_id": "write model=, and set upstream of the endpoint in the configuration",
    "request_timeout": "write timeout=",
    "num_retries": "write max_retries=",
    "fallbacks": "set fallbacks of the model in the configuration",
}
_BODY_WORDS = ("messages", "model", "stream")
# The parameters of addresses in which providers take their keys.
_SECRET_QUERIES = frozenset(
    {"key", "api_key", "api-key", "apikey", "access_token", "subscription-key", "token"}
)

_warned: set[str] = set()
_MOST_WARNED = 100  # names come from callers, so their number is bounded


def is_absent(value: Any) -> bool:
    """Whether it is the OpenAI SDK's ``NOT_GIVEN`` or ``omit``, which mean that an argument is left out.

    They are recognised by their classes' names: importing the SDK for this would take seconds.
    """
    return type(value).__name__ in ("NotGiven", "Omit") and not value


def read(
    params: Mapping[str, Any], route: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Mapping[str, Any] | None, Extras | None]:
    """Reads parameters of which one is unusual.

    Args:
        params: all arguments of a call that are not arguments of fastroute's own.
        route: the routing words; ``extra_body`` may have further ones under ``route``.

    Returns:
        The parameters of the body, the routing words, and what the call asks for beyond its body.

    Raises:
        BadRequestError: for a routing word or another name that has no effect here, and for a value of the
            wrong type.
    """
    given = {name: value for name, value in params.items() if not is_absent(value)}
    body = given.pop("extra_body", None)
    headers = given.pop("extra_headers", None)
    query = given.pop("extra_query", None)
    retries = given.pop("max_retries", None)
    model = given.get("response_format")
    if parsing.is_model(model):
        given["response_format"] = parsing.response_format(model)
    else:
        model = None
    for name, value in given.items():
        _check_parameter(name, value)
    if body is not None:
        given, route = _with_body(given, body, route)
    if headers is None and query is None and retries is None and model is None:
        return given, route, None
    return given, route, Extras(_headers(headers), _query(query), _retries(retries), model)


def _check_parameter(name: str, value: Any) -> None:
    if name in ROUTE_WORDS:
        raise BadRequestError(
            f'{name}: is a routing word and not a parameter; write route={{"{name}": ...}}', param=name
        )
    if name in _ELSEWHERE:
        raise BadRequestError(f"{name}: is not a parameter of a call; {_ELSEWHERE[name]}", param=name)
    kind = PARAMETERS.get(name)
    if kind is None:
        _warn_of(name)
    elif value is not None and not kind.allows(value):
        raise BadRequestError(f"{name}: must be {kind.words}, not {_type_of(value)}", param=name)


def _warn_of(name: str) -> None:
    """Warns once of a parameter that looks like a misspelt one. It is sent: only its provider knows it."""
    if name in _warned or len(_warned) >= _MOST_WARNED:
        return
    meant = near(name, (*PARAMETERS, *_OWN_WORDS), 1, 0.75)
    if not meant:
        return
    _warned.add(name)
    warnings.warn(
        f"{quoted(name)}: is not a known parameter (did you mean {meant[0]}?); it is sent as it is. "
        "A parameter that only your provider knows belongs into extra_body={...}",
        UserWarning,
        # The caller of `create`, through `read` and the client.
        stacklevel=6,
    )


_OWN_WORDS = (
    "extra_body",
    "extra_headers",
    "extra_query",
    "max_retries",
    "timeout",
    "stream",
    "route",
    "model",
)


def _with_body(
    given: dict[str, Any], body: Any, route: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The parameters with those of ``extra_body`` over them, and the routing words."""
    if not isinstance(body, Mapping):
        raise BadRequestError(f"extra_body: must be a mapping of parameters, not {_type_of(body)}")
    for name, value in body.items():
        if not isinstance(name, str):
            raise BadRequestError(f"extra_body: must have strings as keys, not {_type_of(name)}")
        if name in _BODY_WORDS:
            raise BadRequestError(f"extra_body.{name}: write {name}= in the call itself")
        if is_absent(value):
            given.pop(name, None)
        elif name == "route" and isinstance(value, Mapping):
            # As the drop-ins take it. Code that was moved from them must not lose its limits.
            route = value if route is None else {**value, **route}
        else:
            # Passed on unchecked: that is what it is for. Only the limits are calculated with.
            if name in LIMITS:
                _check_parameter(name, value)
            given[name] = value
    return given, route


def _headers(value: Any) -> Mapping[str, str | None]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequestError(f"extra_headers: must be a mapping of strings, not {_type_of(value)}")
    sent = {name: item for name, item in value.items() if not is_absent(item)}
    removed = {name: "" for name in value if name not in sent}
    try:
        extra_headers(None, SimpleNamespace(name="extra_headers"), {**sent, **removed})
    except InvalidValue as error:
        # A path names the header and never its value, which may be a secret.
        raise BadRequestError(f"{error.path}: {error.problem}", param="extra_headers") from None
    return {**sent, **dict.fromkeys(removed)}


def _query(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequestError(f"extra_query: must be a mapping, not {_type_of(value)}")
    found = {}
    for name, item in value.items():
        path = f"extra_query.{quoted(name)}"
        if is_absent(item):
            continue
        if not isinstance(name, str) or not name:
            raise BadRequestError("extra_query: must have strings as keys", param="extra_query")
        if name.lower() in _SECRET_QUERIES:
            raise BadRequestError(
                f"{path}: this carries a key; use api_key_env or api_key_file of the provider instead",
                param="extra_query",
            )
        items = item if isinstance(item, (list, tuple)) else (item,)
        if not all(isinstance(each, (str, int, float)) for each in items):
            raise BadRequestError(
                f"{path}: must be a string, a number or a list of them", param="extra_query"
            )
        found[name] = tuple(_spelled(each) for each in items)
    return found


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _retries(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        shown = value if isinstance(value, int) else _type_of(value)
        raise BadRequestError(f"max_retries: must be an integer, 0 or more, not {shown}", param="max_retries")
    return value


# ------------------------------------------------------------------------------------------------ messages


def checked_messages(messages: Any) -> Sequence[Mapping[str, Any]]:
    """The messages as mappings; some may be objects, such as the message of an earlier answer.

    Raises:
        BadRequestError: with the place of what is wrong, and never with the text of a message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise BadRequestError(
            'messages: must be a list of mappings with role and content, like [{"role": "user", "content": '
            f'"Hello"}}], not {_type_of(messages)}',
            param="messages",
        )
    if not messages:
        raise BadRequestError("messages: must not be empty", param="messages")
    found: list[Mapping[str, Any]] = []
    for place, message in enumerate(messages):
        path = f"messages[{place}]"
        if not isinstance(message, Mapping):
            to_dict = getattr(message, "to_dict", None)
            said = to_dict() if callable(to_dict) else None
            if not isinstance(said, Mapping):
                raise BadRequestError(
                    f"{path}: must be a mapping with role and content, not {_type_of(message)}",
                    param="messages",
                )
            message = said
        _check_message(path, message)
        found.append(message)
    return found


def _check_message(path: str, message: Mapping[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if "role" not in message:
        raise BadRequestError(
            f"{path}.role: is missing; must be system, developer, user, assistant or tool", param="messages"
        )
    if not isinstance(role, str):
        raise BadRequestError(
            f"{path}.role: must be system, developer, user, assistant or tool, not {_type_of(role)}",
            param="messages",
        )
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, (list, tuple)):
        raise BadRequestError(
            f"{path}.content: must be a string or a list of parts, not {_type_of(content)}", param="messages"
        )
    for number, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise BadRequestError(
                f'{path}.content[{number}]: must be a part like {{"type": "text", "text": "Hello"}}, not '
                f"{_type_of(part)}",
                param="messages",
            )


# ------------------------------------------------------------------------------------------- routing words


def route_options(words: Mapping[str, Any]) -> RouteOptions:
    """The routing words as a value; raises BadRequestError for an invalid one."""
    for name in words:
        if name not in ROUTE_WORDS:
            meant = did_you_mean(name, ROUTE_WORDS) if isinstance(name, str) else ""
            raise BadRequestError(
                f"route.{quoted(name)}: unknown routing word{meant}; use one of {', '.join(ROUTE_WORDS)}"
            )
    options = RouteOptions(**words)
    options = evolve(options, tags=checked_tags("route.tags", options.tags))
    if options.tier is not None and not isinstance(options.tier, str):
        raise BadRequestError(f"route.tier: must be the name of a tier, not {_type_of(options.tier)}")
    for name in ("cache", "force_premium"):
        if not isinstance(getattr(options, name), bool):
            raise BadRequestError(
                f"route.{name}: must be True or False, not {_type_of(getattr(options, name))}"
            )
    if options.hedge is not None and not isinstance(options.hedge, bool):
        raise BadRequestError(f"route.hedge: must be True or False, not {_type_of(options.hedge)}")
    quality = options.quality
    if quality is not None and number("route.quality", quality) > 1:
        raise BadRequestError(f"route.quality: must be a number from 0 to 1, not {quality!r}")
    for name in ("max_cost", "max_latency"):
        value = getattr(options, name)
        if value is not None:
            number(f"route.{name}", value)
    if options.deadline is not None:
        seconds("route.deadline", options.deadline)
    if not isinstance(options.priority, str) or options.priority not in PRIORITIES:
        raise BadRequestError(f"route.priority: must be one of {', '.join(PRIORITIES)}")
    if options.validate is not None:
        Validator.of(options.validate)
    return options


def checked_route(route: Any) -> Mapping[str, Any]:
    """The routing words as the caller wrote them; raises BadRequestError unless they are a mapping."""
    if not isinstance(route, Mapping):
        raise BadRequestError(
            f'route: must be a mapping of routing words, like {{"tier": "premium"}}, not {_type_of(route)}'
        )
    return route


def checked_tags(path: str, tags: Any) -> dict[str, str]:
    """A copy of the tags; raises BadRequestError unless they map strings to strings."""
    if not isinstance(tags, Mapping):
        raise BadRequestError(
            f'{path}: must be a mapping of strings to strings, like {{"team": "search"}}, not '
            f"{_type_of(tags)}"
        )
    for name, value in tags.items():
        if not isinstance(name, str):
            raise BadRequestError(f"{path}: must have strings as names, not {_type_of(name)}")
        if not isinstance(value, str):
            raise BadRequestError(
                f"{path}.{quoted(name)}: must be a string, not {_type_of(value)}; write str(...) around it"
            )
    return dict(tags)


# ------------------------------------------------------------------------------------------------- numbers


def number(path: str, value: Any) -> float:
    """A number that is 0 or more; raises BadRequestError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequestError(f"{path}: must be a number that is not negative, not {_type_of(value)}")
    if not 0 <= value < float("inf"):
        raise BadRequestError(f"{path}: must be a number that is not negative, not {value!r}")
    return float(value)


def seconds(path: str, value: Any) -> float:
    """A time above 0 in seconds; raises BadRequestError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequestError(f"{path}: must be a number of seconds above 0, not {_type_of(value)}")
    if not 0 < value < float("inf"):
        raise BadRequestError(f"{path}: must be a number of seconds above 0, not {value!r}")
    return float(value)


def time_limit(value: Any) -> float | None:
    """The seconds in ``timeout=``: a number, or the ``Timeout`` of httpx and the OpenAI SDK.

    Of a ``Timeout`` the limit of a read counts, which is what the SDK's number sets too.

    Returns:
        None for no limit of the call's own.
    """
    if is_absent(value):
        return None
    # The class is that of the httpx which the caller's SDK is built on, so it is known by its fields.
    if hasattr(value, "read") and hasattr(value, "connect") and hasattr(value, "pool"):
        value = value.read
        if value is None:
            return None
    return seconds("timeout", value)


def _type_of(value: Any) -> str:
    return type(value).__name__
