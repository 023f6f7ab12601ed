"""A run that is too short for its moving averages says so before its first step."""

import copy

import pytest
import torch
from small_run import ALONE, Task, recipe, run
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attneck.data.sampling import side_of
from attneck.training.averages import of_another_size, of_one_size, too_slow
from attneck.training.layers import KEPT
from attneck.training.optimizer import MovingAverage
from attneck.training.recipe import Recipe


def test_the_share_said_is_what_is_left_of_the_beginning():
    """Of an average of weights that jump from 0 to 1 after the first step, and of statistics 0 and 1."""
    net = nn.BatchNorm1d(2, momentum=0.01)
    steps, made = 30, Recipe.model_validate({"ema": 0.99, "accumulate": 2})
    said = too_slow(net, made, steps)
    with torch.no_grad():
        net.weight.zero_()
        average = MovingAverage(net, made.ema)
        average.update_parameters(net)
        net.weight.fill_(1)
        for _ in range(steps - 1):
            average.update_parameters(net)
        for _ in range(steps * made.accumulate):
            net.train()(torch.tensor([[3.0, 3.0], [5.0, 5.0]]))
    assert f"at the end {1 - float(average.module.weight.detach()[0]):.0%} of the average" in said[0]
    assert f"at the end {1 - float(net.running_mean[0]) / 4:.0%} of its mean" in said[1]
    assert all(len(line) < 300 and "\n" not in line for line in said)


def test_what_is_long_enough_or_loaded_or_frozen_is_no_news():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=0.003))
    assert len(too_slow(net, Recipe(), 500)) == 1
    assert too_slow(net, Recipe(), 600) == too_slow(net, Recipe.model_validate({"ema": 0.9}), 19) == []
    setattr(net[1], KEPT, True)
    assert too_slow(net, Recipe(), 100) == []
    setattr(net[1], KEPT, False)
    net[1].running_var.fill_(0.5)  # of images around 0, say
    assert too_slow(net, Recipe(), 100) == []


def test_statistics_of_another_size_are_said_where_the_scored_one_is_none_of_them():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    several, one = (Recipe.model_validate({"data": {"image_sizes": sides}}) for sides in ([24, 32], [24, 24]))
    for trained in (several, one):
        (said,) = of_another_size(net, trained, 48)
        assert "has no 48" in said
        assert "--recalibrate" in said
        assert of_another_size(net, trained, 24) == []
    assert of_another_size(net, Recipe(), 48) == []
    assert of_another_size(nn.Sequential(nn.Conv2d(3, 2, 1)), several, 48) == []
    setattr(net[1], KEPT, True)
    assert of_another_size(net, several, 48) == []


def test_norms_learn_from_the_scored_size_alone():
    """As one that sees the steps of 24 pixels and no others; outputs and gradients are those of any step."""
    made = Recipe.model_validate({"data": {"image_sizes": [24, 32, 40]}})
    norms = {kind: nn.BatchNorm2d(3) for kind in ("learns", "plain", "wanted")}
    frozen = nn.BatchNorm2d(3).eval()
    frozen.running_mean.fill_(0.5)
    own = nn.InstanceNorm2d(3)  # without statistics, and stays so
    steps = [side_of([24, 32, 40], made.seed, step) for step in range(12)]
    assert {*steps} == {24, 32, 40}
    for step, side in enumerate(steps):
        x = torch.randn(2, 3, side, side)
        with of_one_size(nn.ModuleList([norms["learns"], frozen, own]), made, 24, step):
            given = norms["learns"](x)
            torch.testing.assert_close(frozen(x), (x - 0.5) * (1 + frozen.eps) ** -0.5)
        assert torch.equal(given, norms["plain"](x))
        if side == 24:
            norms["wanted"](x)
    for name, wanted in norms["wanted"].named_buffers():
        assert torch.equal(norms["learns"].get_buffer(name), wanted), name
    assert norms["learns"].track_running_stats
    assert not own.track_running_stats
    with of_one_size(norms["learns"], made, 48, 0):  # which is none of them: from all
        norms["learns"](torch.randn(2, 3, 32, 32))
    assert norms["learns"].num_batches_tracked == norms["wanted"].num_batches_tracked + 1


def test_a_run_of_another_size_counts_its_steps_of_the_scored_one():
    made = Recipe.model_validate({"data": {"image_sizes": [24, 32, 40]}})
    net = nn.BatchNorm2d(3)
    assert too_slow(net, made, 30) == too_slow(net, made, 30, 48) == []
    (said,) = too_slow(net, made, 30, 24)
    assert f"30 steps, of which 33% are of 24 pixels: at the end {0.9**10:.0%} of its mean" in said
    assert said.endswith("give more steps")  # its momentum is what it would be told to be


def test_the_slowest_norm_counts():
    norms = [nn.BatchNorm2d(2, momentum=momentum) for momentum in (0.1, 0.003, None)]
    (said,) = too_slow(nn.Sequential(*norms), Recipe(), 100)
    assert "momentum 0.003 is slow" in said


def test_indices_and_counts_are_not_averaged():
    """0.9999 of an integer and 0.0001 of it make less than it in float32, for some."""
    net = nn.BatchNorm1d(2)
    net.register_buffer("index", torch.arange(4096))
    net.train()(torch.rand(4, 2))
    average = MovingAverage(net, 0.9999)
    for _ in range(3):
        average.update_parameters(net)
    net.train()(torch.rand(4, 2))
    average.update_parameters(net)
    assert torch.equal(average.module.index, net.index)
    assert average.module.num_batches_tracked == 2
    assert not torch.equal(average.module.running_mean, net.running_mean)


@pytest.mark.slow
def test_a_compiled_network_learns_in_the_same_steps():
    """What it is compiled to depends on the size, and on whether that is the one whose statistics count."""
    torch.manual_seed(0)
    sides, made = [24, 32, 40], Recipe.model_validate({"data": {"image_sizes": [24, 32, 40]}})
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2))
    plain, compiled = copy.deepcopy(net), torch.compile(net)
    assert {side_of(sides, made.seed, step) == 32 for step in range(10)} == {True, False}
    for step in range(10):
        images = torch.rand(2, 3, *[side_of(sides, made.seed, step)] * 2)
        for model, run_by in ((net, compiled), (plain, plain)):
            with of_one_size(model, made, 32, step):
                run_by(images).sum().backward()
        assert net[1].num_batches_tracked == plain[1].num_batches_tracked
    torch.testing.assert_close(net[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(net[1].running_var, plain[1].running_var)


def test_it_is_torch_s_own_average_to_the_bit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    net(torch.rand(2, 3, 5, 5))
    ours = MovingAverage(net, 0.9)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net(torch.rand(2, 3, 5, 5))
        ours.update_parameters(net)
        theirs.update_parameters(net)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point() or name == "n_averaged":
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_run_says_it_once(tmp_path, capsys):
    slow = recipe(ema=0.99, epochs=8, checkpoint_steps=None)
    run(tmp_path / "run", slow, Task(ALONE))
    assert capsys.readouterr().err.count("ema 0.99 is slow for 24 steps") == 1
    run(tmp_path / "run", slow, Task(ALONE), resume=True)
    assert "slow" not in capsys.readouterr().err
