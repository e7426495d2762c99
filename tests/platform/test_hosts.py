"""The quick hosts of `tests/hosting.py`, and the page's table of all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hosting import HOSTS, PAGE, Host
from needs import need

QUICK = [host for host in HOSTS if host.quick]


@pytest.mark.parametrize("host", QUICK, ids=[host.name for host in QUICK])
def test_it_keeps_the_limit_and_the_ledger(host: Host, tmp_path: Path) -> None:
    if host.package:
        need(host.package, load=False)
    if "a user" in host.name and os.geteuid():
        pytest.skip("only root can become a user without a name")
    assert host.run(tmp_path)


def test_the_page_shows_every_host_with_its_setting() -> None:
    (table,) = re.findall(r"<!--hosts-->\n(.*?)<!--/hosts-->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown = [[cell.strip() for cell in line.strip("|").split(" | ")][:2] for line in table.splitlines()[2:]]
    assert shown == [[host.name, host.setting] for host in HOSTS]
    assert "FAILED" not in table
