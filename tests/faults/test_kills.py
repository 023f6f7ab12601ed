"""A run as a process of its own, killed and resumed; and the same run in two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

TINY = {
    "model": {"name": "cifar_resnet20_bot_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "augment": "crop_flip", "train_size": 320, "image_size": 24},
    "epochs": 2,
    "batch": 16,
    "pictures": False,
    "ema": 0.9,
    "checkpoint_steps": 3,
}
STEPS = 40


@pytest.fixture
def start(tmp_path):
    """Starts `attneck train tiny.yaml WORDS`; whatever is left of it is killed at the end."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    started = []

    def run(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "attneck.cli", "train", "tiny.yaml", *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_step(folder, step, process):
    """Until a checkpoint of `step` or later is there."""
    while not any(int(path.name[5:13]) >= step for path in (folder / "checkpoints").glob("step-*.pt")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def weights(folder):
    return json.loads((folder / "summary.json").read_text())["weights"]


@pytest.mark.slow
def test_kill_9_and_resume_end_with_the_same_weights(start, tmp_path):
    whole = start("--out", "whole")
    for workers in ("0", "2"):
        for step in (4, 23):  # in the first epoch, and in the second
            resume = ["--resume"] if step > 4 else []
            process = start("--out", workers, "--data.workers", workers, *resume)
            wait_for_step(tmp_path / workers, step, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
        last = start("--out", workers, "--data.workers", workers, "--resume")
        assert last.wait() == 0, last.stdout.read()
        assert whole.wait() == 0, whole.stdout.read()
        assert weights(tmp_path / workers) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_many_processes_refuse_in_one_voice(start, tmp_path):
    process = start("--out", "run", "--processes", "2", "--resume")
    said = process.communicate()[0]
    assert process.returncode == 2, said
    assert said.count("no checkpoint there") == 1
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_end_with_the_weights_of_one(tmp_path, accumulate):
    """In float64, so that nothing but rounding may differ: SyncBatchNorm, DDP, the split of the data."""
    program = os.path.join(os.path.dirname(__file__), "../training/train_in_float64.py")
    ends = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if processes == 2 else []
        done = subprocess.run(
            [sys.executable, *launcher, program, str(folder), "3", str(accumulate)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ends.append(torch.load(folder / "weights.pt", weights_only=True))
    # With accumulation BatchNorm sees half a batch at a time, in both.
    for name, one in ends[0].items():
        error = (one - ends[1][name]).abs().max() if one.is_floating_point() else 0
        assert error <= 1e-9 * (1 + one.abs().max()), name
