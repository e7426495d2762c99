"""Scanning a prompt, choosing an endpoint, and both with a limit and a breaker (a decision)."""

from __future__ import annotations

import collections
import itertools
import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import fastroute
from fastroute import _core
from fastroute.config.rules import RuleSet, load_builtin
from fastroute.routing.classifier import Classifier

from .side_by_side import FLOOR, NO_OP, Comparison, Contender, Operation, need

# -------------------------------------------------------------------------------------------------- texts


@cache
def prose() -> str:
    """The prompts of the package, joined."""
    path = Path(fastroute.__file__).parent / "cli" / "demo_prompts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    return " ".join(text for text in texts if text.isascii())


def text_of(size: int) -> str:
    found = prose()
    return (found * (size // len(found) + 1))[:size]


@cache
def rule_set() -> RuleSet:
    """One rule set with all groups of the built-in rule sets."""
    groups: dict[str, Any] = {}
    for known in load_builtin().values():
        for name, group in known.groups.items():
            groups[name] = {"mode": group.mode, "patterns": list(group.patterns)}
    table = {
        "scope": "all",
        "levels": ["low", "high"],
        "rules": [{"level": "high", "when": ["words > 100", "total > 5"]}],
        "otherwise": {"level": "low"},
        "groups": groups,
    }
    return RuleSet.from_mapping("benchmark", table)


def _pattern(text: str, mode: str) -> str:
    if mode == "substring":
        return re.escape(text)
    return r"\b" + "".join("." if letter == "." else re.escape(letter) for letter in text) + r"\b"


def patterns() -> list[str]:
    return [_pattern(text, group.mode) for group in rule_set().groups.values() for text in group.patterns]


# --------------------------------------------------------------------------------------------------- scan


def ours(text: str, level: str, portable: bool = False, per: float = 1.0) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        classifier = Classifier(rule_set(), portable=portable)
        counts, words = _counted(_with_re(text)), len(text.split())
        return Operation(
            "scan(messages, {})",
            {"scan": classifier.scan, "messages": [{"role": "user", "content": text}]},
            lambda scan: (list(scan.counts), scan.words, scan.level) == (counts, words, level),
            per,
        )

    return make


@cache
def _compiled() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns())


def _with_re(text: str) -> list[int]:
    """The patterns that occur. Each is searched separately, because an alternation finds only one per place.

    The text is lowercased first, which is several times faster than IGNORECASE.
    """
    lowered = text.lower()
    return [place for place, pattern in enumerate(_compiled()) if pattern.search(lowered)]


def _counted(found: list[int]) -> list[int]:
    """The number of patterns by group."""
    groups = [place for place, group in enumerate(rule_set().groups.values()) for _ in group.patterns]
    counts = collections.Counter(groups[pattern] for pattern in found)
    return [counts[place] for place in range(len(rule_set().groups))]


def with_re(text: str, per: float = 1.0) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        scan = Classifier(rule_set()).scan([{"role": "user", "content": text}], {})
        return Operation(
            "(found(text), len(text.split()))",
            {"found": _with_re, "text": text},
            lambda answer: (_counted(answer[0]), answer[1]) == (list(scan.counts), scan.words),
            per,
        )

    return make


@cache
def _alternations() -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile("|".join(_pattern(text, group.mode) for text in group.patterns))
        for group in rule_set().groups.values()
    )


def _by_group(text: str) -> tuple[list[int], int]:
    lowered = text.lower()
    return [len(set(group.findall(lowered))) for group in _alternations()], len(text.split())


def with_alternations(text: str, per: float = 1.0) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        names = {"scan": _by_group, "text": text}
        expected = (_counted(_with_re(text)), len(text.split()))
        return Operation("scan(text)", names, lambda answer: answer == expected, per)

    return make


def re2_matcher() -> Callable[[str], list[int] | None]:
    re2 = need("re2")
    options = re2.Options()
    options.case_sensitive = False
    found = re2.Set.SearchSet(options)
    for pattern in patterns():
        found.Add(pattern)
    found.Compile()
    match: Callable[[str], list[int] | None] = found.Match
    return match


def with_re2(text: str, per: float = 1.0) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        expected = _with_re(text)
        names = {"match": re2_matcher(), "text": text}
        return Operation("match(text)", names, lambda hits: sorted(hits or ()) == expected, per)

    return make


def hyperscan_matcher() -> tuple[Callable[[bytes], list[int]], Any]:
    hyperscan = need("hyperscan")
    database = hyperscan.Database()
    expressions = [pattern.encode() for pattern in patterns()]
    database.compile(
        expressions=expressions,
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH,
    )
    hits: list[int] = []

    def heard(place: int, *_: Any) -> None:
        hits.append(place)

    def match(data: bytes) -> list[int]:
        hits.clear()
        database.scan(data, match_event_handler=heard)
        return hits

    return match, database


def with_hyperscan(text: str, per: float = 1.0) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        match, database = hyperscan_matcher()
        expected = _with_re(text)
        names = {"match": match, "text": text, "database": database}
        return Operation("match(text.encode())", names, lambda hits: sorted(hits) == expected, per)

    return make


def compiled(_: ExitStack) -> Operation:
    text = text_of(500)
    messages = [{"role": "user", "content": text}]
    expected = _counted(_with_re(text))
    names = {"Classifier": Classifier, "rules": rule_set()}
    return Operation(
        "Classifier(rules)", names, lambda made: list(made.scan(messages, {}).counts) == expected
    )


def compiled_re2(_: ExitStack) -> Operation:
    text = text_of(500)
    re2_matcher()  # which may be missing
    return Operation("make()", {"make": re2_matcher}, lambda match: sorted(match(text)) == _with_re(text))


def compiled_hyperscan(_: ExitStack) -> Operation:
    text = text_of(500)
    hyperscan_matcher()  # which may be missing
    return Operation(
        "make()", {"make": hyperscan_matcher}, lambda made: sorted(made[0](text.encode())) == _with_re(text)
    )


def _scan(title: str, text: str, level: str, per: float = 1.0, note: str = "") -> Comparison:
    return Comparison(
        title,
        (
            *((NO_OP, FLOOR) if per == 1 else (NO_OP,)),
            Contender("fastroute Classifier.scan", ours(text, level, per=per), ours=True),
            Contender("fastroute, portable kernel", ours(text, level, portable=True, per=per), ours=True),
            Contender("re, a search for each pattern", with_re(text, per)),
            Contender("re, an alternation for each group", with_alternations(text, per)),
            Contender("RE2 set (no words counted)", with_re2(text, per)),
            Contender("Hyperscan (no words counted)", with_hyperscan(text, per)),
        ),
        base="fastroute Classifier.scan",
        note=note,
    )


_LONG = 50_000
# Beginnings of patterns without their ends, so that a filter finds many candidates and no match.
_NEARLY = ("compar optimiz analyz desig extrac trade-of synthesi architec evaluat " * 800)[:_LONG]
_MATCHES = " ".join(
    text.replace(".", " ")
    for _ in range(200)
    for group in rule_set().groups.values()
    for text in group.patterns
)[:_LONG]


SCANS = (
    _scan("Scan of 500 B, 48 words and phrases, words counted", text_of(500), "low"),
    _scan("Scan of 50 KB", text_of(_LONG), "high"),
    _scan("Scan of 50 KB with one letter that is not Latin-1", text_of(_LONG - 1) + "\u2019", "high"),
    _scan("Scan of 50 KB, most of it words that match", _MATCHES, "high"),
    _scan("Scan of 50 KB of words that almost match, per byte", _NEARLY, "low", _LONG, "time per byte"),
    Comparison(
        "Compiling 48 words and phrases",
        (
            NO_OP,
            Contender("fastroute Classifier", compiled, ours=True),
            Contender("RE2 set", compiled_re2),
            Contender("Hyperscan", compiled_hyperscan),
        ),
        base="fastroute Classifier",
    ),
)


# --------------------------------------------------------------------------------------------------- pick


def _endpoints(number: int) -> list[_core.Endpoint]:
    segment = _core.Segment(65536)
    found = [
        _core.Endpoint(
            segment, f"endpoint-{place}", rpm=10**9, request_burst=10**9, tpm=10**9, token_burst=10**9
        )
        for place in range(number)
    ]
    for place, endpoint in enumerate(found):
        for turn in range(60):
            endpoint.finish(endpoint.admit(1), _core.OK, 0.3 + 0.01 * ((place * 7 + turn * 3) % 50))
    return found


def ranking_of(endpoints: list[_core.Endpoint]) -> _core.Ranking:
    number = len(endpoints)
    return _core.Ranking(
        endpoints,
        models=[0] * number,
        windows=[128_000] * number,
        max_outputs=[16_384] * number,
        capabilities=[15] * number,
        input_prices=[2_000_000_000] * number,
        output_prices=[8_000_000_000] * number,
        qualities=[0.9] * number,
        latencies=[1.0] * number,
    )


def _is_least(endpoints: list[_core.Endpoint], place: int, decay: bool = True) -> bool:
    """Whether no endpoint has a smaller load. Many of 200 are equal, and loads decay by the millisecond."""
    now = 0 if decay else 1  # a time before the measurements, at which nothing has decayed
    return endpoints[place].load(now) <= 1.001 * min(endpoint.load(now) for endpoint in endpoints)


def pick(number: int, strategy: int, decay: bool) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        endpoints = _endpoints(number)
        names = {"pick": ranking_of(endpoints).pick, "s": strategy, "decay": decay}

        def is_good(place: int) -> bool:
            if strategy == _core.LATENCY:
                return _is_least(endpoints, place, decay)
            # Of two random endpoints, the worst one of all is never chosen.
            return endpoints[place].load() < max(endpoint.load() for endpoint in endpoints)

        return Operation("pick(s, 7, decay)", names, is_good)

    return make


def rank(number: int, what: str) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        endpoints = _endpoints(number)
        names = {"rank": ranking_of(endpoints).choice(_core.LATENCY).rank}

        def is_first(place: int) -> bool:
            return _is_least(endpoints, place)

        def is_order(places: tuple[int, ...]) -> bool:
            loads = [endpoints[place].load() for place in places]
            return sorted(places) == list(range(number)) and all(
                earlier <= 1.001 * later for earlier, later in itertools.pairwise(loads)
            )

        return Operation(f"rank(100, 256).{what}", names, is_first if what == "first" else is_order)

    return make


class _Plain:
    """The state of an endpoint in a router written in Python."""

    __slots__ = ("ewma", "in_flight", "samples")

    def __init__(self, place: int) -> None:
        self.samples = collections.deque(
            (0.3 + 0.01 * ((place * 7 + n * 3) % 50) for n in range(50)), maxlen=50
        )
        self.ewma = sum(self.samples) / 50
        self.in_flight = place % 3


def python_ewma(number: int) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        plain = [_Plain(place) for place in range(number)]
        names = {"plain": plain, "load": lambda one: one.ewma}
        least = min(one.ewma for one in plain)
        return Operation("min(plain, key=load)", names, lambda found: found.ewma == least)

    return make


def python_window(number: int) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        plain = [_Plain(place) for place in range(number)]

        def weighted(one: _Plain) -> float:
            samples = list(one.samples)
            weights = [math.exp(-0.1 * (len(samples) - 1 - place)) for place in range(len(samples))]
            return sum(x * w for x, w in zip(samples, weights)) / sum(weights)

        names = {"plain": plain, "weighted": weighted}
        least = min(map(weighted, plain))
        return Operation("min(plain, key=weighted)", names, lambda found: weighted(found) == least)

    return make


def _picks(number: int) -> Comparison:
    return Comparison(
        f"Pick among {number} endpoints",
        (
            NO_OP,
            FLOOR,
            Contender(
                "fastroute Ranking.pick, latency, no decay", pick(number, _core.LATENCY, False), ours=True
            ),
            Contender(
                "fastroute Ranking.pick, latency, with decay", pick(number, _core.LATENCY, True), ours=True
            ),
            Contender(
                "fastroute Ranking.pick, two choices", pick(number, _core.TWO_CHOICES, False), ours=True
            ),
            Contender("fastroute Choice.rank, the first only", rank(number, "first"), ours=True),
            Contender("fastroute Choice.rank, the whole order", rank(number, "order"), ours=True),
            Contender("a scan of EWMAs in Python", python_ewma(number)),
            Contender("the 50-window formula in Python", python_window(number)),
        ),
        base="fastroute Ranking.pick, latency, no decay",
    )


# ----------------------------------------------------------------------------------------------- decision

_NUMBER = 10
_TEXT = text_of(500)


# Two calls of the core: the scan of the messages, whose level determines a row of endpoints, and the choice
# from that row, which ranks it and admits the request.
_DECIDE = "admit(scan(messages, params).chars // 4, 256, needs)"


def decision(filters: bool, settled: bool = True) -> Callable[[ExitStack], Operation]:
    """With filters: capabilities, price cap and ceiling, quality floor, latency budget, and by value.

    The context window and the bursts of the limits are checked in any case. If a decision is not settled, the
    core releases the permit with the object that ``admit`` returned.
    """

    def make(_: ExitStack) -> Operation:
        endpoints = _endpoints(_NUMBER)
        ranking = ranking_of(endpoints)
        wishes = (1_000_000_000, 1_000_000_000, 0.5, 60.0, True) if filters else ()
        names = {
            **_reading(),
            "admit": ranking.choice(_core.LATENCY, *wishes).admit,
            "needs": 15 if filters else 0,
            "endpoints": endpoints,
            "ok": _core.OK,
        }
        if not settled:
            return Operation(f"{_DECIDE}.chosen", names, _good_choice(names))
        settle = f"endpoints[(found := {_DECIDE}).chosen].finish(found.take(), ok, 0.5)"
        return Operation(settle, names, _settled(names, lambda: eval(f"{_DECIDE}.chosen", dict(names))))

    return make


def _reading() -> dict[str, Any]:
    messages = [{"role": "user", "content": _TEXT}]
    return {"scan": Classifier(rule_set()).scan, "messages": messages, "params": {}}


def _good_choice(names: dict[str, Any], decay: bool = True) -> Callable[[int], bool]:
    """Whether the class is right, the least loaded endpoint is chosen, and nothing stays in flight."""
    endpoints = names["endpoints"]

    def is_good(chosen: int) -> bool:
        level = names["scan"](names["messages"], names["params"]).level
        return (
            level == "low"
            and _is_least(endpoints, chosen, decay)
            and not any(endpoint.in_flight for endpoint in endpoints)
        )

    return is_good


def _settled(names: dict[str, Any], choose: Callable[[], int], decay: bool = True) -> Callable[[int], bool]:
    """Whether a decision is right and changed no breaker (a refusal cannot be settled)."""
    is_good = _good_choice(names, decay)
    return lambda flags: flags == 0 and is_good(choose())


def bare_decision(_: ExitStack) -> Operation:
    """The same without filters, values and an order: only one endpoint is chosen."""
    endpoints = _endpoints(_NUMBER)
    pick = ranking_of(endpoints).pick
    names = {
        **_reading(),
        "pick": pick,
        "latency": _core.LATENCY,
        "endpoints": endpoints,
        "ok": _core.OK,
    }
    settle = "(one := endpoints[pick(latency)]).finish(one.admit(scan(messages, params).chars), ok, 0.5)"
    return Operation(settle, names, _settled(names, lambda: pick(_core.LATENCY), decay=False))


def _by_hand(find: Callable[[str], Any]) -> Callable[[], tuple[Any, str, bool, bool]]:
    """A scan, the lowest EWMA with a closed breaker, and a moving window, each from a different package."""
    breaker = need("circuitbreaker").CircuitBreaker
    package = need("limits")
    strategy = need("limits.strategies").FixedWindowRateLimiter(need("limits.storage").MemoryStorage())
    item = package.RateLimitItemPerMinute(10**12)
    plain = [
        (_Plain(place), breaker(name=f"endpoint-{place}"), f"endpoint-{place}") for place in range(_NUMBER)
    ]

    def called() -> bool:
        return True

    def decide() -> tuple[Any, str, bool, bool]:
        found = find(_TEXT)
        usable = [one for one in plain if not one[1].opened]
        _, chosen, name = min(usable, key=lambda one: one[0].ewma)
        granted = strategy.hit(item, name)
        return found, name, granted, chosen.call(called)

    return decide


def _as_by_hand(found: Any) -> Callable[[Any], bool]:
    """Whether a decision found the patterns and admitted the call at the endpoint with the lowest EWMA."""
    least = min(range(_NUMBER), key=lambda place: _Plain(place).ewma)
    return lambda answer: answer == (found, f"endpoint-{least}", True, True)


def re_decision(_: ExitStack) -> Operation:
    return Operation("decide()", {"decide": _by_hand(_by_group)}, _as_by_hand(_by_group(_TEXT)))


def hyperscan_decision(_: ExitStack) -> Operation:
    match, database = hyperscan_matcher()
    names = {"decide": _by_hand(lambda text: match(text.encode())), "database": database}
    return Operation("decide()", names, _as_by_hand(_with_re(_TEXT)))


def litellm_router(base_url: str = "http://127.0.0.1:9", **options: Any) -> Any:
    litellm = load_litellm()
    return litellm.Router(
        model_list=[
            {
                "model_name": "gpt-4.1",
                "litellm_params": {
                    "model": "openai/gpt-4.1",
                    "api_base": base_url,
                    "api_key": "none",
                    "rpm": 10**8,
                },
            }
            for _ in range(_NUMBER)
        ],
        num_retries=0,
        **options,
    )


def load_litellm() -> Any:
    import os

    # Use the bundled price list, which would otherwise be fetched at import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = need("litellm")
    litellm.telemetry = False
    return litellm


def litellm_selection(strategy: str) -> Callable[[ExitStack], Operation]:
    def make(_: ExitStack) -> Operation:
        router = litellm_router(routing_strategy=strategy)
        messages = [{"role": "user", "content": _TEXT}]
        names = {"choose": router.get_available_deployment, "messages": messages}
        return Operation(
            "choose('gpt-4.1', messages=messages, request_kwargs={})",
            names,
            lambda found: found["litellm_params"]["model"] == "openai/gpt-4.1",
        )

    return make


COMPARISONS = (
    *SCANS,
    _picks(10),
    _picks(200),
    Comparison(
        "A decision: classify 500 B, rank 10, breaker and limit, settle",
        (
            NO_OP,
            FLOOR,
            Contender("fastroute: scan; rank and admit; finish", decision(filters=False), ours=True),
            Contender("fastroute: the same, all filters on, by value", decision(filters=True), ours=True),
            Contender(
                "fastroute: all filters on, released by the core instead of finish",
                decision(filters=True, settled=False),
                ours=True,
            ),
            Contender("fastroute: scan, pick one, admit, finish", bare_decision, ours=True),
            Contender("Hyperscan + circuitbreaker + limits", hyperscan_decision),
            Contender("re + circuitbreaker + limits", re_decision),
            Contender(
                "litellm Router's selection alone (simple-shuffle)", litellm_selection("simple-shuffle")
            ),
            Contender(
                "litellm Router's selection alone (latency-based-routing)",
                litellm_selection("latency-based-routing"),
            ),
        ),
        base="fastroute: scan; rank and admit; finish",
    ),
)
