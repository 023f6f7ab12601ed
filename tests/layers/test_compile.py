"""torch.compile takes each layer as one graph, forward and backward, with eager's numbers."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relative": lambda: MHSA2d(16, (6, 5), stride=2),
    "relative alone, resampled": lambda: MHSA2d(16, 9, content=False),
    "absolute": lambda: MHSA2d(16, (6, 5), position="absolute"),
    "bam": lambda: BAM(16),
    "bam, official": lambda: BAM(16, variant="official"),
    "bam, from the identity": lambda: BAM(16, start="identity"),
    "squeeze-excite": lambda: SqueezeExcite2d(16),
    "non-local": lambda: NonLocal2d(16),
}
OTHERS = sorted(LAYERS.keys() - {"relative", "bam"})


@pytest.mark.parametrize(
    ("name", "memory_format"),
    [
        *product(LAYERS, [torch.contiguous_format]),
        *product(["relative", "bam"], [torch.channels_last]),
        *(pytest.param(name, torch.channels_last, marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_one_graph_and_the_same_numbers(name: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        if not parameter.any():  # a gain or a norm that starts at 0 hides all the rest
            nn.init.normal_(parameter)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    leaves = [x, *layer.parameters()]
    want = layer(x)
    direction = torch.randn_like(want)
    gradients = torch.autograd.grad(want, leaves, direction)
    got = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert got.stride() == want.stride()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(got, leaves, direction), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_one_graph_for_sizes_that_change() -> None:
    """In training, behind a stride. Of whole networks, the backward pass takes minutes to compile."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    attention = MHSA2d(16, (6, 5), stride=2)
    block = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), BAM(16), attention).double()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    for stance, size in [
        ("default", (13, 18)),
        ("fail_on_recompile", (12, 10)),
        ("fail_on_recompile", (20, 11)),
    ]:
        x, results = torch.randn(4, 3, *size, dtype=torch.float64), []
        for network in (block, compiled):
            block.load_state_dict(state)
            with torch.compiler.set_stance(stance):
                out = network(x)
            gradients = torch.autograd.grad(out.square().mean(), list(block.parameters()))
            results.append([out, *gradients, *(buffer.clone() for buffer in block.buffers())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_inductor_makes_code_of_a_block_with_both() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    block = nn.Sequential(MHSA2d(32, (6, 5), stride=2), nn.BatchNorm2d(32), nn.ReLU(), BAM(32)).double()
    x = torch.randn(4, 32, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    leaves = [x, *block.parameters()]
    want = block(x)
    direction = torch.randn_like(want)
    gradients = torch.autograd.grad(want, leaves, direction)
    got = torch.compile(block, fullgraph=True)(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for one, other in zip(torch.autograd.grad(got, leaves, direction), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
