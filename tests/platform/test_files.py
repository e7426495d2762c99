"""Private files, file locks and change stamps."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from children import ended, forked

from fastroute.platform import files

PRECIOUS = b"precious"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def descriptors() -> Iterator[None]:
    """No test leaves a descriptor open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def make_link(path: Path) -> None:
    (path.parent / "target").write_bytes(PRECIOUS)
    (path.parent / "target").chmod(0o600)
    path.symlink_to(path.parent / "target")


def make_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "target")


def make_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))


IMPOSTORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (make_link, "a symbolic link"),
    "dangling link": (make_dangling, "a symbolic link"),
    "folder": (lambda path: path.mkdir(0o700), "a folder"),
    "pipe": (lambda path: os.mkfifo(path, 0o600), "a device, pipe or socket"),
    "socket": (make_socket, "a device, pipe or socket"),
}
OPENED: dict[str, Callable[[Path], object]] = {
    "read": lambda path: files.open_file(str(path), os.O_RDONLY, private=False),
    "write": lambda path: files.open_file(str(path), os.O_WRONLY | os.O_CREAT, private=False),
    "private": lambda path: files.open_file(str(path), os.O_RDWR | os.O_CREAT),
    "check regular": lambda path: files.check(str(path), private=False),
    "check private": lambda path: files.check(str(path)),
}


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("do", OPENED.values(), ids=OPENED)
@pytest.mark.parametrize(("make", "what"), IMPOSTORS.values(), ids=IMPOSTORS)
def test_only_regular_files_are_opened(
    path: Path, make: Callable[[Path], object], what: str, do: Callable[[Path], object]
) -> None:
    make(path)
    with pytest.raises(files.UnsafeFileError) as caught:
        do(path)
    assert caught.value.strerror == f"it is {what}, not a regular file"
    assert caught.value.filename == str(path)
    target = path.parent / "target"
    assert not target.exists() or target.read_bytes() == PRECIOUS


@pytest.mark.usefixtures("descriptors")
def test_a_link_is_followed_where_that_is_asked_for(path: Path) -> None:
    make_link(path)
    with files.closing(files.open_file(str(path), os.O_RDONLY, private=False, follow=True)) as fd:
        assert os.read(fd, 100) == PRECIOUS
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match="levels of symbolic links"):
        files.open_file(str(path), os.O_RDONLY, private=False, follow=True)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("check", [files.check, lambda path: files.open_file(path, os.O_RDONLY)])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601])
def test_a_file_that_others_can_open_is_not_private(
    path: Path, mode: int, check: Callable[[str], object]
) -> None:
    path.write_bytes(PRECIOUS)
    path.chmod(mode)
    files.check(str(path), private=False)
    with pytest.raises(files.UnsafeFileError, match="must be private") as caught:
        check(str(path))
    assert caught.value.strerror == (
        f"it is {stat.filemode(stat.S_IFREG | mode)} of user {os.geteuid()}, "
        f"must be private to user {os.geteuid()} (chmod 600)"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_private_file_is_this_users_or_roots(path: Path) -> None:
    files.create(str(path))
    os.chown(path, 12345, 12345)
    with pytest.raises(files.UnsafeFileError, match="of user 12345, must be private to user 0"):
        files.open_file(str(path), os.O_RDWR)
    with files.closing(files.open_file(str(path), os.O_RDWR, private=False)):
        pass

    def other_user() -> None:
        os.chdir(path.parent)  # the folders above it are root's alone
        os.seteuid(12345)
        files.check("file")
        os.seteuid(0)
        os.chown("file", 0, 0)
        os.seteuid(12345)
        files.check("file")

    path.parent.chmod(0o755)
    assert ended(forked(other_user)) == 0


def test_what_is_created_is_private_and_new(path: Path) -> None:
    files.create(str(path), PRECIOUS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == PRECIOUS
    with pytest.raises(FileExistsError):
        files.create(str(path))
    assert path.read_bytes() == PRECIOUS
    make_dangling(path.parent / "link")
    with pytest.raises(FileExistsError):
        files.create(str(path.parent / "link"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_writing_to_a_full_disk_is_an_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            files.write(fd, b"x")
    finally:
        os.close(fd)


@pytest.mark.usefixtures("descriptors")
def test_replacing_puts_the_new_file_there_or_leaves_the_old(path: Path) -> None:
    scratch = path.parent / "scratch"
    for left in (b"of a process that was killed", None):
        if left:
            scratch.write_bytes(left)
        path.write_bytes(b"old")
        with suppress(ZeroDivisionError), files.replacing(str(path), str(scratch)) as fd:
            files.write(fd, b"half")
            raise ZeroDivisionError
        assert (path.read_bytes(), scratch.exists()) == (b"old", False)
        with files.replacing(str(path), str(scratch)) as fd:
            files.write(fd, b"new")
            assert path.read_bytes() == b"old"
        assert (path.read_bytes(), scratch.exists()) == (b"new", False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_replacing_never_writes_through_a_link(path: Path) -> None:
    scratch = path.parent / "scratch"
    make_link(scratch)
    with files.replacing(str(path), str(scratch)) as fd:
        files.write(fd, b"new")
    assert (path.parent / "target").read_bytes() == PRECIOUS
    assert path.read_bytes() == b"new"


def test_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for _ in range(2):
        files.make_private_folder(str(folder))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files.sync_folder(str(folder))
    folder.chmod(0o750)
    with pytest.raises(files.UnsafeFileError, match=r"drwxr-x--- .*\(chmod 700\)"):
        files.make_private_folder(str(folder))
    link = tmp_path / "link"
    folder.chmod(0o700)
    link.symlink_to(folder)
    for wrong in (link, Path(__file__)):
        with pytest.raises(files.UnsafeFileError, match="not a folder"):
            files.make_private_folder(str(wrong))
    with pytest.raises(FileNotFoundError):
        files.make_private_folder(str(tmp_path / "none" / "folder"))


@pytest.mark.usefixtures("descriptors")
def test_locks(path: Path) -> None:
    def opened() -> int:
        return files.open_file(str(path), os.O_RDWR | os.O_CREAT)

    with files.closing(opened()) as one, files.closing(opened()) as two:
        assert files.lock(one)
        assert not files.lock(two)
        assert not files.lock(two, shared=True, timeout=0.01)
        assert files.lock(one, shared=True)
        assert files.lock(two, shared=True)
        assert not files.lock(one)
        files.unlock(two)
        assert files.lock(one)
        waiting = threading.Timer(0.02, files.unlock, [one])
        waiting.start()
        assert files.lock(two, timeout=60.0)
        waiting.join()
        assert not files.is_deleted(two)
        path.unlink()
        assert files.is_deleted(two)
        with files.closing(opened()) as three:
            assert files.lock(three)  # another file of the same name


def test_a_forked_child_has_no_share_in_its_parents_locks(path: Path) -> None:
    fd = files.open_file(str(path), os.O_RDWR | os.O_CREAT)
    assert files.lock(fd)
    ready, go = os.pipe()

    def child() -> None:
        os.close(go)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        os.read(ready, 1)

    pid = forked(child)
    files.close(fd)
    with files.closing(files.open_file(str(path), os.O_RDWR)) as again:
        assert files.lock(again, timeout=60.0)  # while the child lives
        os.close(go)
        assert ended(pid) == 0
    os.close(ready)


def test_stamps_tell_changes(path: Path) -> None:
    assert files.stamp(str(path)) is None
    assert files.stamp("\0") is None
    assert files.identity(str(path)) is None
    path.write_bytes(b"one")
    stamps = [files.stamp(str(path))]
    identity = files.identity(str(path))
    assert identity == (path.stat().st_dev, path.stat().st_ino)
    path.write_bytes(b"three")
    stamps.append(files.stamp(str(path)))
    os.utime(path, ns=(0, 10**18))
    stamps.append(files.stamp(str(path)))
    assert files.identity(str(path)) == identity
    other = path.parent / "other"
    other.write_bytes(b"three")
    os.utime(other, ns=(0, 10**18))
    other.replace(path)
    stamps.append(files.stamp(str(path)))
    assert files.identity(str(path)) != identity
    assert len(set(stamps)) == 4
    last = stamps[-1]
    assert last is not None
    assert (last.mtime_ns, last.size) == (10**18, 5)
    link = path.parent / "link"
    link.symlink_to(path)
    assert files.stamp(str(link)) == last
    assert files.identity(str(link)) != files.identity(str(path))
