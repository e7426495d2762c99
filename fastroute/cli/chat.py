"""``fastroute chat``: asks one question, or runs a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import dollars, duration

from .group import config_option, json_option, read_tags, visible
from .output import dim, print_json
from .verbosity import is_verbose

if TYPE_CHECKING:
    from fastroute.client import Client
    from fastroute.types import Completion, Route, Usage


@click.command("chat")
@click.argument("prompt", required=False)
@click.option("-m", "--model", help="A model, alias or tier, or auto. [default: the configuration's]")
@click.option("-s", "--system", help="System message.")
@click.option(
    "--stream/--no-stream", default=None, help="Show the answer as it comes. [default: on a terminal]"
)
@click.option(
    "--tag", multiple=True, callback=read_tags, metavar="NAME=VALUE", help="Label for the ledger; repeatable."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@config_option
@json_option
def command(
    prompt: str | None,
    model: str | None,
    system: str | None,
    stream: bool | None,
    tag: dict[str, str],
    max_tokens: int | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Ask one question, or have a conversation.

    PROMPT is the question; - or nothing reads it from standard input. Without PROMPT on a terminal a
    conversation starts, which Ctrl-D ends; /help lists its commands. The answer is printed on standard
    output; the model, the endpoint and the cost are printed on standard error.

    \b
    Examples:
      fastroute chat "What is the capital of Mongolia?"
      cat letter.txt | fastroute chat --system "Translate into German"
      fastroute chat --model premium
    """
    if as_json and stream:
        raise click.UsageError("--json prints the complete answer; leave out --stream")
    talk = prompt is None and sys.stdin.isatty()
    if talk and as_json:
        raise click.UsageError("--json needs a PROMPT")
    if not talk:
        prompt = _prompt(prompt)
    if stream is None:
        stream = sys.stdout.isatty() and not as_json
    params: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if tag:
        params["route"] = {"tags": tag}
    if model is not None:
        params["model"] = model
    history: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]

    from fastroute.client import Client

    with Client(config) as client:
        if talk:
            _talk(client, history, params, stream)
        elif as_json:
            completion = client.chat.completions.create(messages=[*history, _user(prompt or "")], **params)
            print_json(_object(completion))
        else:
            _answer(client, [*history, _user(prompt or "")], params, stream)


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        text = given
    else:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise click.UsageError(
                f"standard input is not {error.encoding} text (byte {error.start})"
            ) from None
    if not text.strip():
        raise click.UsageError("the prompt is empty; give one as an argument or on standard input")
    return text


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _talk(client: Client, history: list[dict[str, str]], params: dict[str, Any], stream: bool) -> None:
    """Runs a conversation until Ctrl-D. Ctrl-C ends the current answer, or at the prompt the conversation."""
    import contextlib

    from fastroute.errors import Error

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing in input()
    dim("Ctrl-D ends the conversation, /help lists commands.")
    system = list(history)
    while True:
        try:
            question = input("> ")
        except EOFError:
            click.echo()
            return
        word, _, rest = question.strip().partition(" ")
        if not word or word in _COMMANDS:
            if word == "/quit":
                return
            if word == "/clear":
                history[:] = system
                dim("the conversation begins again")
            elif word == "/model":
                _set_model(params, rest.strip())
            elif word == "/help":
                for name, text in _COMMANDS.items():
                    dim(f"{name:<14}{text}")
            continue
        try:
            answer = _answer(client, [*history, _user(question)], params, stream)
        except KeyboardInterrupt:
            click.echo()
            dim("the answer was interrupted and is not part of the conversation")
            continue
        except Error as error:
            click.secho(f"Error: {visible(str(error))}", fg="red", err=True)
            continue
        history += [_user(question), {"role": "assistant", "content": answer}]


_COMMANDS = {
    "/help": "list these commands",
    "/model": "with a name: use this model, alias or tier, or auto, from now on; without: show it",
    "/clear": "forget the conversation, but not the system message",
    "/quit": "end the conversation, as Ctrl-D does",
}


def _set_model(params: dict[str, Any], name: str) -> None:
    if name:
        params["model"] = name
    dim(f"model: {params.get('model', 'the default of the configuration')}")


def _answer(client: Client, messages: list[dict[str, str]], params: dict[str, Any], stream: bool) -> str:
    """Prints one answer and the line about it; returns the answer's text."""
    # An answer is untrusted text and a terminal obeys control characters; a pipe gets the text unchanged.
    safe: Callable[[str], str] = visible if sys.stdout.isatty() else str
    if not stream:
        completion: Completion = client.chat.completions.create(messages=messages, **params)
        click.echo(safe(completion.text))
        _about(completion.route, completion.usage)
        return completion.text
    pieces = []
    ended_line = False
    with client.chat.completions.create(messages=messages, stream=True, **params) as answer:
        try:
            for chunk in answer:
                for choice in chunk.choices[:1]:
                    piece = choice.delta.content
                    if piece:
                        pieces.append(piece)
                        click.echo(safe(piece), nl=False)
                        sys.stdout.flush()
            ended_line = bool(pieces) and pieces[-1].endswith("\n")
        finally:
            if pieces and not ended_line:
                click.echo()
    _about(answer.route, answer.usage)
    return "".join(pieces)


def _about(route: Route | None, usage: Usage | None) -> None:
    """Prints the dim line below an answer."""
    if route is None:
        return
    parts = [route.model, route.endpoint]
    if route.classification is not None:
        parts.append(route.classification.level)
    if usage is not None:
        about = "about " if usage.source == "estimated" else ""
        parts.append(f"{about}{usage.prompt_tokens} in, {usage.completion_tokens} out")
    if route.cached:
        parts.append("from the cache")
    else:
        parts.append("cost unknown" if route.cost_nano is None else dollars(route.cost_nano))
    if route.latency is not None:
        parts.append(duration(route.latency))
    if len(route.attempts) > 1:
        parts.append(f"{len(route.attempts)} attempts")
    dim(" · ".join(parts))
    if is_verbose():
        for attempt in route.attempts:
            status = "" if attempt.status_code is None else f" ({attempt.status_code})"
            ended = f"{attempt.error or attempt.outcome}{status}"
            dim(f"  {attempt.endpoint}: {ended}, {duration(attempt.latency)}")


def _object(completion: Completion) -> dict[str, Any]:
    route = completion.route
    assert route is not None
    return {
        "content": completion.text,
        "finish_reason": completion.choices[0].finish_reason if completion.choices else None,
        "model": route.model,
        "endpoint": route.endpoint,
        "tier": route.tier,
        "class": route.classification.level if route.classification is not None else None,
        "usage": completion.usage.to_dict() if completion.usage is not None else None,
        "cost_usd": route.cost,
        "latency_s": route.latency,
        "attempts": len(route.attempts),
        "cached": route.cached,
    }
