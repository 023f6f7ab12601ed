"""torchrun --max-restarts: one command goes on by itself, from the very first start."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fault_cases import LONG, some
from forked import as_ranks

from attneck import cli
from attneck.runs import start as starts
from attneck.runs import train as runs
from attneck.training import checkpoint
from attneck.training.recipe import Recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "augment": "crop_flip", "train_size": 24, "val_size": 4, "image_size": 24},
    "batch": 8,
    "pictures": False,
    "epochs": 2,
    "ema": 0.5,
    "checkpoint_steps": 1,
}


class KilledError(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The digest of a run that was left alone."""
    return runs.train(Recipe.model_validate(TINY), tmp_path_factory.mktemp("whole")).weights


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launched(monkeypatch):
    """Sets what torchrun tells a worker: which torchrun it is, its run id, and how often it started again."""

    def launch(folder, count, run_id="none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        file = f"/tmp/torchelastic_x/{run_id}_{folder}/attempt_{count}/0/error.json" if folder else ""
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)

    return launch


def train_killed(monkeypatch, when, words):
    """A first start that ends at once, without a word: a step, or a place in the start."""
    with monkeypatch.context() as patch:
        if isinstance(when, int):
            save = checkpoint.save

            def killed(folder, step, *rest):
                if step > when:
                    raise KilledError
                return save(folder, step, *rest)

            patch.setattr(checkpoint, "save", killed)
        else:

            def killed(*_, **__):
                raise KilledError

            where = {
                "data": (runs, "open_task"),
                "lock": (starts, "environment"),
                "loop": (runs.loop, "train_loop"),
            }
            patch.setattr(*where[when], killed)
        with pytest.raises(KilledError):
            cli.main(["train", "tiny.yaml", *words])


WHEN = ["data", "lock", "loop", 0, 1, 2, 3, 4, 5]
OUTS = {"named": ["--out", "run"], "numbered": []}


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("when", some(WHEN, 3))
@pytest.mark.parametrize("again", some([1, 2], 1))
def test_it_goes_on_by_itself(place, launched, monkeypatch, capsys, whole, out, when, again):
    """Killed while data is opened, the folder described, before the first step, or after so many steps."""
    for count in range(again):
        launched("abc", count)
        train_killed(monkeypatch, when, OUTS[out])
    launched("abc", again)
    assert cli.main(["train", "tiny.yaml", *OUTS[out]]) == 0
    said = capsys.readouterr().err
    if when != "data" and when != "lock":
        whence = "from the beginning" if when in ("loop", 0) else f"going on from step {when}"
        assert f"started again by torchrun, {whence}" in said
    taken = sorted(place.glob("run*/summary.json")) or sorted(place.glob("runs/*/summary.json"))
    assert len(taken) == 1
    assert json.loads(taken[0].read_text())["weights"] == whole


@pytest.mark.parametrize("when", some(["loop", 1, 4], 1))
def test_a_numbered_run_finds_its_own_folder_among_others(place, launched, monkeypatch, whole, when):
    assert cli.main(["train", "tiny.yaml"]) == 0
    launched("abc", 0)
    train_killed(monkeypatch, when, [])
    launched("other", 0)
    train_killed(monkeypatch, when, [])
    launched("abc", 1)
    assert cli.main(["train", "tiny.yaml"]) == 0
    assert sorted(path.name for path in (place / "runs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    assert not (place / "runs/tiny-3/summary.json").exists()
    assert json.loads((place / "runs/tiny-2/summary.json").read_text())["weights"] == whole


@pytest.mark.parametrize("kind", some(["by hand", "torchrun", "the same id", "no folder of errors"], 2))
@pytest.mark.parametrize("count", [0, 1])
def test_a_run_of_another_command_is_refused(place, launched, monkeypatch, capsys, kind, count):
    """The refusal is a worker's failure to torchrun: its restart must not take the run that was refused."""
    if kind != "by hand":
        launched("first", 0, "7" if kind == "the same id" else "none")
    train_killed(monkeypatch, 2, ["--out", "run"])
    capsys.readouterr()
    here = "" if kind == "no folder of errors" else "second"
    launched(here, count, "8" if kind == "the same id" else "none")
    assert cli.main(["train", "tiny.yaml", "--out", "run"]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("when", some([2, 4], 1))
def test_on_another_machine_the_run_id_tells(place, launched, monkeypatch, whole, when):
    """After a restart the first process may be elsewhere."""
    launched("here", 0, "job-7")
    train_killed(monkeypatch, when, ["--out", "run"])
    launched("there", 1, "job-7")
    assert cli.main(["train", "tiny.yaml", "--out", "run"]) == 0
    assert json.loads((place / "run/summary.json").read_text())["weights"] == whole


@pytest.mark.parametrize("change", some([["--batch", "4"], ["--seed", "3"], ["--data.train-size", "48"]], 1))
def test_a_restart_with_another_recipe_is_refused(place, launched, monkeypatch, capsys, change):
    launched("abc", 0)
    train_killed(monkeypatch, 2, ["--out", "run"])
    launched("abc", 1)
    assert cli.main(["train", "tiny.yaml", "--out", "run", *change]) == 2
    assert "was started otherwise" in capsys.readouterr().err


def test_the_usual_metric_by_its_name_is_no_change(place, monkeypatch, capsys, whole):
    train_killed(monkeypatch, 2, ["--out", "run"])
    assert cli.main(["train", "tiny.yaml", "--out", "run", "--resume", "--metric", "loss"]) == 2
    assert "metric: top1 → loss" in capsys.readouterr().err
    assert cli.main(["train", "tiny.yaml", "--out", "run", "--resume", "--metric", "top1"]) == 0
    assert json.loads((place / "run/summary.json").read_text())["weights"] == whole


@pytest.mark.parametrize("word", [[], ["--resume"]], ids=["new", "resumed"])
def test_without_torchrun_nothing_changes(place, monkeypatch, capsys, whole, word):
    train_killed(monkeypatch, 2, ["--out", "run"])
    assert cli.main(["train", "tiny.yaml", "--out", "run", *word]) == (0 if word else 2)
    assert "by torchrun" not in capsys.readouterr().err


MOMENTS = {
    "the first, before a checkpoint": (0, 0),
    "the second, before a checkpoint": (1, 0),
    "the first, after some": (0, 4),
    "the second, after some": (1, 4),
}


def command(recipe):
    """torchrun of two workers that may start again twice, and what it runs."""
    with socket.socket() as free:  # two torchruns on one machine must not meet at the default's port
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=2",
        "--master-port",
        port,
    ]
    return [sys.executable, *torchrun, "-m", "attneck", "train", str(recipe)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A recipe for two processes, and the digest of a run of it that was left alone."""
    folder = tmp_path_factory.mktemp("two")
    content = TINY | {"checkpoint_steps": 4, "sync_bn": False, "data": TINY["data"] | {"train_size": 48}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    words = ["train", str(folder / "tiny.yaml"), "--out", str(folder / "alone")]
    assert as_ranks(cli.main, words) == [0, 0]
    return folder / "tiny.yaml", json.loads((folder / "alone/summary.json").read_text())["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("out", some(OUTS, 1))
@pytest.mark.parametrize("moment", MOMENTS if LONG else ["the second, before a checkpoint"])
def test_torchrun_starts_a_killed_worker_again(place, two, moment, out):
    """kill -9 to one of two workers; the command ends with the digest of one that was left alone."""
    rank, step = MOMENTS[moment]
    recipe, digest = two
    words = [*command(recipe), *OUTS[out]]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    folder = place / ("run" if out == "named" else "runs/tiny")
    try:
        while not begun(folder, step):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.kill(workers(process.pid)[rank], signal.SIGKILL)
        said = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert re.search(r"started again by torchrun, (from the beginning|going on from step \d+)", said)
    assert json.loads((folder / "summary.json").read_text())["weights"] == digest
    assert len(list((place / "runs").glob("*"))) == (out == "numbered")


def begun(folder, step):
    """Whether the run there is described, and has come to a checkpoint of `step`."""
    steps = [int(path.name[5:13]) for path in (folder / "checkpoints").glob("step-*.pt")]
    return (folder / "data.json").is_file() and (not step or max(steps, default=0) >= step)


def workers(parent):
    """The numbers of a torchrun's workers, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                around = (process / "environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): int(process.name) for word in around if word.startswith(b"RANK=")}
        except OSError:  # it has ended
            continue
    return found
