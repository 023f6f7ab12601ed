"""BAM's variant "official": the names and the formula of the code that the authors published."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attneck.layers import BAM

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LAYERS = {
    "channel_att.gate_c.gate_c_fc_0": ("weight", "bias"),
    "channel_att.gate_c.gate_c_bn_1": NORM,
    "channel_att.gate_c.gate_c_fc_final": ("weight", "bias"),
    "spatial_att.gate_s.gate_s_conv_reduce0": ("weight", "bias"),
    "spatial_att.gate_s.gate_s_bn_reduce0": NORM,
    "spatial_att.gate_s.gate_s_conv_di_0": ("weight", "bias"),
    "spatial_att.gate_s.gate_s_bn_di_0": NORM,
    "spatial_att.gate_s.gate_s_conv_di_1": ("weight", "bias"),
    "spatial_att.gate_s.gate_s_bn_di_1": NORM,
    "spatial_att.gate_s.gate_s_conv_final": ("weight", "bias"),
}


def restated(weights: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """(1 + sigmoid(channel * spatial)) * x, read off a state dict by the published names."""

    def affine(name: str) -> tuple[Tensor, Tensor]:
        return weights[name + ".weight"], weights[name + ".bias"]

    def norm(name: str, y: Tensor) -> Tensor:
        mean, var = weights[name + ".running_mean"].clone(), weights[name + ".running_var"].clone()
        return F.relu(F.batch_norm(y, mean, var, *affine(name), training=training))

    c, s = "channel_att.gate_c.gate_c_", "spatial_att.gate_s.gate_s_"
    y = F.avg_pool2d(x, x.size(2), stride=x.size(2)).flatten(1)  # a square window, as published
    y = norm(c + "bn_1", F.linear(y, *affine(c + "fc_0")))
    channel = F.linear(y, *affine(c + "fc_final"))[:, :, None, None]
    y = norm(s + "bn_reduce0", F.conv2d(x, *affine(s + "conv_reduce0")))
    for i in range(2):
        y = norm(f"{s}bn_di_{i}", F.conv2d(y, *affine(f"{s}conv_di_{i}"), padding=4, dilation=4))
    spatial = F.conv2d(y, *affine(s + "conv_final"))
    return (1 + torch.sigmoid(channel * spatial)) * x


def test_its_state_dict_has_the_published_names_and_no_other() -> None:
    names = [f"{layer}.{name}" for layer, entries in LAYERS.items() for name in entries]
    assert list(BAM(32, variant="official").state_dict()) == names


@pytest.mark.parametrize("training", [True, False])
def test_result_and_gradients_are_the_published_formula_s(training: bool) -> None:
    torch.manual_seed(0)
    module = BAM(32, variant="official").double().train(training)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.1, 1) if name.endswith("running_var") else value.normal_(std=0.5)
    x = torch.randn(4, 32, 6, 6, dtype=torch.float64, requires_grad=True)
    want = restated(module.state_dict(keep_vars=True), x, training)
    direction, leaves = torch.randn_like(want), [x, *module.parameters()]
    gradients = torch.autograd.grad(want, leaves, direction)
    out = module(x)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    for one, other in zip(torch.autograd.grad(out, leaves, direction), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.eval()(x), x + x * module.attention(x))


def test_a_checkpoint_older_than_num_batches_tracked_loads() -> None:
    module = BAM(32, variant="official")
    old = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
    result = BAM(32, variant="official").load_state_dict(old)
    assert not result.missing_keys


def test_on_a_map_that_is_not_square_it_pools_all_and_the_published_code_a_part_or_nothing() -> None:
    torch.manual_seed(0)
    module = BAM(32, variant="official").double().eval()
    weights = module.state_dict()
    c, s = module.channel_att, module.spatial_att
    for H, W in [(4, 4), (4, 5), (4, 7)]:
        x = torch.randn(2, 32, H, W, dtype=torch.float64)
        whole = x + x * torch.sigmoid(c(x.mean((2, 3)))[:, :, None, None] * s(x))
        first = x + x * torch.sigmoid(c(x[..., :H].mean((2, 3)))[:, :, None, None] * s(x))
        torch.testing.assert_close(module(x), whole)
        torch.testing.assert_close(restated(weights, x, training=False), first)
        assert torch.equal(whole, first) == (H == W)
    for H, W in [(4, 3), (4, 8), (4, 9), (5, 1)]:
        x = torch.randn(2, 32, H, W, dtype=torch.float64)
        torch.testing.assert_close(
            module(x), x + x * torch.sigmoid(c(x.mean((2, 3)))[:, :, None, None] * s(x))
        )
        with pytest.raises(RuntimeError, match=r"Output size is too small|shapes cannot be multiplied"):
            restated(weights, x, training=False)


def test_a_batch_of_one_is_refused_in_training() -> None:
    module, x = BAM(32, variant="official"), torch.randn(1, 32, 5, 4)
    with pytest.raises(ValueError, match="a batch of one"):
        module(x)
    assert module.eval()(x).shape == x.shape


@pytest.mark.parametrize(
    "options", [{"combine": "sum"}, {"combine": "max"}, {"branches": "channel"}, {"branches": "spatial"}]
)
def test_it_takes_no_choice_that_the_code_lacks(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="variant 'official' multiplies both branches"):
        BAM(32, variant="official", **options)
    assert (
        BAM(32, variant="official").combine == BAM(32, variant="official", combine="prod").combine == "prod"
    )
    assert BAM(32).combine == "sum"
