"""A bounded thread pool, for `Client.submit` and for hedges.

A call runs in a copy of the context in which it was submitted. Threads start with the first submission, and
again in a forked child: an executor inherited from the parent accepts work and never runs it.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastroute import _core
from fastroute.errors import Error

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_Result = TypeVar("_Result")


class Workers:
    """A bounded pool of threads.

    Args:
        threads: how many calls run at once.
        pending: how many more may be queued; `submit` blocks while the queue is full.
        name: prefix of the threads' names.

    Thread safety: all methods.
    """

    def __init__(self, threads: int, pending: int, name: str = "fastroute") -> None:
        self._threads = threads
        self._pending = pending
        self._name = name
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: starts again without the parent's calls."""
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(self._threads + self._pending)
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Runs ``call`` in a thread; blocks while the queue is full.

        Raises:
            Error: after `close`, or no thread can start, for instance after the end of the main thread.
            RecursionError: the stack has no room.
        """
        _core.check_stack()  # without room, a failure could not give the place in the queue back
        room = self._room
        room.acquire()
        return self._begin(room, contextvars.copy_context(), call)

    def start(self, context: contextvars.Context, call: Callable[[], object]) -> bool:
        """Runs ``call`` in a thread and in this context, or returns False if the queue is full.

        Raises:
            Error: as in `submit`.
        """
        room = self._room
        if not room.acquire(blocking=False):
            return False
        self._begin(room, context, call)
        return True

    def _begin(
        self,
        room: threading.BoundedSemaphore,
        context: contextvars.Context,
        call: Callable[[], _Result],
    ) -> Future[_Result]:
        try:
            with self._lock:
                if self._closed:
                    raise Error("the client is closed")
                if self._executor is None:
                    from concurrent.futures import ThreadPoolExecutor  # most programs need none

                    self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix=self._name)
                future: Future[Any] = self._executor.submit(context.run, call)
        except BaseException as problem:
            room.release()
            if isinstance(problem, RuntimeError):
                raise Error(
                    f"submit: no thread can start ({problem}); once the main thread has ended, "
                    "use client.chat.completions.create in a thread that still runs"
                ) from problem
            raise
        future.add_done_callback(lambda _: room.release())
        return future

    def close(self) -> None:
        """Waits for running calls and drops those that have not begun. Idempotent."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
