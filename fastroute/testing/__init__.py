"""A scriptable provider of language models on loopback, to test how a client handles failures.

    with Provider(models=["gpt-4.1"], latency=0.05) as provider:
        provider.script(Fault.status(503), Fault.reset())
        ...  # a client with base_url=provider.base_url gets a 503, a reset, then good answers
        assert len(provider.requests) == 3

It is a real HTTP/1.1 server that shares no code with fastroute's client. `Provider` is the server, `Fault` a
failure to simulate, `Answer` the content of an answer, `Received` a request that arrived. Start one from a
shell with ``python -m fastroute.testing``.
"""

from .answer_source import Answer, count_tokens
from .faults import Fault
from .formats import FORMATS
from .latency import Fixed, Lognormal, Uniform
from .openai_format import ERRORS, StreamStyle
from .provider import Provider
from .rate_limits import go_duration
from .settings import Received
from .wire import FRAMINGS, Repeat

__all__ = [
    "ERRORS",
    "FORMATS",
    "FRAMINGS",
    "Answer",
    "Fault",
    "Fixed",
    "Lognormal",
    "Provider",
    "Received",
    "Repeat",
    "StreamStyle",
    "Uniform",
    "count_tokens",
    "go_duration",
]
