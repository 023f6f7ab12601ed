"""What can't be written ends a run in one line, with its path and what to do; what was there stays whole."""

import errno
import os
import resource
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from fault_cases import some
from small_run import ALONE, Doing, Task, digest, ending, history, recipe, run

from attneck import cli
from attneck.errors import RunFailed, UserError
from attneck.training import checkpoint

WANTED = recipe(ema=0.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return ending(tmp_path_factory.mktemp("whole"), WANTED)


def said_in_a_line(error, folder):
    """What a run that failed said, without the name of its folder; checked to be true."""
    said = str(error.value).replace(str(folder), "RUN")
    assert error.value.code == 1
    assert len(said.splitlines()) == 1
    assert len(said) <= 300
    assert "RUN" in said
    assert not list(folder.rglob("*.tmp"))
    there = []
    with suppress(UserError):  # the folder is no folder
        there = checkpoint.checkpoints(folder / "checkpoints")
    if there:
        assert f"{there[0].name} is whole: go on with: attneck train RUN --resume" in said
        assert checkpoint.load_latest(folder / "checkpoints")[1] == there[0]
    else:
        assert said.endswith("there is no checkpoint yet")
    return said


def goes_on(folder, whole):
    """To the end of a run that nothing disturbed, from the newest checkpoint or from the beginning."""
    run(folder, WANTED, Task(ALONE), resume=bool(checkpoint.checkpoints(folder / "checkpoints")))
    state, _, passed = checkpoint.load_latest(folder / "checkpoints")
    assert (digest(state), history(state)) == whole
    assert passed == []
    assert not list(folder.rglob("*.tmp"))


@contextmanager
def small_disk(folder, size="4m"):
    """A file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def written():
    """Wait for the checkpoint that is being written: the one before goes with it, and leaves room."""
    for thread in threading.enumerate():
        if thread.name == "attneck checkpoint":
            thread.join()


def fill(folder, leave=0):
    """All but so many bytes of a disk."""
    written()
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 14)):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - leave))


@pytest.mark.parametrize("leave", [0, 1 << 12, 1 << 13])
@pytest.mark.parametrize("step", [-1, 0, 1, 2, 4, 5])
def test_full(tmp_path, whole, step, leave):
    """Before the run, and in the middle: in the sum, in the checkpoint, in the record of an epoch."""
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "run"
        if step < 0:
            fill(disk, leave)
        with pytest.raises(RunFailed) as error:
            run(folder, WANTED, Doing(step, lambda: fill(disk, leave)))
        assert "No space left on device; make room" in said_in_a_line(error, folder)
        (disk / "filler").unlink()
        goes_on(folder, whole)


READ_ONLY = [(0, False), (2, False), (2, True), (3, False), (5, True), (5, False)]
"""A step, and whether in the evaluation after it: there is one after the last step of each epoch."""


@pytest.mark.parametrize(("step", "evaluating"), some(READ_ONLY, 3))
def test_read_only(tmp_path, whole, step, evaluating):
    with small_disk(tmp_path / "disk") as disk:

        def remount(how):
            command = ["mount", "-o", f"remount,{how}", str(disk)]
            end = time.monotonic() + 60
            while subprocess.run(command, capture_output=True).returncode:  # a checkpoint is being written
                assert time.monotonic() < end

        with pytest.raises(RunFailed) as error:
            run(disk / "run", WANTED, Doing(step, lambda: remount("ro"), evaluating=evaluating))
        assert "Read-only file system; choose a place" in said_in_a_line(error, disk / "run")
        remount("rw")
        goes_on(disk / "run", whole)


NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.ESTALE]


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", some(range(16), 3))
def test_a_call_fails(tmp_path, monkeypatch, whole, number, call):
    """Any of the first calls that send something to the disk."""
    calls, fsync = [], os.fsync

    def fails(file):
        calls.append(file)
        if len(calls) > call:
            raise OSError(number, os.strerror(number))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(RunFailed) as error:
            run(tmp_path / "run", WANTED, Task(ALONE))
    assert os.strerror(number) in said_in_a_line(error, tmp_path / "run")
    goes_on(tmp_path / "run", whole)


@pytest.mark.parametrize("size", [0, 10, 100, 1000, 10_000])
@pytest.mark.parametrize("step", some([-1, 0, 1, 2, 5], 2))
def test_a_limit_on_files(tmp_path, whole, step, size):
    """Beyond which a process gets SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        if step < 0:
            limit()
        with pytest.raises(RunFailed) as error:
            run(tmp_path / "run", WANTED, Doing(step, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large; raise the limit" in said_in_a_line(error, tmp_path / "run")
    goes_on(tmp_path / "run", whole)


def removed(folder):
    """All of it, whatever is written there meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def moved(folder):
    folder.rename(folder.with_name("elsewhere"))


def a_file(folder):
    removed(folder)
    folder.write_text("a file")


GONE = {
    "removed": removed,
    "moved": moved,
    "a file": a_file,
    "a dangling link": lambda folder: (removed(folder), folder.symlink_to("nowhere")),
}


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("step", some([0, 1, 2, 3, 5], 2))
@pytest.mark.parametrize("evaluating", [False, True])
def test_the_folder_goes(tmp_path, step, how, evaluating):
    """The run's folder, or that of its checkpoints. It doesn't come again with half of what was in it."""
    if evaluating and step not in (2, 5):
        pytest.skip("no evaluation after it")
    folder = tmp_path / "run"
    with pytest.raises(RunFailed) as error:
        run(folder, WANTED, Doing(step, lambda: GONE[how](folder), evaluating=evaluating))
    assert "could not be written" in said_in_a_line(error, folder)
    assert not folder.is_dir()


PLACES = ["checkpoints", "tensorboard", "metrics.jsonl"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", ["file", "folder", "loop"])
def test_a_name_is_taken(tmp_path, place, what):
    if (what == "folder") == (place != "metrics.jsonl") or (what, place) == ("file", "metrics.jsonl"):
        pytest.skip("as it should be")
    path = tmp_path / "run" / place
    path.parent.mkdir()
    {"file": path.touch, "folder": path.mkdir, "loop": lambda: path.symlink_to(path)}[what]()
    if (what, place) == ("loop", "metrics.jsonl"):
        pytest.skip("replaced, as any file is")
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "run", WANTED, Task(ALONE))
    assert place in said_in_a_line(error, tmp_path / "run")


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_checkpoint_s_name_is_taken(tmp_path, kind):
    path = tmp_path / "run/checkpoints/step-00000003.pt"
    path.parent.mkdir(parents=True)
    {"folder": path.mkdir, "link": lambda: path.symlink_to("x"), "pipe": lambda: os.mkfifo(path)}[kind]()
    before = path.lstat().st_ino
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "run", WANTED, Task(ALONE))
    said = said_in_a_line(error, tmp_path / "run")
    assert "step-00000003.pt could not be written: File exists; what is there was not written by" in said
    assert path.lstat().st_ino == before


TINY = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 64, "val_size": 20, "image_size": 24},
    "batch": 32,
    "pictures": False,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def loop_of_links(folder):
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


def file_in(folder):
    (folder / "file").write_text("mine")
    return str(folder / "file")


OUTS = {
    "file": file_in,
    "under a file": lambda folder: file_in(folder) + "/run",
    "proc": lambda folder: "/proc/run",
    "proc self": lambda folder: "/proc/self/run",
    "sys": lambda folder: "/sys/run",
    "full": lambda folder: "/dev/full",
    "under full": lambda folder: "/dev/full/run",
    "null": lambda folder: "/dev/null",
    "stdin": lambda folder: "/dev/fd/0/run",
    "long name": lambda folder: str(folder / ("x" * 300)),
    "long path": lambda folder: str(folder / "/".join(["y" * 200] * 30)),
    "NUL": lambda folder: str(folder / "a\0b"),
    "loop": loop_of_links,
    "under a loop": lambda folder: loop_of_links(folder) + "/run",
}


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("out", OUTS)
def test_out(tmp_path, tiny, capsys, out, resume):
    where = OUTS[out](tmp_path)
    code = cli.main(["train", tiny, "--out", where, *(["--resume"] if resume else [])])
    said = capsys.readouterr().err.replace(where, "OUT").replace(str(tmp_path), "DIR")
    assert code in (1, 2)
    # A long path is cut in the middle, and a NUL is refused before the word is an option's value.
    assert {"long path": "has 6,0", "NUL": "NUL"}.get(out, "OUT") in said
    assert len(said.splitlines()) == 1, said
    assert len(said) <= 300
    assert "Traceback" not in said
    assert "is whole" not in said
    if out == "file":
        assert Path(where).read_text() == "mine"


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json", "data.json", "summary.json"])
def test_a_file_of_the_run_is_a_folder(tmp_path, tiny, capsys, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    code = cli.main(["train", tiny, "--out", str(tmp_path / "run")])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("attneck: ")]
    assert code in (1, 2)
    assert len(said) == 1
    of_none = "is there, and no run has written it: choose another --out"
    assert ("Is a directory" if name == "summary.json" else of_none) in said[0]
