"""Where memory runs out a run ends in a line: step, batch, size, what to lower. Nothing is lost."""

import subprocess
import sys

import pytest
import torch
from fault_cases import some
from small_run import ALONE, Doing, Task, digest, ending, history, recipe, run
from torch import nn

from attneck import cli
from attneck.errors import RunFailed
from attneck.runs import train as runs
from attneck.training import checkpoint
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import dump_recipe

WANTED = recipe(ema=0.5, accumulate=2)
ERRORS = {
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 8.00 GiB for an array with shape (1024, 1024, 1024)"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 34359738368 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …\n\nMore"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "c++": RuntimeError("std::bad_alloc"),
    "onednn": RuntimeError("could not create a primitive"),
    "fork": OSError(12, "Cannot allocate memory"),
    "thread": RuntimeError("can't start new thread"),
    "shared": RuntimeError("unable to mmap 4096 bytes from file </torch_1_2>: Cannot allocate memory (12)"),
    "in a worker": MemoryError(
        "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most…"
    ),
    "worker killed": RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. "),
    "worker bus": RuntimeError(
        "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit."
    ),
    "worker gone": RuntimeError("DataLoader worker (pid(s) 4711, 4712) exited unexpectedly"),
}
KILLED = {"worker killed": "Killed", "worker gone": "exited unexpectedly"}
SHARED = ("shared", "worker bus")
"""The memory that workers share is full, and a resume may have fewer of them."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return ending(tmp_path_factory.mktemp("whole"), WANTED)


def short(error, step, evaluating):
    """A task that runs out of memory in a step, or in the evaluation after it."""

    def fail():
        raise error

    return Doing(step, fail, evaluating=evaluating)


GRID = [
    (name, step, late) for name in ERRORS for step, late in [(0, 0), (1, 0), (2, 0), (2, 1), (5, 0), (5, 1)]
]


@pytest.mark.parametrize(("name", "step", "evaluating"), some(GRID, 18))
def test_in_training(tmp_path, whole, name, step, evaluating):
    with pytest.raises(RunFailed) as end:
        run(tmp_path, WANTED, short(ERRORS[name], step, bool(evaluating)))
    said = str(end.value).replace(str(tmp_path), "RUN")
    assert end.value.code == 1
    assert len(said.splitlines()) == 1
    assert len(said) <= 300, said
    assert "batch 8" in said
    assert f"step {step + 1}" in said
    advice = "lower data.workers, which a resume may" if name in SHARED else "accumulate 4 or smaller images"
    assert advice in said
    assert KILLED.get(name, "out of memory") in said
    newest = step + evaluating
    if newest:
        assert f"step-{newest:08d}.pt is whole: go on with: attneck train RUN --resume" in said
        assert checkpoint.load_latest(tmp_path / "checkpoints")[0]["step"] == newest
    else:
        assert "there is no checkpoint yet" in said
    run(tmp_path, WANTED, Task(ALONE), resume=newest > 0)
    state, _, passed = checkpoint.load_latest(tmp_path / "checkpoints")
    assert passed == []
    assert (digest(state), history(state)) == whole


def test_another_mistake_is_not_taken_for_it(tmp_path):
    with pytest.raises(RuntimeError, match="a mistake"):
        run(tmp_path, WANTED, short(RuntimeError("a mistake"), 1, False))


TINY = Recipe.model_validate(
    {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "shapes", "train_size": 64, "val_size": 20, "image_size": 24},
        "batch": 32,
        "epochs": 1,
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(TINY, folder)
    return folder


@pytest.mark.parametrize("words", [["eval"], ["predict", "--held-out", "2"]], ids=lambda words: words[0])
@pytest.mark.parametrize("name", some([name for name in ERRORS if "worker" not in name], 3))
def test_in_inference(trained, monkeypatch, capsys, words, name):
    def forward(*given):
        raise ERRORS[name]

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    before = {path: path.stat().st_mtime_ns for path in (trained / "checkpoints").iterdir()}
    assert cli.main([words[0], str(trained), *words[1:]]) == 1
    said = capsys.readouterr().err.splitlines()[-1].replace(str(trained), "RUN")
    assert said.startswith("attneck: ")
    assert "24 pixels: out of memory; " in said
    assert len(said) <= 300
    assert before == {path: path.stat().st_mtime_ns for path in (trained / "checkpoints").iterdir()}


LIMITED = """
import resource, sys
import torch, torchvision, timm  # mapped before the limit
import attneck.runs.train
from attneck import cli
torch.set_num_threads(1)
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = mapped + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "spare"),
    some([("train", 200), ("train", 400), ("train", 800), ("eval", 100), ("eval", 300), ("predict", 100)], 1),
)
def test_a_limit_that_the_kernel_keeps(trained, tmp_path, command, spare):
    """With so many MB beyond what the libraries take."""
    great = TINY.model_copy(
        update={
            "batch": 64,
            "data": TINY.data.model_copy(update={"image_size": 512 if command == "train" else 24}),
        }
    )
    (tmp_path / "great.yaml").write_text(dump_recipe(great))
    words = {
        "train": ["train", str(tmp_path / "great.yaml"), "--out", str(tmp_path / "run")],
        "eval": ["eval", str(trained)],
        "predict": ["predict", str(trained), "--held-out", "2"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(spare * 10**6), *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if command != "train" and done.returncode == 0:
        pytest.skip("it was enough")
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("attneck: ")]
    assert "out of memory" in said[-1]
    assert "Traceback" not in done.stderr
