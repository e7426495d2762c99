"""What a function of the program's own says a request is, and what happens when it cannot say.

Runs the function in a thread with a time limit, checks its result and counts failures. Rule sets are in
`classifier.py`; which tier serves a level is decided in `planner.py`.

A function may raise, hang or return nonsense, and none of that may hold up a call or fail it: whoever asked
goes on by the default tier once the time is over. A thread in which it hangs cannot be ended; it is left
alone, and when all of them hang, calls are told so at once instead of each waiting its time.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import math
import queue
import threading
import time
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
    """What the function said, checked.

    Attributes:
        level: one of the levels it could choose from.
        confidence: 0..1.
        scored: whether it gave each level a score; the confidence is then the highest.
    """

    level: str
    confidence: float
    scored: bool = False


class NoOpinion(Exception):
    """The function said nothing that can be used."""

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
        self.running = False
        self.dropped = False  # no call waits for it
        self.answer: object = None
        self.error: str | None = None


class FunctionClassifier:
    """Asks a function for the level of requests.

    Args:
        ask: the function; None: there is none, and only failures of the rule set are counted here.
        hooks: hear `ClassifierFailed`.

    Raises:
        ConfigError: it is not a plain function.

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
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: none of the parent's threads is here, nor what they were asked."""
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_PendingOpinion | None] = queue.SimpleQueue()
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
        """The function's opinion, or None and why there is none; that is counted and told already.

        Args:
            messages, params: of the request.
            levels: those it can choose from.
            timeout: seconds it may take, the wait for a thread among them.
        """
        try:
            return _checked(self._said(messages, params, timeout), levels), None
        except NoOpinion as refused:
            self.failed(self.name, refused.kind, refused.reason)
            return None, refused.reason

    def failed(self, classifier: str, kind: Kind, reason: str) -> None:
        """Counts a classifier's failure, and makes it known.

        Args:
            reason: in words; must hold nothing of the request.
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
        """Lets the threads end that do not hang. May be called again."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._waiting.put(None)

    # ----------------------------------------------------------------------------------------- asking it

    def _said(
        self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], timeout: float
    ) -> object:
        opinion = _PendingOpinion(messages, params)
        with self._lock:
            self._asked += 1
            if self._hanging >= MOST_THREADS:
                raise NoOpinion("busy", f"it hangs in all of its {MOST_THREADS} threads")
            if self._closed:
                raise NoOpinion("busy", "the client is closed")
            if self._idle > 0 or self._threads >= MOST_THREADS:
                self._idle -= 1
            else:
                self._start()
            self._waiting.put(opinion)
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
        # No thread of an executor's: those are waited for when the interpreter ends, however they hang.
        thread = threading.Thread(
            target=self._work, args=(self._waiting,), name="fastroute-classifier", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            raise NoOpinion("busy", "the system lets no more threads start") from None
        self._threads += 1

    def _work(self, waiting: queue.SimpleQueue[_PendingOpinion | None]) -> None:
        ask = self._ask
        assert ask is not None
        while (opinion := waiting.get()) is not None:
            if self._takes(opinion):
                try:
                    opinion.answer = opinion.context.run(ask, opinion.messages, opinion.params)
                except BaseException as error:
                    # Its message may quote the request, so only its kind is passed on.
                    opinion.error = type(error).__name__
            self._ends(opinion)
            del opinion  # so that an idle thread keeps no messages alive

    def _takes(self, opinion: _PendingOpinion) -> bool:
        with self._lock:
            opinion.running = not opinion.dropped
            return opinion.running

    def _ends(self, opinion: _PendingOpinion) -> None:
        with self._lock:
            self._idle += 1
            self._hanging -= opinion.running and opinion.dropped
            opinion.done.set()


# ------------------------------------------------------------------------------------- what it may say


def _checked(said: object, levels: Collection[str]) -> Opinion:
    """What the function returned, as an opinion.

    Raises:
        NoOpinion: it is none, in words that hold nothing of the request: what it returned may.
    """
    if isinstance(said, str):
        return Opinion(_level(said, levels), 1.0)
    if isinstance(said, tuple) and len(said) == 2:
        return Opinion(_level(said[0], levels), _share(said[1], "a confidence"))
    if isinstance(said, Mapping):
        scores = {_level(level, levels): _share(score, "a score") for level, score in said.items()}
        if not scores:
            raise NoOpinion("bad-score", "it gave no level a score")
        highest = max(scores.values())
        best = [level for level, score in scores.items() if score == highest]
        if len(best) > 1:
            raise NoOpinion("tie", f"it gave {', '.join(best)} the same score")
        return Opinion(best[0], highest, True)
    raise NoOpinion("unknown-level", f"it returned a value of type {type(said).__name__}, which is no level")


def _level(given: object, levels: Collection[str]) -> str:
    if not isinstance(given, str) or given not in levels:
        raise NoOpinion("unknown-level", f"it returned a level that there is not; known: {', '.join(levels)}")
    return given


def _share(given: Any, what: str) -> float:
    if isinstance(given, bool):
        raise NoOpinion("bad-score", f"it returned {what} that is no number from 0 to 1")
    try:
        number = float(given)  # accepts the numbers of numpy too
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(given, (str, bytes)) or not 0 <= number <= 1:
        raise NoOpinion("bad-score", f"it returned {what} that is no number from 0 to 1")
    return number


def classification(opinion: Opinion, name: str) -> Classification:
    """The classification of an opinion, in words."""
    said = "the highest of its scores" if opinion.scored else "as the function said"
    return Classification(
        level=opinion.level,
        score=opinion.confidence if opinion.scored else None,
        confidence=opinion.confidence,
        matches={},
        classifier=name,
        reason=said,
    )


__all__ = ["Ask", "FunctionClassifier", "Opinion", "classification"]
