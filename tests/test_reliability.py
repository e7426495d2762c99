"""The tests that docs/reliability.md and SECURITY.md name exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from needs import need

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
SECURITY = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z]+/)*test_\w+\.py)(?:::(\w+))?`", PAGE + SECURITY)))


def test_every_promise_names_a_test() -> None:
    promises = PAGE.partition("## Promises")[2].partition("## Not promised")[0]
    threats = SECURITY.partition("## Threat model")[2]
    threat_rows = [
        line for line in threats.splitlines() if line.startswith("| ") and "| at worst |" not in line
    ]
    assert threat_rows
    for row in threat_rows:
        assert ".py" in row.split("|")[4], row
    rows = [line for line in promises.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("|---", "| promise"))]
    assert rows
    for row in rows:
        assert ".py" in row.split("|")[2], row


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_it_is_there(file: str, name: str) -> None:
    text = (TESTS / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE)


def test_the_example_runs() -> None:
    need("gevent")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block + "fastroute.Client\n"], check=True)


def test_the_long_runs_can_be_started() -> None:
    for module in re.findall(r"python -m tests\.(\w+\.\w+)", PAGE):
        assert (TESTS / f"{module.replace('.', '/')}.py").is_file()
