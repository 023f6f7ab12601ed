"""Networks whose forward makes tensors of its own, coordinates say, or keeps some in a list."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attneck.measure import count
from attneck.surgery import attend, insert_bam


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shares = [torch.full((1, channels, 1, 1), 0.5)]  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shares[0] * self.conv2(self.norm(self.conv1(x)).relu())


class Coordinates(nn.Module):
    """CoordConv: each convolution could be told where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, 2, 1)
        self.block = Block(16)
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        row = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[0], 1, *x.shape[2:])
        x = self.down(self.block(self.stem(torch.cat([x, row], 1))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("operation", [insert_bam, lambda m, **o: insert_bam(m, at="blocks", **o), attend])
def test_it_is_changed_as_any_other_is(operation: Any) -> None:
    torch.manual_seed(0)
    model, x = Coordinates().eval(), torch.randn(2, 3, 64, 64)
    want = model(x)
    changed, report = operation(model, image_size=64)
    got = changed(x)
    assert report.changes
    assert got.isfinite().all()
    assert torch.equal(got, want) == (operation is not attend)
    assert isinstance(model.block.shares[0], Tensor)
    assert not model.block.shares[0].is_meta


def test_its_products_are_counted() -> None:
    stem, block, head = 32**2 * 4 * 16 * 9, 2 * 32**2 * 16**2 * 9, 32 * 5
    down = 16**2 * 16 * 32 * 9 + 8**2 * 32**2 * 9
    assert count(Coordinates(), 64).madds == stem + block + down + head


class Late(nn.Module):
    """Makes a tensor after its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), torch.zeros(len(x), 1, *x.shape[2:])], 1)


def test_additions_of_a_pass_that_failed_are_not_counted() -> None:
    assert count(Late(), 8).bias_adds == 4 * 8 * 8
