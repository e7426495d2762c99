"""A drop-in for the OpenAI SDK: HTTP clients that pass the SDK's requests to fastroute.

    openai.OpenAI(http_client=fastroute.integrations.openai.http_client(client))
    openai.AsyncOpenAI(http_client=fastroute.integrations.openai.http_async_client(client))

fastroute blocks the thread that calls it. The client for `openai.AsyncOpenAI` runs each call in a thread
(`async_transport.py`), so the program's event loop goes on. Both work with httpx and httpx2, on which
versions 2 and 3 of the SDK are built. Nothing is sent over a socket before the call to the provider.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from fastroute import errors
from fastroute.calls.stream import Stream
from fastroute.client import Client

from . import async_transport, drop_ins, wire_openai

if TYPE_CHECKING:
    # The SDK's names of the clients that it takes, whichever httpx it is built on.
    from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

_MODELS = "/models"


def http_client(client: Client, *, base: Any = None, httpx: ModuleType | None = None) -> DefaultHttpxClient:
    """An HTTP client for ``openai.OpenAI(http_client=...)`` that routes requests through a client.

    Chat completions are routed, and ``models.list`` and ``models.retrieve`` return the available models. All
    other requests go to ``base``; without one they are answered with a 404. The SDK's ``api_key`` and other
    headers are sent only to ``base``. Routing options are given as ``extra_body={"route": {...}}``.

    Errors are the SDK's own, and the SDK does not retry them, since fastroute already has. The SDK's
    ``timeout`` limits the whole call; without one the client's applies.

    Args:
        client: routes the calls; it is not closed with the SDK's client.
        base: a transport for all other requests, such as ``httpx2.HTTPTransport()``; closed with the result.
        httpx: the module to build on, httpx or httpx2; default: the one that the installed SDK is built on.

    Returns:
        An ``httpx.Client`` or ``httpx2.Client``.

    Raises:
        ModuleNotFoundError: if the SDK, or its httpx, is not installed.

    Thread safety: may be used from all threads.
    """
    module: Any = _sdk_httpx() if httpx is None else httpx
    # Without a time-out here the SDK has none by default, and the fastroute client's applies.
    made: DefaultHttpxClient = module.Client(
        transport=transport(client, base=base, httpx=module),
        timeout=None,
        follow_redirects=True,
        trust_env=False,
    )
    return made


def http_async_client(
    client: Client, *, base: Any = None, httpx: ModuleType | None = None, threads: int = 64
) -> DefaultAsyncHttpxClient:
    """As `http_client`, for ``openai.AsyncOpenAI(http_client=...)`` and LangChain's ``http_async_client``.

    Each call runs in a thread. A call that is cancelled is abandoned: the task goes on at once, and the call
    ends by itself in its thread, recorded and charged as it ends. A stream that is cancelled is closed.

    Args:
        client, base, httpx: as for `http_client`; ``base`` is still a transport that blocks, and is called in
            a thread too.
        threads: calls and reads of streams that run at the same time in one event loop; further ones wait.

    Returns:
        An ``httpx.AsyncClient`` or ``httpx2.AsyncClient``.

    Raises:
        ModuleNotFoundError: if the SDK, or its httpx, is not installed.
    """
    module: Any = _sdk_httpx() if httpx is None else httpx
    threaded = async_transport.transport_class(module)
    made: DefaultAsyncHttpxClient = module.AsyncClient(
        transport=threaded(transport(client, base=base, httpx=module), threads),
        timeout=None,
        follow_redirects=True,
        trust_env=False,
    )
    return made


def transport(client: Client, *, base: Any = None, httpx: ModuleType | None = None) -> Any:
    """Only the transport, for your own HTTP client; the arguments are those of `http_client`."""
    module = _sdk_httpx() if httpx is None else httpx
    return _transport_class(module)(client, base)


def _sdk_httpx() -> ModuleType:
    try:
        sdk = importlib.import_module("openai")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the drop-in for the OpenAI SDK needs the package openai: pip install openai", name="openai"
        ) from error
    major = int(sdk.__version__.partition(".")[0])
    return importlib.import_module("httpx2" if major >= 3 else "httpx")


@functools.cache
def _transport_class(httpx: Any) -> Any:
    """The transport class for httpx or httpx2, which have the same names but different classes."""

    class Events(httpx.SyncByteStream):  # type: ignore[misc]
        """A stream's events as a response's body."""

        def __init__(self, stream: Stream) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            yield from wire_openai.events(self._stream)

        def close(self) -> None:
            self._stream.close()

    class RoutingTransport(httpx.BaseTransport):  # type: ignore[misc]
        """Answers requests to OpenAI's API through a client."""

        def __init__(self, client: Client, base: Any) -> None:
            self._client = client
            self._base = base

        def handle_request(self, request: Any) -> Any:
            answer = self._routed(request)
            if answer is None:
                if self._base is not None:
                    return self._base.handle_request(request)
                answer = drop_ins.DropInAnswer(*wire_openai.not_found(request.method, request.url.path))
            if answer.stream is None:
                return httpx.Response(answer.status, headers=answer.headers, content=answer.body)
            return httpx.Response(answer.status, headers=answer.headers, stream=Events(answer.stream))

        def _routed(self, request: Any) -> drop_ins.DropInAnswer | None:
            path = request.url.path.rstrip("/")
            if request.method == "POST" and path.endswith(drop_ins.COMPLETIONS):
                return self._complete(request)
            if request.method == "GET":
                if path.endswith(_MODELS):
                    return drop_ins.models(self._client, None)
                _, found, name = path.rpartition(_MODELS + "/")
                if found:
                    return drop_ins.models(self._client, name)
            return None

        def _complete(self, request: Any) -> drop_ins.DropInAnswer:
            if request.headers.get("x-stainless-retry-count", "0") != "0":
                # Our responses are never retried, so this is the retry of a raised error, by a version of
                # the SDK that does not pass it on. fastroute has retried already: make no second call.
                gone = errors.APIConnectionError("no provider answered, and the call was not repeated")
                return drop_ins.DropInAnswer(*wire_openai.error_response(gone))
            limit = request.extensions.get("timeout", {}).get("read")
            if limit is not None and not 0 < limit < math.inf:
                wrong = errors.BadRequestError("timeout: must be a number of seconds above 0")
                return drop_ins.DropInAnswer(*wire_openai.error_response(wrong))
            route = request.headers.get(wire_openai.ROUTE_HEADER)
            try:
                return drop_ins.complete(self._client, request.read(), route, limit)
            except errors.Error as error:
                _raise(httpx, request, error)

        def close(self) -> None:
            if self._base is not None:
                self._base.close()

    return RoutingTransport


def _raise(httpx: Any, request: Any, error: errors.Error) -> NoReturn:
    """Raises the error by which httpx or the SDK reports that no answer came."""
    timed_out = isinstance(error, TimeoutError)
    if "OpenAI/Python" in request.headers.get("user-agent", ""):
        # The SDK retries the exceptions of httpx, but passes its own on.
        sdk: Any = importlib.import_module("openai")
        if timed_out:
            raise sdk.APITimeoutError(request=request) from error
        raise sdk.APIConnectionError(message=error.message, request=request) from error
    raise (httpx.ReadTimeout if timed_out else httpx.ConnectError)(error.message, request=request) from error
