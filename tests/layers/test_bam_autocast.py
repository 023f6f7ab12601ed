"""BAM under bfloat16 autocast: its logits keep float32's precision where BatchNorm magnifies them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from attneck.attention import reference
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


CASES = {  # the map's dtype, the weights', and autocast's
    "float32 map": (torch.float32, torch.float32, torch.bfloat16),
    "bfloat16 map": (torch.bfloat16, torch.float32, torch.bfloat16),
    "float16 map": (torch.float16, torch.float32, torch.float16),
    "all bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "all float16": (torch.float16, torch.float16, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_logits_are_the_oracle_s_in_every_precision(case, backend, memory_format):
    """Images that differ little beside what they share: rounded means would lose what BatchNorm magnifies."""
    given, weights, cast = CASES[case]
    torch.manual_seed(0)
    module = BAM(64, backend=backend).to(weights)
    x = (torch.randn(16, 64, 7, 9) + 3 * torch.randn(64, 1, 1)).to(given)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    got = []
    module.channel_att.register_forward_hook(lambda layer, inputs, output: got.extend((*inputs, output)))
    with torch.autocast("cpu", cast, enabled=cast is not None):
        out = module(x)
        alone = module.channel_attention(x)
    exact = x.detach().double().requires_grad_()
    w0, b0, w1, b1, gamma, beta = (part.detach().double() for part in module.channel_att.parameters())
    want = reference.bam_channel(exact, w0, b0, w1, b1, gamma, beta)
    mean, logits, *_ = got
    assert [out.dtype, mean.dtype, logits.dtype] == [given, torch.float32, torch.float32]
    torch.testing.assert_close(mean.double(), exact.mean((2, 3)), rtol=1e-6, atol=1e-6)
    for one in (logits, alone):
        assert torch.corrcoef(torch.stack((one.double().flatten(), want.flatten())))[0, 1] > 0.999999
        torch.testing.assert_close(one.double(), want, rtol=1e-3, atol=1e-3)
    direction = torch.randn(16, 64)
    (gradient,) = torch.autograd.grad(logits, x, direction)
    (wanted,) = torch.autograd.grad(want, exact, direction.double())
    # What is written is rounded to the map's dtype, and once before, as a factor of the product.
    assert (gradient.double() - wanted).norm() < 2 * torch.finfo(given).eps * wanted.norm() + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_weights_learns_its_statistics(dtype):
    torch.manual_seed(0)
    module, x = BAM(64).to(dtype), batch().to(dtype)
    twin = BAM(64)
    twin.load_state_dict(module.state_dict())
    module(x)
    twin(x.float())
    norm, exact = module.channel_att.norm, twin.channel_att.norm
    assert norm.num_batches_tracked == 1
    assert (norm.running_mean != 0).all()
    torch.testing.assert_close(norm.running_mean, exact.running_mean.to(dtype))
    torch.testing.assert_close(norm.running_var, exact.running_var.to(dtype))
    module.channel_att.eval()
    module.channel_att.norm.train()  # its own mode counts, not its parent's
    module(x)
    assert norm.num_batches_tracked == 2
    assert not torch.equal(norm.running_mean, exact.running_mean.to(dtype))


def test_half_weights_go_into_graphs():
    torch._dynamo.reset()
    module, x = BAM(16).bfloat16().eval(), torch.randn(2, 16, 5, 4).bfloat16()
    want = module(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for out in (
        compiled(x),
        torch.export.export(module, (x,)).module()(x),
        torch.jit.trace(module, x, check_trace=False)(x),
    ):
        torch.testing.assert_close(out, want, rtol=0.02, atol=0.02)


def replica(module: torch.nn.Module) -> torch.nn.Module:
    """As torch.nn.DataParallel makes them: the weights are plain attributes, and nothing has parameters."""
    made = module._replicate_for_data_parallel()
    for name, weight in module._parameters.items():
        setattr(made, name, None if weight is None else weight * 1)
    for name, child in module.named_children():
        setattr(made, name, replica(child))
    return made


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_replicas_of_data_parallel_compute_the_same(variant):
    torch.manual_seed(0)
    module = BAM(64, variant=variant, backend="plain")
    assert not list(replica(module).parameters())
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.testing.assert_close(replica(module)(batch()), module(batch()))


def near(got, want):
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_half_replica_computes_about_the_same(variant):
    torch.manual_seed(0)
    module, x = BAM(64, variant=variant, backend="plain").bfloat16(), batch().bfloat16()
    near(replica(module)(x), module(x))


def kept_away(module):
    """As programs do that keep weights elsewhere: a layer gets its own as it is called."""
    for layer in module.modules():
        if own := {name: tensor.detach().clone() for name, tensor in layer._parameters.items()}:
            call = layer.forward

            def forward(x, layer=layer, own=own, call=call):
                there = dict(layer._parameters)
                layer._parameters.update({name: nn.Parameter(tensor) for name, tensor in own.items()})
                out = call(x)
                layer._parameters.update(there)
                return out

            layer.forward = forward
            layer._parameters.update({name: nn.Parameter(tensor.to("meta")) for name, tensor in own.items()})
    return module


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_weights_that_are_kept_elsewhere_are_taken_by_the_layers(variant):
    torch.manual_seed(0)
    module, x = BAM(64, variant=variant, backend="plain").bfloat16().eval(), batch().bfloat16()
    with torch.no_grad():
        near(kept_away(copy.deepcopy(module))(x), module(x))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_pruned_layers_follow_a_change_of_precision(variant):
    """Theirs is what the hook computed last, until it computes anew."""
    torch.manual_seed(0)
    module, x = BAM(64, variant=variant), batch()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(layer, "weight", 0.5)
    want = module.eval()(x)
    got = module.bfloat16()(x.bfloat16())
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
