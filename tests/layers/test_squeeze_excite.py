"""SqueezeExcite2d against the oracle."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from attneck.attention import reference
from attneck.layers import SqueezeExcite2d
from attneck.surgery import insert_se


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("map_size", [(1, 1), (5, 3)])
def test_result_and_gradients_are_the_oracle_s(bias: bool, map_size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SqueezeExcite2d(32, reduction=4, bias=bias).double()
    x = torch.randn(2, 32, *map_size, dtype=torch.float64, requires_grad=True)
    want = reference.squeeze_excite(x, layer.fc1.weight, layer.fc2.weight, layer.fc1.bias, layer.fc2.bias)
    got, direction, leaves = layer(x), torch.randn_like(want), [x, *layer.parameters()]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(got, leaves, direction), torch.autograd.grad(want, leaves, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_parameters() -> None:
    def count(**options: object) -> int:
        return sum(p.numel() for p in SqueezeExcite2d(256, **options).parameters())

    assert count() == 2 * 256 * 16  # reduction 16, no biases
    assert count(bias=True) == count() + 16 + 256


def test_one_that_starts_as_the_identity_learns() -> None:
    torch.manual_seed(0)
    layer, plain = SqueezeExcite2d(32, bias=True, start="identity"), SqueezeExcite2d(32, bias=True)
    x = torch.randn(4, 32, 5, 6)
    out = layer(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert layer.gain is not None
    assert layer.gain.grad is not None
    assert layer.gain.grad.all()

    with torch.no_grad():
        layer.gain.fill_(1e-3)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())

    with torch.no_grad():
        layer.gain.fill_(1)
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if name != "gain"})
    torch.testing.assert_close(layer(x), plain(x))
    with pytest.raises(ValueError, match="unknown start 'zero'; choose one of paper, identity"):
        SqueezeExcite2d(32, start="zero")


def test_a_reduction_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="16 channels at reduction 17 leave no hidden channel"):
        SqueezeExcite2d(16, reduction=17)
    with pytest.raises(ValueError, match="reduction=0: wanted a whole number"):
        SqueezeExcite2d(16, reduction=0)


@pytest.mark.parametrize("bias", [None, "yes", 2])
def test_a_bias_is_there_or_not(bias: Any) -> None:
    with pytest.raises(ValueError, match=f"bias={bias!r}: wanted True or False"):
        SqueezeExcite2d(16, bias=bias)
    network = timm.create_model("resnet18", num_classes=2)
    names = [*network.state_dict()]
    with pytest.raises(ValueError, match=f"bias={bias!r}: wanted True or False"):
        insert_se(network, bias=bias)
    assert [*network.state_dict()] == names


def test_an_empty_batch_is_welcome_and_an_empty_map_is_not() -> None:
    layer, x = SqueezeExcite2d(32), torch.randn(0, 32, 4, 5, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in (x, *layer.parameters()))
    with pytest.raises(ValueError, match=r"the input has shape \[2, 32, 0, 5\]: a map without positions"):
        layer(torch.randn(2, 32, 0, 5))  # its mean is NaN, and so its weights' gradients would be
    with pytest.raises(ValueError, match=r"reduction=4\.0: wanted a whole number"):
        SqueezeExcite2d(32, reduction=4.0)


def test_a_layer_of_another_s_in_place_of_its_own_will_do() -> None:
    """As LoRA puts one around it: nothing is asked of it but its result."""

    class Around(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.layer(x)

    se, x = SqueezeExcite2d(32), torch.randn(2, 32, 4, 5)
    before = se(x)
    se.fc1 = Around(se.fc1)
    assert not torch.equal(se(x), before)
