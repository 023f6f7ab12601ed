"""channels_last goes in, channels_last comes out, with the same numbers; likewise for contiguous maps."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relative": lambda: MHSA2d(16, (6, 5)),
    "relative, resampled": lambda: MHSA2d(16, 9),
    "relative, strided": lambda: MHSA2d(16, (6, 5), stride=2),
    "absolute": lambda: MHSA2d(16, (6, 5), position="absolute"),
    "none, strided": lambda: MHSA2d(16, (6, 5), position="none", stride=2),
    "bam": lambda: BAM(16),
    "bam, channel": lambda: BAM(16, branches="channel"),
    "bam, spatial": lambda: BAM(16, branches="spatial"),
    "bam, official": lambda: BAM(16, variant="official"),
    "squeeze-excite": lambda: SqueezeExcite2d(16),
    "non-local": lambda: NonLocal2d(16),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("convert", [False, True])
def test_the_memory_format_goes_through(name: str, convert: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        if not parameter.any():  # a norm that starts at 0 hides all the rest
            nn.init.normal_(parameter)
    twin = copy.deepcopy(layer)
    if convert:  # as users do it: the parameters, too
        twin = twin.to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    want, got = layer(x), twin(y)
    assert want.is_contiguous()
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(want)
    for one, other in zip(
        torch.autograd.grad(got, [y, *twin.parameters()], direction),
        torch.autograd.grad(want, [x, *layer.parameters()], direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_it_goes_through_in_float32_too(name: str) -> None:  # where other convolutions run
    x = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    assert LAYERS[name]()(x).is_contiguous(memory_format=torch.channels_last)
