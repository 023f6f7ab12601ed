"""BatchNorm over all processes: of every kind, with all that hangs on it, also where some have nothing."""

import copy

import pytest
import torch
import torch.distributed as dist
from forked import as_ranks
from norm_families import FAMILIES, norms
from sync_in_two_processes import sync_in_two_processes
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from attneck.training.norms import SyncBatchNorm, synchronise_batchnorm


@pytest.fixture(scope="module")
def two_processes():
    """What each of two processes reports."""
    return as_ranks(sync_in_two_processes)


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nobody_has_anything(alone):
    norm = nn.BatchNorm2d(3)
    assert synchronise_batchnorm(norm, torch.device("cpu")) == 1
    assert isinstance(norm, SyncBatchNorm)
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape
    (y.sum() * 0).backward()
    for parameter in norm.parameters():
        assert torch.equal(parameter.grad, torch.zeros(3))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm.running_var, torch.ones(3))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (7, 3), (1, 3, 1, 1)])
def test_a_single_process_is_as_plain_batchnorm(alone, shape, momentum):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    ours = SyncBatchNorm(3, momentum=momentum).double()
    x = torch.randn(shape, dtype=torch.float64)
    if x[:, 0].numel() == 1:  # which torch refuses; other processes may have the same one image each
        assert torch.equal(ours(x), torch.zeros(shape, dtype=torch.float64))
        assert ours.running_var.isfinite().all()
        return
    want = plain(x) if x.ndim == 4 else plain(x[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(ours(x), want)
    for norm in (plain, ours):  # a second batch, which weighs as much as the first without a momentum
        norm(2 * x if x.ndim == 4 else 2 * x[:, :, None, None])
    for norm in (plain, ours):  # and a third, which it does not learn from
        norm.track_running_stats = False
        norm(3 * x if x.ndim == 4 else 3 * x[:, :, None, None])
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_stays_the_same_function(family, device):
    """On the CPU here, whatever device the conversion is for: in evaluation, and alone in training.

    Tensors' names, children and hooks stay, and every BatchNorm is one over processes afterwards.
    """
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    count = len(norms(model))
    names, modules = list(model.state_dict()), [*model.named_modules()]
    fired = []
    norms(model)[-1].register_forward_hook(lambda *_: fired.append(1))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = model(images)
        trained = copy.deepcopy(model).train()(images)
    fired.clear()
    assert synchronise_batchnorm(model, torch.device(device)) == count
    with torch.no_grad():
        torch.testing.assert_close(model(images), want, rtol=0, atol=1e-6)
        assert fired == [1]
        copied = copy.deepcopy(model)
        torch.testing.assert_close(copied(images), want, rtol=0, atol=1e-6)
        torch.testing.assert_close(copied.train()(images), trained, rtol=0, atol=1e-6)
    kind = nn.SyncBatchNorm if device == "cuda" else SyncBatchNorm
    for one in (model, copied):
        assert [isinstance(norm, kind) for norm in norms(one)] == [True] * count
        assert list(one.state_dict()) == names
    assert [*model.named_modules()] == modules
    assert synchronise_batchnorm(model, torch.device(device)) == count, "a second time changes nothing"


def test_two_processes_are_as_one_with_the_whole_batch(two_processes):
    """Every family, in float64: outputs, gradients and running statistics."""
    for process in two_processes:
        assert list(process["families"]) == list(FAMILIES)
        for family, errors in process["families"].items():
            assert all(error < 1e-9 for error in errors.values()), (family, errors)


def test_two_processes_of_which_one_has_nothing(two_processes):
    """The layer, and a Mask R-CNN of which one process sees images without objects."""
    found = [process["nothing"] for process in two_processes]
    for process in found:
        # The layer in float64 against torch's own on all that there is.
        assert process["outputs"] < 1e-12
        assert process["gradients"] < 1e-12
        assert process["statistics"] < 1e-12
        # The detector: every gradient there and finite, and the same in both processes.
        assert process["without_gradient"] == []
        assert process["finite"]
    assert found[0]["sum_of_gradients"] == pytest.approx(found[1]["sum_of_gradients"], rel=1e-6)
    assert found[0]["sum_of_gradients"] > 0


class Own(nn.BatchNorm2d):
    """Computes the norm by itself."""

    def forward(self, x):
        return x * self.weight[:, None, None]


class Through(nn.BatchNorm2d):
    """Leaves the norm to torch."""

    def forward(self, x):
        return 2 * super().forward(x)


class ThroughAct(BatchNormAct2d):
    """Leaves the norm and the activation to timm."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_norm_that_cannot_be_synchronised_is_refused(device):
    replaced = nn.BatchNorm2d(3)
    replaced.forward = lambda x: x
    for norm in (Own(3), replaced):
        model = nn.Sequential(nn.BatchNorm1d(3), norm)
        with pytest.raises(
            ValueError, match=r"^1, a .*, has a forward of its own and cannot be synchronised"
        ):
            synchronise_batchnorm(model, torch.device(device))
        assert type(model[0]) is nn.BatchNorm1d, "nothing is changed then"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_other_kind_is_synchronised_and_frozen_ones_are_none(device, alone):
    model = nn.Sequential(
        Through(3), ThroughAct(3), nn.BatchNorm3d(3), nn.BatchNorm1d(3), FrozenBatchNorm2d(3)
    )
    assert synchronise_batchnorm(model, torch.device(device)) == 4
    assert type(model[4]) is FrozenBatchNorm2d
    x = torch.randn(4, 3, 5, 5)
    plain = nn.BatchNorm2d(3)
    if device == "cpu":  # torch's own, in training, takes only what lies on a GPU
        torch.testing.assert_close(model[0](x), 2 * plain(x))
        torch.testing.assert_close(model[1](x), 2 * nn.BatchNorm2d(3)(x).relu())
    torch.testing.assert_close(model[0].eval()(x), 2 * plain.eval()(x))
    plain.load_state_dict(model[1].state_dict())
    torch.testing.assert_close(model[1].eval()(x), 2 * plain(x).relu())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_timm_puts_between_a_norm_and_its_activation_stays(device):
    norm, x = BatchNormAct2d(3, drop_layer=nn.Tanh).eval(), 3 * torch.randn(4, 3, 5, 5)
    want = norm(x)
    assert synchronise_batchnorm(norm, torch.device(device)) == 1
    torch.testing.assert_close(norm(x), want)
