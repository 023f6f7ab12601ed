"""A checkpoint is written while the next steps are taken, with all that was promised of it before."""

import os
import signal
import threading

import pytest
import torch
from forked import as_ranks
from small_run import ALONE, Doing, Task, digest, recipe, run

from attneck.errors import RunFailed
from attneck.files import NotWritten
from attneck.training import checkpoint, state
from attneck.training.distributed import world
from attneck.training.saver import Saver

WANTED = recipe(ema=0.5, checkpoint_steps=2)
"""Saves after steps 2, 3 (twice, around its evaluation), 4 and 6 (twice)."""


class Writing:
    """In place of `checkpoint.save`: what is written when, and how many at a time."""

    def __init__(self, monkeypatch):
        self.whole, self.digests, self.busy, self.most = checkpoint.save, {}, 0, 0
        self.before = lambda step: None
        monkeypatch.setattr(checkpoint, "save", self)

    def __call__(self, folder, step, content):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.before(step)
        self.digests[step, len(content["history"])] = digest(content)
        path = self.whole(folder, step, content)
        self.busy -= 1
        return path


@pytest.fixture
def writing(monkeypatch):
    return Writing(monkeypatch)


class Stepping(Task):
    """Notes each step as its loss is computed."""

    def __init__(self):
        super().__init__(ALONE)
        self.come, self.steps = threading.Condition(), []

    def loss(self, model, batch):
        with self.come:
            self.steps.append(batch[0].step)
            self.come.notify_all()
        return super().loss(model, batch)

    def wait_for(self, step):
        """Until step `step` (from 0) has begun."""
        with self.come:
            assert self.come.wait_for(lambda: step in self.steps, timeout=60), "the step is held up"


def test_steps_go_on_meanwhile_and_change_nothing_in_what_is_written(tmp_path, writing):
    """Each is held back until two steps later, so that the weights of its own are there no more."""
    run(tmp_path / "whole", WANTED, Task(ALONE))
    right, writing.digests = writing.digests, {}
    task = Stepping()
    writing.before = lambda step: task.wait_for(step + 1) if step == 4 else None
    run(tmp_path / "run", WANTED, task)
    assert (task.steps, writing.most) == ([0, 1, 2, 3, 4, 5], 1)
    assert writing.digests == right
    assert {step for step, _ in right} == {2, 3, 4, 6}


def test_two_never_overlap(tmp_path, writing):
    writing.before = lambda step: threading.Event().wait(0.03)
    run(tmp_path, recipe(checkpoint_steps=1), Task(ALONE))
    assert writing.most == 1
    assert len(writing.digests) == 8


def test_what_cannot_be_written_ends_the_run_at_the_next_step(tmp_path, writing):
    """In the main thread, in one line, with the one before whole; the next step changes nothing."""

    def full(step):
        if step == 4:
            failed.set()
            raise NotWritten(tmp_path / "step", OSError(28, "No space left on device"))

    failed = threading.Event()
    writing.before = full
    task = Doing(4, lambda: failed.wait(60))
    with pytest.raises(RunFailed, match=r"No space left on device; make room; step-0+3\.pt is whole: go on"):
        run(tmp_path / "run", WANTED, task)
    assert task.done == 4, "a step later than the next"
    assert threading.active_count() == 1 or not any("checkpoint" in t.name for t in threading.enumerate())


def test_a_signal_waits_for_it(tmp_path, writing):
    writing.before = lambda step: threading.Event().wait(0.2)
    task = Doing(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunFailed, match="SIGTERM at step 2 of 6, saved"):
        run(tmp_path, recipe(checkpoint_steps=None), task)
    assert checkpoint.load_latest(tmp_path / "checkpoints")[0]["step"] == 2


def test_whatever_goes_wrong_meanwhile_the_one_that_is_written_is_whole(tmp_path, writing):
    """A step that fails while the one before is on its way."""

    def broken():
        raise ValueError("broken")

    writing.before = lambda step: threading.Event().wait(0.2)
    with pytest.raises(ValueError, match="broken"):
        run(tmp_path, WANTED, Doing(4, broken))
    assert checkpoint.load_latest(tmp_path / "checkpoints")[0]["step"] == 4


def test_a_copy_shares_nothing_and_keeps_its_layout():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    content = {"model": {"weight": weight}, "history": [{"step": 1}], "average": None}
    copy = state.copied(content)
    weight.zero_()
    content["history"].append({})
    assert copy["model"]["weight"].abs().sum() > 0
    assert copy["model"]["weight"].stride() == weight.stride()
    assert copy["history"] == [{"step": 1}]


def test_what_is_not_finite_is_not_saved(tmp_path):
    """Large values that are add up to infinity, and are no fault."""
    large = torch.full((4,), 3e38)
    assert checkpoint.not_finite({"model": large}) is None
    content = {"step": 3, "model": {"weight": torch.stack([large, large * 2])}}
    with (
        Saver(tmp_path, None, ALONE) as saver,
        pytest.raises(RunFailed, match=r"step 3 \(epoch 1\): model.weight is not finite, and was not sav"),
    ):
        saver.save(content, 3, 1)
    assert not [*tmp_path.rglob("*.pt")]


def _first_cannot(folder, what):
    """What a process says where the first one has weights that are not finite, or no room for its file."""
    with world() as everyone, Saver(folder, "val_loss", everyone) as saver:
        weight = torch.full((2,), float("nan") if what == "value" else 1.0)
        try:
            saver.save({"step": 3, "weight": weight} if everyone.rank == 0 else {}, 3, 1)
            saver.settle(3)
        except RunFailed as failed:
            return str(failed)
        return "saved"


def test_all_processes_end_where_the_first_cannot_save(tmp_path, writing):
    """Else they would wait for it in their next step."""

    def full(step):
        raise NotWritten(tmp_path / "step", OSError(28, "No space left on device"))

    first, second = as_ranks(_first_cannot, tmp_path, "value")
    assert first.startswith("step 3 (epoch 1): weight is not finite, and was not saved.")
    assert second.startswith("step 3 (epoch 1): a value on the first process is not finite, and was not")
    writing.before = full
    first, second = as_ranks(_first_cannot, tmp_path, "room")
    assert "No space left on device" in first
    assert second == "step 4: the first process cannot go on"
