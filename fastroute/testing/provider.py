"""`Provider`: what a test holds in its hand.

Owns the public face only: arguments are checked here, everything else is a command to the server, which runs
in a thread or a process (`_hosts`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

from .answer_source import AnswerSource
from .faults import Fault
from .formats import FORMATS
from .hosts import Host, ProcessHost, ThreadHost
from .latency import Latency
from .openai_format import StreamStyle
from .server import ScriptFunction
from .settings import CHANGEABLE, Received, Settings


def _setting(name: str, doc: str) -> Any:
    def get(self: Provider) -> Any:
        return self._call("setting", name) if self._host is not None else getattr(self._settings, name)

    def change(self: Provider, value: Any) -> None:
        self.configure(**{name: value})

    return property(get, change, doc=doc)


def _count(name: str, doc: str) -> Any:
    def get(self: Provider) -> int:
        return int(self._call("counts")[name])

    return property(get, doc=doc)


class Provider:
    """A provider of language models on loopback: a real HTTP server that answers as it is told.

    It starts on ``with`` or `start`, and is stopped at the end or by `stop`. All methods may be called from
    any thread, scripted functions included.

    Args:
        models: names that it serves; any other is a 404. Empty serves every name.
        format: the wire format: ``openai`` or another of ``FORMATS``.
        answer: None echoes the last user message, a text is itself, a number is so many tokens of lorem
            ipsum, an `Answer` is used as it stands, a function gets the `Received` and returns a text or an
            `Answer`. A required tool call or JSON is made to its schema around the text.
        latency: seconds until an answer begins: a number, `Fixed`, `Uniform`, `Lognormal`, or a function of
            a ``random.Random``.
        tokens_per_second: pace of a stream; a plain answer takes as long as its tokens. None: no time.
        api_keys: if any are given, other keys get a 401.
        requests_per_minute, tokens_per_minute: rate limits, with a minute's worth at once; an answer's
            prompt and completion tokens count when the request arrives.
        cached_tokens, reasoning_tokens: reported in the usage; cached ones at most up to the prompt's.
        style: how streams are written.
        fail_rate: share of requests (0 to 1) that meet a random one of ``fail_with`` (500, 503, reset).
        seed: of all random choices.
        log_size: how many requests are remembered, the newest; at most 256 MiB of bodies.
        host, port: where it listens; port 0 takes a free one.
        process: whether it runs in a process of its own, so that it shares neither the interpreter lock
            nor a fork's memory. Functions cannot be sent there.

    Raises:
        ValueError, TypeError: for arguments that make no sense.
    """

    def __init__(
        self,
        models: Iterable[str] = (),
        *,
        format: str = "openai",
        answer: AnswerSource = None,
        latency: Latency = 0.0,
        tokens_per_second: float | None = None,
        api_keys: Iterable[str] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        style: StreamStyle | None = None,
        fail_rate: float = 0.0,
        fail_with: Iterable[Fault] | None = None,
        seed: int = 0,
        log_size: int = 10_000,
        host: str = "127.0.0.1",
        port: int = 0,
        process: bool = False,
    ) -> None:
        for name, texts in (("models", models), ("api_keys", api_keys)):
            if isinstance(texts, str):
                raise TypeError(f"{name}: a string; use a list of strings")
        more: dict[str, Any] = {} if fail_with is None else {"fail_with": tuple(fail_with)}
        self._settings = Settings(
            models=tuple(models),
            format=format,
            answer=answer,
            latency=latency,
            tokens_per_second=tokens_per_second,
            api_keys=tuple(api_keys),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            cached_tokens=cached_tokens,
            reasoning_tokens=reasoning_tokens,
            style=style or StreamStyle(),
            fail_rate=fail_rate,
            seed=seed,
            log_size=log_size,
            **more,
        )
        self._address = (host, port)
        self._process = process
        self._host: Host | None = None

    # ------------------------------------------------------------------------------------------ life

    def start(self) -> Provider:
        """Listen. A stopped provider may be started again: a new server, an empty log.

        Raises:
            OSError: if the address is in use.
            RuntimeError: if it is running already.
        """
        if self._host is not None:
            raise RuntimeError("the provider is running already")
        self._host = (ProcessHost if self._process else ThreadHost)(self._settings, *self._address)
        return self

    def stop(self) -> None:
        """Close all connections, the thread or process, and the port. Twice is once."""
        host, self._host = self._host, None
        if host is not None:
            host.stop()

    def __enter__(self) -> Provider:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Host:
        if self._host is None:
            raise RuntimeError("the provider is not running; use 'with Provider(...)' or start()")
        return self._host

    def _call(self, command: str, *arguments: Any) -> Any:
        return self._running().call(command, *arguments)

    @property
    def port(self) -> int:
        """The port it listens on; the same after `kill` and `restart`."""
        return self._running().port

    @property
    def pid(self) -> int:
        """Id of the process the server runs in."""
        return self._running().pid

    @property
    def url(self) -> str:
        """``http://HOST:PORT``, without the format's base path."""
        host = self._address[0]
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What a client is given: ``http://127.0.0.1:PORT/v1``."""
        return self.url + FORMATS[self._settings.format].base_path

    def pause(self) -> None:
        """Take requests and send nothing more, in running answers too, until `resume`."""
        self._call("pause")

    def resume(self) -> None:
        """Go on with all that was held."""
        self._call("resume")

    def kill(self) -> None:
        """Go down: open connections are reset, new ones refused. The log and the port are kept."""
        self._call("kill")

    def restart(self) -> None:
        """Come back on the same port, after `kill` or as a restart of its own."""
        self._call("restart")

    # ---------------------------------------------------------------------------------------- script

    def script(self, *faults: Fault | ScriptFunction | None, repeat: bool = False) -> None:
        """Say what the next requests meet, one fault each in order; None is a good answer.

        More calls add to the end. With ``repeat`` the faults given start over when they are used up, until
        the next call. A single function instead is asked about every request that finds the list empty: it
        gets the `Received` and returns a fault or None. Every request counts, whatever its path.

        Raises:
            TypeError: for anything else.
        """
        if len(faults) == 1 and callable(faults[0]) and not isinstance(faults[0], Fault):
            if repeat:
                raise TypeError("script: a function is asked every time; repeat is for faults")
            self._call("script_function", faults[0])
            return
        for place, fault in enumerate(faults):
            if fault is not None and not isinstance(fault, Fault):
                raise TypeError(f"script: argument {place} is {type(fault).__name__}; use Fault.…, or None")
        self._call("script", faults, repeat)

    def clear_script(self) -> None:
        """Forget the faults that are left, and the function."""
        self._call("clear_script")

    def configure(self, **changes: Any) -> None:
        """Change settings at once, while it runs or before; their names are the constructor's.

        Raises:
            TypeError: for a setting that is fixed once it runs.
        """
        unknown = sorted(set(changes) - set(CHANGEABLE))
        if unknown:
            raise TypeError(f"{', '.join(unknown)} cannot be changed; use one of {', '.join(CHANGEABLE)}")
        if "fail_with" in changes:
            changes["fail_with"] = tuple(changes["fail_with"])
        settings = replace(self._settings, **changes)
        if self._host is not None:
            self._call("configure", changes)
        self._settings = settings

    answer = _setting("answer", "What it answers; see the constructor.")
    latency = _setting("latency", "Seconds until an answer begins; see the constructor.")
    tokens_per_second = _setting("tokens_per_second", "Pace of the answers; None for none.")
    fail_rate = _setting("fail_rate", "Share of requests that meet a random fault, 0 to 1.")

    # ------------------------------------------------------------------------------------------- log

    @property
    def requests(self) -> tuple[Received, ...]:
        """What it received, oldest first; at most ``log_size``."""
        received: tuple[Received, ...] = self._call("requests")
        return received

    def clear_requests(self) -> None:
        """Empty the log; the counts stay."""
        self._call("clear_requests")

    received = _count("received", "Requests received since the start.")
    connections = _count("connections", "Connections accepted since the start.")
    open_connections = _count("open_connections", "Connections that are open now.")
    in_flight = _count("in_flight", "Requests received and not yet answered in full.")
    peak_in_flight = _count("peak_in_flight", "The most that were in flight at once.")
    abandoned = _count("abandoned", "Answers that a client, or `kill`, cut off before their end.")

    def wait_until(self, condition: Callable[[Provider], bool], timeout: float = 5.0) -> None:
        """Wait until a condition on this provider holds, such as ``lambda p: p.in_flight == 3``.

        Raises:
            TimeoutError: if it does not within ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"the condition did not hold within {timeout} s; counts: {self._call('counts')}"
                )
            time.sleep(0.001)

    def __repr__(self) -> str:
        where = "stopped" if self._host is None else self.base_url
        return f"<Provider {where} models={list(self._settings.models)}>"
