"""A file is whole or not there, also after the machine stopped: what has to be on the disk is sent there."""

import errno
import os
import stat
from pathlib import Path

import pytest

from attneck.files import NotWritten, told_apart, write_atomic


@pytest.fixture
def calls(monkeypatch):
    """fsync of files and folders, and renames, in their order."""
    made, fsync, replace = [], os.fsync, os.replace

    def sync(descriptor):
        status = os.fstat(descriptor)
        made.append(("folder" if stat.S_ISDIR(status.st_mode) else "file", status.st_ino))
        fsync(descriptor)

    def rename(old, new):
        made.append(("renamed", os.stat(old).st_ino))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    return made


@pytest.mark.parametrize("there", [False, True])
def test_the_file_then_its_name_reach_the_disk(tmp_path, calls, there):
    path = tmp_path / "sums.txt"
    if there:
        path.write_bytes(b"old")
    write_atomic(path, b"new")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("file", file), ("renamed", file), ("folder", folder)]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_without_fsync_of_folders_is_written_to(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "folder")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    if number == errno.EINVAL:
        write_atomic(tmp_path / "a", b"new")
    else:
        with pytest.raises(NotWritten, match="look after the disk"):
            write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_paths_are_told_apart_by_their_names_or_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Path("a/seed-0"), Path("b/seed-0"), Path("b/other")]
    assert told_apart(paths) == ["a/seed-0", "b/seed-0", "other"]
    assert told_apart([Path(".")]) == [tmp_path.name]
