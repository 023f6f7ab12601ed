"""attneck status: a run's folder read from outside, while it is trained and after."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from attneck import cli
from attneck.runs import train as runs
from attneck.runs.lock import LOCK, only_one, owner
from attneck.runs.status import status
from attneck.training.checkpoint_files import sum_of
from attneck.training.recipe import Recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 32, "val_size": 4, "image_size": 24},
    "batch": 8,
    "epochs": 2,
    "pictures": False,
    "ema": 0.5,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("status") / "run"
    runs.train(Recipe.model_validate(TINY), folder)
    return folder


def test_a_run_that_has_ended(ended, capsys):
    found = status(ended)
    assert (found.state, found.owner, found.step, found.steps, found.left) == ("ended", None, 8, 8, None)
    assert [path.name for path in sorted((ended / "checkpoints").glob("step-*.pt"))] == [
        "step-00000004.pt",
        "step-00000008.pt",
    ]
    assert found.saved == 8
    records = [json.loads(line) for line in (ended / "metrics.jsonl").read_text().splitlines()]
    assert found.record == records[-1]
    assert found.images_per_second == pytest.approx(4 * 8 / records[-1]["seconds"])
    assert cli.main(["status", str(ended), str(ended)]) == 0
    said = capsys.readouterr().out
    assert said.count("step        8 of 8 (100 %)") == 2
    assert f"ema top1 {records[-1]['ema_top1']:.2f}" in said  # what decides
    assert cli.main(["status", "--json", str(ended)]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ended"


def test_a_run_that_its_patience_ended_has_ended(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    (folder / "checkpoints" / "step-00000008.pt").unlink()
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    (folder / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "ended_early": True}))
    assert status(folder).state == "ended"
    assert cli.main(["status", str(folder)]) == 0
    assert "ended early" in capsys.readouterr().out
    (folder / "summary.json").write_text(json.dumps({"steps": 3, "ended_early": True}))  # and went on
    assert status(folder).state == "stopped"
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "ended_early": True}))
    saved = folder / "checkpoints" / "step-00000004.pt"
    saved.rename(saved.with_name("step-00000006.pt"))  # and went on, without a record yet
    sum_of(saved).rename(sum_of(saved.with_name("step-00000006.pt")))
    found = status(folder)
    assert (found.state, found.step, found.saved) == ("stopped", 6, 6)


def test_damaged_records_are_said_in_a_line(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "st')
    assert cli.main(["status", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl is damaged (JSONDecodeError: Unterminated string" in error
    assert error.count("\n") == 1


def test_a_run_in_the_middle_is_trained_or_stopped(ended, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    (folder / "summary.json").unlink()
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    (folder / "metrics.jsonl").write_text(json.dumps(first | {"seconds": 20}) + "\n")
    known = json.loads((folder / "environment.json").read_text())
    scored = datetime.fromisoformat(known["starts"][0]["at"]).timestamp() + 1000
    os.utime(folder / "metrics.jsonl", (scored, scored))
    assert status(folder).state == "stopped"
    assert status(folder).left is None
    hold = (
        "import sys, pathlib\nfrom attneck.runs.lock import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        for _ in range(2):  # to look takes nothing from who trains
            found = status(folder, now=scored + 5)
            assert found.state == "training"
            assert found.owner.startswith(f"process {process.pid} on ")
        assert found.left == pytest.approx(4 * 20 / 4 - 5)  # 4 steps at the pace of the first 4
        again = {"step": 5, "at": datetime.fromtimestamp(scored + 9000, UTC).isoformat()}
        (folder / "environment.json").write_text(json.dumps(known | {"starts": [*known["starts"], again]}))
        found = status(folder, now=scored + 9006)  # it goes on after a pause, from a checkpoint of step 5
        assert found.left == pytest.approx(3 * 20 / 4 - 6)
        process.stdin.write("\n")
    assert status(folder).state == "stopped"


def test_the_pace_after_a_resume_is_that_of_its_own_steps(ended, tmp_path):
    """A record's seconds begin where the run went on: from step 6, with records of steps 4 and 8."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["seconds"] = 10
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = json.loads((folder / "environment.json").read_text())
    for later, steps in (([], 4), ([6], 2), ([4], 4), ([6, 8], 2), ([2, 4, 7], 1)):
        starts = known["starts"] + [{"step": step} for step in later]
        (folder / "environment.json").write_text(json.dumps(known | {"starts": starts}))
        assert status(folder).images_per_second == pytest.approx(8 * steps / 10)


def test_a_lock_of_this_process_is_kept(tmp_path):
    with only_one(tmp_path):
        said = owner(tmp_path)
        assert said.startswith(f"process {os.getpid()} on ")
        look = (
            "import sys, pathlib as p; from attneck.runs.lock import owner; print(owner(p.Path(sys.argv[1])))"
        )
        done = subprocess.run([sys.executable, "-c", look, str(tmp_path)], capture_output=True, text=True)
        assert done.stdout.strip() == said
    assert owner(tmp_path) is None
    assert (tmp_path / LOCK).read_text() == ""


def test_before_the_data_is_known(ended, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes((ended / "recipe.yaml").read_bytes())
    found = status(tmp_path)
    assert (found.state, found.step, found.steps, found.record) == ("stopped", 0, None, None)
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "nobody trains it, and it has no checkpoint yet" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
    assert cli.main(["status"]) == 2
    assert "no run given: attneck status RUN…" in capsys.readouterr().err
