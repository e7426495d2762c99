"""A scriptable provider of language models on loopback, to test what happens when one misbehaves.

    with Provider(models=["gpt-4.1"], latency=0.05) as provider:
        provider.script(Fault.status(503), Fault.reset())
        ...  # a client with base_url=provider.base_url meets a 503, a reset, then good answers
        assert len(provider.requests) == 3

A real HTTP/1.1 server with nothing of fastroute's own client in it. `Provider` is the server, `Fault` what
goes wrong, `Answer` what is said, `Received` what arrived. ``python -m fastroute.testing`` starts one by
hand.
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
