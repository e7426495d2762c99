"""``fastroute explain``: how a prompt would be routed, and why, without sending it.

Owns the showing; the decision is `fastroute.plan`'s. It needs neither keys nor a ledger, so it builds the
planner alone and not a client.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .group import config_option, json_option, visible
from .output import Column, dollars, optional, print_json, print_table, seconds

if TYPE_CHECKING:
    from fastroute.config import Config
    from fastroute.plan import Candidate, Plan
    from fastroute.types import Classification


@click.command("explain")
@click.argument("prompt")
@click.option("-m", "--model", help="A model, alias or tier, or auto. [default: the configuration's]")
@click.option("-s", "--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@config_option
@json_option
def command(
    prompt: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show how a prompt would be routed, without sending it.

    Prints the class of PROMPT with the words that decided it, and every endpoint that could serve it with its
    price, latency, limits and breaker, and why it is in or out. - reads PROMPT from standard input. No key is
    needed and nothing is sent. A new process has measured nothing yet: latencies are the catalogue's.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    from .configuration import find

    found = find(config)
    if found.config is None:
        from fastroute.classify import Classifier

        if model is not None:
            raise click.UsageError(f"--model needs a configuration: {found.missing}")
        classifier = Classifier.named("five-level")
        classification = classifier.explain(classifier.scan(messages, {}))
        if as_json:
            print_json({"class": _class(classification), "candidates": None})
        else:
            _print_class(classification)
            click.echo(f"\nonly the class: {visible(found.missing)}")
        return
    params = {} if max_tokens is None else {"max_tokens": max_tokens}
    plan = _plan(found.config, messages, model, params)
    if as_json:
        print_json(_object(plan))
    else:
        _print_plan(plan)


def _plan(config: Config, messages: list[dict[str, str]], model: str | None, params: dict[str, Any]) -> Plan:
    from fastroute.classify import Classifier
    from fastroute.config import catalog_of
    from fastroute.plan import Planner
    from fastroute.state import State
    from fastroute.types import Request

    catalog = catalog_of(config)
    planner = Planner(config, catalog, State(config, catalog), Classifier.named(config.policy.classifier))
    return planner.plan(Request(config.default_model if model is None else model, messages, params))


def _print_class(found: Classification) -> None:
    score = "" if found.score is None else f", score {found.score:g}"
    click.echo(
        f"class     {click.style(found.level, bold=True)}  "
        f"({found.classifier}{score}, confidence {found.confidence:.2f})"
    )
    click.echo(f"why       {found.reason}")
    for group, words in found.matches.items():
        if words:
            click.echo(f"words     {group}: {', '.join(words)}")


def _print_plan(plan: Plan) -> None:
    _print_class(plan.classification)
    tier = "" if plan.tier is None else f", served from the tier {plan.tier}"
    click.echo(f"asked     {plan.request.model}{tier}")
    estimate = plan.estimate
    click.echo(f"estimate  {estimate.input_tokens} tokens in, {estimate.output_tokens} out")
    if plan.relaxed:
        click.echo(
            "note      nothing meets the wishes for quality, latency and price: the best quality goes first"
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
        optional(candidate.price, dollars),
        f"{candidate.quality:.2f}",
        seconds(candidate.latency) if candidate.latency else "-",
        _spelled(candidate.available_requests),
        _spelled(candidate.available_tokens),
        candidate.state,
        candidate.verdict,
    ]


def _room(count: int | None) -> int | None:
    """What a limit lets in now; None for no limit, which the core writes as its greatest number."""
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
