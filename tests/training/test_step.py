"""What a step does to the weights: clipping, Nesterov's momentum, and draws of each process's own."""

import pytest
import torch
from small_run import ALONE, Net, Task, recipe, run
from torch import nn

from attneck.training.distributed import World
from attneck.training.loop import train_loop
from attneck.training.optimizer import make_optimizer
from attneck.training.recipe import Optimizer
from attneck.training.step import gradients


@pytest.mark.parametrize("greatest", [0.01, 1e6])
def test_a_step_is_as_long_as_the_clipped_gradient(tmp_path, greatest):
    """Without momentum and decay a step is -lr · gradient, whose norm is at most `clip_norm`."""
    lr = 0.125
    options = {"lr": lr, "momentum": 0, "weight_decay": 0, "clip_norm": greatest}
    torch.manual_seed(0)
    before = Net()
    after, _, _ = run(tmp_path, recipe(epochs=None, steps=1, optimizer=options), Task(ALONE))
    moves = [b.detach() - a.detach() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    norm = torch.cat([move.flatten() for move in moves]).norm() / lr
    if greatest < 1:
        torch.testing.assert_close(norm, torch.tensor(greatest), rtol=1e-3, atol=0)
    else:
        assert norm > 0.1  # and nothing is scaled up


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_nesterovs_where_asked_for(nesterov, fused):
    """Against the recurrence, in float64: v ← m v + g; w ← w - lr (g + m v), or w - lr v."""
    lr, m = 0.5, 0.75
    layer = nn.Linear(3, 1, bias=False).double()
    w = layer.weight.detach().clone()
    options = Optimizer(lr=lr, momentum=m, nesterov=nesterov, weight_decay=0)
    optimizer = make_optimizer(layer, options, fused=fused)
    v = torch.zeros_like(w)
    for gradient in (torch.tensor([[1.0, -2, 3]]), torch.tensor([[4.0, 5, -6]]), torch.tensor([[0.5, 0, 1]])):
        layer.weight.grad = gradient.double()
        optimizer.step()
        v = m * v + gradient
        w = w - lr * (gradient + m * v if nesterov else v)
    torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-12, atol=1e-12)


def test_each_process_step_and_micro_batch_has_its_own_draws():
    """What dropout draws; the same whenever the same process comes to the same micro-batch."""

    class Drawing:
        def __init__(self):
            self.drawn = []

        def loss(self, model, batch):
            self.drawn.append(float(torch.rand((), dtype=torch.float64)))
            return model(torch.ones(1, 2)).sum(), {}

    def draws(rank, step):
        task = Drawing()
        world = World(rank, 2, torch.device("cpu"))
        gradients(nn.Linear(2, 1), task, iter([0, 0]), recipe(accumulate=2), world, step)
        return task.drawn

    everything = [draws(rank, step) for rank in (0, 1) for step in (0, 1, 2)]
    assert len({draw for drawn in everything for draw in drawn}) == 12
    assert everything == [draws(rank, step) for rank in (0, 1) for step in (0, 1, 2)]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.3, "weight_decay": 0.01}], ids=["plain", "clipped"])
def test_accumulated_a_run_ends_with_the_weights_of_whole_batches(tmp_path, options):
    """To rounding, in float64, with momentum; of a network without BatchNorm, which sees a part at a time."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3)))

    class Objective:
        def loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1]), {}

        def evaluate(self, model, watch):
            return {"none": 0.0}

    def trained(accumulate):
        torch.manual_seed(0)
        net = Plain().double()
        draws = torch.Generator().manual_seed(1)
        images = torch.randn(6, 8, 3, 6, 6, generator=draws, dtype=torch.float64)
        labels = torch.randint(5, (6, 8), generator=draws)
        parts = (
            part
            for step in range(6)
            for part in zip(images[step].chunk(accumulate), labels[step].chunk(accumulate), strict=True)
        )
        wanted = recipe(accumulate=accumulate, optimizer={"lr": 0.5, **options})
        train_loop(
            net,
            Objective(),
            lambda step: parts,
            wanted,
            tmp_path / str(accumulate),
            ALONE,
            steps_per_epoch=3,
            resume=False,
            facts={"classes": []},
        )
        return net.state_dict()

    (tmp_path / "1").mkdir()
    (tmp_path / "4").mkdir()
    torch.testing.assert_close(trained(4), trained(1), rtol=1e-11, atol=1e-11)


def test_scores_are_means_over_micro_batches_in_float64():
    class Scores:
        def loss(self, model, batch):
            return model(torch.ones(1, 2)).sum() * 0 + batch, {"top1": torch.tensor(2.0 * batch)}

    shares = [1.0, 2.0, 4.0, 6.0]
    scores = gradients(nn.Linear(2, 1), Scores(), iter(shares), recipe(accumulate=4), ALONE, 0)
    assert {name: (float(score), score.dtype) for name, score in scores.items()} == {
        "loss": (3.25, torch.float64),
        "top1": (6.5, torch.float64),
    }
