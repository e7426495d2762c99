"""``fastroute explain``: shows how a prompt would be routed, and why, without sending it.

It needs neither keys nor a ledger, so it builds only the planner and not a client. Trying a classifier on a
file is in `trial.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import dollars, duration
from fastroute.types import NANO

from .group import config_option, json_option, visible
from .output import Column, optional, print_json, print_table

if TYPE_CHECKING:
    from fastroute.config import Config
    from fastroute.routing.classifier import Classifier
    from fastroute.routing.explain import Candidate
    from fastroute.routing.learned import LearnedClassifier
    from fastroute.routing.plan import Plan
    from fastroute.types import Classification


@click.command("explain")
@click.argument("prompt", required=False)
@click.option("-m", "--model", help="A model, alias or tier, or auto. [default: the configuration's]")
@click.option("-s", "--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False),
    help="Try a classifier on a file of JSON lines, each an object with messages.",
)
@click.option("--classifier", help="Classify by this rule set. [default: the configuration's]")
@config_option
@json_option
def command(
    prompt: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    file: str | None,
    classifier: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show how a prompt would be routed, without sending it.

    Prints the class of PROMPT with the words that decided it, and every endpoint that could serve it with its
    price, latency, limits and breaker, and why it is used or not. - reads PROMPT from standard input. No key
    is needed and nothing is sent. A new process has no measurements, so latencies are the catalogue's.

    With --file it prints how many of the file's prompts are of each level, with examples and the time of
    classifying. With --classifier and PROMPT it prints only the class.

    \b
    Examples:
      fastroute explain "Compare these two contracts"
      fastroute explain --file prompts.jsonl --classifier support
    """
    if (prompt is None) == (file is None):
        raise click.UsageError("give either a PROMPT or --file")
    if file is not None:
        if model is not None or system is not None or max_tokens is not None:
            raise click.UsageError("--model, --system and --max-tokens need a PROMPT; leave out --file")
        from .configuration import find
        from .trial import run

        run(_classifier(find(config).config, classifier), Path(file), as_json)
        return
    assert prompt is not None
    if prompt == "-":
        prompt = sys.stdin.read()
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    from .configuration import find

    found = find(config)
    params = {} if max_tokens is None else {"max_tokens": max_tokens}
    if found.config is None or classifier is not None:
        if model is not None and classifier is not None:
            raise click.UsageError("--classifier shows only the class; leave out --model")
        if model is not None:
            raise click.UsageError(f"--model needs a configuration: {found.missing}")
        classification, _ = _classifier(found.config, classifier).classify(messages, params)
        if as_json:
            print_json({"class": _class(classification), "candidates": None})
        else:
            _print_class(classification)
            if found.config is None:
                click.echo(f"\nonly the class is shown: {visible(found.missing)}")
        return
    plan = _plan(found.config, messages, model, params)
    if as_json:
        print_json(_object(plan))
    else:
        _print_plan(plan)


def _classifier(config: Config | None, name: str | None) -> Classifier | LearnedClassifier:
    """The classifier of that name, or the configuration's, with counts of its own."""
    from attrs import evolve

    from fastroute._core import Segment
    from fastroute.config import Config
    from fastroute.events import Hooks
    from fastroute.routing.learned import classifier_of

    config = Config() if config is None else config
    if name is not None:
        if name not in config.levels:
            raise click.UsageError(f"unknown classifier {name!r}; use one of {', '.join(config.levels)}")
        config = evolve(config, policy=evolve(config.policy, classifier=name))
    return classifier_of(config, Segment(cells=64), Hooks())


def _plan(config: Config, messages: list[dict[str, str]], model: str | None, params: dict[str, Any]) -> Plan:
    from fastroute.config import catalog_of
    from fastroute.events import Hooks
    from fastroute.routing.learned import classifier_of
    from fastroute.routing.planner import Planner
    from fastroute.state.endpoints import State
    from fastroute.types import Request

    catalog = catalog_of(config)
    state = State(config, catalog)
    planner = Planner(config, catalog, state, classifier_of(config, state.segment, Hooks()))
    request = Request(config.default_model if model is None else model, messages, params)
    return planner.rank(planner.plan(request))


def _print_class(found: Classification) -> None:
    score = "" if found.score is None else f", score {found.score:g}"
    click.echo(
        f"class     {click.style(found.level, bold=True)}  "
        f"({found.classifier}{score}, confidence {found.confidence:.2f})"
    )
    click.echo(visible(f"why       {found.reason}"))
    for group, words in found.matches.items():
        if words:
            click.echo(visible(f"words     {group}: {', '.join(words)}"))


def _print_plan(plan: Plan) -> None:
    _print_class(plan.classification)
    tier = "" if plan.tier is None else f", served from the tier {plan.tier}"
    click.echo(f"asked     {plan.request.model}{tier}")
    estimate = plan.estimate
    click.echo(f"estimate  {estimate.input_tokens} tokens in, {estimate.output_tokens} out")
    if plan.relaxed:
        click.echo(
            "note      no endpoint meets the limits of quality, latency and price: the best quality is first"
        )
    click.echo()
    columns = [
        Column("", right=True),
        Column("endpoint"),
        Column("price", right=True),
        Column("quality", right=True),
        Column("latency", right=True),
        Column("requests", right=True),
        Column("tokens", right=True),
        Column("breaker"),
        Column("verdict", give=True),
    ]
    print_table(columns, [_row(candidate) for candidate in plan.candidates])


def _row(candidate: Candidate) -> list[str]:
    return [
        optional(candidate.rank, lambda rank: str(rank + 1)),
        candidate.endpoint,
        optional(candidate.price, lambda usd: dollars(round(usd * NANO))),
        f"{candidate.quality:.2f}",
        duration(candidate.latency) if candidate.latency else "-",
        _spelled(candidate.available_requests),
        _spelled(candidate.available_tokens),
        candidate.state,
        candidate.verdict,
    ]


def _room(count: int | None) -> int | None:
    """What a limit admits now; None without a limit, for which the core returns a huge number."""
    return None if count is None or count >= 2**62 else count


def _spelled(count: int | None) -> str:
    count = _room(count)
    return "any" if count is None else f"{count:,}"


def _class(found: Classification) -> dict[str, Any]:
    return {
        "level": found.level,
        "score": found.score,
        "confidence": found.confidence,
        "classifier": found.classifier,
        "reason": found.reason,
        "matches": {group: list(words) for group, words in found.matches.items()},
    }


def _object(plan: Plan) -> dict[str, Any]:
    from attrs import asdict

    return {
        "class": _class(plan.classification),
        "model": plan.request.model,
        "tier": plan.tier,
        "relaxed": plan.relaxed,
        "estimate": {
            "input_tokens": plan.estimate.input_tokens,
            "output_tokens": plan.estimate.output_tokens,
            "timeout_s": plan.estimate.timeout,
        },
        "candidates": [
            {
                **asdict(candidate),
                "available_requests": _room(candidate.available_requests),
                "available_tokens": _room(candidate.available_tokens),
            }
            for candidate in plan.candidates
        ],
    }
