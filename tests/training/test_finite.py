"""A value that is not finite changes nothing, is named, and a resumed run ends as if it had not come up."""

import math

import pytest
import torch
from small_run import ALONE, At, Doing, Net, Task, digest, history, recipe, run, tensors
from two_small_runs import two_processes

from attneck.errors import NotFinite, RunFailed
from attneck.training import checkpoint, loop
from attneck.training.finite import Guard
from attneck.training.step import clipped


@pytest.fixture
def saved(monkeypatch):
    """The digest of every checkpoint that is written, by its step."""
    digests, whole = {}, checkpoint.save

    def save(folder, step, state):
        digests[step] = digest(state)
        return whole(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", save)
    return digests


CASES = {
    "nan": ("nan", At(2), {}, r"step 3 \(epoch 1, batch 3\): the loss is \d.*, first that of conv\.weight"),
    "clipped inf": (
        "inf",
        At(3),
        {"optimizer": {"lr": 0.1, "clip_norm": 0.5}},
        r"step 4 \(epoch 2, batch 1\): .* a gradient is not finite, first that of conv\.weight",
    ),
    "one of two micro-batches": (
        "nan",
        At(1, part=1),
        {"accumulate": 2},
        r"step 2 \(epoch 1, batch 2, micro-batch 2 of 2\): .* a gradient is not finite",
    ),
    "bfloat16": ("inf", At(1), {"precision": "bfloat16"}, r"step 2 .* or precision float32"),
    "last step, with an average": ("nan", At(5), {"ema": 0.5}, r"step 6 \(epoch 2, batch 3\): "),
    "output": (
        "output",
        At(2),
        {"ema": 0.5},
        r"step 3 .*: the loss is nan, and first the output of breaking is not finite",
    ),
    "loss alone": (
        "constant",
        At(2, part=1),
        {"accumulate": 2, "optimizer": {"lr": 0.1, "momentum": 0}},
        r"step 3 .*micro-batch 2 of 2\): the loss is nan, and every module's output is finite",
    ),
    "buffer": ("buffer", At(2), {}, r"step 3 \(epoch 1\): model\.breaking\.greatest is not finite"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "on the device"])
def test_the_newest_checkpoint_is_of_the_step_before(tmp_path, monkeypatch, saved, case, at_once):
    """With the ordinary optimiser, and with the fused one that a GPU has."""
    monkeypatch.setattr(loop, "reads_at_once", lambda device: at_once)
    how, at, changes, message = CASES[case]
    wanted = recipe(**changes)
    run(tmp_path / "whole", wanted, Task(ALONE))
    whole, _, _ = checkpoint.load_latest(tmp_path / "whole/checkpoints")
    right = dict(saved)

    with pytest.raises(RunFailed, match=message) as end:
        run(tmp_path / "broken", wanted, Task(ALONE, how, at))
    assert end.value.code == 1
    assert "\n" not in str(end.value)
    state, _, _ = checkpoint.load_latest(tmp_path / "broken/checkpoints")
    assert state["step"] == at.step
    assert all(tensor.isfinite().all() for tensor in tensors(state).values())
    assert digest(state) == right[at.step]

    run(tmp_path / "broken", wanted, Task(ALONE), resume=True)
    resumed, _, _ = checkpoint.load_latest(tmp_path / "broken/checkpoints")
    assert digest(resumed) == digest(whole)
    assert history(resumed) == history(whole)


@pytest.mark.parametrize("how", ["nan", "output", "constant"])
def test_read_late_the_first_step_is_named_and_no_weight_has_moved_since(tmp_path, monkeypatch, saved, how):
    """As on a GPU: looked at only where the next checkpoint is due, two steps later."""
    monkeypatch.setattr(loop, "reads_at_once", lambda device: False)
    nets = []
    monkeypatch.setattr("small_run.Net", lambda: nets.append(Net()) or nets[-1])
    wanted = recipe(checkpoint_steps=None)
    with pytest.raises(RunFailed, match=r"step 4 \(epoch 2, batch 1\): the loss is"):
        run(tmp_path / "broken", wanted, Task(ALONE, how, At(3)))
    state, _, _ = checkpoint.load_latest(tmp_path / "broken/checkpoints")
    assert state["step"] == 3
    for name, weight in nets[0].named_parameters():
        assert torch.equal(weight, state["model"][name]), name


@pytest.mark.parametrize("value", [1.0, 1e-42, 3e38, -math.inf, math.nan])
@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_a_look_finds_what_is_not_finite_and_leaves_the_rest_as_it_is(value, clip_norm):
    """Subnormal numbers too. A norm that overflows scales by 0: that is no step to take."""
    weights = [
        torch.zeros(2, 3, 4, 4, requires_grad=True),
        torch.zeros(5, requires_grad=True),
        torch.zeros(1),
    ]
    weights[0].grad = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    weights[1].grad = torch.tensor([1.0, -0.0, value, 1e-45, 2.0])
    before = [weight.grad.clone() for weight in weights[:2]]
    guard = Guard(torch.device("cpu"))
    guard.see([torch.ones(3)], 1)
    for step in (2, 3):  # the first of them is kept
        guard.see(clipped(weights, clip_norm), step)
    bad = not math.isfinite(value) or (clip_norm is not None and value > 1e38)
    assert (guard.first(), float(guard.found_inf)) == ((2, 1) if bad else (None, 0))
    if not bad:
        for weight, old in zip(weights[:2], before, strict=True):
            assert torch.equal(weight.grad.view(torch.int32), old.view(torch.int32))


def test_nothing_is_read_from_a_device_but_where_something_is_due(tmp_path, monkeypatch):
    """On a GPU each reading waits for it: of 6 steps, those 2 are read that are recorded and saved."""
    monkeypatch.setattr(loop, "reads_at_once", lambda device: False)
    steps, read, allowed = [], [], []

    def refuse_unless_allowed(name):
        plain = getattr(torch.Tensor, name)

        def method(tensor, *given):
            assert allowed, f"Tensor.{name} waits for the device"
            return plain(tensor, *given)

        monkeypatch.setattr(torch.Tensor, name, method)

    def allow(owner, name):
        plain = getattr(owner, name)

        def function(*given):
            if not allowed:
                read.append((len(steps), name))
            allowed.append(name)
            try:
                return plain(*given)
            finally:
                allowed.pop()

        monkeypatch.setattr(owner, name, function)

    clipped = loop.clipped
    monkeypatch.setattr(loop, "clipped", lambda *given: steps.append(1) or clipped(*given))
    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "numpy", "cpu"):
        refuse_unless_allowed(name)
    allow(loop.Guard, "first")
    for name in ("_means", "evaluate"):
        allow(loop, name)
    saving = ["taken", "not_finite", "copied"]
    for owner, name in zip((loop.state, checkpoint, loop.state), saving, strict=True):
        allow(owner, name)
    run(tmp_path, recipe(checkpoint_steps=None, optimizer={"lr": 0.1, "clip_norm": 1}), Task(ALONE))
    of_a_record = ["first", *saving, "_means", "evaluate", *saving]
    assert read == [(step, name) for step in (3, 6) for name in of_a_record]


def test_what_does_not_come_again_is_said_so(tmp_path):
    class Once(Task):
        def loss(self, model, batch):
            loss, shown = super().loss(model, batch)
            calls.append(1)
            return (loss * float("inf") if len(calls) == 3 else loss), shown

    calls = []
    with pytest.raises(
        RunFailed, match=r"step 3 .*: the loss or a gradient was not finite, and both are when"
    ):
        run(tmp_path, recipe(), Once(ALONE))


def test_it_is_run_again_with_its_own_draws(tmp_path):
    """One dropout overflows where another would not."""

    class Drawn(Task):
        def loss(self, model, batch):
            drawn = float(torch.rand(()))
            loss, shown = super().loss(model, batch)
            if batch[0] != At(3, part=1):
                return loss, shown
            draws.append(drawn)
            return (loss * float("nan") if drawn == draws[0] else loss), shown

    draws = []
    with pytest.raises(RunFailed, match=r"step 4 .*micro-batch 2 of 2\): the loss is nan"):
        run(tmp_path, recipe(accumulate=2), Drawn(ALONE))
    assert len(draws) == 2


def test_a_norm_that_overflows_is_no_gradient_s_fault(tmp_path):
    class Steep(Task):
        def loss(self, model, batch):
            loss, shown = super().loss(model, batch)
            return (loss * 1e30 if batch[0].step == 1 else loss), shown

    with pytest.raises(
        RunFailed, match=r"step 2 .*: every gradient is finite, but their sum or norm overflow"
    ):
        run(tmp_path, recipe(optimizer={"lr": 0.1, "clip_norm": 1}), Steep(ALONE))


def test_a_checkpoint_of_another_kernel_goes_on_with_this_one(tmp_path, monkeypatch):
    """Begun on a CPU, or by a version without a fused kernel; goes on where that kernel holds a step back."""
    with pytest.raises(RunFailed):
        run(tmp_path, recipe(), Task(ALONE, "nan", At(1)))
    monkeypatch.setattr(loop, "reads_at_once", lambda device: False)
    with pytest.raises(RunFailed, match="step 4"):
        run(tmp_path, recipe(checkpoint_steps=None), Task(ALONE, "nan", At(3)), resume=True)


def test_held_out_answers_that_are_not_finite_end_the_run(tmp_path):
    def broken():
        raise NotFinite("3 of 5 images")

    with pytest.raises(
        RunFailed, match=r"after step 6: 3 of 5 images; .*lr; step-00000006.pt is whole"
    ) as found:
        run(tmp_path, recipe(), Doing(5, broken, evaluating=True))
    assert found.value.code == 1


def test_of_two_processes_one_has_it(tmp_path):
    """In one of its two micro-batches; BatchNorm over both processes carries it to the other one as well."""
    found = two_processes(tmp_path, "faults")
    for how, said in (
        ("nan", "the loss is 1.8, but a gradient is not finite, first that of conv.weight"),
        ("output", "the loss is nan, and first the output of breaking is not finite"),
        ("constant", "the loss is nan, and every module's output is finite"),
    ):
        first, second = found[how]["messages"]
        assert first == second
        assert first.startswith("step 4 (epoch 2, batch 1, rank 1, micro-batch 2 of 2): "), first
        assert said.partition(",")[2] in first
        assert found[how]["newest"] == 3
        assert found[how]["finite"]
        assert found[how]["same_end"]
