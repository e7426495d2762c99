"""``fastroute demo``: routes calls to local providers that fail, without keys and servers.

The providers, the configuration and the calls are in `demo_run.py`, the live display in `demo_view.py`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import dollars, duration

from .group import INTERRUPTED, json_option, refuse, visible
from .output import dim, no_warnings, print_json
from .prompts import read_prompts

if TYPE_CHECKING:
    from .demo_run import Demo, Result

Messages = Sequence[Mapping[str, Any]]


@click.command("demo")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of JSON lines, each with messages. [default: 300 prompts of the package]",
)
@click.option("--threads", type=click.IntRange(1, 256), default=16, show_default=True, help="Calls at once.")
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Seed of the providers' times and faults."
)
@click.option("--fast", is_flag=True, help="Providers answer four times as fast.")
@json_option
def command(prompts: str | None, threads: int, seed: int, fast: bool, as_json: bool) -> None:
    """Watch fastroute route calls to local providers that fail.

    Starts four providers on this machine, each in a process of its own, one of them flaky, and sends them
    realistic prompts from many threads with model="auto". When 35 % are done the main provider of the
    standard tier is killed; at 55 % it is started again. Nothing leaves this machine and no key is needed:
    the answers are made up, and the prices are the catalogue's. The exit status is 0 only if every prompt was
    answered.

    \b
    Examples:
      fastroute demo
      fastroute demo --fast --json
    """
    from .demo_run import Demo

    asked = read_messages(prompts)
    with no_warnings(), tempfile.TemporaryDirectory(prefix="fastroute-demo-") as folder:
        demo = Demo(
            asked, os.path.join(folder, "demo.db"), threads=threads, seed=seed, speed=4 if fast else 1
        )
        try:
            with _signals_end_it(), demo:
                _watch(demo, quiet=as_json)
                result = demo.result()
                spent = None if as_json else demo.spent()
        except KeyboardInterrupt:
            dim("interrupted; the providers have been stopped")
            raise SystemExit(INTERRUPTED) from None
        except _Terminated as ended:
            raise SystemExit(128 + ended.signal) from None
    if spent is None:
        print_json(result.figures())
    else:
        from .report import print_compact

        click.echo(_summary(result))
        click.echo("\nFrom the ledger:")
        print_compact(spent)
    raise SystemExit(1 if result.failed else 0)


class _Terminated(BaseException):
    """A signal asked the process to end."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end the demo like Ctrl-C, so that its providers are stopped."""

    def end(number: int, frame: object) -> None:
        raise _Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals can only be handled in the main thread
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(demo: Demo, *, quiet: bool) -> None:
    """Runs the calls and shows them: live on a terminal, otherwise as a few lines on standard error."""
    if not quiet and sys.stdout.isatty():
        from .demo_view import watch

        watch(demo)
        return
    demo.start()
    quarter = 1
    while True:
        ended = demo.wait(0.1)
        for line in demo.board.news():
            dim(line)
        done = demo.board.done
        while quarter <= 4 and done * 4 >= demo.total * quarter:
            dim(f"{demo.elapsed():6.2f} s  {quarter * 25} %: {done} of {demo.total} calls done")
            quarter += 1
        if ended:
            return


def read_messages(path: str | None) -> list[Messages]:
    """The messages of every prompt in a file, or without a path in the package's own file.

    Raises:
        ClickException: if a line is not a prompt that can be sent.
    """
    if path is None:
        name = "demo_prompts.jsonl"
        data = resources.files("fastroute").joinpath(f"cli/{name}").read_bytes()
    else:
        name = path
        with open(path, "rb") as file:
            data = file.read()
    found: list[Messages] = []
    for prompt in read_prompts(data, name):
        if not prompt.messages or not all(map(_can_be_sent, prompt.messages)):
            refuse(f"{name}, line {prompt.line}: must have messages, each with a role and content")
        found.append(prompt.messages)
    return found


def _can_be_sent(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("role"), str) and "content" in message


def _summary(result: Result) -> str:
    saved = result.premium_cost_nano - result.cost_nano
    share = f", {100 * saved / result.premium_cost_nano:.0f} % saved" if result.premium_cost_nano else ""
    lost = "none was lost" if not result.failed else f"{result.failed} LOST"
    lines = [
        "",
        f"{result.ok} of {result.calls} calls answered, {lost}, in {duration(result.wall_s)} "
        f"({result.calls / result.wall_s:.0f} per second)",
        f"attempts    {result.attempts}, of which {result.failed_attempts} failed; "
        f"{result.failovers} fail-overs",
        f"breakers    opened {_times(result.breakers_opened)}, closed again {_times(result.breakers_closed)}"
        + (f"; still open: {', '.join(result.still_open)}" if result.still_open else ""),
        f"latency     p50 {duration(result.p50_ms / 1e3)}, p95 {duration(result.p95_ms / 1e3)}, "
        f"p99 {duration(result.p99_ms / 1e3)}",
        f"cost        {dollars(result.cost_nano)}; all by {result.premium_model}: "
        f"{dollars(result.premium_cost_nano)}{share}",
        f"classes     {', '.join(f'{level} {count}' for level, count in result.by_class.items())}",
    ]
    for error, count in result.errors.items():
        lines.append(f"lost to {error}: {count}")
    return visible("\n".join(lines))


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"
