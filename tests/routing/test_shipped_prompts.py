"""The four classifiers on the prompts of the demonstration, against a plain reading of the formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_classify import CLASSIFIERS, ORACLES

import fastroute

PROMPTS = Path(fastroute.__file__).parent / "cli" / "demo_prompts.jsonl"


@pytest.mark.parametrize("name", ORACLES)
def test_every_prompt_has_the_class_that_the_formula_gives(name: str) -> None:
    levels = set()
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 300
    for line in lines:
        messages = json.loads(line)["messages"]
        found, _ = CLASSIFIERS[name].classify(messages, {})
        assert (found.level, found.score, found.confidence) == ORACLES[name](messages, {})
        levels.add(found.level)
    assert len(levels) >= 3  # all of one class would show nothing
