"""Layers built without storage come to life by what resets their modules, the inner ones first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: BAM(32, start="identity"), True),
        (lambda: BAM(32, variant="official"), False),
        (lambda: SqueezeExcite2d(32, start="identity"), True),
        (lambda: SqueezeExcite2d(32), False),
        (lambda: NonLocal2d(32, value=True), True),
        (lambda: MHSA2d(32, 4), False),
    ],
)
def test_they_start_as_if_built_with_storage(make: Callable[[], nn.Module], same: bool) -> None:
    def reset(module: nn.Module) -> None:
        if callable(own := getattr(module, "reset_parameters", None)):
            own()

    torch.manual_seed(0)
    with torch.device("meta"):
        layer = make()
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else 7)
    layer.apply(reset)
    fresh: dict[str, Tensor] = make().state_dict()
    for name, tensor in layer.state_dict().items():
        assert tensor.isfinite().all()
        if fresh[name].unique().numel() == 1 and tensor.numel() > 1:  # the constants, gains among them
            assert torch.equal(tensor, fresh[name])
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(layer(x), x) == same
