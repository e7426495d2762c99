"""Warnings about the start: logged where the program has set up logging, otherwise Python warnings."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
import fastroute.events
from fastroute.platform.notices import notice
{set_up}
for _ in range(2):
    notice("careful")
"""


@pytest.mark.parametrize(
    ("set_up", "shown"),
    [
        ("", ["UserWarning: careful"]),
        ("logging.getLogger('other').addHandler(logging.StreamHandler())", ["UserWarning: careful"]),
        ("logging.basicConfig(format='%(message)s')", ["careful", "careful"]),
        ("logging.getLogger('fastroute').addHandler(logging.StreamHandler())", ["careful", "careful"]),
        ("logging.basicConfig(level=logging.ERROR)", []),
        ("import warnings; warnings.simplefilter('ignore')", []),
    ],
)
def test_who_shows_it(set_up: str, shown: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(set_up=set_up)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if shown[:1] == ["UserWarning: careful"]:
        assert ended.stderr.startswith("<string>:"), "it points at the program"
    lines = [line for line in ended.stderr.splitlines() if "careful" in line]
    assert [line[line.index(words) :] for line, words in zip(lines, shown, strict=True)] == shown


def test_the_packages_logger_prints_nothing_by_itself() -> None:
    import fastroute.events  # noqa: F401

    handlers = logging.getLogger("fastroute").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
