"""`Provider`, the public class: checks arguments and sends commands to the server's thread or process."""

from __future__ import annotations

import sys
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
    """A provider of language models on loopback: a real HTTP server with scripted answers.

    It starts on ``with`` or `start`, and stops at the end of the block or by `stop`. All methods may be
    called from any thread, also from scripted functions.

    Args:
        models: names of the models to serve; any other is a 404. Empty to serve every name.
        format: the wire format: ``openai`` or another of ``FORMATS``.
        answer: None to echo the last user message; a text; a number of tokens of lorem ipsum; an `Answer`; or
            a function that gets the `Received` and returns a text or an `Answer`. A required tool call or
            JSON is generated from its schema with the text as strings.
        latency: seconds until an answer starts: a number, `Fixed`, `Uniform`, `Lognormal`, or a function of a
            ``random.Random``.
        tokens_per_second: speed of a stream; a plain answer takes the time of all its tokens. None for no
            delay.
        api_keys: if any are given, other keys get a 401.
        requests_per_minute, tokens_per_minute: rate limits; a minute's worth may be used at once. An answer's
            prompt and completion tokens are counted when the request arrives.
        cached_tokens, reasoning_tokens: reported in the usage; cached tokens at most up to the prompt's.
        style: how streams are written.
        fail_rate: share of requests (0 to 1) that get a random one of ``fail_with`` (500, 503, reset).
        strict: whether requests are refused that the vendor of the format refuses, such as unknown parameters
            and tool results without a call. False, with the formats ``openai`` and ``azure``, for what other
            servers with these formats take.
        seed: seed of all random choices.
        log_size: number of requests to keep, the newest; at most 256 MiB of bodies.
        host, port: the address to listen on; port 0 for a free one.
        process: whether it runs in a process of its own, so that it shares neither the interpreter lock
            nor a fork's memory. Functions cannot be sent there.

    Raises:
        ValueError, TypeError: for invalid arguments.
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
        strict: bool = True,
        seed: int = 0,
        log_size: int = 10_000,
        host: str = "127.0.0.1",
        port: int = 0,
        process: bool = False,
    ) -> None:
        for name, texts in (("models", models), ("api_keys", api_keys)):
            if isinstance(texts, str):
                raise TypeError(f"{name}: must be a list of strings, not a string")
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
            strict=strict,
            seed=seed,
            log_size=log_size,
            **more,
        )
        self._address = (host, port)
        # A program made by PyInstaller has no interpreter that another process could start with.
        self._process = process and not getattr(sys, "frozen", False)
        self._host: Host | None = None

    # ------------------------------------------------------------------------------------------ life

    def start(self) -> Provider:
        """Start listening. A stopped provider may be started again, with a new server and an empty log.

        Raises:
            OSError: if the address is in use.
            RuntimeError: if it is already running.
        """
        if self._host is not None:
            raise RuntimeError("the provider is already running; call stop() first")
        self._host = (ProcessHost if self._process else ThreadHost)(self._settings, *self._address)
        return self

    def stop(self) -> None:
        """Close all connections, the thread or process, and the port. Idempotent."""
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
        """The port that it listens on; unchanged by `kill` and `restart`."""
        return self._running().port

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        return self._running().pid

    @property
    def url(self) -> str:
        """``http://HOST:PORT``, without the format's base path."""
        host = self._address[0]
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for a client, such as ``http://127.0.0.1:PORT/v1``."""
        return self.url + FORMATS[self._settings.format].base_path

    def pause(self) -> None:
        """Accept requests but send nothing, also in running answers, until `resume`."""
        self._call("pause")

    def resume(self) -> None:
        """Continue after `pause`, and send what was held back."""
        self._call("resume")

    def kill(self) -> None:
        """Reset open connections and refuse new ones. The log and the port are kept."""
        self._call("kill")

    def restart(self) -> None:
        """Listen on the same port again, after `kill` or as a restart by itself."""
        self._call("restart")

    # ---------------------------------------------------------------------------------------- script

    def script(self, *faults: Fault | ScriptFunction | None, repeat: bool = False) -> None:
        """Set the faults of the next requests, one each in order; None for a good answer.

        More calls add to the end. With ``repeat`` the given faults start again when they are used up, until
        the next call. A single function is called for every request while the list is empty: it gets the
        `Received` and returns a fault or None. Every request counts, whatever its path.

        Raises:
            TypeError: for anything else.
        """
        if len(faults) == 1 and callable(faults[0]) and not isinstance(faults[0], Fault):
            if repeat:
                raise TypeError("script: repeat needs faults; a function is called for every request anyway")
            self._call("script_function", faults[0])
            return
        for place, fault in enumerate(faults):
            if fault is not None and not isinstance(fault, Fault):
                raise TypeError(
                    f"script: argument {place} must be a Fault or None, not {type(fault).__name__}"
                )
        self._call("script", faults, repeat)

    def clear_script(self) -> None:
        """Remove the remaining faults and the function."""
        self._call("clear_script")

    def configure(self, **changes: Any) -> None:
        """Change settings at once, also while it runs; the names are those of the constructor.

        Raises:
            TypeError: for a setting that cannot be changed.
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

    answer = _setting("answer", "The answers; see the constructor.")
    latency = _setting("latency", "Seconds until an answer starts; see the constructor.")
    tokens_per_second = _setting("tokens_per_second", "Speed of the answers; None for no delay.")
    fail_rate = _setting("fail_rate", "Share of requests that get a random fault, 0 to 1.")

    # ------------------------------------------------------------------------------------------- log

    @property
    def requests(self) -> tuple[Received, ...]:
        """The requests received, oldest first; at most ``log_size``."""
        received: tuple[Received, ...] = self._call("requests")
        return received

    def clear_requests(self) -> None:
        """Empty the log; the counts are kept."""
        self._call("clear_requests")

    received = _count("received", "Requests received since the start.")
    connections = _count("connections", "Connections accepted since the start.")
    open_connections = _count("open_connections", "Connections that are open now.")
    in_flight = _count("in_flight", "Requests received and not yet answered in full.")
    peak_in_flight = _count("peak_in_flight", "The most that were in flight at once.")
    abandoned = _count("abandoned", "Answers that the client or `kill` cut off before their end.")

    def wait_until(self, condition: Callable[[Provider], bool], timeout: float = 5.0) -> None:
        """Wait until a condition on this provider holds, such as ``lambda p: p.in_flight == 3``.

        Raises:
            TimeoutError: if it does not hold within ``timeout`` seconds.
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
