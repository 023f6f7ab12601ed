"""The loop: what is resumed ends as what was not stopped, and what must stop it does."""

import io
import json
import os
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import small_run
import torch
import yaml
from forked import Forked, as_ranks
from rich.console import Console
from small_run import ALONE, CLOCKS, Task, broken_off_after, run

from attneck import cli, hub
from attneck.data import open_dataset
from attneck.data.sampling import side_of
from attneck.errors import UserError
from attneck.models import create_model
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.training import checkpoint, loop, report
from attneck.training.optimizer import MovingAverage, make_optimizer
from attneck.training.recipe import Optimizer, Recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "augment": "crop_flip", "train_size": 48, "val_size": 10, "image_size": 24},
    "optimizer": {"lr": 0.05},
    "epochs": 2,
    "batch": 16,
}


def recipe(**changes):
    return Recipe.model_validate(TINY | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "data": {**TINY["data"], "workers": 2}},
        {"accumulate": 2, "precision": "bfloat16", "schedule": {"kind": "step", "milestones": [1]}},
        {"optimizer": {"lr": 0.05, "clip_norm": 1.0, "nesterov": False}, "label_smoothing": 0.1},
        {"data": {**TINY["data"], "image_sizes": [24, 32, 40]}},
    ],
    ids=["plain", "ema and workers", "accumulated bf16", "clipped", "several sizes"],
)
def test_resumed_ends_with_the_same_bits(tmp_path, changes):
    """Broken off mid-epoch (2) and at an epoch's end (3)."""
    wanted = recipe(**changes, checkpoint_steps=1)
    straight = runs.train(wanted, tmp_path / "straight")
    for done in (2, 3):
        folder = tmp_path / f"broken off after {done}"
        with broken_off_after(done):
            runs.train(wanted, folder)
        resumed = runs.train(wanted, folder, resume=True)
        assert resumed.weights == straight.weights
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        for key in ("train_loss", "val_loss", "lr"):
            assert resumed.scores[key] == straight.scores[key]


def test_statistics_are_of_the_scored_size(tmp_path):
    """Where it is one of those trained. Weights are those of a run whose norms learn from every step."""
    sides, found = [24, 32, 40], {}
    for size in (24, 48):
        data = TINY["data"] | {"image_sizes": sides, "image_size": size}
        runs.train(recipe(data=data, accumulate=2), tmp_path / str(size))
        found[size] = Run(tmp_path / str(size)).model().state_dict()
    learnt = 2 * sum(side_of(sides, 0, step) == 24 for step in range(6))
    assert 0 < learnt < 12
    for name, value in found[24].items():
        if name.endswith("num_batches_tracked"):
            assert (int(value), int(found[48][name])) == (learnt, 12), name
        elif "running" not in name:
            assert torch.equal(value, found[48][name]), name


def test_two_processes_score_what_they_save(tmp_path):
    """Without sync_bn each has statistics of its own shares, and the first one's are saved."""
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(TINY | {"sync_bn": False, "ema": 0.5, "checkpoint_steps": 1})
    )
    folder = tmp_path / "run"
    assert as_ranks(cli.main, ["train", str(tmp_path / "tiny.yaml"), "--out", str(folder)]) == [0, 0]
    records = Run(folder).history
    for name, one in Run(folder).evaluate().items():
        assert one.scores["loss"] == pytest.approx(records[-1][f"{name}_loss"], rel=1e-5)
    (folder / "checkpoints/step-00000006.pt").unlink()
    assert as_ranks(cli.main, ["train", str(folder), "--resume"]) == [0, 0]
    for before, after in zip(records, Run(folder).history, strict=True):
        assert {**before, **dict.fromkeys(CLOCKS)} == {**after, **dict.fromkeys(CLOCKS)}


def test_three_processes_go_on_with_the_same_bits(tmp_path):
    """Sums of three depend on their order, and that on how the gradients are packed."""
    wanted = {"checkpoint_steps": 1, "pictures": False, "batch": 6, "epochs": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | wanted))
    folder = tmp_path / "run"
    train = partial(as_ranks, cli.main, processes=3)
    assert train(["train", str(tmp_path / "tiny.yaml"), "--out", str(folder)]) == [0, 0, 0]
    whole, newest, _ = checkpoint.load_latest(folder / "checkpoints")
    newest.unlink()
    assert checkpoint.load_latest(folder / "checkpoints")[0]["step"] == whole["step"] - 1
    assert train(["train", str(folder), "--resume"]) == [0, 0, 0]
    again, _, _ = checkpoint.load_latest(folder / "checkpoints")
    assert again["step"] == whole["step"] >= 3
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, again["model"][name]), name


def test_workers_move_no_bit(tmp_path):
    weights = {
        runs.train(recipe(data={**TINY["data"], "workers": workers}), tmp_path / str(workers)).weights
        for workers in (0, 1, 2)
    }
    assert len(weights) == 1


def test_eval_of_a_run_is_its_last_record(tmp_path):
    summary = runs.train(recipe(ema=0.5), tmp_path / "run")
    found = Run(tmp_path / "run").evaluate()
    assert list(found) == ["val", "ema"]
    for name, one in found.items():
        assert one.images == 10
        assert one.scores["error"] == pytest.approx(100 - one.scores["top1"])
        for key in ("loss", "top1", "top5"):
            assert one.scores[key] == summary.scores[f"{name}_{key}"]


def test_a_run_s_model_loads_without_its_data(tmp_path, monkeypatch):
    runs.train(recipe(ema=0.5), tmp_path / "run")
    state, _, _ = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr("attneck.tasks.classification.open_dataset", None)
    known = Run(tmp_path / "run")
    raw, average = known.model(average=False), known.model()
    assert not raw.training
    assert raw.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert raw.pretrained_cfg["label_names"][0] == open_dataset("shapes", "val", size=1).classes[0]
    for name, tensor in raw.state_dict().items():
        assert torch.equal(tensor, state["model"][name])
        assert torch.equal(average.state_dict()[name], state["average"][f"module.{name}"])
    assert not torch.equal(raw.fc.weight, average.fc.weight)
    assert known.model(48).origin.image_size == (48, 48)


def test_a_run_s_weights_leave_by_the_command(tmp_path, capsys):
    folder = tmp_path / "run"
    runs.train(recipe(ema=0.5), folder)
    assert cli.main(["export", str(folder), str(tmp_path / "net.safetensors"), "--raw"]) == 0
    assert cli.main(["export", str(folder), str(tmp_path / "net"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["config"]["num_classes"] == 10
    for saved, average in ((tmp_path / "net.safetensors", False), (tmp_path / "net", True)):
        wanted = Run(folder).model(average=average).state_dict()
        torch.testing.assert_close(hub.load(saved).state_dict(), wanted, rtol=0, atol=0)


def test_the_run_folder_tells_what_was_run(tmp_path):
    runs.train(recipe(), tmp_path / "run")
    known = Run(tmp_path / "run")
    assert known.recipe == recipe()
    assert [record["epoch"] for record in known.history] == [1, 2]
    assert known.summary["steps"] == known.step == 6
    assert known.facts["classes"] == list(known.data("val").classes)
    assert len(known.data("train")) == 48
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    runs.train(recipe(epochs=1), tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        runs.train(recipe(epochs=1), tmp_path / "run")
    with pytest.raises(UserError, match="epochs: 1 → 3"):
        runs.train(recipe(epochs=3), tmp_path / "run", resume=True)


@pytest.mark.parametrize("kept", ["summary.json", "metrics.jsonl"])
def test_a_run_whose_checkpoints_were_removed_is_not_written_over(tmp_path, kept):
    runs.train(recipe(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    if kept != "summary.json":
        (tmp_path / "run/summary.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    with pytest.raises(UserError, match=f"{kept} is of a run whose checkpoints are gone: choose"):
        runs.train(recipe(), tmp_path / "run")
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert Forked(tmp_path, [], lambda: runs.train(recipe(), tmp_path / "run")).wait() == -signal.SIGKILL
    assert runs.train(recipe(), tmp_path / "run").steps == 6


def test_a_copied_run_without_its_sums_is_not_begun_anew(tmp_path):
    runs.train(recipe(epochs=1), tmp_path / "run")
    record = (tmp_path / "run/metrics.jsonl").read_bytes()
    for file in (tmp_path / "run/checkpoints").glob("*.sha256"):
        file.unlink()
    with pytest.raises(UserError, match=r"step-00000003\.pt has no step-00000003\.pt\.sha256 beside it"):
        runs.train(recipe(epochs=1), tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == record


@pytest.mark.parametrize(
    ("pace", "saved"), [(299, [3, 6]), (301, [2, 3, 5, 6]), (601, [1, 2, 3, 4, 5, 6])], ids=str
)
def test_a_checkpoint_comes_after_so_many_minutes(tmp_path, monkeypatch, pace, saved):
    """Inside an epoch, counted from the last one; at the end of each epoch in any case."""
    now, numbers, whole = [0.0], [], checkpoint.save

    class Slow(Task):
        def loss(self, model, batch):
            now[0] += pace
            return super().loss(model, batch)

    def save(folder, number, state):
        numbers.append(number)
        return whole(folder, number, state)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoint, "save", save)
    run(tmp_path, small_run.recipe(checkpoint_steps=None, checkpoint_minutes=10), Slow(ALONE))
    assert [
        *dict.fromkeys(numbers)
    ] == saved  # twice at the end of an epoch: without its scores and with them


def test_weights_decay_and_tables_and_norms_do_not():
    model = create_model("cifar_resnet20_bot")
    optimizer = make_optimizer(model, Optimizer(weight_decay=0.1))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_weight = parameter.dim() > 1 and "rel_" not in name
        assert (id(parameter) in decayed) == is_weight, name
    everything = make_optimizer(model, Optimizer(weight_decay=0.1, decay_all=True))
    assert [group["weight_decay"] for group in everything.param_groups] == [0.1]


def test_lr_scales_with_the_batch(tmp_path, monkeypatch):
    seen = []
    plain = torch.optim.SGD.step

    def step(self, *args):
        seen.append(self.param_groups[0]["lr"])
        return plain(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    runs.train(recipe(optimizer={"lr": 0.4, "lr_batch": 128}, epochs=1), tmp_path / "run")
    assert seen[0] == pytest.approx(0.4 * 16 / 128)


def test_the_average_follows_the_weights():
    model = create_model("cifar_resnet20", num_classes=10, image_size=8)
    average = MovingAverage(model, 0.75)
    start = model.fc.bias.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model.fc.bias += 1
        model.bn1.running_mean += 2
    average.update_parameters(model)
    torch.testing.assert_close(average.module.fc.bias, start + 0.25)
    torch.testing.assert_close(average.module.bn1.running_mean, torch.full((16,), 0.5))


def test_a_log_without_a_terminal_hears_of_every_stretch_and_of_the_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "QUIET", 0)
    runs.train(recipe(), tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert all("images/s" in line for line in said)
    assert all(line.endswith(" left") for line in said[:-1])
    steps = [line for line in said if "step" in line]
    assert [f"step {i}/6" in line for i, line in enumerate(steps, 1)] == [True] * 6
    assert steps[3].startswith("epoch 2/2 ")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0.05 < record["peak_gib"] < 24 for record in records)


def test_the_bar_goes_over_the_held_out_batches(tmp_path, monkeypatch):
    """With a terminal; and the bar of the run is the only one left after it."""
    monkeypatch.setattr(
        report, "Console", lambda: Console(force_terminal=True, file=io.StringIO(), width=200)
    )
    seen = []
    whole = report.Report.watch

    def watch(self, batches):
        for number, batch in enumerate(whole(self, batches), 1):
            assert [task.description for task in self.bar.tasks][1:] == ["held out"]
            seen.append((number, len(batches)))
            yield batch
        assert len(self.bar.tasks) == 1

    monkeypatch.setattr(report.Report, "watch", watch)
    runs.train(recipe(data=TINY["data"] | {"val_size": 600}), tmp_path)
    assert seen == [(number, 5) for number in range(1, 6)] * 2  # of 128: eight training batches
