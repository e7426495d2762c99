"""Runs the examples of the README and of pages without their own test, against a local provider."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from needs import need

from fastroute.config.policy import registered_strategies
from fastroute.providers.base import registered as registered_formats
from fastroute.testing import Provider

ROOT = Path(__file__).parent.parent
MODELS = ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"]
PAGES = [
    "README.md",
    "docs/budgets.md",
    "docs/configuration.md",
    "docs/calls.md",
    "docs/routing.md",
    "docs/ledger.md",
    "docs/processes.md",
    "docs/machines.md",
    "docs/formats.md",
    "docs/drop-ins.md",
    "docs/flask.md",
    "docs/learned.md",
]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configures a local provider of the examples' models for every client that an example makes."""
    # The examples also pass parameters that only servers other than OpenAI's have.
    with (
        Provider(models=MODELS, strict=False) as provider,
        patch.dict(registered_formats),  # what an example registers is unknown to other tests
        patch.dict(registered_strategies),
    ):
        endpoints = "".join(f'[[endpoints]]\nprovider = "local"\nmodel = "{model}"\n' for model in MODELS)
        (tmp_path / "fastroute.toml").write_text(
            '[fastroute]\nledger = "examples.db"\nstate = "memory"\n'
            f'[providers.local]\nbase_url = "{provider.base_url}"\n{endpoints}'
            '[tiers]\nbudget = ["gpt-4.1-nano"]\nstandard = ["gpt-4.1-mini"]\npremium = ["gpt-4.1"]\n'
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("FASTROUTE_CONFIG", raising=False)
        monkeypatch.setenv("INHOUSE_KEY", "local-" + "k" * 20)
        yield


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run_from_top_to_bottom(page: str, local: None) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {"__name__": "__main__"}  # a page defines what its examples need
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), names)
        if page == "README.md":
            assert names["app"].test_client().post("/ask", data="Say hello").text == "Say hello"
    finally:
        if "client" in names:
            names["client"].close()


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_link_to_a_heading_meets_one() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            there = (page.parent / target).read_text(encoding="utf-8") if target else text
            headings = re.findall(r"^#+ (.*)$", there, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}#{anchor}"


def test_the_readme_gateway_answers_curl(local: None) -> None:
    need("curl")
    need("waitress")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "serve" in block)
    program = f"{shlex.quote(sys.executable)} -m fastroute.cli "
    create, serve, call = re.sub(r" *&? +#.*", "", block).strip().split("\n", 2)
    assert serve == "fastroute serve --port 8080"
    server = subprocess.Popen(
        [sys.executable, "-m", "fastroute.cli", *serve.replace("8080", "0").split()[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.match(r"serving (http://127\.0\.0\.1:[0-9]+)/v1", said)
        assert found is not None, said
        script = f"set -e\n{create}\n{call}".replace("fastroute ", program, 1)
        done = subprocess.run(
            ["bash", "-c", script.replace("http://127.0.0.1:8080", found[1])],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"content":"Compare B-trees and LSM trees."' in done.stdout


def test_the_readme_configuration_is_one(tmp_path: Path) -> None:
    from fastroute.config import check

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(
        block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[providers" in block
    )
    file = tmp_path / "fastroute.toml"
    file.write_text(block)
    environ = {"OPENAI_API_KEY": "x" * 30, "ANTHROPIC_API_KEY": "y" * 30}
    assert check(file, environ=environ).problems == ()
    states = re.findall(r"^state = .*$", text, re.MULTILINE)
    assert len(states) == 4
    for state in states:
        file.write_text(block.replace("[fastroute]", f"[fastroute]\n{state}"))
        assert check(file, environ=environ).problems == ()
