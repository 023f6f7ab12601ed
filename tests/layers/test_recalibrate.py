"""recalibrate(network, batches): the statistics of the BatchNorms are those of these images, and no more."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from attneck.layers import recalibrate
from attneck.models import create_model
from attneck.surgery import insert_bam


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "timm":
        model: nn.Module = timm.create_model("test_resnet", num_classes=3)
        insert_bam(model)
        return model
    return create_model("cifar_resnet20", 3, image_size=16, depths=[1, 1, 1], attend=True, bam="stages")


def batches(*sizes: int, side: int = 24) -> list[Tensor]:
    torch.manual_seed(1)
    return [3 * torch.randn(size, 3, side, side) + 1 for size in sizes]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running_" in name}


@pytest.mark.parametrize("name", ["ours", "timm"])
@pytest.mark.parametrize("training", [False, True])
def test_the_statistics_are_those_of_pytorch_s_update(name: str, training: bool) -> None:
    """Where nothing is dropped, and all batches are of one size."""
    model = network(name).train(training)
    wanted = copy.deepcopy(model)
    momenta = [norm.momentum for norm in model.modules() if isinstance(norm, _BatchNorm)]
    update_bn(batches(6, 6, 6), wanted)
    before = copy.deepcopy(model.state_dict())
    assert recalibrate(model, batches(6, 6, 6)) is model
    found, others = statistics(model), statistics(wanted)
    assert found.keys() == others.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, before[key])
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key])
    assert {module.training for module in model.modules()} == {training}
    assert [norm.momentum for norm in model.modules() if isinstance(norm, _BatchNorm)] == momenta


def test_a_batch_counts_by_its_images() -> None:
    norm = nn.BatchNorm2d(3, momentum=None)
    given = batches(2, 7, 1)
    recalibrate(norm, given)
    for got, of in ((norm.running_mean, Tensor.mean), (norm.running_var, Tensor.var)):
        wanted = sum(len(batch) * of(batch.double().transpose(0, 1).flatten(1), 1) for batch in given) / 10
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """A norm that sees two maps in each forward, and one that sees every second batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.rare, self.calls = nn.BatchNorm2d(3), nn.BatchNorm2d(3), 0
        nn.init.constant_(self.rare.running_mean, 100.0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.shared(input=x) + self.shared(10 * x + 5)
        return self.rare(y) if self.calls % 2 == 0 else y


def test_a_norm_counts_what_it_sees_itself() -> None:
    model, wanted = Twice(), Twice()
    recalibrate(model, batches(4, 4, 4, 4))
    update_bn(batches(4, 4, 4, 4), wanted)
    for key, value in statistics(model).items():
        torch.testing.assert_close(value, statistics(wanted)[key], rtol=1e-5, atol=1e-5)
    untouched = Twice()
    recalibrate(untouched, batches(4))
    assert untouched.rare.running_mean.tolist() == [100.0] * 3


def test_an_empty_batch_is_none() -> None:
    norm = nn.BatchNorm2d(3)
    given = batches(4)
    recalibrate(norm, [given[0][:0], *given, given[0][:0]])
    torch.testing.assert_close(norm.running_mean, given[0].mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    nn.init.constant_(norm.running_mean, 7.0)
    recalibrate(norm, [given[0][:0]])
    assert norm.running_mean.tolist() == [7.0] * 3


class Frozen(nn.BatchNorm2d):
    """By its forward, whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def test_a_norm_that_learns_nothing_keeps_what_it_has_and_goes_on_by_it() -> None:
    switched = nn.BatchNorm2d(3)
    switched.track_running_stats = False  # in evaluation it goes by its statistics all the same
    for norm in (Frozen(3), switched):
        nn.init.constant_(norm.running_mean, 2.0)
        nn.init.constant_(norm.running_var, 7.0)
        after = nn.BatchNorm2d(3)
        given = batches(4, 4)
        with torch.no_grad():
            maps = [norm.eval()(images) for images in given]
        recalibrate(nn.Sequential(norm, after), given)
        assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([2.0] * 3, [7.0] * 3)
        wanted = nn.BatchNorm2d(3)
        recalibrate(wanted, maps)
        assert torch.equal(after.running_mean, wanted.running_mean)


def test_what_cannot_be_looked_at_leaves_the_others_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, device="meta"))
    nn.init.constant_(model[0].running_mean, torch.nan)
    with pytest.raises(RuntimeError, match="meta"):
        recalibrate(model, batches(2))
    assert model[0].running_mean.isnan().all()
    assert (model[0].momentum, len(model[0]._forward_hooks)) == (0.1, 0)


class Uncounted(nn.BatchNorm2d):
    """Learns by a forward of its own, which counts no batches."""

    def forward(self, x: Tensor) -> Tensor:
        kept = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *kept, self.training, self.momentum)


def test_a_norm_need_not_count_its_batches() -> None:
    norm, other, wanted = Uncounted(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    other.num_batches_tracked = None
    for one in (norm, other, wanted):
        recalibrate(one, batches(4, 3))
        assert torch.equal(one.running_mean, norm.running_mean)
    assert norm.running_mean.abs().min() > 0.1


def test_statistics_that_are_not_finite_are_replaced() -> None:
    norm, wanted = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for value in (norm.running_mean, norm.running_var):
        nn.init.constant_(value, torch.nan)
    recalibrate(norm, batches(4, 4))
    recalibrate(wanted, batches(4, 4))
    assert torch.equal(norm.running_mean, wanted.running_mean)
    assert torch.equal(norm.running_var, wanted.running_var)


def test_many_batches_are_averaged_in_float32() -> None:
    """In bfloat16 a mean of 256 stays where it is when a 256th of the next is added."""
    norm = nn.BatchNorm2d(1).bfloat16()
    rise = [torch.full((2, 1, 4, 4), float(n), dtype=torch.bfloat16) for n in range(256)]
    recalibrate(norm, rise)
    assert norm.running_mean.item() == 127.5
    assert norm.running_mean.dtype == torch.bfloat16


def test_replicas_are_refused() -> None:
    """Each of them sees a part of a batch, and one of them alone has the network's own statistics."""
    whole = nn.DataParallel(network("ours"))
    recalibrate(whole, batches(2))
    whole.device_ids = [0, 1]
    for model in (whole, nn.Sequential(whole)):
        with pytest.raises(ValueError, match=r"give the model itself"):
            recalibrate(model, batches(2))


def test_a_compiled_network_is_run_as_written() -> None:
    model, wanted = network("ours"), network("ours")
    recalibrate(torch.compile(model, backend="inductor"), batches(3, 4))
    recalibrate(wanted, batches(3, 4))
    assert all(torch.equal(value, statistics(wanted)[key]) for key, value in statistics(model).items())


def test_the_network_then_scores_these_images_as_in_training() -> None:
    """One batch: its own statistics, but for the variance, which training takes of the batch as it is."""
    model = network("ours").double()
    (images,) = (batch.double() for batch in batches(64))
    recalibrate(model, [images])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), model.train()(images), rtol=0.05, atol=0.02)


def test_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    (images,) = batches(8)
    recalibrate(model, [images])
    torch.testing.assert_close(model[1].running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert model[0].training


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no images were given"),
        ([torch.full((2, 3, 24, 24), torch.inf)], "not finite: give others"),
        ([*batches(4), torch.randn(4, 5, 24, 24)], "to have 3 channels, but got 5"),
        ([[*batches(4), torch.zeros(4)]], r"a list of 2 \(.*takes images alone, give \(images for images"),
    ],
)
def test_what_goes_wrong_leaves_the_network_as_it_was(given: list[Tensor], says: str) -> None:
    model = network("ours").train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=says):
        recalibrate(model, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {module.training for module in model.modules()} == {True}
    assert {norm.momentum for norm in model.modules() if isinstance(norm, _BatchNorm)} == {0.1}


@pytest.mark.parametrize("model", [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)])
def test_without_statistics_there_is_nothing_to_do(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no BatchNorm with statistics"):
        recalibrate(model, batches(2))
