"""State in a file: which processes share it, which may not, and which files are renamed away."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import attrs
import pytest
from children import ended, forked

from fastroute import Client, _core, errors, events
from fastroute.config import Config, load
from fastroute.state import segment_file
from fastroute.state.segment_file import Home, open_home
from fastroute.testing import Fault, Provider

ROOT = str(Path(__file__).parents[2])
MODEL = {"provider": "p", "model": "m"}


def config(state: str, **tables: Any) -> Config:
    return load(
        {
            "fastroute": {"state": state, "ledger": ""},
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
            "endpoints": [{"provider": "p", "model": "m", "name": "one"}],
            **tables,
        },
        formats=("openai",),
    )


def bucket(home: Home, burst: int = 10) -> _core.Bucket:
    return _core.Bucket(home.segment, "a", 1, burst)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def opened(path: Path) -> Home:
    return open_home(config(str(path)))


class TestSharing:
    def test_whoever_opens_the_path_counts_together(self, path: Path) -> None:
        one, two = opened(path), opened(path)
        assert (one.kind, one.path, one.reason) == ("file", str(path), None)
        assert bucket(one).acquire(7) == 0
        assert bucket(two).available() == 3

    def test_what_was_counted_outlasts_the_processes(self, path: Path) -> None:
        script = (
            "import sys; from fastroute.config import load\n"
            "from fastroute.state.segment_file import open_home\n"
            "from fastroute import _core\n"
            "c = load({'fastroute': {'state': sys.argv[1], 'ledger': ''},"
            " 'providers': {'p': {'base_url': 'http://127.0.0.1:1/v1'}},"
            " 'endpoints': [{'provider': 'p', 'model': 'm'}]}, formats=('openai',))\n"
            "h = open_home(c)\n"
            "assert _core.Bucket(h.segment, 'a', 1, 10).acquire(4) == 0\n"
        )
        for _ in range(2):
            subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert bucket(opened(path)).available() == 2

    def test_threads_that_open_it_at_once_get_one(self, path: Path) -> None:
        homes: list[Home] = []
        barrier = threading.Barrier(8)

        def begin() -> None:
            barrier.wait()
            homes.append(opened(path))

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for home in homes:
            assert bucket(home).acquire(1) == 0
        assert bucket(homes[0]).available() == 2
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["state", "state.lock"]

    def test_it_is_the_owners_alone_and_has_all_its_space(self, path: Path) -> None:
        os.umask(os.umask(0))
        opened(path)
        for file in (path, Path(f"{path}.lock")):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        status = path.stat()
        assert status.st_size == _core.Segment.size()
        assert status.st_blocks * 512 >= status.st_size

    def test_a_client_says_where_it_counts_and_with_how_many(self, path: Path) -> None:
        with Provider() as provider:
            tables = {
                "fastroute": {"state": str(path), "ledger": ""},
                "providers": {"p": {"base_url": provider.base_url}},
                "endpoints": [{"provider": "p", "model": "m"}],
            }
            with Client(tables) as client, Client(tables) as other:
                for at in (client, other):
                    at.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
                state = other.stats()["state"]
                assert (state["kind"], state["path"], state["reason"]) == ("file", str(path), None)
                assert state["workers"] == 2  # two clients of one process have two slots
                assert other.stats()["endpoints"]["p/m"]["succeeded"] == 2

    def test_an_endpoint_that_is_left_out_is_so_for_all_and_outlasts_them(self, path: Path) -> None:
        ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        with Provider() as provider:
            tables = {
                "fastroute": {"state": str(path), "ledger": ""},
                "providers": {"p": {"base_url": provider.base_url}},
                "endpoints": [{"provider": "p", "model": "m"}],
            }
            provider.script(Fault.status(429, headers={"retry-after": "61"}))
            with Client(tables) as other:
                with Client(tables) as client, pytest.raises(errors.RateLimitError):
                    client.chat.completions.create(**ask)
                with pytest.raises(errors.NoEndpointError, match="blocked") as caught:
                    other.chat.completions.create(**ask)
                assert 0 < (caught.value.retry_after or 0) <= 61
            with Client(tables) as another:
                with pytest.raises(errors.NoEndpointError, match="blocked"):
                    another.chat.completions.create(**ask)
                assert provider.received == 1
                another.unblock("p/m")
                assert another.chat.completions.create(**ask).choices


class TestMachine:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segment_file, "MEMORY_FOLDER", str(tmp_path))

    def test_one_configuration_is_one_state_whatever_its_limits(self) -> None:
        one = open_home(config("machine"))
        two = open_home(config("machine", policy={"max_attempts": 2}))
        assert one.kind == "machine"
        assert one.path == two.path
        bucket(one).acquire(4)
        assert bucket(two).available() == 6

    def test_another_provider_ledger_or_name_is_another_state(self, tmp_path: Path) -> None:
        paths = [
            segment_file.machine_path(made)
            for made in (
                config("machine"),
                config("machine", providers={"p": {"base_url": "http://127.0.0.1:2/v1"}}),
                config("machine", fastroute={"state": "machine", "ledger": str(tmp_path / "x.db")}),
                config("machine:web"),
                config("machine:jobs"),
            )
        ]
        assert len(set(paths)) == len(paths)
        assert os.path.basename(paths[3]).startswith("web.")

    def test_the_working_directory_is_no_part_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A web application here, a cron job there, and a deployment that names its folder by a link."""
        app, elsewhere = tmp_path / "releases", tmp_path / "elsewhere"
        app.mkdir()
        elsewhere.mkdir()
        (tmp_path / "current").symlink_to(app)
        (app / "fastroute.toml").write_text(
            '[fastroute]\nstate = "machine"\nledger = "spent.db"\n'
            '[providers.p]\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["m"]\napi_key_file = "key"\n'
        )
        given = {
            "fastroute": {"ledger": "spent.db"},
            "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
        }
        found, mapped = set(), set()
        for folder, named in (
            (app, "fastroute.toml"),
            (elsewhere, "../releases/fastroute.toml"),
            (elsewhere, str(app / "fastroute.toml")),
            (elsewhere, str(tmp_path / "current" / "fastroute.toml")),
            (tmp_path / "current", "fastroute.toml"),
        ):
            monkeypatch.chdir(folder)
            found.add(segment_file.machine_path(load(named, environ={})))
            mapped.add(segment_file.machine_path(load({**given, "endpoints": [MODEL]}, environ={})))
        assert (len(found), len(mapped)) == (1, 1)
        (elsewhere / "fastroute.toml").write_text((app / "fastroute.toml").read_text())
        assert segment_file.machine_path(load(elsewhere / "fastroute.toml", environ={})) not in found

    def test_programs_in_different_folders_count_together(self, tmp_path: Path) -> None:
        program = (
            "import sys, fastroute\n"
            "from fastroute.state import segment_file\n"
            "segment_file.MEMORY_FOLDER = sys.argv[1]\n"
            "with fastroute.Client() as client:\n"
            "    for _ in range(8):\n"
            "        try:\n"
            "            client.chat.completions.create(messages=[{'role': 'user', 'content': 'x'}])\n"
            "        except fastroute.RateLimitError:\n"
            "            pass\n"
        )
        (tmp_path / "cron").mkdir()
        with Provider() as provider:
            (tmp_path / "fastroute.toml").write_text(
                '[fastroute]\nstate = "machine"\nledger = "spent.db"\ndefault_model = "m"\n'
                f'[providers.p]\nbase_url = "{provider.base_url}"\nmodels = ["m"]\nrpm = 1\nburst = 10\n'
                "[cache]\nenabled = false\n[policy]\nqueue_timeout = 0\n"
            )
            for folder, named in ((tmp_path, "fastroute.toml"), (tmp_path / "cron", "../fastroute.toml")):
                subprocess.run(
                    [sys.executable, "-c", program, str(tmp_path)],
                    cwd=folder,
                    env={**os.environ, "FASTROUTE_CONFIG": named, "PYTHONPATH": ROOT},
                    check=True,
                )
            assert len(provider.requests) == 10
        assert not (tmp_path / "cron" / "spent.db").exists()

    def test_what_describes_it_names_the_file_and_makes_nothing(self, tmp_path: Path) -> None:
        names = {
            "memory": "memory (this process and its forks)",
            "machine": f"{segment_file.machine_path(config('machine'))} (machine: all programs of this user",
            "machine:web": "all programs of this user with this name)",
            "/run/x.state": "/run/x.state (all programs that open this file)",
            "redis://127.0.0.1:1/0?local=machine": "(many machines); on this machine /",
        }
        (tmp_path / f"fastroute-{os.geteuid()}").rmdir()
        for state, words in names.items():
            assert words in segment_file.describe(config(state)), state
        unsaid = config("machine")
        unsaid = attrs.evolve(unsaid, state=None)
        assert segment_file.describe(unsaid).startswith("memory (this process and its forks); in Flask, ")
        assert "gunicorn" in segment_file.describe(unsaid)
        assert segment_file.describe(unsaid, "machine").startswith(str(tmp_path))
        assert os.listdir(tmp_path) == []

    def test_its_folder_is_this_users_alone(self, tmp_path: Path) -> None:
        home = open_home(config("machine"))
        assert home.path is not None
        folder = Path(home.path).parent
        assert (folder.parent, stat.S_IMODE(folder.stat().st_mode)) == (tmp_path, 0o700)
        folder.chmod(0o755)
        with pytest.raises(errors.ConfigError, match="must be private"):
            open_home(config("machine"))

    def test_a_link_in_the_place_of_its_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (tmp_path / f"fastroute-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(errors.ConfigError, match="it is a symbolic link, not a folder"):
            open_home(config("machine"))

    def test_without_a_memory_folder_it_is_in_the_temporary_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(segment_file, "MEMORY_FOLDER", str(tmp_path / "none"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        assert segment_file.machine_path(config("machine")).startswith(str(tmp_path / "temporary"))


class TestAbandoned:
    """What a machine's state leaves in memory goes with the next start there, an hour after its last use."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(segment_file, "MEMORY_FOLDER", str(tmp_path))
        return tmp_path / f"fastroute-{os.geteuid()}"

    def left(self, name: str = "old", used: float = 2 * 3600.0, ledger: str = "x.db") -> Path:
        """The file of a process that has ended so many seconds ago."""
        settings = config(f"machine:{name}", fastroute={"state": f"machine:{name}", "ledger": ledger})
        assert ended(forked(lambda: open_home(settings).segment.tend(1 if used else 0))) == 0
        path = Path(segment_file.machine_path(settings))
        self.age(path, used)
        return path

    @staticmethod
    def age(path: Path, seconds: float) -> None:
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))

    @staticmethod
    def there(folder: Path) -> set[str]:
        return {
            name.partition(".")[0] + name.partition(".")[2].lstrip("0123456789-abcdef")
            for name in os.listdir(folder)
        }

    def test_it_is_removed_with_all_that_belongs_to_it(self, folder: Path) -> None:
        old = self.left()
        Path(f"{old}.aside").write_bytes(b"set aside")
        Path(f"{old}.aside").chmod(0o600)
        self.age(Path(f"{old}.aside"), 7200)
        open_home(config("machine:new"))
        assert self.there(folder) == {"new", "new.lock", "new.keep"}

    def test_not_within_the_hour(self, folder: Path) -> None:
        self.left(used=3000.0)
        open_home(config("machine:new"))
        assert {"old", "old.lock"} < self.there(folder)

    def test_not_while_a_process_has_it_open(self, folder: Path) -> None:
        home = open_home(config("machine:old"))
        assert home.path is not None
        os.unlink(home.path + ".keep")
        self.age(Path(home.path), 7200)
        with subprocess.Popen(["sleep", "60"], pass_fds=[]) as other:
            open_home(config("machine:new"))
            other.kill()
        assert "old" in self.there(folder)
        bucket(home).acquire(4)
        assert bucket(open_home(config("machine:old"))).available() == 6

    def test_not_while_a_daemon_that_closed_its_descriptors_works_in_it(self, folder: Path) -> None:
        home = open_home(config("machine:old", fastroute={"state": "machine:old", "ledger": "x.db"}))
        path = Path(home.path or "")
        self.age(path, 7200)
        for number in os.listdir("/proc/self/fd"):
            if os.path.exists(f"/proc/self/fd/{number}") and os.path.samefile(
                f"/proc/self/fd/{number}", path
            ):
                os.close(int(number))
        open_home(config("machine:new"))
        assert path.exists()
        del home
        open_home(config("machine:new"))
        assert path.exists()  # its slot is this process's, which lives

    def test_not_when_it_was_worked_in_lately_though_opened_long_ago(self, folder: Path) -> None:
        path = self.left(used=0)
        self.age(path, 7200)
        open_home(config("machine:new"))
        assert path.exists()

    def test_not_where_nothing_else_knows_what_was_spent(self, folder: Path) -> None:
        path = self.left(ledger="")
        open_home(config("machine:new"))
        assert path.exists()

    def test_nor_anything_that_is_not_ours(self, folder: Path) -> None:
        self.left("first")
        (folder / "precious").symlink_to(folder.parent / "target")
        (folder.parent / "target").write_bytes(b"precious")
        (folder / "directory").mkdir()
        open_home(config("machine:new"))
        assert {"precious", "directory"} < self.there(folder)
        assert "first" not in self.there(folder)

    def test_of_an_earlier_start_of_the_machine(self, folder: Path) -> None:
        path = self.left(used=0)
        path.write_bytes(header(path.read_bytes(), boot=1))
        self.age(path, 7200)
        open_home(config("machine:new"))
        assert not path.exists()

    def test_processes_that_open_and_remove_never_part(self, folder: Path) -> None:
        """Whoever has a file open finds it under its name, whatever others remove at that moment."""
        run = [sys.executable, "-c", IN_AND_OUT, str(folder.parent)]
        processes = [
            subprocess.Popen([*run, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(4)
        ]
        said = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        assert sum(map(int, said)) > 20  # so often a file was removed and made again


IN_AND_OUT = """
import os, random, sys
from fastroute.state import segment_file
from fastroute.config import load
segment_file.MEMORY_FOLDER, segment_file.ABANDONED = sys.argv[1], -1.0
draw = random.Random(int(sys.argv[2]))
configs = [load({
    "fastroute": {"state": f"machine:{name}", "ledger": "x.db"},
    "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
    "endpoints": [{"provider": "p", "model": "m"}],
}, formats=("openai",)) for name in "ab"]
def visit():
    home = segment_file.open_home(draw.choice(configs))
    assert home.reason is None, home.reason
    first = os.stat(home.path)
    bucket = segment_file._core.Bucket(home.segment, "a", 1, 10**6)
    fresh = bucket.available() == 10**6
    assert bucket.acquire(1) == 0
    fd = os.open(home.path, os.O_RDWR)
    other = segment_file._core.Bucket(segment_file._core.Segment.in_file(fd), "a", 1, 10**6)
    assert other.available() < 10**6, "removed while it was open"
    assert os.path.samestat(first, os.fstat(fd)), "removed while it was open"
    return fresh
made = 0
for _ in range(60):
    draw.random()
    pid = os.fork()
    if pid == 0:
        os._exit(2 + visit())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (2, 3), code
    made += code == 3
print(made)
"""


def header(data: bytes, **changed: int) -> bytes:
    """A segment's beginning with other fields, and the checksum that goes with them."""
    fields = ["magic", "version", "cells", "bytes", "boot", "namespace"]
    values = dict(zip(fields, struct.unpack_from("<6Q", data), strict=True))
    values.update(changed)
    packed = struct.pack("<6Q", *(values[name] for name in fields))
    return packed + struct.pack("<Q", crc32(packed)) + data[len(packed) + 8 :]


MISFITS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-64],
    "one byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + bytes(64),
    "nothing but zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"SQLite format 3\0" + data[16:],
    "older layout": lambda data: header(data, version=0),
    "newer layout": lambda data: header(data, version=_core.LAYOUT + 1),
    "other size in its header": lambda data: header(data, cells=8192),
    "damaged header": lambda data: data[:17] + bytes([data[17] ^ 1]) + data[18:],
    "other boot": lambda data: header(data, boot=1),
    "other pid namespace": lambda data: header(data, namespace=1),
}


class TestMisfits:
    @pytest.mark.parametrize("misfit", MISFITS)
    def test_it_is_set_aside_whole_and_a_new_one_made(
        self, path: Path, misfit: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "fastroute")
        first = opened(path)
        bucket(first).acquire(10)
        data = MISFITS[misfit](path.read_bytes())
        del first
        path.write_bytes(data)
        assert bucket(opened(path)).available() == 10
        assert Path(f"{path}.aside").read_bytes() == data
        assert [record.getMessage() for record in caplog.records][-1].startswith(f"state: {path} ")

    def test_those_who_work_in_it_go_on_there(self, path: Path) -> None:
        """Setting aside is renaming: nobody's memory is cut away under it."""
        old = opened(path)
        bucket(old).acquire(4)
        with open(path, "r+b") as file:
            file.seek(8)
            file.write(b"\x07")
        new = opened(path)
        assert (bucket(old).available(), bucket(new).available()) == (6, 10)

    def test_what_a_killed_maker_left_is_cleared(self, path: Path) -> None:
        Path(f"{path}.new").write_bytes(b"half")
        opened(path)
        assert not os.path.exists(f"{path}.new")

    def test_a_live_file_of_another_pid_namespace_is_left_alone(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            holder.stdout.readline()
            path.write_bytes(header(path.read_bytes(), namespace=1))
            one, two = opened(path), opened(path)
            assert one.path == two.path == f"{path}.{segment_file.pid_namespace():x}"
            assert "not shared with this process" in (one.reason or "")
            bucket(one).acquire(4)
            assert bucket(two).available() == 6
            path.write_bytes(header(path.read_bytes(), boot=1))
            with pytest.raises(errors.ConfigError, match="in use on another machine"):
                opened(path)
            holder.stdin.close()
            holder.wait()
        assert opened(path).path == str(path)
        assert "in use in another pid namespace" in caplog.text


HOLDER = """
import sys, fcntl
file = open(sys.argv[1], "w+b")
import os
from fastroute import _core
os.fchmod(file.fileno(), 0o600)
os.posix_fallocate(file.fileno(), 0, _core.Segment.size())
segment = _core.Segment.in_file(file.fileno(), True)
fcntl.flock(file, fcntl.LOCK_SH)
print("ready", flush=True)
sys.stdin.read()
"""


ELSEWHERE = """
import logging, os, sys
from fastroute import _core
from fastroute.config import load
from fastroute.state.segment_file import open_home
home = open_home(load({
    "fastroute": {"state": sys.argv[1], "ledger": ""},
    "providers": {"p": {"base_url": "http://127.0.0.1:1/v1"}},
    "endpoints": [{"provider": "p", "model": "m"}],
}, formats=("openai",)))
assert _core.Bucket(home.segment, "a", 1, 10).acquire(10) == 0
print(home.path, home.segment.workers_known)
"""


def in_another_pid_namespace(words: list[str]) -> str:
    run = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, *words], capture_output=True, text=True
    )
    if run.returncode and "unshare" in run.stderr:
        pytest.skip("this container cannot make pid namespaces")
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make pid namespaces")
class TestContainers:
    """Two containers with one volume, as far as a process can tell: another pid namespace, the same files."""

    def test_they_count_apart_while_both_live(self, path: Path) -> None:
        home = opened(path)
        bucket(home).acquire(3)
        found, workers = in_another_pid_namespace(["-c", ELSEWHERE, str(path)]).split()
        assert found.startswith(f"{path}.")
        assert workers == "1"
        assert bucket(home).available() == 7
        assert home.segment.reap() == 0

    def test_what_a_stopped_container_left_is_set_aside(self, path: Path) -> None:
        found, _ = in_another_pid_namespace(["-c", ELSEWHERE, str(path)]).split()
        assert found == str(path)
        assert bucket(opened(path)).available() == 10
        assert os.path.exists(f"{path}.aside")

    def test_a_child_that_has_left_the_namespace_is_told(self) -> None:
        code = (
            "import os, sys; from fastroute import _core; segment = _core.Segment(64); segment.slot()\n"
            "if sys.version_info >= (3, 12): os.unshare(os.CLONE_NEWPID)\n"
            "else: import ctypes; assert ctypes.CDLL(None).unshare(0x20000000) == 0\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    try: segment.slot()\n"
            "    except RuntimeError as error: print(error, flush=True)\n"
            "    os._exit(0)\n"
            "os.waitpid(pid, 0)\n"
        )
        assert "left the pid namespace" in in_another_pid_namespace(["-c", code])


class TestRefused:
    @pytest.mark.parametrize("name", ["state", "state.lock"])
    def test_a_file_that_others_could_open(self, path: Path, name: str) -> None:
        opened(path)
        (path.parent / name).chmod(0o640)
        with pytest.raises(errors.ConfigError, match=r"it is -rw-r----- .* must be private .*600"):
            opened(path)

    @pytest.mark.parametrize("name", ["state", "state.lock"])
    def test_a_link(self, path: Path, name: str) -> None:
        (path.parent / "target").write_bytes(b"precious")
        (path.parent / name).symlink_to(path.parent / "target")
        with pytest.raises(errors.ConfigError, match="it is a symbolic link"):
            opened(path)
        assert (path.parent / "target").read_bytes() == b"precious"

    def test_a_link_where_the_new_one_is_made(self, path: Path) -> None:
        (path.parent / "target").write_bytes(b"precious")
        Path(f"{path}.new").symlink_to(path.parent / "target")
        opened(path)
        assert (path.parent / "target").read_bytes() == b"precious"

    def test_a_folder_and_a_pipe(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(errors.ConfigError, match="it is a folder, not a regular file"):
            opened(path)
        path.rmdir()
        os.mkfifo(path, 0o600)
        with pytest.raises(errors.ConfigError, match="not a regular file"):
            opened(path)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_a_file_of_another_user(self, path: Path) -> None:
        opened(path)
        os.chown(path, 12345, 12345)
        with pytest.raises(errors.ConfigError, match="of user 12345"):
            opened(path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(errors.ConfigError, match="its directory does not exist; create it"):
            opened(tmp_path / "none" / "state")


class TestScarcity:
    """What a machine in order may bring costs the sharing, is told, and never the service."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENFILE])
    @pytest.mark.parametrize("call", ["posix_fallocate", "open"])
    def test_no_room_is_told_and_lived_with(
        self,
        path: Path,
        call: str,
        number: int,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(*_: Any) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(segment_file.os, call, refuse)
            home = opened(path)
        assert home.path is None
        assert os.strerror(number) in (home.reason or "")
        assert "not shared with other processes" in caplog.text
        assert bucket(home).acquire(3) == 0
        assert bucket(opened(path)).available() == 10
        assert not os.path.exists(f"{path}.new")

    def test_a_really_full_file_system(self, path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(path)]).returncode:
            pytest.skip("this container cannot mount")
        try:
            assert "No space left" in (opened(path / "state").reason or "")
            subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
            assert "Read-only" in (opened(path / "state").reason or "")
        finally:
            subprocess.run(["umount", str(path)], check=True)

    def test_clients_tell_of_it_once_somebody_listens(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(segment_file.os, "posix_fallocate", full)
        heard: list[events.StateDegraded] = []
        with Provider() as provider:
            tables = {
                "fastroute": {"state": str(path), "ledger": ""},
                "providers": {"p": {"base_url": provider.base_url}},
                "endpoints": [{"provider": "p", "model": "m"}],
            }
            with Client(tables) as client:
                client.on(heard.append, events.StateDegraded)
                for _ in range(2):
                    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
                client.reload()
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
                assert [event.reason for event in heard] == [client.stats()["state"]["reason"]]
                assert "No space left" in heard[0].reason

    def test_more_processes_than_there_are_slots(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        many = [opened(path) for _ in range(255)]
        assert {home.reason for home in many} == {None}
        assert "255 worker slots" in (opened(path).reason or "")


def test_a_segment_in_a_file_outlives_the_descriptor_it_was_made_from(path: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    home = opened(path)
    assert len(os.listdir("/proc/self/fd")) == fds + 1
    made = bucket(home)
    del home
    path.unlink()
    assert made.acquire(1) == 0
    del made
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_descriptor_that_became_another_file_is_not_closed(path: Path, tmp_path: Path) -> None:
    home = opened(path)
    (number,) = (
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}") and os.path.samefile(f"/proc/self/fd/{name}", path)
    )
    with open(tmp_path / "other", "wb") as other:
        os.dup2(other.fileno(), number)
        del home
        os.fstat(number)
        os.close(number)
