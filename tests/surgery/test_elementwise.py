"""Only element-wise functions are stepped over between a module and the end of its branch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attneck.layers import SqueezeExcite2d
from attneck.surgery import insert_bam, insert_se

C = 8


class Residual(nn.Module):
    """x + end(conv2(relu(conv1(x)))), with a function for the end of the branch."""

    def __init__(self, end: Callable[["Residual", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(C, C, 3, padding=1) for _ in range(2))
        self.end = end
        self.weight = nn.Parameter(torch.randn(C, C, 3, 3))
        self.scale = nn.Parameter(torch.randn(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self, self.conv2(F.relu(self.conv1(x))))


class Functional(nn.Module):
    """A block without modules: its convolutions are functions of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(C, C, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(F.relu(F.conv2d(x, self.w1, padding=1)), self.w2, padding=1)


def network(block: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, 1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 3))


ENDS: dict[str, Callable[[Residual, Tensor], Tensor]] = {
    "relu": lambda _, y: F.relu(y),
    "relu_": lambda _, y: F.relu_(y),
    "hardswish": lambda _, y: F.hardswish(y),
    "dropout": lambda block, y: F.dropout(y, 0.1, block.training),
    "times a number": lambda _, y: y * 0.2,
    "a number times it": lambda _, y: 0.2 * y,
    "times a number, in place": lambda _, y: y.mul_(0.2),
    "a layer scale": lambda block, y: block.scale * y,
    "a shift": lambda block, y: y + block.scale,
    "a cast": lambda _, y: y.to(torch.float64).float(),
    "several": lambda _, y: F.dropout(torch.tanh(y) / 2, 0.1, training=False),
}

OTHERS: dict[str, Callable[[Residual, Tensor], Tensor]] = {
    "conv2d": lambda block, y: F.conv2d(y, block.weight, padding=1),
    "conv2d, depthwise": lambda block, y: F.conv2d(y, block.weight[:, :1], padding=1, groups=C),
    "linear": lambda block, y: F.linear(y.transpose(1, 3), block.weight[:, :, 0, 0]).transpose(1, 3),
    "matmul": lambda block, y: (block.weight[:, :, 0, 0] @ y.flatten(2)).view_as(y),
    "max_pool2d": lambda _, y: F.max_pool2d(y, 3, 1, 1),
    "avg_pool2d": lambda _, y: F.avg_pool2d(y, 3, 1, 1),
    "interpolate": lambda _, y: F.interpolate(y, scale_factor=1.0),
    "layer_norm": lambda _, y: F.layer_norm(y, y.shape[1:]),
    "group_norm": lambda _, y: F.group_norm(y, 2),
    "batch_norm": lambda block, y: F.batch_norm(y, torch.zeros_like(y[0, :, 0, 0]), None, training=True),
    "softmax": lambda _, y: y.softmax(dim=1),
    "flip": lambda _, y: y.flip(3),
    "a gate of the map": lambda _, y: y * y.mean(dim=(2, 3), keepdim=True),
    "two maps": lambda block, y: y + block.conv1.weight.sum() * torch.flip(y, (2,)),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_elementwise_end_is_stepped_over(end: str) -> None:
    model = insert_se(network(Residual(ENDS[end])), reduction=2, image_size=32).model
    found = [name for name, module in model.named_modules() if isinstance(module, SqueezeExcite2d)]
    assert found == ["1.conv2.se"]


@pytest.mark.parametrize("end", OTHERS)
def test_any_other_end_is_refused_with_the_reason(end: str) -> None:
    model = network(Residual(OTHERS[end]))
    state = list(model.state_dict())
    with pytest.raises(ValueError, match=r"the residual block '1' adds a map that .* no module .* in '1'"):
        insert_se(model, reduction=2, image_size=32)
    assert list(model.state_dict()) == state
    assert type(model[1]) is Residual


def test_a_block_of_functional_convolutions_is_refused() -> None:
    """Its only modules are before branch and shortcut, where an SE would change both."""
    model = network(Functional())
    x = torch.randn(2, C, 32, 32)
    want = model(x)
    for insert in (insert_se, insert_bam):
        with pytest.raises(ValueError, match="comes from no module of its own but from conv2d in '1'"):
            insert(model, "blocks", reduction=2, image_size=32)
    assert torch.equal(model(x), want)
