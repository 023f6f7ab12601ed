"""Maps with their channels last are none that attention goes on; they are followed until turned back."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from attneck.surgery import attend, insert_bam, insert_se
from attneck.surgery.axes import channel_axes
from attneck.surgery.trace import trace


class Mixer(nn.Module):
    """A residual block of linear layers on [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Turned(nn.Module):
    """A network of which a part has the channels last, the rest of it a residual block of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 4, stride=4)
        self.last = nn.Sequential(Mixer(48), Mixer(48))
        self.branch = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [B, 48, H/4, W/4]
        return x + self.branch(x)


def test_blocks_with_the_channels_last_get_nothing() -> None:
    report = insert_se(Turned()).report
    assert [change.name for change in report.changes] == ["branch.se"]


def test_networks_with_the_channels_last_are_refused() -> None:
    with torch.device("meta"):
        mamba, swin = timm.create_model("mambaout_femto"), torchvision.models.swin_t()
    with pytest.raises(ValueError, match="no residual block in this MambaOut"):
        insert_se(mamba)
    with pytest.raises(ValueError, match="no residual block in this SwinTransformer"):
        attend(swin, image_size=384)
    with pytest.raises(ValueError, match="no bottleneck in this SwinTransformer"):
        insert_bam(swin, image_size=384)


class Does(nn.Module):
    """One function of the image, behind a convolution of 6 channels."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 6, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def windows(x: Tensor) -> Tensor:
    """[B, H, W, C] → [B·windows, 4, 4, C]."""
    B, H, W, C = x.shape
    return x.view(B, H // 4, 4, W // 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, C)


@pytest.mark.parametrize(
    ("function", "axis"),
    [
        (lambda x: x.permute(0, 2, 3, 1), 3),
        (lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)), 3),
        (lambda x: x.movedim(1, -1), 3),
        (lambda x: x.transpose(2, 3), 1),
        (lambda x: x.movedim(1, -1)[:, ::2].relu() + 1, 3),
        (lambda x: windows(x.movedim(1, -1)), 3),
        (lambda x: x.flatten(2).transpose(1, 2), 2),
        (lambda x: x.flatten(2).transpose(1, 2).unflatten(1, (8, 8)), 3),
        (lambda x: x.flatten(2).unflatten(2, (8, 8)), 1),
        (lambda x: F.pixel_unshuffle(x, 2), 1),
        (lambda x: F.layer_norm(x.unflatten(1, (2, 3)).flatten(1, 2).movedim(1, -1), (6,)), 3),
        (lambda x: F.linear(x.mean((2, 3)), torch.ones(5, 6, device="meta"))[:, :, None, None], 1),
        # Shuffled channels and products are not followed, and such maps are taken as all others.
        (lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2), None),
        (lambda x: x.movedim(1, -1) @ torch.ones(6, 6, device="meta"), None),
    ],
)  # fmt: skip
def test_the_channels_are_followed(function: Callable[[Tensor], Tensor], axis: int | None) -> None:
    seen = trace(Does(function), 8)
    (result,) = seen.steps[0].outputs
    assert channel_axes(seen.shapes, seen.makers)[result] == axis
    assert seen.level(result) is None or axis in (1, None)
