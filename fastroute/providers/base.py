"""What a wire format is, and the registry of formats by name.

A format is one stateless object that turns a request into bytes, and bytes into a completion, a chunk or a
classified error. It does no I/O and reads a clock only for the time of an answer. Sending is in `transport/`,
retries are in `calls/dispatch.py`. The decoder of one stream, the only part with state, is in `decoder.py`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from attrs import field, frozen

from fastroute import errors, types

from . import jsontext
from .decoder import StreamDecoder
from .history import OWN_FIELDS


class Key(Protocol):
    """A secret that only `reveal` returns; `str` and `repr` must not show it."""

    def reveal(self) -> str: ...


@frozen(kw_only=True)
class Target:
    """One endpoint as a format sees it.

    Attributes:
        endpoint: the endpoint's name in reports and errors.
        provider: the provider's name in the configuration.
        model: the model's name in requests to fastroute.
        upstream: the model's name in requests to the provider.
        base_url: the base address of the provider's API, such as ``https://api.openai.com/v1``.
        key: the API key, or None for a server without keys.
        headers: further headers from the configuration; they replace the format's own of the same name.
        max_output: the model's limit of output tokens; larger limits in a request are lowered to it.
        api_version: the version of the provider's API, for formats that send one in the address.
        include_usage: whether a stream may be asked to report its usage.
        output_limit: the name of the output limit, where the endpoint takes one of OpenAI's two names only.
        developer_role: the role of a developer's messages.
        refused_fields: fields of messages that the endpoint does not take.
        call_ids: the form of tool calls' ids that it demands, as in `history.call_id`; empty for any.
        max_values: the most values in the JSON of an answer, or of one event of a stream.

    ``max_output`` and those from ``include_usage`` to ``call_ids`` are changed (``attrs.evolve``) when the
    endpoint has refused one spelling of a request and takes another: see ``respell`` of
    `errors.APIStatusError`.
    """

    endpoint: str
    provider: str
    model: str
    upstream: str
    base_url: str
    key: Key | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    max_output: int | None = None
    api_version: str | None = None
    include_usage: bool = True
    output_limit: str | None = None
    developer_role: str = "developer"
    refused_fields: frozenset[str] = OWN_FIELDS
    call_ids: str = ""
    max_values: int = jsontext.MAX_VALUES


class Format(Protocol):
    """One wire format. Stateless, so one object serves all threads and all endpoints.

    Every method raises only errors of `fastroute.errors`. No error contains a key or a prompt.
    """

    @property
    def name(self) -> str:
        """The format's name in the configuration: ``[providers.X] format = "name"``."""

    def url(self, target: Target, stream: bool) -> str:
        """The address of the request.

        Raises:
            ConfigError: if the target cannot be part of an address.
        """

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        """All headers of the endpoint, including the key; the same for every request to it."""

    def encode(self, request: types.Request, target: Target) -> bytes:
        """The request's body.

        Raises:
            BadRequestError: if the request cannot be written as JSON; the message names the place.
        """

    def decode(self, body: bytes, request: types.Request, target: Target) -> types.Completion:
        """The completion in the body of a 200 answer.

        Raises:
            APIStatusError: if the body is an error despite the status; classified by its code or type.
            EmptyResponse: if the body is empty or has no choices.
            UpstreamTruncated: if its JSON stops in the middle.
            UpstreamProtocolError: if it is anything else.
        """

    def decode_error(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target | None = None
    ) -> errors.APIError:
        """The error for an answer with any status but 200; returned, not raised. Never raises.

        ``body`` may be cut short (64 KiB are enough). With ``target`` its key is redacted wherever the
        provider repeated it.
        """

    def stream(self, request: types.Request, target: Target) -> StreamDecoder:
        """A decoder for the events of one streamed answer."""


# ------------------------------------------------------------------------------------- what an answer is


def check_content_type(headers: Mapping[str, str], stream: bool) -> Literal["json", "events"]:
    """How to read the body of a 200 answer: as one JSON document, or as server-sent events.

    A streamed request may be answered with JSON: read it whole and pass it to `Format.decode`, which raises
    if it is an error. An absent or vague type is read as what was requested, since the decoders check the
    content anyway.

    Args:
        headers: with names in lower case, as the transport returns them.
        stream: whether a stream was requested.

    Raises:
        UpstreamProtocolError: for a type that no answer has, such as the web page of a login or a proxy.
    """
    raw: Any = headers.get("content-type")
    if raw == "application/json":
        return "json"
    kind = raw.partition(";")[0].strip().lower() if isinstance(raw, str) else ""
    if kind == "text/event-stream":
        if stream:
            return "events"
    elif kind == "application/json" or kind.endswith("+json"):
        return "json"
    elif kind in _VAGUE_TYPES:
        return "events" if stream else "json"
    shown = kind if _MEDIA_TYPE.fullmatch(kind) else "not a media type"
    wanted = "text/event-stream" if stream else "application/json"
    raise errors.UpstreamProtocolError(
        f"the answer's Content-Type is {shown}; expected {wanted}", maybe_billed=True
    )


_VAGUE_TYPES = frozenset(
    {"", "text/plain", "application/octet-stream", "binary/octet-stream", "application/x-ndjson"}
)
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60}")


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The provider's id of a request, under any of the known header names; None if absent or malformed.

    ``headers`` must ignore case, as the transport's do, or have names in lower case.
    """
    for name in _REQUEST_IDS:
        found = headers.get(name)
        if found is not None:
            return found if isinstance(found, str) and _REQUEST_ID.fullmatch(found) else None
    return None


_REQUEST_IDS = ("x-request-id", "request-id", "x-ms-request-id", "apim-request-id")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


# ---------------------------------------------------------------------------------------------- registry

# Name to module for the formats that come with the package; imported when first used.
_BUILT_IN = {"openai": "openai", "anthropic": "anthropic", "gemini": "gemini", "azure": "azure"}
registered: dict[str, Format] = {}
"""Formats by name: those that `register` added, and those of the package that have been used."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def register(format: Format, *, replace: bool = False) -> None:
    """Registers a format under its name.

    Thread safety: may be called from any thread. Running calls keep the format they started with.

    Raises:
        ValueError: if its name is not lower-case letters, digits, ``-`` and ``_``, or is taken and
            ``replace`` is not set.
        TypeError: if it lacks one of the methods of `Format`.
    """
    missing = [part for part in _PARTS if not hasattr(format, part)]
    if missing:
        raise TypeError(
            f"format: {type(format).__name__} is not a wire format; it lacks {', '.join(missing)}"
        )
    name = format.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"format.name: {name!r} is invalid; use lower-case letters, digits, - and _")
    if not replace and (name in _BUILT_IN or registered.get(name, format) is not format):
        raise ValueError(f"format.name: {name!r} is already registered; pass replace=True to replace it")
    registered[name] = format


_PARTS = ("name", "url", "headers", "encode", "decode", "decode_error", "stream")


def get(name: str) -> Format:
    """The format of that name.

    Raises:
        ConfigError: if the name is unknown; the message lists the known ones.
    """
    found = registered.get(name)
    if found is None:
        module = _BUILT_IN.get(name)
        if module is None:
            raise errors.ConfigError(f"format: unknown format {name!r}; use one of {', '.join(names())}")
        built_in: Format = importlib.import_module("." + module, __package__).FORMAT
        found = registered.setdefault(name, built_in)
    return found


def names() -> tuple[str, ...]:
    """The names of all known formats, in alphabetical order."""
    return tuple(sorted({*_BUILT_IN, *registered}))


__all__ = [
    "Format",
    "Key",
    "StreamDecoder",
    "Target",
    "check_content_type",
    "get",
    "names",
    "register",
    "request_id_of",
]
