"""What CI installs: `.ci/locks/` fits the requirements of pyproject.toml, and the workflow files use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastroute.config.reader import parse_toml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = parse_toml((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {path.stem: path for path in (ROOT / ".ci" / "locks").glob("*.txt")}
EXTRAS = {"check": "lint", "bench": "bench", "all": "all", "packagers": "cli"}


def requirements(extra: str) -> list[Requirement]:
    """Of the package with an extra, those of the extras that it names included."""
    found: list[Requirement] = [Requirement(each) for each in PROJECT["dependencies"]]
    for each in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if each.name == "fastroute":
            found += [inner for name in sorted(each.extras) for inner in requirements(name)]
        else:
            found.append(each)
    return found


def locked(name: str) -> dict[str, set[str]]:
    """The versions by project; more than one where they differ between versions of Python."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^[A-Za-z0-9].*", LOCKS[name].read_text(), re.MULTILINE):
        each = Requirement(line.rstrip("\\ "))
        [pin] = each.specifier
        assert pin.operator == "==", line
        found.setdefault(canonicalize_name(each.name), set()).add(pin.version)
    return found


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_a_lock_has_what_the_project_requires(name: str) -> None:
    """`bash .ci/lock` writes them anew."""
    versions = locked(name)
    for each in requirements(EXTRAS[name]):
        fitting = versions.get(canonicalize_name(each.name), set())
        assert any(each.specifier.contains(version) for version in fitting), f"{each} in .ci/locks/{name}.txt"


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_every_file_of_a_lock_has_its_hash(name: str) -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", LOCKS[name].read_text(), flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", entry, re.MULTILINE), entry
        assert "://" not in entry


@pytest.mark.parametrize("script", ["run", "asan", "packagers"])
def test_ci_installs_nothing_else(script: str) -> None:
    """Each call of pip takes a lock, or this package alone."""
    for line in (ROOT / ".ci" / script).read_text().splitlines():
        if re.search(r"pip[\"']? (install|wheel)|-m pip ", line):
            assert "--no-deps" in line, line
            assert "--require-hashes" in line or re.search(r'-e \.|"\$3"|"\$scratch/source"', line), line
