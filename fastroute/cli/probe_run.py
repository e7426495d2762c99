"""Makes the calls of ``fastroute probe`` with `Client.probe`, and counts their results.

Endpoints are probed concurrently by a pool of threads. The first calls to an endpoint are made one by one, as
many as close an open breaker, so a key that is refused is used once and not by all threads at once.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from fastroute import errors
from fastroute.calls.stream import Stream
from fastroute.figures import percentile

if TYPE_CHECKING:
    from fastroute.client import Client
    from fastroute.types import Attempt

MOST_THREADS = 64
KINDS: Mapping[type[BaseException], str] = {
    errors.AuthenticationError: "key refused",
    errors.PermissionDeniedError: "not permitted",
    errors.QuotaExceededError: "quota spent",
    errors.RateLimitError: "rate limited",
    errors.NotFoundError: "not found",
    errors.APITimeoutError: "time-out",
    errors.DeadlineExceeded: "time-out",
    errors.TLSError: "TLS refused",
    errors.UpstreamProtocolError: "malformed answer",
    errors.APIConnectionError: "unreachable",
    errors.InternalServerError: "server error",
    errors.BadRequestError: "refused",
    errors.StreamInterrupted: "cut off",
    errors.BudgetExceeded: "over budget",
    errors.NoEndpointError: "not admitted",
}


@frozen(kw_only=True)
class Asked:
    """The settings of a measurement.

    Attributes:
        calls: number of calls to each endpoint.
        at_once: the most concurrent calls to an endpoint.
        prompt, max_tokens, stream: parameters of each call.
        timeout: seconds a call may take; None for the configuration's limit.
    """

    calls: int
    at_once: int
    prompt: str
    max_tokens: int
    stream: bool
    timeout: float | None


@frozen
class Failure:
    """One kind of error, with the message of the first.

    Attributes:
        error: the name of the class.
        kind: the same in a word or two.
        message: the first message, without the endpoint's name.
        count: number of errors.
    """

    error: str
    kind: str
    message: str
    count: int


@define(eq=False, kw_only=True)
class EndpointTally:
    """The results of one endpoint's calls so far.

    Attributes:
        calls: number of calls to make.
        latencies: seconds from request to end of answer, of successful calls.
        ttfts: seconds to the first content, of streamed calls.
        failures: errors by class name.
        cost: nano-dollars of all calls together; None once the cost of one is unknown.
        stopped: why the remaining calls were not sent; None if all were.
    """

    endpoint: str
    calls: int
    latencies: list[float] = field(factory=list)
    ttfts: list[float] = field(factory=list)
    failures: dict[str, Failure] = field(factory=dict)
    cost: int | None = 0
    stopped: str | None = None

    @property
    def ok(self) -> int:
        return len(self.latencies)

    @property
    def failed(self) -> int:
        return sum(failure.count for failure in self.failures.values())

    @property
    def sent(self) -> int:
        return self.ok + self.failed

    @property
    def error_rate(self) -> float | None:
        return self.failed / self.sent if self.sent else None

    @property
    def mean(self) -> float | None:
        return math.fsum(self.latencies) / self.ok if self.latencies else None

    def percentile(self, percent: int) -> float | None:
        """A percentile of the latencies of successful calls, in seconds; None without any."""
        return percentile(self.latencies, percent) if self.latencies else None

    @property
    def ttft(self) -> float | None:
        """The median of the times to the first content."""
        return percentile(self.ttfts, 50) if self.ttfts else None

    def charge(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            known = self.cost is not None and attempt.cost_nano is not None
            self.cost = (self.cost or 0) + (attempt.cost_nano or 0) if known else None

    def fail(self, error: errors.Error) -> None:
        name = type(error).__name__
        before = self.failures.get(name)
        if before is None:
            self.failures[name] = Failure(name, kind_of(error), error.message, 1)
        else:
            self.failures[name] = Failure(name, before.kind, before.message, before.count + 1)


def kind_of(error: errors.Error) -> str:
    """The kind of an error, in a word or two."""
    return next((KINDS[kind] for kind in type(error).__mro__ if kind in KINDS), "failed")


@frozen
class _EndedCall:
    """A finished call; it was answered if there is no error."""

    endpoint: str
    attempts: Sequence[Attempt]
    error: BaseException | None = None


class Measurement:
    """Calls to endpoints and their results.

    Args:
        client: makes the calls.
        names: the endpoints' names.
        asked: the settings of the calls.
        alone: number of successful calls to an endpoint before it gets concurrent ones.

    Attributes:
        tallies: results by endpoint, in the given order; they grow while `run` is iterated over.

    Thread safety: use it in one thread. The threads that make the calls pass their results through a queue.
    """

    def __init__(self, client: Client, names: Sequence[str], asked: Asked, alone: int) -> None:
        self.tallies = {name: EndpointTally(endpoint=name, calls=asked.calls) for name in names}
        self._client = client
        self._asked = asked
        self._alone = alone
        self._left = dict.fromkeys(names, asked.calls)
        self._under_way = dict.fromkeys(names, 0)
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[_EndedCall] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self) -> Iterator[int]:
        """Makes the calls; yields how many are done, after each.

        If iteration stops early, no more calls are started; `wait` waits for the running ones.
        """
        try:
            for place in range(min(len(self.tallies) * self._asked.at_once, MOST_THREADS)):
                thread = threading.Thread(target=self._work, name=f"probe-{place}", daemon=True)
                thread.start()
                self._threads.append(thread)
            for name in self.tallies:
                self._send(name)
            while any(self._under_way.values()):
                self._count(self._ended.get())
                yield self._done
        finally:
            for _ in self._threads:
                self._todo.put(None)

    def wait(self) -> None:
        """Waits for the running calls."""
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()

    @property
    def _done(self) -> int:
        given = sum(tally.calls - self._left[name] for name, tally in self.tallies.items())
        return given - sum(self._under_way.values())

    def _send(self, name: str) -> None:
        """Starts as many calls as the endpoint may have now."""
        room = self._asked.at_once if self.tallies[name].ok >= self._alone else 1
        while self._left[name] and self._under_way[name] < room:
            self._left[name] -= 1
            self._under_way[name] += 1
            self._todo.put(name)

    def _count(self, ended: _EndedCall) -> None:
        name, error = ended.endpoint, ended.error
        tally = self.tallies[name]
        self._under_way[name] -= 1
        tally.charge(ended.attempts)
        if error is None:
            last = ended.attempts[-1]
            tally.latencies.append(last.latency)
            if last.ttft is not None:
                tally.ttfts.append(last.ttft)
        elif not isinstance(error, errors.Error):
            raise error
        elif ended.attempts:
            tally.fail(error)
        else:
            # It was not admitted: the endpoint is blocked, its breaker open, or a limit or budget is used up.
            self._left[name] = 0
            tally.stopped = tally.stopped or str(error)
        self._send(name)

    def _work(self) -> None:
        while (name := self._todo.get()) is not None:
            try:
                self._ended.put(_EndedCall(name, self._call(name)))
            except errors.Error as error:
                self._ended.put(_EndedCall(name, error.attempts, error))
            except BaseException as error:
                self._ended.put(_EndedCall(name, (), error))

    def _call(self, name: str) -> Sequence[Attempt]:
        asked = self._asked
        answer = self._client.probe(
            name,
            messages=[{"role": "user", "content": asked.prompt}],
            stream=asked.stream,
            route={"tags": {"probe": "command"}},
            timeout=asked.timeout,
            max_tokens=asked.max_tokens,
        )
        if isinstance(answer, Stream):
            for _ in answer:
                pass
        assert answer.route is not None
        return answer.route.attempts


__all__ = ["Asked", "EndpointTally", "Failure", "Measurement"]
