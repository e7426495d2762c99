"""What a wire format is, and the registry of formats by name.

A format is one stateless object that turns a request into bytes and bytes into a completion, a chunk or a
classified error. It does no I/O, and reads a clock only to say when an answer came; where the bytes go and
when to try again is decided by `transport.py` and `dispatch.py`. The part of a format that has state, the
decoder of one stream, is in `stream.py`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from attrs import field, frozen

from fastroute import errors, types

from .decoder import StreamDecoder


class Key(Protocol):
    """A secret that shows itself only when asked to."""

    def reveal(self) -> str: ...


@frozen
class Target:
    """One endpoint as a format sees it.

    Attributes:
        endpoint: its name in reports and errors.
        provider: the provider's name in the configuration.
        model: what callers ask for.
        upstream: what the provider calls it.
        base_url: where the provider's API begins, such as ``https://api.openai.com/v1``.
        key: the API key, or None for a server that wants none.
        headers: further headers from the configuration; they replace the format's own of the same name.
        max_output: the most output tokens the model can give; larger wishes are lowered to it.
        include_usage: whether a stream may be asked to report its usage; set to False (``attrs.evolve``)
            once the provider has refused that, see `rejects_stream_options`.
        api_version: the version of the provider's API, for formats whose addresses name one.
    """

    endpoint: str
    provider: str
    model: str
    upstream: str
    base_url: str
    key: Key | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    max_output: int | None = None
    include_usage: bool = True
    api_version: str | None = None


class Format(Protocol):
    """One wire format. Stateless, so one object serves all threads and all endpoints.

    Every method raises only errors of `fastroute.errors`, with neither a key nor a prompt in them.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it: ``[providers.X] format = "name"``."""

    def url(self, target: Target, stream: bool) -> str:
        """Where the request goes."""

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        """All headers of the endpoint, the key among them; the same for every request to it.

        Raises:
            ConfigError: if a name or value cannot be sent, or would break the request's framing.
        """

    def encode(self, request: types.Request, target: Target) -> bytes:
        """The request's body.

        Raises:
            BadRequestError: if the request cannot be written as JSON; the message names the place.
        """

    def decode(self, body: bytes, request: types.Request, target: Target) -> types.Completion:
        """The completion in the body of a 200 answer.

        Raises:
            APIStatusError: if the body is an error after all; classified by the error itself.
            EmptyResponse: if it holds no choices, or nothing.
            UpstreamTruncated: if its JSON stops in the middle.
            UpstreamProtocolError: if it is anything else.
        """

    def decode_error(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target | None = None
    ) -> errors.APIError:
        """The error that any answer but 200 stands for; returned, not raised. Never raises.

        ``body`` may be cut (64 KiB are plenty). With ``target`` its key is blotted out wherever the
        provider may have repeated it.
        """

    def stream(self, request: types.Request, target: Target) -> StreamDecoder:
        """A decoder for the events of one streamed answer."""


# ------------------------------------------------------------------------------------- what an answer is


def check_content_type(headers: Mapping[str, str], stream: bool) -> Literal["json", "events"]:
    """How to read the body of a 200 answer: as one JSON document, or as server-sent events.

    A streamed request may be answered with JSON: read it whole and hand it to `Format.decode`, which
    raises what it stands for if it is an error. An absent or vague type is taken for what was asked,
    since the decoders check the content anyway.

    Args:
        headers: their names in lower case, as the transport's are.
        stream: whether a stream was asked for.

    Raises:
        UpstreamProtocolError: for what cannot be an answer, such as the web page of a login or a proxy.
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
    shown = kind if _MEDIA_TYPE.fullmatch(kind) else "something unnamed"
    raise errors.UpstreamProtocolError(
        f"the answer is {shown}, not {'text/event-stream' if stream else 'application/json'}",
        maybe_billed=True,
    )


_VAGUE_TYPES = frozenset(
    {"", "text/plain", "application/octet-stream", "binary/octet-stream", "application/x-ndjson"}
)
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60}")


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The provider's own id of a request, under whatever name it sends it; None where it is no sane one.

    ``headers`` must be looked up ignoring case, as the transport's are, or have names in lower case.
    """
    for name in _REQUEST_IDS:
        found = headers.get(name)
        if found is not None:
            return found if isinstance(found, str) and _REQUEST_ID.fullmatch(found) else None
    return None


_REQUEST_IDS = ("x-request-id", "request-id", "x-ms-request-id", "apim-request-id")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


def rejects_stream_options(error: BaseException) -> bool:
    """Whether the provider refused the request because of ``stream_options``.

    The same request may then be sent once more with ``include_usage=False`` in its `Target`; formats mark
    such an error by ``param == "stream_options"``, whatever way the provider put it.
    """
    return (
        isinstance(error, (errors.BadRequestError, errors.UnprocessableEntityError))
        and error.param == "stream_options"
    )


# ---------------------------------------------------------------------------------------------- registry

# Name to module for the formats that come with the package: imported when first asked for.
_BUILT_IN = {"openai": "openai", "anthropic": "anthropic", "gemini": "gemini", "azure": "azure"}
_registered: dict[str, Format] = {}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def register(format: Format, *, replace: bool = False) -> None:
    """Makes a format known under its name.

    Thread safety: may be called from any thread; calls under way keep the format they began with.

    Raises:
        ValueError: if its name is not lower-case letters, digits, ``-`` and ``_``, or is taken and
            ``replace`` is not set.
        TypeError: if it lacks one of the methods of `Format`.
    """
    missing = [part for part in _PARTS if not hasattr(format, part)]
    if missing:
        raise TypeError(f"{type(format).__name__} is no wire format: it lacks {', '.join(missing)}")
    name = format.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a format's name is lower-case letters, digits, - and _; {name!r} is not")
    if not replace and (name in _BUILT_IN or _registered.get(name, format) is not format):
        raise ValueError(
            f"the format {name!r} is known already; pass replace=True to put another in its place"
        )
    _registered[name] = format


_PARTS = ("name", "url", "headers", "encode", "decode", "decode_error", "stream")


def get(name: str) -> Format:
    """The format of that name.

    Raises:
        ConfigError: if there is none; the message lists those that there are.
    """
    found = _registered.get(name)
    if found is None:
        module = _BUILT_IN.get(name)
        if module is None:
            raise errors.ConfigError(f"format: {name!r} is not known; known are {', '.join(names())}")
        built_in: Format = importlib.import_module("." + module, __package__).FORMAT
        found = _registered.setdefault(name, built_in)
    return found


def names() -> tuple[str, ...]:
    """The names of all known formats, in alphabetical order."""
    return tuple(sorted({*_BUILT_IN, *_registered}))


__all__ = [
    "Format",
    "Key",
    "StreamDecoder",
    "Target",
    "check_content_type",
    "get",
    "names",
    "register",
    "rejects_stream_options",
    "request_id_of",
]
