"""BAM under bfloat16 autocast: its logits keep float32's precision where BatchNorm magnifies them."""

import pytest
import torch

from attneck.layers import BAM


def batch():
    return torch.randn(16, 64, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_logits_come_out_in_float32(variant):
    module = BAM(64, variant=variant)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.channel_attention(batch()).dtype == torch.float32
        assert module.spatial_attention(batch()).dtype == torch.float32


def test_a_bias_before_batchnorm_does_not_drift():
    """Its gradient is zero in exact arithmetic, and next to the weights' (about 60 here) stays so."""
    torch.manual_seed(0)
    module = BAM(64)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(batch()).float()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert module.channel_att.expand.weight.grad.abs().max() > 10
    assert module.channel_att.expand.bias.grad.abs().max() < 0.02
    assert module.spatial_att.project.bias.grad.abs().max() < 0.02


def test_a_large_common_bias_costs_no_precision():
    """Logits of 50 plus or minus little: in bfloat16, BatchNorm would see steps of 0.25."""
    torch.manual_seed(0)
    module = BAM(64)
    with torch.no_grad():
        module.channel_att.expand.bias.fill_(50)
        module.spatial_att.project.bias.fill_(50)
        exact = module.channel_attention(batch()), module.spatial_attention(batch())
        with torch.autocast("cpu", torch.bfloat16):
            cast = module.channel_attention(batch()), module.spatial_attention(batch())
    for wanted, given in zip(exact, cast, strict=True):
        assert (given - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_a_model_of_bfloat16_weights_still_runs():
    module = BAM(64).bfloat16()
    assert module(batch().bfloat16()).dtype == torch.bfloat16
