"""``fastroute bench``: measures the cost of routing on this machine.

Limits, breakers and the ledger are on, the cache is off. fastroute and its peers are measured in turns in one
run, so that a busy machine affects all of them. The local server runs in a process of its own. Its highest
rate is measured too, since a comparison of clients is valid only while that is well above their rates.
"""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from fastroute.figures import duration, percentile

from .group import json_option
from .output import Column, dim, no_warnings, plain_table, print_json

if TYPE_CHECKING:
    import requests

    from fastroute.client import Client

PROMPT = (
    "Our nightly export stops with a decimal error since Tuesday. Compare the two ways to read an amount "
    "below and explain which of them copes with a blank, a comma and a currency sign; then write the better "
    "one as a function with a docstring and three tests. Amounts come as 1.234,56 from the shop and as "
    "1234.56 from the warehouse, and once a month somebody types EUR in front of them. The file has forty "
    "thousand lines and must be read in less than a minute on a small machine, with clear errors for people."
)
MESSAGES = [{"role": "user", "content": PROMPT}]
ANSWER = "All three cases are read by the second way."
ENDPOINTS = 10
THREADS = (1, 8, 32)
SPANS = {True: (1, 0.4), False: (3, 1.0)}  # quick or not → number of turns, seconds of each
PIPELINE = 64  # requests that the raw client pipelines


@frozen
class Timing:
    """Seconds of one operation.

    Attributes:
        median: over all samples; ``low`` and ``high`` are the tenth and ninetieth percentile.
    """

    median: float
    low: float
    high: float


@frozen(kw_only=True)
class BenchResult:
    """All results; times in seconds, rates in calls per second.

    Attributes:
        decision: classify, rank, admit and finish in the core.
        plan: ``client.plan``, with its explanations.
        calls: one call on loopback, by client.
        rates: rates by client, then by number of threads.
        server_rate: the local server's rate for a raw client that pipelines.
    """

    decision: Timing
    plan: Timing
    calls: Mapping[str, Timing]
    rates: Mapping[str, Mapping[str, float]]
    server_rate: float
    machine: Mapping[str, Any]


@click.command("bench")
@click.option("--quick", is_flag=True, help="Take only a few seconds, with less precise results.")
@json_option
def command(quick: bool, as_json: bool) -> None:
    """Measure fastroute on this machine.

    Measures the time of a routing decision, the time of one call beside requests.post and requests.Session on
    a local server, and the calls per second of 1, 8 and 32 threads. Limits, breakers and the ledger are on,
    the cache is off.

    \b
    Examples:
      fastroute bench --quick
    """
    with no_warnings():
        figures = measure(quick=quick, say=None if as_json else dim)
    if as_json:
        print_json(asdict(figures))
    else:
        click.echo(text_of(figures))


def measure(*, quick: bool, say: Callable[[str], None] | None = None) -> BenchResult:
    """Runs all measurements, one after the other."""
    from fastroute.testing import Provider

    tell = say or (lambda text: None)
    with Provider(["gpt-4.1"], answer=ANSWER, process=True) as server:
        with _client(server.base_url) as client:
            tell("decision and plan …")
            decision, plan = _decision(quick), _plan(client, quick)
            tell("one call …")
            calls = _calls(client, server.base_url, quick)
            tell("calls per second …")
            rates = _rates(client, server.base_url, quick)
        tell("the local server by itself …")
        server_rate = _server_rate(server.port, 0.3 if quick else 1.0)
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "fastroute": _version(),
        "requests": _version("requests"),
    }
    return BenchResult(
        decision=decision, plan=plan, calls=calls, rates=rates, server_rate=server_rate, machine=machine
    )


def _version(package: str = "fastroute") -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def _client(base_url: str) -> Iterator[Client]:
    """A client with ten endpoints, all at the one local server, and everything on but the cache."""
    from fastroute.client import Client

    with tempfile.TemporaryDirectory(prefix="fastroute-bench-") as folder:
        config = {
            "fastroute": {"ledger": os.path.join(folder, "bench.db")},
            "cache": {"enabled": False},
            "providers": {
                f"local{number}": {"base_url": base_url, "rpm": 100_000_000, "tpm": 1_000_000_000}
                for number in range(ENDPOINTS)
            },
            "endpoints": [{"provider": f"local{number}", "model": "gpt-4.1"} for number in range(ENDPOINTS)],
            "tiers": {"standard": ["gpt-4.1"]},
        }
        with Client(config) as client:
            yield client


# ------------------------------------------------------------------------------------------- measuring


def _timing(samples: list[float]) -> Timing:
    return Timing(percentile(samples, 50), percentile(samples, 10), percentile(samples, 90))


def _loop(operation: Callable[[], object], times: int, rounds: int) -> Timing:
    """Times an operation that is too quick for the clock, in rounds of many; the loop's time is included."""
    samples = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(times):
            operation()
        samples.append((time.perf_counter() - begun) / times)
    return _timing(samples)


def _decision(quick: bool) -> Timing:
    from fastroute import _core
    from fastroute.routing.classifier import Classifier
    from fastroute.state.tokens import estimate_input

    segment = _core.Segment()
    endpoints = [
        _core.Endpoint(segment, f"bench-{number}", rpm=100_000_000, tpm=1_000_000_000)
        for number in range(ENDPOINTS)
    ]
    ranking = _core.Ranking(
        endpoints,
        models=[0] * ENDPOINTS,
        windows=[128_000] * ENDPOINTS,
        max_outputs=[16_384] * ENDPOINTS,
        capabilities=[15] * ENDPOINTS,
        input_prices=[2_000_000_000] * ENDPOINTS,
        output_prices=[8_000_000_000] * ENDPOINTS,
        qualities=[0.9] * ENDPOINTS,
        latencies=[1.0] * ENDPOINTS,
    )
    choice = ranking.choice(_core.LATENCY)
    classifier = Classifier.named("five-level")
    for endpoint in endpoints:
        endpoint.finish(endpoint.admit(1), _core.OK, 0.5)

    def decide() -> None:
        scan = classifier.scan(MESSAGES, {})
        tokens = estimate_input(scan.chars, scan.utf8, scan.messages, scan.images)
        found = choice.admit(tokens, 256)
        endpoints[found.chosen].finish(found.take(), _core.OK, 0.5)

    return _loop(decide, 1000, 5 if quick else 30)


def _plan(client: Client, quick: bool) -> Timing:
    def plan() -> None:
        str(client.plan(model="auto", messages=MESSAGES).tier)

    return _loop(plan, 300, 5 if quick else 30)


def _body() -> bytes:
    from fastroute import json_codec

    return json_codec.dumps({"model": "gpt-4.1", "messages": MESSAGES, "max_tokens": 256})


_HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}


def _content(response: requests.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def check(answer: str) -> None:
    """Checks an answer, so that a measurement with wrong answers fails.

    Raises:
        RuntimeError: if it is not the local server's answer.
    """
    if answer != ANSWER:
        raise RuntimeError(f"the local server must answer {ANSWER!r}, not {answer!r:.200}")


def _calls(client: Client, base_url: str, quick: bool) -> dict[str, Timing]:
    """One call at a time, the three clients in turns."""
    import requests

    url, body = f"{base_url}/chat/completions", _body()
    with requests.Session() as session:

        def bare() -> str:
            return _content(requests.post(url, data=body, headers=_HEADERS, timeout=60))

        def pooled() -> str:
            return _content(session.post(url, data=body, headers=_HEADERS, timeout=60))

        def routed() -> str:
            return client.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=256).text

        clients = {"requests.post": bare, "requests.Session.post": pooled, "fastroute": routed}
        samples: dict[str, list[float]] = {name: [] for name in clients}
        for turn in range(60 if quick else 600):
            for name, call in clients.items():
                begun = time.perf_counter()
                check(call())
                if turn >= 10:  # the first turns open connections and warm up
                    samples[name].append(time.perf_counter() - begun)
    return {name: _timing(taken) for name, taken in samples.items()}


def _rates(client: Client, base_url: str, quick: bool) -> dict[str, dict[str, float]]:
    """Calls per second by number of threads, measured in turns; the median of the turns."""
    import requests

    url, body = f"{base_url}/chat/completions", _body()

    def pooled() -> Callable[[], str]:
        session = requests.Session()
        sessions.append(session)
        return lambda: _content(session.post(url, data=body, headers=_HEADERS, timeout=60))

    def routed() -> Callable[[], str]:
        return lambda: client.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=256).text

    sessions: list[requests.Session] = []
    clients = {"requests.Session per thread": pooled, "fastroute": routed}
    turns, span = SPANS[quick]
    found: dict[str, dict[str, float]] = {name: {} for name in clients}
    for threads in THREADS:
        rates: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(turns):
            for name, begin in clients.items():
                rates[name].append(rate(begin, threads, span))
                while sessions:
                    sessions.pop().close()
        for name in clients:
            found[name][str(threads)] = percentile(rates[name], 50)
    return found


def rate(begin: Callable[[], Callable[[], str]], threads: int, span: float) -> float:
    """Calls per second of ``threads`` threads over ``span`` seconds, with connections already open.

    Raises:
        Exception: the first exception of a thread; RuntimeError if an answer is not the local server's.
    """
    counts = [0] * threads
    ready = threading.Barrier(threads + 1)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(place: int) -> None:
        try:
            call = begin()
            check(call())
        except BaseException as error:
            failures.append(error)
            ready.abort()
            return
        try:
            ready.wait()
        except threading.BrokenBarrierError:
            return
        try:
            while not stop.is_set():
                check(call())
                counts[place] += 1
        except BaseException as error:
            failures.append(error)
            stop.set()

    workers = [
        threading.Thread(target=work, args=(place,), name=f"bench-{place}") for place in range(threads)
    ]
    for worker in workers:
        worker.start()
    try:
        try:
            ready.wait()
        except threading.BrokenBarrierError:
            raise failures[0] from None
        begun = time.perf_counter()
        stop.wait(span)
        done, took = sum(counts), time.perf_counter() - begun
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]
    return done / took


def _server_rate(port: int, span: float) -> float:
    """Answers per second to one raw connection that pipelines its requests."""
    body = _body()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    batch = request * PIPELINE
    answered = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        while time.perf_counter() - begun < span:
            raw.sendall(batch)
            heads, tail = 0, b""
            while heads < PIPELINE:
                piece = raw.recv(1 << 18)
                if not piece:
                    raise ConnectionError("the local server closed the raw connection")
                data = tail + piece
                heads += data.count(b"HTTP/1.1 200")
                tail = data[-11:]  # a status line may be split; one byte less, so that none counts twice
            answered += heads
            _drain(raw)
        return answered / (time.perf_counter() - begun)


def _drain(raw: socket.socket) -> None:
    """Reads the rest of a batch's last answer."""
    raw.setblocking(False)
    try:
        while raw.recv(1 << 18):
            pass
    except BlockingIOError:
        pass
    finally:
        raw.settimeout(30)


# ------------------------------------------------------------------------------------------- printing


def text_of(figures: BenchResult) -> str:
    """The results as text, with how each was measured."""
    machine = figures.machine
    lines = [
        f"fastroute {machine['fastroute']}, Python {machine['python']}, {machine['system']}, "
        f"{machine['cpus']} CPUs; limits, breakers and ledger on, cache off",
        "",
    ]
    times = [
        Column("time"),
        Column("median", right=True),
        Column("10 %", right=True),
        Column("90 %", right=True),
    ]
    base = figures.calls["requests.Session.post"].median
    rows = [
        [
            f"decision: classify {len(PROMPT)} B, rank {ENDPOINTS}, admit, finish",
            *_spread(figures.decision),
            "",
        ],
        [f"client.plan, {ENDPOINTS} endpoints", *_spread(figures.plan), ""],
    ]
    for name, timing in figures.calls.items():
        rows.append([f"one call: {name}", *_spread(timing), f"{timing.median / base:.2f}"])
    lines.append(plain_table([*times, Column("× Session", right=True)], rows))
    lines.append("")
    columns = [
        Column("calls per second"),
        *(Column(f"{threads} thread{'s' if threads > 1 else ''}", right=True) for threads in THREADS),
    ]
    pooled, routed = figures.rates.values()
    rate_rows = [
        [name, *(f"{rates[str(threads)]:,.0f}" for threads in THREADS)]
        for name, rates in figures.rates.items()
    ]
    rate_rows.append(
        ["ratio", *(f"{routed[str(threads)] / pooled[str(threads)]:.2f}" for threads in THREADS)]
    )
    lines.append(plain_table(columns, rate_rows))
    best = max(rate for rates in figures.rates.values() for rate in rates.values())
    lines += [
        "",
        f"The local server, in its own process, answers {figures.server_rate:,.0f} calls per second of a raw "
        f"client: {figures.server_rate / best:.1f} times the best rate above."
        + ("" if figures.server_rate > 1.5 * best else " It may limit the rates above."),
        "The clients were measured in turns; clients and server share the machine's CPUs.",
    ]
    return "\n".join(lines)


def _spread(timing: Timing) -> tuple[str, str, str]:
    return duration(timing.median), duration(timing.low), duration(timing.high)


__all__ = ["BenchResult", "Timing", "command", "measure", "text_of"]
