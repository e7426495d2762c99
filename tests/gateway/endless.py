"""A provider whose streams go on for as long as somebody takes them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable

DELTA = {"index": 0, "delta": {"content": "word " * 200}, "finish_reason": None}
SHAPE = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [DELTA]}
EVENT = f"data: {json.dumps(SHAPE)}\n\n".encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Endless:
    """The provider.

    Attributes:
        sent: bytes of all streams together.
        held_up: streams of which nothing was taken for a second.
        left: streams that have ended, because nobody takes them any longer.
    """

    MOST = 64 << 20

    def __init__(self) -> None:
        self.sent = self.held_up = self.left = 0
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(20)
        self._listener.close()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)

    def wait_until(self, holds: Callable[[Endless], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), 20)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self._lines.append(line)
                self._threads.append(threading.Thread(target=self._serve, args=(line,)))
                self._threads[-1].start()

    def _serve(self, line: socket.socket) -> None:
        held_up = False
        with line, contextlib.suppress(OSError):
            line.settimeout(1.0)
            while b"\r\n\r\n" not in line.recv(65536):
                pass
            line.sendall(HEAD)
            own = 0
            while own < self.MOST:
                try:
                    size = line.send(EVENT)
                except TimeoutError:
                    if not held_up:
                        held_up = True
                        self._change(held_up=1)
                else:
                    own += size
                    self._change(sent=size)
        self._change(left=1)

    def _change(self, **more: int) -> None:
        with self._changed:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)
            self._changed.notify_all()
