"""Whole calls over loopback, planning, and the cache.

The local provider runs in a separate process. Limits, breakers, ledger and prices are on. The cache is off
except in its own benchmark.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import cachetools
import orjson
import requests
import urllib3

import fastroute
from fastroute.calls.cache import Cache
from fastroute.testing import Provider
from fastroute.transport import Transport
from fastroute.transport.request_timer import RequestTimer
from fastroute.types import Request

from .routing import litellm_router, load_litellm, text_of
from .side_by_side import NO_OP, Comparison, Contender, Operation, Trial, WrongAnswerError, need
from .workers import load, spawned

ENDPOINTS = 10
MESSAGES = [{"role": "user", "content": text_of(400)}]
BODY = orjson.dumps({"model": "gpt-4.1", "messages": MESSAGES, "max_tokens": 256})
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}
SHORT_ANSWER = "All three cases are read by the second way."
CHUNKS = 500
LONG_ANSWER = text_of(CHUNKS * 4)  # the local provider sends four characters per chunk


class _Server:
    """One provider for all contenders that exist at the same time."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._provider: Provider | None = None
        self._users = 0

    def join(self, stack: ExitStack) -> str:
        if self._provider is None:
            self._provider = Provider(["gpt-4.1"], answer=self._answer, process=True, log_size=1).start()
        self._users += 1
        stack.callback(self._leave)
        return self._provider.base_url

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and self._provider is not None:
            self._provider.stop()
            self._provider = None


short = _Server(SHORT_ANSWER)
long = _Server(LONG_ANSWER)


def client_of(
    stack: ExitStack, base_url: str, *, cache: bool = False, hedging: bool = False
) -> fastroute.Client:
    """A client with ten endpoints at the local server and all features on."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastroute-bench-"))
    client = fastroute.Client(
        {
            "fastroute": {"ledger": os.path.join(folder, "ledger.db")},
            "cache": {"enabled": cache},
            "providers": {
                f"local{number}": {"base_url": base_url, "rpm": 10**8, "tpm": 10**9, "token_burst": 10**9}
                for number in range(ENDPOINTS)
            },
            "endpoints": [{"provider": f"local{number}", "model": "gpt-4.1"} for number in range(ENDPOINTS)],
            "tiers": {"standard": ["gpt-4.1"]},
            "policy": {"hedging": {"enabled": hedging}},
        }
    )
    stack.callback(client.close)
    return client


# -------------------------------------------------------------------------------------------------- calls

Call = Callable[[], Any]


def routed(stack: ExitStack, url: str) -> Call:
    create = client_of(stack, url).chat.completions.create
    return lambda: create(model="auto", messages=MESSAGES, max_tokens=256)


def hedged(stack: ExitStack, url: str) -> Call:
    """The same with hedging."""
    create = client_of(stack, url, hedging=True).chat.completions.create
    return lambda: create(model="auto", messages=MESSAGES, max_tokens=256)


def transport(stack: ExitStack, url: str) -> Call:
    found = Transport()
    stack.callback(found.close)
    prepared = found.prepare(f"{url}/chat/completions", HEADERS)
    return lambda: found.send(prepared, BODY, RequestTimer(time.monotonic() + 60), read_timeout=60).body()


def session(stack: ExitStack, url: str) -> Call:
    found = stack.enter_context(requests.Session())
    return lambda: found.post(f"{url}/chat/completions", data=BODY, headers=HEADERS, timeout=60).json()


def session_threads(stack: ExitStack, url: str) -> Call:
    """One session per thread, because requests does not document sessions as thread-safe."""
    local = threading.local()

    def call() -> Any:
        found = getattr(local, "session", None)
        if found is None:
            found = local.session = requests.Session()
            stack.callback(found.close)
        return found.post(f"{url}/chat/completions", data=BODY, headers=HEADERS, timeout=60).json()

    return call


def pool(stack: ExitStack, url: str) -> Call:
    found = urllib3.PoolManager(maxsize=64)
    stack.callback(found.clear)
    return lambda: found.request(
        "POST", f"{url}/chat/completions", body=BODY, headers=HEADERS, timeout=60
    ).json()


def httpx(stack: ExitStack, url: str) -> Call:
    found = stack.enter_context(need("httpx").Client(timeout=60))
    return lambda: found.post(f"{url}/chat/completions", content=BODY, headers=HEADERS).json()


def openai(stack: ExitStack, url: str) -> Call:
    found = stack.enter_context(need("openai").OpenAI(base_url=url, api_key="none", max_retries=0))
    create = found.chat.completions.create
    return lambda: create(model="gpt-4.1", messages=MESSAGES, max_tokens=256)


def litellm(_: ExitStack, url: str) -> Call:
    completion = load_litellm().completion
    return lambda: completion(
        model="openai/gpt-4.1", messages=MESSAGES, max_tokens=256, api_base=url, api_key="none"
    )


def router(_: ExitStack, url: str) -> Call:
    completion = litellm_router(url).completion
    return lambda: completion(model="gpt-4.1", messages=MESSAGES, max_tokens=256)


_SHORT_JSON = f'"content":"{SHORT_ANSWER}"'.encode()


def is_answer(answer: Any) -> bool:
    """Whether a result is the provider's answer, as bytes, as parsed JSON or as a completion.

    It is fast enough to be called for every answer during a measurement. A completion of fastroute must
    have an attempt and a cost.
    """
    if isinstance(answer, bytes):
        return _SHORT_JSON in answer
    if isinstance(answer, dict):
        return bool(answer["choices"][0]["message"]["content"] == SHORT_ANSWER)
    if isinstance(answer, fastroute.Completion) and (answer.route.cached or not answer.route.cost_nano):
        return False
    return bool(answer.choices[0].message.content == SHORT_ANSWER)


def checked(call: Call) -> Callable[[], None]:
    """The call, with a check of its answer."""

    def made() -> None:
        if not is_answer(answer := call()):
            raise WrongAnswerError(f"it gave {answer!r:.300}")

    return made


def whole(make: Callable[[ExitStack, str], Call]) -> Callable[[ExitStack], Operation]:
    def prepare(stack: ExitStack) -> Operation:
        return Operation("call()", {"call": make(stack, short.join(stack))}, is_answer)

    return prepare


_CALLS = {
    "requests.Session.post": session,
    "fastroute create, all features on": routed,
    "fastroute's transport alone": transport,
    "urllib3 pool": pool,
    "httpx.Client": httpx,
    "openai SDK": openai,
    "litellm.completion": litellm,
    "litellm Router": router,
}


# -------------------------------------------------------------------------------------------- CPU of a call


def cpu(make: Callable[[ExitStack, str], Call]) -> Callable[[float], list[float]]:
    """CPU time of one call in µs: of its thread, of the process, and of the process minus the transport."""

    def run(seconds: float) -> list[float]:
        with ExitStack() as stack:
            url = short.join(stack)
            bare, call = checked(transport(stack, url)), checked(make(stack, url))
            spent = {"bare": [0.0, 0.0], "call": [0.0, 0.0]}
            counts = {"bare": 0, "call": 0}
            end = time.monotonic() + seconds
            for one in (bare, call) * 5:
                one()
            while True:
                for name, one in (("bare", bare), ("call", call)):
                    thread, process = time.thread_time(), time.process_time()
                    for _ in range(50):
                        one()
                    spent[name][0] += time.thread_time() - thread
                    spent[name][1] += time.process_time() - process
                    counts[name] += 50
                if time.monotonic() >= end:
                    break
            each = {name: [1e6 * total / counts[name] for total in spent[name]] for name in spent}
            return [*each["call"], each["call"][1] - each["bare"][1]]

    return run


# --------------------------------------------------------------------------------------------- many threads


def rate(make: Callable[[ExitStack, str], Call], threads: int, seconds: float) -> tuple[float, float]:
    """Calls per second over open connections, and the CPU time of one call in µs."""
    with ExitStack() as stack:
        call = checked(make(stack, short.join(stack)))

        def prepare(_: int) -> Callable[[], None]:
            call()
            return call

        call()
        found = load(threads, seconds, prepare)
        done = sum(found.counts)
        return done / found.seconds, 1e6 * found.cpu / done


def cpu_threads(make: Callable[[ExitStack, str], Call]) -> Callable[[float], list[float]]:
    return lambda seconds: [rate(make, 32, seconds)[1]]


def rates(make: Callable[[ExitStack, str], Call]) -> Callable[[float], list[float]]:
    return lambda seconds: [rate(make, threads, seconds)[0] for threads in (1, 8, 32)]


def raw_client(port: int, connections: int, seconds: float) -> float:
    """Answers per second to a client that sends the same bytes again after each complete answer."""
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    sockets: dict[int, tuple[socket.socket, bytearray]] = {}
    answered = 0
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        for _ in range(connections):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.sendall(request)
            poll.register(raw.fileno(), select.EPOLLIN)
            sockets[raw.fileno()] = (raw, bytearray())
        begun = time.perf_counter()
        while (took := time.perf_counter() - begun) < seconds:
            for number, _ in poll.poll(1.0):
                raw, data = sockets[number]
                piece = raw.recv(65536)
                if not piece:
                    raise ConnectionError("the local provider closed a connection")
                data += piece
                head = data.find(b"\r\n\r\n")
                if head < 0:
                    continue
                at = data.lower().find(b"content-length:", 0, head)
                length = int(data[at + 15 : data.find(b"\r\n", at)])
                if len(data) >= head + 4 + length:
                    if not is_answer(bytes(data)):
                        raise WrongAnswerError(f"the local provider gave {data!r:.300}")
                    answered += 1
                    data.clear()
                    raw.sendall(request)
    return answered / took


def _capacity(seconds: float) -> list[float]:
    """The server's rate for a client in a separate process that hardly reads the answers."""
    with ExitStack() as stack:
        url = short.join(stack)
        port = int(url.split(":")[2].split("/")[0])
        return [spawned(raw_client, port, connections, seconds) for connections in (1, 8, 32)]


# -------------------------------------------------------------------------------------------------- streams


Read = Callable[[], list[Any]]


def streamed(make: Callable[[ExitStack, str], Read]) -> Callable[[ExitStack], Operation]:
    def prepare(stack: ExitStack) -> Operation:
        names = {"read": make(stack, long.join(stack))}
        return Operation("read()", names, lambda pieces: streamed_text(pieces) == LONG_ANSWER, CHUNKS)

    return prepare


def streamed_text(pieces: list[Any]) -> str:
    """The text of a stream that was read as server-sent events or as chunks."""
    if isinstance(pieces[0], (bytes, str)):
        whole = "".join(piece if isinstance(piece, str) else piece.decode() for piece in pieces)
        events = whole.replace("\n", "").split("data: ")[1:]  # a chunk's text is too short for this
        if events.pop() != "[DONE]":
            return ""
        deltas = [choice["delta"] for event in events for choice in orjson.loads(event)["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    return "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices)


_STREAM = orjson.dumps(
    {
        "model": "gpt-4.1",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
)


def stream_ours(stack: ExitStack, url: str) -> Read:
    create = client_of(stack, url).chat.completions.create

    def read() -> list[Any]:
        with create(model="auto", messages=MESSAGES, stream=True) as stream:
            return list(stream)

    return read


def stream_transport(stack: ExitStack, url: str) -> Read:
    found = Transport()
    stack.callback(found.close)
    prepared = found.prepare(f"{url}/chat/completions", HEADERS)

    def read() -> list[Any]:
        exchange = found.send(prepared, _STREAM, RequestTimer(time.monotonic() + 60), read_timeout=60)
        return list(exchange.pieces())

    return read


def stream_requests(stack: ExitStack, url: str) -> Read:
    found = stack.enter_context(requests.Session())

    def read() -> list[Any]:
        address = f"{url}/chat/completions"
        with found.post(address, data=_STREAM, headers=HEADERS, timeout=60, stream=True) as answer:
            return list(answer.iter_lines(chunk_size=None))

    return read


def stream_httpx(stack: ExitStack, url: str) -> Read:
    found = stack.enter_context(need("httpx").Client(timeout=60))

    def read() -> list[Any]:
        with found.stream("POST", f"{url}/chat/completions", content=_STREAM, headers=HEADERS) as answer:
            return list(answer.iter_lines())

    return read


def stream_openai(stack: ExitStack, url: str) -> Read:
    found = stack.enter_context(need("openai").OpenAI(base_url=url, api_key="none", max_retries=0))

    def read() -> list[Any]:
        with found.chat.completions.create(model="gpt-4.1", messages=MESSAGES, stream=True) as stream:
            return list(stream)

    return read


def stream_litellm(_: ExitStack, url: str) -> Read:
    completion = load_litellm().completion
    return lambda: list(
        completion(model="openai/gpt-4.1", messages=MESSAGES, stream=True, api_base=url, api_key="none")
    )


# ------------------------------------------------------------------------------------------- plan and cache


def plan(explain: bool) -> Callable[[ExitStack], Operation]:
    def make(stack: ExitStack) -> Operation:
        names: dict[str, Any] = {"plan": client_of(stack, "http://127.0.0.1:9/v1").plan, "m": MESSAGES}
        if not explain:
            return Operation(
                "plan(model='auto', messages=m)",
                names,
                lambda found: (found.tier, len(found.candidates)) == ("standard", ENDPOINTS),
            )

        def explained() -> str:
            found = names["plan"](model="auto", messages=MESSAGES)
            return str(found) if found.candidates else ""

        def is_whole(text: str) -> bool:
            return "standard" in text and all(f"local{number}/" in text for number in range(ENDPOINTS))

        return Operation("explained()", {"explained": explained}, is_whole)

    return make


def cache_hit(stack: ExitStack) -> Operation:
    client = client_of(stack, short.join(stack), cache=True)
    completion = client.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=256)
    cache = Cache()
    request = Request("auto", MESSAGES, {"max_tokens": 256})
    key = cache.key(request)
    assert key is not None
    cache.through(key, lambda: completion, time.monotonic() + 60)
    names = {"get": cache.get, "key": cache.key, "request": request}
    return Operation("get(key(request))", names, lambda found: found is completion and is_answer(found))


def cached_call(stack: ExitStack) -> Operation:
    create = client_of(stack, short.join(stack), cache=True).chat.completions.create
    create(model="auto", messages=MESSAGES, max_tokens=256)
    return Operation(
        "create(model='auto', messages=m, max_tokens=256)",
        {"create": create, "m": MESSAGES},
        lambda answer: answer.route.cached and answer.text == SHORT_ANSWER,
    )


def cache_by_hand(_: ExitStack) -> Operation:
    lock = threading.Lock()
    store: cachetools.TTLCache[bytes, object] = cachetools.TTLCache(10_000, 3600)
    request = {"model": "auto", "messages": MESSAGES, "max_tokens": 256}

    def lookup() -> object:
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).digest()
        with lock:
            return store.get(key)

    store[hashlib.sha256(json.dumps(request, sort_keys=True).encode()).digest()] = store
    return Operation("lookup()", {"lookup": lookup}, lambda found: found is store)


COMPARISONS = (
    Comparison(
        "client.plan, 10 endpoints, 400 B",
        (
            NO_OP,
            Contender("fastroute plan", plan(False), ours=True),
            Contender("fastroute plan, its candidates, str(plan)", plan(True), ours=True),
        ),
        base="fastroute plan",
    ),
    Comparison(
        "Cache hit, request of 400 B, key included",
        (
            NO_OP,
            Contender("fastroute Cache.key + get", cache_hit, ours=True),
            Contender("json + sha256 + TTLCache + lock", cache_by_hand),
            Contender("fastroute create, answered from the cache", cached_call, ours=True),
        ),
        base="fastroute Cache.key + get",
    ),
    Comparison(
        "A whole call on loopback, one thread",
        (
            NO_OP,
            *(Contender(name, whole(make), name.startswith("fastroute")) for name, make in _CALLS.items()),
        ),
        base="requests.Session.post",
        loops=4,
        rounds=150,
        clock=time.perf_counter,
        note="wall-clock time; ratio: to requests.Session.post",
    ),
    Comparison(
        f"A streamed chunk, of {CHUNKS}: CPU of the reading thread",
        (
            NO_OP,
            Contender("fastroute, chunks as objects", streamed(stream_ours), ours=True),
            Contender("fastroute's transport alone", streamed(stream_transport), ours=True),
            Contender("requests, raw lines", streamed(stream_requests)),
            Contender("httpx, raw lines", streamed(stream_httpx)),
            Contender("openai SDK", streamed(stream_openai)),
            Contender("litellm.completion", streamed(stream_litellm)),
        ),
        base="requests, raw lines",
        loops=1,
        rounds=11,
    ),
)

_THREADED: dict[str, Callable[[float], Sequence[float]]] = {
    "requests.Session for each thread": rates(session_threads),
    "fastroute create, all features on": rates(routed),
    "urllib3 pool": rates(pool),
    "openai SDK": rates(openai),
    "litellm Router": rates(router),
    "(the server's own rate, raw client in another process)": _capacity,
}

TRIALS = (
    Trial(
        "CPU of a call",
        ("calling thread, µs", "process, µs", "over the bare transport, µs"),
        {
            "fastroute's transport alone": cpu(transport),
            "fastroute create, all features on": cpu(routed),
            "fastroute create, all features and hedging on": cpu(hedged),
            "openai SDK": cpu(openai),
            "litellm Router": cpu(router),
        },
        seconds=1.0,
        rounds=5,
        note="the process's share includes the ledger's own thread",
    ),
    Trial(
        "CPU of a call while 32 threads call",
        ("process, µs",),
        {
            "requests.Session for each thread": cpu_threads(session_threads),
            "fastroute create, all features on": cpu_threads(routed),
            "fastroute's transport alone": cpu_threads(transport),
            "urllib3 pool": cpu_threads(pool),
        },
        seconds=0.6,
        rounds=7,
        base="requests.Session for each thread",
        ratio="process, µs",
        note="less affected by the load of the machine than a rate",
    ),
    Trial(
        "Calls per second, provider without latency",
        ("1 thread", "8 threads", "32 threads"),
        _THREADED,
        seconds=1.0,
        rounds=3,
        base="requests.Session for each thread",
        ratio="32 threads",
        note="ratio: at 32 threads",
    ),
)
