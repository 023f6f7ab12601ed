"""BAM, the bottleneck attention module (arXiv 1807.06514, section 3): two branches and one gate.

Letters: B batch, C channels, H x W map, m = C // reduction.
"""

from typing import Literal

import torch
from torch import Tensor, fx, nn

from attneck.attention.cpu.squeeze import squeeze
from attneck.attention.gate import COMBINES, check_backend, gate, gate_weights
from attneck.attention.graph import in_a_graph, intercepted, transformed
from attneck.checks import one_of, whole
from attneck.layers.bare import is_bare, is_bare_pointwise, is_own
from attneck.layers.branches import (
    SpatialBranch,
    check_batch,
    in_dtype,
    in_float32,
    official_channel,
    official_spatial,
    paper_channel,
    paper_spatial,
)
from attneck.layers.input import check_input
from attneck.layers.tracing import recorded

BRANCHES = ("both", "channel", "spatial")
VARIANTS = ("paper", "official")
STARTS = ("paper", "identity")


class BAM(nn.Module):
    """F + F * sigmoid(Mc(F) + Ms(F)), eq. 1 to 4: [B, C, H, W] -> [B, C, H, W].

    `variant="paper"` is the paper's text: one BatchNorm at the end of each branch, the branches added.
    `variant="official"` is the code the authors published (github.com/Jongchan/attention-module): BatchNorm
    and ReLU after every hidden layer and none at the ends, the branches multiplied, and that code's parameter
    names, so that its checkpoints load. It differs in one thing. This channel branch pools the whole map, as
    eq. 3 says; the published one pools squares of side H. On a square map the two are the same. On a wider
    one, H < W < 2H, the published code pools the first H columns and leaves out the others. On any other map
    (W < H, or W >= 2H) it raises an error.

    `start="identity"` is for a trained network that gets its BAMs later: with one parameter more, `gain` [C],
    it is x + gain * x * attention(x). The gain is zero at first, so x comes out to the last bit. It has a
    gradient at once, and all other parameters have one as soon as it has moved. Gains of 1 are the paper's
    form.

    The channel branch runs in float32 or more, whatever the map, the weights and autocast are: its BatchNorm
    magnifies differences between means, which half precision would round away. An empty batch gives an empty
    result, as PyTorch's layers do. `torch.fx` records the layer as one call of it.

    Args:
        channels: C.
        reduction: r, the hidden layers have m = C // r channels (16; section 4.1, Table 1).
        dilation: of the two 3x3 convolutions of the spatial branch (4; section 4.1, Table 1).
        combine: "sum", "prod" or "max" (Table 1). None takes the variant's own: "sum" for the paper, "prod"
            for the official code, which has no other.
        branches: "both", "channel" or "spatial" (Table 1); the official code has "both" alone.
        variant: "paper" or "official".
        start: "paper", or "identity" for a gain that starts at zero.
        backend: "plain" is ordinary PyTorch throughout: each branch's modules, and the gate's formula. "auto"
            takes less time and memory on the CPU, and "plain" wherever a graph is recorded, or `torch.func`
            or a forward-mode derivative is at work. Derivatives of any order are right with both.

    Raises:
        ValueError: for an unknown choice, one that the official variant lacks, a number that is no whole one,
            or a reduction that leaves no channel.
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
        backend: Literal["auto", "plain"] = "auto",
    ) -> None:
        super().__init__()
        whole("dilation", dilation)
        hidden = hidden_channels(channels, reduction)
        check_start(start)
        check_backend(backend)
        one_of("variant", variant, VARIANTS)
        one_of("branches", branches, BRANCHES)
        if combine is not None:
            one_of("combine", combine, COMBINES)
        if variant == "official" and (branches != "both" or combine not in (None, "prod")):
            raise ValueError(
                f"variant 'official' multiplies both branches, but combine={combine!r} and "
                f"branches={branches!r} were given; leave them out, or choose variant='paper'"
            )

        self.channels, self.reduction, self.dilation = channels, reduction, dilation
        self.combine = combine or ("sum" if variant == "paper" else "prod")
        self.branches, self.variant, self.backend = branches, variant, backend
        channel, spatial = {
            "paper": (paper_channel, paper_spatial),
            "official": (official_channel, official_spatial),
        }[variant]
        self.channel_att = channel(channels, hidden) if branches != "spatial" else None
        self.spatial_att = spatial(channels, hidden, dilation) if branches != "channel" else None
        self.gain = nn.Parameter(torch.zeros(channels)) if start == "identity" else None

    def reset_parameters(self) -> None:
        """The gain, if it has one, as at the start; the branches' layers reset themselves."""
        if self.gain is not None:
            nn.init.zeros_(self.gain)

    def channel_attention(self, x: Tensor) -> Tensor:
        """Mc, the channel branch's logits (eq. 3): x [B, C, H, W] -> [B, C].

        Raises ValueError without that branch, and for a batch of one in training: its BatchNorm sees one
        value a channel, the mean over the map being taken before.
        """
        check_input(x, self.channels, self)
        if self.channel_att is None:
            raise ValueError(
                "this BAM has branches='spatial'; build it with 'both' or 'channel' for channel attention"
            )
        return self._of_mean(x.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32)))  # [B, C]

    def spatial_attention(self, x: Tensor) -> Tensor:
        """Ms, the spatial branch's logits (eq. 4): x [B, C, H, W] -> [B, 1, H, W].

        Raises ValueError without that branch, and for a single position in training (B = H = W = 1).
        """
        check_input(x, self.channels, self)
        if self.spatial_att is None:
            raise ValueError(
                "this BAM has branches='channel'; build it with 'both' or 'spatial' for spatial attention"
            )
        self._check_positions(x)
        logits: Tensor = self.spatial_att(x)  # [B, 1, H, W]
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """sigmoid of the branches combined (eq. 2), between 0 and 1: x [B, C, H, W] -> [B, C, H, W]."""
        return gate_weights(x, *self._logits(x), self.combine).expand_as(x)  # [B, C, H, W]

    def forward(self, x: Tensor) -> Tensor:
        """x + x * attention(x) (eq. 1): [B, C, H, W] -> [B, C, H, W]; channels_last stays so."""
        if isinstance(x, fx.Proxy):
            return recorded(self, x)
        check_input(x, self.channels, self)
        # The paper's form is up to 2 * x, which may be past float16's largest where the result is not.
        halved = self.gain is not None and x.dtype == torch.float16
        found = None if halved else self._squeezable(x)
        if found is None:
            # Under autocast the logits are more precise than the map; the result is what the map is.
            c, p = (None if logits is None else in_dtype(logits, x.dtype) for logits in self._logits(x))
            out = gate(x / 2 if halved else x, c, p, self.combine, backend=self.backend)  # [B, C, H, W]
        else:
            layers, weight, bias = found
            squeezed = squeeze(x, weight, bias)
            c = in_dtype(self._of_mean(squeezed.mean), x.dtype)  # [B, C]
            self._check_positions(x)
            p = in_dtype(layers.after_first(squeezed.reduced), x.dtype)  # [B, 1, H, W]
            out = squeezed.gate(c, p, self.combine)  # [B, C, H, W]
        if self.gain is None:
            return out
        gain = in_dtype(self.gain[:, None, None], x.dtype)
        return torch.addcmul(x * (1 - gain), out, 2 * gain) if halved else torch.lerp(x, out, gain)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, reduction={self.reduction}, dilation={self.dilation}, "
            f"combine={self.combine!r}, branches={self.branches!r}, variant={self.variant!r}, "
            f"start={('paper' if self.gain is None else 'identity')!r}, backend={self.backend!r}"
        )

    def _logits(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the branches that there are say: [B, C] or None, [B, 1, H, W] or None."""
        c = None if self.channel_att is None else self.channel_attention(x)
        p = None if self.spatial_att is None else self.spatial_attention(x)
        return c, p

    def _of_mean(self, mean: Tensor) -> Tensor:
        """The channel branch's logits from the means over the map: [B, C] -> [B, C]."""
        assert self.channel_att is not None
        check_batch(self.channel_att, mean.shape[0])
        return in_float32(self.channel_att, mean)

    def _squeezable(self, x: Tensor) -> tuple[SpatialBranch, Tensor, Tensor] | None:
        """The spatial branch and its first layer's weight and bias, if `squeeze` can stand for that layer.

        It can where the result is the same and nobody notices.
        """
        layers: nn.Module | None = self.spatial_att
        if self.backend == "plain" or x.device.type != "cpu":
            return None
        if in_a_graph() or transformed() or intercepted(x):
            return None
        if not is_own(self, BAM, "_logits", "channel_attention", "spatial_attention"):
            return None
        if self.channel_att is None or layers is None or x.numel() == 0:
            return None
        if self.variant == "official":
            if not is_bare(layers, nn.Sequential) or len(layers) != 1:
                return None
            layers = layers[0]
        if not is_bare(layers, SpatialBranch) or len(layers) == 0 or not is_bare_pointwise(layers[0]):
            return None
        reduce = layers[0]
        if reduce.in_channels != self.channels:
            return None
        weight, bias = reduce.weight, reduce.bias
        if type(weight) is not nn.Parameter or type(bias) is not nn.Parameter:
            return None
        dtypes = {x.dtype, weight.dtype, bias.dtype}
        cast = torch.is_autocast_enabled("cpu") and torch.float64 not in dtypes
        return (layers, weight, bias) if cast or len(dtypes) == 1 else None

    def _check_positions(self, x: Tensor) -> None:
        """ValueError if the spatial branch's BatchNorms are to learn from one position."""
        assert self.spatial_att is not None
        check_batch(self.spatial_att, x.shape[0] * x.shape[2] * x.shape[3])


def check_start(start: str) -> None:
    """ValueError for an unknown one."""
    one_of("start", start, STARTS)


def hidden_channels(channels: int, reduction: int) -> int:
    """C // r; ValueError if that leaves none, or the two are no whole numbers."""
    hidden = whole("channels", channels) // whole("reduction", reduction)
    if hidden == 0:
        raise ValueError(
            f"{channels} channels at reduction {reduction} leave no hidden channel; choose a reduction "
            f"from 1 to {channels}"
        )
    return hidden
