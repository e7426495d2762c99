"""``fastroute explain --file``: classifies a file of prompts; shows counts by level, examples and times."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastroute.figures import duration, percentile

from .group import visible
from .output import Column, print_json, print_table
from .prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from fastroute.routing.classifier import Classifier
    from fastroute.routing.learned import LearnedClassifier
    from fastroute.types import Classification

_EXAMPLES = 3


def run(classifier: Classifier | LearnedClassifier, path: Path, as_json: bool) -> None:
    """Classifies every prompt of the file and prints the result."""
    from fastroute.routing.learned import LearnedClassifier

    prompts = read_prompts(path.read_bytes(), str(path))
    if isinstance(classifier, LearnedClassifier):
        # A threshold that follows the traffic is set by the scores of the file's prompts.
        for prompt in prompts:
            classifier.scan(prompt.messages, prompt.params)
        classifier.look()
    found: dict[str, list[tuple[Prompt, Classification]]] = {level: [] for level in classifier.levels}
    for prompt in prompts:
        classification = classifier.classify(prompt.messages, prompt.params)[0]
        found.setdefault(classification.level, []).append((prompt, classification))
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
            click.echo(visible(f"    {classification.reason}{_words(classification)}"))
    click.echo(f"\ntime per prompt: {duration(median)} median, {duration(slowest)} p99")


def _timed(classifier: Classifier | LearnedClassifier, prompt: Prompt) -> float:
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


__all__ = ["run"]
