"""A signal ends a run with its work saved, in training and in evaluation; it goes on as if there was none."""

import os
import signal

import pytest
import torch
from small_run import ALONE, Task, digest, history, recipe, run
from two_small_runs import two_processes

from attneck.errors import RunFailed
from attneck.training import checkpoint
from attneck.training.distributed import World


def newest(folder):
    return checkpoint.load_latest(folder / "checkpoints")[0]


@pytest.fixture
def whole(tmp_path):
    """A run that nothing disturbs, with an average: each record evaluates two networks on 5 batches."""
    run(tmp_path / "whole", recipe(ema=0.5, checkpoint_steps=None), Task(ALONE))
    return newest(tmp_path / "whole")


@pytest.mark.parametrize("number", [1, 2, 5, 7, 10, 12, 20])
def test_a_signal_in_an_evaluation_ends_it_after_that_batch(tmp_path, whole, number):
    """The last of the weights (5) and of the average (10) among them, and the last step's evaluation (20)."""
    wanted = recipe(ema=0.5, checkpoint_steps=None)
    task = Task(ALONE)
    task.signal_after = number
    step, records = (3, 0) if number <= 10 else (6, 1)
    with pytest.raises(RunFailed, match=f"stopped by SIGTERM at step {step} of 6, saved; go on with") as end:
        run(tmp_path / "run", wanted, task)
    assert end.value.code == 143
    assert task.evaluated == number
    state = newest(tmp_path / "run")
    assert (state["step"], len(state["history"])) == (step, records)

    again = Task(ALONE)
    run(tmp_path / "run", wanted, again, resume=True)
    assert again.evaluated == 20 - 10 * records
    ended = newest(tmp_path / "run")
    assert digest(ended) == digest(whole)
    assert history(ended) == history(whole)
    # Where no step came between the resume and the next checkpoint, too.
    assert ended["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]


def test_an_evaluation_that_breaks_off_costs_no_step(tmp_path, whole):
    class Broken(Task):
        def evaluate(self, model, watch):
            raise ZeroDivisionError

    wanted = recipe(ema=0.5, checkpoint_steps=None)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", wanted, Broken(ALONE))
    assert newest(tmp_path / "run")["step"] == 3
    run(tmp_path / "run", wanted, Task(ALONE), resume=True)
    assert digest(newest(tmp_path / "run")) == digest(whole)
    assert history(newest(tmp_path / "run")) == history(whole)


class Signalled(Task):
    """Gets a signal in the loss of one step."""

    number, step = signal.SIGTERM, 1

    def loss(self, model, batch):
        if batch[0].step == self.step:
            os.kill(os.getpid(), self.number)
        return super().loss(model, batch)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_signal_in_a_step_saves_the_step(tmp_path, whole, number, code, step):
    """In mid-epoch, and at its end: there the evaluation is left for later."""
    task = Signalled(ALONE)
    task.number, task.step = number, step
    wanted = recipe(ema=0.5, checkpoint_steps=None)
    with pytest.raises(RunFailed, match=f"stopped by {number.name} at step {step + 1} of 6, saved") as end:
        run(tmp_path / "run", wanted, task)
    assert end.value.code == code
    assert newest(tmp_path / "run")["step"] == step + 1
    run(tmp_path / "run", wanted, Task(ALONE), resume=True)
    assert digest(newest(tmp_path / "run")) == digest(whole)
    assert history(newest(tmp_path / "run")) == history(whole)


def test_nobody_leaves_before_the_first_process_has_saved(tmp_path, monkeypatch):
    """The last that a process does after a signal is to agree with the others, and that after the save."""
    events = []

    class Agreeing(World):
        def maximum(self, values):
            events.append("agrees")
            return values

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given: save(*given) and events.append("saved"))
    task = Signalled(ALONE)
    with pytest.raises(RunFailed, match="SIGTERM"):
        run(tmp_path, recipe(), task, world=Agreeing(0, 1, torch.device("cpu")))
    assert events[-2:] == ["saved", "agrees"]


def test_of_two_processes_one_or_both_get_a_signal_in_an_evaluation(tmp_path):
    """Each process evaluates 5 batches. Both end, also where one is not told, with the step saved."""
    found = two_processes(tmp_path, "stops")
    for name, evaluated in (("one", [5, 2]), ("both", [2, 2])):
        assert found[name]["codes"] == [143, 143]
        assert "stopped by SIGTERM at step 3 of 6, saved" in found[name]["messages"][0]
        assert found[name]["evaluated"] == evaluated
        assert (found[name]["newest"], found[name]["records"]) == (3, 0)
        assert found[name]["same_end"]
