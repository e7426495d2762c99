"""Sub-interpreters, which mod_wsgi and uWSGI make for further applications, with the real servers."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from apache import PYTHON, apache, needed
from needs import need
from served_app import UWSGI, configure, get, serving

from fastroute.testing import Provider

REFUSED = "another interpreter of this process may have imported it, and it works in only one"
CURES = ("WSGIApplicationGroup %{GLOBAL}", "--single-interpreter")
MOD_WSGI_WARNING = "UserWarning: mod_wsgi runs this application in the sub-interpreter 'localhost:"
UWSGI_WARNING = "UserWarning: uWSGI runs each further application in a sub-interpreter"
TWO_SCRIPTS = f"""
WSGIDaemonProcess apps processes=1 threads=4 {PYTHON}
WSGIProcessGroup apps
WSGIScriptAlias /a {{folder}}/app.py
WSGIScriptAlias /b {{folder}}/app.py
{{group}}
"""


def entries(folder: Path) -> tuple[int, list[str]]:
    """How many the database has, and the files of journals that are not in it."""
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        ((count,),) = database.execute("SELECT count(*) FROM attempts")
    journal = folder / "ledger.db.journal"
    return count, [path.name for path in journal.iterdir() if path.name != "lock"]


@pytest.mark.parametrize("group", ["WSGIApplicationGroup %{GLOBAL}", ""], ids=["global", "unsaid"])
def test_two_applications_of_mod_wsgi(group: str, tmp_path: Path) -> None:
    """The default is one interpreter for each; the first still ends its ledger in order."""
    needed()
    with Provider() as provider:
        environ = configure(tmp_path, provider, str(tmp_path / "state"))
        with apache(tmp_path, environ, TWO_SCRIPTS.format(folder=tmp_path, group=group)) as port:
            first = [get(port, "hello", "/a")[0] for _ in range(3)]
            second = [get(port, "hello", "/b")[0] for _ in range(3)]
        log = (tmp_path / "apache.log").read_text()
    assert first == [200] * 3
    if group:
        assert second == [200] * 3
        assert "UserWarning" not in log
    else:
        assert second == [500] * 3
        assert log.count(MOD_WSGI_WARNING) == 1
        assert log.count(f"ImportError: fastroute._core: {REFUSED}") == 3
        assert all(cure in log for cure in CURES)
    assert entries(tmp_path) == (6 if group else 3, [])


@pytest.mark.parametrize("single", [True, False])
def test_two_mounts_of_uwsgi(single: bool, tmp_path: Path) -> None:
    need("uwsgi")
    words = ["--mount", "/a=app.py", "--mount", "/b=other.py", "--manage-script-name"]
    words = [*UWSGI[: UWSGI.index("--wsgi-file")], *words, *["--single-interpreter"] * single]
    with serving(tmp_path, words, str(tmp_path / "state")) as (server, _):
        shutil.copy(tmp_path / "app.py", tmp_path / "other.py")
        if single:
            assert [server.get("hello", path)[0] for path in ("/a", "/b") * 2] == [200] * 4
            assert "UserWarning" not in server.log.read_text()
        else:
            server.process.wait(20)  # --need-app
            log = server.log.read_text()
            assert log.count(UWSGI_WARNING) == 1
            assert log.count(f"ImportError: fastroute._core: {REFUSED}") == 1
            assert all(cure in log for cure in CURES)


@pytest.mark.parametrize("way", [["--wsgi-file", "app.py"], ["--mount", "/=app.py"], ["--module", "app"]])
def test_one_application_of_uwsgi_is_not_warned_of(way: list[str], tmp_path: Path) -> None:
    need("uwsgi")
    words = [*UWSGI[: UWSGI.index("--wsgi-file")], *way]
    with serving(tmp_path, words, str(tmp_path / "state")) as (server, _):
        assert server.get("hello")[0] == 200
        assert "UserWarning" not in server.log.read_text()
