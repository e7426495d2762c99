"""A classifier tried on a file of prompts: how many come to each level, with examples, and the time it takes.

Owns the reading of the file, the counting and the showing for ``fastroute explain --file``. What level a
prompt is of, `fastroute.classify` decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from attrs import frozen

from fastroute.figures import duration, percentile

from .group import refuse, visible
from .output import Column, print_json, print_table

if TYPE_CHECKING:
    from fastroute.routing.classifier import Classifier
    from fastroute.types import Classification

_EXAMPLES = 3
_LONGEST_SHOWN = 60


@frozen
class Prompt:
    """One line of the file.

    Attributes:
        line: counted from 1.
        messages: OpenAI's message mappings.
        params: what else the line holds; ``max_tokens``, ``tools`` and ``functions`` may count.
    """

    line: int
    messages: list[Mapping[str, Any]]
    params: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The beginning of what the user said, on one line."""
        said = next((message for message in self.messages if message.get("role") == "user"), {})
        content = said.get("content")
        words = " ".join((content if isinstance(content, str) else "")[:1000].split())
        return words if len(words) <= _LONGEST_SHOWN else words[: _LONGEST_SHOWN - 1] + "…"


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a file of JSON lines, each an object with ``messages``; empty lines are passed over."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except ValueError:
            refuse(f"{path}, line {number}: is not JSON, must be an object with messages")
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            refuse(f"{path}, line {number}: has no list of messages, must be an object with messages")
        yield Prompt(number, messages, {key: item for key, item in value.items() if key != "messages"})


def run(classifier: Classifier, path: Path, as_json: bool) -> None:
    """Classifies every prompt of the file and prints what came of it."""
    prompts = list(read_prompts(path))
    if not prompts:
        refuse(f"{path}: holds no prompts, must have an object with messages on a line")
    found: dict[str, list[tuple[Prompt, Classification]]] = {level: [] for level in classifier.levels}
    for prompt in prompts:
        classification = classifier.classify(prompt.messages, prompt.params)[0]
        found[classification.level].append((prompt, classification))
    # Once more, for the time alone: the first round has touched everything there is to touch.
    times = [_timed(classifier, prompt) for prompt in prompts]
    median, slowest = percentile(times, 50), percentile(times, 99)
    if as_json:
        print_json(
            {
                "classifier": classifier.name,
                "prompts": len(prompts),
                "levels": {
                    level: {
                        "prompts": len(members),
                        "share": len(members) / len(prompts),
                        "examples": [_example(*member) for member in members[:_EXAMPLES]],
                    }
                    for level, members in found.items()
                },
                "median_s": median,
                "p99_s": slowest,
            }
        )
        return
    click.echo(f"{len(prompts):,} prompts by {classifier.name}\n")
    columns = [Column("level"), Column("prompts", right=True), Column("share", right=True)]
    print_table(
        columns,
        [
            [level, f"{len(members):,}", f"{len(members) / len(prompts):.1%}"]
            for level, members in found.items()
        ],
    )
    for level, members in found.items():
        if members:
            click.echo(f"\n{click.style(level, bold=True)}")
        for prompt, classification in members[:_EXAMPLES]:
            click.echo(f"  line {prompt.line}: {visible(prompt.text)}")
            click.echo(f"    {classification.reason}{_words(classification)}")
    click.echo(f"\ntime a prompt: {duration(median)} median, {duration(slowest)} p99")


def _timed(classifier: Classifier, prompt: Prompt) -> float:
    start = time.perf_counter_ns()
    classifier.scan(prompt.messages, prompt.params)
    return (time.perf_counter_ns() - start) / 1e9


def _words(classification: Classification) -> str:
    words = dict.fromkeys(word for group in classification.matches.values() for word in group)
    return f"; found {', '.join(words)}" if words else ""


def _example(prompt: Prompt, classification: Classification) -> dict[str, Any]:
    return {
        "line": prompt.line,
        "text": prompt.text,
        "score": classification.score,
        "confidence": classification.confidence,
        "reason": classification.reason,
        "matches": {group: list(words) for group, words in classification.matches.items()},
    }


__all__ = ["Prompt", "read_prompts", "run"]
