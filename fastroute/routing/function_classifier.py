"""Classifies requests by a function of the user's program.

Runs the function in a thread with a time limit, checks its result and counts failures. Rule sets are in
`classifier.py`; which tier serves a level is decided in `planner.py`.

The function may raise, hang or return an invalid value. None of that may delay a call beyond the time limit
or make it fail: the call goes on in the default tier. A thread in which the function hangs cannot be ended.
When all threads hang, calls go on at once instead of waiting for the time limit each.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from fastroute.errors import ConfigError
from fastroute.events import ClassifierFailed, Hooks
from fastroute.types import Classification

log = logging.getLogger("fastroute")

Ask = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], object]
"""Messages and the other parameters → a level, a level and its confidence, or a score for each level."""

Kind = Literal["raised", "timeout", "busy", "unknown-level", "bad-score", "tie", "unreadable"]

MOST_THREADS = 16
"""The most threads of one client that run the function at once, hanging ones included."""
_LOG_AGAIN = 60.0  # seconds between two log lines of one kind


@frozen
class Opinion:
    """A checked result of the function.

    Attributes:
        level: one of the levels that it could choose from.
        confidence: 0..1.
        scored: whether it returned a score for each level; the confidence is then the highest.
    """

    level: str
    confidence: float
    scored: bool = False


class NoOpinion(Exception):
    """The function gave no usable result."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class _PendingOpinion:
    __slots__ = ("answer", "context", "done", "dropped", "error", "messages", "params", "running")

    def __init__(self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> None:
        self.messages = messages
        self.params = params
        self.context = contextvars.copy_context()
        self.done = threading.Event()
        self.running = False  # in the function; False as well after it was dropped before a thread took it
        self.dropped = False  # its call has stopped waiting
        self.answer: object = None
        self.error: str | None = None


class FunctionClassifier:
    """Asks a function for the level of requests.

    Args:
        ask: the function; None: there is none, and only failures of the rule set are counted here.
        hooks: for `ClassifierFailed`.

    Raises:
        ConfigError: if ``ask`` is not a plain function.

    Thread safety: all methods. The function is called from several threads at once, at most 16.
    """

    def __init__(self, ask: Ask | None, hooks: Hooks) -> None:
        if ask is not None:
            if not callable(ask) or isinstance(ask, type):
                kind = "a class" if isinstance(ask, type) else type(ask).__name__
                raise ConfigError(f"classifier: must be a function of messages and parameters, not {kind}")
            call = type(ask).__call__
            if inspect.iscoroutinefunction(ask) or inspect.iscoroutinefunction(call):
                raise ConfigError("classifier: a coroutine function is never awaited; use a plain function")
        self._ask = ask
        self.wanted = self._ask is not None
        self._hooks = hooks
        self.name = "" if ask is None else getattr(ask, "__name__", type(ask).__name__)
        self._asked = 0
        self._failed: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._closed = False
        self._dropped: weakref.finalize[Any, FunctionClassifier] | None = None
        self.after_fork()

    def after_fork(self) -> None:
        """Resets threads, queue and lock in a forked child, where the parent's threads do not exist."""
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_PendingOpinion | None] = queue.SimpleQueue()
        if self._dropped is not None:
            self._dropped.detach()
        # The threads do not refer to this object, so it is collected with a client that nobody closes.
        self._dropped = weakref.finalize(self, self._waiting.put, None)
        self._dropped.atexit = False
        self._threads = 0
        self._idle = 0
        self._hanging = 0

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        levels: Collection[str],
        timeout: float,
    ) -> tuple[Opinion | None, str | None]:
        """The function's opinion, or None and why there is none, which is counted, logged and emitted.

        Args:
            messages, params: of the request.
            levels: the levels to choose from.
            timeout: seconds, including the wait for a thread.
        """
        try:
            return _checked(self._said(messages, params, timeout), levels), None
        except NoOpinion as refused:
            self.failed(self.name, refused.kind, refused.reason)
            return None, refused.reason

    def failed(self, classifier: str, kind: Kind, reason: str) -> None:
        """Counts, logs and emits a classifier's failure.

        Args:
            reason: in words; must contain nothing of the request.
        """
        now = time.monotonic()
        with self._lock:
            self._failed[kind] = self._failed.get(kind, 0) + 1
            say = now - self._logged.get(kind, -math.inf) >= _LOG_AGAIN
            if say:
                self._logged[kind] = now
        if say:
            log.warning("the classifier %s failed: %s; the default tier is used", classifier, reason)
        if self._hooks.wanted:
            self._hooks.emit(ClassifierFailed(classifier, kind, reason))

    def stats(self) -> dict[str, Any]:
        """How often the function was asked, failures by kind, and threads in which it hangs."""
        with self._lock:
            return {"asked": self._asked, "failed": dict(self._failed), "hanging": self._hanging}

    def close(self) -> None:
        """Ends the threads that do not hang. Idempotent."""
        with self._lock:
            self._closed = True
            self._threads = 0
        self._waiting.put(None)

    # ----------------------------------------------------------------------------------------- asking it

    def _said(
        self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], timeout: float
    ) -> object:
        opinion = _PendingOpinion(messages, params)
        with self._lock:
            self._asked += 1
            if self._hanging >= MOST_THREADS:
                raise NoOpinion("busy", f"all of its {MOST_THREADS} threads hang in earlier calls")
            if self._closed:
                raise NoOpinion("busy", "the client is closed")
            # Below 0, `_idle` counts the questions in the queue that wait for a thread.
            if self._idle > 0 or self._threads >= MOST_THREADS:
                self._idle -= 1
            else:
                self._start()
            self._waiting.put(opinion)
        # In a finally, because the wait may end by Ctrl-C. Under the lock, so that the thread and this call
        # agree on whether the answer came in time.
        try:
            opinion.done.wait(timeout)
        finally:
            with self._lock:
                if not opinion.done.is_set():
                    opinion.dropped = True
                    self._hanging += opinion.running
        if opinion.dropped:
            raise NoOpinion("timeout", f"it took longer than {timeout * 1000:g} ms")
        if opinion.error is not None:
            raise NoOpinion("raised", f"it raised {opinion.error}")
        return opinion.answer

    def _start(self) -> None:
        # Not a thread of an executor: the interpreter waits for those at its end, even if they hang.
        assert self._ask is not None
        thread = threading.Thread(
            target=_work,
            args=(weakref.ref(self), self._ask, self._waiting),
            name="fastroute-classifier",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            raise NoOpinion("busy", "the system cannot start another thread") from None
        self._threads += 1

    def takes(self, opinion: _PendingOpinion) -> bool:
        with self._lock:
            opinion.running = not opinion.dropped
            return opinion.running

    def ends(self, opinion: _PendingOpinion) -> None:
        with self._lock:
            self._idle += 1
            self._hanging -= opinion.running and opinion.dropped
            opinion.done.set()


def _work(
    classifier: weakref.ref[FunctionClassifier],
    ask: Ask,
    waiting: queue.SimpleQueue[_PendingOpinion | None],
) -> None:
    """A thread that calls the function until the classifier is closed or collected."""
    while (opinion := waiting.get()) is not None:
        # The reference is not kept during the call: a function that hangs must not keep the client alive.
        if (owner := classifier()) is not None and owner.takes(opinion):
            owner = None
            try:
                opinion.answer = opinion.context.run(ask, opinion.messages, opinion.params)
            except BaseException as error:
                # Its message may quote the request, so only its kind is passed on.
                opinion.error = type(error).__name__
        if (owner := classifier()) is not None:
            owner.ends(opinion)
        del opinion, owner  # so that an idle thread keeps no messages alive
    waiting.put(None)  # for the next thread


# ------------------------------------------------------------------------------------- checking its result


def _checked(said: object, levels: Collection[str]) -> Opinion:
    """The opinion in what the function returned.

    Raises:
        NoOpinion: if there is none. The reason does not quote the value, which may contain the request.
    """
    if isinstance(said, str):
        return Opinion(_level(said, levels), 1.0)
    if isinstance(said, tuple) and len(said) == 2:
        return Opinion(_level(said[0], levels), _share(said[1], "a confidence"))
    if isinstance(said, Mapping):
        scores = {_level(level, levels): _share(score, "a score") for level, score in said.items()}
        if not scores:
            raise NoOpinion("bad-score", "it returned no scores")
        highest = max(scores.values())
        best = [level for level, score in scores.items() if score == highest]
        if len(best) > 1:
            raise NoOpinion("tie", f"it gave {', '.join(best)} the same score")
        return Opinion(best[0], highest, True)
    raise NoOpinion("unknown-level", f"it returned a value of type {type(said).__name__}, not a level")


def _level(given: object, levels: Collection[str]) -> str:
    if not isinstance(given, str) or given not in levels:
        raise NoOpinion("unknown-level", f"it returned an unknown level; known: {', '.join(levels)}")
    return given


def _share(given: Any, what: str) -> float:
    if isinstance(given, bool):
        raise NoOpinion("bad-score", f"it returned {what} that is not a number from 0 to 1")
    try:
        number = float(given)  # accepts the numbers of numpy too
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(given, (str, bytes)) or not 0 <= number <= 1:
        raise NoOpinion("bad-score", f"it returned {what} that is not a number from 0 to 1")
    return number


def classification(opinion: Opinion, name: str) -> Classification:
    """The classification that an opinion stands for."""
    said = "the highest of its scores" if opinion.scored else "returned by the function"
    return Classification(
        level=opinion.level,
        score=opinion.confidence if opinion.scored else None,
        confidence=opinion.confidence,
        matches={},
        classifier=name,
        reason=said,
    )


__all__ = ["Ask", "FunctionClassifier", "Opinion", "classification"]
