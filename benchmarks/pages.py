"""Writes the figures of the recorded run into the pages: ``python -m benchmarks.pages``.

In a page a figure is between ``<!--run:NAME-->`` and ``<!--/run-->``, on separate lines or within a line. It
must not be at the start of a line, because Markdown treats a line that begins with a comment as HTML.
`FIGURES` has the function for each name. A test compares the pages with the recorded run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from .run import RECORDED, Run, duration
from .side_by_side import FLOOR

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/benchmarks.md", "docs/ledger.md", "docs/routing.md")

_MARKED = re.compile(r"(<!--run:([\w ]+)-->)(.*?)(<!--/run-->)", re.DOTALL)

CALL = "A whole call on loopback, one thread"
RATE = "Calls per second, provider without latency"
CPU = "CPU of a call"
DECISION = "A decision: classify 500 B, rank 10, breaker and limit, settle"
BUCKET = "Token bucket, granted"
WAITING = "Waiting for a permit: 32 threads at 500 per second"
BREAKER = "Breaker: what it adds to a call"
LEDGER = "An entry in the ledger, calling thread"
BUSY = "An entry in the ledger, calling thread, 16 busy threads"
THROUGH = "Entries written by the ledger, thousands per second"
START = "Import, in a fresh interpreter"
GATEWAY = "One call of 600 bytes through a gateway, with a provider without latency"
HEDGING = "The slowest calls, with and without hedging"
PLAN = "client.plan, 10 endpoints, 400 B"
CACHE = "Cache hit, request of 400 B, key included"
CHUNK = "A streamed chunk, of 500: CPU of the reading thread"
SCAN_500 = "Scan of 500 B, 48 words and phrases, words counted"
SCAN_50K = "Scan of 50 KB"
OURS = "fastroute create, all features on"


# ------------------------------------------------------------------------------------------------ words


def _time(run: Run, title: str, name: str) -> float:
    """The median of a comparison's row, seconds."""
    return run.row(title, name).figures[0]


def _took(run: Run, title: str, name: str) -> str:
    return duration(_time(run, title, name))


def _ratio(run: Run, title: str, name: str) -> str:
    ratio = run.row(title, name).ratio
    assert ratio is not None
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}"


def _micros(value: float) -> str:
    return f"{value:,.0f} µs"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _block(*lines: str) -> str:
    """Separate lines, with the empty lines that Markdown needs after a comment."""
    return "\n\n" + "\n".join(lines) + "\n\n"


def _below(value: float, *limits: tuple[float, str]) -> str:
    """The text for the first limit that the value is below.

    Raises:
        ValueError: it is above all limits, so the claim of the page is no longer true.
    """
    for limit, words in limits:
        if value < limit:
            return words
    raise ValueError(f"{value:.3g} is not {limits[-1][1]}: change the page")


# ----------------------------------------------------------------------------------------------- README


def decision_claim(run: Run) -> str:
    value = _time(run, DECISION, "fastroute: the same, all filters on, by value")
    return _below(value, (1e-6, "less than a microsecond"), (2e-6, "less than two microseconds"))


def call_claim(run: Run) -> str:
    ratio = run.row(CALL, OURS).ratio or 0.0
    return _below(ratio, (0.5, "less than half a `requests.post`"), (1.0, "less than a `requests.post`"))


def machine(run: Run) -> str:
    return f"{run.processors} with {run.python}"


def floor(run: Run) -> str:
    times = [
        row.figures[0]
        for table in run.tables
        if not table.columns  # the figures of trials are not times
        for row in table.rows
        if row.name == FLOOR.name
    ]
    return f"{min(times) * 1e9:.0f} to {max(times) * 1e9:.0f} ns"


def cpu_added(run: Run) -> str:
    return _micros(run.row(CPU, OURS).figures[2])


def import_ratio(run: Run) -> str:
    return f"{_ratio(run, START, 'fastroute, with its client')} times"


def summary(run: Run) -> str:
    """The README's table."""
    by_hand = "Hyperscan + circuitbreaker + limits"

    def cpu(name: str) -> str:
        return _micros(run.row(CPU, name).figures[2])

    def start(name: str) -> str:
        return duration(run.row(START, name).figures[0] / 1e3)

    def served(name: str) -> tuple[str, str]:
        figures = run.row(WAITING, name).figures
        return _percent(figures[0]), _percent(figures[2])

    shuffle, latency = (
        f"litellm Router's selection alone ({strategy})"
        for strategy in ("simple-shuffle", "latency-based-routing")
    )
    in_line = served("fastroute Endpoint: reserve, sleep once, admit")
    retrying = served("a loop that sleeps for the time in the refusal (Bucket.acquire)")
    rows = (
        (
            "a whole call on loopback, limits, breaker, ledger and cost on",
            f"**{_ratio(run, CALL, OURS)}**",
            f"`requests.Session.post` {_ratio(run, CALL, 'requests.Session.post')}",
            f"httpx {_ratio(run, CALL, 'httpx.Client')}",
            f"openai SDK {_ratio(run, CALL, 'openai SDK')}",
            f"litellm Router {_ratio(run, CALL, 'litellm Router')}",
        ),
        (
            "calls per second, 32 threads",
            f"**{_ratio(run, RATE, OURS)}**",
            f"`requests.Session` per thread {_ratio(run, RATE, 'requests.Session for each thread')}",
            f"urllib3 pool {_ratio(run, RATE, 'urllib3 pool')}",
            f"openai SDK {_ratio(run, RATE, 'openai SDK')}",
            f"litellm Router {_ratio(run, RATE, 'litellm Router')}",
        ),
        (
            "CPU that routing adds to the bare transport",
            cpu(OURS),
            f"openai SDK {cpu('openai SDK')}",
            f"litellm Router {cpu('litellm Router')}",
        ),
        (
            "a decision: classify 500 B, rank 10 endpoints with all filters, admit, settle (pick one only)",
            f"{_took(run, DECISION, 'fastroute: the same, all filters on, by value')} "
            f"({_took(run, DECISION, 'fastroute: scan, pick one, admit, finish')})",
            f"{by_hand} {_took(run, DECISION, by_hand)}",
            f"litellm's selection alone {_took(run, DECISION, shuffle)} to {_took(run, DECISION, latency)}",
        ),
        (
            "token bucket, granted",
            _took(run, BUCKET, "fastroute Bucket.acquire"),
            *(f"{name} {_took(run, BUCKET, name)}" for name in ("ratelimit", "limits", "pyrate-limiter")),
        ),
        (
            "32 threads waiting for 500 permits per second",
            f"{in_line[0]} of the rate, ± {in_line[1]} between threads",
            f"pyrate-limiter {served('pyrate-limiter, blocking, GCRA')[0]}",
            f"a retry loop {retrying[0]}, ± {retrying[1]}",
        ),
        (
            "breaker, allow and record",
            _took(run, BREAKER, "fastroute Breaker.allow + record"),
            f"circuitbreaker {_took(run, BREAKER, 'circuitbreaker, around an empty function')}",
            f"pybreaker {_took(run, BREAKER, 'pybreaker, around an empty function')}",
        ),
        (
            "scan of 50 KB for 48 words and phrases",
            _took(run, SCAN_50K, "fastroute Classifier.scan"),
            f"Hyperscan {_took(run, SCAN_50K, 'Hyperscan (no words counted)')}",
            f"RE2 {_took(run, SCAN_50K, 'RE2 set (no words counted)')}",
            f"`re` {_took(run, SCAN_50K, 're, an alternation for each group')}",
        ),
        (
            "ledger entry, safe against `kill -9`",
            _took(run, LEDGER, "fastroute Ledger.append"),
            f"one SQLite commit {_took(run, LEDGER, 'one SQLite commit (WAL, synchronous NORMAL)')}",
        ),
        (
            "importing the package / with its client",
            f"{start('fastroute')} / {start('fastroute, with its client')}",
            *(f"{name} {start(name)}" for name in ("requests", "openai", "litellm")),
        ),
    )
    lines = [f"| {what} | {ours} | {' · '.join(beside)} |" for what, ours, *beside in rows]
    return _block("| what | fastroute | others, in the same run |", "|---|---:|---|", *lines)


def gateways(run: Run) -> str:
    """The README's table of gateways."""
    lines = [
        f"| {shown} | {_took(run, GATEWAY, name)} | {duration(run.row(GATEWAY, name).added or 0.0)} |"
        for shown, name in (
            ("gunicorn, threads", "fastroute under gunicorn, gthread"),
            ("`fastroute serve`", "fastroute serve (waitress)"),
            ("litellm proxy", "litellm proxy"),
        )
    ]
    direct = _took(run, GATEWAY, "direct")
    return _block(f"| through | median of a call | added to the direct {direct} |", "|---|---:|---:|", *lines)


# -------------------------------------------------------------------------------------------- benchmarks.md


def tables(run: Run) -> str:
    """All tables, with the machine and the versions."""
    return _block(run.heading(), *(f"\n{table.markdown()}" for table in run.tables))


# What is measured, its row, and the target in seconds.
_CORE_AIMS = (
    ("breaker, allow and record", BREAKER, "fastroute Breaker.allow + record", 40e-9),
    ("pick among 10", "Pick among 10 endpoints", "fastroute Ranking.pick, latency, no decay", 40e-9),
    ("pick among 200", "Pick among 200 endpoints", "fastroute Ranking.pick, latency, no decay", 200e-9),
    (
        "pick among 10, with decay",
        "Pick among 10 endpoints",
        "fastroute Ranking.pick, latency, with decay",
        100e-9,
    ),
    (
        "pick among 200, with decay",
        "Pick among 200 endpoints",
        "fastroute Ranking.pick, latency, with decay",
        1e-6,
    ),
    ("scan of 500 B", SCAN_500, "fastroute Classifier.scan", 250e-9),
    ("scan of 50 KB", SCAN_50K, "fastroute Classifier.scan", 12e-6),
    ("scan of 500 B, portable", SCAN_500, "fastroute, portable kernel", 400e-9),
    ("scan of 50 KB, portable", SCAN_50K, "fastroute, portable kernel", 30e-6),
    (
        "a decision, all filters on, released",
        DECISION,
        "fastroute: all filters on, released by the core instead of finish",
        400e-9,
    ),
    (
        "a decision, all filters on, settled",
        DECISION,
        "fastroute: the same, all filters on, by value",
        400e-9,
    ),
    ("a decision without filters, settled", DECISION, "fastroute: scan; rank and admit; finish", 400e-9),
    ("a decision by picking one, settled", DECISION, "fastroute: scan, pick one, admit, finish", 400e-9),
)
_AIMED_FLOOR = 36e-9  # seconds of a method call with one clock read on the machine of the targets


def _floor(run: Run, title: str) -> float:
    return _time(run, title, FLOOR.name)


def core_aims(run: Run) -> str:
    """The core's targets, the measured times, and these scaled to the machine of the targets."""
    lines = []
    for what, title, name, aim in _CORE_AIMS:
        took = _time(run, title, name)
        scaled = duration(took * _AIMED_FLOOR / _floor(run, title))
        lines.append(f"| {what} | {duration(aim)} | {duration(took)} | {scaled} |")
    return _block("| | target | measured | scaled by the floor |", "|---|---:|---:|---:|", *lines)


def call_aims(run: Run) -> str:
    """The targets of whole calls and their parts, and the measured values."""
    rows = (
        ("a whole call, ratio to requests.Session.post", "0.4", _ratio(run, CALL, OURS)),
        ("calls per second, 32 threads, ratio to requests", "2.5", _ratio(run, RATE, OURS)),
        ("CPU that routing adds to the bare transport", "40 µs", cpu_added(run)),
        ("a streamed chunk, parsed, CPU", "15 µs", _took(run, CHUNK, "fastroute, chunks as objects")),
        ("`client.plan`", "10 µs", _took(run, PLAN, "fastroute plan")),
        (
            "`client.plan`, all candidates explained",
            "10 µs",
            _took(run, PLAN, "fastroute plan, its candidates, str(plan)"),
        ),
        ("a cache hit, key included", "3 µs", _took(run, CACHE, "fastroute Cache.key + get")),
        ("an entry in the ledger, calling thread", "30 µs", _took(run, LEDGER, "fastroute Ledger.append")),
        (
            "importing the client, ratio to requests",
            "1.4",
            _ratio(run, START, "fastroute, with its client"),
        ),
    )
    lines = [f"| {what} | {aim} | {measured} |" for what, aim, measured in rows]
    return _block("| | target | measured |", "|---|---:|---:|", *lines)


# ---------------------------------------------------------------------------------------------- other pages


def ledger(run: Run) -> str:
    """The ledger's time in the calling thread."""
    commit = "one SQLite commit (WAL, synchronous NORMAL)"
    power = "fastroute Ledger.append, durability power"

    def busy(name: str) -> str:
        median, p99 = run.row(BUSY, name).figures
        return f"{duration(median / 1e6)} median, {duration(p99 / 1e6)} p99"

    rows = (
        ("one direct SQLite commit an entry", _took(run, LEDGER, commit)),
        ("the ledger, one thread", _took(run, LEDGER, "fastroute Ledger.append")),
        ('the ledger, `durability="power"`', f"{_took(run, LEDGER, power)} on this disk"),
        ("16 busy threads, direct commits", busy("one SQLite commit each")),
        ("16 busy threads, the ledger", busy("fastroute Ledger.append")),
    )
    lines = [f"| {what} | {took} |" for what, took in rows]
    return _block("| | calling thread |", "|---|---|", *lines)


def _thousands(place: int) -> Callable[[Run], str]:
    return lambda run: f"{run.row(THROUGH, 'fastroute Ledger').figures[place]:.0f},000"


def hedged(run: Run) -> str:
    without, with_hedging = (run.row(HEDGING, f"{word} hedging").figures for word in ("without", "with"))
    return f"from {without[2]:.1f} to {with_hedging[2]:.1f} seconds for {_percent(with_hedging[4] - 1)}"


FIGURES: dict[str, Callable[[Run], str]] = {
    "decision claim": decision_claim,
    "call claim": call_claim,
    "machine": machine,
    "floor": floor,
    "aimed floor": lambda run: duration(_AIMED_FLOOR),
    "summary": summary,
    "gateways": gateways,
    "CPU added": cpu_added,
    "import ratio": import_ratio,
    "tables": tables,
    "core aims": core_aims,
    "call aims": call_aims,
    "ledger": ledger,
    "entries written": _thousands(0),
    "entries summed": _thousands(1),
    "hedged": hedged,
}


def rewritten(text: str, run: Run) -> str:
    """A page's text with the run's figures.

    Raises:
        KeyError: the page has an unknown figure.
    """

    def fill(found: re.Match[str]) -> str:
        value = FIGURES[found[2]](run)
        return f"{found[1]}{value}{found[4]}"

    return _MARKED.sub(fill, text)


def recorded() -> Run:
    return Run.load_from(RECORDED.read_text(encoding="utf-8"))


def rewrite(run: Run) -> None:
    """Puts the run's figures into all pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(rewritten(page.read_text(encoding="utf-8"), run), encoding="utf-8")


if __name__ == "__main__":
    rewrite(recorded())
