"""An attempt that loses to its hedge ends at once, and does not affect a later request on its connection."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from loopback import MODEL, Loopback, resolver_that_hangs, within
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import HTTPResponse

from fastroute import errors, events
from fastroute.calls.call import Call, Race
from fastroute.testing import Provider
from fastroute.transport import Exchange, Transport, connection, request_timer
from fastroute.transport.request_timer import RequestTimer

Start = Callable[..., Loopback]
LATE = 20.0  # seconds: every clock that could end the loser by itself
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PACKED = gzip.compress(b'{"id": "1", "object": "chat.completion", "choices": []}')


class Mute:
    """Says so much to whoever connects, then nothing until it is left.

    Attributes:
        port: on 127.0.0.1.
        met: set when a first byte has come and it has said what it says.
        left: set when the connection has ended at the other side.
    """

    def __init__(self, says: bytes, *, reads: bool = True) -> None:
        self._says = says
        self._reads = reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.met, self.left = threading.Event(), threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="mute")
        self._thread.start()

    def close(self) -> None:
        self._go.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # nobody came
        with peer:
            peer.settimeout(LATE)
            try:
                peer.recv(1, socket.MSG_PEEK)
                if self._says:
                    peer.recv(65536)
                    peer.sendall(self._says)
                self.met.set()
                if not self._reads:
                    self._go.wait(LATE)  # leaves the buffers full
                while peer.recv(1 << 20):
                    pass
                self.left.set()
            except OSError:
                self.left.set()


@pytest.fixture
def mute() -> Iterator[Callable[..., Mute]]:
    started: list[Mute] = []

    def start(says: bytes = b"", **how: Any) -> Mute:
        started.append(Mute(says, **how))
        return started[-1]

    yield start
    for each in started:
        each.close()


class BlackHole:
    """A port at which no connection is ever made: its line of those that wait is full."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._waiting = [socket.socket() for _ in range(4)]
        for each in self._waiting:
            each.setblocking(False)
            each.connect_ex(self._listener.getsockname())
        self._ours = {each.getsockname()[1] for each in self._waiting}

    def met(self, timeout: float) -> bool:
        """Whether another connection to it is tried within the time, as the system says (where it does)."""
        end = time.monotonic() + timeout
        while os.path.exists("/proc/net/tcp") and not self._tried() - self._ours:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _tried(self) -> set[int]:
        found = set()
        with open("/proc/net/tcp", encoding="ascii") as file:
            for line in file.readlines()[1:]:
                _, here, there, state, *_ = line.split()
                if int(there.partition(":")[2], 16) == self.port and state == "02":  # SYN_SENT
                    found.add(int(here.partition(":")[2], 16))
        return found

    def close(self) -> None:
        for each in (self._listener, *self._waiting):
            each.close()


@pytest.fixture
def hole() -> Iterator[BlackHole]:
    hole = BlackHole()
    yield hole
    hole.close()


def hedged(start: Start, url: str | None = None, *, session: Any = None, **more: Any) -> Loopback:
    """A client whose first endpoint is at this address, if one is given, and known to be quick."""
    if url is not None:
        more["base_url"] = url
    loop = start(
        2,
        session=session,
        fastroute={"connect_timeout": LATE, "timeout": 2 * LATE},
        policy={
            "timeout_base": LATE,
            "hedging": {"enabled": True, "min_delay": 0.02, "min_samples": 10, "max_share": 1.0},
        },
        providers={"a": more},
    )
    for stream in (False, True):
        tail = loop.client.runtime.generation.state.named(f"a/{MODEL}").tail(stream)
        assert tail is not None
        for _ in range(20):
            tail.record(0.001)
    return loop


def answered(
    loop: Loopback, met: Callable[[float], bool], *, text: str = "Say hello", stream: bool = False
) -> Any:
    """The line of the attempt that lost; the answer came before it could, and from the other endpoint.

    The other endpoint answers once ``met`` says that the first attempt has come to where it hangs.
    """

    def answer(request: Any) -> None:
        assert met(LATE)

    loop.provider("b").script(answer)
    with within(LATE / 2):
        if stream:
            with loop.stream(text) as chunks:
                list(chunks)
            route: Any = chunks.route
        else:
            route = loop.ask(text).route
    assert route.endpoint == f"b/{MODEL}"
    loser, winner = loop.attempts
    assert (loser.endpoint, loser.outcome, winner.outcome) == (f"a/{MODEL}", "hedge_lost", "ok")
    assert [attempt.outcome for attempt in route.attempts] == ["hedge_lost", "ok"]
    return loser


def free(loser: Any) -> None:
    """Not a byte of it went out: nobody can charge for it."""
    assert (loser.cost_nano, loser.usage_source, loser.maybe_billed) == (0, "none", False)


def charged(loser: Any) -> None:
    assert (loser.usage_source, loser.maybe_billed) == ("estimated", True)
    assert loser.cost_nano > 0


# -------------------------------------------------------------------------------------- in every phase


@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
def test_while_its_name_is_resolved(start: Start, own: bool) -> None:
    with requests.Session() as session, resolver_that_hangs("hangs.invalid") as resolver:
        loop = hedged(start, "https://hangs.invalid/v1", session=None if own else session)
        free(answered(loop, resolver.asked.wait))


@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
def test_while_it_connects(start: Start, hole: BlackHole, own: bool) -> None:
    with requests.Session() as session:
        loop = hedged(start, f"http://127.0.0.1:{hole.port}/v1", session=None if own else session)
        free(answered(loop, hole.met))


def test_while_one_of_its_addresses_is_connected_to_no_other_is_tried(
    start: Start, hole: BlackHole, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def two(host: Any, *more: Any, **named: Any) -> Any:
        if host == "two.invalid":
            return [*real("127.0.0.1", *more, **named), *real("127.0.0.2", *more, **named)]
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    free(answered(hedged(start, f"https://two.invalid:{hole.port}/v1"), hole.met))


@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
def test_in_the_tls_handshake(start: Start, mute: Callable[..., Mute], own: bool) -> None:
    server = mute()
    with requests.Session() as session:
        url = f"https://127.0.0.1:{server.port}/v1"
        free(answered(hedged(start, url, session=None if own else session), server.met.wait))
    assert server.left.wait(5)


def test_while_a_proxy_connects_it(start: Start, mute: Callable[..., Mute]) -> None:
    server = mute()
    loop = hedged(start, "https://far.invalid/v1", proxy=f"http://127.0.0.1:{server.port}")
    free(answered(loop, server.met.wait))
    assert server.left.wait(5)


def test_while_a_proxy_waits_for_the_answer(start: Start, mute: Callable[..., Mute]) -> None:
    server = mute()
    loop = hedged(start, "http://127.0.0.1:9/v1", proxy=f"http://127.0.0.1:{server.port}")
    charged(answered(loop, server.met.wait))
    assert server.left.wait(5)


@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
def test_while_a_long_body_goes_out(start: Start, mute: Callable[..., Mute], own: bool) -> None:
    server = mute(reads=False)
    with requests.Session() as session:
        loop = hedged(start, f"http://127.0.0.1:{server.port}/v1", session=None if own else session)
        charged(answered(loop, server.met.wait, text="x" * (5 << 20)))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "session"])
@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Ty",
        HEAD + b"Content-Length: 300\r\n\r\n",
        HEAD + b'Content-Length: 300\r\n\r\n{"id"',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"id\r\n',
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(PACKED), PACKED[:-9]),
        EVENTS + b"\r\n: still there\n\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 300\r\n\r\n{",
    ],
    ids=["silent", "head", "no body", "body", "chunk", "gzip", "comment", "error"],
)
def test_while_its_answer_is_read(
    start: Start, mute: Callable[..., Mute], says: bytes, own: bool, stream: bool
) -> None:
    server = mute(says)
    with requests.Session() as session:
        loop = hedged(start, f"http://127.0.0.1:{server.port}/v1", session=None if own else session)
        charged(answered(loop, server.met.wait, stream=stream))
        assert server.left.wait(5)


def test_while_it_is_not_even_prepared(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hedge whose call is over before it began to send is not sent, whatever it has looked at so far."""
    loop = hedged(start)
    begun, over = threading.Event(), threading.Event()
    usual = Call.hedged

    def late(call: Call, *rest: Any) -> Call:
        begun.set()
        assert over.wait(LATE)
        return usual(call, *rest)

    monkeypatch.setattr(Call, "hedged", late)

    def answer(request: Any) -> None:
        assert begun.wait(LATE)

    loop.provider("a").script(answer)
    reply = loop.ask()
    over.set()
    loop.client.runtime.hedge_workers.close()  # waits for the one under way
    assert reply.route is not None
    assert [attempt.outcome for attempt in reply.route.attempts] == ["ok"]
    assert loop.provider("b").received == 0
    assert loop.of(events.Hedged) == []


# ------------------------------------------------------------------------- a connection that others use


@pytest.fixture
def pooled() -> Iterator[tuple[Provider, Callable[[], tuple[RequestTimer, Exchange]]]]:
    """A provider, and what sends it a request on the one connection that there is to it."""
    with Provider() as provider:
        transport = Transport()
        prepared = transport.prepare(
            provider.base_url + "/chat/completions", {"content-type": "application/json"}
        )
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'

        def send() -> tuple[RequestTimer, Exchange]:
            watch = RequestTimer(time.monotonic() + LATE)
            return watch, transport.send(prepared, body, watch, read_timeout=LATE)

        yield provider, send
        transport.close()


Pooled = tuple[Provider, Callable[[], tuple[RequestTimer, Exchange]]]


def test_a_request_that_is_over_is_cut_in_vain(pooled: Pooled) -> None:
    provider, send = pooled
    first, exchange = send()
    exchange.body()
    second, other = send()
    first.cut()
    assert b"choices" in other.body()
    assert (provider.connections, second.resent) == (1, False)
    second.cut()
    assert b"choices" in send()[1].body()  # nor is one cut that only waits to be used
    assert provider.connections == 1


class Next(threading.Thread):
    """The next request on the connection, answered when the test says so."""

    def __init__(self, pooled: Pooled) -> None:
        super().__init__()
        provider, self._send = pooled
        self.asked, self.go = threading.Event(), threading.Event()
        self.answer: Any = None
        provider.script(self._answer)

    def run(self) -> None:
        watch, exchange = self._send()
        self.answer = exchange.body(), watch.resent

    def _answer(self, request: Any) -> None:
        self.asked.set()
        assert self.go.wait(LATE)

    def check(self) -> None:
        self.go.set()
        self.join()
        body, resent = self.answer
        assert b"choices" in body
        assert not resent


def test_nor_while_its_connection_is_being_handed_back(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request may have it before urllib3 notes that this one has not."""
    provider, send = pooled
    first, exchange = send()
    after = Next(pooled)
    put = HTTPConnectionPool._put_conn

    def handed_on(pool: Any, connection: Any) -> None:
        put(pool, connection)
        if not after.ident:
            after.start()
            assert after.asked.wait(LATE)
            first.cut()

    monkeypatch.setattr(HTTPConnectionPool, "_put_conn", handed_on)
    with pytest.raises(errors.APITimeoutError):
        exchange.body()
    after.check()
    assert provider.connections == 1


def test_nor_between_the_look_at_it_and_the_cut(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cuts has seen a request under way, which ends before the socket is shut."""
    _, send = pooled
    first, exchange = send()
    after = Next(pooled)

    read: Any = HTTPResponse.connection

    def connection(raw: Any) -> Any:
        seen = read.fget(raw)
        if not after.ident:
            exchange.body()
            after.start()
            after.join(0.3)  # it has to wait for the cut where it could be hurt by it
        return seen

    monkeypatch.setattr(HTTPResponse, "connection", property(connection))
    first.shut()
    after.check()


def test_a_race_that_is_over_lets_nobody_in() -> None:
    class Never:
        def lose(self, output_tokens: int | None) -> None:
            raise AssertionError("it did not take part")

    race = Race()
    race.end()
    with pytest.raises(Exception, match="quicker"):
        race.enter(Never())
    assert not race.win(Never())


def test_what_goes_out_again_may_have_arrived_the_first_time() -> None:
    watch = RequestTimer(time.monotonic() + LATE)
    assert not watch.unsent  # as it is where nobody reports what a connection does
    watch.opening = True
    assert watch.unsent
    watch.resent = True
    assert not watch.unsent


def test_a_connection_that_was_cut_is_opened_again_once() -> None:
    """urllib3 opens one for TLS before there is a request on it, in the place of the one that was shut."""
    opened: list[bool] = []

    class Counted:
        sock: Any = None
        watch: RequestTimer | None = None

        def connect(self) -> None:
            opened.append(True)
            self.sock = socket.socket()

        def close(self) -> None:
            if self.sock is not None:
                self.sock.close()
            self.sock = None

    before = RequestTimer(time.monotonic() + LATE)
    with socket.socket() as gone:
        before.hold(gone)
        before.shut()

    class Reporting(connection.Reporting, Counted):
        pass

    one: Any = Reporting()
    one.timer = before
    request_timer.current.timer = watch = RequestTimer(time.monotonic() + LATE)
    try:
        one.connect()
        connection.begin_request(one)
        assert one.sock is not None
        assert not watch.reused
    finally:
        request_timer.current.timer = None
        one.close()
    assert opened == [True]
