"""``python -m fastroute.testing``: runs a local provider until Ctrl-C.

With ``--json-config`` it is the child process of a ``Provider(process=True)`` and reads its settings and
commands from standard input.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

from .formats import FORMATS
from .hosts import serve_commands
from .latency import Lognormal
from .provider import Provider


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastroute.testing", description="A local provider of language models."
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 for a free port (default)")
    add("--host", default="127.0.0.1")
    add("--format", choices=tuple(FORMATS), default="openai", help="the wire format (default: openai)")
    add("--model", action="append", default=[], help="a model to serve; repeatable; default: every name")
    add("--answer", help="the text of the answers; default: the last user message")
    add("--tokens", type=int, help="answer with this many tokens of lorem ipsum")
    add("--latency", type=float, default=0.0, help="seconds until an answer starts")
    add("--sigma", type=float, default=0.0, help="spread of the latency: log-normal around --latency")
    add("--tokens-per-second", type=float)
    add("--requests-per-minute", type=int)
    add("--tokens-per-minute", type=int)
    add("--fail-rate", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    add("--lenient", action="store_true", help="accept what OpenAI or Azure itself refuses")
    add("--seed", type=int, default=0)
    add("--json-config", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.json_config:
        serve_commands(sys.stdin.buffer, sys.stdout.buffer)
        return 0
    try:
        provider = Provider(
            options.model,
            format=options.format,
            answer=options.answer if options.tokens is None else options.tokens,
            latency=Lognormal(options.latency, options.sigma) if options.sigma else options.latency,
            tokens_per_second=options.tokens_per_second,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            fail_rate=options.fail_rate,
            strict=not options.lenient,
            seed=options.seed,
            host=options.host,
            port=options.port,
        ).start()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        print(provider.base_url, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        provider.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
