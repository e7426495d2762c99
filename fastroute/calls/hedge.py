"""Hedging: whether and when a slow call gets a second request.

The second attempt runs in a thread of the pool, the first in the caller's thread. `dispatch.py` chooses the
endpoint, and `call.Race` decides which of the two wins.

The delay is a high percentile of the endpoint's latencies of the last five minutes (J. Dean and L. A.
Barroso, The Tail at Scale, CACM 56:2, 2013): of complete answers for plain calls, of the time to the first
token for streams. A call that lost to its hedge is included with the time until it was cut. Without these
calls the percentile would fall over time.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from fastroute import _core, errors
from fastroute.config import HedgingConfig
from fastroute.platform.latch import Latch
from fastroute.platform.timer import Alarm
from fastroute.platform.workers import Workers
from fastroute.state.endpoints import LiveEndpoint

from .call import Call, Race

log = logging.getLogger("fastroute")

_Answer = TypeVar("_Answer")


class Hedge(Generic[_Answer]):
    """The second attempt of one call, which begins after a delay unless the first has ended by then.

    Args:
        delay: seconds after which it begins.
        send: makes the attempt; returns None if no endpoint admits it or it fails.
        workers: the threads that hedges run in.

    Attributes:
        race: decides between the two attempts.
        failure: set by `send` if its attempt failed.

    Thread safety: the first attempt's thread calls all methods except `launch`; `send` runs in a thread of
    ``workers``.
    """

    def __init__(
        self, delay: float, send: Callable[[Hedge[_Answer]], _Answer | None], workers: Workers
    ) -> None:
        self.race = Race()
        self.failure: Any = None
        self._delay = delay
        self._send = send
        self._workers = workers
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._over = Latch()
        self._begun = False
        self._closed = False  # it must not begin any more, and its answer is dropped
        self._answer: _Answer | None = None
        self._alarm: Alarm | None = None

    def begin(self) -> None:
        """Starts the delay. Call `end` afterwards, even if this is interrupted."""
        self._alarm = Alarm(time.monotonic() + self._delay, self.launch)
        self._alarm.start()

    def result(self) -> _Answer | None:
        """Waits for the second attempt's answer; None if it has not begun, or has no answer.

        Call it when the first attempt has ended without an answer.
        """
        # Under the lock: either the second attempt has begun and is waited for, or it never begins. Between
        # the two it would be sent for a call that has given up.
        with self._lock:
            if not self._begun:
                self._closed = True
                return None
        self._over.wait()  # bounded by the time limits of the attempt
        answer, self._answer = self._answer, None
        return answer

    def end(self) -> None:
        """Cancels the second attempt, whether or not it has begun; drops its answer. Idempotent.

        An answer that `result` has returned is not affected.
        """
        with self._lock:
            self._closed = True
            self._answer = None  # a stream releases everything when it is dropped
        alarm, self._alarm = self._alarm, None  # breaks the reference cycle
        if alarm is not None:
            alarm.cancel()
        self.race.end()

    def launch(self) -> None:
        """Begins the second attempt in a thread of the workers. Called by the timer thread."""
        # The timer thread runs all timers, so this must neither wait nor raise.
        try:
            if not self._workers.start(self._context, self._run):
                log.debug("a call is not hedged: all threads for hedges are in use")
        except (errors.Error, RuntimeError) as problem:  # the client or the interpreter is closed
            log.debug("a call is not hedged: %s", problem)
        except Exception:
            log.exception("a call is not hedged")

    def _run(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._begun = True
        answer = None
        try:
            answer = self._send(self)
        except (
            errors.Error,
            _core.SegmentFullError,
        ) as problem:  # over a budget, or no slot for this process in the segment
            log.debug("a call is not hedged: %s", problem)
        except Exception:
            log.exception("a hedge failed with an unexpected error")
        finally:
            # An answer that comes after `end` is dropped here. In a finally, or `result` would wait for ever.
            with self._lock:
                if not self._closed:
                    self._answer = answer
            self._over.open()


class Hedging:
    """Decides which calls are hedged, and when.

    Thread safety: all methods; the percentiles are in the core.
    """

    def __init__(self, rule: HedgingConfig, workers: Workers) -> None:
        self._rule = rule
        self._workers = workers

    def delay(self, call: Call, endpoint: LiveEndpoint) -> float | None:
        """Seconds after which the call's first attempt, at this endpoint, is hedged; None if it is not."""
        rule, stream = self._rule, call.request.stream
        tail = endpoint.tail(stream)
        asked = call.request.options.hedge
        if tail is None or call.attempts or not (rule.unasked if asked is None else asked):
            return None
        delay = tail.quantile(rule.percentile, rule.min_samples)
        if delay == 0:
            return None  # too few samples
        # Times to first token are recorded as for a short prompt (`Settlement.took`).
        delay = max(delay * call.estimate.prompt_scale if stream else delay, rule.min_delay)
        return delay if time.monotonic() + delay < call.deadline else None

    def hedge(
        self, call: Call, endpoint: LiveEndpoint, send: Callable[[Hedge[_Answer]], _Answer | None]
    ) -> Hedge[_Answer] | None:
        """A hedge for the call's first attempt, at this endpoint, not begun; None if it is not hedged."""
        delay = self.delay(call, endpoint)
        return None if delay is None else Hedge(delay, send, self._workers)

    def pay(self, call: Call, endpoint: LiveEndpoint) -> bool:
        """Takes one hedge from the endpoint's share; returns False if none is left."""
        tail = endpoint.tail(call.request.stream)
        return tail is not None and tail.hedge(self._rule.max_share)
