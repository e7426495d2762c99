"""``fastroute explain --file``: classifies a file of prompts; shows counts by level, examples and times."""

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
        line: the line's number, from 1.
        messages: OpenAI's message mappings.
        params: the line's other keys; a classifier may use ``max_tokens``, ``tools`` and ``functions``.
    """

    line: int
    messages: list[Mapping[str, Any]]
    params: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The beginning of the first user message, on one line."""
        said = next((message for message in self.messages if message.get("role") == "user"), {})
        content = said.get("content")
        words = " ".join((content if isinstance(content, str) else "")[:1000].split())
        return words if len(words) <= _LONGEST_SHOWN else words[: _LONGEST_SHOWN - 1] + "…"


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a file of JSON lines, each an object with ``messages``; empty lines are skipped."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except ValueError:
            refuse(f"{path}, line {number}: is not JSON; must be an object with messages")
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            refuse(f"{path}, line {number}: has no list of messages; must be an object with messages")
        yield Prompt(number, messages, {key: item for key, item in value.items() if key != "messages"})


def run(classifier: Classifier, path: Path, as_json: bool) -> None:
    """Classifies every prompt of the file and prints the result."""
    prompts = list(read_prompts(path))
    if not prompts:
        refuse(f"{path}: has no prompts; must have an object with messages on each line")
    found: dict[str, list[tuple[Prompt, Classification]]] = {level: [] for level in classifier.levels}
    for prompt in prompts:
        classification = classifier.classify(prompt.messages, prompt.params)[0]
        found[classification.level].append((prompt, classification))
    # A second round for the times: the first one has warmed everything up.
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
    click.echo(f"\ntime per prompt: {duration(median)} median, {duration(slowest)} p99")


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
