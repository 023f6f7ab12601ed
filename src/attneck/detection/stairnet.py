"""StairNet (Woo et al. 2018): SSD300 with its maps refined from the top down, and BAM in it (BAM §4.6).

Where neither paper prints a size, it is chosen so that the parameters are those of BAM's Table 4b.
Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from attneck.detection.ssd import KERNEL_SIZES, SSD300, TRUNKS, check_ssd
from attneck.models import parts
from attneck.models.detector_options import StairNetOptions


class StepDown(nn.Module):
    """To the next finer map: a 3×3 transposed convolution of stride 2, and BatchNorm.

    Args:
        channels: C.
        padding: 0 where H' = 2·H + 1, else 1, which reaches 2·H - 1 and 2·H.
        depthwise: each channel by itself, then a 1×1 convolution across them with BatchNorm.
    """

    def __init__(self, channels: int, padding: int, *, depthwise: bool) -> None:
        super().__init__()
        groups = channels if depthwise else 1
        self.deconv = nn.ConvTranspose2d(
            channels, channels, 3, stride=2, padding=padding, groups=groups, bias=not depthwise
        )
        self.norm = nn.BatchNorm2d(channels)
        self.mix = (
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(channels, channels, 1, bias=False),
                    norm=nn.BatchNorm2d(channels),
                )
            )
            if depthwise
            else nn.Identity()
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x [B, C, H, W] and (H', W') → [B, C, H', W']."""
        return self.mix(self.norm(self.deconv(x, output_size=list(size))))


class Stairs(nn.Module):
    """Six maps of any widths → six of C = `channels`, of the same sizes, finest first.

    Each map goes through a 1×1 convolution with BatchNorm. From the coarsest map on, each sum is brought to
    the next finer size and added to that map (`StepDown`). Then each map goes through a 3×3 convolution with
    BatchNorm and ReLU, and last, right before classifier and box regressor, through BAM.

    Args:
        widths: channels of the maps that come in, finest first.
        sizes: sides of these maps in positions, each about half of the one before.
        options: channels, BAM, and whether 3×3 convolutions are by channel, as in MobileNet's trunk.
    """

    def __init__(self, widths: Sequence[int], sizes: Sequence[int], options: StairNetOptions) -> None:
        super().__init__()
        C = options.channels
        depthwise = options.trunk == "mobilenet"
        self.laterals = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, C, 1, bias=False), norm=nn.BatchNorm2d(C)))
            for width in widths
        )
        self.steps = nn.ModuleList(
            StepDown(C, padding=0 if fine == 2 * coarse + 1 else 1, depthwise=depthwise)
            for fine, coarse in pairwise(sizes)
        )
        self.posts = nn.ModuleList()
        for _ in widths:
            post = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(C, C, 3, padding=1, groups=C if depthwise else 1, bias=False),
                    norm=nn.BatchNorm2d(C),
                    relu=nn.ReLU(inplace=True),
                )
            )
            if options.bam == "stages":
                post.add_module("bam", parts.bam(C, options))
            self.posts.append(post)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """[B, widths[i], H, W] by name, finest first → [B, C, H, W] by the same names.

        Raises ValueError for a batch of one in training: the coarsest map is 1×1.
        """
        *_, coarsest = maps.values()
        # A synchronised one has the images of the other processes as well.
        if self.training and coarsest[:, 0].numel() == 1 and type(self.laterals[-1].norm) is nn.BatchNorm2d:
            raise ValueError(
                "StairNet got a batch of one image in training: its coarsest map is 1×1, so BatchNorm has "
                "one value a channel and no variance; give two images or more, or synchronise BatchNorm "
                "over several processes"
            )
        x = [lateral(features) for lateral, features in zip(self.laterals, maps.values(), strict=True)]
        for index in reversed(range(len(self.steps))):
            x[index] = x[index] + self.steps[index](x[index + 1], x[index].shape[2:])
        return {name: post(merged) for name, post, merged in zip(maps, self.posts, x, strict=True)}


def build_stairnet(options: StairNetOptions, *, num_classes: int, image_size: tuple[int, int]) -> SSD300:
    """An `SSD300` whose backbone is a trunk and `Stairs`; `num_classes` counts the background.

    Raises:
        ValueError: no class besides the background, or another image size than 300×300.
    """
    check_ssd(num_classes, image_size)
    trunk = TRUNKS[options.trunk]()
    stairs = Stairs(trunk.out_channels, trunk.map_sizes, options)
    backbone = nn.Sequential(OrderedDict[str, nn.Module](trunk=trunk, stairs=stairs))
    return SSD300(
        backbone,
        [options.channels] * len(trunk.out_channels),
        trunk.default_boxes(),
        num_classes,
        KERNEL_SIZES[options.trunk],
    )
