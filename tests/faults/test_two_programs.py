"""Two programs, one run folder: one trains, the other is refused; and nobody's folder is taken by two."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.pool import ThreadPool

import pytest
import yaml
from fault_cases import LONG, some
from forked import Forked

from attneck import cli
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.runs.folder import take_folder
from attneck.runs.lock import LOCK, only_one
from attneck.training.recipe import Recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 16, "val_size": 4, "image_size": 24},
    "batch": 8,
    "pictures": False,
}
TAKE = """
from pathlib import Path
from attneck.runs.lock import only_one
with only_one(Path("new")):
    pass
"""
HERE = socket.gethostname()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(Recipe.model_validate(TINY), folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, trained):
    """A folder to work in, with a recipe, another one, and a finished run."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(TINY | {"seed": 1, "epochs": 2}))
    subprocess.run(["cp", "-r", trained, tmp_path / "run"], check=True)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Holder:
    """A fork that holds a folder's lock for a minute."""

    def __init__(self, folder, worker=False):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            with suppress(BaseException):
                os.setsid()
                with only_one(folder):
                    if worker and os.fork() == 0:  # as one that has not noticed yet that its parent is dead
                        time.sleep(60)
                        os._exit(0)
                    os.write(writer, b"held")
                    time.sleep(60)
            os._exit(1)
        os.close(writer)
        said = os.read(reader, 4)
        os.close(reader)
        assert said == b"held"

    def alive(self):
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self, number):
        os.kill(self.pid, number)
        os.waitpid(self.pid, 0)


@pytest.fixture
def hold():
    """Starts a program that holds a folder's lock; ends it and its children afterwards."""
    started = []

    def start(folder, worker=False):
        started.append(Holder(folder, worker))
        return started[-1]

    yield start
    for holder in started:
        with suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(holder.pid, 0)


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SECOND = {
    "new": ["tiny.yaml", "--out", "new"],
    "new, other recipe": ["other.yaml", "--out", "new"],
    "new, two processes": ["tiny.yaml", "--out", "new", "--processes", "2"],
    "resumed": ["tiny.yaml", "--out", "run", "--resume"],
    "resumed by its folder": ["run", "--resume"],
    "resumed, other recipe": ["other.yaml", "--out", "run", "--resume"],
    "resumed, two processes": ["run", "--resume", "--processes", "2"],
    "new where a run is": ["tiny.yaml", "--out", "run"],
    "by another path": ["tiny.yaml", "--out", "link/../run", "--resume"],
    "by a link": ["tiny.yaml", "--out", "link", "--resume"],
}


@pytest.mark.parametrize("second", some(SECOND, 4))
@pytest.mark.parametrize("late", ["before torch", "in train"])
def test_the_second_is_refused_in_one_line(place, hold, second, late, capsys, monkeypatch):
    (place / "link").symlink_to("run")
    words = [word.replace("link/../run", f"{place}/run") for word in SECOND[second]]
    if late == "in train":
        if "--processes" in words:
            pytest.skip("the launcher's child is another process")
        monkeypatch.setattr("attneck.commands.train.only_one", lambda folder: only_one(place))
    folder = place / ("new" if "new" in words else "run")
    first = hold(folder)
    before = content(folder)
    assert cli.main(["train", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert len(said) <= 300
    assert re.search(
        rf"trained by process {first.pid} on {HERE} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC", said
    )
    assert content(folder) == before
    assert first.alive()


@pytest.mark.parametrize("word", some(["predict", "eval", "curves"], 1))
def test_a_run_in_training_can_be_read(place, hold, word, capsys):
    hold(place / "run")
    before = content(place / "run")
    more = {"eval": [], "predict": ["--held-out", "1", "--out", "out"], "curves": ["--out", "curves.png"]}
    assert cli.main([word, "run", *more[word]]) == 0, capsys.readouterr().err
    after = content(place / "run")
    assert {path: after.pop(path) for path in before} == before
    assert {path.parent.name for path in after} == ({"evaluation"} if word == "eval" else set())


LEFT = {
    "of a dead process": f"process 999999999 on {HERE} since 2020-01-01 00:00:00 UTC",
    "of this number, long ago": f"process {os.getpid()} on {HERE} since 2020-01-01 00:00:00 UTC",
    "of a number used again": f"process 1 on {HERE} since 2020-01-01 00:00:00 UTC",
    "of another machine": "process 7 on elsewhere since 2020-01-01 00:00:00 UTC",
    "empty": "",
    "cut short": "process 12",
    "other words": "no",
    "bytes": "\udcff\udc80" * 5000,
    "lines": "process 7\non x\n" * 9,
}


@pytest.mark.parametrize("kind", some(LEFT, 3))
@pytest.mark.parametrize(
    "words", [["tiny.yaml", "--out", "new"], ["run", "--resume"]], ids=["new", "resumed"]
)
def test_a_lock_that_was_left_is_taken_over(place, kind, words, capsys):
    folder = place / ("new" if "new" in words else "run")
    (folder / LOCK).write_bytes(LEFT[kind].encode(errors="surrogateescape"))
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().err
    assert (f"{LEFT[kind]} has ended without giving it up" in said) == ("since" in LEFT[kind])
    assert (folder / LOCK).read_bytes() == b""
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize("worker", [False, True], ids=["alone", "its worker lives on"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_a_killed_program_leaves_no_lock(place, hold, worker, number, capsys):
    first = hold(place / "new", worker)
    with pytest.raises(UserError, match=f"process {first.pid} "), only_one(place / "new"):
        pass
    first.end(number)
    with only_one(place / "new"):
        pass
    assert f"process {first.pid} on {HERE}" in capsys.readouterr().err


def test_another_thread_is_refused_and_the_first_keeps_the_lock(place, hold):
    """A record lock is given up when any descriptor of its file is closed."""
    program = [sys.executable, "-c", TAKE]
    with only_one(place / "new"):
        for _ in range(2):
            with pytest.raises(UserError, match=f"process {os.getpid()} "), only_one(place / "new"):
                pass
        done = subprocess.run(program, capture_output=True, text=True)
        assert f"process {os.getpid()} on" in done.stderr
    hold(place / "new")  # now it is free


def test_a_folder_without_locks_is_said(place, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with only_one(place / "new"):
        assert "no locks there (No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 20])
def test_folders_are_made_for_one_alone(place, count):
    gate = threading.Barrier(count)

    def take(_):
        gate.wait()
        return take_folder("demo")

    with ThreadPool(count) as pool:
        taken = pool.map(take, range(count))
    assert {str(folder) for folder in taken} == {
        "runs/demo" if number == 1 else f"runs/demo-{number}" for number in range(1, count + 1)
    }


REFUSED = {
    "batch": ["--batch", "64"],
    "divides": ["--batch", "15", "--accumulate", "4"],
    "model": ["--model.name", "cifar_resnet21"],
    "option": ["--model.options", "no_such", "1"],
    "surgery": ["--model.surgery-options", "stage", "1"],
    "data": ["--data.name", "folder", "--data.root", "nowhere"],
    "augment": ["--data.augment", "inception"],
    "size": ["--data.image-size", "3"],
    "weights": ["--model.weights", "nowhere.safetensors"],
    "resume": ["--resume"],
    "changes": ["--accept-changes"],
}


@pytest.mark.parametrize("out", [[], ["--out", "here"]], ids=["numbered", "named"])
@pytest.mark.parametrize("change", some(REFUSED, 3))
def test_what_is_refused_leaves_no_folder(place, change, out, capsys):
    before = sorted(place.iterdir())
    assert cli.main(["train", "tiny.yaml", *REFUSED[change], *out]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(place.iterdir()) == before


OUT = {
    "a file": "tiny.yaml",
    "under a file": "tiny.yaml/run",
    "too long": "x" * 300,
    "no such system": "/proc/run",
    "NUL": "a\0b",
    "the lock is a folder": "locked",
}


@pytest.mark.parametrize("kind", some(OUT, 2))
def test_a_folder_that_cannot_be_made_is_one_line(place, kind, capsys):
    (place / "locked" / LOCK).mkdir(parents=True)
    assert cli.main(["train", "tiny.yaml", "--out", OUT[kind]]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "give" in said


BOTH = {
    "new": ([["tiny.yaml", "--out", "both"]] * 2, 0),
    "new, 3 s apart, other recipes": ([["tiny.yaml", "--out", "both"], ["other.yaml", "--out", "both"]], 3),
    "resumed": ([["long.yaml", "--out", "run", "--resume"]] * 2, 0),
    "resumed, 3 s apart": ([["long.yaml", "--out", "run", "--resume"]] * 2, 3),
    "numbered": ([["tiny.yaml"]] * 2, 0),
    "numbered, two processes": ([["tiny.yaml", "--processes", "2"]] * 2, 0),
}


@pytest.mark.parametrize("case", some(BOTH, 2) if LONG else ["new, 3 s apart, other recipes", "numbered"])
def test_two_programs(place, case):
    """As processes of their own, started at once or 3 s apart."""
    both, apart = BOTH[case]
    if "numbered" not in case:  # the one that trains does not end before the other is refused
        long = TINY | {"epochs": 10_000}
        for name in ("tiny", "long"):
            (place / f"{name}.yaml").write_text(yaml.safe_dump(long))
        (place / "other.yaml").write_text(yaml.safe_dump(long | {"seed": 1}))
        if "resumed" in case:
            shutil.rmtree("run")
            break_off(long, place / "run")
    processes = []
    try:
        for words in both:
            time.sleep(apart if processes else 0)
            said = place / f"said-{len(processes)}.txt"
            processes.append(Forked(place, ["train", *words], said=said))
        if "numbered" in case:
            assert [process.wait() for process in processes] == [0, 0]
            assert all((place / f"runs/{name}/summary.json").is_file() for name in ("tiny", "tiny-2"))
            assert len(list((place / "runs").iterdir())) == 2
            return
        while not any(process.ended() for process in processes):
            time.sleep(0.1)
        (loser,) = (process for process in processes if process.ended())
        (winner,) = (process for process in processes if process is not loser)
        (line,) = loser.said.read_text().strip().splitlines()
        assert loser.code == 2, line
        assert f"trained by process {winner.pid} on {HERE} since" in line
        assert not winner.ended()
        winner.kill()
        with only_one(place / both[0][2]):
            pass
    finally:
        for process in processes:
            process.kill()


def break_off(content, folder):
    """A run that was interrupted in its first epoch."""
    from attneck.training import checkpoint

    whole = checkpoint.save

    def save(*words):
        whole(*words)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", save)
        runs.train(Recipe.model_validate(content), folder)


def test_a_lock_that_cannot_be_written_is_given_up(tmp_path, monkeypatch):
    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass
