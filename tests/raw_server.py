"""A server of bare sockets that answers with given bytes and ends at a given one of them.

It reads each request whole, by its Content-Length, and knows no more of HTTP than that: what it sends is the
test's. One thread serves one connection at a time after the other, unless ``parallel`` says how many.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Ending = Literal["keep", "cut", "reset", "stall"]


@dataclass(frozen=True)
class Say:
    """What is sent for a request, and what is done then.

    Attributes:
        data: bytes of the answer.
        ending: ``keep`` waits for the next request, ``cut`` closes, ``reset`` aborts, ``stall`` sends nothing
            more until the other side has closed.
        pieces: where to cut the data into sends.
    """

    data: bytes
    ending: Ending = "keep"
    pieces: tuple[int, ...] = ()


class RawServer:
    """Answers every request with ``say``; ``plan`` is used up before that, one entry a request.

    With ``certificate``, the files of a key and its certificate, it speaks TLS.

    Attributes:
        patience: whether the whole of a request is waited for, or its head only.
        connections: how many were opened, and shaken hands on.
    """

    def __init__(self, parallel: int = 1, certificate: tuple[Path, Path] | None = None) -> None:
        self.say = Say(b"")
        self.plan: list[Say] = []
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.patience = True
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate[1], certificate[0])
        self.base_url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}/v1"
        self.connections = 0
        self._stopping = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve) for _ in range(parallel)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the other side may have reset it
                    connection.shutdown(socket.SHUT_RDWR)
        for _thread in self._threads:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                break
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def _serve(self) -> None:
        while not self._stopping:
            connection, _ = self._listener.accept()
            with connection:
                with self._lock:
                    self._open.add(connection)
                try:
                    if self._tls is None:
                        self._talk(connection)
                    else:
                        connection.getpeername()  # else the ssl module would leave one that was reset open
                        # By the plain socket it can be shut; this one is closed here.
                        with self._tls.wrap_socket(connection.dup(), server_side=True) as secure:
                            self._talk(secure)
                except OSError:
                    pass  # the client has gone, which is its right
                finally:
                    with self._lock:
                        self._open.discard(connection)

    def _talk(self, connection: socket.socket) -> None:
        self.connections += 1
        while not self._stopping and self._answer(connection):
            pass

    def _answer(self, connection: socket.socket) -> bool:
        """Whether the connection is kept."""
        request = _request(connection, self.patience)
        if request is None:
            return False
        self.requests.append(request)
        say = self.plan.pop(0) if self.plan else self.say
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = 0
        for end in (*say.pieces, len(say.data)):
            if say.data[start:end]:
                connection.sendall(say.data[start:end])
            start = end
        if say.ending == "keep":
            return True
        if say.ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif say.ending == "stall":
            while connection.recv(65536):
                pass
        return False


def _request(connection: socket.socket, patience: bool) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    if not patience:
        return data
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return None
        body += part
    return data
