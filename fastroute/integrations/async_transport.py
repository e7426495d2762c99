"""Runs a transport that blocks in threads, for the asynchronous clients of httpx.

There is no event loop here: the program's own loop waits for the threads. They are those of anyio, which
httpx itself needs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any


@functools.cache
def transport_class(httpx: Any) -> Any:
    """The transport class for httpx or httpx2, which have the same names but different classes."""
    import anyio  # installed with httpx, and slow to import
    from anyio.lowlevel import RunVar

    limiters: RunVar[dict[int, anyio.CapacityLimiter]] = RunVar("fastroute_limiters")

    def limiter(threads: int) -> anyio.CapacityLimiter:
        """The threads of this event loop, which are not those of the program's other work."""
        known = limiters.get(None)
        if known is None:
            known = {}
            limiters.set(known)
        if threads not in known:
            known[threads] = anyio.CapacityLimiter(threads)
        return known[threads]

    async def in_thread(call: Callable[[], Any], threads: int) -> Any:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter(threads))

    class ThreadedStream(httpx.AsyncByteStream):  # type: ignore[misc]
        """A response's body, each piece of which is read in a thread."""

        def __init__(self, stream: Any, threads: int) -> None:
            self._stream = stream
            self._threads = threads

        async def __aiter__(self) -> AsyncIterator[bytes]:
            pieces: Iterator[bytes] = iter(self._stream)
            while (piece := await in_thread(lambda: next(pieces, None), self._threads)) is not None:
                yield piece

        async def aclose(self) -> None:
            # After a cancellation too: closing ends the read that was abandoned, and settles the call.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._stream.close)

    class ThreadedTransport(httpx.AsyncBaseTransport):  # type: ignore[misc]
        """Answers each request in a thread, by a transport that blocks."""

        def __init__(self, transport: Any, threads: int) -> None:
            self._transport = transport
            self._threads = threads

        async def handle_async_request(self, request: Any) -> Any:
            await request.aread()
            call = _Abandonable(lambda: self._transport.handle_request(request))
            try:
                response = await in_thread(call.run, self._threads)
            except BaseException:
                call.abandon()
                raise
            return httpx.Response(
                response.status_code,
                headers=response.headers,
                stream=ThreadedStream(response.stream, self._threads),
                extensions=response.extensions,
            )

        async def aclose(self) -> None:
            await anyio.to_thread.run_sync(self._transport.close)

    return ThreadedTransport


class _Abandonable:
    """A call whose answer is closed if nobody waits for it any more.

    Thread safety: `run` in one thread, `abandon` in another; whichever comes last closes the answer.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._abandoned = False
        self._answer: Any = None

    def run(self) -> Any:
        answer = self._call()
        with self._lock:
            abandoned, self._answer = self._abandoned, answer
        if abandoned:
            answer.close()
        return answer

    def abandon(self) -> None:
        with self._lock:
            self._abandoned, answer = True, self._answer
        if answer is not None:
            answer.close()
