"""A study's runs are trained side by side: what fails, ends or is another program's stops no other."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from attneck.errors import RunFailed
from attneck.runs.lock import only_one
from attneck.studies import jobs
from attneck.studies.jobs import log_of, progress, run_all
from attneck.studies.study import Study, cells

TRAINER = """
import json, os, pathlib, sys, time
folder, code, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
print("threads", os.environ["OMP_NUM_THREADS"], "of", os.environ["LOCAL_WORLD_SIZE"], flush=True)
print("alone", not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & {*os.environ}, flush=True)
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "began").open("a") as file:
    file.write(".")
time.sleep(seconds)
(folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "step": 2}) + chr(10))
if code == 0:
    (folder / "summary.json").write_text("{}")
sys.exit(code)
"""


def study(seeds: Sequence[int] = (0, 1)) -> Study:
    """Of two steps in each run."""
    fields = {"data.train_size": 32, "epochs": 2, "batch": 16, "schedule.warmup_epochs": 0}
    variants = {"plain": {}, "se": {"model.options.se": True}}
    given = {"recipe": "relations", "fields": fields, "variants": variants, "baseline": "plain"}
    return Study.model_validate(given | {"seeds": seeds})


def stand_in(code=lambda cell: 0, seconds=lambda cell: 0.0):
    """A program in the trainer's place."""
    return lambda cell: [sys.executable, "-c", TRAINER, str(cell.folder), str(code(cell)), str(seconds(cell))]


def test_what_fails_does_not_stop_the_others_and_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.02)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    made = cells(study(), tmp_path)
    with pytest.raises(RunFailed, match=r"1 of 4 runs failed \(se/0\)") as failed:
        run_all(made, 2, stand_in(code=lambda cell: 3 * (cell.name == "se/0")))
    assert failed.value.code == 1
    assert [cell.done for cell in made] == [cell.name != "se/0" for cell in made]
    assert log_of(made[0]).read_text().startswith("threads 1 of 2\nalone True\n")
    assert progress(made[0]) == 0.5
    run_all(made, 2, stand_in())
    assert {cell.name: (cell.folder / "began").read_text() for cell in made} == {
        "plain/0": ".",
        "se/0": "..",
        "plain/1": ".",
        "se/1": ".",
    }


@pytest.mark.parametrize(
    ("count", "named", "at_once", "wanted"),
    [
        (2, None, 2, ["0", "1", "0", "1"]),
        (2, "5,GPU-7,1", 2, ["5", "GPU-7", "5", "GPU-7"]),
        (1, None, 2, ["0"] * 4),
        (0, None, 2, ["None"] * 4),
        (8, None, 1, ["None"] * 4),
    ],
)
def test_runs_at_one_time_have_a_gpu_each(
    tmp_path: Path, monkeypatch, count: int, named: str | None, at_once: int, wanted: list[str]
) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.02)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    made = cells(study(), tmp_path)
    run_all(made, at_once, stand_in(seconds=lambda cell: 0.3))
    assert sorted(log_of(cell).read_text().split()[-1] for cell in made) == sorted(wanted)


def test_a_signal_ends_the_runs_and_the_same_command_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.02)
    made = cells(study(), tmp_path)
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(RunFailed, match=r"4 of 4 runs are not done") as stopped:
        run_all(made, 2, stand_in(seconds=lambda cell: 60))
    assert stopped.value.code == 143
    assert [(cell.folder / "began").exists() for cell in made] == [True, True, False, False]
    run_all(made, 2, stand_in())
    assert all(cell.done for cell in made)


def test_a_run_that_another_program_trains_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.02)
    monkeypatch.setattr(jobs, "WAIT", 0.1)
    made = cells(study([0]), tmp_path)
    made[0].folder.mkdir(parents=True)
    order = []
    with only_one(made[0].folder):
        release = threading.Event()

        def command(cell):
            order.append(cell.name)
            release.set()
            return stand_in()(cell)

        worker = threading.Thread(target=lambda: run_all(made, 1, command))
        worker.start()
        assert release.wait(30)
    worker.join(60)
    assert order == ["se/0", "plain/0"]
    assert all(cell.done for cell in made)


def test_a_run_that_another_program_began_first_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    """Between the look at a folder that two studies share and the lock there are seconds of imports."""
    monkeypatch.setattr(jobs, "PAUSE", 0.02)
    monkeypatch.setattr(jobs, "WAIT", 0.1)
    made = cells(study([0]), tmp_path)
    made[0].folder.mkdir(parents=True)
    order = []
    with ExitStack() as other:

        def command(cell):
            order.append(cell.name)
            if len(order) == 1:
                other.enter_context(only_one(cell.folder))
                return stand_in(code=lambda cell: 2)(cell)
            other.close()
            return stand_in()(cell)

        run_all(made, 1, command)
    assert order == ["plain/0", "se/0", "plain/0"]
    assert all(cell.done for cell in made)
