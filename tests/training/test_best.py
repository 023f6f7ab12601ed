"""The best checkpoint is that of the best record, whatever happens to the run; and patience ends a run."""

import json
import os
import shutil

import pytest
import torch
from small_run import ALONE, Net, Task, batches, digest, recipe

from attneck import cli, files
from attneck.errors import UserError
from attneck.files import NotWritten
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.tasks.detection import Detection, headline
from attneck.training import checkpoint
from attneck.training.best import Best, best_of, gives_up, key_of
from attneck.training.distributed import World
from attneck.training.loop import train_loop
from attneck.training.recipe import Recipe
from attneck.training.saver import Saver
from attneck.training.state import Progress

SCORES = [3.0, 5.0, 4.0, 5.0, 4.5, 6.0]
"""Of the records at steps 3, 6, …: the best is at step 6, then at 18."""

COCO = {"AP": 0.1, "AP50": 0.2, "AP75": 0.1, "APs": 0.1, "APm": 0.1, "APl": 0.2}


class Scripted(Task):
    """The scores of a list, by the step that the network has come to."""

    def __init__(self, scores=SCORES):
        super().__init__(ALONE)
        self.scores, self.done = scores, 0

    def loss(self, model, batch):
        self.done = batch[0].step + 1
        return super().loss(model, batch)

    def evaluate(self, model, watch):
        for _ in watch(range(1)):
            pass
        return {"top1": self.scores[self.done // 3 - 1]}


def run(folder, wanted, *, resume=False, scores=SCORES):
    torch.manual_seed(0)
    task = Scripted(scores)
    if resume:  # an evaluation may come before the first step
        newest = checkpoint.checkpoints(folder / "checkpoints")
        task.done = int(newest[0].name[5:13]) if newest else 0
    return train_loop(
        Net(),
        task,
        lambda step: batches(step, wanted, ALONE),
        wanted,
        folder,
        ALONE,
        steps_per_epoch=3,
        resume=resume,
        facts={"classes": []},
        decides="val_top1",
    )[0]


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.suffix == ".pt")


def same(path, other):
    a, b = (torch.load(one, weights_only=True) for one in (path, other))
    return (a["step"], digest(a)) == (b["step"], digest(b))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The checkpoints of runs of so many epochs."""
    folders = {}
    for epochs in (5, 6):
        folders[epochs] = tmp_path_factory.mktemp("whole")
        run(folders[epochs], recipe(epochs=epochs))
    return folders


def test_the_first_best_record_decides():
    records = [{"step": 3 * n, "val_top1": score} for n, score in enumerate(SCORES[:5], 1)]
    assert best_of(records, "val_top1") == Best(6, 5.0, "val_top1")
    assert best_of([{"step": 1, "val_loss": 2.0}, {"step": 2, "val_loss": 1.0}], "val_loss").step == 2
    assert best_of([{"step": 1, "val_top1": float("nan")}, *records], "val_top1").step == 6
    assert best_of([], "val_top1") is best_of(records, "val_box_AP") is None
    assert [gives_up(records[:n], "val_top1", 2) for n in range(6)] == [False] * 4 + [True] * 2
    assert not gives_up(records, "val_top1", None)
    empty = [{"step": step, "val_box_AP": -1.0} for step in range(9)]
    assert best_of(empty, "val_box_AP") is None, "there was nothing to find"
    assert not gives_up(empty, "val_box_AP", 2)


def test_which_score_decides():
    assert key_of(Recipe(), ("top1", "loss")) == "val_top1"
    assert key_of(Recipe(metric="loss", ema=0.5), ("top1", "loss")) == "ema_loss"
    with pytest.raises(ValueError, match=r"metric 'top2' is no score of this task; perhaps you meant 'top1'"):
        key_of(Recipe(metric="top2"), ("top1", "loss"))


@pytest.mark.parametrize(
    ("model", "data", "scores"),
    [
        ("maskrcnn_resnet50", {"name": "coco"}, {"bbox": COCO, "segm": COCO}),
        ("ssd300_vgg16", {"name": "shapes"}, {"bbox": COCO}),
        ("ssd300_vgg16", {"name": "voc0712", "val_split": "test"}, {"mAP": 0.5}),
    ],
)
def test_a_detectors_scores_are_those_of_its_records(model, data, scores):
    wanted = Recipe.model_validate({"model": {"name": model}, "data": data})
    assert Detection.metrics(wanted) == tuple(headline(scores))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_keeps_it(tmp_path, undisturbed, rank):
    """A resume of several would have all of them link and remove the same files."""
    shutil.copytree(undisturbed[5] / "checkpoints", tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").glob("best-*"):
        path.unlink()
    before = kept(tmp_path)
    history = [{"step": 15, "val_top1": 9.0}]
    Saver(tmp_path, "val_top1", World(rank, 2, torch.device("cpu"))).go_on_from(Progress(15, {}, history))
    new = {*kept(tmp_path)} - {*before}
    assert new == (set() if rank else {"best-00000015.pt"})


def test_it_is_the_checkpoint_of_its_step(undisturbed):
    """And costs no room where it is one of the newest."""
    assert kept(undisturbed[5]) == ["best-00000006.pt", "step-00000014.pt", "step-00000015.pt"]
    assert kept(undisturbed[6]) == [
        "best-00000006.pt",  # of the checkpoint before, in case that has to be fallen back to
        "best-00000018.pt",
        "step-00000017.pt",
        "step-00000018.pt",
    ]
    folder = undisturbed[6] / "checkpoints"
    assert (folder / "best-00000018.pt").samefile(folder / "step-00000018.pt")
    state, path = checkpoint.load_best(folder, 18)
    assert (state["step"], path.name) == (18, "best-00000018.pt")


def test_killed_at_any_write_the_best_is_that_of_an_undisturbed_run(undisturbed, tmp_path, monkeypatch):
    """Before each write, link or removal, one after the other, as often as there are any."""
    wanted = recipe(epochs=6)
    folder, count, kills = tmp_path / "run", [0], 0
    folder.mkdir()

    class Killed(BaseException):
        pass

    def counted(owner, name):
        plain = getattr(owner, name)

        def call(*given, **named):
            count[0] -= 1
            if count[0] == 0:
                raise Killed
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, call)

    counted(os, "replace")
    counted(os, "link")
    counted(checkpoint, "_remove")
    while True:
        count[0] = 3 + kills % 8  # a save takes 2 to 10
        try:
            run(folder, wanted, resume=bool(checkpoint.checkpoints(folder / "checkpoints")))
            break
        except Killed:
            kills += 1
            assert kills < 100
    assert kills > 12
    for name in ("best-00000006.pt", "best-00000018.pt", "step-00000018.pt"):
        assert same(folder / "checkpoints" / name, undisturbed[6] / "checkpoints" / name), name
        checkpoint.load_best(folder / "checkpoints", int(name[5:13]))
    assert kept(folder) == kept(undisturbed[6])


@pytest.mark.parametrize("name", ["best.pt", "best-6.pt", "step-best.pt", "best-00000006.safetensors"])
def test_files_of_others_are_left_alone(tmp_path, name):
    other = tmp_path / "checkpoints" / name
    other.parent.mkdir()
    other.write_text("mine")
    run(tmp_path, recipe(epochs=3))
    assert other.read_text() == "mine"
    assert len(list(other.parent.iterdir())) == 7


def test_the_newest_is_damaged_and_the_one_before_has_its_best(undisturbed, tmp_path):
    """Step 18 was the best; step 17 knows of step 6's."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[6], folder)
    (folder / "checkpoints/step-00000018.pt").write_bytes(b"")
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    best = best_of(state["history"], "val_top1")
    assert (state["step"], best.step) == (17, 6)
    assert checkpoint.load_best(folder / "checkpoints", 6)[0]["step"] == 6
    run(folder, recipe(epochs=6), resume=True)
    assert same(folder / "checkpoints/best-00000018.pt", undisturbed[6] / "checkpoints/step-00000018.pt")


def test_without_hard_links_it_is_a_copy(undisturbed, tmp_path, monkeypatch):
    def refuse(*given):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run(tmp_path, recipe(epochs=6))
    folder = tmp_path / "checkpoints"
    assert kept(tmp_path) == kept(undisturbed[6])
    assert not (folder / "best-00000018.pt").samefile(folder / "step-00000018.pt")
    assert checkpoint.load_best(folder, 18)[0]["step"] == 18


def test_a_link_that_is_there_already(tmp_path):
    (tmp_path / "a").write_text("a")
    files.link_atomic(tmp_path / "a", tmp_path / "b")
    files.link_atomic(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(NotWritten, match="its folder is gone"):
        files.link_atomic(tmp_path / "nowhere", tmp_path / "c")


@pytest.mark.parametrize("harm", ["gone", "cut", "no sum"])
def test_one_that_cannot_be_used_is_said_in_a_line(undisturbed, tmp_path, harm):
    folder = tmp_path / "checkpoints"
    shutil.copytree(undisturbed[5] / "checkpoints", folder)
    path = folder / "best-00000006.pt"
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.with_name(f"{path.name}.sha256").unlink()
    with pytest.raises(UserError, match=r"best.*take the newest \(--checkpoint newest\)$") as error:
        checkpoint.load_best(folder, 6)
    assert "\n" not in str(error.value)


def test_patience_ends_the_run_and_a_resume_does_nothing_more(tmp_path):
    wanted = recipe(epochs=6, patience=2)
    assert run(tmp_path, wanted).step == 12, "6 was best, 9 and 12 were no better"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    again = run(tmp_path, wanted, resume=True)
    assert (again.step, len(again.history)) == (12, 4)
    newest = tmp_path / "checkpoints/step-00000012.pt"
    assert newest.stat().st_mtime_ns == before[newest]
    # More patience goes on as if the run had had it from the beginning.
    assert run(tmp_path, recipe(epochs=6, patience=4), resume=True).step == 18
    assert kept(tmp_path)[1] == "best-00000018.pt"


TINY = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 32, "val_size": 20, "image_size": 24},
    "batch": 32,
    "epochs": 4,
    "ema": 0.5,
    "metric": "loss",
    "optimizer": {"lr": 0.3},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that ended early, its summary, and the step of its best record, which is not the last."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    worse = TINY | {"patience": 1, "optimizer": {"lr": 1.0}}
    summary = runs.train(Recipe.model_validate(worse), folder)
    losses = {record["step"]: record["ema_loss"] for record in Run(folder).history}
    best = min(losses, key=losses.get)
    assert summary.early
    assert best < summary.steps < 4
    return folder, summary, best


def test_commands_take_it(trained, tmp_path, capsys):
    folder, summary, best = trained
    assert Run(folder).summary["best"] == {
        "step": best,
        "score": summary.best.score,
        "key": "ema_loss",
    }
    for word, step in (("newest", summary.steps), ("best", best)):
        assert cli.main(["eval", str(folder), "--checkpoint", word, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["step"], found["checkpoint"]) == (step, word)
        wanted = next(record for record in Run(folder).history if record["step"] == step)
        assert found["ema_loss"] == wanted["ema_loss"]
    out = tmp_path / "out"
    words = ["--held-out", "1", "--checkpoint", "best", "--out", str(out)]
    assert cli.main(["predict", str(folder), *words]) == 0
    assert json.loads((out / "predictions.json").read_text())["runs"][0]["step"] == best
    file = tmp_path / "net.safetensors"
    assert cli.main(["export", str(folder), str(file), "--checkpoint", "best"]) == 0
    assert file.is_file()
    assert Run(folder, "best").step == best


def test_what_has_no_best_says_so(trained, tmp_path, capsys):
    folder, _, best = trained
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").glob(f"*-{best:08d}.pt"):
        path.unlink()
    assert cli.main(["eval", str(copy), "--checkpoint", "best"]) == 2
    assert f"its best checkpoint, of step {best}, is not there" in capsys.readouterr().err
    assert cli.main(["export", "cifar_resnet20", str(tmp_path / "a.onnx"), "--checkpoint", "best"]) == 2
    assert "--checkpoint is about runs" in capsys.readouterr().err
    with pytest.raises(UserError, match="'newest' and its 'best'"):
        Run(folder, "last")


def test_the_train_command_says_what_was_best_and_that_it_ended_early(trained, capsys):
    folder, _, best = trained
    assert cli.main(["train", str(folder), "--resume"]) == 0
    said = capsys.readouterr().out
    assert f"best    step {best}, ema loss " in said
    assert "ended   early: 1 scorings in a row were no better (patience)" in said


def test_a_metric_that_the_task_has_not_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(
        UserError, match=r"metric 'mAP' is no score of this task \(there are top1, top5, loss\)"
    ):
        runs.train(Recipe.model_validate(TINY | {"metric": "mAP"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
