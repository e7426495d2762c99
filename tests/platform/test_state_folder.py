"""The folder for what must survive restarts: by the environment, by the system, or none."""

from __future__ import annotations

import sys

import pytest

from fastroute.platform.state_folder import state_folder


@pytest.mark.parametrize(
    ("system", "environ", "folder"),
    [
        ("linux", {"HOME": "/home/me"}, "/home/me/.local/state/fastroute"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Application Support/fastroute"),
        ("linux", {"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/fastroute"),
        ("darwin", {"HOME": "/Users/me", "XDG_STATE_HOME": "/state"}, "/state/fastroute"),
        ("linux", {"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "/home/me/.local/state/fastroute"),
        ("linux", {"HOME": "/home/me", "XDG_STATE_HOME": ""}, "/home/me/.local/state/fastroute"),
        ("linux", {"HOME": "relative"}, None),
    ],
)
def test_the_folder(
    monkeypatch: pytest.MonkeyPatch, system: str, environ: dict[str, str], folder: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert state_folder() == folder
