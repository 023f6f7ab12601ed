"""BAM, the bottleneck attention module (arXiv 1807.06514, section 3): two branches and one gate.

Letters: B batch, C channels, H x W map, m = C // reduction.
"""

from collections import OrderedDict
from contextlib import nullcontext
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.attention.cpu.squeeze import squeeze
from attneck.attention.gate import COMBINES, gate, gate_weights
from attneck.attention.graph import in_a_graph

BRANCHES = ("both", "channel", "spatial")
VARIANTS = ("paper", "official")
STARTS = ("paper", "identity")


class BAM(nn.Module):
    """F + F * sigmoid(Mc(F) + Ms(F)), eq. 1 to 4: [B, C, H, W] -> [B, C, H, W].

    `variant="paper"` is the paper's text: one BatchNorm at the end of each branch, the branches added.
    `variant="official"` is the code the authors published (github.com/Jongchan/attention-module): BatchNorm
    and ReLU after every hidden layer and none at the ends, the branches multiplied, and that code's parameter
    names, so that its checkpoints load. It differs in one thing: the published channel branch pools with a
    square window of side H, which only a square map survives, and this one pools the whole map; on square
    maps the two are one.

    `start="identity"` is for a trained network that gets its BAMs later: with one parameter more, `gain` [C],
    it is x + gain * x * attention(x). The gain is zero at first, so x comes out to the last bit. It has a
    gradient at once, and all other parameters have one as soon as it has moved. Gains of 1 are the paper's
    form.

    Args:
        channels: C.
        reduction: r, the hidden layers have m = C // r channels (16; section 4.1, Table 1).
        dilation: of the two 3x3 convolutions of the spatial branch (4; section 4.1, Table 1).
        combine: "sum", "prod" or "max" (Table 1). None takes the variant's own: "sum" for the paper, "prod"
            for the official code, which has no other.
        branches: "both", "channel" or "spatial" (Table 1); the official code has "both" alone.
        variant: "paper" or "official".
        start: "paper", or "identity" for a gain that starts at zero.

    Raises:
        ValueError: for an unknown choice, one that the official variant lacks, or a reduction that leaves no
            channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        combine: Literal["sum", "prod", "max"] | None = None,
        branches: Literal["both", "channel", "spatial"] = "both",
        variant: Literal["paper", "official"] = "paper",
        start: Literal["paper", "identity"] = "paper",
    ) -> None:
        super().__init__()
        check_start(start)
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        if branches not in BRANCHES:
            raise ValueError(f"unknown branches {branches!r}; choose one of {', '.join(BRANCHES)}")
        if combine is not None and combine not in COMBINES:
            raise ValueError(f"unknown combine {combine!r}; choose one of {', '.join(COMBINES)}")
        if variant == "official" and (branches != "both" or combine not in (None, "prod")):
            raise ValueError(
                f"variant 'official' multiplies both branches, but combine={combine!r} and "
                f"branches={branches!r} were given; leave them out, or choose variant='paper'"
            )
        if reduction < 1 or channels // reduction == 0:
            raise ValueError(
                f"{channels} channels at reduction {reduction} leave no hidden channel; choose a reduction "
                f"from 1 to {channels}"
            )
        if dilation < 1:
            raise ValueError(f"dilation {dilation} is not possible; choose 1 or more (the paper has 4)")

        self.channels, self.reduction, self.dilation = channels, reduction, dilation
        self.combine = combine or ("sum" if variant == "paper" else "prod")
        self.branches, self.variant = branches, variant
        hidden = channels // reduction
        channel, spatial = {
            "paper": (_paper_channel, _paper_spatial),
            "official": (_official_channel, _official_spatial),
        }[variant]
        self.channel_att = channel(channels, hidden) if branches != "spatial" else None
        self.spatial_att = spatial(channels, hidden, dilation) if branches != "channel" else None
        self.gain = nn.Parameter(torch.zeros(channels)) if start == "identity" else None

    def channel_attention(self, x: Tensor) -> Tensor:
        """Mc, the channel branch's logits (eq. 3): x [B, C, H, W] -> [B, C].

        Raises ValueError without that branch, and for a batch of one in training: its BatchNorm sees one
        value a channel, the mean over the map being taken before.
        """
        self._check_input(x)
        if self.channel_att is None:
            raise ValueError(
                "this BAM has branches='spatial'; build it with 'both' or 'channel' for channel attention"
            )
        return self._of_mean(x.mean(dim=(2, 3)))  # [B, C]

    def spatial_attention(self, x: Tensor) -> Tensor:
        """Ms, the spatial branch's logits (eq. 4): x [B, C, H, W] -> [B, 1, H, W].

        Raises ValueError without that branch, and for a single cell in training (B = H = W = 1).
        """
        self._check_input(x)
        if self.spatial_att is None:
            raise ValueError(
                "this BAM has branches='channel'; build it with 'both' or 'spatial' for spatial attention"
            )
        return self._of_narrow(self._spatial_layers()[0](x))  # [B, 1, H, W]

    def attention(self, x: Tensor) -> Tensor:
        """sigmoid of the branches combined (eq. 2), between 0 and 1: x [B, C, H, W] -> [B, C, H, W]."""
        return gate_weights(x, *self._logits(x), self.combine).expand_as(x)  # [B, C, H, W]

    def forward(self, x: Tensor) -> Tensor:
        """x + x * attention(x) (eq. 1): [B, C, H, W] -> [B, C, H, W]; channels_last stays so."""
        self._check_input(x)
        reduce = None if self.channel_att is None or self.spatial_att is None else self._spatial_layers()[0]
        if x.device.type != "cpu" or in_a_graph() or not _is_plain(reduce) or reduce.bias is None:
            c, p = self._logits(x)
        else:
            x, mean, narrow = squeeze(x, reduce.weight, reduce.bias)  # [B, C, H, W], [B, C], [B, m, H, W]
            c, p = self._of_mean(mean), self._of_narrow(narrow)
        # Under autocast the logits are more precise than the map; the result is what the map is.
        c, p = (None if logits is None else logits.to(x.dtype) for logits in (c, p))
        out = gate(x, c, p, self.combine)  # [B, C, H, W]
        return out if self.gain is None else torch.lerp(x, out, self.gain[:, None, None].to(x.dtype))

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, reduction={self.reduction}, dilation={self.dilation}, "
            f"combine={self.combine!r}, branches={self.branches!r}, variant={self.variant!r}, "
            f"start={('paper' if self.gain is None else 'identity')!r}"
        )

    def _logits(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the branches that there are say: [B, C] or None, [B, 1, H, W] or None."""
        c = None if self.channel_att is None else self.channel_attention(x)
        p = None if self.spatial_att is None else self.spatial_attention(x)
        return c, p

    def _of_mean(self, mean: Tensor) -> Tensor:
        """The channel branch's logits from the means over the map: [B, C] -> [B, C]."""
        assert self.channel_att is not None
        _check_batch(self.channel_att, mean.shape[0])
        return _precisely(self.channel_att, mean)

    def _of_narrow(self, narrow: Tensor) -> Tensor:
        """The spatial branch's logits from its first layer's result: [B, m, H, W] -> [B, 1, H, W]."""
        layers = self._spatial_layers()
        _check_batch(layers, narrow.numel() // narrow.shape[1])
        return _precisely(layers[1:], narrow)

    def _spatial_layers(self) -> nn.Sequential:
        assert self.spatial_att is not None
        layers = self.spatial_att.gate_s if self.variant == "official" else self.spatial_att
        assert isinstance(layers, nn.Sequential)
        return layers

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"the input has shape {list(x.shape)}, wanted [B, C, H, W] with C = {self.channels}; "
                "build this BAM with the channels of the stage it follows"
            )


def _is_plain(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether nobody has put another layer in this convolution's place, or wants to be told when it runs."""
    return type(layer) is nn.Conv2d and not (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


def check_start(start: str) -> None:
    """ValueError for an unknown one."""
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}")


def _precisely(layers: nn.Sequential, x: Tensor) -> Tensor:
    """`layers(x)` in the precision of their own weights, whatever autocast says; they are a small part of it.

    A branch ends in biased logits that vary little and a BatchNorm that magnifies what varies. Rounded to
    bfloat16 between the two, the variation is lost; and the bias, whose gradient is zero in exact arithmetic,
    takes a random walk that BatchNorm's running mean follows too late, so that evaluation goes wrong.
    """
    # Shapes alone (the meta device) have no autocast to leave.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        return layers(x.to(next(layers.parameters()).dtype))


def _paper_channel(channels: int, hidden: int) -> nn.Sequential:
    """Eq. 3 after the pooling: [B, C] -> [B, C]."""
    return nn.Sequential(
        OrderedDict(
            reduce=nn.Linear(channels, hidden),
            relu=nn.ReLU(),
            expand=nn.Linear(hidden, channels),
            norm=nn.BatchNorm1d(channels),
        )
    )


def _paper_spatial(channels: int, hidden: int, dilation: int) -> nn.Sequential:
    """Eq. 4: [B, C, H, W] -> [B, 1, H, W]."""
    return nn.Sequential(
        OrderedDict(
            reduce=nn.Conv2d(channels, hidden, kernel_size=1),
            relu_0=nn.ReLU(),
            context_1=nn.Conv2d(hidden, hidden, kernel_size=3, padding=dilation, dilation=dilation),
            relu_1=nn.ReLU(),
            context_2=nn.Conv2d(hidden, hidden, kernel_size=3, padding=dilation, dilation=dilation),
            relu_2=nn.ReLU(),
            project=nn.Conv2d(hidden, 1, kernel_size=1),
            norm=nn.BatchNorm2d(1),
        )
    )


def _official_channel(channels: int, hidden: int) -> nn.Sequential:
    """The published code's channel branch, by its names: [B, C] -> [B, C]."""
    layers = OrderedDict(
        gate_c_fc_0=nn.Linear(channels, hidden),
        gate_c_bn_1=nn.BatchNorm1d(hidden),
        gate_c_relu_1=nn.ReLU(),
        gate_c_fc_final=nn.Linear(hidden, channels),
    )
    return nn.Sequential(OrderedDict(gate_c=nn.Sequential(layers)))


def _official_spatial(channels: int, hidden: int, dilation: int) -> nn.Sequential:
    """The published code's spatial branch, by its names: [B, C, H, W] -> [B, 1, H, W]."""
    layers = OrderedDict[str, nn.Module](
        gate_s_conv_reduce0=nn.Conv2d(channels, hidden, kernel_size=1),
        gate_s_bn_reduce0=nn.BatchNorm2d(hidden),
        gate_s_relu_reduce0=nn.ReLU(),
    )
    for i in range(2):
        layers[f"gate_s_conv_di_{i}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        layers[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(hidden)
        layers[f"gate_s_relu_di_{i}"] = nn.ReLU()
    layers["gate_s_conv_final"] = nn.Conv2d(hidden, 1, kernel_size=1)
    return nn.Sequential(OrderedDict(gate_s=nn.Sequential(layers)))


def _check_batch(branch: nn.Module, values: int) -> None:
    """ValueError if a BatchNorm of the branch is to learn from one value a channel; it sees `values`."""
    if values != 1:
        return
    for layer in branch.modules():
        if isinstance(layer, _BatchNorm) and layer.training and not _shares_statistics(layer):
            raise ValueError(
                "BAM's BatchNorm got one value a channel (a batch of one) in training, which has no "
                "variance; use a larger batch, call .eval() on the model or on its BatchNorms, or, where "
                "several processes train with one image each, convert the model by "
                "torch.nn.SyncBatchNorm.convert_sync_batchnorm"
            )


def _shares_statistics(layer: _BatchNorm) -> bool:
    """Whether this BatchNorm takes its statistics over more processes than this one."""
    distributed = torch.distributed
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):  # anything else is some library's synchronised one
        return False
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(getattr(layer, "process_group", None)) > 1
