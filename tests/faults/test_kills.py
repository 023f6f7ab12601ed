"""A run as a process of its own, killed and resumed; and the same run in two processes."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml
from fault_cases import some
from forked import Forked, as_ranks
from train_in_float64 import train_in_float64

from attneck import cli
from attneck.errors import RunFailed

TINY = {
    "model": {"name": "cifar_resnet20_bot_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "augment": "crop_flip", "train_size": 320, "val_size": 20, "image_size": 24},
    "epochs": 2,
    "batch": 16,
    "pictures": False,
    "ema": 0.9,
    "checkpoint_steps": 3,
}


WORKERS = some(["2", "0"], 1)


@pytest.fixture
def start(tmp_path):
    """Starts `attneck train tiny.yaml WORDS`; whatever is left of it is killed at the end."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    started = []

    def run(*words):
        started.append(Forked(tmp_path, ["train", "tiny.yaml", *words]))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def wait_for_step(folder, step, process):
    """Until a checkpoint of `step` or later is there."""
    while not any(int(path.name[5:13]) >= step for path in (folder / "checkpoints").glob("step-*.pt")):
        assert not process.ended(), process.said.read_text()
        time.sleep(0.02)


def weights(folder):
    return json.loads((folder / "summary.json").read_text())["weights"]


def test_kill_9_and_resume_end_with_the_same_weights(start, tmp_path):
    whole = start("--out", "whole")
    for workers in WORKERS:
        for step in (4, 23):  # in the first epoch, and in the second
            resume = ["--resume"] if step > 4 else []
            process = start("--out", workers, "--data.workers", workers, *resume)
            wait_for_step(tmp_path / workers, step, process)
            process.kill()
        last = start("--out", workers, "--data.workers", workers, "--resume")
        assert last.wait() == 0, last.said.read_text()
        assert whole.wait() == 0, whole.said.read_text()
        assert weights(tmp_path / workers) == weights(tmp_path / "whole")


@pytest.mark.parametrize("how", ["forks", pytest.param("launcher", marks=pytest.mark.slow)])
def test_many_processes_refuse_in_one_voice(tmp_path, monkeypatch, capfd, how):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["train", "tiny.yaml", "--out", "run", "--resume"]
    if how == "forks":
        assert as_ranks(cli.main, words) == [2, 2]
    else:
        assert cli.main([*words, "--processes", "2"]) == 2
    said = "".join(capfd.readouterr())
    assert said.count("no checkpoint there") == 1
    assert "Traceback" not in said


def test_a_process_of_two_that_is_killed_says_how_to_go_on(tmp_path, monkeypatch):
    """By its launcher: itself it can't."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from attneck.commands.train import launch

    for number, said in ((signal.SIGKILL, "with --resume"), (signal.SIGSEGV, "ended with code 139$")):
        failure = ProcessFailure(1, 0, -number, str(tmp_path / "none"))
        failed = ChildFailedError("attneck", {1: failure})

        def torchrun(words, failed=failed):
            raise failed

        monkeypatch.setattr("torch.distributed.run.main", torchrun)
        with pytest.raises(RunFailed, match=f"process 1 of 2 .*{said}"):
            launch(["train"], 2)


@pytest.mark.parametrize("accumulate", some([2, 1], 1))
def test_two_processes_end_with_the_weights_of_one(tmp_path, accumulate):
    """In float64, so that nothing but rounding may differ: SyncBatchNorm, DDP, the split of the data."""
    one = train_in_float64(tmp_path / "1", 3, accumulate)
    two, _ = as_ranks(train_in_float64, tmp_path / "2", 3, accumulate)
    # With accumulation BatchNorm sees half a batch at a time, in both.
    for name, wanted in one.items():
        error = abs(wanted - two[name]).max() if wanted.dtype.kind == "f" else 0
        assert error <= 1e-9 * (1 + abs(wanted).max()), name
