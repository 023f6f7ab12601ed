"""kill -9 at any moment of a run: it goes on from a whole checkpoint, and ends as one that was left alone."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from fault_cases import some
from small_run import ALONE, Task, digest, ending, history, recipe, run

from attneck import cli
from attneck.runs.start import LEFT
from attneck.training import checkpoint
from attneck.training.checkpoint_files import named

TINY = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 32, "val_size": 10, "image_size": 24},
    "batch": 32,
    "pictures": False,
    "epochs": 1,
}
SMALL = recipe(ema=0.5)
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.link")
CALLS = 100
"""That a small run makes, a little less."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of a small run that is left alone, and the seconds it takes."""
    began = time.monotonic()
    end = ending(tmp_path_factory.mktemp("whole"), SMALL)
    return end, time.monotonic() - began


def small(folder):
    """Begins a small run, or goes on with it."""
    run(folder, SMALL, Task(ALONE), resume=bool(checkpoint.checkpoints(folder / "checkpoints")))


def killed(folder, call=None, seconds=None):
    """A small run in a fork of this process, killed before its call number `call` or after so many seconds.

    Every checkpoint that it leaves is whole.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if call is not None:
                sys.addaudithook(killer(str(folder), call))
            small(folder)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if named(folder / "checkpoints"):
        assert checkpoint.load_latest(folder / "checkpoints")[2] == []
    return code == -signal.SIGKILL


def killer(folder, call):
    """Hears of each file that is about to be opened, made, renamed or removed in a folder."""
    heard = []

    def hook(event, given):
        if event in EVENTS and folder in str(given[0]):
            if len(heard) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            heard.append(event)

    return hook


def goes_on(folder, whole):
    """To the end of a run that was left alone, from a checkpoint that is whole."""
    small(folder)
    state, _, passed = checkpoint.load_latest(folder / "checkpoints")
    assert (digest(state), history(state)) == whole
    assert passed == []
    assert all(LEFT.fullmatch(path.relative_to(folder).as_posix()) for path in folder.rglob("*.tmp"))


@pytest.mark.parametrize("call", some(range(CALLS), 4))
def test_before_any_call_that_changes_the_folder(tmp_path, whole, call):
    """Most of them belong to a checkpoint's write. Twice: the run that goes on is killed, too."""
    folder = tmp_path / "run"
    folder.mkdir()
    assert killed(folder, call=call)
    killed(folder, call=random.Random(call).randrange(CALLS))
    goes_on(folder, whole[0])


@pytest.mark.parametrize("number", some(range(30), 2))
def test_at_a_random_moment(tmp_path, whole, number):
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        killed(folder, seconds=random.random() * whole[1])
    goes_on(folder, whole[0])


def test_what_a_killed_process_has_left_goes_as_the_run_goes_on(tmp_path):
    """Of the files of a run alone; what somebody else may be writing there stays."""
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump(TINY))
    folder = tmp_path / "run"
    assert cli.main(["train", str(tiny), "--out", str(folder)]) == 0
    names = ["recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "metrics.csv", "summary.json"]
    names += ["scored.json", "split.csv", "pictures/curves.png", "snapshots/step-00000004.json"]
    left = [(folder / name).with_name(f".{Path(name).name}.4711.tmp") for name in names]
    others = [folder / name for name in (".report.html.4711.tmp", ".metrics.csv.tmp", ".mine.png.1.tmp")]
    for path in left + others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    assert cli.main(["train", str(folder), "--resume"]) == 0
    assert [path for path in left + others if path.exists()] == others
